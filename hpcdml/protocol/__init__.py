"""The state machines of worker and server, the policies and the messages: no MPI, no clock, no file, no device."""
