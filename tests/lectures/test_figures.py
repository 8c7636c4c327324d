"""All figures are there, are what they say, and belong to a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from manualbp.lectures import digits_agreeing, documents, figure, figures, rounds_to, setting


def test_every_figure_belongs_to_a_test(
    claimed_by_any: set[str], request: pytest.FixtureRequest
) -> None:
    here = Path(__file__).parent
    modules = {Path(item.path) for item in request.session.items}
    if modules >= set(here.glob("test_*.py")):
        assert figures().keys() - claimed_by_any == set()


def test_there_are_428_figures_of_five_documents() -> None:
    assert len(figures()) == 428
    assert {f.document for f in figures().values()} == documents().keys()
    assert sum(f.trap for f in figures().values()) == 20
    for f in figures().values():
        if f.setting and not f.setting.startswith("inline") and f.setting != "INLINE":
            assert setting(f.setting)


def test_printed_numbers_are_the_values_rounded_but_for_one() -> None:
    printed = [f for f in figures().values() if f.kind == "printed"]
    wrong = [f.name for f in printed if not rounds_to(f.value, f.printed or "")]
    assert wrong == ["C.dEo2_dout_h1", "Z.dEo2_dout_h1"]


def test_digits() -> None:
    assert digits_agreeing(0.29102777369, "0.291027924") == 6
    assert digits_agreeing(0.35, "0.35") == 2
    assert digits_agreeing(-0.35, "0.35") == 0
    assert rounds_to(0.40000001, "0.40")
    assert not rounds_to(0.406, "0.40")
    assert figure("C.net_h1").source == "CAZE l.129"
