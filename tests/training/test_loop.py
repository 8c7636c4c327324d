"""The training loop: batches, updates, validation, early stopping, and going back."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import Reports, a_run, a_trainer, assert_same, fitted
from torch import Tensor

from manualbp.training.loop import EpochReport, NotFinite, Trainer

SMALL: dict[str, Any] = {"data": "iris", "hidden": (6,), "dtype": "float64", "patience": None}
ROWS = 105  # of iris, for training


def batches_of(trainer: Trainer) -> list[tuple[Tensor, Tensor]]:
    """Return a list to which the batches will be added that the engine is given."""
    found: list[tuple[Tensor, Tensor]] = []
    step = trainer.engine.step

    def record(x: Tensor, target: Tensor) -> Tensor:
        with torch.inference_mode(False):  # copies that autograd takes
            found.append((x.clone(), target.clone()))  # the next epoch comes in the same memory
        return step(x, target)

    trainer.engine.step = record
    return found


def rows(*parts: tuple[Tensor, Tensor]) -> list[list[float]]:
    """Return the examples in an order that does not depend on theirs."""
    return sorted(
        [*features, *targets]
        for x, target in parts
        for features, targets in zip(x.tolist(), target.reshape(len(x), -1).tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "sizes"),
    [
        (32, 1, [32, 32, 32, 9]),
        (35, 1, [35, 35, 35]),
        (16, 2, [32, 32, 32, 9]),
        (1, 1, [1] * ROWS),
        (0, 1, [ROWS]),
        (0, 3, [ROWS]),
        (1000, 1, [ROWS]),
    ],
)
def test_each_epoch_has_each_example_once(
    batch_size: int, accumulate: int, sizes: list[int]
) -> None:
    trainer = a_trainer(batch_size=batch_size, accumulate=accumulate, max_epochs=2, **SMALL)
    found = batches_of(trainer)
    trainer.fit(Reports())
    assert [len(x) for x, _ in found] == 2 * sizes
    assert trainer.progress.steps == 2 * len(sizes)
    everything = rows((trainer.train.x, trainer.train.t))
    first, second = found[: len(sizes)], found[len(sizes) :]
    assert rows(*first) == rows(*second) == everything


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, skipped: int) -> list[Tensor]:
        trainer = a_trainer(batch_size=0, **SMALL)
        trainer.seed = seed
        trainer.progress.epoch = skipped
        found = batches_of(trainer)
        for _ in range(2):
            trainer.run_epoch(Reports())
        return [x for x, _ in found]

    first, second = order(seed=0, skipped=0)
    assert not torch.equal(first, second)
    assert torch.equal(second, order(seed=0, skipped=1)[0])
    other = order(seed=1, skipped=0)[0]
    assert not torch.equal(first, other)
    assert not torch.equal(second, other)  # seed and epoch are not just added


@pytest.mark.parametrize("engine", ["manual", "autograd"])
@pytest.mark.parametrize(
    "settings",
    [
        {"k": 4, "batch_size": 8},  # 105 rows: the last batch has 8 + 1
        {"k": 3, "batch_size": 10},
        {"k": 5, "batch_size": 1},
        {"k": 2, "batch_size": 16, "reduction": "sum", "lr": 0.001},
        {"k": 4, "batch_size": 8, "optimizer": "adam"},
        {"k": 4, "batch_size": 8, "loss": "mse"},
        {"k": 4, "batch_size": 8, "l2": 0.1, "clip_norm": 0.3},
        {"k": 4, "batch_size": 8, "data": "diabetes"},
    ],
    ids=str,
)
def test_accumulating_k_batches_is_one_batch_k_times_as_large(
    settings: dict[str, Any], engine: str
) -> None:
    rest = {**SMALL, "engine": engine, "max_epochs": 3, **settings}
    k, size = rest.pop("k"), rest.pop("batch_size")
    assert a_run(batch_size=size, accumulate=k, **rest).step.micro_batch == size
    parts, ours = fitted(batch_size=size, accumulate=k, **rest)
    whole, expected = fitted(batch_size=k * size, **rest)
    for a, b in zip(ours, expected, strict=True):
        assert a.train["loss"] == pytest.approx(b.train["loss"], rel=1e-12)
        assert a.val["loss"] == pytest.approx(b.val["loss"], rel=1e-12)
    for name, weight in whole.engine.weights().items():
        torch.testing.assert_close(parts.engine.weights()[name], weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch_size", [0, 1, 32])
@pytest.mark.parametrize("data", ["iris", "diabetes"])
def test_the_training_loss_is_that_before_each_update(data: str, batch_size: int) -> None:
    trainer = a_trainer(**{**SMALL, "data": data, "batch_size": batch_size})
    trainer.learning_rate = 0.0  # so that the network stays as it is
    goal, train, val = trainer.objective, trainer.train, trainer.val
    report = trainer.run_epoch(Reports())
    assert report.train == pytest.approx(goal.metrics(trainer.engine.predict(train.x), train.t))
    assert report.val == pytest.approx(goal.metrics(trainer.engine.predict(val.x), val.t))


def test_the_loss_of_the_full_batch_is_that_of_the_start() -> None:
    trainer = a_trainer(batch_size=0, **SMALL)
    goal, train, val = trainer.objective, trainer.train, trainer.val
    start = goal.metrics(trainer.engine.predict(train.x), train.t)
    report = trainer.run_epoch(Reports())
    assert report.train == pytest.approx(start)
    assert report.val == goal.metrics(trainer.engine.predict(val.x), val.t)


@pytest.mark.parametrize("engine", ["manual", "autograd"])
def test_each_update_has_the_learning_rate_of_its_moment(engine: str) -> None:
    trainer = a_trainer(**SMALL, engine=engine, schedule="cosine", max_epochs=7, lr=0.1)
    planned: list[float] = []
    plan = trainer.engine.plan

    def record(rates: list[float]) -> None:
        planned.extend(rates)
        plan(rates)

    trainer.engine.plan = record
    reports = Reports()
    trainer.fit(reports)
    # Up in 5 epochs of 4 updates, then half a wave of a cosine down to 0 in 2 epochs.
    up = [0.1 * update / 20 for update in range(20)]
    down = [0.05 * (1 + math.cos(math.pi * update / 8)) for update in range(8)]
    assert planned == pytest.approx([*up, *down])
    assert [report.learning_rate for report in reports.epochs] == planned[3::4]


def test_the_rest_of_an_epoch_has_the_learning_rates_of_its_updates() -> None:
    trainer = a_trainer(**SMALL, schedule="cosine", max_epochs=7)
    planned: list[float] = []
    trainer.engine.plan = planned.extend
    trainer.progress.position = 1
    _, rates = trainer.plan_epoch()
    assert len(set(rates)) == 4
    assert planned == rates[1:]


@pytest.mark.parametrize("engine", ["manual", "autograd", "lockstep"])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "look-ahead", "adam"])
def test_details_are_those_of_the_last_update(engine: str, optimizer: str) -> None:
    trainer = a_trainer(**{**SMALL, "batch_size": 70}, engine=engine, optimizer=optimizer)
    befores: list[Mapping[str, Tensor]] = []
    found = batches_of(trainer)
    step = trainer.engine.step

    def record(x: Tensor, target: Tensor) -> Tensor:
        befores.append(trainer.engine.copy_weights())
        return step(x, target)

    trainer.engine.step = record
    for _ in range(2):  # so that there is a momentum
        report = trainer.run_epoch(Reports(details=True))
    before, after = befores[-1], trainer.engine.weights()
    update = report.last_update
    assert update
    assert update.gradient_norms.keys() == update.update_ratios.keys() == after.keys()
    for name, ratio in update.update_ratios.items():
        moved = (after[name] - before[name]).norm() / before[name].norm()
        assert ratio == pytest.approx(float(moved))
    if optimizer != "look-ahead":  # its gradient is that of another place
        other = a_trainer(**{**SMALL, "batch_size": 0}, engine="autograd", momentum=0.0)
        other.engine.load_weights(before)
        other.engine.plan([0.0])
        other.engine.step(*found[-1])
        for name, gradient in other.engine.gradients().items():
            assert update.gradient_norms[name] == pytest.approx(float(gradient.norm()), rel=1e-9)


def test_no_details_unless_asked_for() -> None:
    report = a_trainer(**SMALL).run_epoch(Reports())
    assert report.last_update is None


class Diary(Reports):
    """Also keeps what it hears in which order, and the weights after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, int, int]] = []
        self.weights: list[dict[str, Tensor]] = []

    def after_update(self, trainer: Trainer) -> None:
        progress = trainer.progress
        self.entries.append(("update", progress.epoch, progress.position))

    def after_epoch(self, trainer: Trainer, report: EpochReport) -> None:
        super().after_epoch(trainer, report)
        self.entries.append(("epoch", trainer.progress.epoch, trainer.progress.position))
        self.weights.append(trainer.engine.copy_weights())


