"""Causes that lie in how a pass behaves and not in its formula: what it keeps, changes or draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from manualbp.checks.contract import Watch
from manualbp.checks.doctor.laboratory import (
    SEED,
    Draw,
    Laboratory,
    copies,
    copy_of,
    error_of,
    fixed_chance,
    other_arguments,
    random_like,
)
from manualbp.checks.doctor.subject import AccumulatingPass, Diagnosis, Gradients

Limits = Mapping[str, float]


def in_place_changes(lab: Laboratory, draw: Draw) -> list[Diagnosis]:
    """Arguments and upstream gradients belong to the caller."""
    arguments, dys = copies(draw.arguments), [copy_of(dy) for dy in draw.dys]
    watch = Watch(arguments)
    with fixed_chance(arguments, SEED):
        done = lab.subject.run(arguments)
        lines = watch.changes("the forward pass")
        names = {f"dy{i if len(dys) > 1 else ''}": dy for i, dy in enumerate(dys)}
        watch = Watch({**arguments, **names})
        with suppress(RuntimeError):  # an expanded dy cannot be written to; `layouts` tells that
            done.backward(dys)
        lines += watch.changes("the backward pass")
    return [
        Diagnosis(
            "in-place change",
            line.split(" changes ")[1].removesuffix(" in place"),
            f"{line}, which belongs to the caller",
            "it was written to, or holds other numbers after the pass than before",
        )
        for line in lines
    ]


def unsteady(lab: Laboratory, draw: Draw, limits: Limits) -> list[Diagnosis]:
    """The same forward and backward pass, three times: sums that go on, and chance."""
    runs = [lab.got(draw.arguments, draw.dys) for _ in range(3)]
    found: list[Diagnosis] = []
    for name in limits:
        tensors = _tensors(runs, name)
        if tensors is None or _close(tensors, limits[name]):
            continue
        steps = [tensors[1] - tensors[0], tensors[2] - tensors[1]]
        if _close(steps, 10 * limits[name]) and error_of(steps[0], draw.true[name]) < 1e-3:
            text = f"the gradient of {name} is added to that of the run before; it must be fresh"
            evidence = "three equal runs gave g, g + truth and g + 2 truth"
            found.append(Diagnosis("accumulated", name, text, evidence))
        else:
            text = f"the gradient of {name} is another in each of three equal runs"
            evidence = (
                f"they differ by {error_of(tensors[1], tensors[0]):.1e} of the largest number"
            )
            found.append(Diagnosis("not deterministic", name, text, evidence))
    return found


def chance_of_its_own(lab: Laboratory, draw: Draw, limits: Limits) -> list[Diagnosis]:
    """A backward pass that draws must draw what the forward pass drew: it saves that."""
    runs = [
        lab.backward(lab.run(draw.arguments), draw.arguments, draw.dys, seed) for seed in (1, 2)
    ]
    found: list[Diagnosis] = []
    for name, limit in limits.items():
        tensors = _tensors(runs, name)
        if tensors is not None and not _close(tensors, limit):
            text = f"the gradient of {name} depends on random numbers that the backward pass draws"
            evidence = (
                "after the same forward pass two states of the generator gave gradients that "
                f"differ by {error_of(tensors[1], tensors[0]):.1e} of the largest number"
            )
            found.append(Diagnosis("not deterministic", name, text, evidence))
    return found


def repeated_backward(lab: Laboratory, draw: Draw, limits: Limits) -> list[Diagnosis]:
    """The backward pass of one forward pass, twice, where the subject allows that."""
    done = lab.run(draw.arguments)
    once = lab.backward(done, draw.arguments, draw.dys)
    try:
        again = lab.backward(done, draw.arguments, draw.dys)
    except (RuntimeError, AttributeError, TypeError):
        return []  # it may have let go of what it saved
    found: list[Diagnosis] = []
    for name, limit in limits.items():
        tensors = _tensors([once, again], name)
        if tensors is None or _close(tensors, limit):
            continue
        if error_of(tensors[1], 2 * tensors[0]) <= 10 * limit:
            text = f"a second backward pass adds its gradient of {name} to that of the first"
            found.append(
                Diagnosis("accumulated", name, text, "the second result is twice the first")
            )
        else:
            text = f"the backward pass overwrites what was saved: a second one gives another {name}"
            evidence = f"the second differs from the first by {error_of(*tensors[::-1]):.1e}"
            found.append(Diagnosis("saved tensor overwritten", name, text, evidence))
    return found


def second_forward(lab: Laboratory, draw: Draw, limits: Limits) -> list[Diagnosis]:
    """A second forward pass comes before the backward pass of the first."""
    # In another order as well: the derivative of a ReLU hangs on the signs alone.
    others = {
        name: t.flip(list(range(t.ndim))) if t.is_floating_point() else t
        for name, t in other_arguments(draw.arguments, 3).items()
    }
    done = lab.run(draw.arguments)
    try:
        kept = lab.run(others)
    except (RuntimeError, ValueError):
        return []
    late = lab.backward(done, draw.arguments, draw.dys)
    del kept  # alive until here, so that its memory is not given away
    changed = [n for n in limits if not _same([draw.got, late], n, limits[n])]
    if not changed:
        return []
    # The truth makes forward passes of its own, which would come between those above.
    right = lab.true(others, draw.dys)
    alone = lab.backward(lab.run(others), others, draw.dys)
    found: list[Diagnosis] = []
    for name in changed:
        tensors, limit = _tensors([draw.got, late], name), limits[name]
        assert tensors is not None
        second = _tensors([late, alone], name)
        if second is not None and (
            _close(second, 10 * limit) or error_of(second[0], right[name]) <= 10 * limit
        ):
            text = f"the gradient of {name} is that of the second forward pass, not of its own"
            evidence = (
                "two forward passes, then the first one's backward pass: it gave the second's"
            )
            found.append(Diagnosis("stale saved tensor", name, text, evidence))
        else:
            text = f"a second forward pass overwrites what the gradient of {name} is made from"
            evidence = (
                "two forward passes, then the first one's backward pass: the gradient is another "
                f"by {error_of(*tensors[::-1]):.1e} of the largest number"
            )
            found.append(Diagnosis("saved tensor overwritten", name, text, evidence))
    return found


def layouts(lab: Laboratory, draw: Draw, limits: Limits) -> list[Diagnosis]:
    """The same upstream gradient with other strides."""
    found: list[Diagnosis] = []
    seen: set[str] = set()
    for what, change in LAYOUTS.items():
        dys = [change(dy) for dy in draw.dys]
        plain = [dy.contiguous() for dy in dys]
        try:
            expected = lab.got(draw.arguments, plain)
        except RuntimeError:
            return []  # told elsewhere
        try:
            got = lab.got(draw.arguments, dys)
        except RuntimeError as error:
            text = (
                f"the backward pass breaks down where dy is {what}, and not where it is contiguous"
            )
            found.append(Diagnosis("strides", "", text, str(error).splitlines()[0]))
            return found
        for name, limit in limits.items():
            tensors = _tensors([expected, got], name)
            if name in seen or tensors is None or _close(tensors, limit):
                continue
            seen.add(name)
            text = f"the gradient of {name} is wrong where dy is {what}: its strides are overlooked"
            evidence = (
                "the same numbers lying contiguously give another gradient, by "
                f"{error_of(*tensors[::-1]):.1e} of the largest number"
            )
            found.append(Diagnosis("strides", name, text, evidence))
    return found


def assigned(lab: Laboratory, draw: Draw, limits: Limits) -> list[Diagnosis]:
    """Where gradients are added up, what was there must still be in it."""
    done = lab.run(draw.arguments)
    if not isinstance(done, AccumulatingPass):
        return []
    start = {
        name: random_like(draw.arguments[name], 5)
        for name in draw.true
        if name in draw.arguments and name != "x"
    }
    with fixed_chance(draw.arguments, SEED):
        ends = done.backward_onto([copy_of(dy) for dy in draw.dys], start)
    found: list[Diagnosis] = []
    for name, before in start.items():
        tensors = _tensors([draw.got, ends], name)
        if tensors is None:
            continue
        added = tensors[1] - before.double()
        limit = 10 * limits[name] * max(1.0, before.abs().max().item())
        scale = max(tensors[0].abs().max().item(), 1.0) if tensors[0].numel() else 1.0
        if not tensors[0].numel() or (added - tensors[0]).abs().max().item() <= limit * scale:
            continue
        if _close(tensors, limits[name]):
            text = f"the gradient of {name} is assigned where it must be added to what is there"
            evidence = "started from other numbers than zero, the sum is the gradient alone"
            found.append(Diagnosis("assigned", name, text, evidence))
        else:
            text = (
                f"the gradient of {name} depends on what stood there before, and is no sum with it"
            )
            evidence = f"what was added differs by {error_of(added, tensors[0]):.1e}"
            found.append(Diagnosis("assigned", name, text, evidence))
    return found


PROBES: tuple[Callable[[Laboratory, Draw, Limits], list[Diagnosis]], ...] = (
    unsteady,
    chance_of_its_own,
    repeated_backward,
    second_forward,
    layouts,
    assigned,
)
"""In an order such that what one finds would mislead the next for the same argument."""


def _strided(dy: Tensor) -> Tensor:
    """Return the same numbers with others between them."""
    return torch.stack([dy, 1 - dy], -1).select(-1, 0)


def _transposed(dy: Tensor) -> Tensor:
    axes = tuple(reversed(range(dy.ndim)))
    return dy.permute(axes).contiguous().permute(axes)


def _expanded(dy: Tensor) -> Tensor:
    """Return one number in all places, with stride 0, as the sum of all outputs passes it on."""
    return dy.flatten()[:1].view([1] * dy.ndim).expand(dy.shape) if dy.numel() else dy


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "strided": _strided,
    "transposed in memory": _transposed,
    "expanded (stride 0)": _expanded,
}


def _tensors(runs: Sequence[Gradients], name: str) -> list[Tensor] | None:
    """Return the gradient of each run in float64, None where one has none."""
    tensors = [run.get(name) for run in runs]
    if any(tensor is None for tensor in tensors):
        return None
    return [tensor.double() for tensor in tensors if tensor is not None]


def _same(runs: Sequence[Gradients], name: str, limit: float) -> bool:
    """Return whether each run has the same gradient, or one of them none."""
    tensors = _tensors(runs, name)
    return tensors is None or _close(tensors, limit)


def _close(tensors: Sequence[Tensor], limit: float) -> bool:
    """Return whether all are the first, NaN included, to the limit."""
    first = tensors[0].nan_to_num(0.0)
    return all(
        t.shape == first.shape
        and torch.equal(t.isnan(), tensors[0].isnan())
        and error_of(t.nan_to_num(0.0), first) <= limit
        for t in tensors[1:]
    )
