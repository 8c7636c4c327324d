"""Which numbers of a gradient are wrong, and what is known about the places where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from manualbp.checks.doctor.hypotheses import MOST_PARTS, parts_of
from manualbp.checks.doctor.laboratory import Draw, Laboratory, largest_of


@dataclass(frozen=True)
class Pattern:
    """A cause, the places in words, and what stands there."""

    cause: str
    words: str
    evidence: str


def wrong_places(draw: Draw, name: str, limit: float) -> Tensor:
    """Return True where the gradient is wrong by more than the limit times the largest number."""
    ours, right = draw.ours(name), draw.true[name]
    bad = (ours - right).abs() > limit * max(largest_of(right), 1e-13)
    return (bad | ~ours.isfinite()) & right.isfinite()


def pattern(name: str, draws: Sequence[Draw], limit: float) -> Pattern | None:
    """Return where a gradient is wrong, if it is right in the other places."""
    masks = [wrong_places(draw, name, limit) for draw in draws]
    failing = [(draw, mask) for draw, mask in zip(draws, masks, strict=True) if mask.any()]
    if not failing or all(mask.all() for _, mask in failing):
        return None
    draw, mask = failing[0]
    numbers = f"{int(mask.sum())} of {mask.numel()} numbers are wrong"
    relation = _relation(draw, name, mask)
    for words, cause in _special(name, failing):
        return Pattern(cause, f"it is wrong {words}", f"{numbers}, all there; {relation}")
    union = torch.stack([m for _, m in failing]).any(0)
    if union.all():  # in one run or another every number is wrong
        told = {_relation(draw, name, mask) for draw, mask in failing}
        if len(told) == 1 and all("times the right" in text for text in told):
            return Pattern("certain elements", f"in some places alone {relation}", numbers)
        return None
    for words in _places(union):
        if words.endswith(ON_IT) and "at worst" in relation:
            words += ", as where a matrix is transposed before its triangle is taken"
        return Pattern("certain elements", f"it is wrong {words}; {relation}", numbers)
    return None


def _special(name: str, failing: Sequence[tuple[Draw, Tensor]]) -> list[tuple[str, str]]:
    """Return what the values have in common where the gradient is wrong, with the cause."""
    found: list[tuple[str, str]] = []
    first, mask = failing[0]
    shape = mask.shape
    tensors = {n: t for n, t in first.arguments.items() if t.shape == shape}
    for other, tensor in tensors.items():
        values = tensor[mask]
        value = values.flatten()[0]
        # One value that stands nowhere else is a kink or a tie only if it is no chance number.
        # Where the right gradient is zero besides, a wrong formula may give it by accident.
        told = ~mask & (first.true[name] != 0)
        common = bool((values == value).all()) and not bool((tensor[told] == value).any())
        if common and (int(mask.sum()) > 1 or value.item() == round(value.item())):
            why = "at a kink"
            if _undone(first, name, mask):
                why = f"at a kink, or where it is divided by {other}"
            found.append((f"only where {other} = {value.item():g}, {why}", "kinks"))
    for other, tensor in tensors.items():
        for axis in range(tensor.ndim):
            if mask.any() and bool((_ties(tensor, axis) | ~mask).all()):
                found.append((f"only where {other} has ties along axis {axis}", "ties"))
    if all(bool((d.true[name][m] == 0).all()) for d, m in failing) and all(
        bool((d.true[name][~m] != 0).all()) for d, m in failing
    ):
        words = "only where the right gradient is zero: masked or inactive places"
        found.append((words, "masked positions"))
    candidates = [(n, [d.arguments[n] for d, _ in failing]) for n in tensors]
    if all(d.outputs[0].shape == shape for d, _ in failing):
        candidates.append(("y", [d.outputs[0] for d, _ in failing]))
    candidates += [*_distances(failing, list(tensors))]
    moving = not all(torch.equal(m, mask) for _, m in failing)
    for other, values in candidates:
        # A number between the two groups, in all draws together.
        bad = torch.cat([v[m] for v, (_, m) in zip(values, failing, strict=True)])
        good = torch.cat([v[~m] for v, (_, m) in zip(values, failing, strict=True)])
        few = min(len(bad), len(good))
        # Of so few the places must change from run to run: one place has some value anyway.
        chance = comb(len(bad) + len(good), few)
        if (few < 4 and (chance < 5000 or not moving)) or not bad.is_floating_point():
            continue
        if bad.max() < good.min():
            between = f"{bad.max().item():.3g} and {good.min().item():.3g}"
            found.append(
                (f"only where {other} lies below a bound, between {between}", "one branch")
            )
        elif bad.min() > good.max():
            between = f"{good.max().item():.3g} and {bad.min().item():.3g}"
            found.append(
                (f"only where {other} lies above a bound, between {between}", "one branch")
            )
    return found


def _undone(draw: Draw, name: str, mask: Tensor) -> bool:
    """Return whether a gradient has zero or no number where it is wrong."""
    ours = draw.ours(name)[mask]
    return bool(((ours == 0) | ~ours.isfinite()).all())


def _distances(
    failing: Sequence[tuple[Draw, Tensor]], names: Sequence[str]
) -> list[tuple[str, list[Tensor]]]:
    """Return the sizes and the differences of arguments, by which functions have branches."""
    found = [(f"|{n}|", [d.arguments[n].abs() for d, _ in failing]) for n in names]
    for a, b in combinations(names, 2):
        apart = [d.arguments[a] - d.arguments[b] for d, _ in failing]
        found += [(f"{a} - {b}", apart), (f"|{a} - {b}|", [t.abs() for t in apart])]
    return found


def _ties(tensor: Tensor, axis: int) -> Tensor:
    """Return True where the largest number along the axis stands, and stands more than once."""
    largest = tensor == tensor.amax(axis, keepdim=True)
    return largest & (largest.sum(axis, keepdim=True) > 1)


def _places(mask: Tensor) -> list[str]:
    """Return words for the places: indices along an axis, a block at the end, single numbers."""
    beside = _beside_a_diagonal(mask)
    if beside:
        return [beside]
    found: list[str] = []
    for axis in range(mask.ndim):
        others = [a for a in range(mask.ndim) if a != axis]
        wrong = mask.any(others) if others else mask
        if not wrong.all():
            found.append(f"only {indices(wrong)} along axis {axis}")
    count = int(mask.sum())
    if found and count > 1:
        return [" and ".join(found)]
    if count <= 3:
        return [f"only at {_listed(mask)}"]
    if found:
        return found
    # A block at the end of several axes: everything before it is right.
    right = ~mask
    ends: list[int] = []
    for axis in range(mask.ndim):
        others = [a for a in range(mask.ndim) if a != axis]
        full = mask.all(others) if others else mask
        ends.append(int((~full).sum()))
        if not bool(full[ends[-1] :].all()):
            return [] if count > mask.numel() // 2 else [_scattered(mask)]
    inner = right
    for axis, end in enumerate(ends):
        inner = inner.narrow(axis, 0, end)
    if inner.numel() == int(right.sum()) and inner.all():
        return [
            f"only in the last partial blocks: beyond {ends}, where the shape is {list(mask.shape)}"
        ]
    return [] if count > mask.numel() // 2 else [_scattered(mask)]


ON_IT = ", and right on it"


def _beside_a_diagonal(mask: Tensor) -> str:
    """Say on which side of the diagonal of a square matrix all wrong numbers stand; "" if not so.

    Nearly all on the side, since a few places may stand there by chance.
    """
    if mask.ndim < 2 or mask.shape[-1] != mask.shape[-2] or mask.shape[-1] < 3:
        return ""
    square = torch.ones_like(mask)
    sides = {"below": square.tril(-1), "above": square.triu(1)}
    sides["beside"] = sides["below"] | sides["above"]
    for where, side in sides.items():
        if not bool((mask & ~side).any()) and int(mask.sum()) > 0.9 * int(side.sum()):
            return f"only {where} the diagonal{ON_IT}"
    return ""


def _scattered(mask: Tensor) -> str:
    return f"only in {int(mask.sum())} of {mask.numel()} places, such as {_listed(mask)}"


def _listed(mask: Tensor) -> str:
    """Return the first three places: "[0, 1], [2, 2]"."""
    return ", ".join(str([int(i) for i in place]) for place in mask.nonzero()[:3])


def indices(wrong: Tensor) -> str:
    """Say which indices are True: "the last 2 of 5", "every second index", "index 3"."""
    places = [int(i) for i in wrong.nonzero().flatten()]
    n, count = len(wrong), len(places)
    if places == list(range(n - count, n)):
        return f"the last {count} of {n} indices" if count > 1 else f"the last of {n} indices"
    if places == list(range(count)):
        return f"the first {count} of {n} indices" if count > 1 else f"the first of {n} indices"
    if count > 2 and places == list(range(places[0], n, 2)):
        return f"every second index from {places[0]} on"
    return f"{'indices' if count > 1 else 'index'} {', '.join(map(str, places))} of {n}"


def _relation(draw: Draw, name: str, mask: Tensor) -> str:
    """Say what stands in the wrong places."""
    return relation(draw.ours(name)[mask], draw.true[name][mask])


def relation(ours: Tensor, right: Tensor) -> str:
    """Say what the wrong numbers are to the right ones."""
    if not ours.isfinite().all():
        return "there it is not finite"
    if not ours.any():
        return "there it is zero"
    square = (right * right).sum().item()
    if square and ours.numel() > 1:
        factor = (ours * right).sum().item() / square
        if largest_of(ours - factor * right) <= 1e-8 * largest_of(ours):
            return f"there it is {factor:.6g} times the right gradient"
    worst = int((ours - right).abs().argmax())
    return f"at worst it is {ours[worst].item():.6g} where {right[worst].item():.6g} is right"


@dataclass(frozen=True)
class WrongParts:
    """Which parts of an output contribute wrongly to a gradient."""

    words: str
    evidence: str


def wrong_parts(
    lab: Laboratory, name: str, draw: Draw, limit: float, axis: int
) -> WrongParts | None:
    """Return which indices along an axis of y contribute wrongly, if others contribute rightly."""
    if not 1 < draw.dys[0].shape[axis] <= MOST_PARTS:
        return None
    bad: list[bool] = []
    wrong: list[tuple[Tensor, Tensor]] = []
    for dys in parts_of(draw, axis):
        one, expected = lab.got(draw.arguments, dys).get(name), lab.true(draw.arguments, dys)[name]
        if one is None or one.shape != expected.shape:
            return None
        bad.append(largest_of(one.double() - expected) > limit * largest_of(draw.true[name]))
        if bad[-1]:
            wrong.append((one.double(), expected))
    if not any(bad) or all(bad):
        return None
    ours, right = (torch.stack(tensors).flatten() for tensors in zip(*wrong, strict=True))
    told = relation(ours, right).replace("there it is", "their contribution is")
    where = indices(torch.tensor(bad))
    words = f"only what comes from {where} along axis {axis} of y is wrong; {told}"
    return WrongParts(words, f"{sum(bad)} of {len(bad)} contributions are wrong")


@dataclass(frozen=True)
class WrongLinks:
    """Which numbers of the output reach which numbers of an argument's gradient, wrongly."""

    cause: str
    words: str
    evidence: str


