"""What a topic writes on: headings, sentences, lines of a derivation, tables, code and pictures.

A line or a claim is checked while it is written: it says what it must be equal to, and from where.
Nothing here knows how a page is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite
from typing import Any, TypeAlias, cast

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.lectures import Figure, digits_agreeing, figure, rounds_to

Value: TypeAlias = (
    "float | Fraction | Tensor | Sequence[float | Fraction] | Sequence[Sequence[float | Fraction]]"
)
Numbers: TypeAlias = "float | list[Numbers]"

CLOSE = 1e-12
"""Relative difference that a line in float64 may have from what it must be equal to."""


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines shown as they stand: source code, or an equation over several lines."""

    text: str
    title: str = ""  # such as the file that it is from


@dataclass(frozen=True)
class Given:
    """A number, or several, that the derivation begins with, and so not checked."""

    name: str
    value: Numbers
    meaning: str


@dataclass(frozen=True)
class Printed:
    """What a lecture prints for a number, and on how many of its significant digits ours agrees."""

    text: str
    source: str
    digits: int
    of: int
    expected: bool  # False for a number that is known to be misprinted


@dataclass(frozen=True)
class Line:
    """One quantity: its name, its equation, the numbers put in, the result; and what it equals."""

    name: str
    equation: str  # in index form
    numbers: str  # the equation with the numbers put in; may be empty
    value: Numbers
    equals: Numbers | None  # found in another way, or the lecture's figure
    because: str  # what `equals` is: "the lecture's figure", "central differences", ...
    printed: Printed | None
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A sentence that is true or not, with the numbers that show it."""

    text: str
    evidence: str
    holds: bool


@dataclass(frozen=True)
class Table:
    """Rows under column names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Drawing:
    """A picture, drawn when somebody wants to have it."""

    name: str
    caption: str
    draw: Callable[[], Picture]


Item: TypeAlias = Heading | Paragraph | Code | Given | Line | Claim | Table | Drawing


@dataclass
class Page:
    """The items of a topic in order. `seed` is for topics that draw their numbers."""

    seed: int = 0
    items: list[Item] = field(default_factory=list["Item"])

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.items.append(Heading(text))

    def say(self, text: str) -> None:
        """Write a paragraph; line breaks and indents of the source are folded to one space."""
        self.items.append(Paragraph(" ".join(text.split())))

    def code(self, text: str, title: str = "") -> None:
        """Show lines as they stand."""
        self.items.append(Code(text, title))

    def given(self, name: str, value: Value, meaning: str = "") -> None:
        """Show what the derivation begins with: inputs, targets, weights, a rate."""
        self.items.append(Given(name, as_numbers(value), meaning))

    def line(
        self,
        name: str,
        equation: str,
        value: Value,
        *,
        numbers: str = "",
        figure: str | None = None,
        equals: Value | None = None,
        because: str = "",
        tolerance: float = CLOSE,
        absolute: float = 0.0,
    ) -> None:
        """Write a quantity and check it, against a figure of a lecture or what it `equals`.

        A figure that is printed must also round to the printed string. `tolerance` is relative to
        the largest number; `absolute` is what differences may be off whatever the size, as those
        of central differences are. Raises ValueError if there is nothing to check against.
        """
        ours = as_numbers(value)
        lecture = None if figure is None else _figure(figure)
        if equals is None and lecture is None:
            raise ValueError(f"the line {name!r} has nothing that it must be equal to")
        expected = (
            as_numbers(equals) if equals is not None else as_numbers(cast(Figure, lecture).value)
        )
        because = because or (f"the figure {figure}" if lecture else "")
        printed = _printed(ours, lecture)
        holds = close(ours, expected, tolerance, absolute)
        if printed and printed.expected:
            holds = holds and printed.digits == printed.of
        self.items.append(Line(name, equation, numbers, ours, expected, because, printed, holds))

    def claim(self, text: str, holds: bool, evidence: str = "") -> None:
        """Write a sentence that is checked, with its evidence."""
        self.items.append(Claim(" ".join(text.split()), evidence, bool(holds)))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = ""
    ) -> None:
        """Write a table; numbers are shown with 6 significant digits, strings as they are."""
        shown = tuple(tuple(_cell(cell) for cell in row) for row in rows)
        self.items.append(Table(tuple(columns), shown, title))

    def picture(self, name: str, caption: str, draw: Callable[[], Picture]) -> None:
        """Offer a picture; `draw` returns a matplotlib Figure made without pyplot."""
        self.items.append(Drawing(name, caption, draw))

    @property
    def wrong(self) -> list[Line | Claim]:
        """Return the lines and claims that do not hold."""
        return [i for i in self.items if isinstance(i, (Line, Claim)) and not i.holds]

    @property
    def checked(self) -> int:
        """Return the number of lines and claims."""
        return sum(isinstance(item, (Line, Claim)) for item in self.items)


def as_numbers(value: Value) -> Numbers:
    """Return a float or nested lists of floats."""
    if isinstance(value, Tensor):
        return cast("Numbers", cast(Any, value.double()).tolist())
    if isinstance(value, (int, float, Fraction)):
        return float(value)
    return [as_numbers(cast("Value", item)) for item in value]


def close(ours: Numbers, expected: Numbers, tolerance: float, absolute: float = 0.0) -> bool:
    """Return whether two nested lists have one shape and agree within a limit.

    The limit is `tolerance` · max|expected| + `absolute`. Numbers that are not finite must be
    equal.
    """
    try:
        a = torch.tensor(ours, dtype=torch.float64)
        b = torch.tensor(expected, dtype=torch.float64)
    except (TypeError, ValueError):  # no rectangle: lists of different lengths, or beside numbers
        return (
            isinstance(ours, list)
            and isinstance(expected, list)
            and len(ours) == len(expected)
            and all(close(o, e, tolerance, absolute) for o, e in zip(ours, expected, strict=True))
        )
    if a.shape != b.shape:
        return False
    finite = b.isfinite()
    limit = absolute + (tolerance * float(b[finite].abs().max()) if finite.any() else 0.0)
    same = torch.where(finite, (a - b).abs() <= limit, a == b)
    return bool(same.all())


def _figure(name: str) -> Figure:
    return figure(name)


def _printed(ours: Numbers, lecture: Figure | None) -> Printed | None:
    """Compare a single number with the string in the lecture, if it is printed there."""
    if lecture is None or lecture.kind != "printed" or not isinstance(ours, float):
        return None
    text = lecture.printed or ""
    if not isfinite(ours):
        return Printed(text, lecture.source, 0, 1, True)
    digits = digits_agreeing(ours, text)
    of = digits_agreeing(float(text), text)
    if rounds_to(ours, text):
        digits = of
    return Printed(text, lecture.source, digits, of, rounds_to(cast(float, lecture.value), text))


def _cell(cell: object) -> str:
    return f"{cell + 0.0:.6g}" if isinstance(cell, float) else str(cell)  # -0.0 + 0.0 is 0.0
