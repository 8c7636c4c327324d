"""The bugs that mutants have, each with the cause that names it rightly.

A bug makes a wrong gradient of one argument. It may return the right one, unchanged, where it does
not apply: a matrix that is not there cannot be transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from manualbp.checks.doctor.subject import Arguments, Gradients, Subject


@dataclass(frozen=True)
class Scene:
    """What a bug sees of a pass: its arguments, output, upstream gradient and right gradients."""

    subject: Subject
    arguments: Arguments
    y: Tensor
    dy: Tensor
    right: Gradients
    memory: dict[str, Tensor]  # lasts from run to run; "latest x" is x of the latest forward pass
    kept: dict[str, Tensor]  # lasts as long as one pass

    def gradient(self, name: str) -> Tensor:
        """Return the right gradient of an argument. Raises KeyError where there is none."""
        gradient = self.right[name]
        if gradient is None:
            raise KeyError(name)
        return gradient

    def again(self, name: str, *, dy: Tensor | None = None, **others: Tensor) -> Tensor:
        """Return the right gradient for another dy, or with others in the place of arguments."""
        done = self.subject.run({**self.arguments, **others})
        gradient = done.backward([self.dy if dy is None else dy])[name]
        return self.gradient(name) if gradient is None else gradient


@dataclass(frozen=True)
class Bug:
    """A bug with the causes that name it rightly."""

    name: str
    causes: tuple[str, ...]
    mutate: Callable[[Scene, str], Tensor | None]
    only: tuple[tuple[str, str], ...] = ()  # (operation, argument); all where empty
    behaves: bool = False  # is about how the pass behaves; a single run may not show it


def _scaled(factor: float) -> Callable[[Scene, str], Tensor]:
    return lambda s, name: factor * s.gradient(name)


def _by_batch(s: Scene, name: str) -> Tensor:
    n = s.dy.shape[0] if s.dy.ndim else 1
    return s.gradient(name) / n


def _transposed(s: Scene, name: str) -> Tensor:
    g = s.gradient(name)
    return g.mT if g.ndim >= 2 and min(g.shape[-2:]) > 1 else g


def _another(s: Scene, name: str) -> Tensor:
    g = s.gradient(name)
    others = [t for n, t in s.right.items() if n != name and t is not None and t.shape == g.shape]
    # The gradient by the target of a loss is minus the one by the output: then it is a sign.
    others = [t for t in others if not torch.equal(t, -g)]
    return others[0] if others else g


def _changed(place: Callable[[Tensor], Tensor], change: Callable[[Tensor], Tensor]):
    """Return a bug that changes a part of a gradient with at least two axes of at least three."""

    def mutate(s: Scene, name: str) -> Tensor:
        g = s.gradient(name).clone()
        if g.ndim >= 2 and min(g.shape) >= 3:
            part = place(g)
            part.copy_(change(part))
        return g

    return mutate


def _one_number(s: Scene, name: str) -> Tensor:
    g = s.gradient(name).clone(memory_format=torch.contiguous_format)
    if g.numel() > 3:
        g.view(-1)[int(g.abs().argmax())] *= 1.001
    return g


def _last_block(s: Scene, name: str) -> Tensor:
    g = s.gradient(name).clone()
    if g.ndim >= 2 and min(g.shape[-2:]) >= 3:
        keep = torch.zeros_like(g)
        keep[..., : g.shape[-2] - 1, : g.shape[-1] - 1] = 1
        g *= keep
    return g


def _through(dtype: torch.dtype) -> Callable[[Scene, str], Tensor]:
    return lambda s, name: s.gradient(name).to(dtype).to(s.gradient(name).dtype)


def _part_of_dy(weight: Callable[[Tensor], Tensor]) -> Callable[[Scene, str], Tensor]:
    """Return a bug that multiplies dy, where the argument has not y's own shape."""

    def mutate(s: Scene, name: str) -> Tensor:
        g = s.gradient(name)
        if s.dy.ndim < 2 or name == "x" or g.shape == s.dy.shape or len(s.dy) < 3:
            return g
        return s.again(name, dy=s.dy * weight(s.dy))

    return mutate


