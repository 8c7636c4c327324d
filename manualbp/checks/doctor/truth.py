"""The right gradients, in float64, each as the interval in which a gradient is right.

Away from kinks an interval is one number, up to the error with which it is known. At a kink, where
the slope jumps, every slope between the one-sided derivatives is right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from math import frexp
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from manualbp.checks.doctor.subject import Arguments
from manualbp.checks.doctor.subjects import floating
from manualbp.checks.tolerances import TOLERANCES
from manualbp.errors import UsageError

Function = Callable[[Arguments], Sequence[Tensor]]
"""Computes the outputs from the arguments."""

Place = tuple[int, ...]

STEPS: Mapping[torch.dtype, tuple[float, ...]] = {
    torch.float64: (2.0**-10, 2.0**-13, 2.0**-16, 2.0**-19),
    torch.float32: (2.0**-4, 2.0**-6, 2.0**-8),
}
"""Steps of the differences, from the one with the least rounding to the one nearest to the point.
Powers of two, so that v + step is seldom rounded."""

SMOOTH = 1e-4
"""A slope that changes by less than this over the step, relative to itself, has no kink there."""

TOO_MANY = 20_000
"""Differences move one number at a time; for more numbers than these a reference is needed."""

MOST_DOUBLINGS = 100
"""A step is no longer than 2 to this power, which keeps it a number in float32."""

MOST_KNOWN = 16
"""Slopes at so many arguments are remembered: every contract asks for the same again."""

ROUNDINGS = 32
"""How many roundings of its largest part an output may carry."""


class Interval(NamedTuple):
    """What is known of a gradient: float64 tensors in the shape of the argument."""

    value: Tensor
    low: Tensor
    high: Tensor
    slack: Tensor  # the error of all three

    @classmethod
    def exactly(cls, value: Tensor) -> Interval:
        """Return the interval of one number, known to the last digit."""
        return cls(value, value, value, torch.zeros_like(value))

    def excess(self, gradient: Tensor) -> Tensor:
        """Return how far each number of a gradient lies outside, infinite where it is NaN."""
        gradient = gradient.double()
        distance = torch.maximum(self.low - gradient, gradient - self.high) - self.slack
        distance = torch.where(gradient == self.value, 0.0, distance.clamp_min(0.0))
        both_nan = gradient.isnan() & self.value.isnan()
        return torch.where(both_nan, 0.0, distance.nan_to_num(torch.inf, posinf=torch.inf))

    def scale(self) -> float:
        """Return the largest number of the gradient."""
        return self.value.abs().max().item() if self.value.numel() else 0.0


class Truth(Protocol):
    """Knows the right gradients of a subject."""

    @property
    def words(self) -> str:
        """Return where the truth comes from."""
        ...

    def intervals(
        self, arguments: Arguments, dys: Sequence[Tensor], given: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Interval]:
        """Return the interval of each gradient.

        `given` are gradients that someone wants to know about: where they are off, the truth looks
        whether there is a kink.
        """
        ...

    def __call__(self, arguments: Arguments, dys: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Return the gradients themselves."""
        ...


