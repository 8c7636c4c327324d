"""Say why a contract is broken, in words for the person who made the mistake, with what shows it.

`diagnosis` explains most of it; here are the causes of what it leaves unexplained. The pass is
asked again, in the situation that the contract found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from manualbp.checks.doctor.contracts import (
    LAYOUTS,
    Outcome,
    Trial,
    batch_length,
    changed,
    choices,
    clashes,
    first_line,
    inputs_of,
    largest,
    with_batch,
)
from manualbp.checks.doctor.diagnosis import NOT_RECOGNISED, diagnose
from manualbp.checks.doctor.subject import Diagnosis
from manualbp.checks.doctor.subjects import RunsNeeding

LARGE = 2.0**40
"""Times dy: whatever is cut off anywhere is cut off here."""

LINEAR = frozenset(
    ("upstream ignored", "upstream twice", "extra term", "precision", "clipped", NOT_RECOGNISED)
)
STRIDES = frozenset(("strides", "in-place change", "error", "not deterministic", "assigned"))
MEMORY = frozenset(
    (
        *("accumulated", "not deterministic", "stale saved tensor", "saved tensor overwritten"),
        *("in-place change", "assigned"),
    )
)

EXPLAINED_BY: Mapping[str, frozenset[str]] = {
    "determinism": MEMORY,
    "dy strided": STRIDES,
    "dy transposed": STRIDES,
    "dy expanded": STRIDES,
    "dy scaled": LINEAR,
    "dy zero": LINEAR,
    "linear in dy": LINEAR,
    "no mutation": frozenset(("in-place change",)),
    "repeated backward": MEMORY,
    "second forward": MEMORY,
    "used twice": MEMORY,
    "nothing carried over": MEMORY,
}
"""Causes that break a contract, so that nothing is left to explain."""


def causes(outcome: Outcome, trial: Trial, known: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Return why a contract is broken; nothing where what is known explains it."""
    if any(d.cause in EXPLAINED_BY.get(outcome.contract, ()) for d in known):
        return []
    with trial.put_back():
        found = list(EXPLANATIONS[outcome.contract](trial, outcome))
    return found or [_as_seen(outcome)]


def _as_seen(outcome: Outcome) -> Diagnosis:
    """Return what was seen, where that is all that can be said."""
    words = f"the contract '{outcome.contract}' is broken, and the cause is not recognised"
    return Diagnosis(NOT_RECOGNISED, "", words, outcome.words[0])


def _named(outcome: Outcome) -> list[str]:
    """Return the arguments whose gradients the words of an outcome begin with."""
    firsts = [words.split()[0] for words in outcome.words]
    return list(dict.fromkeys(first[1:] for first in firsts if first.startswith("d")))


