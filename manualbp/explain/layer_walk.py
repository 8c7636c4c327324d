"""The walk through any layer or loss: equations, small numbers of one's own, both passes, the code.

The numbers are drawn from a seed, in float64 with two decimals, away from kinks. Every gradient is
checked against central differences, and the output against plain Python, or the autograd twin
where there is no formula in plain Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import getdoc, getsource, getsourcelines, isfunction, unwrap
from pathlib import Path
from textwrap import dedent
from typing import Any

import torch
from torch import Tensor

from manualbp.checks.agreement import Results, make_inputs
from manualbp.checks.contract import Trial, WithLoss, loss_case
from manualbp.checks.differences import central_differences, one_sided_differences
from manualbp.checks.registry import Case, LossCase
from manualbp.checks.tolerances import CENTRAL_DIFFERENCES
from manualbp.explain.page import Page, Value, as_numbers

PLAIN_PYTHON = "plain Python"
DIFFERENCES = "central differences"
DOCSTRING_WIDTH = 96
"""Columns of a docstring in a class: the project's 100 without the indent."""
KINK = 1e-4
"""A jump of the slope, as a part of the largest dy; a curve alone makes a millionth."""
OF_PARAMETERS = {
    "weight": "W",
    "bias": "b",
    "0.weight": "W_1",
    "0.bias": "b_1",
    "2.weight": "W_3",
    "2.bias": "b_3",
    "inner.0.weight": "W",
    "inner.0.bias": "b",
}
SHORT_NAMES = OF_PARAMETERS | {f"d{name}": f"d{short}" for name, short in OF_PARAMETERS.items()}
"""What equations call a parameter and its gradient; layer 0 of a network is the first, f_1."""


@dataclass(frozen=True)
class Walk:
    """A case with its inputs, and what came out of both passes."""

    trial: Trial
    results: Results  # "y", "dx", "dweight", ...

    def __getitem__(self, name: str) -> Any:
        """Return a tensor, "x", "dy", "y", "dx" or that of a parameter, as nested lists."""
        inputs = self.trial.inputs
        given = {"x": inputs.x, "dy": inputs.dy, **inputs.parameters.named()}
        return as_numbers((given | self.results)[name])

    def moved(self) -> dict[str, Tensor]:
        """Return the tensors that there are gradients of, by the gradient's name."""
        inputs = self.trial.inputs
        named = inputs.parameters.named()
        return {"dx": inputs.x} | {f"d{name}": tensor for name, tensor in named.items()}

    def differences(self, name: str) -> Tensor:
        """Return the gradient `name` from central differences."""
        return central_differences(self._y, self.moved()[name], self.trial.inputs.dy, _EPS)

    def has_kink(self) -> bool:
        """Return whether a left and a right derivative differ."""
        dy = self.trial.inputs.dy
        bounds = [one_sided_differences(self._y, v, dy, _EPS) for v in self.moved().values()]
        return any((high - low).max() > KINK * dy.abs().max() for low, high in bounds)

    def _y(self) -> Tensor:
        return self.trial.forward()[0]


_EPS = CENTRAL_DIFFERENCES["eps"]


def walk_through(case: Case, seed: int) -> Walk:
    """Draw numbers for the case, with two decimals and away from kinks, and make both passes."""
    inputs = make_inputs(case, torch.float64, "cpu", seed)
    inputs.parameters.flat.copy_(inputs.parameters.flat.round(decimals=2))
    x = inputs.x if case.values else inputs.x.round(decimals=2)
    of_loss = isinstance(case.layer, WithLoss)  # dE, which is 1 in a training step
    dy = torch.ones_like(inputs.dy) if of_loss else inputs.dy.round(decimals=2)
    trial = Trial(case, replace(inputs, x=x, dy=dy))
    walk = Walk(trial, trial.by_hand())
    if walk.has_kink() and not case.kinks:
        return walk_through(case, (seed + 1) % 2**32)
    return walk


def walk_through_loss(case: LossCase, seed: int) -> Walk:
    """Do the same for a loss, as a layer with one output, E."""
    as_layer = loss_case(case, seed)
    assert isinstance(as_layer.layer, WithLoss)
    target = as_layer.layer.target
    if case.target_kind == "numbers":
        target = target.round(decimals=2)
    return walk_through(replace(as_layer, layer=replace(as_layer.layer, target=target)), seed)


def plainest(cases: Sequence[Any]) -> Any:
    """Return the case with the fewest numbers, if possible one that is about no special ones."""

    def how_special(case: Any) -> tuple[int, int]:
        special = [bool(case.values), case.scale != 1, torch.Size(case.shape).numel() < 2]
        special += [getattr(case, "kinks", False), not getattr(case, "training", True)]
        return sum(special), torch.Size(case.shape).numel()

    return min(cases, key=how_special)


