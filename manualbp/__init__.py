"""Deep learning with every backward pass written by hand, proved against autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manualbp.recording import capture

if TYPE_CHECKING:
    from manualbp.checks.adapter import as_function
    from manualbp.checks.conversion import from_torch

__all__ = ["as_function", "capture", "from_torch"]


def __getattr__(name: str) -> Any:
    """Import what needs torch.nn when it is asked for, so that the hand-written side does not."""
    if name == "as_function":
        from manualbp.checks import adapter

        return adapter.as_function
    if name == "from_torch":
        from manualbp.checks import conversion

        return conversion.from_torch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
