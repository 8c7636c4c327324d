"""The examination: a subject against the truth in every dtype, then against every contract."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any, cast
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from manualbp.checks.agreement import relative_error
from manualbp.checks.doctor.broken_contracts import causes
from manualbp.checks.doctor.contracts import (
    CONTRACTS,
    Outcome,
    Refused,
    Trial,
    Verdict,
    check_contract,
    determinism,
    digits,
    first_line,
    largest,
    largest_of,
    misfit,
    with_ties_broken,
)
from manualbp.checks.doctor.diagnosis import NOT_RECOGNISED, diagnose
from manualbp.checks.doctor.inner_precision import rounds_on_the_way
from manualbp.checks.doctor.subject import Arguments, Diagnosis, Gradients, Subject
from manualbp.checks.doctor.subjects import (
    AutogradPass,
    ThroughAutograd,
    copies,
    floating,
    own_random_numbers,
    shape_of,
)
from manualbp.checks.doctor.truth import Differences, Interval, Reference, Truth, converted
from manualbp.checks.tolerances import TOLERANCES, UNDERFLOW
from manualbp.errors import UsageError

ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16)

DRAWS = 3
"""In less than float64 a number may fall on the other side of a kink by rounding alone. A gradient
that is right in float64 is wrong there only if it is wrong for so many inputs."""

SMALL = 100_000
"""Numbers that one thread deals with best."""

CANNOT_TELL = 1e-2
"""A truth that is known no better than this, relative to the gradient, tells nothing."""


@dataclass(frozen=True)
class Row:
    """The verdict on one gradient in one dtype. Errors are relative to the largest true number."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    verdict: Verdict
    error: float
    rounding: float  # what rounding of the same arithmetic costs
    limit: float
    words: str = ""
    worst: tuple[int, ...] | None = None
    got: float | None = None
    expected: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that was found out about a subject."""

    name: str
    truth: str
    device: str
    seed: int
    arguments: Mapping[str, tuple[int, ...]]
    rows: Sequence[Row]
    outcomes: Sequence[Outcome]
    diagnoses: Sequence[Diagnosis] = ()
    smallest: Mapping[str, tuple[int, ...]] | None = None
    """The smallest shapes that still fail, where something does."""
    notes: Sequence[str] = field(default_factory=tuple[str, ...])
    trial: Trial | None = field(default=None, repr=False, compare=False)
    """What the contracts were put to; kept of a failure, for a file that shows it again."""
    witness: Trial | None = field(default=None, repr=False, compare=False)
    """The same in the smallest shapes that still fail."""

    @property
    def failures(self) -> list[str]:
        """Return a line for each thing that is wrong."""
        lines = [f"{row.tensor}, {row.dtype}: {row.words}" for row in self.rows if _failed(row)]
        for outcome in self.outcomes:
            if _failed(outcome):
                lines += [f"{outcome.contract}: {words}" for words in outcome.words]
        return lines

    @property
    def warnings(self) -> list[str]:
        """Return a line for each thing that is right, but would be wrong without a word."""
        warned = [outcome for outcome in self.outcomes if outcome.verdict == "WARNING"]
        return [f"{outcome.contract}: {words}" for outcome in warned for words in outcome.words]

    @property
    def verdict(self) -> Verdict:
        """FAIL if anything fails, INCONCLUSIVE if no gradient could be judged."""
        if any(_failed(item) for item in (*self.rows, *self.outcomes)):
            return "FAIL"
        return "PASS" if any(row.verdict == "PASS" for row in self.rows) else "INCONCLUSIVE"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it; numbers that JSON has no word for become None."""
        data = asdict(replace(self, trial=None, witness=None))
        del data["trial"], data["witness"]
        return _for_json(
            data | {"verdict": self.verdict, "failures": self.failures, "warnings": self.warnings}
        )


def _failed(item: Row | Outcome) -> bool:
    return item.verdict == "FAIL"


