"""How items of a page are shown: numbers, equations, checks, tables, code; and as data."""

import json
from math import inf, nan

import pytest
from matplotlib.figure import Figure as Picture
from rich.cells import cell_len
from rich.text import Text

from manualbp.explain.page import Line, Page, Printed
from manualbp.explain.render import (
    FIGURES,
    as_data,
    fold,
    fold_code,
    item_lines,
    number,
    number_block,
    page_lines,
    remarks,
    verdict,
)


def shown(page: Page, width: int = 80) -> str:
    return "\n".join(line.plain for line in page_lines(page, width=width))


def test_a_matrix_is_aligned_at_the_decimal_points() -> None:
    assert number_block([[0.123456789, -1.0], [12.5, 1e-5]], 80) == [
        "[  0.123457  -1     ]",
        "[ 12.5        1e-05 ]",
    ]


def test_numbers_have_the_digits_asked_for_and_no_negative_zero() -> None:
    assert number_block(1 / 3, 80, 10) == ["0.3333333333"]
    assert number(-0.0) == "0"
    assert [number(value) for value in (nan, inf, -inf, 10000.0)] == ["nan", "inf", "-inf", "10000"]


def test_more_axes_come_in_blocks_under_their_index() -> None:
    assert number_block([[[1.0, 2.0]], [[3.0, 4.0]]], 80) == ["[0] [ 1  2 ]", "[1] [ 3  4 ]"]
    assert number_block([[1.0, 2.0], [3.0]], 80) == ["[0] [ 1  2 ]", "[1] [ 3 ]"]
    assert number_block([], 80) == ["[ ]"]


def test_long_lists_are_broken_and_very_long_ones_counted() -> None:
    rows = number_block([i / 7 for i in range(30)], 40)
    assert max(map(len, rows)) <= 40
    assert " ".join(rows).count(".") == 25  # all but 0, 1, 2, 3 and 4
    rows = number_block([0.5] * 1000, 40)
    assert rows[-1] == "  … 940 more ]"
    rows = number_block([[0.5] * 3] * 100, 40)
    assert rows[-1] == "… 88 more rows"
    wide = number_block([[i / 7 for i in range(30)]] * 2, 40)
    assert max(map(len, wide)) <= 40
    assert wide[0].startswith("[0] [ ")


def test_a_line_shows_equation_numbers_result_and_check() -> None:
    page = Page()
    page.line("y", "a + b", 3.0, numbers="1 + 2", equals=3.0, because="counting")
    assert shown(page).splitlines() == [
        "",
        "  y = a + b",
        "    = 1 + 2",
        "    = 3                       ✓ counting",
    ]


def test_an_equation_may_repeat_the_name_and_the_name_may_be_long() -> None:
    page = Page()
    page.line("y", "y = a + b", 3.0, equals=3.0, because="counting")
    page.line("a name that is longer than most are", "a + b", 3.0, equals=3.0, because="counting")
    text = shown(page)
    assert "  y = a + b\n    = 3 " in text
    assert "  a name that is longer than most are\n      = a + b\n      = 3 " in text


def test_what_the_lecture_prints_stands_beside_ours_with_the_digits_that_agree() -> None:
    page = Page()
    page.line("E", "", 0.29837110876, figure="C.E_total", tolerance=1e-9)
    assert "E = 0.29837110876" in shown(page)
    assert "✓ CAZE l.159 prints 0.298371109: all 9 digits" in shown(page)
    page = Page()
    page.line("E", "", 0.29847110876, figure="C.E_total")
    assert "✗ CAZE l.159 prints 0.298371109: 3 of 9 digits" in shown(page)
    assert "✗ WRONG: it should be 0.298371108" in shown(page)


def test_the_digits_that_agree_have_another_colour() -> None:
    line = Line(
        "E", "", "", 0.29847, 0.29837, "", Printed("-0.029837", "CAZE l.1", 3, 5, True), False
    )
    note = next(row for row in item_lines(line) if "prints" in row.plain)
    start = note.plain.index("-0.029837")
    styles = {note.plain[span.start : span.end]: span.style for span in note.spans}
    colours = [
        next(span.style for span in reversed(note.spans) if span.start <= at < span.end)
        for at in range(start, start + 9)
    ]
    assert colours == ["bold green"] * 7 + ["bold red"] * 2, styles


def test_a_misprint_is_no_fault_of_ours() -> None:
    printed = Printed("-0.019049119", "KRZY l.477", 7, 8, False)
    line = Line("d", "", "", -0.0190491182583, -0.0190491182583, "the figure", printed, True)
    text = "\n".join(row.plain for row in item_lines(line))
    assert "✓ KRZY l.477 prints -0.019049119: 7 of 8 digits, a misprint" in text
    assert "✓ the figure" in text


def test_a_wrong_line_shows_what_it_should_be_and_from_where() -> None:
    page = Page()
    page.line(
        "W", "", [[1.0, 2.0], [3.0, 4.0]], equals=[[1.0, 2.0], [3.0, 5.0]], because="counting"
    )
    page.claim("one is two", False, "1 ≠ 2")
    text = shown(page)
    assert "✗ WRONG: it should be\n" in text
    assert "[ 3  5 ]" in text
    assert "(counting)" in text
    assert "✗ WRONG: one is two\n    1 ≠ 2" in text
    assert verdict(page).plain == "✗ 2 of 2 lines checked are wrong."


