"""Which loss a run has, in which form it takes the targets, and how good outputs are."""

from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score  # pyright: ignore[reportMissingTypeStubs]

from manualbp.errors import UsageError
from manualbp.losses import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HalfSquaredError,
    MSELoss,
)
from manualbp.training.data import Data, Split
from manualbp.training.objective import Objective, objective


def numbers(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def data_with(targets: torch.Tensor, classes: tuple[str, ...] = ()) -> Data:
    split = Split(torch.zeros(len(targets), 4, dtype=torch.float64), targets)
    task = "classification" if classes else "regression"
    return Data("flowers", task, classes, split, split, split)


TWO = data_with(torch.tensor([0, 1, 1]), ("a", "b"))
THREE = data_with(torch.tensor([0, 2, 1]), ("a", "b", "c"))
NUMBERS = data_with(numbers([1.0, 2.0], [3.0, 4.0], [5.0, 9.0]))


@pytest.mark.parametrize(
    ("data", "name", "loss", "outputs", "targets"),
    [
        (THREE, "auto", CrossEntropyLoss, 3, [0, 2, 1]),
        (THREE, "cross-entropy", CrossEntropyLoss, 3, [0, 2, 1]),
        (THREE, "mse", MSELoss, 3, [[1, 0, 0], [0, 0, 1], [0, 1, 0]]),
        (THREE, "half-squared-error", HalfSquaredError, 3, [[1, 0, 0], [0, 0, 1], [0, 1, 0]]),
        (TWO, "auto", CrossEntropyLoss, 2, [0, 1, 1]),
        (TWO, "bce", BCEWithLogitsLoss, 1, [[0], [1], [1]]),
        (NUMBERS, "auto", MSELoss, 2, [[1, 2], [3, 4], [5, 9]]),
        (NUMBERS, "mse", MSELoss, 2, [[1, 2], [3, 4], [5, 9]]),
        (NUMBERS, "half-squared-error", HalfSquaredError, 2, [[1, 2], [3, 4], [5, 9]]),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_and_its_targets(
    data: Data, name: Any, loss: type, outputs: int, targets: list[Any], reduction: Any
) -> None:
    goal = objective(data, name, reduction, 0.0)
    assert type(goal.loss) is loss
    assert goal.loss.reduction == reduction
    assert (goal.task, goal.outputs) == (data.task, outputs)
    assert goal.score_name == ("r2" if data is NUMBERS else "accuracy")
    found = goal.targets(data.train)
    assert found.t.tolist() == targets
    assert found.t.dtype == (torch.int64 if loss is CrossEntropyLoss else torch.float64)
    assert found.x is data.train.x
    if data is not NUMBERS:
        assert torch.equal(goal.labels(found.t), data.train.t)


def test_labels_are_smoothed_if_asked_for() -> None:
    loss = objective(THREE, "auto", "mean", 0.1).loss
    assert isinstance(loss, CrossEntropyLoss)
    assert loss.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("data", "name", "smoothing", "message"),
    [
        (NUMBERS, "cross-entropy", 0.0, "--loss cross-entropy needs classes, .*: use --loss mse "),
        (NUMBERS, "bce", 0.0, "--loss bce needs classes, .*: use --loss mse "),
        (THREE, "bce", 0.0, "--loss bce separates 2 classes, but flowers has 3: use --loss cross"),
        (THREE, "mse", 0.1, "--label-smoothing belongs to --loss cross-entropy, not to mse"),
        (TWO, "bce", 0.1, "--label-smoothing belongs to --loss cross-entropy, not to bce"),
        (NUMBERS, "mse", 0.1, "--label-smoothing belongs to --loss cross-entropy, not to mse"),
        (NUMBERS, "auto", 0.1, "--label-smoothing belongs to --loss cross-entropy, not to mse"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(
    data: Data, name: Any, smoothing: float, message: str
) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        objective(data, name, "mean", smoothing)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_reported_is_the_mean_whatever_is_trained_for(reduction: Any) -> None:
    goal = objective(THREE, "mse", reduction, 0.0)
    y = numbers([1, 0, 0], [0, 0, 3], [0, 0, 0])
    # squares: 0 0 0, 0 0 4, 0 1 0
    assert goal.metrics(y, goal.targets(THREE.train).t)["loss"] == pytest.approx(5 / 9)


def test_accuracy_of_the_largest_output() -> None:
    y = numbers([3, 2, 1], [0, 9, 8], [-3, -1, -2])  # classes 0, 1, 1 of 0, 2, 1
    for name in ("cross-entropy", "mse", "half-squared-error"):
        goal = objective(THREE, name, "mean", 0.0)
        assert goal.classes(y).tolist() == [0, 1, 1]
        found = goal.metrics(y, goal.targets(THREE.train).t)
        assert found.keys() == {"loss", "accuracy"}
        assert found["accuracy"] == pytest.approx(2 / 3)


def test_accuracy_of_one_logit_is_decided_at_zero() -> None:
    goal = objective(TWO, "bce", "mean", 0.0)
    y = numbers([-0.1], [0.2], [-0.3])
    assert goal.classes(y).tolist() == [0, 1, 0]
    assert goal.metrics(y, goal.targets(TWO.train).t)["accuracy"] == pytest.approx(2 / 3)


def test_r2_is_that_of_scikit_learn(device: str) -> None:
    goal = Objective(MSELoss(), "regression", 3)
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(9, 3, generator=generator) * torch.tensor([1.0, 2.0, 30.0])
    y = t + torch.randn(9, 3, generator=generator)
    found = goal.metrics(y.to(device), t.to(device))
    assert found.keys() == {"loss", "r2"}
    assert found["r2"] == pytest.approx(r2_score(t.numpy(), y.numpy()), rel=1e-6)
    assert found["loss"] == pytest.approx(float(((t - y) ** 2).mean()), rel=1e-6)
    assert goal.metrics(t, t)["r2"] == 1.0


def test_r2_of_targets_that_are_all_equal_is_no_number() -> None:
    found = Objective(MSELoss(), "regression", 1).metrics(numbers([1], [2]), numbers([1], [1]))
    assert found["loss"] == 0.5
    assert found["r2"] == -torch.inf
