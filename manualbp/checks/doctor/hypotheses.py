"""What a class of mistakes makes of a gradient: each hypothesis predicts it from the truth.

The truth can be asked for other arguments and other upstream gradients, so "the derivative is
taken at y" is a prediction like any other: the right gradient where y stands in the place of x.
A hypothesis is believed if it gives every number to rounding, in every draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, permutations
from math import inf

import torch
from torch import Tensor

from manualbp.checks.doctor.laboratory import (
    Draw,
    Laboratory,
    error_of,
    random_like,
    working_dtype,
)
from manualbp.checks.doctor.subject import Arguments

MOST_AXES = 4
"""Permutations and sums over axes are tried for tensors with no more axes than these."""

MOST_PARTS = 64
"""The contributions of the parts of an output are asked for one by one up to so many."""

Predict = Callable[[Draw], Tensor | None]


@dataclass(frozen=True)
class Hypothesis:
    """A cause, the words for it, and what the gradient then is, up to a factor."""

    cause: str
    words: str
    predict: Predict  # in float64; None where it does not apply
    exact: bool = False  # no factor is allowed


def hypotheses(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """Yield what may explain a wrong gradient of the argument `name`, the simplest first."""
    yield Hypothesis("right", "", lambda draw: draw.true[name])
    shape = first.ours(name).shape
    if shape != first.true[name].shape and shape.numel() == first.true[name].numel():
        words = f"it has the right numbers in the shape {tuple(shape)}"
        yield Hypothesis("shape", words, lambda draw: draw.true[name].reshape(shape))
    yield from _reordered(name, first)
    yield from _of_another_argument(name, first)
    yield from _upstream(lab, name, first)
    if elementwise(lab, name, first):
        yield from _derivative_missing(lab, name, first)
    yield from _added(name, first)
    yield from _other_tensors(lab, name, first)
    yield from _of_jacobian(lab, name, first)
    yield from _activations(lab, name)
    yield from _factors(lab, name, first)
    yield from _functions_as_factors(name, first)
    yield from _read_in_place(name, first)
    yield from _products_with_dy(name, first)
    yield from _sums(lab, name, first)
    yield from _last_or_first(lab, name, first)
    yield from _summed_as_it_is(name, first)
    yield from _upstream_transposed(lab, name, first)
    yield from _of_another_that_is_broadcast(lab, name, first)


def last_hypotheses(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """Yield what is tried when no term of the right gradient was found to be missing."""
    yield from _derivative_missing(lab, name, first)


def elementwise(lab: Laboratory, name: str, draw: Draw) -> bool:
    """Return whether the subject is a function of one argument, number by number."""
    floats = [n for n, t in draw.arguments.items() if t.is_floating_point()]
    if floats != [name] or len(draw.dys) != 1 or draw.dys[0].shape != draw.true[name].shape:
        return False
    half = torch.zeros_like(draw.dys[0]).contiguous()
    half.view(-1)[::2] = 1
    apart = lab.true(draw.arguments, [draw.dys[0] * half])[name]
    return error_of(apart, draw.true[name] * half.double()) <= 1e-6


def _reordered(name: str, first: Draw) -> Iterator[Hypothesis]:
    """The right numbers along other axes, or in another order."""
    shape, ndim = first.true[name].shape, first.true[name].ndim
    if ndim > MOST_AXES:
        return
    for axes in permutations(range(ndim)):
        if axes == tuple(range(ndim)):
            continue
        told = "transposed" if ndim == 2 else f"permuted: its axes are {axes} of the right one"

        def permuted(draw: Draw, axes: Sequence[int] = axes) -> Tensor:
            return draw.true[name].permute(*axes)

        def reshaped(draw: Draw, axes: Sequence[int] = axes) -> Tensor:
            return draw.true[name].permute(*axes).reshape(shape)

        yield Hypothesis("transposed", f"it is {told}", permuted)
        yield Hypothesis("transposed", f"it is {told}, then reshaped back", reshaped)
    for axes in _sets(axis for axis, length in enumerate(shape) if length > 1):

        def flipped(draw: Draw, axes: tuple[int, ...] = axes) -> Tensor:
            return draw.true[name].flip(axes)

        yield Hypothesis("reversed", f"its order along {_axes(axes)} is reversed", flipped)
    for axis, length in enumerate(shape):
        if length < 2:
            continue
        for step in (1, -1):

            def rolled(draw: Draw, axis: int = axis, step: int = step) -> Tensor:
                return draw.true[name].roll(step, axis)

            def shifted(draw: Draw, axis: int = axis, step: int = step) -> Tensor:
                moved = draw.true[name].roll(step, axis)
                moved.select(axis, 0 if step > 0 else -1).zero_()
                return moved

            words = f"it is off by one along axis {axis}: every number stands {step:+d} further on"
            yield Hypothesis("off by one", words, rolled)
            yield Hypothesis("off by one", words, shifted)


def _sets(items: Iterable[int]) -> list[tuple[int, ...]]:
    """Return all sets of some of them, the small ones first."""
    every = list(items)
    return [some for count in range(1, len(every) + 1) for some in combinations(every, count)]


def _axes(axes: Sequence[int]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _of_another_argument(name: str, first: Draw) -> Iterator[Hypothesis]:
    for other in first.true:
        if other == name:
            continue

        def as_it_is(draw: Draw, other: str = other) -> Tensor:
            return draw.true[other]

        yield Hypothesis("another argument", f"it is the gradient of {other}", as_it_is)
        if first.true[other].ndim == 2:

            def turned(draw: Draw, other: str = other) -> Tensor:
                return draw.true[other].mT

            words = f"it is the gradient of {other}, transposed"
            yield Hypothesis("another argument", words, turned)


def _of_another_that_is_broadcast(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """Two gradients exchanged, of which autograd sums one to the shape of its argument."""
    shape = first.true[name].shape
    for other in first.true:
        if other == name or first.true[other].shape == shape:
            continue
        if broadcasts(shape, first.true[other].shape):

            def summed(draw: Draw, other: str = other) -> Tensor:
                return draw.true[other].sum_to_size(shape)

            words = f"it is the gradient of {other}, summed to the shape of {name}"
            yield Hypothesis("another argument", words, summed)
        if broadcasts(first.true[other].shape, shape):

            def unsummed(draw: Draw, other: str = other) -> Tensor:
                spread = {**draw.arguments, other: draw.arguments[other].expand(shape).clone()}
                return lab.true(spread, draw.dys)[other]

            words = f"it is the gradient of {other}, before the sum over what is broadcast"
            yield Hypothesis("another argument", words, unsummed)


def _added(name: str, first: Draw) -> Iterator[Hypothesis]:
    """Something that a skip connection or another path adds is missing, or is there too often."""

    def with_term(term: Callable[[Draw], Tensor], sign: int) -> Predict:
        return lambda draw: draw.true[name] + sign * term(draw)

    shape = first.true[name].shape
    for i, dy in enumerate(first.dys):
        if dy.shape != shape:
            continue
        which = "dy" if len(first.dys) == 1 else f"dy of output {i}"
        term = with_term(lambda draw, i=i: draw.dys[i].double(), -1)
        words = f"the term {which} is missing, which a skip connection passes on"
        yield Hypothesis("missing term", words, term, exact=True)
        term = with_term(lambda draw, i=i: draw.dys[i].double(), 1)
        words = f"{which} is added to it once too often"
        yield Hypothesis("extra term", words, term, exact=True)
    for other in first.true:
        if other != name and first.true[other].shape == shape:
            term = with_term(lambda draw, o=other: draw.true[o], 1)
            words = f"the gradient of {other} is added to it"
            yield Hypothesis("extra term", words, term, exact=True)


def _of_jacobian(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """The right ∂y/∂argument itself for its transpose, its diagonal, or dy along another axis."""
    if len(first.dys) != 1 or first.dys[0].numel() > 4 * MOST_PARTS:
        return
    y, shape = first.dys[0].shape, first.true[name].shape
    known: dict[int, Tensor] = {}

    def slopes_of(draw: Draw) -> Tensor:
        if id(draw) not in known:
            known[id(draw)] = jacobian(lab, name, draw)
        return known[id(draw)]

    if y == shape and y.numel() > 1:

        def not_transposed(draw: Draw) -> Tensor:
            return (slopes_of(draw) @ draw.dys[0].double().flatten()).view(shape)

        def diagonal(draw: Draw) -> Tensor:
            return slopes_of(draw).diagonal().view(shape) * draw.dys[0].double()

        words = (
            "dy is multiplied by the Jacobian and not by its transpose: what the forward pass does "
            f"to {name} is done to dy (a matrix not transposed, a sum or a rotation in the same "
            "direction)"
        )
        yield Hypothesis("transposed", words, not_transposed)
        words = (
            "only the diagonal of the Jacobian is used: that a number of "
            f"{name} changes other numbers of y too is left out"
        )
        yield Hypothesis("missing term", words, diagonal, exact=True)
    kept = [length for length in y if length > 1]
    for axes in permutations(range(len(shape)), len(kept)):
        if len(shape) > MOST_AXES or not kept or [shape[axis] for axis in axes] != kept:
            continue
        if len(kept) == len(shape):
            continue  # that would be dy transposed

        def spread(draw: Draw, axes: Sequence[int] = axes) -> Tensor | None:
            slopes = slopes_of(draw)
            if ((slopes != 0).sum(0) > 1).any():
                return None
            order = sorted(range(len(axes)), key=lambda i: axes[i])
            sizes = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
            dy = draw.dys[0].double().reshape(kept).permute(order).reshape(sizes)
            return slopes.sum(0).view(shape) * dy

        words = f"dy is spread over the wrong axis: it is taken to lie along {_axes(sorted(axes))}"
        yield Hypothesis("wrong sum", words, spread)


def _moved_on(tensor: Tensor, step: int, axis: int) -> Tensor:
    return tensor.roll(step, axis) if axis < tensor.ndim else tensor


def _places_off(step: int) -> str:
    return f"one place too {'early' if step > 0 else 'late'}"


def _upstream(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    def with_dys(change: Callable[[Tensor], Tensor]) -> Predict:
        return lambda draw: lab.true(draw.arguments, [change(dy) for dy in draw.dys])[name]

    ignored = "the upstream gradient is ignored, as if dy were 1 everywhere"
    yield Hypothesis("upstream ignored", ignored, with_dys(torch.ones_like))
    twice = "the upstream gradient is used twice, as dy²"
    yield Hypothesis("upstream twice", twice, with_dys(torch.square))
    for lost in range(len(first.dys) if len(first.dys) > 1 else 0):

        def without(draw: Draw, lost: int = lost) -> Tensor:
            dys = [torch.zeros_like(dy) if i == lost else dy for i, dy in enumerate(draw.dys)]
            return lab.true(draw.arguments, dys)[name]

        words = f"the upstream gradient of output {lost} is ignored"
        yield Hypothesis("upstream ignored", words, without)

    for axis in range(first.dys[0].ndim):
        for step in (1, -1):
            predict = with_dys(lambda dy, axis=axis, step=step: _moved_on(dy, step, axis))
            words = f"dy is read {_places_off(step)} along axis {axis}"
            yield Hypothesis("off by one", words, predict)

    def with_offset(draw: Draw) -> Tensor | None:
        nothing = [torch.zeros_like(dy) for dy in draw.dys]
        offset = lab.got(draw.arguments, nothing).get(name)
        if offset is None or not offset.any() or offset.shape != draw.true[name].shape:
            return None
        return draw.true[name] + offset.double()

    words = "a term is added that does not depend on dy; it is there for dy = 0 as well"
    yield Hypothesis("extra term", words, with_offset)


def _upstream_transposed(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    for axis in range(first.dys[0].ndim if first.dys[0].ndim in (2, 3) else 0):

        def turned(dy: Tensor, axis: int = axis) -> Tensor:
            other = (axis + 1) % dy.ndim
            return dy.transpose(axis, other) if dy.shape[axis] == dy.shape[other] else dy

        words = f"dy is taken transposed, axis {axis} for axis {(axis + 1) % first.dys[0].ndim}"

        def predict(draw: Draw, turned: Callable[[Tensor], Tensor] = turned) -> Tensor:
            return lab.true(draw.arguments, [turned(dy) for dy in draw.dys])[name]

        yield Hypothesis("transposed", words, predict)


def _derivative_missing(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    shape = first.arguments[name].shape
    words = "dy is passed on as it is: the derivative of the activation is missing"
    for i, dy in enumerate(first.dys):
        if dy.shape == shape:
            yield Hypothesis(
                "activation derivative missing", words, lambda draw, i=i: draw.dys[i].double()
            )

            def twice(draw: Draw, i: int = i) -> Tensor:
                dys = list(draw.dys)
                dys[i] = draw.true[name].to(dys[i].dtype)
                return lab.true(draw.arguments, dys)[name]

            yield Hypothesis(
                "activation derivative twice", "the derivative is applied twice", twice
            )


def _summed_as_it_is(name: str, first: Draw) -> Iterator[Hypothesis]:
    """A bias before an activation whose derivative is missing."""
    shape = first.true[name].shape
    for i, dy in enumerate(first.dys):
        if dy.shape != shape and broadcasts(shape, dy.shape):
            words = "dy is summed as it is: the derivative of the activation is missing"
            yield Hypothesis(
                "activation derivative missing",
                words,
                lambda draw, i=i: draw.dys[i].double().sum_to_size(shape),
            )


def _other_tensors(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """The right formula with another tensor in the place of an argument."""
    floats = {n: t for n, t in first.arguments.items() if t.is_floating_point()}

    def with_argument(other: str, change: Callable[[Draw], Tensor]) -> Predict:
        def predict(draw: Draw) -> Tensor | None:
            arguments = dict(draw.arguments)
            arguments[other] = change(draw).to(arguments[other].dtype)
            if not _may_hold(lab, name, draw, arguments):
                return None
            return lab.true(arguments, draw.dys).get(name)

        return predict

    for other, tensor in floats.items():
        for i, y in enumerate(first.outputs):
            if y.shape == tensor.shape:
                words = "the derivative is taken at the output y instead of at the input"
                if len(floats) > 1:
                    words = f"the output y is used in the place of {other}"
                change = with_argument(other, lambda draw, i=i: draw.outputs[i])
                yield Hypothesis("activation derivative at y", words, change)
        if 2 <= tensor.ndim <= MOST_AXES:
            for a, b in combinations(range(tensor.ndim), 2):
                if tensor.shape[a] == tensor.shape[b]:
                    words = f"{other} is used transposed, axis {a} for axis {b}"
                    change = with_argument(
                        other, lambda draw, o=other, a=a, b=b: draw.arguments[o].transpose(a, b)
                    )
                    yield Hypothesis("transposed", words, change)
        for axis in range(tensor.ndim if other != name else 0):
            for step in (1, -1):
                words = f"{other} is read {_places_off(step)} along axis {axis}"
                change = with_argument(
                    other,
                    lambda draw, o=other, s=step, a=axis: draw.arguments[o].roll(s, a),
                )
                yield Hypothesis("off by one", words, change)
        if tensor.ndim >= 3:
            axes = (tensor.ndim - 2, tensor.ndim - 1)
            for turned in ((tensor.ndim - 1,), axes):
                words = f"{other} is used reversed along {_axes(turned)}, a kernel not turned round"
                change = with_argument(
                    other, lambda draw, o=other, t=turned: draw.arguments[o].flip(t)
                )
                yield Hypothesis("reversed", words, change)
        if len(floats) > 1:
            words = f"the factor {other} is missing"
            change = with_argument(other, lambda draw, o=other: torch.ones_like(draw.arguments[o]))
            yield Hypothesis("missing factor", words, change)
            if other != name:
                words = f"the part that comes through {other} is missing, as if {other} were 0"
                change = with_argument(
                    other, lambda draw, o=other: torch.zeros_like(draw.arguments[o])
                )
                yield Hypothesis("missing term", words, change, exact=True)
            for third, candidate in floats.items():
                if third != other and candidate.shape == tensor.shape:
                    words = f"{third} is used in the place of {other}"
                    change = with_argument(other, lambda draw, t=third: draw.arguments[t])
                    yield Hypothesis("another tensor", words, change)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):

        def coarse(draw: Draw, dtype: torch.dtype = dtype) -> Tensor | None:
            rounded = {
                n: t.to(dtype).to(t.dtype) if t.is_floating_point() else t
                for n, t in draw.arguments.items()
            }
            if not _may_hold(lab, name, draw, rounded):
                return None
            return lab.true(rounded, draw.dys)[name]

        words = f"it is computed from tensors that were rounded to {kind(dtype)}"
        yield Hypothesis("precision", words, coarse)


def _may_hold(lab: Laboratory, name: str, draw: Draw, arguments: Arguments) -> bool:
    """Return whether a gradient may be a multiple of the right one at these other arguments.

    Slopes along three random directions say so with a dozen forward passes, where the truth by
    differences needs a few for each number.
    """
    if working_dtype(arguments) != torch.float64 or arguments[name].numel() <= 8:
        return True
    ours = draw.ours(name)
    if ours.shape != arguments[name].shape:
        return True
    pairs: list[tuple[float, float]] = []
    for seed in range(3):
        direction = random_like(ours, 60 + seed)
        slope = lab.slope(arguments, draw.dys, name, direction)
        pairs.append(((ours * direction).sum().item(), slope))
    size = max(abs(a) for a, _ in pairs) * max(abs(b) for _, b in pairs)
    if not 0 < size < inf:
        return True
    return all(abs(a * d - b * c) < 1e-3 * size for (a, b), (c, d) in combinations(pairs, 2))


def kind(dtype: torch.dtype) -> str:
    """Return float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


