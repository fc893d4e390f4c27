"""The connections between workers and server: nonblocking MPI on buffers, and nothing of mpi4py outside."""
