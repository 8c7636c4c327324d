"""The pages on neurons, nets, activations, the chain rule and depth: right, drawn, and watchful."""

import pytest
from matplotlib.figure import Figure

from manualbp.explain.page import Drawing
from manualbp.explain.registry import topics
from manualbp.layers import Linear, Sigmoid

TOPICS = [
    "lms",
    "linear-nets",
    "backprop-step-by-step",
    "activations",
    "chain-rule",
    "deep-networks",
]


@pytest.mark.parametrize("name", TOPICS)
def test_page(name):
    page = topics()[name].page(seed=3)
    assert page.wrong == []
    assert page.checked > 10
    drawings = [item for item in page.items if isinstance(item, Drawing)]
    assert drawings
    for drawing in drawings:
        assert isinstance(drawing.draw(), Figure)


def half_of_the_gradient(self, params, saved, dy, grads):
    grads.weight.addmm_(dy.T, saved.x, alpha=0.5)


def slope_forgotten(self, params, saved, dy, grads):
    return dy


@pytest.mark.parametrize(
    ("layer", "method", "bug", "name"),
    [
        (Linear, "backward_parameters", half_of_the_gradient, "linear-nets"),
        (Sigmoid, "backward", slope_forgotten, "backprop-step-by-step"),
        (Sigmoid, "backward", slope_forgotten, "activations"),
        (Sigmoid, "backward", slope_forgotten, "chain-rule"),
    ],
)
def test_a_page_sees_a_bug_in_a_layer(layer, method, bug, name, monkeypatch):
    monkeypatch.setattr(layer, method, bug)
    assert topics()[name].page().wrong
