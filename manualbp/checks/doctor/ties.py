"""Numbers that are tied, as two equal maxima are, and what their gradients come to together.

Alone, a tied number may have any slope between those on its two sides. Moved together the numbers
stay tied: the outputs then have one slope, and the gradients must add up to it. Of two equal maxima
one may get all of dy, or they share it; if both get all of it, each is right and the two are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor

from manualbp.checks.doctor.hypotheses import broadcasts
from manualbp.checks.doctor.laboratory import random_like
from manualbp.checks.doctor.subject import Arguments, Gradients
from manualbp.checks.doctor.truth import Reference, Truth

MOST_PAIRS = 6
"""Of arguments that fit together so many pairs are made equal."""

MOST_GROUPS = 64
"""Among so many groups the one that is most wrong is looked for."""

SHOWN = 4
"""Of the numbers of a group so many are named."""

STEPS: Mapping[torch.dtype, float] = {torch.float64: 2.0**-16, torch.float32: 2.0**-6}

LIMITS: Mapping[torch.dtype, float] = {torch.float64: 1e-6, torch.float32: 2e-2}
"""How far the two may lie apart, relative to the sizes of all that is added up."""

BENT = 1e-3
"""A slope that jumps by less than this, relative to what it is made of, has no kink."""


@dataclass(frozen=True)
class Tied:
    """Arguments in which numbers are equal."""

    arguments: Arguments
    groups: Mapping[str, Tensor]
    """For each argument that is concerned, the number of the group that each number belongs to."""
    words: str

    def directions(self, weights: Tensor) -> dict[str, Tensor]:
        """Return a direction in which the numbers of a group move together, group k by weight k."""
        return {name: weights.to(self.arguments[name])[k] for name, k in self.groups.items()}

    @property
    def count(self) -> int:
        """Return the number of groups."""
        return 1 + max(int(k.max()) for k in self.groups.values())


def tied(arguments: Arguments, names: Sequence[str]) -> Iterator[Tied]:
    """Yield arguments in which every number of one has equal neighbours, or two are the same."""
    tensors = {name: arguments[name] for name in names if arguments[name].numel()}
    for name, tensor in tensors.items():
        if tensor.numel() == 1:
            continue
        heads = _paired(torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape))
        first = torch.zeros(tensor.numel(), dtype=torch.long, device=tensor.device)
        first[heads.flatten()] = 1  # of each group; counted, they number the groups
        yield Tied(
            {**arguments, name: _paired(tensor)},
            {name: (first.cumsum(0) - 1)[heads]},
            f"where neighbouring numbers of {name} are equal",
        )
    by_size = sorted(tensors, key=lambda name: tensors[name].ndim)
    alike = ((a, b) for a, b in combinations(by_size, 2) if _fits(tensors[a], tensors[b]))
    for a, b in islice(alike, MOST_PAIRS):
        small, shape = tensors[a], tensors[b].shape
        groups = torch.arange(small.numel(), device=small.device).view(small.shape)
        same = {**arguments, b: small.expand(shape).to(tensors[b].dtype, copy=True).contiguous()}
        yield Tied(same, {a: groups, b: groups.expand(shape)}, f"where {a} and {b} are equal")


def _fits(small: Tensor, large: Tensor) -> bool:
    """Tell whether the one is as large as the other, or is broadcast to it."""
    return broadcasts(small.shape, large.shape) and small.device == large.device


def _paired(tensor: Tensor) -> Tensor:
    """Return the tensor in which numbers 0 and 1, 2 and 3, ... along every axis are the same."""
    for axis, length in enumerate(tensor.shape):
        first = torch.arange(length, device=tensor.device) // 2 * 2
        tensor = tensor.index_select(axis, first)
    return tensor


@dataclass(frozen=True)
class Law:
    """The outputs near arguments with ties, Σ dy y, and the slope that they have."""

    tied: Tied
    dys: Sequence[Tensor]
    truth: Truth

    def has_kink(self) -> bool:
        """Tell whether the slope jumps as soon as the ties are broken."""
        away = {
            name: random_like(self.tied.arguments[name], 71 + i)
            for i, name in enumerate(self.tied.groups)
        }
        return self._bends(away)

    def slope(self, weights: Tensor) -> float | None:
        """Return the slope where the groups move by these weights; None where it has a kink."""
        directions = self.tied.directions(weights)
        if isinstance(self.truth, Reference):
            true = self.truth(self.tied.arguments, self.dys)
            return _along(true, directions)
        if self._bends(directions):
            return None
        step = self._step
        return (self._moved(directions, step) - self._moved(directions, -step)) / (2 * step)

    def broken_by(self, gradients: Gradients, weights: Tensor) -> tuple[float, float] | None:
        """Return the gradients' sum and the slope, for groups moved by weights, if they differ."""
        slope = self.slope(weights)
        directions = self.tied.directions(weights)
        total = _along(gradients, directions)
        if slope is None or not abs(total) < torch.inf:
            return None  # a gradient that is not finite is another mistake, or none
        size = abs(slope) + _along(_sizes(gradients), _sizes(directions))
        noise = self._noise if not isinstance(self.truth, Reference) else 0.0
        return (total, slope) if abs(total - slope) > LIMITS[self._dtype] * size + noise else None

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.tied.arguments[name].dtype for name in self.tied.groups)

    @property
    def _step(self) -> float:
        return STEPS[self._dtype]

    @property
    def _noise(self) -> float:
        """Return the rounding of the outputs, divided by the step."""
        outputs = self.truth.outputs(self.tied.arguments)
        size = sum((y * dy).abs().sum().item() for y, dy in zip(outputs, self.dys, strict=True))
        return 32 * torch.finfo(self._dtype).eps * size / self._step

    def _moved(self, directions: Mapping[str, Tensor], step: float) -> float:
        """Return by how much Σ dy y grows over a step."""
        here = self.truth.outputs(self.tied.arguments)
        moved = {n: self.tied.arguments[n] + step * d for n, d in directions.items()}
        there = self.truth.outputs({**self.tied.arguments, **moved})
        parts = zip(self.dys, there, here, strict=True)
        return sum((dy * (after - before)).sum().item() for dy, after, before in parts)

    def _bends(self, directions: Mapping[str, Tensor]) -> bool:
        """Tell whether the slope jumps here: as much over a short step as over a longer one."""
        jumps: list[float] = []
        for step in (self._step, self._step / 4):
            ends = self._moved(directions, step), self._moved(directions, -step)
            jumps.append(sum(ends) / step)
            if not abs(jumps[-1]) > BENT * sum(map(abs, ends)) / step + self._noise:
                return False
        return 0.5 < jumps[1] / jumps[0] < 2.0


