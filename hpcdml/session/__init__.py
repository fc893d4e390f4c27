"""The engine of ``hpcdml train`` for a training loop of the user's own."""

from hpcdml.session.session import Session, device

__all__ = ["Session", "device"]
