"""Prove that all variants of a training step agree, then time them side by side."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from platform import python_version
from time import perf_counter
from typing import Any

import numpy as np
import torch

from manualbp.checks.bench.memory import Memory, memory_of_step, saved_by_autograd, saved_by_hand
from manualbp.checks.bench.variants import (
    BUILDERS,
    BY_HAND,
    COMPILED,
    COMPILED_AUTOGRAD,
    EAGER_AUTOGRAD,
    TOO_SMALL,
    Floor,
    NotAvailable,
    Observed,
    Timed,
    Variant,
    in_parts,
)
from manualbp.checks.bench.variants import threads as threads_of_torch
from manualbp.checks.bench.workloads import Batch, Problem, Workload
from manualbp.errors import CheckFailed
from manualbp.recording import no_garbage_collection

PROOF_STEPS = 7
SMALLER_BATCH_AT = 6  # as the last one of an epoch; then one more of the usual size
LIMIT = 1e-9
"""Relative error that rounding in float64 never reaches in so few steps."""

ROUND_SECONDS = 0.02
MOST_STEPS = 1000  # of a round
HINDERED = 3.0
"""So many times as long as with one thread no step takes for which there are cores."""

Progress = Callable[[str], None]
"""Is told what comes next."""


@dataclass(frozen=True)
class Quartiles:
    """Microseconds per step: the median of all rounds, and a quarter below and above."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Result:
    """What was measured for one workload.

    A ratio is the median, over the rounds, of one variant's time over another's in the same round:
    on a machine that others use too, both are slowed down alike. Medians of each could be of
    different rounds, one quiet and one not.

    By hand is what `train` does, the whole batch at once or in parts, as autograd is torch.optim's
    default, foreach or fused: the faster counts for time. For memory it is the leaner that is no
    slower than autograd.
    """

    workload: str
    threads: int
    dtype: str
    device: str
    rounds: int
    times: Mapping[str, Sequence[float]]
    """Microseconds per step of each variant, one number a round."""
    unavailable: Mapping[str, str]
    memory_bytes: Mapping[str, Memory]
    saved_bytes: Mapping[str, int]
    one_thread: float | None = None
    """Median of autograd's step with one thread, on a CPU where all others have several."""

    @property
    def slowed_down(self) -> float:
        """Return how many times as long autograd's step takes as with one thread."""
        if not self.one_thread:
            return 1.0
        return self.microseconds_per_step["autograd_default"].median / self.one_thread

    @property
    def hindered(self) -> bool:
        """Return whether the threads wait for a core, so that the times say nothing."""
        return self.slowed_down > HINDERED

    @property
    def microseconds_per_step(self) -> dict[str, Quartiles]:
        """Return the quartiles of each variant's times."""
        return {name: quartiles(times) for name, times in self.times.items()}

    def over(self, variant: str, other: str) -> float:
        """Return time(variant) / time(other)."""
        return float(np.median(np.divide(self.times[variant], self.times[other])))

    def best(self, variants: Iterable[str]) -> str | None:
        """Return the fastest of those variants that were timed."""
        timed = [name for name in variants if name in self.times]
        return min(timed, key=lambda name: self.over(name, "manual"), default=None)

    @property
    def by_hand(self) -> str:
        """Return the fastest variant by hand."""
        return self.best(BY_HAND) or "manual"

    @property
    def ratio(self) -> float:
        """Return time(eager autograd's best) / time(by hand)."""
        return self._of_bests(EAGER_AUTOGRAD, BY_HAND) or 0.0

    @property
    def compiled_ratio(self) -> float | None:
        """Return time(eager autograd's best) / time(by hand, compiled); None where it was not."""
        return self._of_bests(EAGER_AUTOGRAD, ["manual_compiled"])

    @property
    def ratio_to_compile(self) -> float | None:
        """Return time(compiled autograd's best) / time(by hand); None where nothing compiled."""
        return self._of_bests(COMPILED_AUTOGRAD, BY_HAND)

    @property
    def ratio_to_floor(self) -> float:
        """Return time(by hand) / time(only the matrix products)."""
        return self.over(self.by_hand, "floor")

    @property
    def memory_ratio(self) -> float:
        """Return memory(by hand) / memory(eager autograd's leanest), live and step together."""
        autograd = self.best(EAGER_AUTOGRAD) or self.by_hand
        ours = [name for name in BY_HAND if name in self.memory_bytes]
        fast = [name for name in ours if self.over(name, autograd) <= 1] or [self.by_hand]
        return self._leanest(fast) / self._leanest(EAGER_AUTOGRAD)

    def _leanest(self, variants: Iterable[str]) -> int:
        return min(self.memory_bytes[n].total for n in variants if n in self.memory_bytes)

    def _of_bests(self, variants: Iterable[str], others: Iterable[str]) -> float | None:
        best, other = self.best(variants), self.best(others)
        return self.over(best, other) if best and other else None

    def as_json(self) -> dict[str, Any]:
        """Return all of it, ratios and versions too; of the times, the quartiles."""
        times = {name: asdict(found) for name, found in self.microseconds_per_step.items()}
        measured = {name: value for name, value in asdict(self).items() if name != "times"}
        return measured | {
            "microseconds_per_step": times,
            "best_autograd": self.best(EAGER_AUTOGRAD),
            "best_by_hand": self.by_hand,
            "ratio": self.ratio,
            "compiled_ratio": self.compiled_ratio,
            "ratio_to_compile": self.ratio_to_compile,
            "ratio_to_floor": self.ratio_to_floor,
            "memory_ratio": self.memory_ratio,
            "hindered": self.hindered,
            "versions": {"torch": torch.__version__, "python": python_version()},
        }


