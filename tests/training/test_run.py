"""Whole runs from the command line, and everything that they leave behind."""

import io
import json
import os
import re
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import (
    Outcome,
    Reports,
    a_minute_ago,
    a_run,
    assert_same,
    call,
    contents,
    events,
    scalars,
)
from torch import Tensor

from manualbp.layers import ReLU
from manualbp.training import checkpoint
from manualbp.training.config import TrainConfig
from manualbp.training.logs import RunLogs
from manualbp.training.loop import Trainer

# TensorBoard comes without types.
multiplexer: Any = import_module("tensorboard.backend.event_processing.event_multiplexer")
hparams_metadata: Any = import_module("tensorboard.plugins.hparams.metadata")

WEIGHTS = ["0.weight", "0.bias", "2.weight", "2.bias"]


class Finished(NamedTuple):
    """A run that has ended, with the settings it had."""

    path: Path
    outcome: Outcome
    settings: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.path / "result.json").read_text())

    @property
    def last(self) -> dict[str, Any]:
        return checkpoint.load(self.path / "last.pt")

    @property
    def best(self) -> dict[str, Any]:
        return checkpoint.load(self.path / "best.pt")


def options(settings: dict[str, Any]) -> list[object]:
    """Return the settings as a command line has them."""
    words: list[object] = []
    for name, value in settings.items():
        words.append("--" + name.replace("_", "-"))
        words += [*value] if isinstance(value, tuple) else [value]
    return words


def trained(path: Path, *more: object, **settings: Any) -> Finished:
    outcome = call("train", "--run-dir", path, *options(settings), *more)
    return Finished(path, outcome, settings)


IRIS: dict[str, Any] = {
    "data": "iris",
    "device": "cpu",
    "hidden": (6,),
    "seed": 8,
    "lr": 0.5,  # so that the loss jumps up and down: epoch 4 is the best
    "max_epochs": 12,
    "patience": None,
    "checkpoint_seconds": 0.0,
}


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return trained(tmp_path_factory.mktemp("runs") / "iris", "--json", **IRIS)


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "diabetes"
    settings = {"data": "diabetes", "device": "cpu", "hidden": (6,), "dtype": "float64"}
    rule = {"optimizer": "adam", "loss": "half-squared-error", "max_epochs": 5}
    return trained(path, "--json", **settings, **rule)


