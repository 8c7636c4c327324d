"""Every figure of the lectures is read by a test: a test names its figures, and must read them.

@pytest.mark.figures("C.net_h1", "S222.traj.fixed.orig.*")
def test_forward(lecture: Lecture) -> None:
    lecture.expect("C.net_h1", net_h1)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pytest

from manualbp.explain.page import as_numbers, close
from manualbp.lectures import Figure, figure, figures, rounds_to

CLAIMED = pytest.StashKey[set[str]]()


@dataclass
class Lecture:
    """The figures that a test names with its marker, and no others."""

    names: list[str]
    read: set[str] = field(default_factory=set[str])

    def __getitem__(self, name: str) -> Figure:
        assert name in self.names, f"the test does not name the figure {name}"
        self.read.add(name)
        return figure(name)

    def expect(self, name: str, value: Any, rel: float = 1e-12) -> None:
        """Assert that `value` is the figure: within `rel` · max|figure|, and as printed."""
        entry = self[name]
        ours = as_numbers(value)
        assert close(ours, as_numbers(entry.value), rel), f"{name}: {ours}, expected {entry.value}"
        if entry.kind == "printed" and rounds_to(entry.value, entry.printed or ""):
            assert isinstance(ours, float)
            assert rounds_to(ours, entry.printed or ""), f"{name}: {ours}, printed {entry.printed}"


@pytest.fixture
def lecture(request: pytest.FixtureRequest) -> Iterator[Lecture]:
    """Give a test its figures, and see afterwards that it has read them all."""
    names = claimed(request.node)
    page = Lecture(names)
    yield page
    assert page.read == set(names), f"named and not read: {sorted(set(names) - page.read)}"


def claimed(item: Any) -> list[str]:
    """Return the figures that a test names; fail for a pattern that stands for none."""
    patterns = [p for marker in item.iter_markers("figures") for p in marker.args]
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in figures()), f"no figure {pattern}"
    return [name for name in figures() if any(fnmatchcase(name, p) for p in patterns)]


@pytest.hookimpl(tryfirst=True)  # before -k and -m take tests away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note all figures that any test names."""
    names = config.stash.setdefault(CLAIMED, set())
    for item in items:
        names.update(claimed(item))


@pytest.fixture
def claimed_by_any(request: pytest.FixtureRequest) -> set[str]:
    """Return the figures that the tests of this run name."""
    return request.config.stash[CLAIMED]
