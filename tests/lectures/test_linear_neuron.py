"""R01 to R03: linear neuron, squared error, gradient descent and delta rule (PORR; CAZE's bias)."""

from itertools import count

import pytest
import torch

from manualbp.explain.networks import Network, float64, network
from manualbp.layers import Linear, Sequential
from manualbp.lectures import setting
from manualbp.optimizers import SGD

NEURON = setting("PORR_NEURON")
X, D, MU = float64([NEURON["x"]]), float64([[NEURON["d"]]]), NEURON["mu"]
STREAM = setting("PORR_STREAM")
ROWS = list(zip(float64(STREAM["X"]).split(1), float64(STREAM["d"]).view(-1, 1, 1), strict=True))


def neuron(weights=NEURON["omega"]):
    return network([[[w] for w in weights]])


@pytest.mark.figures("P.neuron.y", "P.neuron.e", "P.neuron.E")
def test_output_error_signal_and_squared_error(lecture):
    lecture.expect("P.neuron.y", neuron().predict(X).item())
    lecture.expect("P.neuron.e", neuron().output_error(X, D).item())
    lecture.expect("P.neuron.E", neuron().error(X, D))


def test_squared_error_of_several_outputs_is_a_sum():
    """Eq. 4 has no sum, eq. 13 needs it: E = ½ Σ_i e_i²."""
    two = network([[[1.0, 0.0], [0.0, 1.0]]])
    assert two.error(X, float64([[0.0, 0.0]])) == 0.5 * (1 + 4)


def test_a_bias_is_the_weight_of_an_input_that_is_one():
    """Σ_{i=1..n} w_i x_i + b = Σ_{i=0..n} w_i x_i with x_0 = 1 and w_0 = b, and so they learn."""
    model = Sequential(Linear(2, 1))
    with_bias = Network(model, model.parameters(dtype=torch.float64))
    w, b = NEURON["omega"], 0.75
    with_bias.params.load_state_dict({"0.weight": float64([w]), "0.bias": float64([b])})
    as_weight, x = neuron([b, *w]), torch.cat([float64([[1.0]]), X], 1)
    for _ in range(3):
        assert with_bias.predict(X).item() == pytest.approx(as_weight.predict(x).item(), rel=1e-15)
        with_bias.descent(X, D, SGD(MU)).errors(1)
        as_weight.descent(x, D, SGD(MU)).run(1)
    assert with_bias.params.views["0"].bias.item() == pytest.approx(as_weight.matrices[0][0].item())


@pytest.mark.figures("P.neuron.dw", "P.neuron.E_after1", "P.neuron.E_after1_eq11_literal")
def test_delta_rule(lecture):
    net = neuron()
    before = net.matrices[0].clone()
    _, after = net.descent(X, D, SGD(MU)).errors(1)
    lecture.expect("P.neuron.dw", (net.matrices[0] - before).view(-1))
    lecture.expect("P.neuron.E_after1", after)
    # Eq. 11 with the e = y - d of eq. 3 goes uphill
    _, uphill = neuron().descent(X, D, SGD(-MU)).errors(1)
    assert after < 0.5 < uphill
    lecture.expect("P.neuron.E_after1_eq11_literal", uphill)


def test_delta_rule_for_a_batch_is_the_sum_over_its_rows():
    """ΔΩ = μ Xᵀ (D - Y)"""
    x, d = float64(STREAM["X"]), float64(STREAM["d"]).unsqueeze(1)
    net = neuron([0.3, -0.2])
    expected = -x.T @ (d - net.predict(x))
    torch.testing.assert_close(net.gradients(x, d)[0], expected, rtol=1e-14, atol=0)
    rows = sum(net.gradients(*row)[0] for row in ROWS)
    torch.testing.assert_close(net.gradients(x, d)[0], rows, rtol=1e-14, atol=0)


@pytest.mark.figures("P.neuron.e_n")
def test_the_error_is_multiplied_by_one_minus_mu_x_squared(lecture):
    net, signals = neuron(), []
    for _ in range(6):
        signals.append(net.output_error(X, D).item())
        net.descent(X, D, SGD(MU)).errors(1)
    lecture.expect("P.neuron.e_n", signals)
    assert signals == pytest.approx([-((1 - MU * 5) ** n) for n in range(6)], rel=1e-14)


@pytest.mark.figures("P.neuron.stability")
def test_step_limit(lecture):
    """|e| after 200 updates: rates below 2/|x|² = 0.4 converge, at it stand, above it diverge."""
    expected = lecture["P.neuron.stability"].value
    for mu, after in zip([0.01, 0.2, 0.39, 0.4, 0.41], expected, strict=True):
        net = neuron()
        net.descent(X, D, SGD(mu)).errors(200)
        error = net.output_error(X, D).abs().item()
        # y is about 1, and so e is known to 1e-12 absolutely where it is small
        assert error == pytest.approx(after, rel=1e-12, abs=1e-15), mu


def test_step_limit_of_a_large_input():
    """|x| = 100 needs μ < 0.0002: a rate far below 1 is not small by itself."""
    x = float64([[60.0, 80.0]])
    below, above = (neuron().descent(x, D, SGD(mu)).errors(100)[-1] for mu in (0.00019, 0.00021))
    assert below < 1e-3
    assert above > 1e3


@pytest.mark.figures("P.stream.*")
def test_stream_recovers_the_weights_that_made_it(lecture):
    """Porr's inductive learning: four pairs, one update after each, over and over."""
    net = neuron(STREAM["omega0"])
    first_epoch, epochs = [], 0
    for epochs in count(1):
        for x, d in ROWS:
            net.descent(x, d, SGD(STREAM["mu"])).run(1)
            if epochs == 1:
                first_epoch.append(net.matrices[0].view(-1).tolist())
        if max(net.output_error(x, d).abs().item() for x, d in ROWS) < 1e-6:
            break
    lecture.expect("P.stream.first_epoch", first_epoch)
    lecture.expect("P.stream.epochs_to_1e-6", epochs, rel=0)
    assert net.matrices[0].view(-1).tolist() == pytest.approx(STREAM["true_omega"], abs=1e-6)
