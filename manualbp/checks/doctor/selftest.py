"""`manualbp selftest`: the doctor's own examination, on bugs that are known and on right passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from manualbp.checks.doctor.diagnosis import diagnose
from manualbp.checks.doctor.mutants import (
    Mutant,
    Specimen,
    mutants,
    specimens_of_layers,
    specimens_of_operations,
)
from manualbp.checks.doctor.selftest_config import SelftestConfig
from manualbp.checks.doctor.subject import Diagnosis
from manualbp.checks.tolerances import TOLERANCES
from manualbp.errors import UsageError

NAMED_AT_LEAST = 0.95
"""The part of the mutants that must be named rightly; all must be killed, no right pass accused."""


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
    survivors: list[Miss] = field(default_factory=list[Miss])
    misnamed: list[Miss] = field(default_factory=list[Miss])
    false_alarms: list[Miss] = field(default_factory=list[Miss])

    @property
    def passed(self) -> bool:
        """Return whether the goals are met."""
        enough = self.named >= NAMED_AT_LEAST * self.mutants
        return self.killed == self.mutants and enough and not self.accused

    def as_json(self) -> dict[str, Any]:
        """Return the counts, the goal and each miss."""
        return asdict(self) | {"passed": self.passed}


def selftest(config: SelftestConfig) -> Tally:
    """Run the catalogue and the right passes. Raises UsageError where nothing is left to run."""
    if config.seeds < 1:
        raise UsageError(f"--seeds is {config.seeds}: it must be at least 1")
    tally = Tally()
    for seed in range(config.seeds):
        examine_mutants((m for m in mutants(seed) if config.only in m.name), seed, tally)
        for dtype in TOLERANCES:
            right = [*specimens_of_operations(seed, dtype), *specimens_of_layers(seed, dtype)]
            examine_right_passes((s for s in right if config.only in s.label), seed, dtype, tally)
    if not tally.mutants + tally.right_passes:
        raise UsageError(f"--only {config.only}: no mutant and no right pass has that in its name")
    return tally


def examine_mutants(catalogue: Iterable[Mutant], seed: int, tally: Tally) -> None:
    """Count how many mutants are killed and how many are named rightly."""
    for mutant in catalogue:
        specimen = mutant.specimen
        found = diagnose(mutant, specimen.arguments, specimen.dys, specimen.truth)
        miss = Miss(mutant.name, seed, mutant.bug.causes, _said(found))
        tally.mutants += 1
        if not found:
            tally.survivors.append(miss)
            continue
        tally.killed += 1
        if rightly_named(mutant, found):
            tally.named += 1
        else:
            tally.misnamed.append(miss)


def rightly_named(mutant: Mutant, found: list[Diagnosis]) -> bool:
    """Return whether the bug is named, first of all about its argument, and nobody else blamed."""
    if mutant.bug.behaves:
        # It may show in what other arguments are given: who writes to dy spoils all gradients.
        return any(d.cause in mutant.bug.causes for d in found)
    mine = [d for d in found if d.argument == mutant.argument]
    return bool(mine) and mine[0].cause in mutant.bug.causes and len(mine) == len(found)


def examine_right_passes(
    specimens: Iterable[Specimen], seed: int, dtype: torch.dtype, tally: Tally
) -> None:
    """Count how many right passes are accused."""
    for specimen in specimens:
        found = diagnose(specimen.subject, specimen.arguments, specimen.dys, specimen.truth)
        tally.right_passes += 1
        if found:
            name = f"{specimen.label}, {str(dtype).removeprefix('torch.')}"
            tally.accused += 1
            tally.false_alarms.append(Miss(name, seed, (), _said(found)))


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
            console.print(escape(line), soft_wrap=True, highlight=False)
    console.print("passed" if tally.passed else "the goals are missed")
