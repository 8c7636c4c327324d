"""Initialisers: the same bits as torch.nn from the same generator state."""

from math import sqrt
from typing import get_args

import pytest
import torch
from torch import nn

from manualbp.initializers import SMALL, Initializer
from manualbp.layers import Linear, Maxout, Sequential
from manualbp.models import build
from reference.twins import twin

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
SIZES = pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (3, 2), (17, 13), (1, 1)])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@DTYPES
@SIZES
def test_the_default_is_torch_nn_linear_bit_for_bit(inputs, outputs, dtype):
    torch.manual_seed(5)
    expected = nn.Linear(inputs, outputs, dtype=dtype).state_dict()
    state = Linear(inputs, outputs).parameters(seeded(5), dtype=dtype).state_dict()
    assert torch.equal(state["weight"], expected["weight"])
    assert torch.equal(state["bias"], expected["bias"])


TORCH = {
    "xavier": nn.init.xavier_uniform_,
    "he": nn.init.kaiming_normal_,
    "small": lambda weight, generator: nn.init.normal_(weight, std=SMALL, generator=generator),
    "zeros": lambda weight, generator: nn.init.zeros_(weight),
}


@DTYPES
@SIZES
@pytest.mark.parametrize("initializer", TORCH)
def test_the_others_are_those_of_torch_nn_init_bit_for_bit(initializer, inputs, outputs, dtype):
    expected = torch.empty(outputs, inputs, dtype=dtype)
    TORCH[initializer](expected, generator=seeded(5))
    layer = Linear(inputs, outputs, initializer=initializer)
    state = layer.parameters(seeded(5), dtype=dtype).state_dict()
    assert torch.equal(state["weight"], expected)
    assert (state["bias"] == 0).all()


def test_every_initializer_is_tested():
    assert {"torch", *TORCH} == set(get_args(Initializer))


@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_a_whole_model_starts_as_its_twin_bit_for_bit(name):
    model = build(name, 64, 10)
    torch.manual_seed(5)
    expected = twin(model).state_dict()
    state = model.parameters(seeded(5)).state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)


def test_without_a_generator_torch_s_default_one_is_used():
    torch.manual_seed(5)
    expected = nn.Linear(3, 2).weight
    torch.manual_seed(5)
    assert torch.equal(Linear(3, 2).parameters().views.weight, expected)


def test_two_layers_of_a_model_start_differently():
    params = Sequential(Linear(4, 4), Linear(4, 4)).parameters(seeded(0))
    assert not torch.equal(params.views["0"].weight, params.views["1"].weight)


@pytest.mark.parametrize(
    ("initializer", "std"),
    [
        ("torch", 1 / sqrt(3 * 50)),  # of U(-a, a): a/√3, a = 1/√I
        ("xavier", sqrt(2 / (50 + 80))),
        ("he", sqrt(2 / 50)),
        ("small", 0.01),
        ("zeros", 0.0),
    ],
)
def test_the_pieces_of_maxout_start_as_linear_layers_do(initializer, std):
    """fan_in and fan_out are those of one piece, whatever the number of pieces."""
    layer = Maxout(50, 80, pieces=4, initializer=initializer)
    params = layer.parameters(seeded(0), dtype=torch.float64)
    assert params.views.weight.std().item() == pytest.approx(std, rel=0.02)
    assert params.views.weight.mean().item() == pytest.approx(0, abs=0.05 * std)
    bias = params.views.bias.abs().max().item()
    assert bias == (pytest.approx(1 / sqrt(50), rel=0.02) if initializer == "torch" else 0)
