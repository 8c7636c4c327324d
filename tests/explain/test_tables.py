"""The tables of manualbp/explain/README.md are complete, and what they name is there."""

import re
import shlex
from pathlib import Path

import pytest

from manualbp.explain.registry import topics
from manualbp.lectures import documents
from manualbp.training.config import TrainConfig

FILE = Path(__file__).parents[2] / "manualbp/explain/README.md"
TEXT = FILE.read_text(encoding="utf-8")
PAGES, _, SYSTEMS = TEXT.partition("## The 40 systems")

Link = tuple[str, str]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def links(cell: str) -> list[Link]:
    return re.findall(r"\[([^]]+)\]\(([^)]+)\)", cell)


ROWS = {
    row[0]: row for row in map(cells, SYSTEMS.splitlines()) if re.match(r"R\d\d$", "".join(row[:1]))
}
"""Row, system, lives in, see it run, tested by."""


def test_the_rows_are_r01_to_r40() -> None:
    assert list(ROWS) == [f"R{number:02}" for number in range(1, 41)]
    assert len({row[1] for row in ROWS.values()}) == 40
    assert all(all(row) and len(row) == 5 for row in ROWS.values())


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_system_lives_where_the_table_says(row: list[str]) -> None:
    for name, target in links(row[2]):
        path = FILE.parent / target
        if name != path.name:
            source = path.read_text(encoding="utf-8")
            assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), (name, target)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_topics_of_a_system_are_those_that_say_so(row: list[str]) -> None:
    named = re.findall(r"`([^`]+)`", row[3])
    assert sorted(named) == [name for name, topic in topics().items() if row[0] in topic.rows]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_system_has_a_test_that_reads_its_figures(row: list[str]) -> None:
    tests = links(row[4])
    assert tests
    for name, target in tests:
        path = FILE.parent / target
        assert path.name == f"{name}.py"
        assert path.parent.resolve() == Path(__file__).parents[1] / "lectures"
        assert "def test_" in path.read_text(encoding="utf-8")


def test_every_test_of_the_lectures_is_named() -> None:
    named = {name for row in ROWS.values() for name, _ in links(row[4])}
    there = {path.stem for path in FILE.parents[2].glob("tests/lectures/test_*.py")}
    assert there - named == {"test_errata", "test_figures", "test_net_topics"}  # of all rows


def test_every_link_leads_somewhere() -> None:
    for _, target in links(TEXT):
        assert (FILE.parent / target).exists(), target


def test_every_document_has_its_pages() -> None:
    assert re.findall(r"^\*\*(\w+)\*\*", PAGES, re.MULTILINE) == list(documents())


def test_a_page_leads_to_topics_that_there_are() -> None:
    commands = [
        row[-1] for row in map(cells, PAGES.splitlines()) if "`manualbp" in "".join(row[-1:])
    ]
    assert len(commands) > 40
    shown: set[str] = set()
    for command in commands:
        words = re.findall(r"`(?:manualbp explain )?([^`]+)`", command)
        for name, *options in map(shlex.split, words):
            assert name in topics(), command
            assert options in ([], ["--save", "DIR"]), command
            shown.add(name)
    assert {row for name in shown for row in topics()[name].rows} == ROWS.keys()


def test_the_options_of_an_experiment_exist() -> None:
    options = set(re.findall(r"--([a-z-]+)", SYSTEMS.partition("\n## ")[0]))
    assert options >= {"cross-validate", "restarts", "find-lr"}
    assert {name.replace("-", "_") for name in options} <= TrainConfig.__dataclass_fields__.keys()
