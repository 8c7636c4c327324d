"""Least squares against logistic regression: row R20."""

import pytest
import torch

from manualbp.errors import UsageError
from manualbp.explain.examples import features, linear_model, rows
from manualbp.explain.registry import topics
from manualbp.explain.topics import least_squares as ls
from manualbp.optimizers import SGD


@pytest.mark.figures("D.lslr.*")
def test_far_points_move_least_squares_and_not_logistic_regression(lecture):
    found = {}
    for name in ls.OUTLIERS:
        x, t = ls.overlapping(name)
        both = ls.boundaries(name)
        numbers = [n for b in both for n in (list(b.weights), b.place, b.errors(x, t))]
        lecture.expect(f"D.lslr.{name}", numbers)
        found[name] = both
    (least, logistic), (least_far, logistic_far) = found["without"], found["with"]
    assert least_far.place - least.place > 1.19
    assert logistic_far.place == pytest.approx(logistic.place, rel=1e-13)


@pytest.mark.parametrize("outliers", ls.OUTLIERS)
def test_least_squares_is_where_the_squared_errors_gradient_is_zero(outliers):
    x, t = ls.overlapping(outliers)
    net = ls.least_squares(x, t)
    assert net.gradient(x, t).flat.abs().max() < 1e-12
    normal = features(x).T @ features(x) @ rows(net.params).T
    torch.testing.assert_close(normal, features(x).T @ t, rtol=1e-13, atol=0)


def test_gradient_descent_leads_to_the_same_least_squares():
    x, t = ls.overlapping("without")
    net = linear_model(torch.zeros(1, 2, dtype=torch.float64), ls.HalfSquaredError())
    net.descent(x, t, SGD(0.01)).run(5000)
    expected = rows(ls.least_squares(x, t).params)
    torch.testing.assert_close(rows(net.params), expected, rtol=1e-10, atol=0)


@pytest.mark.figures("D.mask")
def test_least_squares_masks_the_middle_class_and_the_softmax_finds_it(lecture):
    x, classes = ls.three_on_a_line()
    net = ls.least_squares(x, ls.one_hot(classes))
    softmax, updates = ls.softmax_until_right(x, classes)
    found = net.predict(x).argmax(1)
    lecture.expect("D.mask", [rows(net.params).T, found, updates])
    assert ls.right(net, x, classes) == 8
    assert (found != 1).all()
    assert ls.right(softmax, x, classes) == 12


def test_softmax_that_needs_more_updates_says_so():
    x, classes = ls.three_on_a_line()
    with pytest.raises(UsageError, match="after 6 updates some examples are still wrong"):
        ls.softmax_until_right(x, classes, most=6)


def test_the_topic():
    page = topics()["least-squares-vs-logistic"].page()
    assert page.wrong == []
    assert page.checked >= 17