def _without_last_row(dy: Tensor) -> Tensor:
    weight = torch.ones_like(dy)
    weight[-1] = 0
    return weight


def _only_last_row(dy: Tensor) -> Tensor:
    return 1 - _without_last_row(dy)


def _squared_dy(s: Scene, name: str) -> Tensor:
    return s.again(name, dy=s.dy * s.dy)


def _ones(s: Scene, name: str) -> Tensor:
    return s.again(name, dy=torch.ones_like(s.dy))


def _extra(s: Scene, name: str) -> Tensor:
    return s.gradient(name) + 0.1 * s.arguments[name]


def _noisy(s: Scene, name: str) -> Tensor:
    count = s.memory.setdefault("count", torch.zeros(()))
    count += 1
    return s.gradient(name) * (1 + 0.01 * count.item())


def _drawn(s: Scene, name: str) -> Tensor:
    g = s.gradient(name)
    return g * (1 + 0.1 * torch.rand(g.shape, dtype=g.dtype, device=g.device))


def _summed_on(s: Scene, name: str) -> Tensor:
    total = s.memory.get("total")
    g = s.gradient(name)
    total = g if total is None or total.shape != g.shape else total + g
    s.memory["total"] = total
    return total.clone()


def _stale(s: Scene, name: str) -> Tensor:
    latest = {n: s.memory.get(f"latest {n}", t) for n, t in s.arguments.items()}
    return s.again(name, **latest)


def _half_stale(s: Scene, name: str) -> Tensor:
    latest = s.memory.get(f"latest {name}", s.arguments[name])
    return s.gradient(name) * (1 + (latest - s.arguments[name]).abs().sum())


def _used_up(s: Scene, name: str) -> Tensor:
    count = s.kept.setdefault("count", torch.zeros(()))
    count += 1
    return s.gradient(name) / count.item()


def _dy_overwritten(s: Scene, name: str) -> Tensor:
    g = s.gradient(name).clone()
    s.dy.mul_(0.5)
    return g


def _argument_overwritten(s: Scene, name: str) -> Tensor:
    g = s.gradient(name).clone()
    s.arguments[name].add_(1)
    return g


def _strides_overlooked(s: Scene, name: str) -> Tensor:
    strides = torch.empty(s.dy.shape, device="meta").stride()
    if s.dy.is_contiguous() or 0 in s.dy.stride():
        return s.gradient(name)
    return s.again(name, dy=s.dy.as_strided(s.dy.shape, strides))


def _viewed(s: Scene, name: str) -> Tensor:
    return s.again(name, dy=s.dy.view(-1).view(s.dy.shape))


def _sigmoid_slope(v: Tensor) -> Tensor:
    return v.sigmoid() * (1 - v.sigmoid())


SMOOTH = (("sigmoid", "x"), ("tanh", "x"), ("gelu", "x"), ("softplus", "x"))
ACTIVATIONS = (*SMOOTH, ("relu", "x"))
MATRICES = (("linear", "x"), ("linear", "weight"), ("matmul", "a"), ("bmm", "b"), ("bmm", "a"))
SAVING = (*ACTIVATIONS, *MATRICES, ("softmax", "x"), ("layer norm", "x"))
DENSE_SIGMOID = (("dense sigmoid", "x"), ("dense sigmoid", "weight"))
DENSE_RELU = (("dense relu", "x"), ("dense relu", "weight"))


def _layer_norm_without(kind: str) -> Callable[[Scene, str], Tensor]:
    def mutate(s: Scene, name: str) -> Tensor:
        x, axis = s.arguments["x"], 0 if "weight" not in s.arguments else -1
        g = s.dy * s.arguments.get("weight", torch.ones_like(s.dy))
        centred = x - x.mean(axis, keepdim=True)
        rstd = (centred.square().mean(axis, keepdim=True) + 1e-5).rsqrt()
        x_hat = centred * rstd
        mean = g.mean(axis, keepdim=True)
        along = x_hat * (g * x_hat).mean(axis, keepdim=True)
        terms = {"mean": along, "x_hat": mean, "both": torch.zeros_like(g)}
        return rstd * (g - terms[kind])

    return mutate