def _not_linear(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    """Every gradient is linear in dy: tell which law this one follows."""
    for name in _named(outcome):
        if name in trial.arguments:
            yield _law(trial, name)


def _law(trial: Trial, name: str) -> Diagnosis:
    def g(change: Callable[[Tensor], Tensor]) -> Tensor:
        found = trial.with_dys(change).gradients().get(name)
        zero = torch.zeros_like(trial.arguments[name], dtype=torch.float64)
        return zero if found is None else found.double()

    once, zero, far = g(lambda dy: dy), g(torch.zeros_like), g(lambda dy: LARGE * dy)
    start = f"the gradient of {name}"
    if not zero.isfinite().all():
        words = f"{start} is not a number for dy = 0: something is divided by what dy makes 0"
        if not once.isfinite().all():
            words = f"{start} is not finite"  # for any dy
        count = int((~zero.isfinite()).sum())
        return Diagnosis("not finite", name, words, f"{count} of {zero.numel()} numbers")
    if zero.any():
        words = f"{start} is wrong: a term is added that does not depend on dy"
        return Diagnosis("extra term", name, words, f"dy = 0 gives up to {largest(zero):.3g}")
    if not far.isfinite().all():
        return Diagnosis("not finite", name, f"{start} overflows for a large dy", "at 2^40 dy")
    if torch.equal(far, once):
        words = f"{start} is wrong: the size of dy is ignored, only its direction counts"
        return Diagnosis("upstream ignored", name, words, "2^40 dy gives the same gradient as dy")
    if _near(far, g(lambda dy: LARGE / 1024 * dy)):
        return _clipped(name, once, far, g(torch.sign))
    if torch.equal(g(torch.neg), once):
        words = f"{start} is wrong: the sign of dy is lost, as in dy² or |dy|"
        return Diagnosis("upstream twice", name, words, "-dy gives the same gradient as dy")
    sizes = ", ".join(f"{s:g} dy: {largest(g(lambda dy, s=s: s * dy)):.4g}" for s in (1, 2, 1024))
    words = f"{start} is not proportional to dy, as every gradient is; the law is not recognised"
    return Diagnosis(NOT_RECOGNISED, name, words, f"its largest number for {sizes}")


def _clipped(name: str, once: Tensor, far: Tensor, signs: Tensor) -> Diagnosis:
    """Tell what is cut off, of a gradient that grows no more from some dy on.

    `once` is the gradient for dy, `far` that for a very large one, `signs` that for dy's signs.
    """
    start, bound, norm = f"the gradient of {name}", largest(far), _norm(far)
    cap = (far * signs).sum().item() / max(signs.square().sum().item(), 1e-300)
    if _near(far, bound * once.sign()):
        words = f"{start} is cut off at ±{bound:.6g}: a larger dy does not make it larger"
        evidence = f"2^40 dy gives no more than {bound:.6g}"
    elif _near(far, cap * signs):
        words = f"{start} is wrong for a large dy: dy is cut off at ±{cap:.6g}"
        evidence = f"2^40 dy gives what ±{cap:.6g} gives"
    elif _near(far * _norm(once), norm * once):
        words = f"{start} is wrong for a large dy: it is scaled down to a norm of {norm:.6g}"
        evidence = "2^40 dy gives the same direction, but no more"
    else:
        words = f"{start} is wrong for a large dy: from some size on a larger dy does not count"
        evidence = f"2^40 dy gives no more than 2^30 dy, up to {bound:.6g}"
    return Diagnosis("clipped", name, words, evidence)


def _norm(tensor: Tensor) -> float:
    return tensor.square().sum().sqrt().item()


def _near(a: Tensor, b: Tensor) -> bool:
    return largest(a - b) <= 1e-6 * largest(b)


def _strides_of_inputs(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    """Tell which input it is whose strides are overlooked."""
    expected = trial.gradients()
    for name in inputs_of(trial):
        for layout, change in LAYOUTS.items():
            other = {**trial.arguments, name: change(trial.arguments[name])}
            where = f"where {name} is {layout} in memory"
            try:
                got = replace(trial, arguments=other).gradients()
            except Exception as error:  # the subject's own, whatever it is, is the finding
                words = f"the backward pass breaks down {where}, not where it is contiguous"
                yield Diagnosis("strides", "", words, first_line(error))
                return
            lines = changed(got, expected, where, trial.small)
            if lines:
                wrong = lines[0].split()[0][1:]
                words = f"the gradient of {wrong} is wrong {where}: its strides are overlooked"
                yield Diagnosis("strides", wrong, words, f"the same numbers, but {lines[0]}")
                return


def _one_example(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    """Examine the batch of one as any other."""
    small = with_batch(trial, 1)
    for found in diagnose(small.subject, small.arguments, small.dys, small.truth):
        if found.cause != "error" and found.argument not in _named(outcome):
            continue
        what = found.words
        if found.cause == "constant factor":  # which is no length here: all that matter are 1
            what = what.partition(":")[0]
        evidence = f"{found.evidence}; with {batch_length(trial)} it is right"
        yield replace(found, words=f"for a batch of one, {what}", evidence=evidence)


def _no_example(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    _, failed, error = outcome.words[0].partition("the backward pass fails for an empty batch: ")
    if failed:
        words = "the backward pass breaks down for an empty batch, which the forward pass takes"
        yield Diagnosis("empty batch", "", words, error)
    for name in _named(outcome):
        words = f"the gradient of {name} is wrong for an empty batch, where there is nothing to add"
        yield Diagnosis("empty batch", name, words, outcome.words[0])


def _tied(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    """Tell by how much numbers that are tied count too often."""
    for found in clashes(trial):
        names = " and ".join(found.tied.groups)
        several = len(found.tied.groups) > 1
        start = f"the gradients of {names} are" if several else f"the gradient of {names} is"
        words = f"{start} wrong {found.tied.words}: "
        ratio = found.total / found.slope if found.slope else 0.0
        if ratio > 1.5 and abs(ratio - round(ratio)) < 1e-4:
            words += (
                f"each of {round(ratio)} tied numbers, such as equal maxima, gets the whole "
                "gradient; one of them may get it, or they share it"
            )
        elif found.total == 0:
            words += (
                "none of the tied numbers, such as equal maxima, gets a gradient; one of them may "
                "get it, or they share it"
            )
        else:
            words += "what tied numbers, such as equal maxima, get together is not the whole"
        evidence = (
            f"moved together, {found.members} stay tied and have the slope {found.slope:.6g}; the "
            f"gradients there add up to {found.total:.6g}"
        )
        yield Diagnosis("ties", next(iter(found.tied.groups)), words, evidence)


def _output_alone(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    """The words of the contract say which output it is."""
    seen = outcome.words[0]
    output = seen.partition("if only output ")[2].split()[0]
    reason = (
        "after ctx.set_materialize_grads(False) the dy of an output that is not used is None, and "
        "stands for zero"
    )
    if seen.startswith("it fails"):
        words = f"the backward pass breaks down if only output {output} is used: {reason}"
        yield Diagnosis("needed gradients", "", words, seen.partition(": ")[2])
    for name in _named(outcome):
        words = f"the gradient of {name} is wrong if only output {output} is used: {reason}"
        yield Diagnosis("needed gradients", name, words, seen)


def _not_all_needed(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    """Tell which choice of gradients goes wrong, and how."""
    subject, expected = trial.subject, trial.gradients()
    assert isinstance(subject, RunsNeeding)
    for chosen in choices(list(expected)):
        only = f"if only {' and '.join(chosen)} {'needs' if len(chosen) == 1 else 'need'} one"
        try:
            got = subject.run_needing(trial.arguments, chosen).backward(trial.copied_dys())
        except Exception as error:  # the subject's own, whatever it is, is the finding
            words = f"the backward pass breaks down {only.removesuffix('one')}a gradient"
            yield Diagnosis("needed gradients", "", words, first_line(error))
            return
        lines = changed(got, {n: expected[n] for n in chosen}, only, trial.small)
        if lines:
            name = lines[0].split()[0][1:]
            words = f"the gradient of {name} is another {only}"
            if got.get(name) is None:
                words = (
                    f"the gradient of {name} is missing {only}: whether it is computed hangs on "
                    "whether another is asked for"
                )
            yield Diagnosis("needed gradients", name, words, lines[0])
            return


def _kept(words: str) -> Callable[[Trial, Outcome], Iterator[Diagnosis]]:
    """Return an explanation in the same words for each gradient that is another."""

    def explain(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
        for name in _named(outcome):
            text = f"the gradient of {name} {words}"
            yield Diagnosis("saved tensor overwritten", name, text, outcome.words[0])

    return explain


def _second(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    words = "is wrong after a second forward pass: what it is made from is shared between passes"
    if "after the backward pass of another" in outcome.words[0]:
        words = "is written to by the next backward pass: it must be in memory of its own"
    yield from _kept(words)(trial, outcome)


def _mutation(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    for seen in outcome.words:
        evidence = "it was written to, or holds other numbers after the pass than before"
        yield Diagnosis("in-place change", "", f"{seen}, which belongs to the caller", evidence)


def _layout(trial: Trial, outcome: Outcome) -> Iterator[Diagnosis]:
    """Of dy: the words of the contract say which, and the error if it is one."""
    seen = outcome.words[0]
    how = seen.partition(" for ")[2].split(":")[0]
    if seen.startswith("the backward pass fails"):
        words = f"the backward pass breaks down for {how}, not for the same numbers contiguously"
        yield Diagnosis("strides", "", words, seen.partition(": ")[2])
    for name in _named(outcome):
        words = f"the gradient of {name} is wrong for {how}: its strides are overlooked"
        yield Diagnosis("strides", name, words, seen)


EXPLANATIONS: Mapping[str, Callable[[Trial, Outcome], Iterator[Diagnosis]]] = {
    "determinism": _kept("is another in an equal pass: it is not deterministic"),
    "dy strided": _layout,
    "dy transposed": _layout,
    "dy expanded": _layout,
    "dy scaled": _not_linear,
    "dy zero": _not_linear,
    "linear in dy": _not_linear,
    "inputs strided": _strides_of_inputs,
    "batch of one": _one_example,
    "empty batch": _no_example,
    "ties": _tied,
    "requires_grad": _not_all_needed,
    "outputs alone": _output_alone,
    "no mutation": _mutation,
    "repeated backward": _kept("is another in a second backward pass: what was saved is changed"),
    "second forward": _second,
    "used twice": _kept("is wrong if it is used twice in a graph: the uses share something"),
    "nothing carried over": _kept("hangs on passes before on other inputs: something is kept"),
}
