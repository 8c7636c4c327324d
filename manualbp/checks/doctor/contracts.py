"""What every backward pass promises besides its numbers, each promise as a check.

A contract compares a subject with itself where it can: the gradients for a strided dy with those
for the same numbers in one piece. So a gradient that is wrong everywhere does not fail them all,
and what fails one is about that one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from manualbp.checks.contract import Watch, WithLoss
from manualbp.checks.doctor.subject import AccumulatingPass, Arguments, Gradients, Pass, Subject
from manualbp.checks.doctor.subjects import (
    AutogradPass,
    OfLayer,
    OfModule,
    PairPass,
    RunsNeeding,
    ThroughAutograd,
    copies,
    floating,
    floating_of,
    set_seed,
    shape_of,
)
from manualbp.checks.doctor.ties import Clash, Law, clash, tied
from manualbp.checks.doctor.truth import Interval, Truth, converted
from manualbp.checks.tolerances import TOLERANCES

Verdict = Literal["PASS", "FAIL", "WARNING", "INCONCLUSIVE", "SKIPPED"]
"""WARNING: right in itself, but it would be wrong without a word after a mistake elsewhere."""

MOST_TIED = 32
"""Of so many equal numbers the order is tried."""

MOST_COMBINATIONS = 16
"""Of more arguments than four only some choices are tried: each alone, and all but one."""


@dataclass(frozen=True)
class Outcome:
    """What became of a contract."""

    contract: str
    verdict: Verdict
    words: tuple[str, ...] = ()
    """What is wrong, a line each; or why there is no verdict."""


class Refused(Exception):
    """A contract does not apply here, with the reason."""


DY, OTHER = 2_718_281_828, 1_414_213_562
"""Seeds of upstream gradients begin here, and those of a second one there."""


@dataclass(frozen=True)
class Trial:
    """A subject with arguments and upstream gradients, in one dtype on one device."""

    subject: Subject
    arguments: Arguments
    dys: Sequence[Tensor]
    truth: Truth
    settled: Collection[str] = ()
    """Arguments whose gradients are wrong anyway, and need not be judged once more."""

    @classmethod
    def of(cls, subject: Subject, arguments: Arguments, truth: Truth, seed: int) -> Trial:
        """Draw random upstream gradients, in float64 on the CPU, then rounded and moved.

        The generator begins elsewhere than one with this seed: whoever draws the inputs with it
        would get dy = x, for which many a wrong gradient is right, and others too small to tell.
        """
        generator = torch.Generator().manual_seed((seed + DY) % 2**32)
        outputs = subject.run(copies(arguments)).outputs
        dys = [
            torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)
            for y in outputs
        ]
        return cls(subject, arguments, dys, truth)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arguments that can have a gradient."""
        return next(self.arguments[name].dtype for name in floating(self.arguments))

    @property
    def small(self) -> float:
        """The size of gradients that are nothing but terms which cancel."""
        return 1e-3 * largest_of(self.dys)

    def gradients(self) -> Gradients:
        """Return the subject's gradients; what it may have written to is put back."""
        with self.put_back():
            return cloned(self.subject.run(self.arguments).backward(self.dys))

    def copied_dys(self) -> list[Tensor]:
        """Return dy in fresh memory, for a backward pass that may write to it."""
        return [dy.clone() for dy in self.dys]

    @contextmanager
    def put_back(self) -> Generator[None]:
        """Put the numbers of the arguments and of dy back at the end."""
        tensors = [*self.arguments.values(), *self.dys]
        before = [tensor.clone() for tensor in tensors]
        try:
            yield
        finally:
            for tensor, kept in zip(tensors, before, strict=True):
                if not torch.equal(tensor, kept) and not kept.isnan().any():
                    tensor.copy_(kept)

    def with_dys(self, change: Callable[[Tensor], Tensor]) -> Trial:
        """Return the trial with every upstream gradient changed."""
        return replace(self, dys=[change(dy) for dy in self.dys])

    def with_arguments(self, arguments: Arguments, seed: int = 0) -> Trial:
        """Return the trial with other arguments, and upstream gradients that fit."""
        return Trial.of(self.subject, arguments, self.truth, seed)

    def resized(self, old: int, new: int) -> Trial:
        """Return the trial with every axis of length `old` cut to `new`. Raises Refused."""
        if _holds_targets(self.subject):
            raise Refused("the targets would have to follow")
        arguments = {n: _cut(tensor, old, new) for n, tensor in self.arguments.items()}
        try:
            return self.with_arguments(arguments)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise Refused(f"the forward pass refuses these sizes: {first_line(error)}") from None


