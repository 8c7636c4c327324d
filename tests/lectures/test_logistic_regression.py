"""Logistic regression: rows R18 and R19."""

import math
from itertools import pairwise

import pytest
import torch

from manualbp.checks.differences import central_differences
from manualbp.errors import UsageError
from manualbp.explain.examples import features, linear_model, rows
from manualbp.explain.networks import float64
from manualbp.explain.registry import topics
from manualbp.explain.topics import logistic_regression as lr
from manualbp.lectures import setting
from manualbp.optimizers import SGD


@pytest.mark.figures("D.logreg.E0", "D.logreg.grad0", "D.logreg.grad1")
def test_error_and_gradient_of_two_classes(lecture):
    x, t = lr.two_classes()
    start = lr.logistic(0, 0)
    lecture.expect("D.logreg.E0", start.error(x, t))
    lecture.expect("D.logreg.grad0", rows(start.gradient(x, t)).flatten())
    lecture.expect("D.logreg.grad1", rows(lr.logistic(0.3, -0.2).gradient(x, t)).flatten())


def test_the_gradient_is_features_times_error_and_the_slope_of_the_surface():
    x, t = lr.two_classes()
    w = float64([[0.3, -0.2]])
    net = linear_model(w, lr.TWO_CLASSES)
    found = rows(net.gradient(x, t))
    product = features(x).T @ (net.predict(x).sigmoid() - t)
    torch.testing.assert_close(found, product.T, rtol=1e-14, atol=1e-15)
    slope = central_differences(
        lambda: float64(linear_model(w, lr.TWO_CLASSES).error(x, t)), w, float64(1.0)
    )
    torch.testing.assert_close(found, slope, rtol=1e-8, atol=0)


@pytest.mark.figures("D.logreg.ml")
def test_the_maximum_likelihood_is_where_the_gradient_is_zero(lecture):
    x, t = lr.two_classes()
    best = lr.maximum_likelihood(x, t)
    w = rows(best.params)
    lecture.expect("D.logreg.ml", [w.flatten(), best.error(x, t)])
    assert best.gradient(x, t).flat.abs().max() < 1e-13
    for start in ((0, 0), (-2, 3), (5, -5)):  # convex: every start leads there
        net = lr.logistic(*start)
        net.descent(x, t, SGD(0.1)).run(5000)
        torch.testing.assert_close(rows(net.params), w, rtol=1e-10, atol=0)


@pytest.mark.figures("D.surface")
def test_the_error_surface(lecture):
    lecture.expect("D.surface", lr.error_surface((-1, 0, 1), (0, 1, 2)))


def test_small_steps_always_go_downhill():
    x, t = lr.two_classes()
    for start in ((0, 0), (-2, 3), (5, -5)):
        errors = lr.logistic(*start).descent(x, t, SGD(0.1)).errors(199)
        assert all(later < earlier for earlier, later in pairwise(errors))


@pytest.mark.figures("D.logreg.separable")
def test_on_separable_data_the_weight_grows_for_ever(lecture):
    expected = lecture["D.logreg.separable"].value
    found = lr.separable_descent([row[0] for row in expected])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)
    n, w, _ = found[-1]
    assert w == pytest.approx(math.log(2 * n), rel=1e-5)
    data = setting("LOGREG_SEP")
    x, t = float64(data["x"]).unsqueeze(1), float64(data["t"]).unsqueeze(1)
    with pytest.raises(UsageError, match="the classes are separable"):
        lr.maximum_likelihood(x, t)


@pytest.mark.figures("D.logregK.*")
def test_three_classes(lecture):
    x, t = lr.three_classes()
    net = linear_model(torch.zeros(3, 3, dtype=torch.float64), lr.K_CLASSES)
    lecture.expect("D.logregK.E0", net.error(x, t))
    found = rows(net.gradient(x, t))
    lecture.expect("D.logregK.grad0", found)
    assert found.sum(0).abs().max() < 1e-14
    net.descent(x, t, SGD(setting("LOGREGK")["eta"])).run(100)
    lecture.expect("D.logregK.W100", rows(net.params))
    lecture.expect("D.logregK.E100", net.error(x, t))
    lecture.expect("D.logregK.acc100", lr.right(net, x, t))


def test_two_classes_of_k_are_two_classes():
    """Softmax with the rows (v, 0) is the sigmoid with v: the same error, the same gradient."""
    x, t = lr.two_classes()
    one = lr.logistic(0.3, -0.2)
    two = linear_model(float64([[0.0, 0.0], [0.3, -0.2]]), lr.K_CLASSES)
    classes = t.squeeze(1).long()
    assert two.error(x, classes) == pytest.approx(one.error(x, t), rel=1e-14)
    both = rows(two.gradient(x, classes))
    torch.testing.assert_close(both[1:], rows(one.gradient(x, t)), rtol=1e-13, atol=0)
    torch.testing.assert_close(both[0], -both[1], rtol=1e-13, atol=0)


def test_the_topic():
    page = topics()["logistic-regression"].page()
    assert page.wrong == []
    assert page.checked > 15