NOT_RECOGNISED = "not recognised"
"""The cause of what has no name."""

MOST_LINKS = 200_000
"""The whole Jacobian of the backward pass is worked out up to so many numbers."""


def wrong_links(lab: Laboratory, name: str, draw: Draw, limit: float) -> WrongLinks | None:
    """Compare the whole Jacobian that the backward pass uses with the right one, link by link.

    A link is a number of y and a number of the argument. Some may be there that are masked in
    truth, some missing; or all are where they belong, one by one, and the slopes are wrong.
    """
    dy = draw.dys[0]
    if len(draw.dys) != 1 or not dy.numel() or dy.numel() > MOST_PARTS * 4:
        return None
    if dy.numel() == 1:
        return _wrong_slopes_of_a_sum(lab, name, draw, limit)
    if dy.numel() * draw.true[name].numel() > MOST_LINKS:
        return None
    ours: list[Tensor] = []
    right: list[Tensor] = []
    for k in range(dy.numel()):
        unit = torch.zeros(dy.numel(), dtype=dy.dtype, device=dy.device)
        unit[k] = 1
        got = lab.got(draw.arguments, [unit.view(dy.shape)]).get(name)
        if got is None or got.shape != draw.true[name].shape or not got.isfinite().all():
            return None
        ours.append(got.double().flatten())
        right.append(lab.true(draw.arguments, [unit.view(dy.shape)])[name].flatten())
    g, j = torch.stack(ours), torch.stack(right)
    together = dy.double().flatten() @ g
    scale = max(largest_of(j), largest_of(g))
    if largest_of(together - draw.ours(name).flatten()) > 1e-6 * max(largest_of(together), scale):
        return None  # it is not linear in dy, so it has no Jacobian
    small = max(limit, 1e-9) * scale
    there, belongs = g.abs() > small, j.abs() > small
    too_many, lost = there & ~belongs, belongs & ~there
    same = (g - j).abs() <= small
    x = draw.true[name].shape
    if lost.any() and bool((same | lost).all()) and not bool((lost.sum(0) == belongs.sum(0)).all()):
        where = _order(lost, dy.shape, x)
        if not where:
            return None  # the places say more
        words = f"what reaches {name} from {where} numbers of y is left out"
        return WrongLinks("missing term", words, _count(lost, belongs, "right links are missing"))
    where = _order(too_many, dy.shape, x)
    through = f"it lets {where} numbers of y through, which do not depend on {name} there"
    one_way = bool(where) and _free(belongs, dy.shape, x, where)
    if one_way and _right_where_open(too_many, belongs, same):
        words = f"{through}: a mask (a causal one) of the forward pass is missing in it"
        return WrongLinks("masked positions", words, _count(too_many, ~belongs, "links are there"))
    astray = _astray(name, g.view(*dy.shape, *x), j.view(*dy.shape, *x), dy.ndim, small)
    if astray is not None:
        return astray
    if one_way and _free(there, dy.shape, x, _opposite(where)):
        words = (
            f"it is made from {where} numbers of y where {_opposite(where).split()[0]} ones belong:"
            " what the forward pass does is done to dy in the same direction (a matrix not "
            "transposed, a sum or a recurrence that does not run backwards)"
        )
        evidence = _count(there & belongs, belongs, "right links are there, with ")
        return WrongLinks("transposed", words, f"{evidence}{int(too_many.sum())} wrong ones")
    alone = bool((belongs.sum(0) <= 1).all() and (there.sum(0) <= 1).all())
    if not alone and dy.shape == x:
        off = ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        if bool(same[off].all()) and bool((belongs & off).any()):
            words = (
                "a term is missing or wrong that multiplies dy number by number, as a skip "
                "connection or a gate has; what goes from one number to another is right"
            )
            evidence = (
                f"of the Jacobian only {int((~same).sum())} of {len(same)} numbers on the diagonal "
                f"are wrong, and none of {int(off.sum())} beside it"
            )
            return WrongLinks("missing term", words, evidence)
    if alone and not too_many.any() and dy.shape == x:
        return _wrong_slopes(draw, name, g.sum(0), j.sum(0), same.all(0))
    if one_way and not same[belongs].all():
        words = f"{through}, and the links that belong there are wrong as well"
        return WrongLinks(NOT_RECOGNISED, words, _count(too_many, ~belongs, "links are there"))
    return None