def _holds_targets(subject: Subject) -> bool:
    return isinstance(subject, OfLayer) and isinstance(subject.layer, WithLoss)


def _cut(tensor: Tensor, old: int, new: int) -> Tensor:
    for axis, size in enumerate(tensor.shape):
        if size == old:
            tensor = tensor.narrow(axis, 0, new)
    return tensor.clone(memory_format=torch.contiguous_format)


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


# Comparisons --------------------------------------------------------------------------------------


def misfit(name: str, gradient: Tensor | None, argument: Tensor) -> str | None:
    """Return what is wrong with a gradient's shape, dtype or device."""
    if gradient is None:
        return None
    for what, got, expected in (
        ("shape", shape_of(gradient), shape_of(argument)),
        ("dtype", str(gradient.dtype), str(argument.dtype)),
        ("device", gradient.device.type, argument.device.type),
    ):
        if got != expected:
            return f"d{name} has {what} {got}, {name} has {expected}"
    return None


def changed(now: Gradients, before: Gradients, when: str, scale: float) -> list[str]:
    """Return a line for each gradient that is another by more than rounding.

    `scale` is the size of the numbers whose rounding it may carry, if it is small itself.
    """
    lines: list[str] = []
    for name in before:
        a, b = now.get(name), before[name]
        if a is None and b is None:
            continue
        if a is None or b is None:
            present = b if a is None else a
            if present is not None and present.any():
                verb = "is None" if a is None else "is no longer None"
                lines.append(f"d{name} {verb} {when}")
            continue
        if a.shape != b.shape:
            lines.append(f"d{name} has shape {shape_of(a)} {when}, else {shape_of(b)}")
            continue
        size = max(largest(b), scale)
        place, difference = worst(a, b)
        if difference > TOLERANCES[b.dtype].floor * size:
            lines.append(
                f"d{name} is another {when}: {_at(place)}{_got_not(a, b, place, 'instead of')}"
            )
    return lines


