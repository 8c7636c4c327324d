"""The numbers of the five lecture documents: what they print, and what their examples come to.

`figures.json` holds 428 of them with document, place and, where the document prints the number, the
string that stands there; and `settings`, the data that a figure follows from. A figure marked as a
trap is what a mistake in a document leads to: it must not come out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number, or one list of numbers, of a lecture."""

    name: str
    document: str  # PORR, KAND, CAZE, IISC, KRZY; `documents()` has the titles
    line: int | None  # in the text of the document
    place: str
    quantity: str
    kind: str  # given, printed, printed_row: it stands there; reference: it follows
    value: Any  # in float64
    setting: str | None
    printed: str | None = None
    trap: bool = False

    @property
    def source(self) -> str:
        """Return "CAZE l.129", or the place if the line is not known."""
        return f"{self.document} {f'l.{self.line}' if self.line else self.place}"


def figure(name: str) -> Figure:
    """Return the figure called `name`. Raises KeyError if there is none."""
    return figures()[name]


@cache
def figures() -> Mapping[str, Figure]:
    """Return all figures by name."""
    return {name: Figure(name, **entry) for name, entry in _file()["figures"].items()}


def setting(name: str) -> dict[str, Any]:
    """Return the data of an example: inputs, targets, weights, rate. Raises KeyError."""
    return _file()["settings"][name]


def documents() -> Mapping[str, str]:
    """Return author and title of the documents by their short names."""
    return _file()["documents"]


@cache
def _file() -> dict[str, Any]:
    return json.loads(files(__name__).joinpath("figures.json").read_text(encoding="utf-8"))


def digits_agreeing(value: float, printed: str) -> int:
    """Return to how many of the printed significant digits `value` rounds to the printed number.

    Both are rounded to k significant digits; the result is the largest k at which they are equal,
    from the length of what is printed down to 0.
    """
    number = Decimal(printed)
    digits = len(number.as_tuple().digits)
    for k in range(digits, 0, -1):
        if f"{Decimal(value):.{k - 1}e}" == f"{number:.{k - 1}e}":
            return k
    return 0


def rounds_to(value: float, printed: str) -> bool:
    """Return whether `value`, rounded to the places that are printed, is the printed number."""
    number = Decimal(printed)
    return round(Decimal(value), -int(number.as_tuple().exponent)) == number