def _astray(name: str, ours: Tensor, right: Tensor, ndim: int, small: float) -> WrongLinks | None:
    """Return that what comes from an index of y goes to another index of the argument, unchanged.

    Both are Jacobians with the `ndim` axes of y before those of the argument. Numbers that fall off
    the end of an axis are lost; for them some parts at the ends may differ.
    """
    for a in range(ndim):
        for b in range(ndim, right.ndim):
            g, j = (t.movedim(a, 0).movedim(b, 1).flatten(2) for t in (ours, right))
            parts, length = g.shape[:2]
            if not (1 < parts <= MOST_PARTS and 1 < length <= MOST_PARTS and g.shape[2] > 1):
                continue
            steps: list[int | None] = []
            for mine, its in zip(g, j, strict=True):
                steps.append(_step(mine, its, small))
                if steps.count(None) > parts // 4:
                    break  # it is something else
            known = [step for step in steps if step is not None]
            if len(steps) < parts or not any(known) or parts - len(known) > parts // 4:
                continue
            count = f"it holds for {len(known)} of {parts} indices of y, all numbers of each"
            if len(set(known)) == 1:
                words = (
                    f"what comes from an index along axis {a} of y stands {known[0]:+d} further on "
                    f"along axis {b - ndim} of {name} than it belongs: off by so many"
                )
                return WrongLinks("off by one", words, count)
            told: list[str] = []
            for i, step in enumerate(steps):
                if step:
                    first = int((j[i].abs() > small).any(1).nonzero()[0])
                    told.append(f"index {i} goes to {first + step} and not to {first}")
            words = (
                f"what comes from an index along axis {a} of y goes to the wrong index along axis "
                f"{b - ndim} of {name}: {', '.join(told[:3])}"
            )
            return WrongLinks("permuted", words, count)
    return None