SLOPES: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "σ": (torch.logit, lambda v: v.sigmoid() * (1 - v.sigmoid())),
    "tanh": (torch.atanh, lambda v: 1 - v.tanh() ** 2),
    "softplus": (lambda y: y.expm1().log(), torch.sigmoid),
    "exp": (torch.log, torch.exp),
    "the square": (torch.sqrt, lambda v: 2 * v),
    "ELU": (
        lambda y: torch.where(y > 0, y, y.log1p()),
        lambda v: torch.where(v > 0, torch.ones_like(v), v.exp()),
    ),
}
"""Activation functions that a subject may end with: v from y, and the slope at v."""


def _activations(lab: Laboratory, name: str) -> Iterator[Hypothesis]:
    """An activation at the end of something larger: dy has a wrong slope as a factor."""

    def weighted(weight: Callable[[Tensor], Tensor]) -> Predict:
        def predict(draw: Draw) -> Tensor | None:
            weights = [weight(y.double()) for y in draw.outputs]
            if not all(w.isfinite().all() for w in weights):
                return None
            dys = [(dy * w).to(dy.dtype) for dy, w in zip(draw.dys, weights, strict=True)]
            return lab.true(draw.arguments, dys)[name]

        return predict

    for text, (inverse, slope) in SLOPES.items():
        missing = weighted(lambda y, v=inverse, s=slope: 1 / s(v(y)))
        words = f"the derivative of the activation {text} is missing"
        yield Hypothesis("activation derivative missing", words, missing)
        twice = weighted(lambda y, v=inverse, s=slope: s(v(y)))
        words = f"the derivative of the activation {text} is applied twice"
        if text == "exp":  # its derivative is y, which much else has as a factor
            words = "the factor y is there once too often, as if the derivative of exp came twice"
        yield Hypothesis("activation derivative twice", words, twice)
        at_y = weighted(lambda y, v=inverse, s=slope: s(y) / s(v(y)))
        words = f"the derivative of the activation {text} is taken at y instead of v"
        yield Hypothesis("activation derivative at y", words, at_y)


