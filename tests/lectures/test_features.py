"""A network is learned features and a regression on them: row R38."""

import pytest
import torch

from manualbp.explain.examples import features, rows
from manualbp.explain.registry import topics
from manualbp.explain.topics import features as mlp
from manualbp.explain.topics.least_squares import least_squares
from manualbp.explain.topics.logistic_regression import maximum_likelihood
from manualbp.optimizers import SGD


def test_the_output_layers_gradient_is_that_of_logistic_regression_on_the_features():
    x, t = mlp.xor()
    net = mlp.xor_network()
    phi = mlp.learned_features(net, x)
    found = mlp.output_rows(net.gradient(x, t))
    error = net.predict(x).sigmoid() - t
    torch.testing.assert_close(found, error.T @ features(phi), rtol=1e-14, atol=1e-15)
    alone = rows(mlp.output_alone(net).gradient(phi, t))
    torch.testing.assert_close(found, alone, rtol=1e-15, atol=0)


def test_with_frozen_features_it_is_logistic_regression():
    x, t = mlp.xor()
    start, net = mlp.xor_network(), mlp.xor_network()
    net.descent(x, t, SGD(0.5), frozen=mlp.HIDDEN).run(5000)
    for name in mlp.HIDDEN:
        assert net.params.named()[name].equal(start.params.named()[name])
    best = maximum_likelihood(mlp.learned_features(start, x), t)
    torch.testing.assert_close(mlp.output_rows(net.params), rows(best.params), rtol=1e-8, atol=0)
    assert net.error(x, t) > 2.5


def test_with_learned_features_xor_is_solved():
    x, t = mlp.xor()
    net = mlp.xor_network()
    net.descent(x, t, SGD(mlp.ETA)).run(mlp.UPDATES)
    assert net.error(x, t) < 0.01
    phi = mlp.learned_features(net, x)
    assert mlp.is_separated(mlp.output_alone(net), phi, t)
    assert not mlp.is_separated(maximum_likelihood(x, t), x, t)
    torch.testing.assert_close(mlp.output_alone(net).predict(phi), net.predict(x))


def test_with_a_linear_output_and_frozen_features_it_is_least_squares():
    x, t = mlp.curve()
    net = mlp.curve_network()
    best = least_squares(mlp.learned_features(net, x), t)
    torch.testing.assert_close(mlp.output_rows(net.params), rows(best.params), rtol=0, atol=1e-12)
    assert net.error(x, t) == pytest.approx(best.error(mlp.learned_features(net, x), t), rel=1e-12)
    net.params.named()["2.weight"].zero_()
    net.descent(x, t, SGD(0.04), frozen=mlp.HIDDEN).run(4000)
    torch.testing.assert_close(mlp.output_rows(net.params), rows(best.params), rtol=1e-8, atol=1e-8)


def test_the_topic():
    page = topics()["features"].page()
    assert page.wrong == []
    assert page.checked >= 10