def _for_json(thing: Any) -> Any:
    if isinstance(thing, float):
        return thing if isfinite(thing) else None
    if isinstance(thing, Mapping):
        return {str(key): _for_json(value) for key, value in thing.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(thing, (list, tuple)):
        return [_for_json(item) for item in thing]  # pyright: ignore[reportUnknownVariableType]
    return thing


def examine(
    subject: Subject,
    arguments: Arguments,
    truth: Truth | None = None,
    *,
    dtypes: Sequence[torch.dtype] = ALL_DTYPES,
    contracts: Sequence[str] = tuple(CONTRACTS),
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Report:
    """Return what is right and wrong about a subject on these arguments, on their device.

    Without a truth it is taken from differences of the subject's own forward pass. Raises
    UsageError if the forward pass cannot run on the arguments in any of the dtypes.
    """
    with _undisturbed(arguments):
        return _examine(subject, copies(arguments), truth, dtypes, contracts, seed, list(notes))


def _examine(
    subject: Subject,
    arguments: Arguments,
    truth: Truth | None,
    dtypes: Sequence[torch.dtype],
    contracts: Sequence[str],
    seed: int,
    notes: list[str],
) -> Report:
    widest = widest_dtype(subject, arguments)
    if widest != torch.float64:
        notes.append("it does not compute in float64, so what is finer than float32 stays unseen")
    if truth is None:
        truth = differences_of(subject, arguments, widest)
    trial = Trial.of(subject, converted(arguments, widest), truth, seed)
    _require_judgeable(trial)
    examined = [dtype for dtype in dtypes if dtype.itemsize <= widest.itemsize]
    rows: list[Row] = []
    for dtype in examined:
        rows += _rows(trial, arguments, dtype, rows, seed, notes)
    outcomes = list(_outcomes(trial, contracts, judge(trial)))
    report = Report(
        name=subject.name,
        truth=truth.words,
        device=next(iter(arguments.values())).device.type,
        seed=seed,
        arguments={name: tuple(tensor.shape) for name, tensor in arguments.items()},
        rows=rows,
        outcomes=outcomes,
        notes=tuple(dict.fromkeys([*notes, *_remarks(trial)])),
    )
    if report.verdict != "FAIL":
        return report
    return _explained(report, trial)


def fails(trial: Trial) -> bool:
    """Return whether `examine` finds anything wrong in the trial's own dtype; look no further."""
    rows = judge(trial)
    return any(map(_failed, rows)) or any(map(_failed, _outcomes(trial, tuple(CONTRACTS), rows)))


def widest_dtype(subject: Subject, arguments: Arguments) -> torch.dtype:
    """Return float64, or float32 for a subject that takes or gives nothing wider.

    Raises UsageError where the forward pass fails in both.
    """
    problem = ""
    for dtype in (torch.float64, torch.float32):
        try:
            outputs = subject.run(copies(converted(arguments, dtype))).outputs
        except Exception as error:  # the subject's own, whatever it is
            problem = problem or first_line(error)
            continue
        if not outputs:
            raise UsageError(f"{subject.name}: no output holds floating-point numbers")
        if any(y.dtype.itemsize >= dtype.itemsize for y in outputs):
            if dtype == torch.float64 and rounds_on_the_way(
                lambda moved: subject.run(moved).outputs, converted(arguments, dtype)
            ):
                problem = problem or "the outputs are rounded on the way"
                continue
            return dtype
        problem = problem or f"the output is {outputs[0].dtype} for {dtype} inputs"
    raise UsageError(f"{subject.name}: the forward pass fails on these inputs: {problem}")


def differences_of(
    subject: Subject, arguments: Arguments, dtype: torch.dtype = torch.float64
) -> Differences:
    """Return the truth from differences of the subject's own forward pass."""
    if not isinstance(subject, ThroughAutograd):
        return Differences(lambda moved: subject.run(copies(moved)).outputs, dtype)
    own = subject.run(copies(converted(arguments, dtype))).differentiable
    return Differences(lambda moved: subject.values(copies(moved)), dtype, own)


def _require_judgeable(trial: Trial) -> None:
    """Raise UsageError for a forward pass whose outputs are not numbers."""
    outputs = trial.subject.run(copies(trial.arguments)).outputs
    if not all(y.isfinite().all() for y in outputs):
        raise UsageError(
            f"{trial.subject.name}: the forward pass gives NaN or infinity on these inputs: give "
            "others, by a function example_inputs() in its file"
        )


@contextmanager
def _undisturbed(arguments: Arguments) -> Generator[None]:
    """Leave torch's random numbers as they were; within, products are not rounded to TF32.

    And small tensors are worked on by one thread: several wait for each other most of the time.
    """
    devices = {t.device.index or 0 for t in arguments.values() if t.device.type == "cuda"}
    before = [(part, part.fp32_precision) for part in _may_use_tf32()]
    for part, _ in before:
        part.fp32_precision = "ieee"
    threads = torch.get_num_threads()
    if sum(tensor.numel() for tensor in arguments.values()) <= SMALL:
        torch.set_num_threads(1)
    try:
        with own_random_numbers(*devices), catch_warnings():
            simplefilter("ignore")  # what the subject's own code warns of on odd inputs
            yield
    finally:
        torch.set_num_threads(threads)
        for part, precision in before:
            part.fp32_precision = precision


def _may_use_tf32() -> list[Any]:
    backends = cast(Any, torch.backends)
    # torch 2.11 does not pass on to convolutions and recurrent layers what is set for all of cudnn.
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]


# Gradients ----------------------------------------------------------------------------------------


def _rows(
    trial: Trial,
    arguments: Arguments,
    dtype: torch.dtype,
    wider: Sequence[Row],
    seed: int,
    notes: list[str],
) -> list[Row]:
    """Return a row for each gradient in this dtype; `wider` are those in longer ones."""
    name = str(dtype).removeprefix("torch.")
    try:
        now = Trial.of(trial.subject, converted(arguments, dtype), trial.truth, seed)
    except Exception as error:  # the subject's own, whatever it is
        notes.append(f"the forward pass does not run in {name}: {first_line(error)}")
        return []
    rows = judge(now)
    news = [row for row in rows if row.verdict == "FAIL" and not _fails_in(wider, row.tensor)]
    if dtype == trial.dtype or not news:
        return rows
    others: list[list[Row]] = []
    for draw in range(1, DRAWS):
        nearby = _nearby(arguments, dtype, seed + draw)
        try:
            others.append(judge(Trial.of(trial.subject, nearby, trial.truth, seed + draw)))
        except Exception as error:  # the subject's own: inputs between others may not suit it
            notes.append(f"nearby inputs do not suit it in {name}: {first_line(error)}")
            return rows
    return [
        row
        if row not in news or all(_fails_in(other, row.tensor) for other in others)
        else _inconclusive(row, "off here, but not for inputs nearby: a rounding at a kink")
        for row in rows
    ]


def _fails_in(rows: Sequence[Row], tensor: str) -> bool:
    return any(row.tensor == tensor and row.verdict == "FAIL" for row in rows)


def _inconclusive(row: Row, words: str) -> Row:
    return Row(
        row.tensor, row.dtype, row.shape, "INCONCLUSIVE", row.error, row.rounding, row.limit, words
    )


def judge(trial: Trial) -> list[Row]:
    """Return a row for each gradient, from one forward and one backward pass."""
    outputs = trial.subject.run(copies(trial.arguments)).outputs
    names = floating(trial.arguments)
    try:
        gradients = trial.gradients()
    except Exception as error:  # the subject's own, whatever it is
        words = f"the backward pass fails: {first_line(error)}"
        return [_row(trial, name, "FAIL", words) for name in names[:1]]
    names = list(gradients)
    unlike = _unlike(trial, outputs)
    if unlike:
        return [_row(trial, name, "INCONCLUSIVE", unlike) for name in names]
    given = {
        name: g.to(trial.arguments[name].device)
        for name, g in gradients.items()
        if g is not None and g.shape == trial.arguments[name].shape
    }
    exact = converted(trial.arguments, torch.float64)
    dys = [dy.double() for dy in trial.dys]
    intervals = trial.truth.intervals(exact, dys, given)
    costs = _costs(trial, intervals)
    relative = [cost / s for n, cost in costs.items() if (s := intervals[n].scale())]
    rounding = max((cost for cost in relative if cost < UNDERFLOW), default=0.0)
    rows: list[Row] = []
    for name in names:
        if name not in intervals:
            continue
        judged = partial(_judged, trial, name, gradients[name])
        row = judged(intervals[name], costs[name], rounding)
        if row.verdict == "FAIL" and name in given:
            wider = with_ties_broken(trial, name, intervals[name])
            row = judged(wider, costs[name], rounding) if wider else row
        rows.append(row)
    return rows


def limits_of(trial: Trial) -> dict[str, float]:
    """Return by how much each gradient may be off, as an absolute error."""
    dys = [dy.double() for dy in trial.dys]
    intervals = trial.truth.intervals(converted(trial.arguments, torch.float64), dys)
    limits = {
        name: TOLERANCES[trial.dtype].floor * (interval.scale() or 1.0)
        for name, interval in intervals.items()
    }
    for row in judge(trial):
        name = row.tensor.removeprefix("d")
        if isfinite(row.limit):
            limits[name] = row.limit * (intervals[name].scale() or 1.0)
    return limits


def _unlike(trial: Trial, outputs: Sequence[Tensor]) -> str:
    """Say why a forward pass in a short dtype is another than that in float64; "" if it is not."""
    if not all(y.isfinite().all() for y in outputs):
        return "the forward pass overflows in this dtype"
    if trial.dtype != torch.float64:
        try:
            exact = trial.subject.run(converted(trial.arguments, torch.float64)).outputs
        except Exception:  # the subject's own: it does not run in float64
            return ""
        if any(relative_error(a, b) > UNDERFLOW for a, b in zip(outputs, exact, strict=True)):
            return "the forward pass computes something else than in float64"
    return ""


def _judged(
    trial: Trial,
    name: str,
    gradient: Tensor | None,
    interval: Interval,
    cost: float,
    rounding: float,
) -> Row:
    """Return the row of one gradient, given what rounding costs it and all."""
    argument = trial.arguments[name]
    wrong = misfit(name, gradient, argument)
    if wrong:
        return _row(trial, name, "FAIL", wrong)
    value = torch.zeros_like(interval.value) if gradient is None else gradient.double()
    excess = interval.excess(value)
    scale = interval.scale()
    tolerance = TOLERANCES[argument.dtype]
    smallest = 1e-3 * tolerance.floor * largest_of(trial.dys)
    limit = max(
        tolerance.floor * scale,
        tolerance.factor * rounding * scale,
        max(tolerance.factor, 4.0) * cost,
        smallest,
    )
    error = largest(excess.nan_to_num(torch.inf, posinf=torch.inf))
    unit = scale or 1.0
    row = partial(
        Row,
        f"d{name}",
        str(argument.dtype).removeprefix("torch."),
        tuple(argument.shape),
        error=error / unit,
        rounding=cost / unit,
        limit=limit / unit,
    )
    if error <= limit:
        if not value.any() and not interval.value.any():
            return row(verdict="PASS")  # nothing hangs on this argument, and the gradient says so
        unknown = largest(interval.slack) + (limit if error > tolerance.floor * scale else 0.0)
        if unknown > max(CANNOT_TELL, 2 * tolerance.floor) * scale + smallest:
            words = "rounding, or what the true gradient is not known by, is too large to tell"
            return row(verdict="INCONCLUSIVE", words=words)
        return row(verdict="PASS")
    place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    got, expected = value[place].item(), interval.value[place].item()
    what = f"d{name} is None" if gradient is None else f"d{name} is wrong"
    where = f" at {list(place)}" if place else ""
    count = int((excess > limit).sum())
    words = (
        f"{what}: worst{where}, {digits(got, expected)} where {_expected(interval, place, got)} is "
        f"right; {count} of {excess.numel()} numbers"
    )
    return row(verdict="FAIL", words=words, worst=place, got=got, expected=expected)


def _expected(interval: Interval, place: tuple[int, ...], got: float) -> str:
    low, high = interval.low[place].item(), interval.high[place].item()
    if high - low > 1e-3 * (abs(low) + abs(high)):
        return f"{low:.6g} to {high:.6g} (a kink)"
    return digits(interval.value[place].item(), got)


def _row(trial: Trial, name: str, verdict: Verdict, words: str) -> Row:
    argument = trial.arguments[name]
    dtype = str(argument.dtype).removeprefix("torch.")
    nan = float("nan")
    return Row(f"d{name}", dtype, tuple(argument.shape), verdict, nan, nan, nan, words)


def _costs(trial: Trial, intervals: Mapping[str, Interval]) -> dict[str, float]:
    """Return for each gradient what rounding of the same arithmetic costs, as an absolute error.

    From the reference in the same dtype, from the subject itself in float64 with every result
    rounded to the dtype, and from inputs that are moved by one rounding: the largest of them.
    """
    exact = converted(trial.arguments, torch.float64)
    dys = [dy.double() for dy in trial.dys]
    costs = dict.fromkeys(intervals, 0.0)

    def note(found: Gradients, base: Gradients, most: float = torch.inf) -> None:
        for name in costs:
            a, b = found.get(name), base.get(name)
            if a is not None and b is not None and a.shape == b.shape:
                error = largest(a.double() - b.double())
                if error < most * intervals[name].scale():
                    costs[name] = max(costs[name], error)

    epsilon = torch.finfo(trial.dtype).eps
    if isinstance(trial.truth, Reference):
        base = {name: interval.value for name, interval in intervals.items()}
        if trial.dtype != torch.float64:
            note(trial.truth.gradients(trial.arguments, trial.dys, trial.dtype), base)
        near, near_dys = _jittered(exact, epsilon, 1), _jittered_all(dys, epsilon)
        note(trial.truth(near, near_dys), base, UNDERFLOW)  # beyond it crossed a kink
    if trial.dtype != torch.float64:
        try:
            base = trial.subject.run(exact).backward(dys)
            with Rounded(trial.dtype):
                found = trial.subject.run(exact).backward(dys)
            note(found, base)
        except Exception:  # the subject's own: then nothing is known from this side
            return costs
    return costs


class Rounded(TorchDispatchMode):
    """Round the result of every operation in float64 to a shorter dtype and back."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in audit.Recorder

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]  untyped in torch
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and round what it returns; views are rounded already."""
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        if func._schema.is_mutable:
            for tensor in _doubles(result):
                tensor.copy_(tensor.to(self._dtype))
            return result
        return tree_map_only(Tensor, self._rounded, result)

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype).double() if tensor.dtype == torch.float64 else tensor