def _factors(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """One of the tensors is missing as a factor, or is there once too often."""
    shape, up = first.true[name].shape, first.dys[0].shape

    def tensor_of(draw: Draw, z: str) -> Tensor:
        return (draw.outputs[0] if z == "y" else draw.arguments[z]).double()

    candidates = [n for n, t in first.arguments.items() if t.is_floating_point() and n != "y"]
    for z in [*candidates, "y"]:
        of = tensor_of(first, z).shape
        for cause, words, power in (
            ("missing factor", f"the factor {z} is missing", -1),
            ("extra factor", f"the factor {z} is there once too often", 1),
        ):
            if broadcasts(of, shape):

                def outside(draw: Draw, z: str = z, power: int = power) -> Tensor | None:
                    return draw.true[name] * tensor_of(draw, z) ** power

                yield Hypothesis(cause, words, outside)
            if broadcasts(of, up):

                def inside(draw: Draw, z: str = z, power: int = power) -> Tensor | None:
                    weighted = draw.dys[0] * tensor_of(draw, z) ** power
                    dys = [weighted.to(draw.dys[0].dtype), *draw.dys[1:]]
                    return lab.true(draw.arguments, dys)[name]

                yield Hypothesis(cause, words, inside)


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "σ({})": torch.sigmoid,
    "(1 - σ({}))": lambda z: 1 - z.sigmoid(),
    "tanh {}": torch.tanh,
    "exp {}": torch.exp,
    "|{}|": torch.abs,
    "{}²": torch.square,
    "√{}": torch.sqrt,
    "(1 - {})": lambda z: 1 - z,
    "(1 + {})": lambda z: 1 + z,
}
"""Factors that derivatives have."""

