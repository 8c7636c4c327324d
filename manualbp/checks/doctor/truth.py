"""The right gradients, in float64, each as the interval in which a gradient is right.

Away from kinks an interval is one number, up to the error with which it is known. At a kink, where
the slope jumps, every slope between the one-sided derivatives is right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from math import frexp
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from manualbp.checks.doctor.subject import Arguments
from manualbp.checks.doctor.subjects import floating
from manualbp.checks.tolerances import TOLERANCES
from manualbp.errors import UsageError

Function = Callable[[Arguments], Sequence[Tensor]]
"""Computes the outputs from the arguments."""

Place = tuple[int, ...]

T = TypeVar("T")

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

MOST_SLOPES = 2**24
"""Of every output by every number: more take minutes, and gigabytes."""

MOST_DOUBLINGS = 100
"""A step is no longer than 2 to this power, which keeps it a number in float32."""

MOST_KEPT = 1_000_000
"""A reference remembers what it worked out from so many numbers in all."""

MOST_KNOWN = 16
"""Slopes at so many arguments are remembered: every contract asks for the same again."""

AT_ONCE = 2**17
"""So many slopes are worked out together."""

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

    def holds(self, gradient: Tensor, dys: Sequence[Tensor]) -> bool:
        """Tell whether a gradient for these dys lies within, but for rounding in its own dtype.

        A gradient that is small itself may carry the rounding of terms as large as dy.
        """
        largest = max((dy.abs().max().item() for dy in dys if dy.numel()), default=0.0)
        room = TOLERANCES[gradient.dtype].floor * max(self.scale(), largest)
        return not bool((self.excess(gradient) > room).any())

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
        self,
        arguments: Arguments,
        dys: Sequence[Tensor],
        given: Mapping[str, Tensor] | None = None,
        but: Collection[str] = (),
    ) -> Mapping[str, Interval]:
        """Return the interval of each gradient, but for these arguments.

        `given` are gradients that someone wants to know about: where they are off, the truth looks
        whether there is a kink.
        """
        ...

    def __call__(self, arguments: Arguments, dys: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Return the gradients themselves."""
        ...

    def outputs(self, arguments: Arguments) -> Sequence[Tensor]:
        """Return the outputs that are differentiated."""
        ...