@pytest.fixture(scope="module")
def lockstep(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "lockstep"
    return trained(path, "--quiet", **IRIS, engine="lockstep", dtype="float64")


def test_the_main_job(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    assert run.outcome.code == 0, run.outcome.err
    assert run.outcome.err == ""
    result = run.result
    assert result["test_accuracy"] >= 0.97
    assert result["stopped_reason"] == "patience exhausted"
    assert result["seconds"] < 30
    assert result["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    for said in (
        f"Test accuracy  {result['test_accuracy']:.4f}  ",
        f"patience exhausted after {result['epochs']} epochs",
        f"tensorboard --logdir {run.path}\n",
    ):
        assert said in run.outcome.out


# What lies in the directory ----------------------------------------------------------------------


def test_a_run_directory_holds_six_things(iris: Finished) -> None:
    names = {path.name for path in iris.path.iterdir()} - {".lock"}
    assert names == {"config.json", "result.json", "train", "val", "best.pt", "last.pt"}
    for split in ("train", "val"):
        (file,) = (iris.path / split).iterdir()
        assert file.name.startswith("events.out.tfevents.")


@pytest.mark.parametrize(("name", "score"), [("iris", "test_accuracy"), ("diabetes", "test_r2")])
def test_the_result_is_printed_as_json_and_nothing_else(
    name: str, score: str, request: pytest.FixtureRequest
) -> None:
    run: Finished = request.getfixturevalue(name)
    assert run.outcome.code == 0
    assert run.outcome.err == ""
    assert json.loads(run.outcome.out) == run.result
    assert list(run.result) == [
        "run_dir",
        "engine",
        "device",
        "dtype",
        "precision",
        "tf32",
        "epochs",
        "stopped_reason",
        "best_epoch",
        "best_val_loss",
        "test_loss",
        score,
        "seconds",
        "steps_per_second",
    ]


def test_the_result_says_what_happened(iris: Finished) -> None:
    result = iris.result
    expected = {"run_dir": str(iris.path), "engine": "manual", "dtype": "float32", "epochs": 12}
    assert result.items() >= expected.items()
    assert result["stopped_reason"] == "max epochs"
    assert result["steps_per_second"] == pytest.approx(12 * 4 / result["seconds"])


def test_the_configuration_is_that_of_the_command(iris: Finished) -> None:
    saved = json.loads((iris.path / "config.json").read_text())
    expected = TrainConfig(**IRIS).saved()
    assert saved == {**expected, "hidden": [6]}


def test_the_same_configuration_makes_the_same_run(iris: Finished, tmp_path: Path) -> None:
    again = trained(tmp_path / "again", "--quiet", "--config", iris.path / "config.json")
    assert again.outcome == (0, "", "")
    assert_same({**again.last, "seconds": 0}, {**iris.last, "seconds": 0})
    other = trained(
        tmp_path / "other", "--quiet", "--seed", 1, "--config", iris.path / "config.json"
    )
    assert json.loads((other.path / "config.json").read_text())["seed"] == 1
    assert not torch.equal(other.last["weights"]["0.weight"], iris.last["weights"]["0.weight"])


def test_names_of_directories_sort_and_tell_runs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("--max-epochs", 1, "--data", "xor", "--json")
    results = [
        json.loads(call("train", *common, *more).out)
        for more in ((), ("--engine", "autograd"), ("--seed", 7, "--model", "maxout"))
    ]
    names = [Path(result["run_dir"]).name for result in results]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(names)
    assert sorted(name[:19] for name in names) == [name[:19] for name in names]
    for name, end in zip(
        names, ("mlp_manual_seed0", "mlp_autograd_seed0", "maxout_manual_seed7"), strict=True
    ):
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d_xor_{end}", name)


def test_a_quiet_run_says_nothing(lockstep: Finished) -> None:
    assert lockstep.outcome == (0, "", "")


def test_a_file_with_data_can_be_trained_on(tmp_path: Path) -> None:
    rows = [f"{i % 7},{i % 2},{i % 3}" for i in range(60)]
    path = tmp_path / "flowers.csv"
    path.write_text("\n".join(["size,kind,price", *rows]))
    common: dict[str, Any] = {"data": path, "hidden": (4,), "max_epochs": 2}
    kind = trained(tmp_path / "a", "--json", **common, target="kind", loss="bce")
    assert "test_accuracy" in json.loads(kind.outcome.out)
    price = trained(tmp_path / "b", "--json", **common, task="regression")
    assert "test_r2" in json.loads(price.outcome.out)


# TensorBoard -------------------------------------------------------------------------------------


def test_there_are_exactly_two_runs(iris: Finished) -> None:
    found = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(iris.path)).Reload().Runs()
    assert found.keys() == {"train", "val"}


@pytest.mark.parametrize(("name", "score"), [("iris", "accuracy"), ("diabetes", "r2")])
def test_the_curves_are_those_of_the_trainer(
    name: str, score: str, request: pytest.FixtureRequest
) -> None:
    run: Finished = request.getfixturevalue(name)
    trainer, reports = a_run(**run.settings).trainer, Reports(details=True)
    trainer.fit(reports)
    epochs = len(reports.epochs)

    def series(values: list[float]) -> list[tuple[int, float]]:
        return list(enumerate(np.float32(values).tolist(), 1))

    train, val = scalars(run.path / "train"), scalars(run.path / "val")
    expected: dict[str, list[tuple[int, float]]] = {}
    for what in ("loss", score):
        expected[what] = series([report.train[what] for report in reports.epochs])
        assert val.pop(what) == series([report.val[what] for report in reports.epochs])
    rates = [report.learning_rate for report in reports.epochs]
    expected["updates/learning_rate"] = series(rates)
    logged = [1, 5, 10][: 1 + epochs // 5]
    updates = [report.last_update for report in reports.epochs if report.last_update]
    for weight in WEIGHTS:
        norms = series([update.gradient_norms[weight] for update in updates])
        expected[f"updates/gradient_norm/{weight}"] = [norms[e - 1] for e in logged]
        ratios = series([update.update_ratios[weight] for update in updates])
        expected[f"updates/update_to_weight/{weight}"] = [ratios[e - 1] for e in logged]
    assert train == expected
    # The result stands one step after the last epoch.
    names = ("best_val_loss", "test_loss", f"test_{score}")
    results = {f"result/{n}": [(epochs + 1, float(np.float32(run.result[n])))] for n in names}
    assert val == results


def test_histograms_are_of_the_first_epoch(iris: Finished) -> None:
    found = events(iris.path / "train")
    tags = {f"{kind}/{weight}" for kind in ("weights", "weights_gradient") for weight in WEIGHTS}
    assert set(found.Tags()["histograms"]) == tags
    for tag in tags:
        (event,) = found.Histograms(tag)
        assert event.step == 1
        weight = iris.last["weights"][tag.split("/")[1]]
        assert event.histogram_value.num == weight.numel()


def test_the_configuration_is_logged_as_text(iris: Finished) -> None:
    (event,) = events(iris.path / "train").Tensors("configuration/text_summary")
    table = event.tensor_proto.string_val[0].decode()
    lines = dict(re.findall(r"\| (\w+) \| `(.*)` \|", table))
    assert lines == {name: str(value) for name, value in TrainConfig(**IRIS).saved().items()}


def test_the_settings_are_logged_as_hparams(iris: Finished) -> None:
    row = events(iris.path / "val").PluginTagToContent("hparams")["_hparams_/session_start_info"]
    info = hparams_metadata.parse_session_start_info_plugin_data(row)
    found = {n: getattr(v, v.WhichOneof("kind")) for n, v in info.hparams.items()}
    assert found.keys() == TrainConfig().saved().keys()
    some = {"data": "iris", "lr": 0.5, "hidden": "6", "patience": "-", "optimizer": "sgd"}
    assert found.items() >= some.items()
    assert info.group_name == "iris"


def test_the_confusion_matrix_is_of_the_best_weights(
    iris: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (event,) = events(iris.path / "val").Images("result/confusion_matrix")
    assert event.step == iris.result["best_epoch"]
    assert Image.open(io.BytesIO(event.encoded_image_string)).size[0] >= 300

    drawn: list[tuple[int, Tensor, tuple[str, ...]]] = []
    monkeypatch.setattr(RunLogs, "confusion_matrix", lambda self, *drawing: drawn.append(drawing))
    trained(tmp_path / "run", "--quiet", **IRIS)
    ((epoch, matrix, names),) = drawn
    assert (epoch, names) == (iris.result["best_epoch"], ("setosa", "versicolor", "virginica"))
    test = a_run(**IRIS).data.test.t
    assert matrix.sum(1).tolist() == test.bincount().tolist()
    right = int(matrix.trace()) / len(test)
    assert right == pytest.approx(iris.result["test_accuracy"])
    assert not torch.equal(matrix, matrix.T)


def test_no_confusion_matrix_of_numbers(diabetes: Finished) -> None:
    assert events(diabetes.path / "val").Tags()["images"] == []


def test_lockstep_logs_the_largest_differences(lockstep: Finished) -> None:
    train = scalars(lockstep.path / "train")
    for kind in ("gradients", "parameters"):
        points = train[f"vs_autograd/{kind}"]
        assert [step for step, _ in points] == list(range(1, 13))
        assert all(0 <= value < 1e-12 for _, value in points)
        assert any(value > 0 for _, value in points)
    assert not [tag for tag in scalars(lockstep.path / "val") if tag.startswith("vs_")]


def test_lockstep_stops_at_a_wrong_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReLU, "backward", lambda self, params, saved, dy, grads: dy)
    run = trained(tmp_path / "run", **IRIS, engine="lockstep")
    assert run.outcome.code == 1
    assert run.outcome.out == ""
    assert re.fullmatch(
        r"manualbp: lockstep: at step 1 the gradients of 0\.weight differ by .+\n", run.outcome.err
    )
    assert scalars(run.path / "train")["vs_autograd/gradients"][0][1] > 1e-3
    assert not (run.path / "last.pt").exists()


# The best weights --------------------------------------------------------------------------------


def assert_result_is_of_the_best_weights(run: Finished) -> None:
    fresh = a_run(**run.settings)
    trainer, goal = fresh.trainer, fresh.trainer.objective
    trainer.engine.load_weights(run.best["weights"])
    assert run.best["epoch"] == run.result["best_epoch"]
    val = goal.metrics(trainer.engine.predict(trainer.val.x), trainer.val.t)
    assert run.result["best_val_loss"] == val["loss"]
    assert_same(run.last["best"], run.best["weights"])
    test = goal.targets(fresh.data.test)
    found = goal.metrics(trainer.engine.predict(test.x), test.t)
    assert run.result["test_loss"] == found["loss"]
    assert run.result[f"test_{goal.score_name}"] == found[goal.score_name]
    assert not torch.equal(run.best["weights"]["0.weight"], run.last["weights"]["0.weight"])


def test_the_result_is_of_the_best_weights(iris: Finished) -> None:
    losses = [value for _, value in scalars(iris.path / "val")["loss"]]
    best = losses.index(min(losses)) + 1
    assert best == iris.result["best_epoch"] < 12
    assert min(losses) == np.float32(iris.result["best_val_loss"])
    assert_result_is_of_the_best_weights(iris)


# Signals -----------------------------------------------------------------------------------------


def signalled(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, epoch: int, **settings: Any
) -> Finished:
    """Return a run that gets a signal while it logs an epoch."""
    log = RunLogs.epoch

    def log_and_signal(self: RunLogs, at: int, **values: Any) -> None:
        log(self, at, **values)
        if at == epoch:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RunLogs, "epoch", log_and_signal)
        return trained(path, **settings)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_tests_and_says_how_to_go_on(
    number: int,
    code: int,
    iris: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(number)
    settings = {**IRIS, "checkpoint_seconds": 1000.0}
    run = signalled(tmp_path / "a run", monkeypatch, number, 5, **settings)
    assert signal.getsignal(number) == before
    assert run.outcome == (
        code,
        "",
        f"manualbp: interrupted; go on with: manualbp train --resume '{run.path}'\n",
    )
    assert (run.result["stopped_reason"], run.result["epochs"]) == ("interrupted", 5)
    assert_result_is_of_the_best_weights(run)
    assert [step for step, _ in scalars(run.path / "val")["loss"]] == [1, 2, 3, 4, 5]

    a_minute_ago(run.path)
    resumed = call("train", "--quiet", "--resume", run.path)
    assert resumed == (0, "", "")
    assert_same({**run.last, "seconds": 0}, {**iris.last, "seconds": 0})
    for split in ("train", "val"):
        assert scalars(run.path / split) == scalars(iris.path / split)


def test_the_second_ctrl_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: RunLogs, epoch: int, **values: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunLogs, "epoch", twice)
    run = trained(tmp_path / "run", **IRIS)
    assert run.outcome == (130, "", "")
    assert not (run.path / "last.pt").exists()


def test_ctrl_c_before_the_first_epoch_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iris: Finished
) -> None:
    record = Trainer.record

    def record_and_signal(self: Trainer, y: Tensor) -> None:
        record(self, y)
        if self.progress.steps == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "record", record_and_signal)
        run = trained(tmp_path / "run", **IRIS)
    assert run.outcome.code == 130
    assert (run.result["epochs"], run.result["best_epoch"]) == (0, None)
    assert (run.last["epoch"], run.last["position"]) == (0, 2)
    assert not (run.path / "best.pt").exists()
    a_minute_ago(run.path)
    assert call("train", "--quiet", "--resume", run.path) == (0, "", "")
    assert_same({**run.last, "seconds": 0}, {**iris.last, "seconds": 0})
    for split in ("train", "val"):
        assert scalars(run.path / split) == scalars(iris.path / split)


