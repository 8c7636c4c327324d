"""The options of `manualbp selftest`, apart from what loads the catalogue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelftestConfig:
    """Test the gradient doctor on planted bugs and on right backward passes.

    Bugs must be found and named; right passes go through all that `check` does.
    """

    seeds: int = 5
    """Seeds that right passes are examined on: 0, 1, ..."""
    mutant_seeds: int = 1
    """Seeds that mutants are made on: 0, 1, ..."""
    only: str = ""
    """Only mutants and right passes whose name has this text in it."""
    workers: int | None = None
    """Processes that share the work; one for each core if not given. The result is the same."""
    json: bool = False
    """Print the result as JSON on standard output."""
    debug: bool = False
    """Show the traceback of an error."""
