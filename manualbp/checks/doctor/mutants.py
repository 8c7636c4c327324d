"""Mutants: right backward passes with one bug each, and the cause that is the bug's right name.

A mutant is made of a bug, a subject and the argument whose gradient the bug changes. Bugs that
need no formula are put into every subject; the others name the operations that they are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manualbp.checks.agreement import Inputs
from manualbp.checks.contract import Trial, loss_case
from manualbp.checks.doctor.bugs import BUGS, Bug, Scene
from manualbp.checks.doctor.laboratory import Truth
from manualbp.checks.doctor.operations import OPERATIONS
from manualbp.checks.doctor.subject import (
    Arguments,
    Gradients,
    LayerSubject,
    Pass,
    Subject,
)
from manualbp.checks.registry import layer_cases, loss_cases
from manualbp.parameters import Parameters
from reference.cases import Case


@dataclass(frozen=True)
class Specimen:
    """A right subject with arguments, an upstream gradient, and the truth about it."""

    label: str
    subject: Subject
    arguments: Arguments
    dys: Sequence[Tensor]
    truth: Truth


def specimens_of_operations(seed: int, dtype: torch.dtype = torch.float64) -> list[Specimen]:
    """Return every operation with numbers drawn from a seed."""
    found: list[Specimen] = []
    for name, operation in OPERATIONS.items():
        arguments = {
            n: t.to(dtype) if t.is_floating_point() else t
            for n, t in operation.arguments(seed).items()
        }
        generator = torch.Generator().manual_seed(seed + 1)
        y = operation.run(arguments).outputs[0]
        dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)
        found.append(Specimen(name, operation, arguments, [dy], operation.truth))
    return found


def specimens_of_layers(seed: int, dtype: torch.dtype = torch.float64) -> list[Specimen]:
    """Return every case of every layer and loss."""
    found: list[Specimen] = []
    for case in [*layer_cases(), *map(loss_case, loss_cases())]:
        trial = Trial.of(case, dtype, "cpu", seed)
        subject = LayerSubject(trial.case.layer, case.training, seed)
        arguments = {"x": trial.inputs.x, **trial.inputs.parameters.named()}
        label = f"{trial.owner}, {case.name}"
        found.append(
            Specimen(label, subject, arguments, [trial.inputs.dy], truth_of(trial.case, seed))
        )
    return found


def truth_of(case: Case, seed: int) -> Truth:
    """Return the gradients of a case's twin through autograd, in float64."""

    def truth(arguments: Arguments, dys: Sequence[Tensor]) -> dict[str, Tensor]:
        parameters = Parameters.zeros(case.layer.shapes(), dtype=torch.float64)
        for name, tensor in parameters.named().items():
            tensor.copy_(arguments[name])
        inputs = Inputs(parameters, arguments["x"].double(), dys[0].double(), seed)
        results = Trial(case, inputs).through_autograd(torch.float64)
        return {name.removeprefix("d"): t for name, t in results.items() if name != "y"}

    return truth


@dataclass(frozen=True)
class Mutant:
    """A subject with a bug in the gradient of one argument."""

    specimen: Specimen
    bug: Bug
    argument: str
    memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What the subject keeps from one run to the next, if its bug is to keep something."""

    @property
    def name(self) -> str:
        """Return the bug, the subject and the argument."""
        return f"{self.bug.name}: {self.specimen.label}, {self.argument}"

    def run(self, arguments: Arguments) -> MutantPass:
        """Make the right forward pass."""
        done = self.specimen.subject.run(arguments)
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
        subject = self.mutant.specimen.subject
        memory, name = self.mutant.memory, self.mutant.argument
        scene = Scene(subject, self.arguments, self.outputs[0], dys[0], right, memory, self.kept)
        return {**right, name: self.mutant.bug.mutate(scene, name)}


def mutants(seed: int) -> Iterator[Mutant]:
    """Yield the catalogue: each bug in each subject that can have it."""
    for specimen in [*specimens_of_operations(seed), *_one_case_a_layer(seed)]:
        right = specimen.truth(specimen.arguments, specimen.dys)
        done = specimen.subject.run(specimen.arguments)
        for name, gradient in right.items():
            if gradient.abs().max() <= 1e-9:
                continue  # nothing can be wrong by a factor where all is zero
            scene = Scene(
                specimen.subject,
                specimen.arguments,
                done.outputs[0],
                specimen.dys[0],
                done.backward(specimen.dys),
                {},
                {},
            )
            for bug in BUGS:
                if bug.only and (specimen.label, name) not in bug.only:
                    continue
                if bug.behaves or bug.only or _shows(bug, scene, name):
                    yield Mutant(specimen, bug, name)


def _one_case_a_layer(seed: int) -> list[Specimen]:
    """Return the first case of each layer and loss that has at least six numbers to compare."""
    found: dict[str, Specimen] = {}
    for specimen in specimens_of_layers(seed):
        owner = specimen.label.partition(",")[0]
        if specimen.arguments["x"].numel() >= 6:
            found.setdefault(owner, specimen)
    return list(found.values())


def _shows(bug: Bug, scene: Scene, name: str) -> bool:
    """Return whether the bug changes this gradient: the transpose of a symmetric one does not."""
    right = scene.gradient(name)
    wrong = bug.mutate(scene, name)
    if wrong is None or wrong.shape != right.shape or wrong.dtype != right.dtype:
        return True
    if bug.causes != ("zero",) and wrong.abs().max().item() < 1e-12:
        return False  # softmax for dy = 1: zero is then the name of it
    return not bool((wrong - right).abs().max() <= 3e-9 * right.abs().max())