# Going on with a run that has ended --------------------------------------------------------------


def test_a_run_can_be_given_more_epochs(iris: Finished, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "--quiet", **{**IRIS, "max_epochs": 7})
    a_minute_ago(run.path)
    assert call("train", "--quiet", "--resume", run.path, "--max-epochs", 12).code == 0
    assert_same({**run.last, "seconds": 0}, {**iris.last, "seconds": 0})
    assert {**run.result, **iris.result} == iris.result
    for split in ("train", "val"):
        assert scalars(run.path / split) == scalars(iris.path / split)
    assert json.loads((run.path / "config.json").read_text())["max_epochs"] == 12


def test_a_run_can_be_given_more_patience(iris: Finished, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "--quiet", **{**IRIS, "patience": 2})
    assert run.result["stopped_reason"] == "patience exhausted"
    ended = run.result["epochs"]
    assert ended == run.result["best_epoch"] + 2 < 12
    a_minute_ago(run.path)
    assert call("train", "--quiet", "--resume", run.path).code == 0  # nothing left to do
    assert run.result["epochs"] == ended
    assert run.result["stopped_reason"] == "patience exhausted"
    a_minute_ago(run.path)
    assert call("train", "--quiet", "--resume", run.path, "--patience", "None").code == 0
    assert_same({**run.last, "seconds": 0}, {**iris.last, "seconds": 0})


