"""How a page is shown: as lines of text for people, as data for programs.

A line of text is never wider than it is told. Colours are styles of rich, which leaves them out
where the output is no terminal; nothing else depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from math import isfinite
from typing import Any, cast

from rich.cells import cell_len
from rich.text import Text

from manualbp.explain.page import (
    Claim,
    Code,
    Drawing,
    Given,
    Heading,
    Item,
    Line,
    Numbers,
    Page,
    Paragraph,
    Printed,
    Table,
)

WIDTH = 80
MARGIN = "  "
SIDE = 30
"""The column in which the check stands beside a short result."""
LONGEST_NAME = 22
"""A longer name has a line to itself."""
MOST_NUMBERS = 60
"""Of a longer list, and MOST_ROWS of a higher matrix, the rest is counted instead of shown."""
MOST_ROWS = 12

FIGURES = "A figure is a number of the lectures, in manualbp/lectures/figures.json."
RIGHT, WRONG, QUIET = "green", "bold red", "dim"
Rows = list[Text]


def page_lines(page: Page, *, width: int = WIDTH, rule: str = "-") -> Iterator[Text]:
    """Yield the page line by line; `rule` is what headings and tables are underlined with."""
    together = False  # given numbers of one line each stand below each other
    for item in page.items:
        rows = item_lines(item, width, rule)
        short = isinstance(item, Given) and len(rows) == 1
        if not (together and short):
            yield Text()
        yield from rows
        together = short


def item_lines(item: Item, width: int = WIDTH, rule: str = "-") -> Rows:
    """Return the lines of one item."""
    match item:
        case Heading():
            rows = [Text(row, "bold cyan") for row in fold(item.text, width)]
            return [*rows, Text(rule * max(row.cell_len for row in rows), "cyan")]
        case Paragraph():
            return [Text(row) for row in fold(item.text, width)]
        case Code():
            return _code(item, width)
        case Given():
            note = [Text(item.meaning, QUIET)] if item.meaning else []
            return _equation_rows(item.name, [], item.value, note, width, digits=10)
        case Line():
            return _line(item, width)
        case Claim():
            return _claim(item, width)
        case Table():
            return _table(item, width, rule)
        case Drawing():
            text = f"Picture {item.name!r}: {item.caption}"
            return [Text(MARGIN + row, QUIET) for row in fold(text, width - 2, hang=2)]


def title_lines(
    name: str, title: str, rows: Sequence[str], width: int, rule: str
) -> Iterator[Text]:
    """Yield what stands above a page."""
    yield from (Text(row, "bold") for row in fold(title, width))
    systems = f"  ({', '.join(rows)})" if rows else ""
    yield from (Text(row, QUIET) for row in fold(f"manualbp explain {name}{systems}", width))
    yield Text(rule * width, QUIET)


def verdict(page: Page) -> Text:
    """Return what stands below a page: how many lines were checked and whether they hold."""
    lines, wrong = _counted(page.checked), len(page.wrong)
    if wrong:
        return Text(f"✗ {wrong} of {lines} checked {'is' if wrong == 1 else 'are'} wrong.", WRONG)
    return Text(f"✓ {lines} checked, all hold." if page.checked else "Nothing to check.", RIGHT)


def remarks(page: Page) -> Rows:
    """Return what stands below the verdict: where the figures are that lines refer to, if any."""
    named = any(isinstance(item, Line) and "figure" in item.because for item in page.items)
    return [Text(FIGURES, QUIET)] if named else []


def as_data(page: Page) -> dict[str, Any]:
    """Return the page as JSON knows it; a number that is not finite becomes None."""
    return {
        "seed": page.seed,
        "checked": page.checked,
        "wrong": len(page.wrong),
        "items": [item_as_data(item) for item in page.items],
    }


def item_as_data(item: Item) -> dict[str, Any]:
    """Return the item's fields, and under "kind" what it is."""
    kind = {"kind": type(item).__name__.lower()}
    if isinstance(item, Drawing):
        return kind | {"name": item.name, "caption": item.caption}
    return kind | {field.name: _plain(value) for field, value in _values(item)}


