"""When training stops: epochs, the minimum of the validation error, saturation, a goal: R36."""

import math
from itertools import pairwise

import pytest
import torch
from small_runs import Reports, fitted
from torch.testing import assert_close

from manualbp.explain.examples import linear_neuron
from manualbp.explain.networks import float64
from manualbp.explain.topics.stopping import closed_form, early_curves, early_descent, stop
from manualbp.lectures import setting
from manualbp.losses import MSELoss
from manualbp.optimizers import SGD
from manualbp.schedules import Constant
from manualbp.training.data import Split
from manualbp.training.early_stopping import EarlyStopping
from manualbp.training.engine import ManualEngine
from manualbp.training.loop import Trainer
from manualbp.training.objective import Objective
from manualbp.training.step import TrainingStep


@pytest.fixture(scope="module")
def curves():
    return early_curves(3000)


@pytest.mark.figures("Z.early.curve")
def test_both_errors(lecture, curves):
    for t, train, val in lecture["Z.early.curve"].value:
        assert curves.train[int(t)] == pytest.approx(train, rel=1e-12, abs=0), t
        assert curves.val[int(t)] == pytest.approx(val, rel=1e-12, abs=0), t


def test_the_weights_follow_the_closed_form(curves):
    for t, weights in enumerate(curves.weights):
        w1, w2, val = closed_form(t)
        assert weights == pytest.approx([w1, w2], rel=1e-11, abs=1e-15)
        assert curves.val[t] == pytest.approx(val, rel=1e-10)


@pytest.mark.figures("Z.early.min")
def test_the_minimum_of_the_validation_error(lecture, curves):
    t = curves.val.index(min(curves.val))
    expected = lecture["Z.early.min"].value
    assert [t, curves.val[t], curves.train[t]] == pytest.approx(expected, rel=1e-12, abs=0)
    assert all(later < earlier for earlier, later in pairwise(curves.train))
    assert curves.val[-1] > 400 * curves.val[t]


@pytest.mark.figures("Z.early.patience")
def test_patience(lecture):
    values = setting("PATIENCE")["E_val"]
    ends = [stop(EarlyStopping(patience=p), values) for p in (1, 2, 3, 4)]
    lecture.expect("Z.early.patience", [[end.at, end.kept] for end in ends], 0)
    assert [end.reason for end in ends] == ["patience exhausted"] * 3 + ["max epochs"]


@pytest.mark.figures("D.early.saturation")
def test_saturation_of_the_validation_error(lecture, curves):
    end = stop(EarlyStopping(patience=1, min_delta=1e-4), curves.val)
    lecture.expect("D.early.saturation", end.at, 0)
    changes = [abs(later - earlier) for earlier, later in pairwise(curves.val)]
    assert next(t for t, change in enumerate(changes, 1) if change < 1e-4) == end.at


def test_saturation_of_the_training_error(curves):
    end = stop(EarlyStopping(monitor="train_loss", patience=1, min_delta=1e-4), curves.train)
    assert curves.train[end.at - 1] - curves.train[end.at] < 1e-4
    assert curves.train[end.at - 2] - curves.train[end.at - 1] > 1e-4


def test_a_goal_is_reached(curves):
    end = stop(EarlyStopping(patience=None, stopping_threshold=0.01), curves.val)
    assert curves.val[end.at] <= 0.01 < curves.val[end.at - 1]
    assert (end.kept, end.reason) == (end.at, "threshold reached")
    accuracy = EarlyStopping(monitor="val_accuracy", patience=None, stopping_threshold=0.95)
    assert stop(accuracy, [0.5, 0.9, 0.94, 0.95, 0.97]).at == 3


def test_a_run_that_diverges_or_is_no_number_ends():
    diverged = EarlyStopping(patience=None, divergence_threshold=10.0)
    assert stop(diverged, [1.0, 3.0, 9.0, 27.0]).reason == "diverged"
    end = stop(EarlyStopping(patience=None), [1.0, 0.5, math.nan, 0.1])
    assert (end.at, end.kept, end.reason) == (2, 1, "non-finite")


def an_early_trainer(stopper, max_epochs):
    """Return the training loop on the lecture's two examples, validated on the other two.

    With two examples the mean squared error and its gradient are those of ½ Σ e².
    """
    example = setting("EARLY")

    def split(part):
        return Split(float64(example[f"X{part}"]), float64(example[f"d{part}"]).unsqueeze(1))

    net = linear_neuron(example["w0"])
    step = TrainingStep(net.model, MSELoss(), SGD(example["eta"]))
    return Trainer(
        engine=ManualEngine(step, net.params, torch.Generator()),
        objective=Objective(MSELoss(), "regression", 1),
        schedule=Constant(),
        learning_rate=example["eta"],
        train=split("train"),
        val=split("val"),
        batch_size=0,
        max_epochs=max_epochs,
        stopper=stopper,
        seed=0,
    )


def test_the_training_loop_stops_after_the_minimum_and_keeps_its_weights():
    trainer, reports = an_early_trainer(EarlyStopping(patience=5), 1000), Reports()
    assert trainer.fit(reports) == "patience exhausted"
    assert len(reports.epochs) == 21 + 5
    assert trainer.stopper.best_epoch == 21
    w1, w2, val = closed_form(21)
    assert trainer.stopper.best == pytest.approx(val, rel=1e-12)
    assert_close(trainer.best["0.weight"], float64([[w1, w2]]), rtol=1e-12, atol=0)
    assert not torch.equal(trainer.best["0.weight"], trainer.engine.weights()["0.weight"])


def test_the_training_loop_stops_at_saturation():
    trainer = an_early_trainer(EarlyStopping(patience=1, min_delta=1e-4), 1000)
    assert trainer.fit(Reports()) == "patience exhausted"
    assert trainer.progress.epoch == 19


def test_the_training_loop_stops_at_a_goal():
    trainer = an_early_trainer(EarlyStopping(patience=None, stopping_threshold=0.01), 1000)
    assert trainer.fit(Reports()) == "threshold reached"
    assert trainer.progress.epoch == 11


@pytest.mark.parametrize("epochs", [1, 7, 50])
def test_the_number_of_epochs_is_exact(epochs):
    trainer = an_early_trainer(EarlyStopping(patience=None), epochs)
    assert trainer.fit(Reports()) == "max epochs"
    descent = early_descent()
    descent.run(epochs)
    assert (trainer.progress.epoch, descent.updates) == (epochs, epochs)
    w1, w2, _ = closed_form(epochs)
    for weights in (trainer.engine.weights(), descent.params.named()):
        assert_close(weights["0.weight"], float64([[w1, w2]]), rtol=1e-12, atol=1e-15)


def test_validation_accuracy_as_a_condition():
    """As on the command line: --monitor val_accuracy --patience 3."""
    trainer, epochs = fitted(data="iris", hidden=(8,), monitor="val_accuracy", patience=3)
    scores = [epoch.val["accuracy"] for epoch in epochs]
    best = scores.index(max(scores))
    assert trainer.stopper.reason == "patience exhausted"
    assert (trainer.stopper.best_epoch, len(scores)) == (best + 1, best + 1 + 3)
