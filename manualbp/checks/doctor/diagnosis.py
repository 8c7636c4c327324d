"""Say what is wrong with a backward pass, each cause with the evidence that shows it.

First how the pass behaves: does it change, keep or draw what it must not. Then each gradient:
the simplest hypothesis that gives all of its numbers to rounding, in the run that failed and in
runs with other arguments and other upstream gradients, is the cause. What no hypothesis gives is
told by the places where it is wrong, and else as not recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose, sqrt

import torch
from torch import Tensor

from manualbp.checks.doctor.constants import readings
from manualbp.checks.doctor.fitting import (
    COARSE,
    Fit,
    fit,
    in_other_places,
    missing_term,
    scaled_statistics,
    term_along_another_axis,
    weighted_parts,
)
from manualbp.checks.doctor.hypotheses import (
    Hypothesis,
    along,
    hypotheses,
    kind,
    last_hypotheses,
)
from manualbp.checks.doctor.laboratory import (
    TINY,
    Draw,
    Laboratory,
    copies,
    error_of,
    largest_of,
    other_arguments,
    random_like,
    working_dtype,
)
from manualbp.checks.doctor.passes import PROBES, in_place_changes
from manualbp.checks.doctor.patterns import (
    NOT_RECOGNISED,
    indices,
    pattern,
    wrong_links,
    wrong_parts,
    wrong_places,
)
from manualbp.checks.doctor.subject import Arguments, Diagnosis, Subject

NEARLY = 2e-3
"""A factor that leaves less than this explains a gradient but for a rest."""

TERM_OF = {
    "constant": ", as the mean in the gradient of a normalisation",
    "proportional to the output y": ", as y Σ dy y in the gradient of softmax",
    "proportional to the softmax of the input": ", as in that of log-softmax",
    "proportional to the input less its mean": ", as a normalisation's variance brings in",
}
"""Where a term of this kind is known from."""


def diagnose(
    subject: Subject,
    arguments: Arguments,
    dys: Sequence[Tensor],
    truth: Callable[[Arguments, Sequence[Tensor]], Mapping[str, Tensor]],
) -> list[Diagnosis]:
    """Return what is wrong with the subject's backward pass, empty where nothing is.

    `dys` are upstream gradients, one an output; `truth` gives the right gradients for arguments
    and upstream gradients. Both are asked again for others; neither is changed. An error of the
    forward pass or of `truth` on these arguments comes through.
    """
    lab = Laboratory(subject, truth)
    done = lab.run(arguments)
    found: list[Diagnosis] = []
    try:
        lab.backward(done, arguments, dys)
    except Exception as error:  # whatever the subject's code raises is the finding
        found = [_broken_down(error)]
        plain = [dy.contiguous() for dy in dys]
        try:
            lab.got(arguments, plain)
        except Exception:  # the same: it was told above
            return found
        words = "the backward pass breaks down on this dy, and not where dy lies contiguously"
        found = [replace(found[0], cause="strides", words=words)]
        dys = plain
    draw = lab.draw(arguments, dys)
    limits = lab.limits(draw)
    found += in_place_changes(lab, draw)
    told: set[str] = set()
    for probe in PROBES:
        for diagnosis in probe(lab, draw, limits):
            if diagnosis.argument not in told or not diagnosis.argument:
                found.append(diagnosis)
            told.add(diagnosis.argument)
    unsteady = {d.argument for d in found if d.cause in ("accumulated", "not deterministic")}
    for name in draw.true:
        if name not in unsteady:
            causes = _of_one(lab, name, draw, limits[name])
            if any(d.cause == "assigned" for d in causes):
                # Which number is written last hangs on how dy lies in memory.
                found = [d for d in found if (d.cause, d.argument) != ("strides", name)]
            found += causes
    return found


def _broken_down(error: Exception) -> Diagnosis:
    words = f"the backward pass breaks down with {type(error).__name__}"
    return Diagnosis("error", "", words, (str(error).splitlines() or ["no message"])[0])


def _of_one(lab: Laboratory, name: str, draw: Draw, limit: float) -> list[Diagnosis]:
    """Return what is wrong with the gradient of one argument."""
    gradient, right = draw.got.get(name), draw.true[name]
    if gradient is None:
        if not right.any():
            return []  # None stands for zero
        evidence = f"the right one has numbers up to {largest_of(right):.3g}"
        words = f"there is no gradient of {name}, where one belongs: the backward pass gives None"
        return [Diagnosis("none", name, words, evidence)]
    found = _of_kind(name, draw, gradient)
    if gradient.shape == right.shape:
        if wrong_at_kinks_only(lab, name, draw, limit):
            return found
        if error_of(gradient.double(), right) <= limit:
            return found + _of_other_dys(lab, name, draw, limit)
        if any(d.cause == "dtype" for d in found) and error_of(gradient.double(), right) <= COARSE:
            return found
    lab_draw = _wide(lab, name, draw, limit)
    if lab_draw is None:
        error = error_of(gradient.double(), right)
        unit = torch.finfo(working_dtype(draw.arguments)).eps
        largest = max((largest_of(dy.double()) for dy in draw.dys), default=0.0)
        if largest_of(gradient.double() - right) <= 16 * unit * largest:
            return found  # where a function is flat, its slope is lost to rounding of its value
        if error <= 4 * _cost_of_rounding(lab, name, draw):
            return found
        dtype = kind(working_dtype(draw.arguments))
        evidence = f"in {dtype} its error is {error:.1e}, and rounding explains {limit:.1e}"
        if error > 0.1:  # more than rounding does
            found += _explain(lab, name, draw)
            return [replace(d, words=f"in {dtype} alone, {d.words}") for d in found]
        through = _through_shorter(gradient, right)
        why = f"it goes through {through}" if through else "the same pass is right in float64"
        words = f"precision is lost in the gradient of {name}: {why}"
        return [*found, Diagnosis("precision", name, words, evidence)]
    causes = _explain(lab, name, lab_draw)
    if gradient.shape != right.shape and all(d.cause == NOT_RECOGNISED for d in causes):
        causes = []  # the shape is all that is known
    if gradient.shape != right.shape and any(
        d.cause in ("shape", "transposed", "not summed", "wrong sum", "another argument")
        for d in causes
    ):
        found = [d for d in found if d.cause != "shape"]  # which is what they are about
    return found + causes


def _of_kind(name: str, draw: Draw, gradient: Tensor) -> list[Diagnosis]:
    """Return what is wrong with a gradient's shape, dtype and device."""
    argument = draw.arguments[name]
    found: list[Diagnosis] = []
    for what, is_, expected in (
        ("shape", tuple(gradient.shape), tuple(argument.shape)),
        ("dtype", kind(gradient.dtype), kind(argument.dtype)),
        ("device", str(gradient.device), str(argument.device)),
    ):
        if is_ != expected:
            words = f"the gradient of {name} has another {what} than {name}"
            found.append(Diagnosis(what, name, words, f"it is {is_}, expected {expected}"))
    return found