def topic_name(cls: type[Any]) -> str:
    """Return the name of the topic of a layer or loss: "leaky-relu", "bce-with-logits"."""
    words = cls.__name__.removesuffix("Loss").replace("ReLU", "Relu").replace("SiLU", "Silu")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", words).lower()


def topic_title(cls: type[Any], words: str = "") -> str:
    """Return the title of the topic: the class, and the words or its docstring's first equation."""
    equation = re.split("[;,]  ", docstring_paragraphs(cls)[0][0])[0]
    return f"{cls.__name__}: {words or equation}"


# The sections of a page ---------------------------------------------------------------------------


def write_equations(page: Page, cls: type[Any]) -> None:
    """Write the first paragraph of the docstring, each equation on a line."""
    page.code("\n".join(docstring_paragraphs(cls)[0]).replace(";  ", "\n"))


def write_details(page: Page, cls: type[Any]) -> None:
    """Write the other paragraphs of the docstring."""
    page.heading("The small print")
    for line in (line for paragraph in docstring_paragraphs(cls)[1:] for line in paragraph):
        if not line.startswith("Raises "):
            page.say(line)


def docstring_paragraphs(cls: type[Any]) -> list[list[str]]:
    """Return the paragraphs of the docstring, each as lines, with wrapped lines joined again.

    A line is wrapped if the next line's first word had no more room in it, or if it ends with a
    word in the middle of a sentence.
    """
    paragraphs: list[list[str]] = []
    for block in (getdoc(cls) or cls.__name__).split("\n\n"):
        lines: list[str] = []
        before = ""  # as it stands in the file
        for line in block.splitlines():
            full = len(f"{before} {line.split()[0]}") > DOCSTRING_WIDTH
            if before and (full or re.search(r" (of|and|is)$", before)):
                lines[-1] += f" {line}"
            else:
                lines.append(line)
            before = line
        paragraphs.append(lines)
    return paragraphs


def write_given(page: Page, walk: Walk) -> None:
    """Write the input and the parameters."""
    inputs = walk.trial.inputs
    page.given("x", inputs.x, f"input, {shape(inputs.x)}")
    for name, tensor in inputs.parameters.named().items():
        page.given(SHORT_NAMES.get(name, name), tensor, f"{name}, {shape(tensor)}")


def write_output(
    page: Page, walk: Walk, expected: Value | None = None, *, name: str = "y", equation: str = ""
) -> None:
    """Write y, checked against `expected`, from plain Python, or else against the autograd twin."""
    because = PLAIN_PYTHON
    if expected is None:
        expected, because = walk.trial.through_autograd(torch.float64)["y"], "the autograd twin"
    page.line(name, equation, walk["y"], equals=expected, because=because)


def write_gradients(page: Page, walk: Walk, equations: Mapping[str, str]) -> None:
    """Write dx and the gradient of every parameter, checked against central differences."""
    for name in walk.moved():
        write_gradient(page, walk, name, SHORT_NAMES.get(name, name), equations.get(name, ""))


def write_gradient(page: Page, walk: Walk, name: str, shown: str, equation: str) -> None:
    """Write one gradient, checked against central differences."""
    page.line(
        shown,
        equation,
        walk[name],
        equals=walk.differences(name),
        because=DIFFERENCES,
        tolerance=CENTRAL_DIFFERENCES["rtol"],
        absolute=CENTRAL_DIFFERENCES["atol"],
    )


def write_code(page: Page, cls: type[Any]) -> None:
    """Write the source of the passes, and of what they call in their class, as it stands."""
    page.heading("The code")
    for name, method in vars(cls).items():
        function = unwrap(method) if isfunction(method) else None
        if function and not name.startswith("__") and name not in ("shapes", "initialize"):
            path = Path(function.__code__.co_filename).relative_to(_PROJECT)
            line = getsourcelines(function)[1]
            page.code(dedent(getsource(function)).rstrip(), f"{path}, line {line}")


_PROJECT = Path(__file__).parents[2]


def mapped(f: Callable[[float], float], values: Any) -> Any:
    """Return f of every number in nested lists."""
    return f(values) if isinstance(values, float) else [mapped(f, value) for value in values]


def put(value: float) -> str:
    """Return a number to put into an equation: a negative one in parentheses."""
    return f"({value:.6g})" if value < 0 else f"{value:.6g}"


def put_products(a: Sequence[float], b: Sequence[float]) -> str:
    """Return "0.5·2 + (-1)·3" for two lists to be multiplied and added up."""
    return " + ".join(f"{put(v)}·{put(w)}" for v, w in zip(a, b, strict=True))


def shape(tensor: Tensor) -> str:
    """Return "2×3"."""
    return "×".join(map(str, tensor.shape)) or "one number"