def _doubles(result: object) -> list[Tensor]:
    parts = cast(Sequence[object], result) if isinstance(result, (tuple, list)) else [result]
    return [t for t in parts if isinstance(t, Tensor) and t.dtype == torch.float64]


def _jittered(arguments: Arguments, epsilon: float, seed: int) -> dict[str, Tensor]:
    """Return the arguments, each number moved by up to one rounding."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor * (1 + epsilon * _signs(tensor, generator))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in arguments.items()
    }


def _jittered_all(dys: Sequence[Tensor], epsilon: float) -> list[Tensor]:
    named = {str(number): dy for number, dy in enumerate(dys)}
    return list(_jittered(named, epsilon, 2).values())


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, tensor.shape, generator=generator)
    return (2 * drawn - 1).to(tensor.device, tensor.dtype)


def _nearby(arguments: Arguments, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Return other inputs, each number within a tenth, so that signs and ranges stay."""
    return converted(_jittered(arguments, 0.1, seed), dtype)


def _remarks(trial: Trial) -> list[str]:
    run = trial.subject.run(copies(trial.arguments))
    if not isinstance(trial.subject, ThroughAutograd) or not isinstance(run, AutogradPass):
        return []
    if trial.subject.places:
        judged = ", ".join(map(str, trial.subject.places))
        run.remarks.append(f"of its outputs these have a gradient, and are judged: {judged}")
    if trial.subject.in_place:
        run.remarks.append("it writes to its inputs, so it is given copies")
    try:
        run.backward(trial.copied_dys())
    except Exception:  # the subject's own: the rows say so already
        return []
    return run.remarks