def wrong_at_kinks_only(lab: Laboratory, name: str, draw: Draw, limit: float) -> bool:
    """Return whether a gradient is wrong nowhere but at kinks, and there within the two slopes.

    At a kink the derivative is a choice between the slopes on its two sides.
    """
    if draw.arguments[name].dtype != torch.float64:
        return False
    places = wrong_places(draw, name, limit).nonzero()
    if not 0 < len(places) <= 64:
        return False
    moved = copies(draw.arguments)
    moved[name] = moved[name].contiguous()
    value = moved[name]
    ours, middle = draw.ours(name), [y.double() for y in lab.run(moved).outputs]
    for place in places:
        at = tuple(int(i) for i in place)
        kept = value[at].item()
        step = 1e-6 * max(1.0, abs(kept))
        bounds = [0.0, 0.0]
        value[at] = kept - step
        left = [y.double() for y in lab.run(moved).outputs]
        value[at] = kept + step
        right = [y.double() for y in lab.run(moved).outputs]
        value[at] = kept
        for dy, below, here, above in zip(draw.dys, left, middle, right, strict=True):
            slopes = torch.stack([dy * (here - below) / step, dy * (above - here) / step])
            bounds[0] += slopes.amin(0).sum().item()
            bounds[1] += slopes.amax(0).sum().item()
        noise = 1e-5 * max(1.0, abs(bounds[0]), abs(bounds[1]))
        if bounds[1] - bounds[0] <= 100 * noise:
            return False  # no kink here
        if not bounds[0] - noise <= ours[at].item() <= bounds[1] + noise:
            return False
    return True


def _cost_of_rounding(lab: Laboratory, name: str, draw: Draw) -> float:
    """Return how far the truth itself moves when the arguments are rounded in other ways.

    Near a tie or a kink rounding decides which branch is taken, and the truth jumps.
    """
    eps, worst = torch.finfo(working_dtype(draw.arguments)).eps, 0.0
    for seed in range(8):
        moved = {
            n: t.double() * (1 + 2 * eps * random_like(t.double(), 40 + seed))
            if t.is_floating_point()
            else t
            for n, t in draw.arguments.items()
        }
        worst = max(worst, error_of(lab.true(moved, draw.dys)[name], draw.true[name]))
    return worst