IN_TERMS_OF_Y: Mapping[str, Callable[[Tensor], Tensor]] = {
    "σ' = y (1 - y)": lambda y: y * (1 - y),
    "tanh' = 1 - y²": lambda y: 1 - y * y,
    "exp' = y": lambda y: y,
    "√' = 1/(2y)": lambda y: 0.5 / y,
    "softplus' = 1 - exp(-y)": lambda y: 1 - (-y).exp(),
}
"""Derivatives that are known by the output."""


def _functions_as_factors(name: str, first: Draw) -> Iterator[Hypothesis]:
    """A function of one of the tensors is missing as a factor, or is there once too often."""
    shape = first.true[name].shape
    candidates = [n for n, t in first.arguments.items() if t.is_floating_point() and n != "y"]
    for z in [*candidates, "y"]:
        if not broadcasts((first.outputs[0] if z == "y" else first.arguments[z]).shape, shape):
            continue
        for text, function in FUNCTIONS.items():
            for cause, words, power in (
                ("missing factor", f"the factor {text.format(z)} is missing", -1),
                ("extra factor", f"the factor {text.format(z)} is there once too often", 1),
            ):

                def outside(
                    draw: Draw,
                    z: str = z,
                    power: int = power,
                    function: Callable[[Tensor], Tensor] = function,
                ) -> Tensor:
                    tensor = (draw.outputs[0] if z == "y" else draw.arguments[z]).double()
                    return draw.true[name] * function(tensor) ** power

                yield Hypothesis(cause, words, outside)
    if first.outputs[0].shape != shape:
        return
    for formula, slope in IN_TERMS_OF_Y.items():

        def at_input(draw: Draw, slope: Callable[[Tensor], Tensor] = slope) -> Tensor:
            x, y = draw.arguments[name].double(), draw.outputs[0].double()
            return draw.true[name] * slope(x) / slope(y)

        words = f"the derivative {formula} is taken with {name} in the place of the output y"
        yield Hypothesis("activation derivative at x", words, at_input)


