"""`manualbp selftest`: the doctor's own examination, on bugs that are known and on right passes.

Both go through what `manualbp check` does. A mutant is killed if the check fails, and named by the
diagnoses that the check then prints.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from manualbp.checks.doctor.examination import diagnoses_of, examine, fails
from manualbp.checks.doctor.mutants import (
    Mutant,
    labels,
    labels_of_mutants,
    mutants,
    specimen,
)
from manualbp.checks.doctor.selftest_config import SelftestConfig
from manualbp.checks.doctor.subject import Diagnosis
from manualbp.errors import UsageError

NAMED_AT_LEAST = 0.95
"""The part of the mutants that must be named rightly; all must be killed, no right pass accused."""

WORTH_A_WORKER = 64
"""A process needs seconds to start, so for fewer tasks than these it is not worth starting."""


@dataclass(frozen=True)
class Miss:
    """A mutant or a right pass of which the doctor did not say what it should."""

    name: str
    seed: int
    expected: tuple[str, ...]  # empty for a right pass
    said: list[str]


@dataclass
class Tally:
    """What came out."""

    mutants: int = 0
    killed: int = 0
    named: int = 0
    right_passes: int = 0
    accused: int = 0
    gradients: int = 0  # of right passes, in each dtype
    inconclusive: int = 0  # of these gradients; the check cannot judge them
    survivors: list[Miss] = field(default_factory=list[Miss])
    misnamed: list[Miss] = field(default_factory=list[Miss])
    false_alarms: list[Miss] = field(default_factory=list[Miss])

    @property
    def passed(self) -> bool:
        """Return whether the goals are met."""
        enough = self.named >= NAMED_AT_LEAST * self.mutants
        return self.killed == self.mutants and enough and not self.accused

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))

    def as_json(self) -> dict[str, Any]:
        """Return the counts, the goal and each miss."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Task:
    """A right subject on one seed, or all its mutants."""

    kind: Literal["mutants", "right pass"]
    label: str
    seed: int


def selftest(config: SelftestConfig) -> Tally:
    """Run the catalogue and the right passes. Raises UsageError where nothing is left to run."""
    for name in ("seeds", "mutant_seeds", "workers"):
        number = getattr(config, name)
        if number is not None and number < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is {number}: it must be at least 1")
    tasks = _tasks(config)
    tally = Tally()
    with _results(tasks, config) as results, _bar() as bar:
        for done in bar.track(results, total=len(tasks), description="selftest"):
            tally.add(done)
    if not tally.mutants + tally.right_passes:
        raise UsageError(f"--only {config.only}: no mutant and no right pass has that in its name")
    return tally


def _tasks(config: SelftestConfig) -> list[Task]:
    """Return what there is to do, what takes longest first."""
    # A mutant's name is its bug and the label, so that any label may have the text in it.
    of_mutants = [
        Task("mutants", label, seed)
        for seed in range(config.mutant_seeds)
        for label in labels_of_mutants()
    ]
    of_right_passes = [
        Task("right pass", label, seed)
        for seed in range(config.seeds)
        for label in labels()
        if config.only in label
    ]
    return of_mutants + of_right_passes


@contextmanager
def _results(tasks: list[Task], config: SelftestConfig) -> Generator[Iterator[Tally]]:
    """Give the tallies of the tasks, in their order whichever process makes them."""
    work = partial(run_task, only=config.only)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = config.workers or min(cores or 1, len(tasks) // WORTH_A_WORKER)
    if workers <= 1:
        yield map(work, tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        yield pool.map(work, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def _bar() -> Progress:
    """Return a progress bar on stderr; there is none where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def run_task(task: Task, only: str = "") -> Tally:
    """Examine a right pass, or the mutants of a subject with a text in their names."""
    if task.kind == "right pass":
        return examine_right_pass(task.label, task.seed)
    tally = Tally()
    for mutant in mutants(specimen(task.label, task.seed)):
        if only in mutant.name:
            tally.add(examine_mutant(mutant, task.seed))
    return tally


def examine_mutant(mutant: Mutant, seed: int) -> Tally:
    """Return whether a mutant is killed and named rightly."""
    trial = mutant.trial
    if not fails(trial):
        miss = Miss(mutant.name, seed, mutant.bug.causes, [])
        return Tally(mutants=1, survivors=[miss])
    found = diagnoses_of(trial)
    if rightly_named(mutant, found):
        return Tally(mutants=1, killed=1, named=1)
    miss = Miss(mutant.name, seed, mutant.bug.causes, _said(found))
    return Tally(mutants=1, killed=1, misnamed=[miss])


def rightly_named(mutant: Mutant, found: list[Diagnosis]) -> bool:
    """Return whether the bug is named, first of all about its argument, and nobody else blamed."""
    if mutant.bug.behaves:
        # It may show in what other arguments are given: who writes to dy spoils all gradients.
        return any(d.cause in mutant.bug.causes for d in found)
    mine = [d for d in found if d.argument == mutant.argument]
    return bool(mine) and mine[0].cause in mutant.bug.causes and len(mine) == len(found)


def examine_right_pass(label: str, seed: int) -> Tally:
    """Return whether a right pass is accused."""
    trial = specimen(label, seed).trial
    report = examine(trial.subject, trial.arguments, trial.truth, seed=seed)
    tally = Tally(right_passes=1, gradients=len(report.rows))
    tally.inconclusive = sum(row.verdict == "INCONCLUSIVE" for row in report.rows)
    if report.verdict == "FAIL":
        tally.accused = 1
        said = [*report.failures, *_said(list(report.diagnoses))]
        tally.false_alarms = [Miss(label, seed, (), said)]
    return tally


def _said(found: list[Diagnosis]) -> list[str]:
    return [f"{d.cause}: {d.words} ({d.evidence})" for d in found]


def print_tally(console: Console, tally: Tally) -> None:
    """Print the three counts, then what was missed."""
    console.print(f"killed          {tally.killed} of {tally.mutants} mutants")
    console.print(f"named rightly   {tally.named} of {tally.mutants}")
    console.print(f"false alarms    {tally.accused} on {tally.right_passes} right passes")
    for title, misses in (
        ("not killed", tally.survivors),
        ("named wrongly", tally.misnamed),
        ("accused, but right", tally.false_alarms),
    ):
        counts = Counter(miss.name.partition(":")[0] for miss in misses)
        for miss in misses:
            if counts.pop(miss.name.partition(":")[0], None) is None:
                continue  # one line for each bug is enough; --json has them all
            said = miss.said[0] if miss.said else "nothing"
            expected = f"; expected {' or '.join(miss.expected)}" if miss.expected else ""
            line = f"{title}: {miss.name}, seed {miss.seed}: {said}{expected}"
            console.print(escape(line), soft_wrap=True)
    console.print("passed" if tally.passed else "the goals are missed")