def _of_other_dys(lab: Laboratory, name: str, draw: Draw, limit: float) -> list[Diagnosis]:
    """Return what is wrong where the upstream gradient is another one, in float64."""
    if working_dtype(draw.arguments) != torch.float64:
        return []
    dys = [random_like(dy, 11 + i) for i, dy in enumerate(draw.dys)]
    try:
        other = lab.draw(draw.arguments, dys)
    except Exception as error:  # whatever the subject's code raises is the finding
        return [_broken_down(error)]
    gradient, right = other.got.get(name), other.true[name]
    if gradient is None or gradient.shape != right.shape:
        return []
    loose = 10 * max(limit, lab.limit(other, name))
    if error_of(gradient.double(), right) <= loose or wrong_at_kinks_only(lab, name, other, loose):
        return []
    return _explain(lab, name, other)


def _wide(lab: Laboratory, name: str, draw: Draw, limit: float) -> Draw | None:
    """Return the run in float64 if it fails there as well, None if it is right there.

    Causes show best in float64. A subject that cannot take it is examined as it is.
    """
    if working_dtype(draw.arguments) == torch.float64:
        return draw
    arguments = {n: t.double() if t.is_floating_point() else t for n, t in draw.arguments.items()}
    try:
        wide = lab.draw(arguments, [dy.double() for dy in draw.dys])
    except Exception:  # a subject may be written for one dtype; nothing is concluded from that
        return draw
    gradient = wide.got.get(name)
    if gradient is None or gradient.shape != wide.true[name].shape:
        return wide
    return None if error_of(gradient.double(), wide.true[name]) <= lab.limit(wide, name) else wide


def _explain(lab: Laboratory, name: str, draw: Draw) -> list[Diagnosis]:
    """Return the simplest causes that explain a wrong gradient."""
    gradient, right = draw.ours(name), draw.true[name]
    if not gradient.isfinite().all() and right.isfinite().all():
        bad = int((~gradient.isfinite()).sum())
        words = f"the gradient of {name} is not finite"
        return [Diagnosis("not finite", name, words, f"{bad} of {gradient.numel()} numbers")]
    if not gradient.any():
        words = f"the gradient of {name} is zero, where one belongs"
        evidence = f"the right one has numbers up to {largest_of(right):.3g}"
        return [Diagnosis("zero", name, words, evidence)]
    draws = [draw, *_more_draws(lab, name, draw)]
    intended = _of_a_flat_function(name, draws)
    if intended is not None:
        return [intended]
    tight = 10 * max(lab.limit(d, name) for d in draws)
    best = _best_fit(hypotheses(lab, name, draw), name, draws, tight)
    if best is not None:
        told = _told(name, best, draws, tight)
        small = None if told else _precision(lab, name, draws, lambda d: d.true[name])
        return told if small is None else [small]
    if in_other_places(name, draws, tight):
        words = (
            f"the gradient of {name} has the right numbers in the wrong places, as after a reshape "
            "without its transpose, or with the indices of something else"
        )
        evidence = f"sorted, they are the right ones in {len(draws)} runs"
        return [Diagnosis("permuted", name, words, evidence)]
    term = missing_term(name, draws, tight)
    if term is not None:
        words = (
            f"in the gradient of {name} a term is missing or wrong that is {term.what} "
            f"along axis {', '.join(map(str, term.axes))}{TERM_OF.get(term.what, '')}"
        )
        evidence = (
            f"truth minus gradient is such a term to {term.error:.0e}; "
            f"its largest number is {term.share:.2g} of the gradient's, in {len(draws)} runs"
        )
        return [Diagnosis("missing term", name, words, evidence)]
    term = term_along_another_axis(name, draws, tight)
    if term is not None:
        words = (
            f"in the gradient of {name} a term that is {term.what} is taken along the wrong axis"
        )
        evidence = (
            "truth minus gradient is one such term along axis 0 less one along axis 1, "
            f"to {term.error:.0e}"
        )
        return [Diagnosis("wrong sum", name, words, evidence)]
    best = _best_fit(last_hypotheses(lab, name, draw), name, draws, tight)
    if best is not None:
        return _told(name, best, draws, tight)
    precision = _precision(lab, name, draws, lambda d: d.true[name])
    if precision is not None:
        return [precision]
    scaled = _scaled(name, draws, tight)
    if scaled is not None:
        return [scaled]
    coarse = None
    if tight < COARSE:
        coarse = _best_fit(hypotheses(lab, name, draw), name, draws, COARSE)
    if coarse is not None and (coarse.hypothesis.cause, coarse.factor) != ("right", 1):
        predict, factor = coarse.hypothesis.predict, coarse.factor
        lost = _precision(lab, name, draws, lambda d: _times(predict(d), factor))
        if lost is not None:
            return [*_told(name, coarse, draws, COARSE), lost]
    return _by_places(lab, name, draws, tight)