def test_an_observer_hears_of_every_update_but_of_the_last_by_its_epoch() -> None:
    trainer, diary = a_trainer(batch_size=35, max_epochs=2, **SMALL), Diary()
    trainer.fit(diary)
    assert diary.entries == [
        *(("update", 0, 1), ("update", 0, 2), ("epoch", 1, 0)),
        *(("update", 1, 1), ("update", 1, 2), ("epoch", 2, 0)),
    ]
    assert [report.epoch for report in diary.epochs] == [1, 2]


@pytest.mark.parametrize(
    ("monitor", "better"), [("val_loss", min), ("train_loss", min), ("val_accuracy", max)]
)
def test_the_best_weights_are_those_of_the_best_epoch(monitor: str, better: Any) -> None:
    # This learning rate makes the loss jump up and down.
    trainer = a_trainer(monitor=monitor, lr=0.5, max_epochs=30, **SMALL)
    diary = Diary()
    assert trainer.fit(diary) == "max epochs"
    split, what = monitor.split("_")
    values = [getattr(report, split)[what] for report in diary.epochs]
    best = values.index(better(values))
    assert 0 < best < len(values) - 1
    assert trainer.stopper.best_epoch == best + 1
    assert_same(trainer.best, diary.weights[best])
    assert not torch.equal(trainer.best["0.weight"], trainer.engine.weights()["0.weight"])


