"""Where the doctor gathers evidence: it runs the subject again, always on copies, and asks the
truth for the gradients of other arguments and other upstream gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from manualbp.checks.doctor.subject import Arguments, Gradients, Pass, Subject
from manualbp.checks.tolerances import TOLERANCES, Tolerance

Truth = Callable[[Arguments, Sequence[Tensor]], Mapping[str, Tensor]]
"""Gives the right gradients for arguments and upstream gradients, neither of which it changes."""

Dys = Sequence[Tensor]


@runtime_checkable
class OneByOne(Protocol):
    """A truth that works out each gradient by itself, and needs long for it."""

    def names(self, arguments: Arguments) -> list[str]:
        """Return the arguments that have a gradient."""
        ...

    def gradient(
        self,
        arguments: Arguments,
        dys: Sequence[Tensor],
        name: str,
        places: Sequence[tuple[int, ...]] | None = None,
    ) -> Tensor:
        """Return one gradient, or its numbers in some places alone."""
        ...


SAMPLE = 32
"""So many numbers of a gradient tell how far it is known."""

HALF = Tolerance(floor=1e-2, factor=8.0)
"""For float16, which no layer of ours is checked in."""

SEED = 20_240

DIFFERENCES = 1e-8
"""What a truth by differences of values may be off by in float64."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Arguments and upstream gradients with what the subject and the truth make of them."""

    arguments: Arguments
    dys: Dys
    outputs: Sequence[Tensor]
    got: Gradients
    true: Mapping[str, Tensor]  # in float64

    def ours(self, name: str) -> Tensor:
        """Return the subject's gradient in float64. Raises KeyError where there is none."""
        gradient = self.got[name]
        if gradient is None:
            raise KeyError(name)
        return gradient.detach().double()


@dataclass(frozen=True)
class Laboratory:
    """A subject, the truth about it, and the seed of whatever either of them draws."""

    subject: Subject
    truth: Truth

    def run(self, arguments: Arguments) -> Pass:
        """Make a forward pass on copies that lie in memory as the arguments do."""
        with fixed_chance(arguments, SEED):
            return self.subject.run(copies(arguments))

    def backward(self, done: Pass, arguments: Arguments, dys: Dys, seed: int = SEED) -> Gradients:
        """Return copies of what the backward pass gives for copies of dys."""
        with fixed_chance(arguments, seed):
            got = done.backward([copy_of(dy) for dy in dys])
        return {name: None if g is None else g.detach().clone() for name, g in got.items()}

    def got(self, arguments: Arguments, dys: Dys) -> Gradients:
        """Return what a forward and a backward pass give."""
        return self.backward(self.run(arguments), arguments, dys)

    def true(self, arguments: Arguments, dys: Dys) -> Mapping[str, Tensor]:
        """Return the right gradients in float64; each when it is asked for, if that takes long."""
        if isinstance(self.truth, OneByOne):
            return WhenAsked(self.truth, arguments, dys)
        with fixed_chance(arguments, SEED):
            right = self.truth(arguments, dys)
        return {name: tensor.detach().double() for name, tensor in right.items()}

    def slope(self, arguments: Arguments, dys: Dys, name: str, direction: Tensor) -> float:
        """Return the slope of Σ dy y along a direction of one argument, by four forward passes."""
        step = 2.0**-13
        values: list[float] = []
        for n in (-2, -1, 1, 2):
            moved = {**arguments, name: arguments[name] + n * step * direction}
            outputs = self.run(moved).outputs
            products = ((y.double() * dy).sum() for y, dy in zip(outputs, dys, strict=True))
            values.append(sum(product.item() for product in products))
        return (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * step)

    def draw(self, arguments: Arguments, dys: Dys) -> Draw:
        """Run both. An error of the subject comes through."""
        done = self.run(arguments)
        outputs = [y.detach().clone() for y in done.outputs]
        got = self.backward(done, arguments, dys)
        return Draw(arguments, dys, outputs, got, self.true(arguments, dys))

    def limits(self, draw: Draw) -> dict[str, float]:
        """Return how far each gradient may be from the truth, relative to its largest number.

        The truth is asked twice, for arguments that differ by a few roundings: what it then says
        differently is the least that rounding costs, and for differences of values their noise.
        """
        return {name: self.limit(draw, name) for name in draw.true}

    def limit(self, draw: Draw, name: str) -> float:
        """Return the limit of one gradient."""
        dtype = working_dtype(draw.arguments)
        tolerance = TOLERANCES.get(dtype, HALF)
        scale = 1 + 4 * torch.finfo(dtype).eps
        nudged = {
            name: (t.double() * scale).to(t.dtype) if t.is_floating_point() else t
            for name, t in draw.arguments.items()
        }
        right = draw.true[name]
        if isinstance(self.truth, OneByOne):
            places = _some_places(right.shape)
            with fixed_chance(nudged, SEED):
                other = self.truth.gradient(nudged, draw.dys, name, places).double()
            before = torch.stack([right[place] for place in places]) if places else other
        else:
            other, before = self.true(nudged, draw.dys)[name], right
        moved = (other - before).abs().flatten().nan_to_num(0.0)
        largest = largest_of(right)
        # A quantile, since a few numbers may stand where the derivative jumps.
        typical = moved.quantile(0.75).item() / largest if moved.numel() and largest else 0.0
        # Autograd moves with its arguments to a few roundings. Differences of values do not, and
        # then have an error of the method as well, which does not show here.
        method = DIFFERENCES if typical > 100 * torch.finfo(torch.float64).eps else 0.0
        return min(max(tolerance.floor, 10 * typical, method), 0.2)


