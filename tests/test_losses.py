"""Losses: every promise over every case, what they refuse, and the steps behind closed forms."""

import pytest
import torch
from jaxtyping import TypeCheckError, config
from torch.nn.functional import cross_entropy

from manualbp.checks import contract
from manualbp.checks.agreement import compare_loss
from manualbp.checks.registry import case_owner, loss_cases
from manualbp.layers import Linear, Maxout, ReLU, Sequential, Sigmoid, Softmax
from manualbp.losses import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    CrossEntropyOfProbabilities,
    HalfSquaredError,
    MSELoss,
    Penalty,
)
from reference.cases import LossCase

SEED = 0
SAME_SHAPE = [HalfSquaredError(), MSELoss(), BCEWithLogitsLoss(), CrossEntropyOfProbabilities()]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
CASES = pytest.mark.parametrize(
    "case",
    [contract.loss_case(case) for case in loss_cases()],
    ids=[f"{case_owner(case)}, {case.name}" for case in loss_cases()],
)
NO_PARAMETERS = Sequential().parameters().views
NUMBERS = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=NUMBERS, dtype=torch.float64)


@DTYPES
@CASES
def test_loss(case, dtype, device):
    lines = contract.check_case(case, dtype, device, SEED)
    assert not lines, "\n".join(lines)


@CASES
def test_loss_stays_on_the_gpu(case):
    lines = contract.fake_cuda(case, torch.float32)
    assert not lines, "\n".join(lines)


def test_the_numbers_of_a_single_neuron():
    """Porr, eqs. 3 and 4: y = 0 and d = 1 give e = -1 and E = ½."""
    error, saved = HalfSquaredError().forward(torch.zeros(1), torch.ones(1))
    assert error == 0.5
    assert HalfSquaredError().backward(saved) == -1