def _read_in_place(name: str, first: Draw) -> Iterator[Hypothesis]:
    """A factor that belongs to the place before or after along an axis, as in a recurrence."""
    shape = first.true[name].shape
    tensors = [n for n, t in first.arguments.items() if t.is_floating_point() and n != "y"]
    for z in [*tensors, "y"]:
        if (first.outputs[0] if z == "y" else first.arguments[z]).shape != shape:
            continue
        for axis, step in ((axis, step) for axis in range(len(shape)) for step in (1, -1)):
            if shape[axis] < 3:
                continue

            def moved(draw: Draw, z: str = z, axis: int = axis, step: int = step) -> Tensor:
                tensor = (draw.outputs[0] if z == "y" else draw.arguments[z]).double()
                found = draw.true[name] * tensor / tensor.roll(step, axis)
                end = 0 if step > 0 else -1  # has no neighbour: nothing is known of it
                found.select(axis, end).copy_(draw.ours(name).select(axis, end))
                return found

            words = (
                f"{z} is taken at i where it belongs at i {'-' if step > 0 else '+'} 1, along axis "
                f"{axis}"
            )
            yield Hypothesis("off by one", words, moved, exact=True)


def _products_with_dy(name: str, first: Draw) -> Iterator[Hypothesis]:
    """A tensor as it is in the place of what is made from it, such as x for a normalised x."""
    shape, up = first.true[name].shape, first.dys[0].shape
    if not broadcasts(shape, up):
        return
    for z, tensor in first.arguments.items():
        if z == name or not tensor.is_floating_point() or tensor.shape != up:
            continue

        def product(draw: Draw, z: str = z) -> Tensor:
            return (draw.dys[0].double() * draw.arguments[z].double()).sum_to_size(shape)

        words = (
            f"it is {'dy' if shape == up else 'the sum of dy'} times {z} itself, where something "
            f"else belongs that is made from {z}, such as one that is normalised or activated"
        )
        yield Hypothesis("another tensor", words, product, exact=True)


