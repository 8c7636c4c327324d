"""The type checker of jaxtyping's import hook: beartype, to which an int is a float (PEP 484)."""

from typing import TypeVar

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

F = TypeVar("F")


def check(function: F) -> F:
    try:
        return beartype(function, conf=BeartypeConf(is_pep484_tower=True))
    except BeartypeDecorHintPep673Exception:
        # jaxtyping decorates each method apart, and there beartype cannot know which class Self is.
        return function
