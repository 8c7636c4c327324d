"""Every promise of a layer, over every case, dtype and device; and what is particular to one."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from manualbp.checks import contract
from manualbp.checks.registry import case_owner, layer_cases
from manualbp.layers import Dropout, Linear, Maxout, Mode, Residual, Sequential

SEED = 0
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
CASES = pytest.mark.parametrize(
    "case", layer_cases(), ids=lambda case: f"{case_owner(case)}, {case.name}"
)


@DTYPES
@CASES
def test_layer(case, dtype, device):
    lines = contract.check_case(case, dtype, device, SEED)
    assert not lines, "\n".join(lines)


@CASES
def test_layer_stays_on_the_gpu(case):
    lines = contract.fake_cuda(case, torch.float32)
    assert not lines, "\n".join(lines)


NO_PARAMETERS = Sequential().parameters().views


def training(seed):
    return Mode(training=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer", [Linear(5, 3), Maxout(5, 3)], ids=["Linear", "Maxout"])
def test_input_of_another_width_is_refused(layer):
    with pytest.raises(ValueError, match="x has 4 features, expected 5"):
        layer.forward(layer.parameters().views, torch.zeros(2, 4))


def test_a_residual_whose_inner_layer_changes_the_shape_is_refused():
    layer = Residual(Linear(5, 3))
    with pytest.raises(ValueError, match=r"turns \(2, 5\) into \(2, 3\)"):
        layer.forward(layer.parameters().views, torch.zeros(2, 5))


def test_a_layer_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Linear(5, 3).in_features = 4


def test_a_layer_used_twice_adds_the_gradients_of_both_uses():
    """y = W (W x): ∂E/∂W is the sum of what either use contributes."""
    layer = Linear(4, 4)
    params = layer.parameters(torch.Generator().manual_seed(0), dtype=torch.float64)
    grads = params.zeros_like()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h, first = layer.forward(params.views, x)
    y, second = layer.forward(params.views, h)
    dy = torch.cos(y)
    layer.backward(
        params.views, first, layer.backward(params.views, second, dy, grads.views), grads.views
    )

    module = nn.Linear(4, 4, dtype=torch.float64)
    module.load_state_dict(params.state_dict())
    expected = torch.autograd.grad(module(module(x)), [module.weight, module.bias], dy)
    torch.testing.assert_close([grads.views.weight, grads.views.bias], list(expected))


@pytest.mark.parametrize(("ties", "share"), [("split", [0.5, 0.5]), ("first", [1.0, 0.0])])
def test_who_of_two_equal_pieces_gets_the_gradient(ties, share):
    layer = Maxout(1, 1, pieces=2, bias=False, ties=ties)
    params = layer.parameters(dtype=torch.float64)
    params.views.weight.fill_(0.5)
    grads = params.zeros_like()
    x = torch.tensor([[3.0]], dtype=torch.float64)
    _, saved = layer.forward(params.views, x)
    dx = layer.backward(params.views, saved, torch.ones(1, 1, dtype=torch.float64), grads.views)
    assert grads.views.weight.flatten().tolist() == [3 * part for part in share]
    assert dx.item() == 0.5


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="p is a probability"):
        Dropout(p)


def test_dropout_draws_the_mask_of_torch_on_the_cpu():
    x = torch.rand(40, 5) + 1
    torch.manual_seed(3)
    expected = nn.Dropout(0.3)(x)
    y, _ = Dropout(0.3).forward(NO_PARAMETERS, x, mode=training(seed=3))
    torch.testing.assert_close(y, expected)


def test_dropout_draws_the_same_mask_in_every_dtype():
    masks = [
        Dropout(0.3).forward(NO_PARAMETERS, torch.ones(99, dtype=dtype), mode=training(3))[0] > 0
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_dropout_keeps_the_mean(device):
    x = torch.ones(100_000, dtype=torch.float64, device=device)
    mode = Mode(training=True, generator=torch.Generator(device).manual_seed(0))
    y, _ = Dropout(0.2).forward(NO_PARAMETERS, x, mode=mode)
    assert set(y.tolist()) == {0.0, 1.25}
    # The standard deviation of the mean is √(0.2/0.8) / √100,000 = 0.0016.
    assert y.mean().item() == pytest.approx(1, abs=0.008)


def test_a_pass_with_its_own_generator_leaves_the_default_one_alone():
    before = torch.get_rng_state()
    Dropout(0.3).forward(NO_PARAMETERS, torch.ones(9), mode=training(seed=3))
    assert torch.equal(torch.get_rng_state(), before)
