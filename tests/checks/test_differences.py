"""Derivatives from differences, on functions whose derivatives are known."""

import pytest
import torch

from manualbp.checks.differences import central_differences, one_sided_differences


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_central_differences_of_a_cubic():
    """y = v³ has the derivative 3 v²."""
    v, dy = double(-1.0, 0.0, 2.0, 100.0), double(1.0, 2.0, -3.0, 0.5)
    dv = central_differences(lambda: v**3, v, dy)
    torch.testing.assert_close(dv, dy * 3 * v**2, rtol=1e-8, atol=1e-8)


def test_every_output_counts():
    """y[k] = Σ_j A[k,j] v[j] has dv[j] = Σ_k dy[k] A[k,j]."""
    A, v = double([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]), double(0.5, -0.5)
    dy = double(1.0, -1.0, 2.0)
    torch.testing.assert_close(central_differences(lambda: A @ v, v, dy), A.T @ dy)


def test_an_output_that_is_the_input_itself():
    v, dy = double(1.0, 2.0), double(3.0, 4.0)
    torch.testing.assert_close(central_differences(lambda: v, v, dy), dy)
    for bound in one_sided_differences(lambda: v, v, dy):
        torch.testing.assert_close(bound, dy)


@pytest.mark.parametrize("differences", [central_differences, one_sided_differences])
def test_the_input_is_as_before_afterwards(differences):
    v = double(0.1, 0.2, 1e6)
    before = v.clone()
    differences(lambda: v.sin(), v, double(1.0, 1.0, 1.0))
    assert torch.equal(v, before)


def test_at_a_kink_the_bounds_are_the_slopes_on_the_two_sides():
    """|v| has the slopes -1 and 1 at 0; dy = -2 turns them round."""
    v = double(-3.0, 0.0, 0.0)
    low, high = one_sided_differences(lambda: v.abs(), v, double(1.0, 1.0, -2.0))
    torch.testing.assert_close(low, double(-1.0, -1.0, -2.0))
    torch.testing.assert_close(high, double(-1.0, 1.0, 2.0))


@pytest.mark.parametrize("differences", [central_differences, one_sided_differences])
def test_other_types_are_refused(differences):
    v = torch.zeros(3)
    with pytest.raises(ValueError, match="differences need a float64 tensor"):
        differences(lambda: v.sin(), v, v)


def test_a_transposed_tensor_is_as_good():
    v = torch.arange(6, dtype=torch.float64).reshape(2, 3).T
    dv = central_differences(lambda: v.sin(), v, torch.ones_like(v))
    torch.testing.assert_close(dv, v.cos())