def measure_workload(
    workload: Workload,
    dtype: torch.dtype,
    device: torch.device,
    *,
    threads: int,
    rounds: int,
    unavailable: Mapping[str, str],
    progress: Progress,
) -> Result:
    """Measure a workload, all variants but those that are `unavailable` for the reasons given.

    Raises CheckFailed where a variant differs from autograd.
    """
    with threads_of_torch(threads):
        out = dict(unavailable)
        exact = workload.problem(torch.float64, device)
        with _default_dtype(torch.float64):
            variants = _build(exact, out)
            prove(workload.name, variants, proof_batches(exact), out, progress)

        torch.compiler.reset()  # else the programs for float64 are asked first at every step
        problem = workload.problem(dtype, device)
        timed: dict[str, Timed] = {**_build(problem, out)}
        timed["floor"] = Floor(problem)
        times = time_rounds(timed, problem, rounds, out, progress)

        one_thread = None
        if device.type == "cpu" and threads > 1:
            progress("autograd with one thread")
            one_thread = time_with_one_thread(problem)

        progress("memory")
        memory = {
            name: _memory(name, problem)
            for name in BUILDERS
            if name in times and name not in COMPILED  # a program's own memory cannot be counted so
        }
        return Result(
            workload=workload.name,
            threads=threads,
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
            rounds=rounds,
            times=times,
            unavailable=out,
            memory_bytes=memory,
            saved_bytes={
                "manual": saved_by_hand(problem),
                "autograd": saved_by_autograd(problem),
            },
            one_thread=one_thread,
        )


def _build(problem: Problem, unavailable: dict[str, str]) -> dict[str, Variant]:
    """Return all variants that can be had, and note why the others cannot."""
    variants: dict[str, Variant] = {}
    for name, build in BUILDERS.items():
        if name not in unavailable:
            try:
                variants[name] = build(problem)
            except NotAvailable as reason:
                if str(reason) != TOO_SMALL:  # which is nothing that anybody misses
                    unavailable[name] = str(reason)
    return variants