def test_it_stops_when_patience_is_exhausted() -> None:
    trainer = a_trainer(**{**SMALL, "patience": 3}, lr=0.5, max_epochs=100)
    reports = Reports()
    assert trainer.fit(reports) == "patience exhausted"
    best = trainer.stopper.best_epoch
    assert best is not None
    assert len(reports.epochs) == best + 3 < 100


def test_min_delta_counts_small_improvements_as_none() -> None:
    trainer = a_trainer(**{**SMALL, "patience": 2}, min_delta=10.0, max_epochs=100)
    assert trainer.fit(Reports()) == "patience exhausted"
    assert (trainer.progress.epoch, trainer.stopper.best_epoch) == (3, 1)


def numbers(report: EpochReport) -> tuple[Any, ...]:
    """Return all numbers of a report."""
    update = report.last_update
    assert update
    return replace(report, last_update=None), update.gradient_norms, update.update_ratios


@pytest.mark.parametrize("engine", ["manual", "autograd", "lockstep"])
def test_it_goes_on_from_a_snapshot_in_the_middle_of_an_epoch(engine: str) -> None:
    # With this seed and rate the second epoch is the best.
    unsteady = {"seed": 9, "lr": 0.5, "optimizer": "adam", "dropout": 0.2, "max_epochs": 4}
    settings = {**SMALL, **unsteady, "engine": engine}
    saved: list[io.BytesIO] = []

    class Saver(Reports):
        def after_update(self, trainer: Trainer) -> None:
            saved.append(io.BytesIO())
            torch.save(trainer.snapshot(), saved[-1])

    whole, reports = a_trainer(**settings), Saver(details=True)
    whole.fit(reports)
    for moment in (0, 4, 10):  # 3 snapshots an epoch, before its last update
        saved[moment].seek(0)
        resumed, rest = a_trainer(**settings), Reports(details=True)
        resumed.restore(torch.load(saved[moment], weights_only=True))
        assert resumed.progress.position == moment % 3 + 1
        resumed.fit(rest)
        assert [*map(numbers, rest.epochs)] == [*map(numbers, reports.epochs[moment // 3 :])]
        expected = {**whole.snapshot(), "seconds": resumed.progress.seconds}
        assert_same(resumed.snapshot(), expected)
        assert_same(resumed.best, whole.best)


def test_a_snapshot_is_not_changed_by_what_follows() -> None:
    taken: list[tuple[dict[str, Any], io.BytesIO]] = []

    class Saver(Reports):
        def after_update(self, trainer: Trainer) -> None:
            taken.append((trainer.snapshot(), io.BytesIO()))
            torch.save(*taken[-1])

        def after_epoch(self, trainer: Trainer, report: EpochReport) -> None:
            self.after_update(trainer)

    trainer = a_trainer(optimizer="adam", **SMALL)
    for _ in range(2):
        trainer.run_epoch(Saver())
    for snapshot, _ in list(taken):
        trainer.restore(snapshot)
        trainer.run_epoch(Reports())
    for snapshot, buffer in taken:
        buffer.seek(0)
        assert_same(snapshot, torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("engine", ["manual", "autograd"])
def test_a_training_loss_of_nan_leads_back_to_where_its_epoch_began(engine: str) -> None:
    trainer = a_trainer(engine=engine, **{**SMALL, "dtype": "float32"}, max_epochs=9)
    trainer.run_epoch(Reports())
    before, best = trainer.snapshot(), trainer.best
    trainer.learning_rate = 1e30
    with pytest.raises(NotFinite, match=r"^the training loss of epoch 2$"):
        trainer.fit(Reports())
    assert_same(trainer.snapshot(), before)
    assert_same(trainer.best, best)
    trainer.learning_rate = 0.05
    report = trainer.run_epoch(Reports())
    assert report.epoch == 2
    assert math.isfinite(report.train["loss"])


def test_a_validation_loss_of_nan_leads_back_too() -> None:
    trainer = a_trainer(**SMALL, monitor="train_loss", max_epochs=9)
    trainer.run_epoch(Reports())
    before = trainer.snapshot()
    trainer.val.x[0, 0] = torch.nan
    with pytest.raises(NotFinite, match=r"^the validation loss of epoch 2$"):
        trainer.fit(Reports())
    assert_same(trainer.snapshot(), before)


def test_seconds_add_up_over_the_parts_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("manualbp.training.loop.perf_counter", lambda: clock[0])
    seen: list[dict[str, Any]] = []

    class Saver(Reports):
        def after_update(self, trainer: Trainer) -> None:
            seen.append(trainer.snapshot())

    def ticking() -> Trainer:
        trainer = a_trainer(**SMALL, max_epochs=2)
        step = trainer.engine.step

        def tick(x: Tensor, target: Tensor) -> Tensor:
            clock[0] += 1.0  # a second for each of 4 updates an epoch
            return step(x, target)

        trainer.engine.step = tick
        return trainer

    whole = ticking()
    whole.fit(Saver())
    assert [snapshot["seconds"] for snapshot in seen] == [1, 2, 3, 5, 6, 7]
    assert whole.progress.seconds == 8
    clock[0] += 1000  # between the two parts of a run
    resumed = ticking()
    resumed.restore(seen[4])
    resumed.fit(Reports())
    assert resumed.progress.seconds == 8
