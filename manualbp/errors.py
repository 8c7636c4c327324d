"""The three ways in which a command ends early on purpose, and a hint for a mistyped name."""

from collections.abc import Sequence
from difflib import get_close_matches


class UsageError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right."""

    exit_code = 2


class CheckFailed(Exception):
    """A check did not hold: gradients differ, or a number is no longer finite."""

    exit_code = 1


class Interrupted(Exception):
    """SIGINT or SIGTERM came; raised between two updates, where everything fits together."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, names: Sequence[str]) -> str:
    """Return "did you mean NAME?" for a near-miss, or else what there is."""
    by_lower = {name.lower(): name for name in names}
    near = get_close_matches(word.lower(), by_lower, 1)
    return f"did you mean {by_lower[near[0]]}?" if near else f"there are: {', '.join(names)}"
