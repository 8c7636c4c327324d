"""Softmax outputs become posterior probabilities: row R37."""

import pytest
import torch

from manualbp.explain.examples import rows
from manualbp.explain.networks import float64
from manualbp.explain.registry import topics
from manualbp.explain.topics import posteriors
from manualbp.explain.topics.logistic_regression import maximum_likelihood


@pytest.mark.figures("D.posterior")
def test_outputs_become_the_observed_frequencies(lecture):
    table = posteriors.counts()
    _, y = posteriors.learned(table)
    lecture.expect("D.posterior", y)
    torch.testing.assert_close(y, table / 10, rtol=1e-12, atol=0)


def test_other_counts_too():
    table = float64([[5, 1], [3, 3], [2, 6], [1, 4]])
    net, y = posteriors.learned(table)
    torch.testing.assert_close(y, table / table.sum(1, keepdim=True), rtol=1e-10, atol=0)
    assert net.gradient(*posteriors.examples(table)).flat.abs().max() < 1e-10


def test_examples_are_one_for_each_count():
    x, classes = posteriors.examples(float64([[2, 0], [0, 1]]))
    assert x.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert classes.tolist() == [0, 0, 1]


@pytest.mark.parametrize("mean", [0.5, 1.0])
def test_logistic_regression_learns_the_rule_of_bayes(mean):
    """Two normal distributions around ±m of variance 1 have the posterior σ(2 m x)."""
    w0, w1 = rows(maximum_likelihood(*posteriors.bell_curves(4000, mean)).params).flatten()
    assert abs(w0) < 1e-9
    assert w1 == pytest.approx(2 * mean, rel=1e-3)


def test_the_topic():
    page = topics()["posteriors"].page()
    assert page.wrong == []
    assert page.checked >= 10