class Reference:
    """A function that autograd can differentiate, in float64; differences only say where kinks are.

    `own` are names of arguments whose gradients are wanted; None is all floating ones.
    """

    def __init__(self, function: Function, words: str, own: Collection[str] | None = None) -> None:
        self._function = function
        self._own = own
        self.words = words

    def __call__(self, arguments: Arguments, dys: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return self.gradients(arguments, dys, torch.float64)

    def outputs(self, arguments: Arguments) -> list[Tensor]:
        """Return the outputs in float64."""
        with torch.no_grad():
            return list(self._function(converted(arguments, torch.float64)))

    def gradients(
        self, arguments: Arguments, dys: Sequence[Tensor], dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        """Return autograd's gradients, computed in any dtype."""
        names = [n for n in floating(arguments) if self._own is None or n in self._own]
        leaves = {
            name: tensor.detach().clone().requires_grad_(name in names)
            for name, tensor in converted(arguments, dtype).items()
        }
        with torch.enable_grad():
            outputs = self._function(leaves)
        pairs = [(y, dy.to(y.dtype)) for y, dy in zip(outputs, dys, strict=True) if y.requires_grad]
        if not pairs:
            return {name: torch.zeros_like(leaves[name]) for name in names}
        gradients = torch.autograd.grad(
            [y for y, _ in pairs],
            [leaves[name] for name in names],
            [dy for _, dy in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(names, gradients, strict=True))

    def intervals(
        self, arguments: Arguments, dys: Sequence[Tensor], given: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Interval]:
        found = {name: Interval.exactly(value) for name, value in self(arguments, dys).items()}
        for name, gradient in (given or {}).items():
            interval = found[name]
            if gradient.shape != interval.value.shape:
                continue
            off = interval.excess(gradient) > TOLERANCES[gradient.dtype].floor * interval.scale()
            off &= arguments[name].isfinite()
            places = [
                tuple(place) for place in cast(list[list[int]], cast(Any, off.nonzero()).tolist())
            ]
            if len(places) > 0 and off.numel() <= TOO_MANY:
                found[name] = self._widened(interval, name, places, arguments, dys)
        return found

    def _widened(
        self,
        interval: Interval,
        name: str,
        places: Sequence[Place],
        arguments: Arguments,
        dys: Sequence[Tensor],
    ) -> Interval:
        """Return the interval with the one-sided derivatives where there is a kink."""
        low, high = interval.low.clone(), interval.high.clone()
        exact = {key: tensor.clone() for key, tensor in converted(arguments, torch.float64).items()}

        def f() -> Tensor:
            with torch.no_grad():
                return flat(self._function(exact))

        dy = flat([dy.double() for dy in dys])
        for place in places:
            slopes = slopes_at(f, exact[name], place)
            if slopes.kink:
                ends = torch.minimum(slopes.low * dy, slopes.high * dy).sum()
                other = torch.maximum(slopes.low * dy, slopes.high * dy).sum()
                room = 1e-6 * (slopes.low.abs() + slopes.high.abs()) @ dy.abs()
                low[place] = torch.minimum(low[place], ends - room)
                high[place] = torch.maximum(high[place], other + room)
        return interval._replace(low=low, high=high)


class Differences:
    """Central differences of the subject's own forward pass, one number moved at a time.

    They need no backward pass and no chain rule. In float64, or for a subject that computes in
    float32 alone, in that, with larger steps.
    """

    def __init__(
        self,
        function: Function,
        dtype: torch.dtype = torch.float64,
        own: Collection[str] | None = None,
    ) -> None:
        self._function = function
        self._dtype = dtype
        self._own = own
        self.words = f"central differences in {str(dtype).removeprefix('torch.')}"
        self._known: dict[tuple[object, ...], dict[str, Slopes]] = {}

    def __call__(self, arguments: Arguments, dys: Sequence[Tensor]) -> Mapping[str, Tensor]:
        dy = flat([dy.double() for dy in dys])
        return {
            name: (slopes.value @ dy).view(arguments[name].shape)
            for name, slopes in self._jacobians(arguments).items()
        }

    def outputs(self, arguments: Arguments) -> list[Tensor]:
        """Return the outputs, in the dtype of the differences."""
        with torch.no_grad():
            return list(self._function(converted(arguments, self._dtype)))

    def intervals(
        self, arguments: Arguments, dys: Sequence[Tensor], given: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Interval]:
        dy = flat([dy.double() for dy in dys])
        found: dict[str, Interval] = {}
        for name, slopes in self._jacobians(arguments).items():
            shape = arguments[name].shape
            value = low = high = (slopes.value @ dy).view(shape)
            if slopes.kink:
                ends = slopes.low * dy, slopes.high * dy
                low = torch.minimum(*ends).sum(-1).view(shape)
                high = torch.maximum(*ends).sum(-1).view(shape)
            found[name] = Interval(value, low, high, (slopes.error @ dy.abs()).view(shape))
        return found

    def _jacobians(self, arguments: Arguments) -> dict[str, Slopes]:
        """Return every output's slope by every number of each argument, (numbers, outputs)."""
        key = tuple(
            (name, tuple(tensor.shape), str(tensor.device), _numbers(tensor))
            for name, tensor in arguments.items()
        )
        if key not in self._known:
            names = [n for n in floating(arguments) if self._own is None or n in self._own]
            numbers = sum(arguments[name].numel() for name in names)
            if numbers > TOO_MANY:
                raise UsageError(
                    f"the inputs hold {numbers} numbers, too many for differences (up to "
                    f"{TOO_MANY}): give a --reference, or a smaller --shape"
                )
            moved = {
                name: tensor.clone() for name, tensor in converted(arguments, self._dtype).items()
            }

            def f() -> Tensor:
                with torch.no_grad():
                    return flat(self._function(moved)).clone()

            if len(self._known) > MOST_KNOWN:
                self._known.clear()
            self._known[key] = {name: _jacobian(f, moved[name]) for name in names}
        return self._known[key]


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    return tuple(cast(list[float], cast(Any, tensor.flatten()).tolist()))


class Slopes(NamedTuple):
    """The slope of each output: the value, the smallest and the largest that are right."""

    value: Tensor
    low: Tensor
    high: Tensor
    error: Tensor
    kink: bool


def _jacobian(f: Callable[[], Tensor], v: Tensor) -> Slopes:
    y0 = f().double()
    columns = [slopes_at(f, v, place, y0) for place in _places(v.shape)]
    if not columns:
        nothing = y0.new_zeros(0, y0.numel())
        return Slopes(nothing, nothing, nothing, nothing, kink=False)
    value = low = high = torch.stack([column.value for column in columns])
    error = torch.stack([column.error for column in columns])
    kink = any(column.kink for column in columns)
    if kink:
        low = torch.stack([column.low for column in columns])
        high = torch.stack([column.high for column in columns])
    return Slopes(value, low, high, error, kink)


def slopes_at(f: Callable[[], Tensor], v: Tensor, place: Place, y0: Tensor | None = None) -> Slopes:
    """Return the slope of every output of f by the number v[place]; y0 is f(), if it is known.

    The slope is (4 D(h) - D(2h)) / 3 with D the central difference, whose error is of the order of
    h⁴. Where the outputs bend sharply within ±2h, smaller steps follow. A bend that stays the same
    however small the step is a kink; one that grows is rounding.
    """
    steps = STEPS[v.dtype]
    y0 = f().double() if y0 is None else y0
    epsilon = torch.finfo(v.dtype).eps
    old = v[place].item()
    size = max(1.0, 2.0 ** min(frexp(old)[1], MOST_DOUBLINGS))
    best = last = None
    bends: list[float] = []
    for step in (size * step for step in steps):
        left2, left, right, right2 = (
            _moved(f, v, place, old + n * step) - y0 for n in (-2, -1, 1, 2)
        )
        near, far = (right - left) / (2 * step), (right2 - left2) / (4 * step)
        value = (4 * near - far) / 3
        # A smooth bend doubles with the step, a kink's stays: what is left is a kink or rounding.
        jump = ((right2 + left2) / (2 * step) - 2 * (right + left) / step).abs()
        change = torch.maximum((near - far).abs(), jump)
        largest = max(value.abs().max().item() if value.numel() else 0.0, 1.0)
        bend = (change.max().item() if change.numel() else 0.0) / largest
        bend = bend if bend == bend else float("inf")
        moved = torch.maximum(left2.abs(), right2.abs())
        noise = ROUNDINGS * epsilon * (y0.abs() + moved) / step + 4 * epsilon * value.abs()
        error = noise + change * (step / size if bend < SMOOTH else 1.0)
        sides = torch.stack([right / step, -left / step])
        is_kink = change > SMOOTH * (1 + value.abs())
        low = torch.where(is_kink, torch.minimum(sides[0], sides[1]), value)
        high = torch.where(is_kink, torch.maximum(sides[0], sides[1]), value)
        bends.append(bend)
        if best is None or bend <= best[0]:
            best = bend, Slopes(value, value, value, error, kink=False)
        if bend < SMOOTH:
            return best[1]
        last = Slopes(value, low, high, noise + SMOOTH * step * (1 + value.abs()), kink=True)
    assert best is not None
    assert last is not None
    return best[1] if bends[-1] > 4 * min(bends) else last


def _moved(f: Callable[[], Tensor], v: Tensor, place: Place, number: float) -> Tensor:
    """Return f with this number in the place of v[place], which is put back."""
    old = v[place].clone()
    v[place] = number
    y = f().double()
    v[place] = old
    return y


def _places(shape: Sequence[int]) -> Iterator[Place]:
    yield from product(*map(range, shape))


def converted(arguments: Arguments, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the floating arguments in this dtype, the others as they are."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in arguments.items()
    }


def flat(outputs: Sequence[Tensor]) -> Tensor:
    """Return all numbers of the outputs behind each other."""
    return torch.cat([y.detach().reshape(-1) for y in outputs])
