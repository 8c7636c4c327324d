"""Deep learning with every backward pass written by hand, proved against autograd."""

from manualbp.recording import capture

__all__ = ["capture"]
