"""Mutants: right backward passes with one bug each, and the cause that is the bug's right name.

A mutant is made of a bug, a subject and the argument whose gradient the bug changes. Bugs that
need no formula are put into every subject; the others name the operations that they are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from torch import Tensor

from manualbp.checks.doctor.bugs import BUGS, Bug, Scene
from manualbp.checks.doctor.contracts import Trial
from manualbp.checks.doctor.operations import OPERATIONS
from manualbp.checks.doctor.subject import Arguments, Gradients, Pass
from manualbp.checks.doctor.targets import of_case
from manualbp.checks.doctor.truth import Reference
from manualbp.checks.registry import case_owner, find_cases
from reference.cases import Case, LossCase


@dataclass(frozen=True)
class Specimen:
    """A right subject on arguments in float64, with the truth about it."""

    label: str
    trial: Trial


@cache
def cases() -> dict[str, Case | LossCase]:
    """Return every case of every layer and loss by its label."""
    found: dict[str, Case | LossCase] = {}
    for case in find_cases("all"):
        label = f"{case_owner(case)}, {case.name}"
        if label in found:  # the same class with other options
            label = f"{case.layer if isinstance(case, Case) else case.loss}, {case.name}"
        found[label] = case
    return found


def labels() -> list[str]:
    """Return the labels of all right subjects: the operations, then the layers and losses."""
    return [*OPERATIONS, *cases()]


def labels_of_mutants() -> list[str]:
    """Return the labels of what mutants are made of.

    Of each layer and loss the first case that has at least six numbers to compare.
    """
    first: dict[str, str] = {}
    for label, case in cases().items():
        if specimen(label, 0).trial.arguments["x"].numel() >= 6:
            first.setdefault(case_owner(case), label)
    return [*OPERATIONS, *first.values()]


def specimen(label: str, seed: int) -> Specimen:
    """Return a right subject with numbers drawn from a seed."""
    if label in OPERATIONS:
        operation = OPERATIONS[label]
        arguments = operation.arguments(seed)
        truth = Reference(lambda given: [operation.function(given)], "autograd")
        return Specimen(label, Trial.of(operation, arguments, truth, seed + 1))
    target = of_case(cases()[label], seed)
    assert target.truth is not None  # every layer and loss has a twin
    return Specimen(label, Trial.of(target.subject, target.arguments, target.truth, seed))


@dataclass(frozen=True)
class Mutant:
    """A subject with a bug in the gradient of one argument."""

    specimen: Specimen
    bug: Bug
    argument: str
    memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What the subject keeps from one run to the next, if its bug is to keep something."""

    @property
    def trial(self) -> Trial:
        """Return the mutant on the arguments of its specimen."""
        return replace(self.specimen.trial, subject=self)

    @property
    def name(self) -> str:
        """Return the bug, the subject and the argument."""
        return f"{self.bug.name}: {self.specimen.label}, {self.argument}"

    def run(self, arguments: Arguments) -> MutantPass:
        """Make the right forward pass."""
        done = self.specimen.trial.subject.run(arguments)
        self.memory.update({f"latest {name}": t.clone() for name, t in arguments.items()})
        return MutantPass(self, arguments, done)


@dataclass(frozen=True)
class MutantPass:
    """A right forward pass whose backward pass has a bug."""

    mutant: Mutant
    arguments: Arguments
    done: Pass
    kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def outputs(self) -> Sequence[Tensor]:
        """Return the right outputs."""
        return self.done.outputs

    def backward(self, dys: Sequence[Tensor]) -> Gradients:
        """Return the gradients, one of them wrong."""
        right = self.done.backward(dys)
        subject = self.mutant.specimen.trial.subject
        memory, name = self.mutant.memory, self.mutant.argument
        scene = Scene(subject, self.arguments, self.outputs[0], dys[0], right, memory, self.kept)
        return {**right, name: self.mutant.bug.mutate(scene, name)}


def mutants(specimen: Specimen) -> Iterator[Mutant]:
    """Yield the catalogue: each bug that the subject can have, in each of its gradients."""
    trial = specimen.trial
    y = trial.subject.run(trial.arguments).outputs[0]
    right = trial.gradients()
    scene = Scene(trial.subject, trial.arguments, y, trial.dys[0], right, {}, {})
    for name, gradient in right.items():
        if gradient is None or gradient.abs().max() <= 1e-9:
            continue  # nothing can be wrong by a factor where all is zero
        for bug in BUGS:
            if bug.only and (specimen.label, name) not in bug.only:
                continue
            if bug.behaves or bug.only or _shows(bug, scene, name):
                yield Mutant(specimen, bug, name)


def _shows(bug: Bug, scene: Scene, name: str) -> bool:
    """Return whether the bug changes this gradient: the transpose of a symmetric one does not."""
    right = scene.gradient(name)
    wrong = bug.mutate(scene, name)
    if wrong is None or wrong.shape != right.shape or wrong.dtype != right.dtype:
        return True
    if bug.causes != ("zero",) and wrong.abs().max().item() < 1e-12:
        return False  # softmax for dy = 1: zero is then the name of it
    return not bool((wrong - right).abs().max() <= 3e-9 * right.abs().max())