def _values(item: Any) -> Iterator[tuple[Any, Any]]:
    for field in fields(item):
        value = getattr(item, field.name)
        yield field, asdict(value) if isinstance(value, Printed) else value


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in cast("Sequence[Any]", value)]
    return value


# One item -----------------------------------------------------------------------------------------


def _line(item: Line, width: int) -> Rows:
    equation = item.equation.removeprefix(f"{item.name} = ")
    equations = [text for text in (equation, item.numbers.removeprefix("= ")) if text]
    checks, digits = _checks(item, width), 12 if item.printed else 10
    return _equation_rows(item.name, equations, item.value, checks, width, digits=digits)


def _checks(item: Line, width: int) -> Rows:
    """Return what a result was checked against, and how it came out."""
    rows: Rows = []
    printed = item.printed
    if printed:
        agree = "all" if printed.digits == printed.of else f"{printed.digits} of"
        row = Text.assemble(
            ("✓ " if item.holds else "✗ ", RIGHT if item.holds else WRONG),
            (f"{printed.source} prints ", QUIET),
            _digits_coloured(printed),
            (f": {agree} {_counted(printed.of, 'digit')}", QUIET),
        )
        if not printed.expected:
            row.append(", a misprint", QUIET)
        rows.append(row)
        if item.holds and (printed.expected or not item.because):
            return rows
    if item.holds:
        rows.append(Text.assemble(("✓ ", RIGHT), (item.because, QUIET)))
        return rows
    expected = item.equals
    assert expected is not None  # Page.line sees to it
    block = number_block(expected, width - 20, 12)
    rows.append(
        Text(f"✗ WRONG: it should be {block[0] if len(block) == 1 else ''}".rstrip(), WRONG)
    )
    rows += [Text(f"  {row}", WRONG) for row in block] if len(block) > 1 else []
    rows.append(Text(f"  ({item.because})", WRONG))
    return rows


def _digits_coloured(printed: Printed) -> Text:
    """Return the printed number, with the digits that ours agrees with in another colour."""
    text, seen, started = Text(), 0, False
    for sign in printed.text:
        started = started or sign in "123456789"
        if started and sign.isdigit():
            seen += 1
        text.append(sign, f"bold {RIGHT}" if seen <= printed.digits else WRONG)
    return text


def _equation_rows(
    name: str, equations: Sequence[str], value: Numbers, notes: Rows, width: int, *, digits: int
) -> Rows:
    """Return "name = equation", below it "= numbers" and "= result", and the notes beside it."""
    rows: Rows = []
    indent = cell_len(MARGIN + name) + 1
    start = Text.assemble(MARGIN, (name, "bold"), " ")
    if cell_len(name) > LONGEST_NAME:
        rows += [Text(MARGIN + row, "bold") for row in fold(name, width - 2, hang=2)]
        indent = 6
        start = Text(" " * indent)
    for equation in equations:
        for number, row in enumerate(fold(equation, width - indent - 2)):
            rows.append(start + Text(f"{'=' if number == 0 else ' '} {row}"))
            start = Text(" " * indent)
    style = "bold" if equations else ""
    for number, row in enumerate(number_block(value, width - indent - 2, digits)):
        rows.append(start + Text("= " if number == 0 else "  ") + Text(row, style))
        start = Text(" " * indent)
    return _with_notes(rows, notes, width, indent + 2)


def _with_notes(rows: Rows, notes: Rows, width: int, indent: int) -> Rows:
    """Return the rows with the notes beside the last one if there is room, else below it."""
    if not notes:
        return rows
    last = rows[-1].cell_len
    column = max(SIDE, last + 3)
    if len(notes) == 1 and column + notes[0].cell_len <= width:
        beside = rows[-1] + Text(" " * (column - last)) + notes[0]
        return [*rows[:-1], beside]
    for note in notes:
        rows += _folded_text(note, width, indent)
    return rows