class WhenAsked(Mapping[str, Tensor]):
    """The right gradients in float64, each worked out when it is asked for first."""

    def __init__(self, truth: OneByOne, arguments: Arguments, dys: Dys) -> None:
        self._truth = truth
        self._arguments = arguments
        self._dys = dys
        self._names = truth.names(arguments)
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._known:
            with fixed_chance(self._arguments, SEED):
                found = self._truth.gradient(self._arguments, self._dys, name)
            self._known[name] = found.detach().double()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _some_places(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return places of a tensor, all of them or as many as tell enough."""
    count = torch.Size(shape).numel()
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[:SAMPLE]
    rows = torch.stack(torch.unravel_index(chosen, tuple(shape)), 1) if shape else chosen[:, None]
    return [tuple(int(i) for i in row) if shape else () for row in rows]


def working_dtype(arguments: Arguments) -> torch.dtype:
    """Return the coarsest floating-point type among the arguments."""
    dtypes = [t.dtype for t in arguments.values() if t.is_floating_point()]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def error_of(ours: Tensor, right: Tensor) -> float:
    """Return max |ours - right| / max(|right|), or infinity for NaN, shapes or zeros that differ.

    Where the truth has NaN or infinity it has no derivative, and nothing is compared.
    """
    if ours.shape != right.shape:
        return inf
    difference = largest_of(ours - right)
    if not isfinite(difference):
        defined = right.isfinite()
        ours, right = ours[defined], right[defined]
        if not ours.isfinite().all():
            return inf
        difference = largest_of(ours - right)
    if difference == 0:
        return 0.0
    scale = largest_of(right)
    # A truth of zero is compared with the smallest number that counts.
    return difference / scale if scale > TINY else (inf if difference > TINY else 0.0)


TINY = 1e-13
"""A gradient this small is zero but for rounding, where all numbers are of the size of 1."""


def largest_of(tensor: Tensor) -> float:
    """Return max |tensor|, 0 for an empty one."""
    return tensor.abs().max().item() if tensor.numel() else 0.0


def copies(arguments: Arguments) -> dict[str, Tensor]:
    """Return copies with the same strides."""
    return {name: copy_of(tensor) for name, tensor in arguments.items()}


def copy_of(tensor: Tensor) -> Tensor:
    """Return the same numbers in other memory, with the same strides, stride 0 included."""
    storage = tensor.detach().untyped_storage().clone()
    copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return copy.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


@contextmanager
def fixed_chance(arguments: Arguments, seed: int) -> Generator[None]:
    """Let torch's own generators start from a seed, and put them back afterwards."""
    generators = [torch.default_generator]
    for index in {t.device.index for t in arguments.values() if t.device.type == "cuda"}:
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Return N(0, 1) in the shape, dtype and place of a tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)


def other_arguments(arguments: Arguments, seed: int) -> dict[str, Tensor]:
    """Return arguments with every number multiplied by one of its own from 0.6 to 1.4.

    Signs and zeros stay, so that what a subject asks of its arguments mostly still holds.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor * (0.6 + 0.8 * torch.rand(tensor.shape, generator=generator)).to(tensor)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in arguments.items()
    }