def broadcasts(small: Sequence[int], large: Sequence[int]) -> bool:
    """Return whether a tensor of the one shape is broadcast to the other, which stays."""
    if len(small) > len(large):
        return False
    tail = large[len(large) - len(small) :]
    return all(s in (1, t) for s, t in zip(small, tail, strict=True))


def parts_of(draw: Draw, axis: int | None) -> Iterator[list[Tensor]]:
    """Yield dys in which only one part of the first output has its upstream gradient.

    A part is an index along an axis, or for None along all leading axes together.
    """
    dy = draw.dys[0]
    rest = [torch.zeros_like(other) for other in draw.dys[1:]]
    if axis is None:
        rows = dy.reshape(-1, dy.shape[-1])
        for i in range(len(rows)):
            part = torch.zeros_like(rows)
            part[i] = rows[i]
            yield [part.view(dy.shape), *rest]
    else:
        for i in range(dy.shape[axis]):
            part = torch.zeros(dy.shape, dtype=dy.dtype, device=dy.device)
            part.select(axis, i).copy_(dy.select(axis, i))
            yield [part, *rest]


def contributions(lab: Laboratory, name: str, draw: Draw, axis: int | None) -> Tensor:
    """Return what each part of the first output adds to the right gradient, (parts, *shape)."""
    parts = [lab.true(draw.arguments, dys)[name] for dys in parts_of(draw, axis)]
    return torch.stack(parts) if parts else draw.true[name].new_zeros(0, *draw.true[name].shape)