def _folded_text(text: Text, width: int, indent: int) -> Rows:
    """Return styled text in rows, the further ones indented by two more."""
    pieces = fold(text.plain, width - indent, hang=2)
    if len(pieces) == 1:
        return [Text(" " * indent) + text]
    rows: Rows = []
    at = 0
    for piece in pieces:
        words = piece.strip()
        begin = text.plain.index(words, at)
        at = begin + len(words)
        rows.append(Text(" " * indent + " " * (len(piece) - len(piece.lstrip()))) + text[begin:at])
    return rows


def _claim(item: Claim, width: int) -> Rows:
    mark, style = ("✓ ", RIGHT) if item.holds else ("✗ WRONG: ", WRONG)
    text = fold(item.text, width - 4, first=len(mark) - 2)
    rows = [Text.assemble(MARGIN, (mark, style), text[0])]
    rows += [Text(f"    {row}") for row in text[1:]]
    rows += [
        Text(f"    {row}", QUIET)
        for row in (fold(item.evidence, width - 4) if item.evidence else [])
    ]
    return rows


def _code(item: Code, width: int) -> Rows:
    rows: Rows = []
    if item.title:
        rows += [Text(MARGIN + row, QUIET) for row in fold(item.title, width - 2)]
    for line in item.text.splitlines():
        for row in fold_code(line, width - 4):
            code, sign, comment = row.partition("# ")
            rows.append(Text.assemble("    ", code, (sign + comment, "green")))
    return rows