def _step(ours: Tensor, right: Tensor, small: float) -> int | None:
    """Return by how many indices of the first axis the one is the other, moved on; else None."""
    if not (right.abs() > small).any():
        return None
    length = len(right)
    for step in sorted(range(1 - length, length), key=abs):
        moved = torch.zeros_like(right)
        if step >= 0:
            moved[step:] = right[: length - step]
        else:
            moved[:step] = right[-step:]
        if (moved.abs() > small).any() and largest_of(moved - ours) <= small:
            return step
    return None


def _count(chosen: Tensor, of: Tensor, words: str) -> str:
    return f"{int(chosen.sum())} of {int(of.sum())} {words}"


def _indices_along(shape: Sequence[int], axis: int) -> Tensor:
    count = torch.Size(shape).numel()
    return (
        torch.arange(count)
        .reshape(tuple(shape))
        .div(torch.Size(shape[axis + 1 :]).numel(), rounding_mode="floor")
        .remainder(shape[axis])
        .flatten()
    )


def _order(links: Tensor, y: Sequence[int], x: Sequence[int]) -> str:
    """Return "earlier" or "later" with the axis, if all links go so along axes of one length."""
    if not links.any():
        return ""
    rows, columns = links.nonzero(as_tuple=True)
    for a in range(len(y)):
        for b in range(len(x)):
            if y[a] != x[b] or y[a] < 2:
                continue
            apart = _indices_along(y, a)[rows.cpu()] - _indices_along(x, b)[columns.cpu()]
            text = f"(along axis {a} of y)"
            if bool((apart < 0).all()):
                return f"earlier {text}"
            if bool((apart > 0).all()):
                return f"later {text}"
    return ""