DETACHED = "a function given by --reference, with what autograd shall not see detached"


def _of_a_flat_function(name: str, draws: Sequence[Draw]) -> Diagnosis | None:
    """Return that there is a gradient where the outputs do not change: mostly it is meant so."""
    if any(draw.true[name].any() for draw in draws):
        return None
    passed_on = any(
        dy.shape == draws[0].ours(name).shape and torch.equal(draws[0].ours(name), dy.double())
        for dy in draws[0].dys
    )
    looks = "a straight-through estimator" if passed_on else "a surrogate gradient"
    words = (
        f"the outputs do not change with {name} here, its true gradient is zero, but the backward "
        f"pass gives {'dy as it is' if passed_on else 'another'}: this looks like {looks}; if it "
        f"is meant so, compare with {DETACHED}"
    )
    evidence = (
        f"the true gradient is 0 in {len(draws)} runs with other arguments and other dy; the "
        f"backward pass gives numbers up to {largest_of(draws[0].ours(name)):.3g}"
    )
    return Diagnosis("not the derivative", name, words, evidence)


def _scaled(name: str, draws: Sequence[Draw], limit: float) -> Diagnosis | None:
    """Return that parts of a gradient have factors of their own, as from another statistic."""
    term = scaled_statistics(name, draws, limit)
    if term is None:
        return None
    axes = ", ".join(map(str, term.axes))
    others = [axis for axis in range(draws[0].true[name].ndim) if axis not in term.axes]
    where = f"along axis {', '.join(map(str, others))}" if others else "in each run"
    if term.what == "another standard deviation":
        n = torch.Size([draws[0].true[name].shape[axis] for axis in term.axes]).numel()
        words = (
            f"the gradient of {name} is that of a normalisation along axis {axes} with another "
            "standard deviation than in the forward pass"
        )
        for factor, text in (
            (sqrt((n - 1) / n), "its variance is divided by N - 1, in the forward pass by N"),
            (sqrt(n / (n - 1)), "its variance is divided by N, in the forward pass by N - 1"),
        ):
            if abs(term.share / factor - 1) < 1e-3:
                words += f": {text}"
        evidence = (
            f"gradient = a truth + b (x - mean) along axis {axes} to {term.error:.0e}, in "
            f"{len(draws)} runs; a is {term.share:.6g} on average (another ε, or another count)"
        )
        return Diagnosis("another statistic", name, words, evidence)
    words = f"the gradient of {name} is wrong by a factor of its own for each index {where}"
    evidence = (
        f"gradient = a truth, one a along axis {axes}, to {term.error:.0e} in {len(draws)} runs; "
        f"a is {term.share:.4g} on average in one of them"
    )
    return Diagnosis("factor of each index", name, words, evidence)


def _times(tensor: Tensor | None, factor: float) -> Tensor | None:
    return None if tensor is None else factor * tensor


def _more_draws(lab: Laboratory, name: str, draw: Draw) -> list[Draw]:
    """Return runs with another upstream gradient, and with other arguments as well."""
    found: list[Draw] = []
    for arguments, seed in ((draw.arguments, 21), (other_arguments(draw.arguments, 7), 31)):
        dys = [
            random_like(dy, seed + i) if dy.any() else dy  # an output that is left out stays so
            for i, dy in enumerate(draw.dys)
        ]
        try:
            another = lab.draw(arguments, dys)
            gradient, right = another.ours(name), another.true[name]
        except (RuntimeError, ValueError, KeyError, IndexError):
            continue  # the subject does not take these; the others must do
        if right.isfinite().all() and gradient.shape == draw.ours(name).shape:
            found.append(another)
    return found


def _best_fit(
    candidates: Iterator[Hypothesis], name: str, draws: Sequence[Draw], limit: float
) -> Fit | None:
    """Return the first hypothesis that holds as it is, else the first that does with a factor."""
    scaled: Fit | None = None
    for hypothesis in candidates:
        found = fit(hypothesis, name, draws, limit)
        if found is None:
            continue
        if hypothesis.cause == "right" or found.factor == 1:
            return found
        scaled = scaled or found
    return scaled