NORMS = (("layer norm", "x"), ("batch norm", "x"))

BUGS: tuple[Bug, ...] = (
    Bug("sign flipped", ("sign",), _scaled(-1)),
    Bug("doubled", ("constant factor",), _scaled(2)),
    Bug("half", ("constant factor",), _scaled(0.5)),
    Bug("a thousandth too large", ("constant factor",), _scaled(1.001)),
    Bug("loss scale", ("constant factor",), _scaled(65536.0)),
    Bug("divided by the batch", ("constant factor",), _by_batch),
    Bug("sign and factor", ("sign",), _scaled(-0.5)),
    Bug("transposed", ("transposed", "shape"), _transposed),
    Bug("transposed and halved", ("transposed",), lambda s, n: _half(s, n, _transposed)),
    Bug("another argument's", ("another argument",), _another),
    Bug("none", ("none",), lambda s, n: None),
    Bug("zero", ("zero",), _scaled(0)),
    Bug("not finite", ("not finite",), _scaled(float("nan"))),
    Bug("upstream ignored", ("upstream ignored",), _ones),
    Bug("upstream used twice", ("upstream twice",), _squared_dy),
    Bug("weight decay added", ("extra term",), _extra),
    Bug("last row lost", ("certain elements",), _changed(lambda g: g[-1], torch.zeros_like)),
    Bug(
        "first column lost", ("certain elements",), _changed(lambda g: g[..., 0], torch.zeros_like)
    ),
    Bug("second row doubled", ("certain elements",), _changed(lambda g: g[1], lambda p: 2 * p)),
    Bug("last block lost", ("certain elements",), _last_block),
    Bug("one number off by a thousandth", ("certain elements",), _one_number),
    Bug("last example lost", ("certain elements",), _part_of_dy(_without_last_row)),
    Bug("last example only", ("assigned",), _part_of_dy(_only_last_row)),
    Bug("through float32", ("precision",), _through(torch.float32)),
    Bug("through bfloat16", ("precision",), _through(torch.bfloat16)),
    Bug("through float16", ("precision",), _through(torch.float16)),
    Bug("in float32", ("dtype",), lambda s, n: s.gradient(n).float()),
    Bug("with another axis", ("shape",), lambda s, n: s.gradient(n)[None]),
    Bug("shifted", ("off by one",), lambda s, n: _rolled(s.gradient(n))),
    Bug("not deterministic", ("not deterministic",), _noisy, behaves=True),
    Bug("draws", ("not deterministic",), _drawn, behaves=True),
    Bug("summed on", ("accumulated",), _summed_on, behaves=True),
    Bug("stale", ("stale saved tensor",), _stale, SAVING, behaves=True),
    Bug(
        "overwritten by a second forward", ("saved tensor overwritten",), _half_stale, behaves=True
    ),
    Bug("used up", ("saved tensor overwritten",), _used_up, behaves=True),
    Bug("dy overwritten", ("in-place change",), _dy_overwritten, behaves=True),
    Bug("argument overwritten", ("in-place change",), _argument_overwritten, behaves=True),
    Bug("strides overlooked", ("strides",), _strides_overlooked, MATRICES, behaves=True),
    Bug("dy viewed", ("strides",), _viewed, MATRICES, behaves=True),
    Bug(
        "no derivative", ("activation derivative missing",), lambda s, n: s.dy.clone(), ACTIVATIONS
    ),
    Bug(
        "derivative at y",
        ("activation derivative at y",),
        lambda s, n: s.again(n, x=s.y),
        SMOOTH,
    ),
    Bug(
        "derivative twice",
        ("activation derivative twice",),
        lambda s, n: s.again(n, dy=s.gradient(n)),
        SMOOTH,
    ),
    Bug(
        "no derivative inside",
        ("activation derivative missing",),
        lambda s, n: s.again(n, dy=s.dy / (s.y * (1 - s.y))),
        DENSE_SIGMOID,
    ),
    Bug(
        "derivative at y inside",
        ("activation derivative at y",),
        lambda s, n: s.again(n, dy=s.dy * _sigmoid_slope(s.y) / (s.y * (1 - s.y))),
        DENSE_SIGMOID,
    ),
    Bug(
        "derivative twice inside",
        ("activation derivative twice",),
        lambda s, n: s.again(n, dy=s.dy * (s.y * (1 - s.y))),
        DENSE_SIGMOID,
    ),
    Bug(
        "no mask, dx",
        ("activation derivative missing",),
        lambda s, n: s.dy @ s.arguments["weight"],
        (("dense relu", "x"),),
    ),
    Bug(
        "no mask, dW",
        ("activation derivative missing",),
        lambda s, n: s.dy.mT @ s.arguments["x"],
        (("dense relu", "weight"),),
    ),
    Bug("no mean in softmax", ("missing term",), lambda s, n: s.y * s.dy, (("softmax", "x"),)),
    Bug(
        "mean along another axis",
        ("wrong sum",),
        lambda s, n: s.y * (s.dy - (s.dy * s.y).sum(0)),
        (("softmax", "x"),),
    ),
    Bug(
        "no sum in log-softmax",
        ("missing term",),
        lambda s, n: s.dy.clone(),
        (("log-softmax", "x"),),
    ),
    Bug("no mean in a norm", ("missing term",), _layer_norm_without("mean"), NORMS),
    Bug("no x̂ in a norm", ("missing term",), _layer_norm_without("x_hat"), NORMS),
    Bug("no statistics in a norm", ("missing term",), _layer_norm_without("both"), NORMS),
    Bug("bias not summed", ("not summed",), lambda s, n: s.dy.clone(), (("linear", "bias"),)),
    Bug(
        "bias summed over channels",
        ("wrong sum",),
        lambda s, n: s.dy.sum(1),
        (("square linear", "bias"),),
    ),
    Bug(
        "channel bias summed over the batch only",
        ("not summed",),
        lambda s, n: s.dy.sum(0),
        (("channel bias", "bias"),),
    ),
    Bug(
        "channel bias summed over the wrong axes",
        ("wrong sum",),
        lambda s, n: s.dy.sum((0, 1)),
        (("channel bias", "bias"),),
    ),
    Bug(
        "scale without its sum",
        ("not summed",),
        lambda s, n: s.dy * s.arguments["x"],
        (("scale", "weight"),),
    ),
    Bug(
        "factor missing",
        ("missing factor",),
        lambda s, n: s.dy.clone(),
        (("scale", "x"), ("product", "a")),
    ),
    Bug(
        "weight transposed",
        ("transposed",),
        lambda s, n: s.dy @ s.arguments["weight"].mT,
        (("square linear", "x"),),
    ),
    Bug(
        "weight missing in a norm",
        ("missing factor",),
        lambda s, n: s.again(n, weight=torch.ones_like(s.arguments["weight"])),
        (("layer norm", "x"),),
    ),
    Bug(
        "rows assigned",
        ("assigned",),
        lambda s, n: torch.zeros_like(s.arguments[n]).index_put((s.arguments["index"],), s.dy),
        (("embedding", "weight"),),
    ),
    Bug(
        "a random number",
        ("not recognised",),
        lambda s, n: s.gradient(n).exp().sin(),
        (("gelu", "x"),),
    ),
)


def _rolled(gradient: Tensor) -> Tensor:
    return gradient.roll(1, 0) if gradient.ndim and len(gradient) > 2 else gradient


def _half(s: Scene, name: str, bug: Callable[[Scene, str], Tensor]) -> Tensor:
    wrong = bug(s, name)
    return 0.5 * wrong if wrong is not s.gradient(name) else wrong