def _free(belongs: Tensor, y: Sequence[int], x: Sequence[int], where: str) -> bool:
    """Return whether no link that belongs there goes the way of the wrong ones."""
    opposite = _order(belongs & ~_diagonal(belongs, y, x, where), y, x)
    return bool(opposite) and opposite.split()[0] != where.split()[0]


def _opposite(where: str) -> str:
    if where.startswith("earlier"):
        return where.replace("earlier", "later")
    return where.replace("later", "earlier")


def _right_where_open(too_many: Tensor, belongs: Tensor, same: Tensor) -> bool:
    """Return whether what comes from those numbers of y is right from which nothing is masked.

    So it is if a mask alone is missing. If they are wrong as well, it is no mask, or not alone.
    """
    open_rows = ~too_many.any(1) & belongs.any(1)
    return bool(open_rows.any()) and bool(same[open_rows].all())


def _diagonal(belongs: Tensor, y: Sequence[int], x: Sequence[int], where: str) -> Tensor:
    axis = int(where.split("axis ")[1].split()[0])
    of_y = _indices_along(y, axis)
    for b in range(len(x)):
        if x[b] == y[axis]:
            equal = of_y[:, None] == _indices_along(x, b)[None, :]
            if bool((belongs.cpu() & ~equal).any()):
                return equal.to(belongs.device)
    return torch.zeros_like(belongs)


def _wrong_slopes_of_a_sum(
    lab: Laboratory, name: str, draw: Draw, limit: float
) -> WrongLinks | None:
    """The same for one output that is a sum, where a slope hangs on one number of the argument."""
    half = (torch.arange(draw.true[name].numel()) % 2 == 0).view(draw.true[name].shape)
    half = half.to(draw.true[name].device)
    moved = dict(draw.arguments)
    moved[name] = torch.where(half, moved[name], moved[name] * 0.8)
    ours, right = lab.got(moved, draw.dys).get(name), lab.true(moved, draw.dys)[name]
    if ours is None or half.numel() < 4 or not draw.dys[0].any():
        return None
    for now, before in ((ours.double(), draw.ours(name)), (right, draw.true[name])):
        if largest_of((now - before)[half]) > 1e-6 * largest_of(before):
            return None
        if not largest_of((now - before)[~half]) > 1e-3 * largest_of(before):
            return None
    dy = draw.dys[0].double().sum()
    same = (draw.ours(name) - draw.true[name]).abs() <= limit * largest_of(draw.true[name])
    slopes = (draw.ours(name) / dy).flatten(), (draw.true[name] / dy).flatten()
    return _wrong_slopes(draw, name, *slopes, same.flatten())


def _wrong_slopes(
    draw: Draw, name: str, ours: Tensor, right: Tensor, same: Tensor
) -> WrongLinks | None:
    """Return that only the formula of a derivative, number by number, is wrong."""
    values = draw.arguments[name].double().flatten()
    order = [int(i) for i in values.argsort()]
    chosen = [order[0], order[len(order) // 2], order[-1]]
    told = "; ".join(
        f"{ours[i].item():.4g} at {name} = {values[i].item():.4g}, where {right[i].item():.4g} is"
        " right"
        for i in dict.fromkeys(chosen)
    )
    words = (
        "the derivative itself is, number by number: its formula, such as a term of a product or "
        "a factor of a chain"
    )
    evidence = (
        f"each number of {name} changes one number of y, and gets its dy alone, as it should; "
        f"the slopes are {told}"
    )
    if same.double().mean() > 0.5:
        return None  # in some places only, which says more
    return WrongLinks("wrong derivative", words, evidence)