def _told(name: str, best: Fit, draws: Sequence[Draw], limit: float) -> list[Diagnosis]:
    """Return the diagnoses of a hypothesis with its factor."""
    cause, words = best.hypothesis.cause, best.hypothesis.words
    found: list[Diagnosis] = []
    if cause != "right":
        found.append(
            Diagnosis(cause, name, f"the gradient of {name} is wrong: {words}", best.evidence)
        )
    if best.factor < 0:
        text = f"the gradient of {name} has the wrong sign"
        evidence = f"gradient = {best.factor:.6g} × {'truth' if cause == 'right' else 'that'}; "
        if _passed_through(name, draws):
            text += (
                ": y is the input itself, so this looks like a gradient reversal; if it is meant "
                f"so, compare with {DETACHED}"
            )
        found.append(Diagnosis("sign", name, text, evidence + best.evidence))
    if abs(best.factor) != 1:
        first = draws[0]
        sizes = {n: tuple(t.shape) for n, t in first.arguments.items()}
        sizes |= {"y" if i == 0 else f"y{i}": tuple(y.shape) for i, y in enumerate(first.outputs)}
        meanings = readings(best.factor, sizes, 10 * limit)
        meanings = _share_of_rows(name, first, best.factor) + meanings
        if meanings and all("N-1" in meaning for meaning in meanings):
            meanings.append("a number of the function's own, such as 1 - p")
        size = f"{abs(best.factor):.6g}"
        text = f"the gradient of {name} is wrong by the constant factor {size}"
        if meanings:
            text += f": {' or '.join(meanings)}"
        evidence = f"gradient = {best.factor:.9g} × {'truth' if cause == 'right' else 'that'}; "
        found.append(Diagnosis("constant factor", name, text, evidence + best.evidence))
    return found


def _share_of_rows(name: str, draw: Draw, factor: float) -> list[str]:
    """Return in words that a factor is the share of the rows which are not masked."""
    right = draw.true[name]
    rows = len(right) if right.ndim else 0
    count = int(right.flatten(1).any(1).sum()) if right.ndim > 1 and right.numel() else 0
    if not 0 < count < rows:
        return []
    those = f"where {count} of {rows} indices along axis 0 have a gradient that is not zero"
    if isclose(abs(factor), count / rows, rel_tol=1e-6):
        return [f"{count}/{rows}, {those}"]
    return [f"{rows}/{count}, {those}"] if isclose(abs(factor), rows / count, rel_tol=1e-6) else []


def _passed_through(name: str, draws: Sequence[Draw]) -> bool:
    """Return whether the forward pass hands on this argument as it is."""
    return all(
        len(draw.outputs) == 1 and torch.equal(draw.outputs[0], draw.arguments[name])
        for draw in draws
    )


def _precision(
    lab: Laboratory,
    name: str,
    draws: Sequence[Draw],
    expected: Callable[[Draw], Tensor | None],
) -> Diagnosis | None:
    """Return that an error is one of rounding, if it shows that it is.

    An error of the formula is linear in dy, as the gradient is: three times dy gives exactly three
    times the gradient. Rounding is not: three times dy is rounded in other places.
    """
    draw = draws[0]
    right = expected(draw)
    if right is None or right.shape != draw.ours(name).shape:
        return None
    ours, scale = draw.ours(name), largest_of(right)
    error = error_of(ours, right)
    if not 0 < error < 0.05 or scale == 0:
        return None
    start = f"precision is lost in the gradient of {name}"
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        there = torch.equal(ours.to(dtype).double(), ours)
        if there and not torch.equal(right.to(dtype).double(), right):
            if error > 64 * torch.finfo(dtype).eps:
                continue
            evidence = f"every number of it is one of {kind(dtype)}; its error is {error:.1e}"
            return Diagnosis("precision", name, f"{start}: it goes through {kind(dtype)}", evidence)
    tripled = lab.got(draw.arguments, [3 * dy for dy in draw.dys]).get(name)
    if tripled is None or tripled.shape != right.shape:
        return None
    uneven = largest_of(tripled.double() / 3 - ours) / scale
    spread = ((ours - right).abs() > 0.01 * error * scale).double().mean().item()
    if uneven < error / 100 or uneven > 100 * error or spread < 0.3:
        return None
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    near = [d for d in dtypes if error <= 16 * torch.finfo(d).eps]
    if not near:
        return None
    text = f"{start}: its error is that of rounding in {kind(near[0])}"
    evidence = (
        f"the error is {error:.1e}; 3 dy gives 3 times the gradient only to {uneven:.1e}, "
        "as rounding does and a wrong formula does not"
    )
    return Diagnosis("precision", name, text, evidence)


