"""Deep learning with every backward pass written by hand, proved against autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manualbp.checks.adapter import as_function
    from manualbp.checks.conversion import from_torch
    from manualbp.recording import capture

__all__ = ["as_function", "capture", "from_torch"]


def __getattr__(name: str) -> Any:
    """Import what is asked for.

    So the hand-written side does without torch.nn, and pytest, which loads our plugin in other
    people's projects, without torch.
    """
    if name == "capture":
        from manualbp import recording

        return recording.capture
    if name == "as_function":
        from manualbp.checks import adapter

        return adapter.as_function
    if name == "from_torch":
        from manualbp.checks import conversion

        return conversion.from_torch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
