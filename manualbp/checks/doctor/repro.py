"""A stand-alone pytest file for what an examination found: it fails now, and passes once mended.

It holds the numbers of the inputs and the interval in which each gradient is right, and needs
torch, pytest and the target's own file, nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from inspect import isclass
from pathlib import Path
from pprint import pformat
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualbp.checks.doctor.contracts import Trial, with_batch
from manualbp.checks.doctor.examination import Report, limits_of
from manualbp.checks.doctor.subject import Arguments
from manualbp.checks.doctor.subjects import OfLayer, OfModule, OfPair, ThroughAutograd
from manualbp.checks.doctor.targets import Target
from manualbp.checks.doctor.truth import converted
from manualbp.errors import UsageError

MOST_NUMBERS = 400
"""Inputs with more numbers than these are written in the smallest shapes that still fail."""

SIZES = ("batch of one", "empty batch")

CONSTANTS = (bool, int, float, str, type(None))

HEAD = '''\
"""{name}: what `manualbp check` found wrong with its backward pass.

{failures}

These tests fail as long as that is so. Run them with pytest, in the directory in which `manualbp
check` ran; the code of the target is executed.
"""

import copy
import importlib
import importlib.util
import itertools  # noqa: F401
import sys
from math import inf, nan  # noqa: F401
from pathlib import Path

import torch

SOURCE, NAME = {source!r}, {attribute!r}


def load():
    if not SOURCE.endswith(".py"):
        sys.path.insert(0, "")
        module = importlib.import_module(SOURCE)
    else:
        path = Path(SOURCE).resolve()
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    return getattr(module, NAME)


target = load()
DTYPE = {dtype}
ARGUMENTS = {arguments}
NEEDED = {needed}
DYS = {dys}
# The interval in which each gradient is right, rounding included.
LOW = {low}
HIGH = {high}


def arguments():
    given = {{n: t.clone() for n, t in ARGUMENTS.items()}}
    return {{n: t.to(DTYPE) if t.is_floating_point() else t for n, t in given.items()}}


def dys():
    return [dy.to(DTYPE, copy=True) for dy in DYS]


def tensors(result):
    parts = result if isinstance(result, (tuple, list)) else [result]
    return [y for y in parts if isinstance(y, torch.Tensor) and y.is_floating_point()]


{run}

def gradients(given=None, upstream=None):
    outputs, backward = run(arguments() if given is None else given)
    return copies(backward(dys() if upstream is None else upstream))


def copies(found):
    return {{n: torch.zeros(()) if g is None else g.clone() for n, g in found.items()}}


def assert_same(got, expected):
    for name in expected:
        scale = max(1.0, expected[name].abs().max().item() if expected[name].numel() else 0.0)
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol={floor} * scale)


def strided(t):
    if not t.ndim:
        return t
    wide = t.new_zeros((*t.shape[:-1], 2 * t.shape[-1]))
    wide[..., 1::2] = t
    return wide[..., 1::2]


def transposed(t):
    axes = tuple(reversed(range(t.ndim)))
    return t.permute(axes).contiguous().permute(axes)
'''

THROUGH_AUTOGRAD = """\
def run(given, needed=NEEDED):
    roots = {{n: t.detach().requires_grad_(n in needed) for n, t in given.items()}}
    leaves = {leaves}
    torch.manual_seed({seed})
    outputs = tensors({call}){places}

    def backward(upstream):
        chosen = [n for n in roots if n in needed]
        used, used_dys = zip(*(
            (y, dy) for y, dy in zip(outputs, upstream, strict=True) if dy is not None
        ))
        found = torch.autograd.grad(
            used, [roots[n] for n in chosen], used_dys, retain_graph=True, allow_unused=True
        )
        pairs = zip(chosen, found, strict=True)
        return {{n: torch.zeros_like(roots[n]) if g is None else g for n, g in pairs}}

    return outputs, backward

"""

PAIR = """\
def run(given):
    torch.manual_seed({seed})
    leaves = given
    with torch.no_grad():
        result = {call}
    y, *saved = result if isinstance(result, tuple) else (result,)
    several = isinstance(y, (tuple, list))

    def backward(upstream):
        found = pair[1](tuple(upstream) if several else upstream[0], *saved)
        found = found if isinstance(found, (tuple, list)) else [found]
        names = list(given) if len(found) == len(given) else NEEDED
        pairs = zip(names, found, strict=True)
        found = {{n: g for n, g in pairs if n in NEEDED}}
        return {{n: torch.zeros_like(given[n]) if g is None else g for n, g in found.items()}}

    return tensors(y), backward