@pytest.mark.parametrize(
    ("option", "reason"),
    [("stopping_threshold", "threshold reached"), ("divergence_threshold", "diverged")],
)
def test_a_run_that_met_a_threshold_can_be_given_another(
    option: str, reason: str, iris: Finished, tmp_path: Path
) -> None:
    losses = [value for _, value in scalars(iris.path / "val")["loss"]]
    met, not_yet = losses[0] * 0.7, 0.0 if reason == "threshold reached" else 1e9
    low = [epoch for epoch, loss in enumerate(losses, 1) if loss < met]
    expected = low[0] if reason == "threshold reached" else 1
    run = trained(tmp_path / "run", "--quiet", **{**IRIS, option: met})
    assert (run.result["epochs"], run.result["stopped_reason"]) == (expected, reason)
    a_minute_ago(run.path)
    assert call("train", "--quiet", "--resume", run.path).code == 0  # nothing left to do
    assert (run.result["epochs"], run.result["stopped_reason"]) == (expected, reason)
    a_minute_ago(run.path)
    words = (f"--{option.replace('_', '-')}", not_yet)
    assert call("train", "--quiet", "--resume", run.path, *words).code == 0
    assert_same({**run.last, "seconds": 0}, {**iris.last, "seconds": 0})


def test_a_baseline_and_a_first_epoch_that_counts(iris: Finished, tmp_path: Path) -> None:
    some = trained(tmp_path / "a", "--quiet", **{**IRIS, "baseline": 0.0, "patience": 3})
    assert (some.result["epochs"], some.result["stopped_reason"]) == (3, "patience exhausted")
    late = {"baseline": 0.0, "patience": 3, "start_from_epoch": 6}
    later = trained(tmp_path / "b", "--quiet", **{**IRIS, **late})
    assert later.result["epochs"] == 8
    assert later.result["best_epoch"] >= 6