def axes_of_parts(dy: Tensor) -> list[int | None]:
    """Return the axes along which an output is cut into parts; None are all leading ones."""
    axes: list[int | None] = [axis for axis in range(dy.ndim) if 1 < dy.shape[axis] <= MOST_PARTS]
    if dy.ndim > 2 and dy.numel() // max(dy.shape[-1], 1) <= MOST_PARTS:
        axes.append(None)
    return axes


def along(axis: int | None) -> str:
    """Return words for an axis of the output."""
    return "all leading axes of y" if axis is None else f"axis {axis} of y"


def _sums(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """A sum over an axis that is not taken, or taken over another axis."""
    if name not in first.got or first.got[name] is None:
        return
    wanted = first.ours(name).shape
    right = first.true[name].shape
    each = {
        axis: cache(partial(contributions, lab, name, axis=axis))
        for axis in axes_of_parts(first.dys[0])
    }
    for axis in each:

        def unsummed(draw: Draw, axis: int | None = axis) -> Tensor | None:
            parts = each[axis](draw)
            if parts.shape == wanted:
                return parts
            return parts.reshape(wanted) if parts.numel() == wanted.numel() else None

        yield Hypothesis("not summed", f"it is not summed over {along(axis)}", unsummed)
    yield from _sums_of_broadcast(lab, name, first, wanted, right)
    for axis in each:
        for other in range(len(right)):

            def over_another(draw: Draw, axis: int | None = axis, other: int = other) -> Tensor:
                return each[axis](draw).sum(other + 1).reshape(wanted)

            parts = first.dys[0].shape[axis] if axis is not None else 0
            if right[other] and parts * (right.numel() // right[other]) == wanted.numel():
                words = f"it is summed over its own axis {other} instead of {along(axis)}"
                yield Hypothesis("wrong sum", words, over_another)


def _sums_of_broadcast(
    lab: Laboratory, name: str, first: Draw, wanted: Sequence[int], right: Sequence[int]
) -> Iterator[Hypothesis]:
    """For an argument that is broadcast: the sums of its contributions over any axes."""
    y = first.dys[0].shape
    if not 1 <= len(y) <= MOST_AXES or first.dys[0].numel() > 4 * MOST_PARTS:
        return
    if first.true[name].numel() >= first.dys[0].numel():
        return

    @cache
    def spread(draw: Draw) -> Tensor | None:
        """Return the contribution of each number of y, if it goes to one number at most."""
        slopes = jacobian(lab, name, draw)
        if ((slopes != 0).sum(1) > 1).any():
            return None
        return (draw.dys[0].double().flatten() * slopes.sum(1)).view(y)

    for count in range(len(y) + 1):
        for axes in combinations(range(len(y)), count):
            kept = [length for axis, length in enumerate(y) if axis not in axes]
            if torch.Size(kept).numel() != torch.Size(wanted).numel():
                continue

            def summed(draw: Draw, axes: tuple[int, ...] = axes) -> Tensor | None:
                each = spread(draw)
                if each is None:
                    return None
                return (each.sum(axes) if axes else each).reshape(wanted)

            over = (
                f"over axes {axes} of y"
                if len(axes) > 1
                else f"over axis {axes[0]} of y"
                if axes
                else ""
            )
            if torch.Size(kept).numel() > torch.Size(right).numel():
                words = "it is not summed over the axes along which the argument is broadcast"
                if axes:
                    words = f"it is summed {over} only, and not over all that are broadcast"
                yield Hypothesis("not summed", words, summed)
            else:
                yield Hypothesis("wrong sum", f"it is summed {over}, which is wrong", summed)


def jacobian(lab: Laboratory, name: str, draw: Draw) -> Tensor:
    """Return the right ∂y/∂argument, (numbers of y, numbers of the argument)."""
    dy = draw.dys[0]
    rest = [torch.zeros_like(other) for other in draw.dys[1:]]
    lines: list[Tensor] = []
    for k in range(dy.numel()):
        unit = torch.zeros(dy.numel(), dtype=dy.dtype, device=dy.device)
        unit[k] = 1
        lines.append(lab.true(draw.arguments, [unit.view(dy.shape), *rest])[name].flatten())
    return torch.stack(lines)


def _last_or_first(lab: Laboratory, name: str, first: Draw) -> Iterator[Hypothesis]:
    """Of the contributions to each number only the last or the first is there."""
    for axis in axes_of_parts(first.dys[0]):
        each = cache(partial(contributions, lab, name, axis=axis))

        def of_the_last(draw: Draw, each: Callable[[Draw], Tensor] = each) -> Tensor:
            return each(draw)[-1]

        words = f"only the last contribution along {along(axis)} is in it"
        words += ": each is assigned where it must be added"
        yield Hypothesis("assigned", words, of_the_last)
        for which, cause in (("last", "assigned"), ("first", "not summed")):

            def only(
                draw: Draw, each: Callable[[Draw], Tensor] = each, which: str = which
            ) -> Tensor:
                parts = each(draw)
                parts = parts.flip(0) if which == "last" else parts
                there = parts != 0
                chosen = there & (there.cumsum(0) == 1)
                return (parts * chosen).sum(0)

            words = f"of the contributions along {along(axis)} only the {which} is in it"
            if which == "last":
                words += ": each is assigned where it must be added"
            else:
                words += ": it is not summed"
            yield Hypothesis(cause, words, only)