# Contracts ----------------------------------------------------------------------------------------


JUDGE_AGAIN = ("batch of one", "empty batch", "ties", "used twice")
"""Contracts that judge the numbers again. What is wrong without them is not their finding."""


def _outcomes(trial: Trial, contracts: Sequence[str], rows: Sequence[Row]) -> Generator[Outcome]:
    """Yield what became of each contract; a subject that is not deterministic keeps none.

    `rows` are the verdicts on the gradients themselves.
    """
    try:
        trial.gradients()
    except Exception:  # the subject's own: the rows say so already
        return
    first = determinism(trial)
    yield first
    if first.verdict == "FAIL":
        return
    wrong = {row.tensor for row in rows if row.verdict == "FAIL"}
    refused = any(row.verdict == "FAIL" and row.worst is None for row in rows)
    settled = replace(trial, settled=[tensor.removeprefix("d") for tensor in wrong])
    for name in contracts:
        outcome = check_contract(name, settled)
        if outcome.verdict == "FAIL" and name in JUDGE_AGAIN:
            news = [] if refused else [w for w in outcome.words if w.split()[0] not in wrong]
            if not news:
                reason = "it would say again what is wrong with the gradients"
                outcome = Outcome(name, "SKIPPED", (reason,))
            else:
                outcome = Outcome(name, "FAIL", tuple(news))
        yield outcome