def _by_places(lab: Laboratory, name: str, draws: Sequence[Draw], limit: float) -> list[Diagnosis]:
    """Return the places where a gradient is wrong; the last resort."""
    draw = draws[0]
    gradient, right = draw.ours(name), draw.true[name]
    if gradient.shape != right.shape:
        words = f"the gradient of {name} is wrong, and the cause is not recognised"
        evidence = f"shape {tuple(gradient.shape)}, expected {tuple(right.shape)}"
        return [Diagnosis(NOT_RECOGNISED, name, words, evidence)]
    clipped = _clipped(name, draws, limit)
    if clipped is not None:
        return [clipped]
    if _not_read(lab, name, draws, limit):
        text = (
            f"the gradient of {name} is wrong in part: it is not zero for numbers of {name} on "
            "which no output depends: a triangle, padding or a mask"
        )
        wrong = int(wrong_places(draw, name, limit).sum())
        evidence = (
            f"{wrong} of {right.numel()} numbers are wrong, all there; other numbers in their "
            f"places change no output"
        )
        return [Diagnosis("masked positions", name, text, evidence)]
    places = pattern(name, draws, limit)
    if places is None or places.cause not in ("kinks", "ties"):
        inactive = _inactive_outputs(lab, name, draw, limit)
        if inactive is not None:
            return [inactive]
    if places is not None and places.cause != "certain elements":
        text = f"the gradient of {name} is wrong in part: {places.words}"
        return [Diagnosis(places.cause, name, text, places.evidence)]
    constants = _few_constants(name, draws, limit) if places is None else None
    if constants is not None:
        return [constants]
    links = wrong_links(lab, name, draw, limit)
    named = links is not None and links.cause != NOT_RECOGNISED
    if links is not None and named and (places is None or links.cause != "wrong derivative"):
        text = f"the gradient of {name} is wrong: {links.words}"
        return [Diagnosis(links.cause, name, text, links.evidence)]
    if places is not None:
        text = f"the gradient of {name} is wrong in part: {places.words}"
        return [Diagnosis(places.cause, name, text, places.evidence)]
    hidden = _hidden(name, draws, limit)
    unreached = (
        f"it is not zero for {hidden.words}, on which y does not depend"
        if hidden is not None
        else ""
    )
    if hidden is not None and (change := _change_by_hidden(lab, name, draw, hidden)) > limit:
        words = f"the gradient of {name} is wrong: {unreached}, and what stands there changes it "
        words += "elsewhere: a mask of the forward pass is missing in it"
        evidence = f"other numbers there change no output, but the gradient by up to {change:.3g}"
        return [Diagnosis("masked positions", name, words, evidence)]
    lost = _lost_parts(lab, name, draw, limit)
    if lost is not None:
        return [lost]
    same_arguments = [d for d in draws if d.arguments is draw.arguments]
    of_one = _of_one_output(lab, name, draw, limit)
    if of_one is not None:
        return of_one
    nearly = _nearly_a_factor(name, same_arguments)
    if nearly is not None:
        return nearly
    weights = weighted_parts(lab, name, same_arguments, limit)
    if weights is not None:
        low, high = weights.factors.min().item(), weights.factors.max().item()
        where = along(weights.axis)
        words = f"the gradient of {name} is wrong: each index along {where} has a factor of its own"
        evidence = (
            f"the contributions with factors from {low:.4g} to {high:.4g} give it to "
            f"{weights.error:.0e}, in {len(same_arguments)} runs with other dy"
        )
        return [Diagnosis("factor of each index", name, words, evidence)]
    return [_not_recognised(lab, name, draw, limit, [unreached, links.words if links else ""])]


def _of_one_output(lab: Laboratory, name: str, draw: Draw, limit: float) -> list[Diagnosis] | None:
    """Return what is wrong with what comes through some outputs, if others are right."""
    wrong: list[tuple[int, Draw]] = []
    for i in range(len(draw.dys) if sum(bool(dy.any()) for dy in draw.dys) > 1 else 0):
        dys = [dy if k == i else torch.zeros_like(dy) for k, dy in enumerate(draw.dys)]
        alone = lab.draw(draw.arguments, dys)
        if alone.got.get(name) is None:
            return None
        if largest_of(alone.ours(name) - alone.true[name]) > limit * largest_of(draw.true[name]):
            wrong.append((i, alone))
    if not wrong or len(wrong) == len(draw.dys):
        return None
    return [
        replace(found, words=f"of what comes through output {i} alone: {found.words}")
        for i, alone in wrong
        for found in _explain(lab, name, alone)
    ]