def _table(item: Table, width: int, rule: str) -> Rows:
    cells = [list(item.columns), *(list(row) for row in item.rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width - 2 else 1
    room = width - 2 - gap * (len(widths) - 1)
    while sum(widths) > room:
        widest = widths.index(max(widths))
        widths[widest] = max(1, widths[widest] - 1)
    right = [all(map(_is_number, column[1:])) for column in columns]
    rows = (
        [Text(MARGIN + row, "italic") for row in fold(item.title, width - 2)] if item.title else []
    )
    for number, line in enumerate(cells):
        folded = [fold(cell, size) for cell, size in zip(line, widths, strict=True)]
        for part in range(max(map(len, folded))):
            shown = [
                _padded(cell[part] if part < len(cell) else "", size, to_right)
                for cell, size, to_right in zip(folded, widths, right, strict=True)
            ]
            style = "bold" if number == 0 else ""
            rows.append(Text(MARGIN + (" " * gap).join(shown).rstrip(), style))
        if number == 0:
            lines = (" " * gap).join(rule * size for size in widths)
            rows.append(Text(MARGIN + lines, QUIET))
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell in ("", "-", "–")
    return True


def _padded(text: str, size: int, to_right: bool) -> str:
    space = " " * (size - cell_len(text))
    return space + text if to_right else text + space


# Numbers ------------------------------------------------------------------------------------------


def number_block(value: Numbers, width: int, digits: int = 10) -> list[str]:
    """Return a number with so many digits; or a list or matrix with 6, in aligned columns.

    What has more than two axes, and what is wider than `width`, comes in blocks under their index.
    """
    if not isinstance(value, list):
        return [number(value, digits)]
    if all(isinstance(entry, float) for entry in value):
        return _vector(cast("list[float]", value), width)
    matrix = _as_matrix(value)
    if matrix:
        rows = _matrix(matrix[:MOST_ROWS])
        if max(map(len, rows)) <= width:
            more = len(matrix) - MOST_ROWS
            return [*rows, f"… {_counted(more, 'more row')}"] if more > 0 else rows
    if any(isinstance(entry, float) for entry in value):  # numbers beside lists
        one_row = f"[ {'  '.join(row for v in value for row in number_block(v, width))} ]"
        if len(one_row) <= width:
            return [one_row]
    blocks: list[str] = []
    for index, entry in enumerate(value[:MOST_ROWS]):
        label = f"[{index}] "
        block = number_block(entry, width - len(label))
        blocks += [(label if i == 0 else " " * len(label)) + row for i, row in enumerate(block)]
    more = len(value) - MOST_ROWS
    return [*blocks, f"… {more} more"] if more > 0 else blocks


def number(value: float, digits: int = 6) -> str:
    """Return the number with that many significant digits, without zeros at the end."""
    text = f"{value:.{digits}g}"
    return "0" if text == "-0" else text


def _as_matrix(value: list[Numbers]) -> list[list[float]] | None:
    rows = [row for row in value if isinstance(row, list) and row]
    same_length = len(rows) == len(value) and len({len(row) for row in rows}) == 1
    flat = same_length and all(isinstance(entry, float) for row in rows for entry in row)
    return cast("list[list[float]]", rows) if flat else None


def _vector(value: list[float], width: int) -> list[str]:
    texts = [number(entry) for entry in value[:MOST_NUMBERS]]
    one_row = f"[ {'  '.join(texts)} ]"
    if not value:
        return ["[ ]"]
    if len(one_row) <= width and len(value) <= MOST_NUMBERS:
        return [one_row]
    texts = _aligned(texts)
    per_row = max(1, (width - 2) // (len(texts[0]) + 2))
    rows = ["  ".join(texts[i : i + per_row]) for i in range(0, len(texts), per_row)]
    rows = [f"{'[' if i == 0 else ' '} {row}" for i, row in enumerate(rows)]
    more = len(value) - MOST_NUMBERS
    return [*rows, f"  … {more} more ]"] if more > 0 else [*rows[:-1], f"{rows[-1]} ]"]


def _matrix(value: list[list[float]]) -> list[str]:
    columns = [_aligned([number(entry) for entry in column]) for column in zip(*value, strict=True)]
    return [f"[ {'  '.join(row)} ]" for row in zip(*columns, strict=True)]


def _aligned(texts: Sequence[str]) -> list[str]:
    """Return the numbers in one width, with the decimal points below each other."""
    parts = [_around_the_point(text) for text in texts]
    left, right = (max(len(part[side]) for part in parts) for side in (0, 1))
    return [before.rjust(left) + after.ljust(right) for before, after in parts]


def _around_the_point(text: str) -> tuple[str, str]:
    for sign in ".e":
        before, found, after = text.partition(sign)
        if found:
            return before, found + after
    return text, ""


# Text ---------------------------------------------------------------------------------------------


def fold(text: str, width: int, *, hang: int = 0, first: int = 0) -> list[str]:
    """Return the text in rows of at most `width` cells, broken at spaces where there are any.

    The rows after the first begin with `hang` spaces; in the first one `first` cells are taken.
    """
    rows: list[str] = []
    rest, room = text, width - first
    while cell_len(rest) > room:
        cut = _cells_in(rest, room)
        space = rest.rfind(" ", 0, cut + 1)
        at = space if space > 0 and rest[:space].strip() else max(1, cut)
        rows.append(rest[:at].rstrip())
        rest, room = " " * hang + rest[at:].lstrip(), width
    return [*rows, rest]


def fold_code(line: str, width: int) -> list[str]:
    """Return a line of code in rows: a comment at its end on one of its own, the rest folded."""
    if cell_len(line) <= width:
        return [line]
    indent = len(line) - len(line.lstrip())
    code, sign, comment = line.partition("  # ")
    if sign and code.strip():
        below = fold_code(" " * (indent + 2) + f"# {comment}", width)
        return [*fold_code(code.rstrip(), width), *below]
    if line.lstrip().startswith("# "):  # a comment goes on as a comment
        rows = fold(line.lstrip()[2:], width - indent - 2)
        return [" " * indent + "# " + row for row in rows]
    comma = line.rfind(", ", width // 2, width - 1)
    if comma > 0:
        return [line[: comma + 1], *fold_code(" " * (indent + 4) + line[comma + 2 :], width)]
    return fold(line, width, hang=indent + 4)


def _cells_in(text: str, room: int) -> int:
    """Return how many characters of the text fit into `room` cells."""
    used = 0
    for at, sign in enumerate(text):
        used += cell_len(sign)
        if used > room:
            return at
    return len(text)


def _counted(count: int, what: str = "line") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