# Failures -----------------------------------------------------------------------------------------


def _explained(report: Report, trial: Trial) -> Report:
    """Return the report with the causes and the smallest shapes that fail."""
    found = [d for d in diagnoses_of(trial) if _is_about(report, d)]
    for dtype in _short_dtypes_alone(report, trial):
        now = Trial.of(trial.subject, converted(trial.arguments, dtype), trial.truth, report.seed)
        seen = {diagnosis.argument for diagnosis in found}
        found += [d for d in diagnoses_of(now) if d.argument not in seen and _is_about(report, d)]
    for outcome in report.outcomes:
        if outcome.verdict == "FAIL":
            found += [d for d in causes(outcome, trial, found) if d.words not in _words(found)]
    told = {diagnosis.argument for diagnosis in found}
    for row in report.rows:
        name = row.tensor.removeprefix("d")
        if row.verdict == "FAIL" and not told & {"", name}:
            words = (
                f"the gradient of {name} is wrong in {row.dtype}, and the cause is not recognised"
            )
            found.append(Diagnosis(NOT_RECOGNISED, name, words, row.words))
            told.add(name)
    small = _shrunk(trial, _fails_like(report))
    shapes = {name: tuple(tensor.shape) for name, tensor in small.arguments.items()}
    return replace(report, diagnoses=tuple(found), smallest=shapes, trial=trial, witness=small)