@pytest.mark.parametrize("dE", [1.0, 0.3])
def test_softmax_and_then_the_sum_gives_the_cross_entropy(dE):
    """Step by step, E = -Σ_n Σ_k t[n,k] log y[n,k] with y = softmax(x); closed, p - t."""
    x, classes = normal(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    t = torch.zeros(6, 5, dtype=torch.float64)
    t[torch.arange(6), classes] = 1
    y, saved = Softmax().forward(NO_PARAMETERS, x)
    E, saved_E = CrossEntropyOfProbabilities().forward(y, t)
    dy = CrossEntropyOfProbabilities().backward(saved_E, dE)  # ∂E/∂y[n,k] = -t[n,k] / y[n,k]
    dx = Softmax().backward(NO_PARAMETERS, saved, dy, NO_PARAMETERS)

    loss = CrossEntropyLoss(reduction="sum")
    for target in (classes, t):
        closed_E, closed_saved = loss.forward(x, target)
        closed_dx = loss.backward(closed_saved, dE)
        torch.testing.assert_close(closed_E, E, rtol=1e-13, atol=0)
        torch.testing.assert_close(closed_dx, dx, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(closed_dx, dE * (y - t), rtol=1e-13, atol=1e-15)


def test_a_probability_of_0_counts_only_where_the_target_asks_for_it():
    y = torch.tensor([[0.0, 1.0], [0.25, 0.75]], dtype=torch.float64)
    loss = CrossEntropyOfProbabilities()
    E, saved = loss.forward(y, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    assert -torch.tensor(0.25, dtype=torch.float64).log() == E
    assert loss.backward(saved).tolist() == [[0, -1], [-4, 0]]

    E, saved = loss.forward(y, torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    assert torch.inf == E
    assert loss.backward(saved)[0].tolist() == [-torch.inf, 0]


def test_sigmoid_and_then_the_sum_gives_the_binary_cross_entropy():
    x, t = normal(7, 3), (normal(7, 3) > 0).double()
    p, saved = Sigmoid().forward(NO_PARAMETERS, x)
    E = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    dp = (p - t) / (p * (1 - p)) / p.numel()
    dx = Sigmoid().backward(NO_PARAMETERS, saved, dp, NO_PARAMETERS)

    closed_E, closed_saved = BCEWithLogitsLoss().forward(x, t)
    torch.testing.assert_close(closed_E, E, rtol=1e-13, atol=0)
    torch.testing.assert_close(BCEWithLogitsLoss().backward(closed_saved), dx, rtol=1e-12, atol=0)


def test_all_examples_ignored_gives_nan_but_no_gradient_as_in_torch(device):
    loss = CrossEntropyLoss(label_smoothing=0.1)
    rows = compare_loss(LossCase("", loss, (4, 5), "all ignored"), torch.float64, device, SEED)
    assert [row.verdict for row in rows] == ["agree", "agree"]
    error, saved = loss.forward(normal(4, 5), torch.full((4,), -100))
    assert error.isnan()
    assert (loss.backward(saved) == 0).all()


def test_another_class_can_be_the_ignored_one():
    x, target = normal(4, 5), torch.tensor([0, 1, 2, 1])
    error, saved = CrossEntropyLoss(ignore_index=1).forward(x, target)
    torch.testing.assert_close(error, cross_entropy(x, target, ignore_index=1))
    dx = CrossEntropyLoss(ignore_index=1).backward(saved)
    assert (dx[[1, 3]] == 0).all()
    assert (dx[[0, 2]] != 0).all()


@pytest.mark.parametrize("loss", SAME_SHAPE, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_another_reduction_changes_nothing_else(loss, reduction):
    assert loss.reduced_by(reduction) == type(loss)(reduction)


def test_another_reduction_keeps_the_settings_of_the_cross_entropy():
    loss = CrossEntropyLoss(torch.ones(3), 7, "mean", 0.1).reduced_by("sum")
    assert (loss.ignore_index, loss.reduction, loss.label_smoothing) == (7, "sum", 0.1)
    assert loss.weight is not None


def test_the_shapes_in_the_annotations_are_checked_while_tests_run():
    with pytest.raises(TypeCheckError):
        MSELoss().forward(torch.zeros(4, 1), torch.zeros(4))


@pytest.fixture
def no_shape_checks():
    """Let wrong shapes reach the code, as they do for a user."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("loss", SAME_SHAPE, ids=str)
def test_a_target_that_would_broadcast_is_refused(loss):
    with pytest.raises(ValueError, match=r"the target has shape \(4,\), expected \(4, 1\)"):
        loss.forward(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize("target", [torch.zeros(4, 1).long(), torch.zeros(4)], ids=["int", "float"])
def test_a_target_of_another_shape_is_refused_by_the_cross_entropy(target):
    with pytest.raises(ValueError, match="the target has shape"):
        CrossEntropyLoss().forward(torch.zeros(4, 5), target)


@pytest.mark.parametrize("index", [5, -1])
def test_a_class_that_is_none_is_refused_as_by_torch(index):
    target = torch.tensor([0, index])
    with pytest.raises((IndexError, RuntimeError)):
        CrossEntropyLoss().forward(torch.zeros(2, 5), target)
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(torch.zeros(2, 5), target)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(
    "model",
    [Sequential(Linear(5, 4), ReLU(), Linear(4, 3)), Maxout(5, 3), Sequential(ReLU())],
    ids=["mlp", "maxout", "no weights"],
)
def test_penalty_is_over_the_weights_and_not_the_biases(model, norm, device):
    penalty = Penalty(0.1, norm)
    params = model.parameters(torch.Generator().manual_seed(1), dtype=torch.float64, device=device)
    for weight in params.named().values():
        weight[(0,) * weight.ndim] = 0  # where |w| has its kink
    grads = params.zeros_like()
    grads.flat.fill_(2.0)
    penalty.backward(params, grads)

    leaves = {name: w.clone().requires_grad_() for name, w in params.named().items()}
    weights = {name: w for name, w in leaves.items() if name.endswith("weight")}
    terms = [w.square().sum() / 2 if norm == "l2" else w.abs().sum() for w in weights.values()]
    penalized = 0.1 * torch.stack([*terms, torch.zeros_like(params.flat[:0].sum())]).sum()
    expected = dict.fromkeys(leaves, 0.0)
    if weights:
        slopes = torch.autograd.grad(penalized, list(weights.values()))
        expected |= dict(zip(weights, slopes, strict=True))
    torch.testing.assert_close(penalty.forward(params), penalized.detach(), rtol=1e-13, atol=0)
    for name, gradient in grads.named().items():
        torch.testing.assert_close(gradient, expected[name] + torch.full_like(gradient, 2.0))
