"""The named models: their layers, and every promise of a layer for each with a loss behind it."""

from typing import get_args

import pytest
import torch

from manualbp.checks import contract
from manualbp.layers import Dropout, LeakyReLU, Linear, Maxout, ReLU, Residual, Sequential, Tanh
from manualbp.losses import BCEWithLogitsLoss, CrossEntropyLoss, HalfSquaredError, MSELoss
from manualbp.models import ACTIVATIONS, ActivationName, ModelName, build
from reference.cases import Case

SEED = 0
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2])
NUMBERS = torch.linspace(-1, 2, 21, dtype=torch.float64).view(7, 3)
BINARY = (CLASSES == 1).double().unsqueeze(1)

MODELS = [
    ("mlp", CrossEntropyLoss(), CLASSES, {}),
    ("mlp", CrossEntropyLoss(label_smoothing=0.1), CLASSES, {"dropout": 0.3, "activation": "gelu"}),
    ("mlp", MSELoss(), NUMBERS, {"activation": "tanh-half"}),
    ("logistic", CrossEntropyLoss(), CLASSES, {}),
    ("logistic", BCEWithLogitsLoss(), BINARY, {}),
    ("logistic", HalfSquaredError(), NUMBERS, {}),
    ("maxout", CrossEntropyLoss(reduction="sum"), CLASSES, {}),
    ("residual", CrossEntropyLoss(), CLASSES, {"activation": "silu"}),
]


def case(name, loss, target, settings):
    model = build(name, 5, 1 if target is BINARY else 3, hidden=(6, 4), **settings)
    return Case(f"{name}, {type(loss).__name__}", contract.WithLoss(model, loss, target), (7, 5))


CASES = pytest.mark.parametrize("case", [case(*row) for row in MODELS], ids=lambda c: c.name)


@DTYPES
@CASES
def test_model(case, dtype, device):
    lines = contract.check_case(case, dtype, device, SEED)
    assert not lines, "\n".join(lines)


@CASES
def test_model_stays_on_the_gpu(case):
    lines = contract.fake_cuda(case, torch.float32)
    assert not lines, "\n".join(lines)


def test_every_model_is_tested():
    assert {name for name, *_ in MODELS} == set(get_args(ModelName))


def test_logistic_is_one_linear_layer():
    assert build("logistic", 5, 3, hidden=(8, 8)) == Sequential(Linear(5, 3))


def test_mlp_is_linear_layers_with_activations_between():
    expected = Sequential(Linear(5, 8), Tanh(), Linear(8, 4), Tanh(), Linear(4, 3))
    assert build("mlp", 5, 3, hidden=(8, 4), activation="tanh") == expected


def test_maxout_has_no_other_activation():
    assert build("maxout", 5, 3, hidden=(8, 4)) == Sequential(
        Maxout(5, 8), Maxout(8, 4), Linear(4, 3)
    )


def test_residual_has_one_block_for_each_width():
    def block(inner):
        return Residual(Sequential(Linear(8, inner), ReLU(), Linear(inner, 8)))

    expected = Sequential(Linear(5, 8), block(8), block(4), Linear(8, 3))
    assert build("residual", 5, 3, hidden=(8, 4)) == expected


@pytest.mark.parametrize("name", ["mlp", "maxout", "residual"])
def test_dropout_follows_every_hidden_layer(name):
    layers = build(name, 5, 3, hidden=(8, 4), dropout=0.2).layers
    assert layers.count(Dropout(0.2)) == 2
    assert isinstance(layers[-1], Linear)


@pytest.mark.parametrize("name", get_args(ModelName))
def test_without_hidden_layers_every_model_is_linear(name):
    assert build(name, 5, 3, hidden=()) == Sequential(Linear(5, 3))


def test_the_initializer_reaches_every_weight():
    for name in get_args(ModelName):
        params = build(name, 5, 3, hidden=(8, 4), initializer="zeros").parameters()
        assert (params.flat == 0).all()


def test_every_activation_has_its_name():
    assert set(ACTIVATIONS) == set(get_args(ActivationName))
    assert build("mlp", 5, 3, hidden=(8,), activation="leaky-relu").layers[1] == LeakyReLU(0.1)
