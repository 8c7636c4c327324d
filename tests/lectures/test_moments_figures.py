"""The figures of moments sent backward, forward and into Gaussian weights."""

import pytest
import torch

from manualbp.explain.topics.moments import network, random_input, random_target
from manualbp.lectures import setting
from manualbp.moments import (
    backward_moments,
    evidence,
    linear_moments,
    relu_moments,
    sampled_moments,
    update_gaussian_weights,
)

X = torch.tensor(setting("MOMENTS")["inputs"], dtype=torch.float64)


def eight(params):
    return torch.cat([params.views[part].weight.flatten() for part in ("0", "2")])


@pytest.mark.figures("K.moments.delta_*", "K.moments.grad_*")
def test_moments_of_the_backward_pass(lecture):
    exact = backward_moments(*network(), X, random_target())
    for l, name in ((3, "K.moments.delta_out"), (1, "K.moments.delta_hid")):
        found = exact.deltas[l]
        lecture.expect(name, [found.mean.tolist(), found.covariance.tolist()])
    lecture.expect("K.moments.grad_mean", eight(exact.mean))
    lecture.expect("K.moments.grad_sd", eight(exact.sd))


@pytest.mark.figures("K.moments.grad_mean", "K.moments.grad_sd", "K.moments.delta_hid")
def test_a_million_targets_sent_back_have_these_moments(lecture):
    samples = 1_000_000
    generator = torch.Generator().manual_seed(0)
    sampled = sampled_moments(*network(), X, random_target(), samples, generator)
    mean = torch.tensor(lecture["K.moments.grad_mean"].value, dtype=torch.float64)
    sd = torch.tensor(lecture["K.moments.grad_sd"].value, dtype=torch.float64)
    assert float(((eight(sampled.mean) - mean).abs() / (sd / samples**0.5)).max()) < 4
    assert float((eight(sampled.sd) / sd - 1).abs().max()) < 0.004
    hidden_mean, covariance = lecture["K.moments.delta_hid"].value
    hidden = sampled.deltas[1]
    exact_sd = torch.tensor(covariance, dtype=torch.float64).diagonal().sqrt()
    off = (hidden.mean - torch.tensor(hidden_mean, dtype=torch.float64)).abs()
    assert float((off / (exact_sd / samples**0.5)).max()) < 4
    assert float((hidden.sd / exact_sd - 1).abs().max()) < 0.004


@pytest.mark.figures("K.moments.fwd_linear", "K.moments.relu")
def test_moments_forward(lecture):
    model, params = network()
    net = linear_moments(model.layers[0], params.views["0"], random_input())
    lecture.expect("K.moments.fwd_linear", [net.mean.tolist(), net.covariance.tolist()])
    before = torch.tensor([0.3, 0.25], dtype=torch.float64)
    lecture.expect("K.moments.relu", torch.stack(relu_moments(before[0], before[1])))


@pytest.mark.figures("K.moments.pbp")
def test_gaussian_weights(lecture):
    given = setting("PBP_LINEAR")
    x, m, v = (
        torch.tensor(given[name], dtype=torch.float64) for name in ("x", "prior_mean", "prior_var")
    )
    z = evidence(x, given["y"], m, v, given["noise_var"])
    lecture.expect("K.moments.pbp", torch.stack(update_gaussian_weights(m, v, z.dm, z.dv)))
