"""The errata are complete, and what proves them is true."""

from __future__ import annotations

import pytest

from manualbp.explain.errata import errata
from manualbp.explain.page import Claim, Heading, Line, Page
from manualbp.explain.registry import topics

NUMBERS = {"PORR": 10, "KAND": 9, "CAZE": 10, "IISC": 14, "KRZY": 17}
"""How many entries each document has."""

IDS = [f"E-{name}-{n}" for name, count in NUMBERS.items() for n in range(1, count + 1)]

WORDS_ONLY = ["E-PORR-9", "E-IISC-13", "E-KRZY-14"]
"""A credit, a citation and a slide's number: nothing to compute."""


@pytest.fixture(scope="module")
def page() -> Page:
    """Return the whole page, written once."""
    return topics()["errata"].page()


def test_all_entries_are_there_in_order_and_complete():
    entries = errata()
    assert [entry.id for entry in entries] == IDS
    assert [entry.id for entry in entries if entry.prove is None] == WORDS_ONLY
    for entry in entries:
        assert entry.place
        assert entry.stands
        assert entry.right


def test_the_page_lists_them_under_their_documents(page):
    headings = [item.text for item in page.items if isinstance(item, Heading)]
    expected = []
    for name in NUMBERS:
        expected += [name, *(id for id in IDS if f"-{name}-" in id)]
    assert [heading.split(":")[0] for heading in headings] == expected


def test_every_proof_holds(page):
    assert page.wrong == []


def test_every_entry_but_for_words_is_proved_by_a_number(page):
    proofs: dict[str, int] = {}
    for item in page.items:
        if isinstance(item, Heading):
            proofs[item.text.split(":")[0]] = 0
        elif isinstance(item, (Line, Claim)):
            assert isinstance(item, Line) or item.evidence, item
            proofs[list(proofs)[-1]] += 1
    assert [id for id in IDS if not proofs[id]] == WORDS_ONLY
