"""The comparison with autograd: what counts as agreement, and what the rows say."""

from math import inf, nan

import pytest
import torch

from manualbp.checks.agreement import (
    by_hand,
    compare_layer,
    compare_loss,
    make_inputs,
    relative_error,
    rows,
    through_autograd,
)
from manualbp.checks.registry import loss_cases
from manualbp.checks.tolerances import TOLERANCES
from manualbp.layers import Linear, Softmax
from reference.cases import Case

LINEAR = Case("normal", Linear(5, 3), (4, 5))
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def numbers(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def row(ours, autograd, truth):
    """Return the row for one tensor."""
    (found,) = rows("Layer", "case", {"dx": ours}, {"dx": autograd}, {"dx": truth})
    return found


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),  # the largest difference over the largest number
        ([1.5, 2.0], [1.0, 2.0], 0.25),
        ([0.0], [0.0], 0),
        ([1e-300], [0.0], inf),
        ([nan, 1.0], [nan, 1.0], 0),
        ([nan, 1.5], [nan, 1.0], 0.5),
        ([nan], [1.0], inf),
        ([1.0], [nan], inf),
        ([inf, 1.0], [inf, 1.0], 0),
        ([1.0], [1.0, 1.0], inf),
        ([], [], 0),
    ],
)
def test_relative_error(a, b, error):
    a, b = numbers(*a, dtype=torch.float64), numbers(*b, dtype=torch.float64)
    assert relative_error(a, b) == error


def test_an_infinity_on_one_side_only_is_an_error():
    assert relative_error(torch.tensor([inf]), torch.tensor([1.0])) > 1e30


@pytest.mark.parametrize(("share", "verdict"), [(0.9, "agree"), (1.1, "differ")])
@DTYPES
def test_the_floor_of_a_dtype_decides_where_autograd_is_exact(dtype, share, verdict):
    truth = numbers(1.0, -4.0, dtype=torch.float64)
    ours = truth + numbers(0.0, share * 4 * TOLERANCES[dtype].floor, dtype=torch.float64)
    assert row(ours.to(dtype), truth.to(dtype), truth).verdict == verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.9, "agree"), (1.1, "differ")])
def test_autograd_s_own_error_decides_where_it_is_larger(share, verdict):
    truth, own = numbers(1.0, dtype=torch.float64), 1e-3
    limit = TOLERANCES[torch.float32].factor * own
    found = row(numbers(1 + share * limit), numbers(1 - own), truth)
    assert found.verdict == verdict
    assert found.error_vs_truth == pytest.approx(share * limit, rel=1e-3)
    assert found.autograd_error_vs_truth == pytest.approx(own, rel=1e-3)


def test_a_row_says_how_far_the_two_sides_lie_apart():
    truth = numbers(2.0, -4.0, dtype=torch.float64)
    found = row(numbers(2.5, -4.0), numbers(2.0, -4.0), truth)
    assert found.max_abs_error == 0.5
    assert found.max_rel_error == 0.125
    assert (found.layer, found.case, found.tensor, found.shape) == ("Layer", "case", "dx", [2])
    assert (found.device, found.dtype) == ("cpu", "float32")


@pytest.mark.parametrize(
    "ours",
    [numbers(1.0, nan), numbers(1.0, inf), numbers(1.0), numbers(1.0, 2.0, dtype=torch.float64)],
    ids=["NaN", "infinite", "another shape", "another dtype"],
)
def test_what_is_not_a_number_of_the_same_kind_differs(ours):
    truth = numbers(1.0, 2.0, dtype=torch.float64)
    assert row(ours, truth.float(), truth).verdict == "differ"


def test_a_tensor_that_one_side_lacks_is_an_error():
    with pytest.raises(AssertionError, match="dbias"):
        rows("Layer", "case", {"dx": numbers(1.0)}, {"dx": numbers(1.0), "dbias": numbers(1.0)}, {})


@DTYPES
def test_a_layer_has_a_row_for_each_tensor(dtype, device):
    found = compare_layer(LINEAR, dtype, device, seed=3)
    assert [row.tensor for row in found] == ["y", "dx", "dweight", "dbias"]
    assert {row.verdict for row in found} == {"agree"}
    assert {row.device for row in found} == {device}
    assert {row.layer for row in found} == {"Linear"}


@DTYPES
@pytest.mark.parametrize("case", loss_cases(), ids=lambda case: f"{case.loss}, {case.name}")
def test_a_loss_has_a_row_for_the_error_and_one_for_its_gradient(case, dtype, device):
    found = compare_loss(case, dtype, device, seed=3)
    assert [row.tensor for row in found] == ["E", "dy"]
    assert {row.verdict for row in found} == {"agree"}


def test_inputs_depend_on_the_seed_and_on_nothing_else():
    first, again, other = (make_inputs(LINEAR, torch.float64, "cpu", seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.dy, again.dy)
    assert torch.equal(first.parameters.flat, again.parameters.flat)
    assert not torch.equal(first.x, other.x)
    assert not torch.equal(first.dy, other.dy)


def test_lower_precision_starts_from_the_same_numbers_rounded(device):
    exact = make_inputs(LINEAR, torch.float64, device, seed=1)
    rounded = make_inputs(LINEAR, torch.bfloat16, device, seed=1)
    assert torch.equal(rounded.x, exact.x.bfloat16())
    assert torch.equal(rounded.dy, exact.dy.bfloat16())


def test_the_upstream_gradient_is_not_constant():
    """With dy = 1 the true dx of softmax is zero, and nothing would be compared."""
    inputs = make_inputs(Case("", Softmax(), (4, 5)), torch.float64, "cpu", seed=0)
    assert inputs.dy.std() > 0.5


def test_neither_side_changes_the_inputs_of_the_other():
    inputs = make_inputs(LINEAR, torch.float64, "cpu", seed=0)
    before = [t.clone() for t in (inputs.x, inputs.dy, inputs.parameters.flat)]
    first = by_hand(LINEAR.layer, inputs, training=True)
    through_autograd(LINEAR.layer, inputs, training=True)
    second = by_hand(LINEAR.layer, inputs, training=True)
    assert all(torch.equal(first[name], second[name]) for name in first)
    after = (inputs.x, inputs.dy, inputs.parameters.flat)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