def _is_about(report: Report, diagnosis: Diagnosis) -> bool:
    """Tell whether something in the report is wrong that a diagnosis can be about."""
    gradient = f"d{diagnosis.argument}"
    broken = [outcome for outcome in report.outcomes if outcome.verdict == "FAIL"]
    if diagnosis.cause == "stale saved tensor":
        return any(outcome.contract in ("second forward", "determinism") for outcome in broken)
    if diagnosis.argument == "" or diagnosis.cause == "in-place change":
        return True
    return any(row.verdict != "PASS" and row.tensor == gradient for row in report.rows) or any(
        gradient in words.split() for outcome in broken for words in outcome.words
    )


def _words(diagnoses: Sequence[Diagnosis]) -> set[str]:
    return {diagnosis.words for diagnosis in diagnoses}


def _short_dtypes_alone(report: Report, trial: Trial) -> list[torch.dtype]:
    """Return the dtypes in which a gradient is wrong that is right in all longer ones."""
    wide = str(trial.dtype).removeprefix("torch.")
    wrong = {row.tensor for row in report.rows if row.verdict == "FAIL" and row.dtype == wide}
    found: list[torch.dtype] = []
    for row in report.rows:
        if row.verdict == "FAIL" and row.tensor not in wrong:
            wrong.add(row.tensor)
            found.append(getattr(torch, row.dtype))
    return list(dict.fromkeys(found))