def test_everything_keeps_within_the_width() -> None:
    page = Page()
    words = "as long a text as one may want to write about a small thing, ω_1 · ω_2 ∂E/∂y " * 4
    page.heading(words)
    page.say(words)
    page.code(f"    x = f({words})  # {words}\n# {words}\n{'x' * 200}", title=words)
    page.given("x", [0.123456789] * 30, words)
    page.line(words, words, 1 / 3, numbers=words, equals=1 / 3, because=words)
    page.line("y", words, 1 / 3, numbers=words, equals=1 / 4, because=words)
    page.line("M", words, [[1 / 3] * 30] * 30, equals=0.0, because=words)
    page.claim(words, True, words)
    page.claim(words, False, words)
    page.table(["a", "b", words], [[1 / 3, words, words], [2.0, "b", "c"]], title=words)
    page.picture("p", words, Picture)
    for width in (40, 60, 80):
        assert max(line.cell_len for line in page_lines(page, width=width)) <= width


def test_given_numbers_of_one_line_stand_together() -> None:
    page = Page()
    page.given("a", 1.0, "one")
    page.given("b", 2.0)
    page.given("W", [[1.0], [2.0]])
    page.given("c", 3.0)
    text = [line.plain.removesuffix("one").rstrip() for line in page_lines(page)]
    assert text == ["", "  a = 1", "  b = 2", "", "  W = [ 1 ]", "      [ 2 ]", "", "  c = 3"]


def test_columns_of_numbers_are_flushed_right() -> None:
    page = Page()
    page.table(["name", "E"], [["first", 0.5], ["second", 12.25]], title="two")
    assert shown(page).splitlines() == [
        "",
        "  two",
        "  name        E",
        "  ------  -----",
        "  first     0.5",
        "  second  12.25",
    ]


def test_text_is_folded_at_spaces_and_no_word_is_lost() -> None:
    text = "Σ_j  ω_j x_j, " * 20
    rows = fold(text, 30, hang=2)
    assert max(map(cell_len, rows)) <= 30
    assert " ".join(rows).split() == text.split()
    assert all(row.startswith("  ") for row in rows[1:])
    assert fold("", 30) == [""]


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("x = 1  # one", ["x = 1  # one"]),
        (
            "    y = first_function(x)  # as it is",
            ["    y = first_function(x)", "      # as it is"],
        ),
        ("  # a comment that goes on and on", ["  # a comment that goes on", "  # and on"]),
        ("y = function(first, second, third)", ["y = function(first,", "    second, third)"]),
    ],
)
def test_code_is_folded_as_one_would(line: str, rows: list[str]) -> None:
    assert fold_code(line, 26) == rows


def test_as_data_a_page_keeps_every_item_and_is_json() -> None:
    page = Page(seed=3)
    page.heading("h")
    page.say("s")
    page.code("c")
    page.given("g", [1.0, nan])
    page.line("E", "", 0.29837110876, figure="C.E_total", tolerance=1e-9)
    page.line("i", "", inf, equals=inf, because="overflow")
    page.claim("c", True)
    page.table(["a"], [[1.0]])
    page.picture("p", "caption", Picture)
    data = json.loads(json.dumps(as_data(page), allow_nan=False))
    assert (data["seed"], data["checked"], data["wrong"]) == (3, 3, 0)
    kinds = ["heading", "paragraph", "code", "given", "line", "line", "claim", "table", "drawing"]
    assert [item["kind"] for item in data["items"]] == kinds
    assert data["items"][3]["value"] == [1.0, None]
    assert data["items"][4]["printed"]["text"] == "0.298371109"
    assert data["items"][4]["holds"] is True
    assert data["items"][5]["value"] is None
    assert data["items"][7]["rows"] == [["1"]]
    assert data["items"][8] == {"kind": "drawing", "name": "p", "caption": "caption"}


def test_a_page_without_checks_says_so() -> None:
    assert verdict(Page()) == Text("Nothing to check.", "green")


def test_numbers_beside_lists_stand_on_one_line_if_there_is_room():
    mixed = [6.0, 11.0, [5.0, 2.0], -3.0]
    assert number_block(mixed, 40) == ["[ 6  11  [ 5  2 ]  -3 ]"]
    assert number_block(mixed, 12) == ["[0] 6", "[1] 11", "[2] [ 5  2 ]", "[3] -3"]


def test_what_a_figure_is_stands_below_a_page_that_names_one():
    page = Page()
    page.line("y", "", 1.0, equals=1.0, because="counting")
    assert remarks(page) == []
    page.line("y", "", 0.0, figure="P.neuron.y")
    assert [line.plain for line in remarks(page)] == [FIGURES]


def test_a_table_has_no_minus_zero():
    page = Page()
    page.table(["x"], [[-0.0], [-1.5]])
    assert page.items[-1].rows == (("0",), ("-1.5",))