owner = target() if isinstance(target, type) else target
pair = owner if type(owner) is tuple else (owner.forward, owner.backward)

"""

LAYER = """\
from manualbp.checks.doctor.subjects import OfLayer  # noqa: E402

layer = {layer}


def run(given):
    done = OfLayer(NAME, layer, {training}, {seed}).run(given)
    return done.outputs, done.backward

"""

GRADIENTS = """\
def test_gradients():
    found = gradients()
    for name in LOW:
        got = found[name]
        assert got.shape == LOW[name].shape, name
        right = (LOW[name] <= got.double()) & (got.double() <= HIGH[name])
        assert right.all(), f"d{name} is {got}, expected {(LOW[name] + HIGH[name]) / 2}"
"""

TESTS = {
    "determinism": """\
def test_equal_passes_give_equal_gradients():
    first = gradients()
    for _ in range(4):
        assert_same(gradients(), first)
""",
    "dy strided": """\
def test_dy_may_be_strided():
    assert_same(gradients(upstream=[strided(dy) for dy in dys()]), gradients())
""",
    "dy transposed": """\
def test_dy_may_be_transposed_in_memory():
    assert_same(gradients(upstream=[transposed(dy) for dy in dys()]), gradients())
""",
    "dy expanded": """\
def test_dy_may_be_expanded():
    one = [dy.new_full((), 0.75) for dy in dys()]
    expanded = [number.expand(dy.shape) for number, dy in zip(one, dys(), strict=True)]
    contiguous = [dy.contiguous() for dy in expanded]
    assert_same(gradients(upstream=expanded), gradients(upstream=contiguous))
    rows = [dy[:1].expand(dy.shape) if dy.ndim else dy for dy in dys()]
    assert_same(gradients(upstream=rows), gradients(upstream=[row.contiguous() for row in rows]))
""",
    "dy scaled": """\
def test_dy_may_be_large():
    expected = {n: 1024 * g for n, g in gradients().items()}
    assert_same(gradients(upstream=[1024 * dy for dy in dys()]), expected)
""",
    "dy zero": """\
def test_dy_zero_gives_zero():
    found = gradients(upstream=[torch.zeros_like(dy) for dy in dys()])
    assert_same(found, {n: torch.zeros_like(g) for n, g in found.items()})
""",
    "linear in dy": """\
def test_the_gradients_are_linear_in_dy():
    other = [dy.flip(0) + 0.5 if dy.ndim else dy + 0.5 for dy in dys()]
    mixed = [2 * a + b for a, b in zip(dys(), other, strict=True)]
    one, two = gradients(), gradients(upstream=other)
    assert_same(gradients(upstream=mixed), {n: 2 * one[n] + two[n] for n in one})
""",
    "inputs strided": """\
def test_inputs_may_be_strided():
    for layout in (strided, transposed):
        assert_same(gradients({n: layout(t) for n, t in arguments().items()}), gradients())
""",
    "ties": """\
