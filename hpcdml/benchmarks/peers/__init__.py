"""The peers that hpcdml is measured against: PyTorch's own ways of training together, with hpcdml's data and model.

All ranks of a peer are workers. Any launcher that starts hpcdml starts ``python -m hpcdml.benchmarks.peers``, so that
both train on the same hosts over the same links.
"""

from hpcdml.benchmarks.peers.options import SIDES, PeerOptions

__all__ = ["SIDES", "PeerOptions"]
