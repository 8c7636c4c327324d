"""The options of `manualbp selftest`, apart from what loads the catalogue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelftestConfig:
    """Test the gradient doctor: find planted bugs, name them, and accuse no right backward pass."""

    seeds: int = 1
    """Seeds of the numbers that right passes and mutants are run on: 0, 1, ..."""
    only: str = ""
    """Only mutants and right passes whose name has this text in it."""
    json: bool = False
    """Print the result as JSON on standard output."""
    debug: bool = False
    """Show the traceback of an error."""
