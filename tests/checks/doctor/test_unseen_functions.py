"""Mistakes that are in no catalogue, as people make them; and right passes that look odd."""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from math import sqrt

import pytest
import torch
from torch.autograd import Function

from manualbp.checks.doctor.examination import Trial, diagnoses_of, differences_of, examine
from manualbp.checks.doctor.targets import wrap


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def custom(forward: Callable, backward: Callable) -> type[Function]:
    """Return a Function whose backward pass takes dy and what its forward pass took."""

    def saving(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return forward(*inputs)

    named = ["ctx", *list(signature(backward).parameters)[1:]]
    parts = [Parameter(name, Parameter.POSITIONAL_ONLY) for name in named]
    saving.__signature__ = Signature(parts)

    class Custom(Function):
        forward = staticmethod(saving)

        @staticmethod
        def backward(ctx, dy):
            return backward(dy, *ctx.saved_tensors)

    return Custom


def diagnosed(function, inputs) -> dict[str, str]:
    """Return the first words about each argument."""
    target = wrap(function, "target", inputs)
    truth = differences_of(target.subject, target.arguments)
    found: dict[str, str] = {}
    for diagnosis in diagnoses_of(Trial.of(target.subject, target.arguments, truth, 0)):
        found.setdefault(diagnosis.argument, diagnosis.words)
    return found


def normalised(x, ddof=0, epsilon=1e-3):
    return (x - x.mean(-1, keepdim=True)) * (
        x.var(-1, correction=ddof, keepdim=True) + epsilon
    ) ** -0.5


def norm_backward(dy, x, w, ddof, epsilon):
    """Layer normalisation's, with whatever variance."""
    xh, g = normalised(x, ddof, epsilon), dy * w
    r = (x.var(-1, correction=ddof, keepdim=True) + epsilon) ** -0.5
    dx = r * (g - g.mean(-1, keepdim=True) - xh * (g * xh).mean(-1, keepdim=True))
    return dx, (dy * xh).sum(0)


def attention(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


def causal(q, k, v):
    hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(1)
    return (q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v


def attention_backward(dy, q, k, v):
    p = (q @ k.mT).softmax(-1)
    dp = dy @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))
    return ds @ k, ds.mT @ q, p.mT @ dy


def rotated(x, sign=1):
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] * sign
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def smooth_loss(x):
    return -(0.9 * x.log_softmax(-1).diagonal() + 0.1 * x.log_softmax(-1).mean(-1)).mean()


def huber(x, t):
    d = (x - t).abs()
    return torch.where(d < 0.5, d * d / 2, (d - 0.25) / 2).sum()


def slope_of_focal(x):
    return -((1 - x.sigmoid()) ** 3)


def off_at_zero(dy, x):
    """A ReLU's, in whose formula the last factor is forgotten."""
    return dy * x.sigmoid()


X, W = numbers(5, 4), numbers(4, 4, seed=2)

