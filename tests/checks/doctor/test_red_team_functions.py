"""Mistakes of people who write Functions and kernels, told by what they do to a gradient."""

from collections.abc import Callable

import pytest
import torch
from torch.autograd import Function

from manualbp.checks.doctor.examination import examine
from manualbp.checks.doctor.targets import wrap


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def custom(forward: Callable, backward: Callable) -> type[Function]:
    """Return a Function of x and maybe w, whose backward pass takes dy, them and the output."""

    class Custom(Function):
        @staticmethod
        def forward(ctx, x, w=None):
            given = (x,) if w is None else (x, w)
            y = forward(*given)
            ctx.save_for_backward(*given, y)
            return y

        @staticmethod
        def backward(ctx, dy):
            return backward(dy, *ctx.saved_tensors)

    return Custom


def layer_norm(x, gamma):
    return normalised(x) * gamma


def normalised(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def layer_norm_with_x_for_gamma(dy, x, gamma, y):
    xhat, rstd = normalised(x), (x.var(-1, keepdim=True, unbiased=False) + 1e-5).rsqrt()
    d = dy * gamma
    dx = d - d.mean(-1, keepdim=True) - xhat * (d * xhat).mean(-1, keepdim=True)
    return dx * rstd, (dy * x).sum(0)


def scan(a, b):
    h, states = torch.zeros_like(a[:, 0]), []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


def scan_with_the_new_state(dy, a, b, y):
    da, db, carry = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(dy[:, 0])
    for t in reversed(range(a.shape[1])):
        carry = dy[:, t] + carry
        db[:, t] = carry
        if t > 0:
            da[:, t] = carry * y[:, t]
        carry = carry * a[:, t]
    return da, db


def repeated(x):
    """Two groups of two heads each."""
    return x.repeat_interleave(2, 1) ** 2


def repeated_as_tiled(dy, x, y):
    each = 2 * x.repeat_interleave(2, 1) * dy
    return each.view(len(x), 2, 2, x.shape[-1]).sum(1)


def gated(h, u):
    z = h.sigmoid()
    return (1 - z) * torch.tanh(h @ u) + z * h


def gated_without_the_direct_path(dy, h, u, y):
    z, n = h.sigmoid(), torch.tanh(h @ u)
    dv = dy * (1 - z) * (1 - n * n)
    return dy * (h - n) * z * (1 - z) + dv @ u.mT, h.mT @ dv


def averages(x):
    """Of three neighbours."""
    return torch.nn.functional.pad(x, (1, 1)).unfold(-1, 3, 1).mean(-1)


def cosine(a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def cosine_exchanged(dy, a, b, y):
    n, m, d = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True), dy[:, None]
    da = d * (b / (n * m) - y[:, None] * a / n**2)
    db = d * (a / (n * m) - y[:, None] * b / m**2)
    return db, da


def huber(x, t):
    d = (x - t).abs()
    return torch.where(d < 0.5, d * d / 2, 0.5 * (d - 0.25)).mean()


def huber_without_delta(dy, x, t, y):
    d = x - t
    dx = torch.where(d.abs() < 0.5, d, d.sign()) * dy / d.numel()
    return dx, -dx


def solved(a, b):
    return torch.linalg.solve_triangular(a, b, upper=False)


def solved_without_tril(dy, a, b, y):
    db = torch.linalg.solve_triangular(a.mT, dy, upper=True)
    return -(db @ y.mT), db


def row(x, index):
    return x[index]


def assigned_rows(dy, x, index, y):
    dx = torch.zeros_like(x)
    dx[index] = dy
    return dx, None


WRONG = {
    "γ's gradient with x as it is": (
        custom(layer_norm, layer_norm_with_x_for_gamma),
        [numbers(4, 3), numbers(3, seed=2)],
        {"w": "the sum of dy times x itself"},
    ),
    "the state of now for that of before": (
        custom(scan, scan_with_the_new_state),
        [numbers(2, 4, 2), numbers(2, 4, 2, seed=2)],
        {"x": "y is taken at i where it belongs at i - 1, along axis 1"},
    ),
    "heads repeated, and summed as if tiled": (
        custom(repeated, repeated_as_tiled),
        [numbers(2, 2, 3)],
        {"x": "index 1 goes to 1 and not to 0, index 2 goes to 0 and not to 1"},
    ),
    "a direct path forgotten": (
        custom(gated, gated_without_the_direct_path),
        [numbers(3, 3), numbers(3, 3, seed=2)],
        {"x": "a term is missing or wrong that multiplies dy number by number"},
    ),
    "a low-rank path forgotten": (
        custom(
            lambda x, w: x @ w @ w.mT + x.sin(),
            lambda dy, x, w, y: (dy * x.cos(), x.mT @ (dy @ w) + dy.mT @ (x @ w)),
        ),
        [numbers(3, 4), numbers(4, 2, seed=2)],
        {"x": "the part that comes through w is missing, as if w were 0"},
    ),
    "windows one place off": (
        custom(
            averages, lambda dy, x, y: torch.nn.functional.pad(dy, (2, 0)).unfold(-1, 3, 1).mean(-1)
        ),
        [numbers(2, 8)],
        {"x": "stands +1 further on along axis 1 of x than it belongs"},
    ),
    "gradients exchanged, one of them summed": (
        custom(cosine, cosine_exchanged),
        [numbers(4, 3), numbers(3, seed=2)],
        {
            "x": "it is the gradient of w, before the sum over what is broadcast",
            "w": "it is the gradient of x, summed to the shape of w",
        },
    ),
    "a bound's slope forgotten": (
        custom(huber, huber_without_delta),
        [numbers(4, 3), numbers(4, 3, seed=2)],
        {
            "x": "only where |x - w| lies above a bound",
            "w": "only where |x - w| lies above a bound",
        },
    ),
    "a triangle filled": (
        custom(solved, solved_without_tril),
        [numbers(3, 3).tril() * 0.3 + 2 * torch.eye(3, dtype=torch.float64), numbers(3, 2)],
        {"x": "for numbers of x on which no output depends"},
    ),
    "log p for p": (
        custom(lambda x: x.log_softmax(-1), lambda dy, x, y: dy - y * dy.sum(-1, keepdim=True)),
        [numbers(4, 3)],
        {"x": "the output y where one to the softmax of the input belongs"},
    ),
    "float32 on the way": (
        custom(
            lambda x, w: (x * w).tanh(),
            lambda dy, x, w, y: (
                (dy.float() * (1 - (y * y).float())) * w,
                ((dy.float() * (1 - (y * y).float())) * x).sum(0),
            ),
        ),
        [numbers(3, 4), numbers(4, seed=2)],
        {"x": "precision is lost", "w": "precision is lost"},
    ),
    "x for its sign": (
        custom(torch.abs, lambda dy, x, y: dy * x),
        [numbers(4, 3)],
        {"x": "the factor y is there once too often"},
    ),
    "rows assigned": (
        custom(row, assigned_rows),
        [numbers(5, 3), torch.tensor([[1, 4, 1], [0, 1, 3]])],
        {"x": "each is assigned where it must be added"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_has_its_name_and_no_other(name: str) -> None:
    function, inputs, expected = WRONG[name]
    target = wrap(function, name, inputs)
    report = examine(target.subject, target.arguments, target.truth)
    assert report.verdict == "FAIL"
    assert {d.argument for d in report.diagnoses} == set(expected)
    for found in report.diagnoses:
        assert expected[found.argument] in found.words, found.words


def test_a_factor_is_the_share_of_the_rows_that_count() -> None:
    kept = torch.tensor([True, False, True, True, False])
    function = custom(
        lambda x: (x.sin().sum(1) * kept).sum() / 3,
        lambda dy, x, y: dy * x.cos() * kept[:, None] / 5,
    )
    target = wrap(function, "averaged", [numbers(5, 2)])
    words = [d.words for d in examine(target.subject, target.arguments, target.truth).diagnoses]
    assert len(words) == 1
    assert "0.6: 3/5, where 3 of 5 indices along axis 0" in words[0]


@pytest.mark.parametrize(
    ("forward", "backward", "said"),
    [
        (lambda x: x.softmax(-1), lambda dy, x, y: y * dy, ", as y Σ dy y in the gradient of soft"),
        (lambda x: x.log_softmax(-1), lambda dy, x, y: dy, ", as in that of log-softmax"),
        (lambda x: x - x.mean(-1, keepdim=True), lambda dy, x, y: dy, ", as the mean in the grad"),
    ],
)
def test_where_a_missing_term_is_known_from(forward, backward, said) -> None:
    target = wrap(custom(forward, backward), "mine", [numbers(4, 5)])
    (found,) = examine(target.subject, target.arguments, target.truth).diagnoses
    assert f"along axis 1{said}" in found.words


class AssignedWindows(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.einsum("bclk,ock->bol", x.unfold(2, w.shape[2], 1), w)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dw = torch.einsum("bol,bclk->ock", dy, x.unfold(2, w.shape[2], 1))
        dx, out = torch.zeros_like(x), dy.shape[2]
        for k in range(w.shape[2]):
            dx[:, :, k : k + out] = torch.einsum("bol,oc->bcl", dy, w[:, :, k])
        return dx, dw


def test_a_convolution_is_tried_on_windows_that_overlap() -> None:
    target = wrap(AssignedWindows, "AssignedWindows")
    report = examine(target.subject, target.arguments, target.truth)
    assert {d.argument for d in report.diagnoses} == {"x"}


def sorted_backward(dy, x, y):
    return torch.zeros_like(x).scatter(-1, x.argsort(stable=True, dim=-1), dy)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_right_at_a_tie_of_three(dtype: str) -> None:
    """The slope of the middle one, 9, is not between those of the first, 1, and the last, 2."""
    weights = torch.tensor([1.0, 9.0, 2.0, 3.0, 4.0])
    inputs = [torch.tensor([[1.0, 1.0, 2.0, 1.0, 3.0], [0.0, 1.0, 2.0, 0.0, 0.0]])]
    sorting = custom(
        lambda x: x.sort(stable=True, dim=-1).values @ weights.to(x),
        lambda dy, x, y: sorted_backward(dy[:, None] * weights.to(x), x, y),
    )
    target = wrap(sorting, "sort", inputs)
    dtypes = [getattr(torch, dtype)]
    report = examine(target.subject, target.arguments, target.truth, dtypes=dtypes)
    assert (report.verdict, report.failures) == ("PASS", [])
