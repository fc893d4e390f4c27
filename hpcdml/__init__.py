"""Distributed PyTorch training over MPI in which workers never wait for the network."""

__version__ = "0.1.0"
