"""What an entry of the errata is, and how one is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manualbp.explain.page import Page

Prove = Callable[[Page], None]


@dataclass(frozen=True)
class Erratum:
    """One place where a document is wrong or can be read in two ways."""

    id: str  # "E-PORR-1"
    place: str  # in the document: equations, or lines of its text
    stands: str
    right: str
    prove: Prove | None  # writes the numbers that show it; None where only words are at stake

    @property
    def document(self) -> str:
        """Return the short name of the document."""
        return self.id.split("-")[1]


ERRATA: list[Erratum] = []
"""All entries, in the order in which they are written down."""


def erratum(id: str, place: str, *, stands: str, right: str) -> Callable[[Prove], Prove]:
    """Write an entry down; the function below it proves it."""

    def register(prove: Prove) -> Prove:
        ERRATA.append(Erratum(id, place, stands, right, prove))
        return prove

    return register


def wording(id: str, place: str, *, stands: str, right: str) -> None:
    """Write down an entry about words, names or numbers of pages: there is nothing to compute."""
    ERRATA.append(Erratum(id, place, stands, right, None))
