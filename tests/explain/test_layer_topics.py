"""One topic for each layer and loss, which notices a mistake in either pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from manualbp.checks.registry import layers, losses
from manualbp.explain.layer_walk import docstring_paragraphs, topic_name
from manualbp.explain.page import Code, Line, Page
from manualbp.explain.registry import topics
from manualbp.explain.topics.layers import write_layer
from manualbp.layers import (
    Dropout,
    LeakyReLU,
    Linear,
    Maxout,
    ReLU,
    Residual,
    Sequential,
    Softmax,
    Step,
    Tanh,
)
from manualbp.losses import BCEWithLogitsLoss, CrossEntropyLoss, HalfSquaredError, MSELoss

ALL = [*layers(), *losses()]


def test_every_layer_and_loss_has_a_topic() -> None:
    missing = {cls.__name__ for cls in ALL if topic_name(cls) not in topics()}
    assert not missing, f"no topic explains: {', '.join(sorted(missing))}"


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Linear, "linear"),
        (ReLU, "relu"),
        (LeakyReLU, "leaky-relu"),
        (CrossEntropyLoss, "cross-entropy"),
        (BCEWithLogitsLoss, "bce-with-logits"),
        (MSELoss, "mse"),
        (HalfSquaredError, "half-squared-error"),
    ],
)
def test_a_topic_is_called_as_one_would_type_it(cls: type[Any], name: str) -> None:
    assert topic_name(cls) == name
    assert topics()[name].title.startswith(f"{cls.__name__}: ")


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_a_page_shows_the_equation_the_code_and_every_gradient(cls: type[Any]) -> None:
    page = topics()[topic_name(cls)].page(seed=1)
    assert page.wrong == []
    code = "\n".join(item.text for item in page.items if isinstance(item, Code))
    for equation in docstring_paragraphs(cls)[0][0].split(";  "):
        assert f"{equation}\n" in code
    assert "def forward(" in code
    assert "def backward(" in code
    checks = [item.because for item in page.items if isinstance(item, Line)]
    assert "central differences" in checks
    if cls not in (Residual, Sequential):
        assert "plain Python" in checks
        assert "the autograd twin" not in checks


@pytest.mark.parametrize("cls", [Linear, Maxout])
def test_the_gradients_of_the_parameters_are_checked(cls: type[Any]) -> None:
    page = topics()[topic_name(cls)].page()
    lines = [i for i in page.items if isinstance(i, Line) and i.because == "central differences"]
    assert [line.name for line in lines] == ["dx", "dW", "db"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cls", [ReLU, LeakyReLU, Maxout, Step, Dropout])
def test_no_seed_meets_a_kink(cls: type[Any], seed: int) -> None:
    assert topics()[topic_name(cls)].page(seed).wrong == []


def test_two_decimals_that_meet_a_kink_are_drawn_again() -> None:
    """Among a few hundred seeds one draws an x that is 0 with two decimals."""
    for seed in range(300):
        x = torch.randn((2, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if (x.round(decimals=2) == 0).any():
            break
    else:
        pytest.fail("no such seed")
    page = topics()["relu"].page(seed)
    given = next(item for item in page.items if getattr(item, "name", "") == "x")
    assert 0.0 not in [value for row in given.value for value in row]
    assert page.wrong == []


def names_of_wrong(page: Page) -> set[str]:
    return {item.name for item in page.wrong if isinstance(item, Line)}


def test_a_wrong_backward_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_slope(self: Tanh, params: Any, saved: Any, dy: Tensor, grads: Any) -> Tensor:
        return dy

    monkeypatch.setattr(Tanh, "backward", without_slope)
    assert {"dx", "dx[0,0]"} <= names_of_wrong(topics()["tanh"].page())


def test_a_wrong_forward_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Softmax.forward

    def doubled(self: Softmax, params: Any, x: Tensor, **mode: Any) -> tuple[Tensor, Any]:
        y, saved = forward(self, params, x, **mode)
        return 2 * y, saved

    monkeypatch.setattr(Softmax, "forward", doubled)
    page = Page()
    write_layer(page, Softmax)
    assert {"y", "y[0,1]"} <= names_of_wrong(page)


def test_a_wrong_gradient_of_a_parameter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Linear, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        grads.weight.add_(dy.T @ saved.x)

    monkeypatch.setattr(Linear, "backward_parameters", forgetful)
    assert names_of_wrong(topics()["linear"].page()) == {"db", "db[1]"}


def test_a_wrong_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = CrossEntropyLoss.backward

    def upside_down(self: CrossEntropyLoss, saved: Any, dE: Any = 1.0) -> Tensor:
        return -backward(self, saved, dE)

    monkeypatch.setattr(CrossEntropyLoss, "backward", upside_down)
    assert {"dx", "dx[0,0]", "δ"} <= names_of_wrong(topics()["cross-entropy"].page())


class Example:
    """y = x
    dx = dy

    A first sentence that goes on and on until it has come to the very end of its line, and that so
    is wrapped.
    Source: none.
    """


def test_wrapped_lines_of_a_docstring_are_joined_and_others_kept() -> None:
    first, second = docstring_paragraphs(Example)
    assert first == ["y = x", "dx = dy"]
    assert second[0].endswith(", and that so is wrapped.")
    assert second[1:] == ["Source: none."]