class Reference:
    """A function that autograd can differentiate, in float64; differences only say where kinks are.

    `own` are names of arguments whose gradients are wanted; None is all floating ones. The function
    gives the same for the same arguments, so each question is worked out once: many contracts and
    hypotheses ask the same.
    """

    def __init__(self, function: Function, words: str, own: Collection[str] | None = None) -> None:
        self._function = function
        self._own = own
        self.words = words
        self._memory = Memory()

    def __call__(self, arguments: Arguments, dys: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return self.gradients(arguments, dys, torch.float64)

    def outputs(self, arguments: Arguments) -> list[Tensor]:
        """Return the outputs in float64."""
        with torch.no_grad():
            return list(self._function(converted(arguments, torch.float64)))

    def gradients(
        self, arguments: Arguments, dys: Sequence[Tensor], dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        """Return autograd's gradients, computed in any dtype. They are not to be written to."""
        tensors = [*arguments.values(), *dys]
        size = sum(tensor.numel() for tensor in tensors)
        if size > MOST_KEPT:
            return self._gradients(arguments, dys, dtype)
        question = ("gradients", dtype, *arguments, *_content(tensors))
        return self._memory.answer(question, size, lambda: self._gradients(arguments, dys, dtype))

    def _gradients(
        self, arguments: Arguments, dys: Sequence[Tensor], dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        names = [n for n in floating(arguments) if self._own is None or n in self._own]
        leaves = {
            name: tensor.detach().clone().requires_grad_(name in names)
            for name, tensor in converted(arguments, dtype).items()
        }
        with torch.enable_grad():
            outputs = self._function(leaves)
        pairs = [
            (y, dy.to(y.dtype, copy=True))
            for y, dy in zip(outputs, dys, strict=True)
            if y.requires_grad
        ]
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
        self,
        arguments: Arguments,
        dys: Sequence[Tensor],
        given: Mapping[str, Tensor] | None = None,
        but: Collection[str] = (),
    ) -> Mapping[str, Interval]:
        right = self(arguments, dys)
        found = {name: Interval.exactly(right[name]) for name in right if name not in but}
        for name, gradient in (given or {}).items():
            interval = found.get(name)
            if interval is None or gradient.shape != interval.value.shape:
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
        where = ("slopes", name, *_content(list(exact.values())))
        for place in places:
            slopes = self._memory.answer(
                (*where, place), 4 * dy.numel(), partial(slopes_at, f, exact[name], place)
            )
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
        self._known: dict[tuple[object, ...], dict[object, Slopes]] = {}

    def __call__(self, arguments: Arguments, dys: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return {name: self.gradient(arguments, dys, name) for name in self.names(arguments)}

    def names(self, arguments: Arguments) -> list[str]:
        """Return the arguments that have a gradient."""
        return [n for n in floating(arguments) if self._own is None or n in self._own]

    def gradient(
        self,
        arguments: Arguments,
        dys: Sequence[Tensor],
        name: str,
        places: Sequence[Place] | None = None,
    ) -> Tensor:
        """Return one gradient; with `places`, its numbers there, which alone are worked out."""
        numbers = self._slopes(arguments, name, places).value @ flat([dy.double() for dy in dys])
        return numbers.view(arguments[name].shape) if places is None else numbers

    def outputs(self, arguments: Arguments) -> list[Tensor]:
        """Return the outputs, in the dtype of the differences."""
        with torch.no_grad():
            return list(self._function(converted(arguments, self._dtype)))

    def intervals(
        self,
        arguments: Arguments,
        dys: Sequence[Tensor],
        given: Mapping[str, Tensor] | None = None,
        but: Collection[str] = (),
    ) -> Mapping[str, Interval]:
        dy = flat([dy.double() for dy in dys])
        found: dict[str, Interval] = {}
        for name in self.names(arguments):
            if name in but:
                continue
            slopes, shape = self._slopes(arguments, name), arguments[name].shape
            value = low = high = (slopes.value @ dy).view(shape)
            if slopes.kink:
                ends = slopes.low * dy, slopes.high * dy
                low = torch.minimum(*ends).sum(-1).view(shape)
                high = torch.maximum(*ends).sum(-1).view(shape)
            found[name] = Interval(value, low, high, (slopes.error @ dy.abs()).view(shape))
        return found

    def _slopes(
        self, arguments: Arguments, name: str, places: Sequence[Place] | None = None
    ) -> Slopes:
        """Return every output's slope by the numbers of an argument, (numbers, outputs).

        By all of them, or by those in some places.
        """
        key = (*arguments, *_content(list(arguments.values())))
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[key] = {}
        known, which = self._known[key], (name, None if places is None else tuple(places))
        if which not in known:
            numbers = sum(arguments[name].numel() for name in self.names(arguments))
            if numbers > TOO_MANY:
                raise UsageError(
                    f"the inputs hold {numbers} numbers, too many for differences (up to "
                    f"{TOO_MANY}): give a --reference, or a smaller --shape"
                )
            moved = {n: tensor.clone() for n, tensor in converted(arguments, self._dtype).items()}
            v = moved[name]
            with torch.no_grad():
                known[which] = _jacobian(
                    lambda: flat(self._function(moved)),
                    v,
                    list(_places(v.shape)) if places is None else places,
                )
        return known[which]


class Memory:
    """Answers to questions, as many as have room."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Any] = {}
        self._kept = 0

    def answer(self, question: tuple[object, ...], size: int, work: Callable[[], T]) -> T:
        """Return the answer to a question about so many numbers; work it out if it is not known."""
        if question not in self._known:
            if self._kept + size > MOST_KEPT:
                self._known.clear()
                self._kept = 0
            self._known[question] = work()
            self._kept += size
        return self._known[question]


def _content(tensors: Sequence[Tensor]) -> Iterator[object]:
    """Yield what makes tensors the same as others: their numbers, not where these lie in memory."""
    for tensor in tensors:
        yield from (tensor.device, tensor.dtype, tensor.shape)
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


class Slopes(NamedTuple):
    """The slope of each output: the value, the smallest and the largest that are right.

    All in one shape: (outputs,) by one number, (numbers, outputs) by several.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    error: Tensor

    @property
    def kink(self) -> bool:
        """Tell whether any output has a kink here."""
        return self.low is not self.high and not torch.equal(self.low, self.high)

    def put(self, rows: Tensor, chosen: Tensor, other: Slopes) -> None:
        """Put the chosen rows of `other` in the place of these rows."""
        for mine, new in zip(self, other, strict=True):
            mine[rows[chosen]] = new[chosen]


def _jacobian(f: Callable[[], Tensor], v: Tensor, places: Sequence[Place]) -> Slopes:
    """Return every output's slope by each of these numbers of v."""
    y0 = f().double()
    if v.numel() * y0.numel() > MOST_SLOPES:
        raise UsageError(
            f"an input of {v.numel()} numbers and {y0.numel()} of the outputs are too many for "
            f"differences (their product is up to {MOST_SLOPES}): give a --reference, or a smaller "
            "--shape"
        )
    at_once = max(1, AT_ONCE // max(1, y0.numel()))
    parts = [
        _slopes(f, v, places[start : start + at_once], y0)
        for start in range(0, len(places), at_once)
    ]
    if not parts:
        nothing = y0.new_zeros(0, y0.numel())
        return Slopes(nothing, nothing, nothing, nothing)
    if any(part.kink for part in parts):
        return Slopes(*map(torch.cat, zip(*parts, strict=True)))
    value = torch.cat([part.value for part in parts])
    return Slopes(value, value, value, torch.cat([part.error for part in parts]))


def slopes_at(f: Callable[[], Tensor], v: Tensor, place: Place) -> Slopes:
    """Return the slope of every output of f by the number v[place]."""
    return Slopes(*(rows[0] for rows in _slopes(f, v, [place], f().double())))


def _slopes(f: Callable[[], Tensor], v: Tensor, places: Sequence[Place], y0: Tensor) -> Slopes:
    """Return the slope of every output of f by each of these numbers of v; y0 is f().

    Where the outputs bend sharply within two steps, smaller steps follow. A bend that stays the
    same however small the step is a kink; one that grows is rounding.
    """
    rows = torch.arange(len(places), device=y0.device)  # those still to be settled
    best = last = Slopes(*(y0.new_zeros(len(places), y0.numel()) for _ in range(4)))
    least = bend = y0.new_full((len(places),), torch.inf)
    for step in STEPS[v.dtype]:
        chosen = [places[row] for row in cast(list[int], cast(Any, rows).tolist())]
        smooth, kinked, bend = _at_step(f, v, chosen, y0, step)
        best.put(rows, bend <= least[rows], smooth)
        least[rows] = torch.minimum(bend, least[rows])
        rough = bend >= SMOOTH
        rows, last, bend = rows[rough], Slopes(*(part[rough] for part in kinked)), bend[rough]
        if not len(rows):
            return best
    best.put(rows, bend <= 4 * least[rows], last)
    return best


def _at_step(
    f: Callable[[], Tensor], v: Tensor, places: Sequence[Place], y0: Tensor, step: float
) -> tuple[Slopes, Slopes, Tensor]:
    """Return the slopes for one step, if there is no kink and if there is, and how sharp they bend.

    The slope is (4 D(h) - D(2h)) / 3 with D the central difference, whose error is of the order of
    h⁴; the step h is in units of the number, if that is larger than 1.
    """
    epsilon = torch.finfo(v.dtype).eps
    moved, sizes = _moved(f, v, places, step)
    left2, left, right, right2 = moved.sub_(y0)
    h = y0.new_tensor(sizes)[:, None] * step
    near, far = (right - left) / (2 * h), (right2 - left2) / (4 * h)
    value = (4 * near - far) / 3
    magnitude = value.abs()
    # A smooth bend doubles with the step, a kink's stays: what is left is a kink or rounding.
    jump = ((right2 + left2) / (2 * h) - 2 * (right + left) / h).abs_()
    change = torch.maximum((near - far).abs_(), jump)
    bend = _largest_in_rows(change) / _largest_in_rows(magnitude).clamp_min(1.0)
    bend = torch.where(bend.isnan(), torch.inf, bend)
    reach = torch.maximum(left2.abs_(), right2.abs_()).add_(y0.abs())
    noise = reach.mul_(ROUNDINGS * epsilon / h).add_(magnitude, alpha=4 * epsilon)
    smooth = Slopes(value, value, value, noise + change * _where_rough(bend, step))
    if not (bend >= SMOOTH).any():
        return smooth, smooth, bend
    is_kink = change > SMOOTH * (1 + magnitude)
    low = torch.where(is_kink, torch.minimum(right, -left) / h, value)
    high = torch.where(is_kink, torch.maximum(right, -left) / h, value)
    kinked = Slopes(value, low, high, noise + SMOOTH * h * (1 + magnitude))
    return smooth, kinked, bend


def _largest_in_rows(rows: Tensor) -> Tensor:
    return rows.amax(1) if rows.shape[1] else rows.new_zeros(len(rows))


def _where_rough(bend: Tensor, step: float) -> Tensor:
    """Return the share of a bend that may be an error: all of it, but where it is smooth."""
    return torch.where(bend < SMOOTH, step, 1.0)[:, None]


def _moved(
    f: Callable[[], Tensor], v: Tensor, places: Sequence[Place], step: float
) -> tuple[Tensor, list[float]]:
    """Return f with each number moved by -2, -1, 1 and 2 steps, (4, numbers, outputs).

    And the unit of each number's step. The numbers are put back.
    """
    rows: list[list[Tensor]] = [[], [], [], []]
    sizes: list[float] = []
    for place in places:
        cell = v[place]
        number = cell.item()
        size = max(1.0, 2.0 ** min(frexp(number)[1], MOST_DOUBLINGS))
        for row, n in zip(rows, (-2, -1, 1, 2), strict=True):
            cell.fill_(number + n * size * step)
            row.append(f())
        cell.fill_(number)
        sizes.append(size)
    return torch.stack([torch.stack(row).double() for row in rows]), sizes


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