@pytest.mark.parametrize(
    "words",
    [
        ("--baseline", 0.5),
        ("--start-from-epoch", 2),
        ("--lr", 0.4),
        ("--hidden", 7),
        ("--seed", 1),
        ("--data", "wine"),
        ("--batch-size", 16),
        ("--engine", "autograd"),
        ("--dtype", "float64"),
        ("--min-delta", 1),
        ("--monitor", "train_loss"),
        ("--run-dir", "elsewhere"),
        ("--config", "CONFIG"),
    ],
)
def test_a_resumed_run_keeps_its_settings(
    words: tuple[str, object], iris: Finished, tmp_path: Path
) -> None:
    before = contents(iris.path)
    option, value = words
    value = iris.path / "config.json" if value == "CONFIG" else value
    code, out, err = call("train", "--resume", iris.path, option, value)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"manualbp: {option} .*\n", err)
    assert contents(iris.path) == before


def test_the_epochs_of_a_cosine_cannot_change(tmp_path: Path) -> None:
    settings = {**IRIS, "max_epochs": 2, "schedule": "cosine"}
    run = trained(tmp_path / "run", "--quiet", **settings)
    code, out, err = call("train", "--resume", run.path, "--max-epochs", 3)
    assert (code, out) == (2, "")
    assert err.startswith("manualbp: --max-epochs 3: the run to resume has 2; ")


