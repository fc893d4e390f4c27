"""The connections between workers and server: nonblocking MPI on buffers, and nothing of mpi4py outside."""

import os

# Read by Open MPI when it starts, so before mpi4py is imported; what the user or mpirun has set wins. By default TCP
# asks the receiver first for every message above 64 KiB. The answer queues behind the data that go the other way, and
# the two directions of a link take turns: 0.48 of its rate each, against 0.95 with this (chunks are below 1 MiB).
os.environ.setdefault("OMPI_MCA_btl_tcp_eager_limit", str(1 << 20))
