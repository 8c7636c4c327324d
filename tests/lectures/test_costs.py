"""Cost functions, softmax and λ R(w): rows R13, R21 and R22."""

import pytest
import torch

from manualbp.checks.differences import central_differences
from manualbp.explain.networks import float64
from manualbp.explain.page import close
from manualbp.explain.registry import topics
from manualbp.explain.topics import costs
from manualbp.lectures import setting
from manualbp.losses import (
    CrossEntropyLoss,
    CrossEntropyOfProbabilities,
    HalfSquaredError,
    MSELoss,
)
from manualbp.optimizers import SGD


@pytest.mark.figures("D.cost.mse", "D.cost.mse_grad")
def test_squared_errors(lecture):
    y, t = costs.outputs_and_targets()
    E, dy = costs.cost(MSELoss("sum"), y, t)
    lecture.expect("D.cost.mse", E)
    lecture.expect("D.cost.mse_grad", dy)
    half, half_dy = costs.cost(HalfSquaredError(), y, t)
    mean, mean_dy = costs.cost(MSELoss(), y, t)
    assert (half, mean) == pytest.approx((E / 2, E / 6), rel=1e-15)
    torch.testing.assert_close(half_dy, dy / 2, rtol=1e-15, atol=0)
    torch.testing.assert_close(mean_dy, dy / 6, rtol=1e-15, atol=0)


@pytest.mark.figures("D.cost.ce", "D.cost.ce_grad")
def test_cross_entropy(lecture):
    y, t = costs.outputs_and_targets()
    E, dy = costs.cost(CrossEntropyOfProbabilities(), y, t)
    lecture.expect("D.cost.ce", E)
    lecture.expect("D.cost.ce_grad", dy)


@pytest.mark.figures("D.delta_softmax")
def test_softmax_with_cross_entropy_gives_y_minus_t_and_not_the_printed_delta(lecture):
    right, printed = lecture["D.delta_softmax"].value
    steps = costs.softmax_steps(float64([1.0, 2.0, 3.0]), float64([0.0, 0.0, 1.0]))
    lecture.expect("D.delta_softmax", [steps.delta, steps.elementwise])
    lecture.expect("D.delta_softmax", [steps.closed, steps.elementwise])
    for delta in (steps.delta, steps.closed):
        assert not close(delta.tolist(), printed, 0.1)
    assert not close(steps.elementwise.tolist(), right, 0.1)


def test_delta_of_targets_that_do_not_sum_to_1():
    a, t = float64([1.0, 2.0, 3.0]), float64([0.5, 1.5, 1.0])
    steps = costs.softmax_steps(a, t)
    torch.testing.assert_close(steps.delta, 3 * steps.y - t, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(steps.closed, 3 * steps.y - t, rtol=1e-14, atol=1e-15)
    loss = CrossEntropyLoss(reduction="sum")
    slope = central_differences(lambda: loss.forward(a, t)[0], a, float64(1.0))
    torch.testing.assert_close(steps.delta, slope, rtol=1e-8, atol=1e-9)


@pytest.mark.figures("D.cost.reg")
def test_penalty_of_weights_without_biases(lecture):
    lecture.expect("D.cost.reg", costs.penalty_of_weights())


@pytest.mark.figures("D.net")
def test_pass_with_a_penalty(lecture):
    found = costs.penalised_pass()
    lecture.expect("D.net", [getattr(found, name) for name in found.__dataclass_fields__])


def test_the_penalty_has_no_part_in_any_delta_nor_in_the_biases_and_stands_once_in_a_step():
    net, penalty, x, t = costs.penalised_network()
    x, t = x.repeat(4, 1), t.repeat(4, 1)
    data, start = net.gradient(x, t).named(), net.params.state_dict()
    net.descent(x, t, SGD(1.0), penalty=penalty).run(1)
    for name, w in start.items():
        change = w - net.params.named()[name]
        expected = data[name] + (0.01 * w if name.endswith("weight") else 0)
        torch.testing.assert_close(change, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.figures("D.lambda_N")
def test_a_penalty_inside_the_sum_is_counted_once_for_each_example(lecture):
    printed, intended = lecture["D.lambda_N"].value
    inside, beside = costs.factors_of_r(4)
    lecture.expect("D.lambda_N", [inside, beside])
    assert beside == pytest.approx(intended, rel=1e-12)
    assert beside != pytest.approx(printed, rel=0.1)


def test_without_data_every_weight_shrinks_by_the_factor_1_minus_eta_lambda():
    before, after, lam = costs.shrinking(0.5)
    assert lam == setting("COST")["lam"]
    torch.testing.assert_close(after, (1 - 0.5 * lam) * before, rtol=1e-15, atol=0)


def test_the_topic():
    page = topics()["costs"].page()
    assert page.wrong == []
    assert page.checked > 30
