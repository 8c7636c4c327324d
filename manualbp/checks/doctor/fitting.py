"""Whether a hypothesis gives every number of a gradient, in every draw, up to one factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from manualbp.checks.doctor.hypotheses import Hypothesis, axes_of_parts, contributions
from manualbp.checks.doctor.laboratory import TINY, Draw, Laboratory, error_of, largest_of

COARSE = 1e-5
"""An error that float32 may leave, relative to the largest number."""

PART = 0.05
"""A term explains an error if it leaves less than this of it."""


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
            if hypothesis.exact and factor != 1:
                return None
            if abs(factor) < 1e-9:
                return None
        numbers += ours.numel()
        worst = max(worst, error_of(ours, factor * predicted))
        if worst > limit:
            return None
    if numbers < 2:
        return None  # a factor can always be found for a single number
    return Fit(hypothesis, factor, worst, numbers, len(draws))


def in_other_places(name: str, draws: Sequence[Draw], limit: float) -> bool:
    """Return whether a gradient has all the right numbers, some of them in wrong places."""
    for draw in draws:
        ours, right = draw.ours(name), draw.true[name]
        if ours.shape != right.shape or ours.numel() < 4:
            return False
        if error_of(ours.flatten().sort().values, right.flatten().sort().values) > limit:
            return False
    return True


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
        bases = [_terms(name, draw, axes) for draw in draws]
        for what in bases[0]:
            found: list[Term] = []
            for draw, basis in zip(draws, bases, strict=True):
                term = _term(name, draw, axes, what, basis.get(what), limit)
                if term is None:
                    break  # it must hold in every draw
                found.append(term)
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
    if torch.Size([x.shape[axis] for axis in axes]).numel() > 2:  # of two it is any ±a
        found["proportional to the input less its mean"] = [x - x.mean(axes, keepdim=True)]
    exps = (x - x.amax(axes, keepdim=True)).exp()
    softmax = exps / exps.sum(axes, keepdim=True)
    found["proportional to the softmax of the input"] = [softmax]
    found["a constant and a multiple of the input"] = [torch.ones_like(x), x]
    if x.ndim and torch.Size([x.shape[axis] for axis in axes]).numel() > 2:
        for what in ("proportional to the output y", "proportional to the input itself"):
            if what in found:
                words = "where one to the softmax of the input belongs, or the other way round,"
                found[f"{what} {words}"] = [found[what][0] - softmax]
    return found


def _term(
    name: str,
    draw: Draw,
    axes: tuple[int, ...],
    what: str,
    basis: Sequence[Tensor] | None,
    limit: float,
) -> Term | None:
    right, ours = draw.true[name], draw.ours(name)
    if basis is None:
        return None
    group = torch.Size([right.shape[axis] for axis in axes]).numel()
    missing, scale = right - ours, max(largest_of(right), largest_of(ours))
    if group <= len(basis) or scale <= TINY or largest_of(missing) <= limit * scale:
        return None
    error = largest_of(_without(missing, basis, axes)) / scale
    if error > limit or error * scale > PART * largest_of(missing):
        return None
    if largest_of(_without(right, basis, axes)) <= limit * scale:
        return None  # the whole gradient is of this kind: that a part is missing says nothing
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
    if largest_of(left) > PART * largest_of(right - ours):
        return None  # what is left is no smaller than what is explained: rounding, for example
    surplus = right.numel() - sum(right.shape)
    return Term((0, 1), what, largest_of(right - ours) / scale, largest_of(left) / scale, surplus)


def scaled_statistics(name: str, draws: Sequence[Draw], limit: float) -> Term | None:
    """Return that the gradient is a truth + b (x - mean), with a and b for each group along axes.

    So it is where a normalisation divides by another standard deviation than its forward pass.
    `share` is the mean of a. Where b is 0 everywhere it is a factor for each group.
    """
    ndim = draws[0].true[name].ndim
    if ndim > 4:
        return None
    for axes in [some for count in range(ndim, 0, -1) for some in combinations(range(ndim), count)]:
        for what in ("a factor of its own for each index", "another standard deviation"):
            terms = [_scaled(name, draw, axes, what, limit) for draw in draws]
            found = [term for term in terms if term is not None]
            if len(found) == len(draws) and sum(t.surplus for t in found) >= 6:
                return max(found, key=lambda term: term.error)
    return None


def _scaled(name: str, draw: Draw, axes: tuple[int, ...], what: str, limit: float) -> Term | None:
    right, ours = draw.true[name], draw.ours(name)
    x = draw.arguments[name].double()
    basis = [right]
    if what == "another standard deviation":
        basis.append(x - x.mean(axes, keepdim=True))
    group = torch.Size([right.shape[axis] for axis in axes]).numel()
    groups = right.numel() // max(group, 1)
    scale = max(largest_of(right), largest_of(ours))
    if group < len(basis) + 2 or (groups < 2 and len(basis) == 1) or scale <= TINY:
        return None
    error = largest_of(_without(ours, basis, axes)) / scale
    if error > limit:
        return None
    square = (right * right).sum(axes)
    if (square == 0).any():
        return None
    own = right
    for direction in basis[1:]:
        own = own - _share(own, direction, axes)  # what the truth has in common with no other
    factors = (ours * own).sum(axes) / (own * own).sum(axes).clamp_min(TINY**2)
    if ((factors - 1).abs() <= 10 * limit).any():
        return None  # some are right: the places say more
    surplus = right.numel() - len(basis) * groups
    return Term(axes, what, factors.mean().item(), error, surplus)


@dataclass(frozen=True)
class Weights:
    """A factor for what each index along an axis of y adds to a gradient."""

    axis: int | None
    factors: Tensor
    error: float


def weighted_parts(
    lab: Laboratory, name: str, draws: Sequence[Draw], limit: float
) -> Weights | None:
    """Return the factors with which the parts of y come into a gradient, if they give all of it.

    The draws differ in dy alone, so that the factors are the same in all of them.
    """
    for axis in axes_of_parts(draws[0].dys[0]):
        parts = torch.cat([contributions(lab, name, d, axis).flatten(1) for d in draws], 1).T
        ours = torch.cat([d.ours(name).flatten() for d in draws])
        if parts.shape[0] < parts.shape[1] + 4:
            continue
        factors = torch.pinverse(parts) @ ours
        error = largest_of(parts @ factors - ours) / max(largest_of(ours), TINY)
        if error <= limit:
            return Weights(axis, factors, error)
    return None