def _along(gradients: Gradients, directions: Mapping[str, Tensor]) -> float:
    """Return Σ g d over all arguments that move."""
    total = 0.0
    for name, direction in directions.items():
        gradient = gradients.get(name)
        if gradient is not None:
            total += (gradient.double() * direction).sum().item()
    return total


def _sizes(tensors: Gradients) -> dict[str, Tensor]:
    return {name: tensor.abs() for name, tensor in tensors.items() if tensor is not None}


@dataclass(frozen=True)
class Clash:
    """A group of equal numbers whose gradients do not add up to their slope."""

    tied: Tied
    total: float
    slope: float
    group: int

    @property
    def members(self) -> str:
        """Return the first places of the group: "x[0, 0], x[0, 1]"."""
        places: list[str] = []
        for name, groups in self.tied.groups.items():
            for place in (groups == self.group).nonzero():
                places.append(f"{name}{[int(i) for i in place] if groups.ndim else ''}")
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return ", ".join(places[:SHOWN]) + more


def clash(law: Law, gradients: Gradients) -> Clash | None:
    """Return where the gradients of numbers that are tied are wrong together, None if nowhere.

    Only where the law has a kink: elsewhere ties are as good as any other numbers.
    """
    count = law.tied.count
    weights = random_like(torch.empty(count, dtype=torch.float64), 81)
    wrong = law.broken_by(gradients, weights)
    if wrong is None:
        return None
    found: list[Clash] = []
    for group in range(min(count, MOST_GROUPS)):
        alone = torch.zeros(count, dtype=torch.float64)
        alone[group] = 1
        sums = law.broken_by(gradients, alone)
        if sums is not None:
            found.append(Clash(law.tied, *sums, group))
    return max(found, key=lambda one: abs(one.total - one.slope), default=None)