def worst(a: Tensor, b: Tensor) -> tuple[tuple[int, ...], float]:
    """Return where two tensors of one shape differ most, and by how much; NaN is infinitely far."""
    if not b.numel():
        return (0,) * b.ndim, 0.0
    a, b = a.double(), b.double().to(a.device)
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b).abs()
    apart = apart.nan_to_num(torch.inf, posinf=torch.inf)
    place = tuple(int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
    return place, apart[place].item()


def largest(tensor: Tensor) -> float:
    """Return the largest magnitude; 0 for no numbers."""
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _at(place: Sequence[int]) -> str:
    return f"at {list(place)} " if place else ""


def outside(trial: Trial, gradients: Gradients, when: str) -> list[str]:
    """Return a line for each gradient that is not the true one."""
    given = {name: g for name, g in gradients.items() if g is not None}
    lines: list[str] = []
    right = trial.truth.intervals(trial.arguments, trial.dys, given, trial.settled)
    for name, interval in right.items():
        if name not in gradients:
            continue
        gradient = gradients[name]
        wrong = misfit(name, gradient, trial.arguments[name])
        if wrong:
            lines.append(f"{wrong} {when}")
            continue
        gradient = torch.zeros_like(trial.arguments[name]) if gradient is None else gradient
        if not interval.holds(gradient, trial.dys):
            interval = with_ties_broken(trial, name, interval) or interval
        if not interval.holds(gradient, trial.dys):
            place, _ = worst(gradient, interval.value)
            lines.append(
                f"d{name} is wrong {when}: {_at(place)}"
                f"{_got_not(gradient, interval.value, place, 'where the truth is')}"
            )
    return lines


def with_ties_broken(trial: Trial, name: str, interval: Interval) -> Interval | None:
    """Return an interval with the slopes beside a tie of three numbers or more; None without one.

    Of three equal numbers that are sorted, one that moves becomes the first or the last. But the
    slope of the middle one is right as well: that of a point nearby, where they are in order.
    """
    tensor = trial.arguments[name].double()
    kinks = interval.high - interval.low > 1e-3 * interval.scale()
    counts = Counter(number.item() for number in tensor[kinks])
    often = [value for value, count in counts.items() if 2 < count <= MOST_TIED]
    if not often:
        return None
    tied = kinks & torch.isin(tensor, torch.tensor(often).to(tensor))
    exact = converted(trial.arguments, torch.float64)
    rank = torch.arange(int(tied.sum()), device=tensor.device)
    generator = torch.Generator().manual_seed(0)
    mixed = [torch.randperm(len(rank), generator=generator).to(rank) for _ in range(4)]
    low, high = interval.low, interval.high
    for places in (rank, rank.flip(0), *mixed):
        moved = tensor.clone()
        moved[tied] += 2.0**-8 * places
        slopes = trial.truth({**exact, name: moved}, [dy.double() for dy in trial.dys])[name]
        low, high = torch.minimum(low, slopes), torch.maximum(high, slopes)
    room = torch.where(tied, 1e-2 * interval.scale(), 0.0)  # the points are not that near
    return interval._replace(low=low - room, high=high + room)


def _got_not(a: Tensor, b: Tensor, place: tuple[int, ...], words: str) -> str:
    got, expected = a[place].item(), b[place].item()
    return f"{digits(got, expected)} {words} {digits(expected, got)}"


def digits(number: float, other: float) -> str:
    """Return a number with as many digits as show that it is not the other one."""
    for count in (6, 9, 12):
        if f"{number:.{count}g}" != f"{other:.{count}g}":
            return f"{number:.{count}g}"
    return f"{number:.17g}"


def largest_of(tensors: Sequence[Tensor]) -> float:
    """Return the largest magnitude in several tensors."""
    return max((largest(tensor) for tensor in tensors), default=0.0)


# The contracts ------------------------------------------------------------------------------------


def dy_strided(trial: Trial) -> list[str]:
    """Gradients do not depend on the strides of dy."""
    return _same(trial, trial.with_dys(_strided), "for a strided dy")


def dy_transposed(trial: Trial) -> list[str]:
    """Nor on the order of its axes in memory."""
    return _same(trial, trial.with_dys(_transposed), "for a transposed dy")


def dy_expanded(trial: Trial) -> list[str]:
    """Nor on stride 0, which dy has after `y.sum().backward()`."""
    if not any(dy.numel() > 1 for dy in trial.dys):
        raise Refused("dy is one number")
    found = _same(
        trial.with_dys(lambda dy: torch.full_like(dy, 0.75)),
        trial.with_dys(lambda dy: dy.new_full((), 0.75).expand(dy.shape)),
        "for an expanded dy (stride 0)",
    )
    return found or _same(
        trial.with_dys(lambda dy: dy[:1].expand(dy.shape).contiguous() if dy.ndim else dy),
        trial.with_dys(lambda dy: dy[:1].expand(dy.shape) if dy.ndim else dy),
        "for a dy expanded along its first axis",
    )


def dy_scaled(trial: Trial) -> list[str]:
    """1024 dy gives 1024 times the gradients; a power of two costs no rounding."""
    expected = _times(trial.gradients(), 1024.0)
    return changed(
        trial.with_dys(lambda dy: 1024 * dy).gradients(), expected, "for 1024 dy", trial.small
    )


def dy_zero(trial: Trial) -> list[str]:
    """Dy = 0 gives zero."""
    zero = trial.with_dys(torch.zeros_like).gradients()
    expected = {n: g if g is None else torch.zeros_like(g) for n, g in zero.items()}
    return changed(zero, expected, "for dy = 0", 0.0)


def dy_linear(trial: Trial) -> list[str]:
    """The gradients for 2 dy + dy' are twice those for dy plus those for dy'."""
    other = Trial.of(trial.subject, trial.arguments, trial.truth, seed=OTHER)
    mixed = [2 * dy + more for dy, more in zip(trial.dys, other.dys, strict=True)]
    one, two = trial.gradients(), other.gradients()
    terms = [g for g in (*one.values(), *two.values()) if g is not None]
    now = replace(trial, dys=mixed).gradients()
    when = "for 2 dy + dy' than from twice that for dy plus that for dy'"
    return changed(now, _added(_times(one, 2.0), two), when, max(largest_of(terms), trial.small))


def inputs_strided(trial: Trial) -> list[str]:
    """Gradients do not depend on the strides of the inputs. A module's parameters have none."""
    for words, layout in LAYOUTS.items():
        arguments = {
            name: layout(tensor) if name in inputs_of(trial) else tensor
            for name, tensor in trial.arguments.items()
        }
        try:
            outputs = trial.subject.run(arguments).outputs
        except RuntimeError as error:
            raise Refused(f"the forward pass refuses {words} inputs: {first_line(error)}") from None
        pairs = zip(trial.subject.run(trial.arguments).outputs, outputs, strict=True)
        if not all(torch.allclose(y, y_now, equal_nan=True) for y, y_now in pairs):
            raise Refused(f"the forward pass gives other numbers for {words} inputs")
        found = _same(trial, replace(trial, arguments=arguments), f"for {words} inputs")
        if found:
            return found
    return []


def inputs_of(trial: Trial) -> list[str]:
    """Return the names of the arguments that others give, and not the subject itself holds."""
    function = getattr(trial.subject, "function", None)
    held = function.parameters if isinstance(function, OfModule) else []
    return [name for name in trial.arguments if name not in held]


def batch_of_one(trial: Trial) -> list[str]:
    """A batch of one example has the right gradients."""
    small = replace(with_batch(trial, 1), settled=trial.settled)
    lines = _right(small, "for a batch of one")
    if trial.settled and not lines:
        raise Refused("it would say again what is wrong with the gradients")
    return lines


def empty_batch(trial: Trial) -> list[str]:
    """A batch without examples adds nothing to the gradients."""
    small = with_batch(trial, 0)
    if any(dy.numel() for dy in small.dys):
        raise Refused("the output of an empty batch is not empty")
    try:
        gradients = small.gradients()
    except Exception as error:  # the subject's own, whatever it is
        return [f"the backward pass fails for an empty batch: {first_line(error)}"]
    lines = [
        f"{line}, for an empty batch"
        for name, gradient in gradients.items()
        if (line := misfit(name, gradient, small.arguments[name]))
    ]
    for name, gradient in gradients.items():
        if gradient is not None and not lines and gradient.numel() and largest(gradient) != 0:
            lines.append(f"d{name} is not zero for an empty batch")
    return lines


def equal_numbers(trial: Trial) -> list[str]:
    """Where numbers are tied, their gradients add up to the slope of moving them together."""
    return [
        f"d{next(iter(one.tied.groups))} is wrong {one.tied.words}: moved together, {one.members} "
        f"have the slope {digits(one.slope, one.total)}, and the gradients add up to "
        f"{digits(one.total, one.slope)}"
        for one in clashes(trial)
    ]


def clashes(trial: Trial) -> Iterator[Clash]:
    """Yield for each way of making numbers equal where their gradients are wrong together."""
    for ties in tied(trial.arguments, list(trial.gradients())):
        try:
            outputs = trial.truth.outputs(ties.arguments)
        except Exception:  # the subject's own: equal numbers do not suit its forward pass
            continue
        if [y.shape for y in outputs] != [dy.shape for dy in trial.dys]:
            continue
        law = Law(ties, trial.dys, trial.truth)
        if all(y.isfinite().all() for y in outputs) and law.has_kink():
            found = clash(law, replace(trial, arguments=ties.arguments).gradients())
            if found is not None:
                yield found


def needed_gradients(trial: Trial) -> list[str]:
    """Whichever gradients are asked for, they are the same."""
    subject = trial.subject
    if not isinstance(subject, RunsNeeding):
        raise Refused("a pair of functions is not told which gradients are needed")
    expected = trial.gradients()
    names = list(expected)
    for chosen in choices(names):
        if not isinstance(subject, ThroughAutograd) and "x" in chosen:
            continue  # a layer knows two ways: with dx, or `backward_parameters`
        when = f"if only {', '.join(chosen)} need{'s' if len(chosen) == 1 else ''} a gradient"
        try:
            got = subject.run_needing(trial.arguments, chosen).backward(trial.dys)
        except Exception as error:  # the subject's own, whatever it is
            return [f"it fails {when}: {first_line(error)}"]
        found = changed(got, {name: expected[name] for name in chosen}, when, trial.small)
        if found:
            return found
    return []


def outputs_alone(trial: Trial) -> list[str]:
    """Where one output of several is used alone, the others count as if their dy were zero."""
    if len(trial.dys) == 1:
        raise Refused("there is one output")
    for chosen in range(len(trial.dys)):
        run = trial.subject.run(trial.arguments)
        if not isinstance(run, AutogradPass):
            raise Refused("without autograd, every output has a dy")
        zeros = [dy if i == chosen else torch.zeros_like(dy) for i, dy in enumerate(trial.dys)]
        expected = replace(trial, dys=zeros).gradients()
        when = f"if only output {chosen} is used"
        try:
            got = run.backward_from(chosen, trial.copied_dys()[chosen])
        except Exception as error:  # the subject's own, whatever it is
            return [f"it fails {when}: {first_line(error)}"]
        found = changed(got, expected, when, trial.small)
        if found:
            return found
    return []


def nothing_changed(trial: Trial) -> list[str]:
    """Neither pass writes to dy or to the inputs, nor the backward pass to the outputs."""
    arguments = copies(trial.arguments)
    dys = [dy.clone() for dy in trial.dys]
    watch = Watch(arguments)
    run = trial.subject.run(arguments)
    lines = watch.changes("the forward pass")
    several = len(dys) > 1
    given = {f"dy[{i}]" if several else "dy": dy for i, dy in enumerate(dys)}
    given |= {f"output {i}" if several else "the output": y for i, y in enumerate(run.outputs)}
    watch = Watch(arguments | given)
    run.backward(dys)
    return lines + watch.changes("the backward pass")


def repeated_backward(trial: Trial) -> list[str]:
    """A second backward pass of the same forward pass gives the same."""
    run = trial.subject.run(trial.arguments)
    once = cloned(run.backward(trial.copied_dys()))
    try:
        twice = run.backward(trial.copied_dys())
    except Exception as error:  # the subject's own, whatever it is
        raise Refused(f"it allows one backward pass only: {first_line(error)}") from None
    return changed(twice, once, "in a second backward pass of the same forward pass", trial.small)


def second_forward(trial: Trial) -> list[str]:
    """A second forward pass before the backward pass does not change the gradients."""
    expected = cloned(trial.gradients())
    first = trial.subject.run(trial.arguments)
    second = _elsewhere(trial)
    lines = changed(
        first.backward(trial.copied_dys()),
        expected,
        "after a second forward pass on other inputs",
        trial.small,
    )
    if lines:
        return lines
    # And a gradient handed out is not written to by the next backward pass.
    kept = trial.subject.run(trial.arguments).backward(trial.copied_dys())
    second.backward([-dy for dy in trial.dys])
    return changed(kept, expected, "after the backward pass of another forward pass", trial.small)


def inputs_overwritten(trial: Trial) -> list[str]:
    """If an input or output is overwritten before the backward pass, that is refused or harmless.

    torch refuses it for what `ctx.save_for_backward` keeps, and cannot for an attribute of ctx. The
    gradients are right then as long as nobody overwrites anything, so this is worth a warning only.
    """
    if not isinstance(trial.subject, ThroughAutograd):
        raise Refused("nothing can watch over what plain functions keep")
    expected = cloned(trial.gradients())
    lines: list[str] = []
    for target in [*floating(trial.arguments), *range(len(trial.dys))]:
        arguments = copies(trial.arguments)
        run = trial.subject.run(arguments)
        if isinstance(target, str):
            tensor, what = arguments[target], target
        else:
            tensor, what = run.outputs[target], "the output"
        with torch.no_grad():
            tensor.mul_(-2)
        try:
            got = run.backward(trial.copied_dys())
        except RuntimeError:
            continue  # refused, as it should be
        when = f"if {what} is overwritten in place before the backward pass"
        wrong = changed(got, expected, when, trial.small)
        if wrong:
            lines.append(
                f"{wrong[0].split()[0]} would be wrong, without an error, {when}: keep {what} with "
                "ctx.save_for_backward, then torch refuses that"
            )
    return lines


def used_twice(trial: Trial) -> list[str]:
    """Used twice in one graph, the gradients add up, also to those that are there already."""
    once = cloned(trial.gradients())
    expected = _times(once, 2.0)
    run = trial.subject.run(trial.arguments)
    if isinstance(run, AccumulatingPass):
        names = [name for name in once if name != "x"]
        start = {name: torch.ones_like(trial.arguments[name]) for name in names}
        onto: dict[str, Tensor | None] = {}
        for name in names:
            gradient = once[name]
            onto[name] = start[name] if gradient is None else start[name] + gradient
        got = run.backward_onto(trial.copied_dys(), start)
        found = changed(got, onto, "where gradients are there already, to be added to", 1.0)
        if found:
            return found
    if isinstance(trial.subject, ThroughAutograd):
        subject = trial.subject

        def use(arguments: Arguments) -> list[Tensor]:
            set_seed(subject.seed)  # the same random numbers again
            given = copies(arguments) if subject.in_place else arguments
            return subject.judged(floating_of(subject.function(given)))

        def twice(arguments: Arguments) -> object:
            return [*use(arguments), *use(arguments)]

        try:
            both = replace(subject, function=twice, places=[]).run(trial.arguments)
            got = both.backward([*trial.copied_dys(), *trial.copied_dys()])
            return changed(got, expected, "if it is used twice in a graph", trial.small)
        except RuntimeError as error:
            return [f"it fails if used twice in one graph: {first_line(error)}"]
    first = run.backward(trial.copied_dys())
    second = trial.subject.run(trial.arguments).backward(trial.copied_dys())
    return changed(_added(first, second), expected, "as the sum of two uses", trial.small)


def fresh(trial: Trial) -> list[str]:
    """A third pass gives what the first gave: nothing is carried over."""
    first = cloned(trial.gradients())
    _elsewhere(trial).backward(trial.copied_dys())
    return changed(trial.gradients(), first, "after passes on other inputs", trial.small)


Contract = Callable[[Trial], list[str]]

CONTRACTS: Mapping[str, Contract] = {
    "dy strided": dy_strided,
    "dy transposed": dy_transposed,
    "dy expanded": dy_expanded,
    "dy scaled": dy_scaled,
    "dy zero": dy_zero,
    "linear in dy": dy_linear,
    "inputs strided": inputs_strided,
    "batch of one": batch_of_one,
    "empty batch": empty_batch,
    "ties": equal_numbers,
    "requires_grad": needed_gradients,
    "outputs alone": outputs_alone,
    "no mutation": nothing_changed,
    "repeated backward": repeated_backward,
    "second forward": second_forward,
    "inputs overwritten": inputs_overwritten,
    "used twice": used_twice,
    "nothing carried over": fresh,
}
"""Determinism comes before them: see `determinism`."""

WARNINGS = ("inputs overwritten",)
"""Contracts that a pass may break and be right all the same."""


def determinism(trial: Trial) -> Outcome:
    """Two equal passes with equal seeds give equal gradients, but for rounding."""
    first, largest_difference = cloned(trial.gradients()), 0.0
    for _ in range(3):
        again = trial.gradients()
        lines = changed(again, first, "in an equal pass", trial.small)
        if lines:
            return Outcome("determinism", "FAIL", tuple(lines))
        for name, gradient in again.items():
            before = first.get(name)
            if gradient is not None and before is not None:
                largest_difference = max(largest_difference, worst(gradient, before)[1])
    words = (f"equal passes differ by rounding, up to {largest_difference:.1e}",)
    return Outcome("determinism", "PASS", words if largest_difference else ())


def check_contract(name: str, trial: Trial) -> Outcome:
    """Run a contract; an error of the subject's backward pass fails it."""
    try:
        with trial.put_back():
            lines = CONTRACTS[name](trial)
    except Refused as reason:
        return Outcome(name, "SKIPPED", (str(reason),))
    except Exception as error:  # the subject's own, whatever it is
        return Outcome(name, "FAIL", (f"it fails: {first_line(error)}",))
    failed = "WARNING" if name in WARNINGS else "FAIL"
    if name == "second forward" and keeps_on_itself(trial):
        failed, lines = "WARNING", [f"{line}: it keeps one at a time" for line in lines]
    return Outcome(name, failed if lines else "PASS", tuple(lines))


def keeps_on_itself(trial: Trial) -> bool:
    """Tell whether the subject is an object that keeps what its backward pass needs.

    Then every forward pass has to be followed by its backward pass, which users know.
    """
    run = trial.subject.run(copies(trial.arguments))
    return isinstance(run, PairPass) and run.keeps


# Helpers ------------------------------------------------------------------------------------------


def _same(trial: Trial, other: Trial, when: str) -> list[str]:
    expected = trial.gradients()
    try:
        got = other.gradients()
    except Exception as error:  # the subject's own, whatever it is
        return [f"the backward pass fails {when}: {first_line(error)}"]
    return changed(got, expected, when, other.small)


def _right(trial: Trial, when: str) -> list[str]:
    try:
        gradients = trial.gradients()
    except Exception as error:  # the subject's own, whatever it is
        return [f"the backward pass fails {when}: {first_line(error)}"]
    return outside(trial, gradients, when)


def batch_length(trial: Trial) -> int:
    """Return the length of the first axis of the first argument. Raises Refused without one."""
    first = next(iter(trial.arguments.values()))
    if not first.ndim:
        raise Refused("the first argument has no axes")
    return first.shape[0]


def with_batch(trial: Trial, examples: int) -> Trial:
    """Return the trial with so many examples. Raises Refused where they cannot be told.

    A weight may be as long as the batch and is not to be cut with it: the tensors with examples are
    those without which an output would not be shorter along its first axis, and along no other.
    """
    length = batch_length(trial)
    if _holds_targets(trial.subject):
        raise Refused("the targets would have to follow")
    first, *others = (n for n, t in trial.arguments.items() if t.ndim and len(t) == length)
    wanted = [(examples, *dy.shape[1:]) if dy.ndim else None for dy in trial.dys]
    for chosen in ((), *((name,) for name in others), tuple(others)):
        arguments = {
            name: tensor[:examples].clone() if name in (first, *chosen) else tensor
            for name, tensor in trial.arguments.items()
        }
        try:
            small = trial.with_arguments(arguments)
        except Exception:  # the subject's own: it does not take these together
            continue
        if [tuple(dy.shape) for dy in small.dys] == wanted:
            return small
    return trial.resized(length, examples)


def choices(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield every choice of names but all of them."""
    if 2 ** len(names) <= MOST_COMBINATIONS:
        for count in range(1, len(names)):
            yield from combinations(names, count)
        return
    for name in names[:MOST_COMBINATIONS]:
        yield (name,)
        yield tuple(other for other in names if other != name)


def _strided(tensor: Tensor) -> Tensor:
    """Return the same numbers with a gap before each along the last axis."""
    if not tensor.ndim:
        return tensor
    wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
    wide[..., 1::2] = tensor
    return wide[..., 1::2]


def _transposed(tensor: Tensor) -> Tensor:
    """Return the same numbers with the axes in memory the other way round."""
    axes = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "strided": _strided,
    "transposed": _transposed,
}


def _elsewhere(trial: Trial) -> Pass:
    """Return a forward pass on other inputs. Raises Refused where they do not suit it."""
    # In another order as well: the gradient of a ReLU hangs on the signs alone.
    other = {
        name: 0.75 * tensor.flip(list(range(tensor.ndim))) if tensor.is_floating_point() else tensor
        for name, tensor in trial.arguments.items()
    }
    try:
        return trial.subject.run(other)
    except Exception as error:  # the subject's own, whatever it is
        raise Refused(f"the forward pass refuses other inputs: {first_line(error)}") from None


def cloned(gradients: Gradients) -> dict[str, Tensor | None]:
    """Return copies that nobody writes to."""
    return {n: None if g is None else g.clone() for n, g in gradients.items()}


def _times(gradients: Gradients, factor: float) -> dict[str, Tensor | None]:
    return {n: None if g is None else factor * g for n, g in gradients.items()}


def _added(a: Gradients, b: Gradients) -> dict[str, Tensor | None]:
    added: dict[str, Tensor | None] = {}
    for name, first in a.items():
        second = b.get(name)
        added[name] = second if first is None else first if second is None else first + second
    return added
