"""Whether a hypothesis gives every number of a gradient, in every draw, up to one factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from manualbp.checks.doctor.hypotheses import Hypothesis
from manualbp.checks.doctor.laboratory import TINY, Draw, error_of, largest_of

COARSE = 1e-5
"""An error that float32 may leave, relative to the largest number."""


@dataclass(frozen=True)
class Fit:
    """A hypothesis that holds, with its factor."""

    hypothesis: Hypothesis
    factor: float
    error: float  # the largest over the draws, relative to the largest number of a draw
    numbers: int  # how many numbers it gives
    draws: int

    @property
    def evidence(self) -> str:
        """Say how well it holds."""
        return (
            f"it then holds for all {self.numbers} numbers of {self.draws} "
            f"{'runs' if self.draws > 1 else 'run'}, to {self.error:.0e} of the largest"
        )


def fit(hypothesis: Hypothesis, name: str, draws: Sequence[Draw], limit: float) -> Fit | None:
    """Return the fit, or None where it does not hold."""
    # The factor is that of the first draw; the others must have it too.
    factor, worst, numbers = 1.0, 0.0, 0
    for i, draw in enumerate(draws):
        try:
            predicted = hypothesis.predict(draw)
        except (RuntimeError, ValueError, IndexError):
            return None  # the truth cannot be asked for what the hypothesis needs
        ours = draw.ours(name)
        if predicted is None or predicted.shape != ours.shape or not predicted.isfinite().all():
            return None
        if i == 0:
            square = (predicted * predicted).sum().item()
            if square == 0:
                return None
            factor = (ours * predicted).sum().item() / square
            factor = 1.0 if abs(factor - 1) <= limit else factor
            factor = -1.0 if abs(factor + 1) <= limit else factor
            if abs(factor) < 1e-9:
                return None
        numbers += ours.numel()
        worst = max(worst, error_of(ours, factor * predicted))
        if worst > limit:
            return None
    if numbers < 2:
        return None  # a factor can always be found for a single number
    return Fit(hypothesis, factor, worst, numbers, len(draws))


@dataclass(frozen=True)
class Term:
    """A term that is missing, or wrong: so much of `what` for each place along other axes."""

    axes: tuple[int, ...]
    what: str
    share: float  # its largest number over the gradient's
    error: float
    surplus: int  # how many numbers it gives beyond those that it is fitted to


def missing_term(name: str, draws: Sequence[Draw], limit: float) -> Term | None:
    """Return how the gradient differs from the truth, if that is one term along some axes.

    truth - gradient = a w, with w as in `_shapes_of_terms` and one a for all places along the axes.
    """
    ndim = draws[0].true[name].ndim
    if ndim > 4:
        return None
    sets = [axes for count in range(1, ndim + 1) for axes in combinations(range(ndim), count)]
    for axes in sets:
        for what in _terms(name, draws[0], axes):
            terms = [_term(name, draw, axes, what, limit) for draw in draws]
            found = [term for term in terms if term is not None]
            # Where a place has one number that is wrong, any term fits.
            if len(found) == len(draws) and sum(t.surplus for t in found) >= 3:
                return max(found, key=lambda term: term.error)
    return None


def _terms(name: str, draw: Draw, axes: tuple[int, ...]) -> dict[str, list[Tensor]]:
    """Return what terms along axes are made of in the derivatives that are known.

    Softmax has y Σ dy y; the normalisations have a mean and x̂ times a mean; log-softmax has
    softmax(x) Σ dy.
    """
    x = draw.arguments[name].double()
    found: dict[str, list[Tensor]] = {"constant": [torch.ones_like(x)]}
    for y in draw.outputs:
        if y.shape == x.shape:
            found["proportional to the output y"] = [y.double()]
    found["proportional to the input itself"] = [x]
    found["proportional to the input less its mean"] = [x - x.mean(axes, keepdim=True)]
    exps = (x - x.amax(axes, keepdim=True)).exp()
    found["proportional to the softmax of the input"] = [exps / exps.sum(axes, keepdim=True)]
    found["a constant and a multiple of the input"] = [torch.ones_like(x), x]
    return found


def _term(name: str, draw: Draw, axes: tuple[int, ...], what: str, limit: float) -> Term | None:
    right, ours = draw.true[name], draw.ours(name)
    basis = _terms(name, draw, axes).get(what)
    if basis is None:
        return None
    group = torch.Size([right.shape[axis] for axis in axes]).numel()
    missing, scale = right - ours, max(largest_of(right), largest_of(ours))
    if group <= len(basis) or scale <= TINY or largest_of(missing) <= limit * scale:
        return None
    if largest_of(_without(right, basis, axes)) <= limit * scale:
        return None  # the whole gradient is of this kind: that a part is missing says nothing
    error = largest_of(_without(missing, basis, axes)) / scale
    if error > limit:
        return None
    wrong = missing.abs() > limit * scale
    surplus = int(wrong.sum()) - len(basis) * int(wrong.sum(axes).count_nonzero())
    return Term(axes, what, largest_of(missing) / scale, error, surplus)


def _without(tensor: Tensor, basis: Sequence[Tensor], axes: tuple[int, ...]) -> Tensor:
    """Return what is left of a tensor when its share of each of the basis is taken away."""
    done: list[Tensor] = []
    for direction in basis:
        for earlier in done:
            direction = direction - _share(direction, earlier, axes)
        done.append(direction)
        tensor = tensor - _share(tensor, direction, axes)
    return tensor


def _share(tensor: Tensor, direction: Tensor, axes: tuple[int, ...]) -> Tensor:
    square = (direction * direction).sum(axes, keepdim=True)
    product = (tensor * direction).sum(axes, keepdim=True)
    return direction * torch.where(square > 0, product / square, 0.0)


def term_along_another_axis(name: str, draws: Sequence[Draw], limit: float) -> Term | None:
    """Return a term w (a[n] - b[k]): one along an axis is wrong, and one along another too many."""
    for what in _terms(name, draws[0], (0,)):
        if what.startswith("a constant and"):
            continue
        terms = [_crossed(name, draw, what, limit) for draw in draws]
        if all(term is not None for term in terms):
            return max((term for term in terms if term is not None), key=lambda t: t.error)
    return None


def _crossed(name: str, draw: Draw, what: str, limit: float) -> Term | None:
    right, ours = draw.true[name], draw.ours(name)
    basis = _terms(name, draw, (0,)).get(what)
    if right.ndim != 2 or min(right.shape) < 3 or basis is None or not basis[0].all():
        return None
    scale = max(largest_of(right), largest_of(ours))
    weighted = (right - ours) / basis[0]
    left = weighted - weighted.mean(0, keepdim=True)
    left = (left - left.mean(1, keepdim=True)) * basis[0]
    if scale <= TINY or largest_of(left) > limit * scale:
        return None
    surplus = right.numel() - sum(right.shape)
    return Term((0, 1), what, largest_of(right - ours) / scale, largest_of(left) / scale, surplus)