def diagnoses_of(trial: Trial) -> list[Diagnosis]:
    """Return what the evidence says about the cause."""
    with trial.put_back():
        return list(diagnose(trial.subject, trial.arguments, trial.dys, trial.truth))


def _fails_like(report: Report) -> Callable[[Trial], bool]:
    """Return a test that tells whether a smaller trial still fails as the report does."""
    wide = report.rows[0].dtype if report.rows else ""
    wrong = {
        (row.tensor, row.worst is None)
        for row in report.rows
        if row.verdict == "FAIL" and row.dtype == wide
    }
    if wrong:
        return lambda trial: any(
            (row.tensor, row.worst is None) in wrong and row.verdict == "FAIL"
            for row in judge(trial)
        )
    for outcome in report.outcomes:
        if outcome.verdict == "FAIL":
            name = outcome.contract
            if name == "determinism":
                return lambda trial: determinism(trial).verdict == "FAIL"
            return lambda trial: check_contract(name, trial).verdict == "FAIL"
    return lambda trial: False  # wrong in a shorter dtype alone: shown at the shapes given


def _shrunk(trial: Trial, fails: Callable[[Trial], bool]) -> Trial:
    """Return the smallest trial that still fails: every length is made as small as it can be."""
    changed = True
    while changed:
        changed = False
        sizes = {n for tensor in trial.arguments.values() for n in tensor.shape if n > 1}
        for size in sorted(sizes, reverse=True):
            smaller = _smallest(trial, size, fails)
            if smaller is not None:
                trial, changed = smaller, True
                break
    return trial


def _smallest(trial: Trial, size: int, fails: Callable[[Trial], bool]) -> Trial | None:
    """Return the trial with a lesser length in the place of `size` that still fails, if any does.

    Doubled from 1 until it fails, then halved between: a few trials, and the least length but for
    one that fails by itself among others that do not.
    """
    found, works, length = None, 0, 1
    while length < size:
        found = _failing(trial, size, length, fails)
        if found is not None:
            break
        works, length = length, 2 * length
    length = min(length, size)
    while works + 1 < length:
        middle = (works + length) // 2
        smaller = _failing(trial, size, middle, fails)
        if smaller is None:
            works = middle
        else:
            found, length = smaller, middle
    return found


def _failing(trial: Trial, old: int, new: int, fails: Callable[[Trial], bool]) -> Trial | None:
    """Return the trial with another length, if it fails."""
    try:
        smaller = trial.resized(old, new)
        return smaller if fails(smaller) else None
    except (Refused, UsageError):
        return None
    except Exception:  # the subject's or the reference's own: these sizes do not suit it
        return None


def argument_words(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return "x 4×3, weight 2×3"."""
    return ", ".join(
        f"{name} {shape_of(torch.empty(tuple(shape), device='meta'))}"
        for name, shape in shapes.items()
    )
