"""`manualbp check` on mistakes that look like others: it names no cause that is not theirs.

The targets are in this file, which `check` executes.
"""

import pytest
import torch
from small_runs import call
from torch import Tensor
from torch.autograd import Function

from manualbp.checks.doctor.constants import readings


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def weights(q, k):
    """Return softmax(q kᵀ) over the keys that are not later than the query."""
    later = torch.ones(q.shape[-2], k.shape[-2]).triu(1).bool()
    return (q @ k.mT).masked_fill(later, -torch.inf).softmax(-1)


class Causal(Function):
    """Causal attention; in the derivative of softmax stands a mean over the keys for the sum."""

    reduced = staticmethod(torch.mean)
    hides_later_keys = True

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return weights(q, k) @ v

    @classmethod
    def of(cls, q, k, v, dy):
        p = weights(q, k) if cls.hides_later_keys else (q @ k.mT).softmax(-1)
        dp = dy @ v.mT
        ds = p * (dp - cls.reduced(dp * p, -1, keepdim=True))
        return ds @ k, ds.mT @ q, p.mT @ dy

    @staticmethod
    def backward(ctx, dy):
        return Causal.of(*ctx.saved_tensors, dy)


class WithoutMask(Causal):
    """The mask is missing in the backward pass, and nothing else is wrong."""

    reduced = staticmethod(torch.sum)
    hides_later_keys = False

    @staticmethod
    def backward(ctx, dy):
        return WithoutMask.of(*ctx.saved_tensors, dy)


class WithoutPadding(Function):
    """The last key is padding, which the backward pass forgets."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return (q @ k[:-1].mT).softmax(-1) @ v[:-1]

    @staticmethod
    def backward(ctx, dy):
        q, k, v = ctx.saved_tensors
        p, dp = (q @ k.mT).softmax(-1), dy @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ k, ds.mT @ q, p.mT @ dy


def withoutpadding_inputs():
    return drawn((3, 2), (4, 2), (4, 2))


class Pooled(Function):
    """The results of all queries are averaged; the backward pass is that of their sum."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return ((q @ k.mT).softmax(-1) @ v).mean(-2)

    @staticmethod
    def backward(ctx, dy):
        q, k, v = ctx.saved_tensors
        p, do = (q @ k.mT).softmax(-1), dy[..., None, :].expand(*q.shape[:-1], v.shape[-1])
        dp = do @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ k, ds.mT @ q, p.mT @ do


class Solve(Function):
    """x = tril(a)⁻¹ b; the product in the gradient of a is transposed: -(x dbᵀ) for -(db xᵀ)."""

    @staticmethod
    def forward(ctx, a, b):
        x = torch.linalg.solve_triangular(a.tril(), b, upper=False)
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    def backward(ctx, dx):
        a, x = ctx.saved_tensors
        db = torch.linalg.solve_triangular(a.tril().mT, dx, upper=True)
        return -(x @ db.mT).tril(), db


class SolveForwards(Solve):
    """The system of the forward pass is solved once more where the transposed one belongs."""

    @staticmethod
    def backward(ctx, dx):
        a, x = ctx.saved_tensors
        db = torch.linalg.solve_triangular(a.tril(), dx, upper=False)
        return -(db @ x.mT).tril(), db


def causal_inputs():
    return drawn((2, 4, 3), (2, 4, 3), (2, 4, 3))


withoutmask_inputs = causal_inputs


def pooled_inputs():
    return drawn((2, 4, 3), (2, 5, 3), (2, 5, 6))


def solve_inputs():
    a, b = drawn((4, 4), (4, 3))
    return [a + 3 * torch.eye(4), b]


solveforwards_inputs = solve_inputs


def said(name: str) -> str:
    """Return in one line what `check` prints above the table."""
    code, out, err = call("check", f"{__file__}:{name}", "--dtype", "float64")
    assert (code, err) == (1, "")
    return " ".join(out.partition("smallest inputs")[0].split())


def test_a_term_that_does_not_cancel_is_no_missing_mask() -> None:
    text = said("Causal")
    assert "mask" not in text
    assert (
        "the gradient of q is wrong, and the cause is not recognised: it is not zero for the first "
        "of 4 indices along axis 1, on which y does not depend" in text
    )


def test_a_missing_causal_mask_is_still_named() -> None:
    assert (
        "the gradient of v is wrong: it lets earlier (along axis 1 of y) numbers of y through, "
        "which do not depend on v there: a mask (a causal one) of the forward pass is missing in it"
    ) in said("WithoutMask")


def test_a_missing_padding_mask_is_still_named() -> None:
    text = said("WithoutPadding")
    assert (
        "the gradient of k is wrong: it is not zero for the last of 4 indices along axis 0, on "
        "which y does not depend, and what stands there changes it elsewhere: a mask of the "
        "forward pass is missing in it evidence: other numbers there change no output" in text
    )


def test_a_mean_for_a_sum_is_the_count_that_was_averaged() -> None:
    text = said("Pooled")
    for name in "qkv":
        assert (
            f"the gradient of {name} is wrong by the constant factor 4: N with N = 4, the length "
            "of axis 1 of q or 2N with" in text
        )


def test_a_transposed_product_in_a_triangle_is_no_missing_mask() -> None:
    text = said("Solve")
    assert "mask" not in text
    assert (
        "the gradient of a is wrong in part: it is wrong only below the diagonal, and right on it, "
        "as where a matrix is transposed before its triangle is taken" in text
    )


def test_a_system_solved_in_the_same_direction_is_no_missing_mask() -> None:
    text = said("SolveForwards")
    assert "mask" not in text
    assert (
        "the gradient of a is wrong: it is made from earlier (along axis 0 of y) numbers of y "
        "where later ones belong" in text
    )
    assert "the gradient of b is wrong: dy is multiplied by the Jacobian" in text


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"q": (2, 4), "k": (3, 5)}, "N with N = 4, the length of axis 1 of q"),
        (
            {"q": (2, 4), "k": (4, 5)},
            "N with N = 4, the length of axis 1 of q (and of other axes)",
        ),
        ({"q": (2, 4), "k": (3, 4)}, "N with N = 4, the length of axis 1 of q and k"),
        ({"x": (4, 3), "y": (4, 2)}, "N with N = 4, the batch size, axis 0 of x"),
    ],
)
def test_of_several_axes_with_the_length_none_is_blamed_alone(shapes, words) -> None:
    assert readings(4.0, shapes, 1e-9)[0] == words
