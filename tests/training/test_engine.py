"""The engine of hand-written updates: where gradients are added up, copies of weights, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from manualbp.layers import Linear, Sequential, Tanh
from manualbp.losses import CrossEntropyLoss
from manualbp.optimizers import SGD, AdamW, LookAheadNesterov, Optimizer
from manualbp.parameters import Parameters
from manualbp.recording import Captured
from manualbp.training.engine import WORTH_SHARING, ManualEngine, flush_denormals, threads_for
from manualbp.training.step import TrainingStep

MODEL = Sequential(Linear(4, 5), Tanh(), Linear(5, 3))


def engine(**settings: Any) -> ManualEngine:
    """Return an engine after three updates."""
    separate = settings.pop("separate_gradients", False)
    rule = settings.pop("rule", SGD(0.5, 0.9))
    step = TrainingStep(MODEL, CrossEntropyLoss(), rule, **settings)
    params = MODEL.parameters(torch.Generator().manual_seed(0), dtype=torch.float64)
    trained = ManualEngine(step, params, torch.Generator(), separate_gradients=separate)
    trained.plan([0.5] * 3)
    data = torch.Generator().manual_seed(1)
    for _ in range(3):
        trained.watch()
        x = torch.randn(8, 4, dtype=torch.float64, generator=data)
        trained.step(x, torch.randint(0, 3, (8,), generator=data))
    return trained


@pytest.mark.parametrize(
    "settings", [{}, {"clip_norm": 0.01}, {"clip_value": 0.001}, {"frozen": ("0.weight",)}], ids=str
)
def test_gradients_are_added_to_the_momentum_only_where_nothing_else_is_done_to_them(
    settings: dict[str, Any],
) -> None:
    ours, separate = engine(**settings), engine(separate_gradients=True, **settings)
    shared = ours.grads.flat is ours.state["momentum_buffer"]
    assert shared == (not settings)
    assert separate.grads.flat is not separate.state["momentum_buffer"]
    for name, weight in separate.weights().items():
        torch.testing.assert_close(ours.weights()[name], weight)


@pytest.mark.parametrize(
    "rule",
    [SGD(0.5, 0.9, weight_decay=0.1), LookAheadNesterov(0.5, 0.9, 0.1), AdamW(weight_decay=0.1)],
    ids=repr,
)
def test_frozen_parameters_stay_as_they_are(rule: Optimizer) -> None:
    start = MODEL.parameters(torch.Generator().manual_seed(0), dtype=torch.float64)
    trained = engine(rule=rule, frozen=("0.weight",))
    for name, weight in trained.weights().items():
        assert torch.equal(weight, start.named()[name]) == (name == "0.weight")


@pytest.mark.parametrize("separate", [False, True])
def test_copies_of_weights_and_gradients_stay_as_they_are(separate: bool) -> None:
    trained = engine(separate_gradients=separate)
    for copy in (trained.copy_weights, trained.gradients):
        copies = copy()
        expected = {name: tensor.clone() for name, tensor in copy().items()}
        assert expected["0.weight"].any()
        for flat in (trained.params.flat, trained.grads.flat):
            flat.add_(7.0)
        assert list(copies) == list(expected) == list(trained.weights())
        assert len(copies) == len(expected)
        for name, tensor in expected.items():
            assert torch.equal(copies[name], tensor)


def test_a_batch_that_is_refused_is_refused_again() -> None:
    trained = engine()
    trained.plan([0.5] * 3)
    before = trained.copy_weights()
    for _ in range(2):
        with pytest.raises(ValueError, match="x has 1 features, expected 4"):
            trained.step(torch.ones(8, 1, dtype=torch.float64), torch.zeros(8, dtype=torch.int64))
    for name, weight in trained.weights().items():
        assert torch.equal(weight, before[name])
    trained.step(torch.ones(8, 4, dtype=torch.float64), torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("target", [torch.zeros(1, dtype=torch.int64), torch.zeros(8)], ids=str)
def test_a_target_that_is_refused_at_first_is_refused_later(target: torch.Tensor) -> None:
    """A recording would spread it over all rows, or round it to class indices."""
    trained = engine()
    trained.plan([0.5])
    with pytest.raises(ValueError, match="target has shape"):
        trained.step(torch.ones(8, 4, dtype=torch.float64), target)


def test_an_input_of_another_type_is_recorded_anew() -> None:
    """It is the step that brings it to the type of the network, in one rounding."""
    trained = engine()
    trained.plan([0.5])
    trained.step(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))
    assert isinstance(trained._update, Captured)
    assert len(trained._update.recordings) == 2


def test_memory_is_kept_by_parameter_whatever_its_place_in_the_flat_tensor() -> None:
    trained, other = engine(rule=AdamW()), engine(rule=AdamW(lr=0.1))
    memory = trained.memory()
    expected = {
        name: {
            of: state.clone(memory_format=torch.contiguous_format)
            for of, state in Parameters(MODEL.shapes(), flat).named().items()
        }
        for name, flat in trained.state.items()
    }
    assert expected["exp_avg"]["2.weight"].any()
    assert memory["state"].keys() == expected.keys()
    for name, state in expected.items():
        for of, tensor in state.items():
            assert torch.equal(memory["state"][name][of], tensor)
    other.load_memory({**memory, "state": expected})
    for name, flat in trained.state.items():
        assert torch.equal(other.state[name], flat)
    del expected["exp_avg"]["2.bias"]
    with pytest.raises(ValueError, match=r"parameter '2\.bias' is missing"):
        other.load_memory({**memory, "state": expected})


def test_numpy_knows_its_numbers_before_small_ones_count_as_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or it would warn of it, before NumPy 2.4, when the first picture is drawn."""
    done: list[Any] = []
    monkeypatch.setattr(np, "finfo", done.append)
    monkeypatch.setattr(torch, "set_flush_denormal", done.append)
    flush_denormals()
    assert done == [np.float32, np.float64, True]


def test_small_updates_have_one_thread_and_large_ones_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    rows = round(WORTH_SHARING / 6000)  # for 1000 parameters
    assert threads_for(1000, rows - 1) == 1
    assert threads_for(1000, rows + 1) == 8


def test_frozen_parameters_have_no_part_in_the_length_that_is_clipped() -> None:
    trained = engine(frozen=("0.weight",), clip_norm=0.01)
    gradients = trained.gradients()
    assert not gradients["0.weight"].any()
    total = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert float(total) == pytest.approx(0.01, rel=1e-3)