def _not_read(lab: Laboratory, name: str, draws: Sequence[Draw], limit: float) -> bool:
    """Return whether a gradient is wrong only for numbers that no output depends on at all."""
    for draw in draws:
        wrong = wrong_places(draw, name, limit)
        if not wrong.any() or wrong.all() or draw.true[name][wrong].any():
            return False
        for other in (1.5, -1.5):  # on both sides of zero: an inactive unit is read, too
            moved = torch.where(wrong, other, draw.arguments[name])
            try:
                outputs = lab.run({**draw.arguments, name: moved}).outputs
            except (RuntimeError, ValueError):
                return False
            if not all(map(torch.equal, outputs, draw.outputs)):
                return False
    return True


def _through_shorter(gradient: Tensor, right: Tensor) -> str:
    """Return the shorter dtype that every number of a gradient is one of; "" if there is none."""
    for dtype in (torch.bfloat16, torch.float16):
        if dtype.itemsize < gradient.dtype.itemsize and torch.equal(
            gradient.to(dtype).to(gradient.dtype), gradient
        ):
            return "" if torch.equal(right.to(dtype).double(), right) else kind(dtype)
    return ""


def _few_constants(name: str, draws: Sequence[Draw], limit: float) -> Diagnosis | None:
    """Return that what is missing is one of two constants, as a part of a label's one-hot is."""
    texts: list[str] = []
    for draw in draws:
        if sum(dy.numel() for dy in draw.dys) != 1:
            return None
        dy = draw.dys[0].double().item()
        missing = (draw.true[name] - draw.ours(name)).flatten()
        scale = max(largest_of(draw.true[name]), largest_of(draw.ours(name)))
        if not dy or len(missing) < 6:
            return None
        ordered = missing.sort().values
        jumps = (ordered.diff() > 10 * limit * scale).nonzero().flatten() + 1
        if not 1 <= len(jumps) <= 2:
            return None
        parts = ordered.tensor_split(jumps.cpu())
        if any(largest_of(part - part.mean()) > 10 * limit * scale for part in parts):
            return None
        texts.append(" and ".join(f"{p.mean().item() / dy:.6g} in {len(p)} places" for p in parts))
    words = (
        f"in the gradient of {name} constants are missing or wrong, as those of a one-hot target, "
        "of label smoothing or of a mask"
    )
    evidence = f"truth minus gradient is dy times {texts[0]}, in {len(texts)} runs"
    return Diagnosis("missing term", name, words, evidence)


@dataclass(frozen=True)
class Hidden:
    """Numbers of an argument on which nothing depends, all of some indices along an axis."""

    words: str
    places: Tensor


def _hidden(name: str, draws: Sequence[Draw], limit: float) -> Hidden | None:
    """Return the numbers on which nothing depends, if they get a gradient and others are wrong."""
    zero = torch.stack([draw.true[name] == 0 for draw in draws]).all(0)
    given = torch.stack([draw.ours(name).abs() > limit for draw in draws]).all(0)
    if not (zero & given).any() or not bool((given | ~zero).all()):
        return None
    for axis in range(zero.ndim):
        others = [a for a in range(zero.ndim) if a != axis]
        hidden = zero.all(others) if others else zero
        if int(hidden.sum()) * zero.numel() == int(zero.sum()) * len(hidden):
            return Hidden(f"{indices(hidden)} along axis {axis}", zero)
    return None


def _change_by_hidden(lab: Laboratory, name: str, draw: Draw, hidden: Hidden) -> float:
    """Return by how much a gradient changes elsewhere if the numbers on which nothing depends do.

    The true one does not change at all: so this one is made from what the forward pass masks.
    """
    value = draw.arguments[name]
    moved = {**draw.arguments, name: torch.where(hidden.places, 0.5 - 2 * value, value)}
    try:
        other = lab.draw(moved, draw.dys)
    except (RuntimeError, ValueError):
        return 0.0  # these numbers do not suit it
    if not all(map(torch.equal, other.outputs, draw.outputs)) or other.got.get(name) is None:
        return 0.0
    elsewhere = (other.ours(name) - draw.ours(name))[~hidden.places]
    return largest_of(elsewhere) / max(largest_of(draw.true[name]), TINY)


