"""`manualbp explain`: derivations with their numbers, each line checked while it is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import groupby
from pathlib import Path
from shlex import quote
from textwrap import wrap
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from manualbp.errors import UsageError, did_you_mean
from manualbp.explain.config import ErrataConfig, ExplainConfig
from manualbp.explain.net_page import network_page
from manualbp.explain.page import Drawing, Page
from manualbp.explain.registry import Topic, topics
from manualbp.explain.render import (
    RIGHT,
    WIDTH,
    WRONG,
    as_data,
    item_as_data,
    item_lines,
    page_lines,
    remarks,
    title_lines,
    verdict,
)

NARROWEST = 40
FOR_NAMES = 25
PIXELS_PER_INCH = 150

GROUPS: Mapping[str, tuple[str, ...]] = {
    "To begin with": ("worked-example", "exercise-2-1-1", "errata"),
    "One unit": (
        "lms",
        "perceptron-and",
        "xor",
        "logistic-regression",
        "least-squares-vs-logistic",
    ),
    "Networks": (
        "linear-nets",
        "chain-rule",
        "backprop-step-by-step",
        "activations",
        "costs",
        "features",
        "posteriors",
        "deep-networks",
        "moments",
    ),
    "Learning": (
        "online-and-batch",
        "learning-rates",
        "optimizers",
        "early-stopping",
        "cross-validation",
        "restarts",
    ),
}
"""The order of the list. Topics that are not named here come after these; then layers, losses."""


@dataclass(frozen=True)
class Explained:
    """A page that is written, with what stands above it."""

    name: str  # what follows `manualbp explain`
    title: str
    rows: tuple[str, ...]
    page: Page

    def as_data(self, *, wrong_only: bool) -> dict[str, Any]:
        """Return all of it as JSON knows it."""
        data: dict[str, Any] = {"topic": self.name, "title": self.title, "rows": list(self.rows)}
        data |= as_data(self.page)
        if wrong_only:
            data["items"] = [item_as_data(item) for item in self.page.wrong]
        return data


def explain(config: ExplainConfig | ErrataConfig) -> int:
    """Print what is asked for; return 0, or 1 if a checked line is wrong. Raises UsageError."""
    if isinstance(config, ErrataConfig):
        config = ExplainConfig(("errata",), json=config.json, debug=config.debug)
    _validate(config)
    out: object = sys.stdout
    if isinstance(out, TextIOWrapper):
        cast(TextIOWrapper, out).reconfigure(errors="replace")  # "?" for what it cannot encode
    console = Console(highlight=False)
    console.width = max(NARROWEST, min(WIDTH, console.width))
    if config.list or not (config.topics or config.all or config.net):
        _print_list(console, as_json=config.json)
        return 0
    show = _keep if config.json else _print_check if config.check else _print_page
    pages: list[Explained] = []
    pictures = Pictures(config.save)
    for explained in _written(config):
        show(console, explained)
        pictures.save(explained)
        pages.append(explained)
    pictures.close()
    wrong = sum(len(explained.page.wrong) for explained in pages)
    if config.json:
        data = [explained.as_data(wrong_only=config.check) for explained in pages]
        print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    elif config.check:
        _print_total(console, pages, wrong)
    _say_where(Console(stderr=True) if config.json else console, pictures, pages, config)
    return 1 if wrong else 0


def _validate(config: ExplainConfig) -> None:
    """Raise UsageError for options that contradict each other, and for a topic there is not."""
    named = [f"--{name}" for name in ("list", "all", "net") if getattr(config, name)]
    named += list(config.topics[:1])
    if len(named) > 1:
        raise UsageError(f"{named[0]} and {named[1]} exclude each other")
    if config.check and (config.list or not named):
        raise UsageError("--check needs to know what to check: name a topic, or --all")
    if config.save is not None and (config.list or not named):
        raise UsageError("--save needs to know whose pictures to save: name a topic, or --all")
    for name in ("activation", "loss", "values"):
        if config.net is None and getattr(config, name) != getattr(ExplainConfig(), name):
            raise UsageError(f"--{name} is for a network of your own: add --net, such as 3-4-2")
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed is {config.seed}: it must be from 0 to {2**32 - 1}")
    for name in config.topics:
        if name not in topics():
            hint = did_you_mean(name, list(topics()))
            raise UsageError(f"there is no topic {name!r}; {hint} (all: manualbp explain --list)")


def _written(config: ExplainConfig) -> Iterator[Explained]:
    """Yield the pages one after the other, each when it is written."""
    if config.net is not None:
        page = network_page(config.net, config.activation, config.loss, config.values, config.seed)
        title = f"The network {config.net} with {config.activation} and {config.loss}"
        yield Explained(f"--net {config.net}", title, (), page)
    for name in topics() if config.all else config.topics:
        entry = topics()[name]
        yield Explained(name, entry.title, entry.rows, entry.page(config.seed))


# On the terminal ----------------------------------------------------------------------------------


def _rule(console: Console) -> str:
    """Return what lines are drawn with; letters only where a program may read along."""
    return "─" if console.is_terminal else "-"


def _print_lines(console: Console, lines: Iterable[Text]) -> None:
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True)  # they are folded already


def _print_list(console: Console, *, as_json: bool) -> None:
    found = sorted(topics().values(), key=_place)
    if as_json:
        data = [
            {"topic": e.name, "title": e.title, "rows": list(e.rows), "group": _group(e)}
            for e in found
        ]
        print(json.dumps(data, indent=2, ensure_ascii=False))
        return
    for group, entries in groupby(found, _group):
        _print_lines(console, [Text(group, "bold cyan")])
        for entry in entries:
            first, *rest = wrap(entry.title, console.width - FOR_NAMES - 4)
            name = Text.assemble("  ", (f"{entry.name:<{FOR_NAMES}}", "bold"), "  ")
            if len(entry.name) > FOR_NAMES:
                rest = [first, *rest]
            else:
                name.append(first)
            _print_lines(console, [name, *(Text(" " * (FOR_NAMES + 4) + line) for line in rest)])
        console.print()
    _print_lines(console, [Text("Read one with: manualbp explain TOPIC")])


def _group(entry: Topic) -> str:
    """Return the heading under which the list has a topic."""
    module = entry.write.__module__.rpartition(".")[2]
    if module in ("layers", "losses"):
        return module.capitalize()
    return next((group for group, names in GROUPS.items() if entry.name in names), "More")


def _place(entry: Topic) -> tuple[int, int, str]:
    """Return where a topic stands in the list."""
    group = _group(entry)
    names = GROUPS.get(group, ())
    within = names.index(entry.name) if names else 0
    return [*GROUPS, "More", "Layers", "Losses"].index(group), within, entry.name


def _keep(console: Console, explained: Explained) -> None:
    """Print nothing: as data the pages come together, at the end."""


def _print_page(console: Console, explained: Explained) -> None:
    width, rule = console.width, _rule(console)
    page = explained.page
    title = title_lines(explained.name, explained.title, explained.rows, width, rule)
    _print_lines(console, [*title, *page_lines(page, width=width, rule=rule), Text()])
    _print_lines(console, [verdict(page), *remarks(page), Text()])


def _print_check(console: Console, explained: Explained) -> None:
    """Print a line for the page, and below it what is wrong."""
    page = explained.page
    result = Text(f"{len(page.wrong)} WRONG", WRONG) if page.wrong else Text("all hold", RIGHT)
    count = f"{explained.name:<34}{page.checked:>5} checked   "
    wrong = [row for item in page.wrong for row in item_lines(item, console.width, _rule(console))]
    _print_lines(console, [Text(count) + result, *wrong])


def _print_total(console: Console, pages: list[Explained], wrong: int) -> None:
    checked = sum(explained.page.checked for explained in pages)
    what = f"{checked} lines on {len(pages)} page{'' if len(pages) == 1 else 's'}"
    if wrong:
        _print_lines(console, [Text(f"✗ {wrong} of {what} are wrong.", WRONG)])
    else:
        _print_lines(console, [Text(f"✓ {what} checked, all hold.", RIGHT)])


# Pictures -----------------------------------------------------------------------------------------


@dataclass
class Pictures:
    """Where pictures go: PNG files, and event files for TensorBoard; nowhere without a directory.

    The directory is made when there is something to put in.
    """

    directory: Path | None
    saved: list[Path] = field(default_factory=list["Path"])
    _writer: Any = None  # a SummaryWriter

    def save(self, explained: Explained) -> None:
        """Draw the pictures of a page. Raises UsageError where they cannot be written."""
        if self.directory is None:
            return
        folder = self.directory / explained.name.removeprefix("--").replace(" ", "-")
        for item in explained.page.items:
            if isinstance(item, Drawing):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UsageError(f"--save {self.directory}: {error.strerror}") from None
                self._draw(item, folder / f"{item.name}.png")

    def _draw(self, item: Drawing, path: Path) -> None:
        figure = item.draw()
        cast(Any, figure).savefig(path, dpi=PIXELS_PER_INCH)
        if self._writer is None:
            from manualbp.training.logs import SummaryWriter  # with TensorBoard, slow to load

            self._writer = SummaryWriter(str(self.directory))
        self._writer.add_figure(f"{path.parent.name}/{path.stem}", figure)
        self.saved.append(path)

    def close(self) -> None:
        """Complete the event files."""
        if self._writer is not None:
            self._writer.close()


def _say_where(
    console: Console, pictures: Pictures, pages: list[Explained], config: ExplainConfig
) -> None:
    """Say where the pictures lie, or how to have them."""
    count = sum(isinstance(item, Drawing) for explained in pages for item in explained.page.items)
    if pictures.saved:
        for path in pictures.saved:
            console.print(f"Picture: {path}", soft_wrap=True)
        command = f"tensorboard --logdir {quote(str(config.save))}"
        console.print(Text.assemble("Look at them with: ", (command, "bold")), soft_wrap=True)
    elif config.save is not None:
        console.print("No picture saved: there is none here.")
    elif count and not (config.json or config.check):
        words = "a picture" if count == 1 else f"{count} pictures"
        console.print(f"There {'is' if count == 1 else 'are'} {words}: add --save DIR to draw.")