BUGS = {
    "a kernel that is not turned round": (
        lambda x, w: torch.nn.functional.conv1d(x, w, padding=1),
        lambda dy, x, w: (torch.nn.functional.conv1d(dy, w.transpose(0, 1), padding=1), None),
        [numbers(1, 2, 4), numbers(2, 2, 3)],
        {"x": "w is used reversed along axis 2"},
    ),
    "a gradient turned round along two axes": (
        lambda x: x * torch.arange(12.0).view(3, 4),
        lambda dy, x: (dy * torch.arange(12.0).view(3, 4)).flip(0, 1),
        [numbers(3, 4)],
        {"x": "its order along axes 0, 1 is reversed"},
    ),
    "the variance with N - 1": (
        lambda x, w: normalised(x) * w,
        lambda dy, x, w: norm_backward(dy, x, w, 1, 1e-3),
        [numbers(4, 6), numbers(6, seed=3)],
        {"x": "with another standard deviation than in the forward pass"},
    ),
    "epsilon forgotten": (
        lambda x, w: normalised(x) * w,
        lambda dy, x, w: norm_backward(dy, x, w, 0, 0),
        [numbers(4, 6), numbers(6, seed=3)],
        {"x": "another standard deviation", "w": "each index along axis 0 of y has a factor"},
    ),
    "a softmax differentiated as a sigmoid": (
        lambda x: x.softmax(-1),
        lambda dy, x: dy * x.softmax(-1) * (1 - x.softmax(-1)),
        [numbers(3, 4)],
        {"x": "only the diagonal of the Jacobian is used"},
    ),
    "dy along the wrong axis": (
        lambda x: x.logsumexp(-1),
        lambda dy, x: x.softmax(-1) * dy,
        [numbers(4, 4)],
        {"x": "dy is spread over the wrong axis: it is taken to lie along axis 1"},
    ),
    "a matrix that is not transposed": (
        attention,
        lambda dy, q, k, v: (*attention_backward(dy, q, k, v)[:2], (q @ k.mT).softmax(-1) @ dy),
        [numbers(3, 2), numbers(3, 2, seed=2), numbers(3, 2, seed=3)],
        {"v": "multiplied by the Jacobian and not by its transpose"},
    ),
    "a rotation in the same direction": (
        rotated,
        lambda dy, x: rotated(dy),
        [numbers(3, 4)],
        {"x": "multiplied by the Jacobian and not by its transpose"},
    ),
    "a running sum in the same direction": (
        lambda x: x.cumsum(0),
        lambda dy, x: dy.cumsum(0),
        [numbers(4, 2)],
        {"x": "multiplied by the Jacobian and not by its transpose"},
    ),
    "a causal mask that only the forward pass has": (
        causal,
        lambda dy, q, k, v: attention_backward(dy, q, k, v),
        [numbers(3, 2), numbers(3, 2, seed=2), numbers(3, 2, seed=3)],
        {"v": "a mask (a causal one) of the forward pass is missing in it"},
    ),
    "a gate's sigmoid forgotten": (
        lambda a, b: a * a.sigmoid() * b,
        lambda dy, a, b: (dy * b * a.sigmoid() * (1 + a * (1 - a.sigmoid())), dy * a),
        [numbers(3, 4), numbers(3, 4, seed=2)],
        {"b": "the factor σ(a) is missing"},
    ),
    "a term of a product rule forgotten": (
        lambda a, b: a * a.sigmoid() * b,
        lambda dy, a, b: (dy * b * a.sigmoid(), dy * a * a.sigmoid()),
        [numbers(3, 4), numbers(3, 4, seed=2)],
        {"a": "the derivative itself is, number by number"},
    ),
    "the same in a loss": (
        lambda x: (-((1 - x.sigmoid()) ** 2) * x.sigmoid().log()).sum(),
        lambda dy, x: dy * slope_of_focal(x),
        [numbers(3, 4)],
        {"x": "the derivative itself is, number by number"},
    ),
    "a sigmoid's derivative at its input": (
        torch.sigmoid,
        lambda dy, x: dy * x * (1 - x),
        [numbers(3, 4)],
        {"x": "σ' = y (1 - y) is taken with x in the place of the output y"},
    ),
    "a skip connection forgotten": (
        lambda x, w: x + (x @ w).tanh(),
        lambda dy, x, w: ((dy * (1 - (x @ w).tanh() ** 2)) @ w.mT, None),
        [X, W],
        {"x": "the term dy is missing, which a skip connection passes on"},
    ),
    "a skip connection counted twice": (
        lambda x, w: x + (x @ w).tanh(),
        lambda dy, x, w: ((dy * (1 - (x @ w).tanh() ** 2)) @ w.mT + 2 * dy, None),
        [X, W],
        {"x": "dy is added to it once too often"},
    ),
    "label smoothing forgotten": (
        smooth_loss,
        lambda dy, x: dy * (x.softmax(-1) - torch.eye(4)) / 4,
        [numbers(4, 4)],
        {"x": "constants are missing or wrong, as those of a one-hot target"},
    ),
    "a branch of a loss": (
        huber,
        lambda dy, x, t: (
            dy * torch.where((x - t).abs() < 0.5, x - t, (x - t).sign()),
            -dy * torch.where((x - t).abs() < 0.5, x - t, (x - t).sign() / 2),
        ),
        [numbers(4, 5), numbers(4, 5, seed=2) / 2],
        {"x": "only where |x - t| lies above a bound"},
    ),
    "a square's 2 forgotten where a length is 4": (
        lambda x, t: ((x - t) ** 2).sum(),
        lambda dy, x, t: (dy * (x - t), -2 * dy * (x - t)),
        [numbers(4, 3), numbers(4, 3, seed=2)],
        {"x": "by the constant factor 0.5: ½"},
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_cause_is_in_the_first_line(bug: str) -> None:
    forward, backward, inputs, expected = BUGS[bug]
    found = diagnosed(custom(forward, backward), inputs)
    for argument, words in expected.items():
        assert words in found[argument]


class Rounded(Function):
    """A straight-through estimator: on purpose not the derivative."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, dy):
        return dy


class Spike(Rounded):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        return dy / (1 + ctx.saved_tensors[0].abs()) ** 2


class Reversed(Rounded):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return -0.3 * dy


def test_what_is_meant_so_is_told_with_the_way_out() -> None:
    x = numbers(3, 4)
    words = diagnosed(Rounded, [x])["x"]
    assert "this looks like a straight-through estimator" in words
    assert "--reference" in words
    assert "this looks like a surrogate gradient" in diagnosed(Spike, [x])["x"]
    words = diagnosed(Reversed, [x])["x"]
    assert "has the wrong sign" in words
    assert "this looks like a gradient reversal" in words


# Right ones ---------------------------------------------------------------------------------------


class RoundsWithin(Function):
    """Root mean square normalisation in float32 whatever it is given, as kernels do."""

    @staticmethod
    def forward(ctx, x, w):
        r = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        ctx.save_for_backward(x, w, r)
        return (x.float() * r).to(x.dtype) * w

    @staticmethod
    def backward(ctx, dy):
        x, w, r = ctx.saved_tensors
        g, wide = (dy * w).float(), x.float()
        dx = r * g - r**3 * wide * (g * wide).mean(-1, keepdim=True)
        return dx.to(x.dtype), (dy.float() * wide * r).sum(0).to(w.dtype)


class InPlace(Function):
    """Works in place, and says so."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        y = x.clamp_(min=0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        return dy * (ctx.saved_tensors[0] > 0)


def chunked_attention(dy, q, k, v):
    """In blocks of two keys, as kernels do, the last one not full."""
    scale, y = 1 / sqrt(q.shape[-1]), attention(q / sqrt(q.shape[-1]), k, v)
    total = (q @ k.mT * scale).logsumexp(-1, keepdim=True)
    dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
    for part in (slice(i, i + 2) for i in range(0, len(k), 2)):
        p = (q @ k[part].mT * scale - total).exp()
        ds = p * (dy @ v[part].mT - (dy * y).sum(-1, keepdim=True)) * scale
        dq += ds @ k[part]
        dk[part], dv[part] = ds.mT @ q, p.mT @ dy
    return dq, dk, dv


def ties_shared(dy, x):
    most = x == x.amax(-1, keepdim=True)
    return most / most.sum(-1, keepdim=True) * dy[..., None]


TIES = numbers(3, 4)
TIES[0, 0] = TIES[0, 1] = 3.0
ZEROS = numbers(3, 4)
ZEROS[1] = 0.0

RIGHT = {
    "rounds within": (RoundsWithin, [numbers(4, 6), numbers(6)]),
    "in place": (InPlace, [numbers(3, 4)]),
    "attention in blocks": (
        custom(lambda q, k, v: attention(q / sqrt(2), k, v), chunked_attention),
        [numbers(3, 2), numbers(5, 2, seed=2), numbers(5, 3, seed=3)],
    ),
    "ties shared": (custom(lambda x: x.amax(-1), ties_shared), [TIES]),
    "a ReLU that lets zero through": (
        custom(lambda x: x.clamp(min=0), lambda dy, x: dy * (x >= 0)),
        [ZEROS],
    ),
    "zero for a step": (custom(torch.ceil, lambda dy, x: torch.zeros_like(dy)), [numbers(3, 4)]),
    "a determinant": (
        custom(
            torch.linalg.det,
            lambda dy, a: dy[:, None, None] * (a.det()[:, None, None] * a.inverse().mT),
        ),
        [numbers(2, 3, 3)],
    ),
    "large and small numbers": (
        custom(lambda x: (8 * x).exp(), lambda dy, x: 8 * dy * (8 * x).exp()),
        [numbers(3, 4)],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pass_is_not_accused(name: str) -> None:
    function, inputs = RIGHT[name]
    target = wrap(function, name, inputs)
    report = examine(target.subject, target.arguments, target.truth)
    assert (report.verdict, report.failures) == ("PASS", [])


def test_a_precise_forward_pass_shows_a_backward_pass_that_rounds() -> None:
    function = custom(torch.sin, lambda dy, x: (dy.float() * x.float().cos()).to(dy.dtype))
    assert "float32" in diagnosed(function, [numbers(3, 4) * 1.234567])["x"]