def test_tied_numbers_have_the_slope_of_moving_them_together():
    def paired(t):
        for axis, length in enumerate(t.shape):
            t = t.index_select(axis, torch.arange(length) // 2 * 2)
        return t

    given, draw = arguments(), torch.Generator().manual_seed(0)
    by_size = sorted(NEEDED, key=lambda n: given[n].ndim)
    for names in [[n] for n in NEEDED] + list(itertools.combinations(by_size, 2)):
        first = given[names[0]]
        number = torch.randn(first.shape, generator=draw, dtype=DTYPE)
        if len(names) == 1:
            first, number = paired(first), paired(number)
        try:
            tied = {**given, **{n: first.expand(given[n].shape).clone() for n in names}}
        except RuntimeError:
            continue
        found = gradients(tied)
        total = sum((found[n] * number).sum().item() for n in names)
        step = 2.0**-16 if DTYPE == torch.float64 else 2.0**-6
        ends = [run({**tied, **{n: tied[n] + h * number for n in names}})[0] for h in (step, -step)]
        pairs = zip(dys(), *ends, strict=True)
        slope = sum((dy * (right - left)).sum().item() for dy, right, left in pairs) / (2 * step)
        assert abs(total - slope) < 1e-3 * (1 + abs(slope)), names
""",
    "requires_grad": """\
def test_each_gradient_may_be_asked_for_alone():
    expected = gradients()
    for name in NEEDED:
        for needed in ([name], [other for other in NEEDED if other != name]):
            if needed:
                found = run(arguments(), needed)[1](dys())
                assert_same(found, {n: expected[n] for n in needed})
""",
    "outputs alone": """\
def test_each_output_may_be_used_alone():
    for chosen in range(len(DYS)):
        alone = [dy if i == chosen else None for i, dy in enumerate(dys())]
        zeros = [dy if i == chosen else 0 * dy for i, dy in enumerate(dys())]
        assert_same(gradients(upstream=alone), gradients(upstream=zeros))
""",
    "no mutation": """\
def test_neither_pass_changes_its_arguments():
    given, upstream = arguments(), dys()
    kept = [t.clone() for t in (*given.values(), *upstream)]
    outputs, backward = run(given)
    kept += [y.clone() for y in outputs]
    backward(upstream)
    for now, before in zip((*given.values(), *upstream, *outputs), kept, strict=True):
        assert torch.equal(now, before)
""",
    "repeated backward": """\
def test_a_second_backward_pass_gives_the_same():
    _, backward = run(arguments())
    first = copies(backward(dys()))
    assert_same(backward(dys()), first)
""",
    "second forward": """\
def test_a_second_forward_pass_changes_nothing():
    expected = gradients()
    _, backward = run(arguments())
    other = {n: 0.75 * t if t.is_floating_point() else t for n, t in arguments().items()}
    _, backward_of_other = run(other)
    found = backward(dys())
    assert_same(found, expected)
    backward_of_other([-dy for dy in dys()])
    assert_same(found, expected)
""",
    "used twice": """\
def test_two_uses_add_up():
    expected = {n: 2 * g for n, g in gradients().items()}
    first, second = run(arguments())[1], run(arguments())[1]
    one, two = first(dys()), second(dys())
    assert_same({n: one[n] + two[n] for n in one}, expected)
""",
    "nothing carried over": """\
def test_nothing_is_carried_over():
    first = gradients()
    gradients({n: 0.75 * t if t.is_floating_point() else t for n, t in arguments().items()})
    assert_same(gradients(), first)
""",
}
"""By contract. Those about sizes are the test of the gradients, with the inputs cut."""


def write_repro(path: Path, where: str, target: Target, report: Report) -> None:
    """Write the file. Raises UsageError where it cannot be written, or would not fail."""
    assert report.trial is not None
    source, _, attribute = where.rpartition(":")
    head, candidates = _written(report, report.trial, target, source, attribute)
    tests = [test for test in candidates if _fails(head, test, source)]
    if not tests:
        raise UsageError(f"--write-repro {path}: what was found does not show in a file of its own")
    try:
        path.write_text("\n\n".join([head, *tests]), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--write-repro {path}: {error.strerror}") from None


def _written(
    report: Report, trial: Trial, target: Target, source: str, attribute: str
) -> tuple[str, list[str]]:
    """Return the head of the file, and the tests that may fail."""
    failing = [row for row in report.rows if row.verdict == "FAIL"]
    dtype = failing[0].dtype if failing else str(trial.dtype).removeprefix("torch.")
    contracts = [outcome.contract for outcome in report.outcomes if outcome.verdict == "FAIL"]
    if not failing and contracts and set(contracts) <= set(SIZES):
        trial = with_batch(trial, 0 if contracts == ["empty batch"] else 1)
    elif not contracts or sum(t.numel() for t in trial.arguments.values()) > MOST_NUMBERS:
        trial = report.witness or trial
    arguments = converted(trial.arguments, getattr(torch, dtype))
    now = Trial.of(trial.subject, arguments, trial.truth, report.seed)
    intervals = trial.truth.intervals(
        converted(now.arguments, torch.float64),
        [dy.double() for dy in now.dys],
        {},
    )
    limits = limits_of(now)
    low = {n: i.low - i.slack - limits[n] for n, i in intervals.items() if n in limits}
    high = {n: i.high + i.slack + limits[n] for n, i in intervals.items() if n in limits}
    floor = {"float64": 1e-10, "float32": 1e-5}.get(dtype, 4e-2)
    head = HEAD.format(
        name=f"{source}:{attribute}",
        failures="\n".join(f"- {line}" for line in report.failures).replace("\\", "\\\\"),
        source=source,
        attribute=attribute,
        dtype=f"torch.{dtype}",
        arguments=_literal(now.arguments),
        needed=repr(list(intervals)),
        dys=_literal_list(now.dys),
        low=_literal(low),
        high=_literal(high),
        run=_run(target, report.seed),
        floor=floor,
    )
    return head, [GRADIENTS, *(TESTS[name] for name in contracts if name in TESTS)]


def _run(target: Target, seed: int) -> str:
    """Return the code of `run` for the kind of target."""
    subject, thing = target.subject, target.thing
    if isinstance(subject, OfLayer):
        layer = f"target({_fields(thing)})" if isclass(thing) else "target"
        return LAYER.format(layer=layer, training=subject.training, seed=seed)
    assert target.call_with is not None
    values = target.call_with(_Names())
    places = ", ".join(map(_place, values))
    if isinstance(subject, OfPair):
        return PAIR.format(call=f"pair[0]({places})", seed=seed)
    assert isinstance(subject, ThroughAutograd)
    if isinstance(subject.function, OfModule) and isinstance(thing, nn.Module):
        names = ", ".join(f'"{name}": leaves["{name}"]' for name, _ in thing.named_parameters())
        owner = "copy.deepcopy(target() if isinstance(target, type) else target).to(DTYPE)"
        call = f"torch.func.functional_call({owner}, {{{names}}}, ({places},))"
    elif isclass(thing) and issubclass(thing, Function):
        call = f"target.apply({places})"
    else:
        call = f"target({places})"
    leaves = "{n: t.clone() for n, t in roots.items()}" if subject.in_place else "roots"
    places = f"\n    outputs = [outputs[i] for i in {subject.places}]" if subject.places else ""
    return THROUGH_AUTOGRAD.format(call=call, seed=seed, leaves=leaves, places=places)


class _Names(dict[str, Any]):
    """Gives for each argument its own name, so that a call can be written down."""

    def __missing__(self, name: str) -> Any:
        return _Name(name)


class _Name(str):
    """The name of an argument, which is no constant that is a text."""


def _place(value: object) -> str:
    if isinstance(value, _Name):
        return f'leaves["{value}"]'
    if isinstance(value, CONSTANTS):
        return repr(value)
    raise UsageError(f"--write-repro: a constant {type(value).__name__} cannot be written down")


def _fields(thing: object) -> str:
    """Return the constructor's arguments of a layer of the registry's."""
    found: list[str] = []
    for item in fields(cast(Any, thing)) if is_dataclass(thing) else ():
        found.append(f"{item.name}={_place(getattr(thing, item.name))}")
    return ", ".join(found)


def _literal(arguments: Arguments) -> str:
    lines = [f"    {name!r}: {_tensor(tensor)}," for name, tensor in arguments.items()]
    return "\n".join(["{", *lines, "}"])


def _literal_list(tensors: Sequence[Tensor]) -> str:
    return "\n".join(["[", *(f"    {_tensor(tensor)}," for tensor in tensors), "]"])


def _tensor(tensor: Tensor) -> str:
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    numbers = pformat(cast(Any, tensor.detach().to("cpu", dtype)).tolist(), width=88, compact=True)
    empty = "" if tensor.numel() else f".reshape({tuple(tensor.shape)})"
    return f"torch.tensor({numbers}, dtype={dtype}){empty}"


def _fails(head: str, test: str, source: str) -> bool:
    """Run one test of the file, and tell whether it fails."""
    space: dict[str, Any] = {"__name__": "repro"}
    name, folders = Path(source).stem, list(sys.path)
    before = sys.modules.get(name)
    try:
        exec(compile(f"{head}\n{test}", "<repro>", "exec"), space)  # it is our own text
        next(value for name, value in space.items() if name.startswith("test_"))()
    except Exception:  # whatever the target raises fails the test as well
        return True
    finally:
        sys.path[:] = folders
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before
    return False
