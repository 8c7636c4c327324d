"""Where the five documents are wrong or ambiguous, one module for each document.

Each entry says where it is, what stands there, what is right, and computes a number that proves it.
"""

from manualbp.explain.errata import caze, iisc, kand, krzy, porr
from manualbp.explain.errata.entry import ERRATA, Erratum
from manualbp.lectures import documents


def errata() -> list[Erratum]:
    """Return all entries, document by document."""
    order = list(documents())
    return sorted(ERRATA, key=lambda entry: order.index(entry.document))


__all__ = ["Erratum", "caze", "errata", "iisc", "kand", "krzy", "porr"]
