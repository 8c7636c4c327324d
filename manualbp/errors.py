"""The two ways in which a command ends badly on purpose."""


class UsageError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right. Exit code 2."""


class CheckFailed(Exception):
    """A check did not hold: gradients differ, or a number is no longer finite. Exit code 1."""