def proof_batches(problem: Problem) -> list[Batch]:
    """Return the batches of the proof, one of them smaller, as the last one of an epoch is."""
    batches = [
        (x.to(problem.device), target.to(problem.device))
        for x, target in islice(cycle(problem.batches), PROOF_STEPS)
    ]
    x, target = batches[SMALLER_BATCH_AT - 1]
    rows = max(1, 2 * len(x) // 3)
    batches[SMALLER_BATCH_AT - 1] = x[:rows], target[:rows]
    return batches


def prove(
    workload: str,
    variants: Mapping[str, Variant],
    batches: Sequence[Batch],
    unavailable: dict[str, str],
    progress: Progress,
) -> None:
    """Raise CheckFailed if, on these batches, a variant differs from the first one in any tensor.

    What turns out not to be available is noted as such.
    """
    reference, *others = variants
    progress(f"proof: {reference}")
    truth = [variants[reference].observe(*batch) for batch in batches]
    for name in others:
        progress(f"proof: {name}")
        try:
            for step, (batch, expected) in enumerate(zip(batches, truth, strict=True), 1):
                found = variants[name].observe(*batch)
                for tensor, error in _errors(found, expected).items():
                    if not error <= LIMIT:
                        raise CheckFailed(
                            f"bench: {workload} is not timed: {name} differs from {reference} at "
                            f"step {step} in {tensor} by {error:.1e} of it, more than {LIMIT:.0e}"
                        )
        except NotAvailable as reason:
            unavailable[name] = str(reason)


def _errors(found: Observed, expected: Observed) -> dict[str, float]:
    """Return max |a-b| / max |b| for each tensor, or NaN where a number is not finite.

    For max |b| stands a thousandth of the largest of all gradients, or all parameters, where that
    is more: numbers that cancel each other out leave nothing but rounding.
    """
    errors: dict[str, float] = {}
    for kind, named in expected.items():
        largest = max(b.abs().max().item() for b in named.values())
        for name, b in named.items():
            difference = (found[kind][name] - b).abs().max().item()
            scale = max(b.abs().max().item(), 1e-3 * largest)
            errors[f"{kind} {name}"] = difference / scale if scale else difference
    return errors


def time_rounds(
    variants: Mapping[str, Timed],
    problem: Problem,
    rounds: int,
    unavailable: dict[str, str],
    progress: Progress,
) -> dict[str, list[float]]:
    """Return the times of a step of each variant, measured in turn, a few milliseconds each.

    A round has every variant once, in an order drawn anew, so that a machine that slows down for a
    while, or a cache that another variant has emptied, falls on all of them alike.
    """
    timers: dict[str, Timer] = {}
    for name, variant in variants.items():
        progress(f"warm-up: {name}")
        try:
            timers[name] = Timer(variant, problem)
        except NotAvailable as reason:
            unavailable[name] = str(reason)
    order = random.Random(0)
    with no_garbage_collection():
        for number in range(1, rounds + 1):
            progress(f"round {number} of {rounds}")
            for name in order.sample(list(timers), len(timers)):
                timers[name].round()
    return {name: timer.times for name, timer in timers.items()}


def time_with_one_thread(problem: Problem) -> float:
    """Return the microseconds of autograd's step with one thread."""
    with threads_of_torch(1):
        timer = Timer(BUILDERS["autograd_default"](problem), problem)
        for _ in range(3):
            timer.round()
        return quartiles(timer.times).median


class Timer:
    """Times one variant, a number of steps at a time that takes about ROUND_SECONDS."""

    def __init__(self, variant: Timed, problem: Problem) -> None:
        self.variant = variant
        self.device = problem.device
        self.feed = cycle(problem.batches)
        self.steps = 1
        self.times: list[float] = []
        self.round()  # compiles, records, makes the optimiser's state
        self.steps = 5
        self.round()
        self.steps = max(1, min(MOST_STEPS, round(ROUND_SECONDS * 1e6 / self.times[-1])))
        self.times.clear()

    def round(self) -> None:
        """Make steps and note the microseconds that each took.

        One more comes first that is not timed: it fetches the variant's memory into the caches.
        """
        first, batches = [next(self.feed)], list(islice(self.feed, self.steps))
        self.variant.run(self._moved(first), 1)
        self._wait()
        began = perf_counter()
        self.variant.run(self._moved(batches), self.steps)
        self._wait()
        self.times.append((perf_counter() - began) / self.steps * 1e6)

    def _moved(self, batches: list[Batch]) -> Iterable[Batch]:
        """Return the batches on the device; where they have to be moved, one by one when needed."""
        if batches[0][0].device == self.device:
            return batches
        return (
            (x.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True))
            for x, target in batches
        )

    def _wait(self) -> None:
        """Wait until the device has done what it was told; the CPU always has."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def quartiles(times: Sequence[float]) -> Quartiles:
    """Return the quartiles of the rounds."""
    median, q1, q3 = np.quantile(times, [0.5, 0.25, 0.75])
    return Quartiles(float(median), float(q1), float(q3))


def _memory(name: str, problem: Problem) -> Memory:
    """Return what a variant's step takes.

    The replay of a CUDA graph shows no tensors. Its memory is what the same operations took while
    it was recorded, and a copy of the arguments.
    """
    if name in BY_HAND and problem.device.type == "cuda":
        own = in_parts(problem) if name == "manual_parts" else problem
        eager = memory_of_step(partial(BUILDERS["manual_eager"], own), problem)
        copies = sum(argument.nbytes for argument in problem.batches[0])
        return replace(eager, live=eager.live + copies, peak=eager.peak + copies)
    return memory_of_step(partial(BUILDERS[name], problem), problem)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Generator[None]:
    """Set the type in which torch.optim counts steps; compiled, Adam computes with it further."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