def _nearly_a_factor(name: str, draws: Sequence[Draw]) -> list[Diagnosis] | None:
    """Return a factor that explains nearly all of an error, and that something else is left."""
    best = fit(Hypothesis("right", "", lambda draw: draw.true[name]), name, draws, NEARLY)
    if best is None or abs(best.factor - 1) < 30 * best.error:
        return None
    told = _told(name, best, draws, NEARLY)
    more = f"; what is left, {best.error:.0e} of the largest number, has another cause"
    return [replace(diagnosis, evidence=diagnosis.evidence + more) for diagnosis in told]


def _clipped(name: str, draws: Sequence[Draw], limit: float) -> Diagnosis | None:
    """Return that large numbers are cut off, if that gives all of them."""
    bound = max(largest_of(draw.ours(name)) for draw in draws)
    cut = 0
    for draw in draws:
        cut += int((draw.true[name].abs() > bound * (1 + 1e-9)).sum())
        if error_of(draw.ours(name), draw.true[name].clamp(-bound, bound)) > limit:
            return None
    words = f"the gradient of {name} is cut off at ±{bound:.6g}"
    return Diagnosis("clipped", name, words, f"{cut} numbers are larger in truth") if cut else None


def _inactive_outputs(lab: Laboratory, name: str, draw: Draw, limit: float) -> Diagnosis | None:
    """Return that what comes through y = 0 is let through, where an activation lets nothing."""
    masks = [(y == 0).to(dy.dtype) for y, dy in zip(draw.outputs, draw.dys, strict=True)]
    if not any(m.any() for m in masks) or all(m.all() for m in masks):
        return None
    on = [dy * (1 - m) for dy, m in zip(draw.dys, masks, strict=True)]
    off = [dy * m for dy, m in zip(draw.dys, masks, strict=True)]
    active, inactive = lab.got(draw.arguments, on).get(name), lab.got(draw.arguments, off).get(name)
    if active is None or inactive is None or lab.true(draw.arguments, off)[name].any():
        return None
    if error_of(active.double(), lab.true(draw.arguments, on)[name]) > limit:
        return None
    words = (
        f"the gradient of {name} is wrong: the derivative of an activation is missing, "
        "dy comes through where the output is 0"
    )
    evidence = (
        "it is right for a dy that is 0 where y = 0; for one that is 0 elsewhere it has numbers up "
        f"to {largest_of(inactive.double()):.3g}, and zero is right"
    )
    return Diagnosis("activation derivative missing", name, words, evidence)


def _lost_parts(lab: Laboratory, name: str, draw: Draw, limit: float) -> Diagnosis | None:
    """Return which parts of the output contribute wrongly, if the gradient is linear in dy."""
    doubled = lab.got(draw.arguments, [2 * dy for dy in draw.dys]).get(name)
    if doubled is None or error_of(doubled.double(), 2 * draw.ours(name)) > limit:
        return None
    for axis in range(draw.dys[0].ndim):
        lost = wrong_parts(lab, name, draw, limit, axis)
        if lost is not None:
            words = f"the gradient of {name} is wrong in part: {lost.words}"
            return Diagnosis("certain elements", name, words, lost.evidence)
    return None


def _not_recognised(
    lab: Laboratory, name: str, draw: Draw, limit: float, seen: Sequence[str]
) -> Diagnosis:
    """Return that the cause has no name, with what was seen."""
    gradient, right = draw.ours(name), draw.true[name]
    wrong = wrong_places(draw, name, limit)
    nonzero = wrong & (right != 0)
    evidence = f"{int(wrong.sum())} of {wrong.numel()} numbers are wrong"
    if nonzero.any():
        ratios = gradient[nonzero] / right[nonzero]
        low, middle, high = (ratios.quantile(q).item() for q in (0.0, 0.5, 1.0))
        evidence += f"; gradient/truth is from {low:.3g} to {high:.3g}, median {middle:.3g}"
    doubled = lab.got(draw.arguments, [2 * dy for dy in draw.dys]).get(name)
    if doubled is not None and doubled.shape == gradient.shape:
        linear = error_of(doubled.double(), 2 * gradient) <= limit
        evidence += f"; it is {'' if linear else 'not '}linear in dy"
    words = f"the gradient of {name} is wrong, and the cause is not recognised"
    words = ": ".join([words, *filter(None, seen)][:2])
    return Diagnosis(NOT_RECOGNISED, name, words, evidence)