# Numbers that are not finite ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["manual", "autograd"])
def test_a_loss_that_turns_nan_stops_the_run(engine: str, tmp_path: Path) -> None:
    settings = {**IRIS, "lr": 1e30, "engine": engine}
    run = trained(tmp_path / "run", **settings)
    message = (
        "manualbp: at step 2 the output of layer 2 (Linear) is not finite any more; "
        "a smaller --lr or --clip-norm may help\n"
    )
    assert run.outcome == (1, "", message)
    assert run.result["stopped_reason"] == "non-finite"
    assert (run.result["epochs"], run.result["best_epoch"]) == (0, None)
    assert run.result["test_loss"] is None
    assert "NaN" not in (run.path / "result.json").read_text()
    assert all(weight.isfinite().all() for weight in run.last["weights"].values())
    a_minute_ago(run.path)
    assert call("train", "--resume", run.path) == run.outcome


def spoiled_from_epoch_7_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Trainer.plan_epoch

    def plan_epoch(self: Trainer) -> Any:
        if self.progress.epoch == 6:
            self.train.x[0, 0] = torch.nan
        return plan(self)

    monkeypatch.setattr(Trainer, "plan_epoch", plan_epoch)


def spoiled_validation_of_epoch_7(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Trainer.plan_epoch

    def plan_epoch(self: Trainer) -> Any:
        if self.progress.epoch == 6:
            self.val.x[0, 0] = torch.nan
        return plan(self)

    monkeypatch.setattr(Trainer, "plan_epoch", plan_epoch)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (spoiled_from_epoch_7_on, r"at step 2[5678] the input"),
        (spoiled_validation_of_epoch_7, r"the validation loss of epoch 7"),
    ],
)
def test_what_was_reached_before_a_nan_stays(
    plant: Callable[[pytest.MonkeyPatch], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        run = trained(tmp_path / "run", **{**IRIS, "checkpoint_seconds": 1000})
    assert run.outcome.code == 1
    assert re.fullmatch(rf"manualbp: {said} is not finite any more; .*\n", run.outcome.err)
    six = trained(tmp_path / "six", "--quiet", **{**IRIS, "max_epochs": 6})
    assert_same({**run.last, "seconds": 0}, {**six.last, "seconds": 0})
    assert_same(run.best, six.best)
    for name in ("epochs", "best_epoch", "test_loss", "test_accuracy"):
        assert run.result[name] == six.result[name]
    assert run.result["stopped_reason"] == "non-finite"


def test_a_monitored_score_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    # One row to validate on: its targets have no spread, so R² is no number.
    rows = [f"{i},{i + 0.5}" for i in range(7)]
    (tmp_path / "few.csv").write_text("\n".join(["x,y", *rows]))
    settings = {"data": tmp_path / "few.csv", "hidden": (4,), "max_epochs": 3}
    run = trained(tmp_path / "run", **settings, monitor="val_r2")
    assert run.outcome.code == 1
    assert run.outcome.err == "manualbp: val_r2 is not finite any more after epoch 1\n"
    assert run.result["stopped_reason"] == "non-finite"
    assert trained(tmp_path / "fine", **settings).outcome.code == 0
