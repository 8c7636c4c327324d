"""All topics by name, found by importing the modules of `manualbp/explain/topics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from manualbp.explain.page import Page

Write = Callable[[Page], None]


@dataclass(frozen=True)
class Topic:
    """A derivation with a name for the command line."""

    name: str
    title: str
    rows: tuple[str, ...]  # of the table of systems, "R26"
    write: Write

    def page(self, seed: int = 0) -> Page:
        """Return the page, written and checked."""
        page = Page(seed)
        self.write(page)
        return page


_TOPICS: dict[str, Topic] = {}


def topic(name: str, title: str, *rows: str) -> Callable[[Write], Write]:
    """Register the function below as the topic `name`; `rows` are the lecture systems it shows."""

    def register(write: Write) -> Write:
        if name in _TOPICS:
            raise ValueError(f"there are two topics called {name!r}")
        _TOPICS[name] = Topic(name, title, rows, write)
        return write

    return register


@cache
def topics() -> Mapping[str, Topic]:
    """Return all topics in alphabetical order."""
    package = import_module("manualbp.explain.topics")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_TOPICS.items()))
