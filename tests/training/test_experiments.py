"""Several runs by one command: comparisons, restarts, cross-validation, and the range test."""

import json
import math
import os
import re
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import Outcome, assert_same, call, contents, events, scalars

from manualbp.checks.engines import build_engine
from manualbp.cli import several
from manualbp.errors import UsageError
from manualbp.training import checkpoint, range_test
from manualbp.training.config import DEFAULT_RATES, LEARNING_RATES, TrainConfig
from manualbp.training.data import Data, load
from manualbp.training.experiments import Comparison, experiment
from manualbp.training.logs import RunLogs
from manualbp.training.range_test import Curve, Growing, find_learning_rate
from manualbp.training.run import Run, train

# TensorBoard comes without types.
multiplexer: Any = import_module("tensorboard.backend.event_processing.event_multiplexer")
hparams_metadata: Any = import_module("tensorboard.plugins.hparams.metadata")

IRIS = ("--data", "iris", "--device", "cpu", "--hidden", 6, "--max-epochs", 5)


class Finished(NamedTuple):
    """An experiment that has ended."""

    path: Path
    outcome: Outcome

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "experiment.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.summary["alternatives"]

    @property
    def best(self) -> dict[str, Any]:
        (row,) = [row for row in self.rows if row["best"]]
        return row


def made(path: Path, *words: object) -> Finished:
    return Finished(path, call("train", *IRIS, "--run-dir", path, *words))


def result(path: Path) -> dict[str, Any]:
    return json.loads((path / "result.json").read_text())


def weights(path: Path) -> dict[str, Any]:
    return checkpoint.load(path / "best.pt")


def picture_of(directory: Path, tag: str) -> Any:
    (event,) = events(directory).Images(tag)
    assert event.encoded_image_string.startswith(b"\x89PNG")
    return event


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "sweep"
    return made(path, "--lr", 0.001, 0.1, "1e30", "--json")


@pytest.fixture(scope="module")
def restarts(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return made(tmp_path_factory.mktemp("runs") / "restarts", "--restarts", 3)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "folds"
    return made(path, "--cross-validate", 3, "--lr", 0.001, 0.1)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "found"
    return Finished(path, call("train", "--device", "cpu", "--find-lr", "--run-dir", path))


# Several values on the command line --------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("", [""]),
        ("train", ["train"]),
        ("train --lr 1", ["train --lr 1"]),
        ("train --lr=1 --quiet", ["train --lr=1 --quiet"]),
        ("train --lr 1 2", ["train --lr 1", "train --lr 2"]),
        ("train --lr=1 2 --json", ["train --lr 1 --json", "train --lr 2 --json"]),
        ("train --lr 1 -2 -h", ["train --lr 1 -h", "train --lr -2 -h"]),
        ("train --lr --quiet", ["train --lr --quiet"]),
        ("train --hidden 8 4 --lr 1 x", ["train --hidden 8 4 --lr 1", "train --hidden 8 4 --lr x"]),
        ("train --data a b", ["train --data a b"]),
        ("train --seed 1 2", ["train --seed 1 2"]),
        ("compare --lr 1 2", ["compare --lr 1 2"]),
        (
            "train --batch-size 1 0 --lr 2 3",
            [f"train --batch-size {b} --lr {l}" for b in (1, 0) for l in (2, 3)],
        ),
    ],
)
def test_a_command_line_with_several_values_is_several_lines(line: str, lines: list[str]) -> None:
    assert [" ".join(words) for words in several(line.split())] == lines


# Comparisons -------------------------------------------------------------------------------------


def test_every_value_gets_a_run_that_is_like_one_alone(sweep: Finished, tmp_path: Path) -> None:
    assert {path.name for path in sweep.path.iterdir() if path.is_dir()} == {
        *("lr=0.001", "lr=0.1", "lr=1e+30", "comparison")
    }
    alone = tmp_path / "alone"
    assert call("train", *IRIS, "--lr", 0.1, "--run-dir", alone, "--quiet") == (0, "", "")
    run = sweep.path / "lr=0.1"
    assert (run / "config.json").read_text() == (alone / "config.json").read_text()
    assert_same(weights(run), weights(alone))
    for split in ("train", "val"):
        assert scalars(run / split) == scalars(alone / split)


def test_the_best_is_decided_by_validation_among_runs_that_stay_finite(sweep: Finished) -> None:
    assert sweep.outcome.code == 0, sweep.outcome.err
    assert sweep.summary["complete"]
    losses = {row["lr"]: row["best_val_loss"] for row in sweep.rows}
    assert list(losses) == [0.001, 0.1, 1e30]
    assert losses[0.1] < losses[0.001]
    assert [row["best"] for row in sweep.rows] == [False, True, False]
    assert sweep.rows[2]["stopped_reason"] == "non-finite"
    for row in sweep.rows:
        run = result(Path(row["run_dir"]))
        assert row.items() >= run.items()
    (_, accuracy) = scalars(sweep.path / "lr=0.1" / "val")["accuracy"][sweep.best["best_epoch"] - 1]
    assert sweep.best["best_val_accuracy"] == pytest.approx(accuracy)


def test_a_monitored_score_decides_by_the_highest(tmp_path: Path) -> None:
    one = made(tmp_path / "a", "--lr", 0.0001, 0.3, "--monitor", "val_accuracy")
    scores = [row["best_val_accuracy"] for row in one.rows]
    assert scores[0] < scores[1]
    assert one.best["lr"] == 0.3
    assert one.summary["decided_by"] == "val_accuracy"


def test_json_prints_the_list_and_nothing_else(sweep: Finished) -> None:
    assert json.loads(sweep.outcome.out) == sweep.rows
    assert sweep.outcome.err == ""


def test_the_table_fits_80_columns_and_the_test_is_of_the_best_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", *IRIS, "--lr", 0.01, 0.1, "1e30", "--batch-size", 32, 0)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines[:7])) <= 80
    columns = "lr batch-size val loss val accuracy epoch epochs updates seconds"
    assert lines[0].split() == columns.split()
    assert [line.split()[:2] for line in lines[1:7]] == [
        [lr, size] for lr in ("0.01", "0.1", "1e+30") for size in ("32", "0")
    ]
    assert lines[5].split()[2:4] == ["diverged", "diverged"]
    (path,) = (p for p in (tmp_path / "runs").iterdir() if p.name.endswith("_iris_lr-batch-size"))
    best = Finished(path, Outcome(code, out, err)).best
    assert (
        lines[8] == f"Best           lr={best['lr']} batch-size={best['batch_size']}  by val loss"
    )
    assert out.count("Test accuracy") == 1
    assert lines[9].startswith(f"Test accuracy  {best['test_accuracy']:.4f}  ")
    assert lines[-1] == f"Look at it with:  tensorboard --logdir runs/{path.name}"


def test_a_quiet_experiment_says_nothing(tmp_path: Path) -> None:
    assert made(tmp_path / "a", "--optimizer", "sgd", "adam", "--quiet").outcome == (0, "", "")
    assert not (tmp_path / "a" / "comparison.png").exists()  # there is no axis for names


def test_no_run_that_stays_finite_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "a"
    code, out, err = made(path, "--lr", "1e30", "1e31").outcome
    assert (code, out) == (1, "")
    assert err == f"manualbp: no run in {path} stayed finite; a smaller --lr may help\n"


def test_lockstep_that_finds_a_difference_ends_the_experiment(tmp_path: Path) -> None:
    words = ("--engine", "lockstep", "--lockstep-limit", "1e-30", "--lr", 0.1, 0.2)
    code, _, err = made(tmp_path / "a", *words).outcome
    assert code == 1
    assert re.fullmatch(r"manualbp: .*step 1.*\n", err)
    assert not (tmp_path / "a" / "lr=0.2").exists()


def test_the_next_run_may_choose_among_all_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run_dir = tmp_path / "a"
        config = TrainConfig(data="xor", max_epochs=1, quiet=True, device="cpu", run_dir=run_dir)
        experiment([config, replace(config, lr=0.5)], build_engine)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


# TensorBoard -------------------------------------------------------------------------------------


def trials(directory: Path) -> dict[str, list[str]]:
    """Return the rows of the HPARAMS page, each with the runs in it."""
    found: dict[str, list[str]] = {}
    runs = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(directory)).Reload()
    for run, tags in sorted(runs.PluginRunToTagToContent("hparams").items()):
        content = tags["_hparams_/session_start_info"]
        info = hparams_metadata.parse_session_start_info_plugin_data(content)
        found.setdefault(info.group_name, []).append(run.removesuffix("/val"))
    return found


def test_hparams_have_a_row_for_each_run_that_tells_experiments_apart(sweep: Finished) -> None:
    assert trials(sweep.path) == {
        f"sweep/{name}": [name] for name in ("lr=0.001", "lr=0.1", "lr=1e+30")
    }


def test_hparams_have_one_row_for_the_folds_of_a_rate(folds: Finished) -> None:
    rows = {f"folds/lr={lr}": [f"lr={lr}/fold={k}" for k in (1, 2, 3)] for lr in ("0.001", "0.1")}
    assert trials(folds.path) == {**rows, "folds/final": ["final"]}


def test_the_comparison_is_a_table_and_a_picture(sweep: Finished) -> None:
    logged = events(sweep.path / "comparison")
    (event,) = logged.Tensors("comparison/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert re.search(r"^\| `0\.1` \| `0\.\d{4}` \|", text, re.MULTILINE)
    assert re.search(r"^\| `1e\+30` \| `diverged` \|", text, re.MULTILINE)
    picture_of(sweep.path / "comparison", "result/val_loss")
    with Image.open(sweep.path / "comparison.png") as image:
        assert image.size == (600, 400)


# Restarts ----------------------------------------------------------------------------------------


def test_restarts_differ_in_the_initial_weights_alone(restarts: Finished, tmp_path: Path) -> None:
    settings = [
        json.loads((restarts.path / f"init-seed={seed}" / "config.json").read_text())
        for seed in range(3)
    ]
    assert [s.pop("init_seed") for s in settings] == [0, 1, 2]
    assert settings[0] == settings[1] == settings[2]
    alone = tmp_path / "alone"
    assert call("train", *IRIS, "--run-dir", alone, "--quiet") == (0, "", "")
    assert_same(weights(restarts.path / "init-seed=0"), weights(alone))


def prepared(**settings: Any) -> Run:
    config = TrainConfig(data="iris", device="cpu", **settings)
    data = load("iris", seed=config.seed)
    return Run.prepare(config, data, torch.device("cpu"), build_engine)


def test_the_seed_of_the_weights_leaves_the_order_of_the_examples(tmp_path: Path) -> None:
    runs = [prepared(seed=5), prepared(seed=5, init_seed=6), prepared(seed=6)]
    starts = [run.params.flat for run in runs]
    assert torch.equal(starts[1], starts[2])
    assert not torch.equal(starts[0], starts[1])
    first = [next(run.trainer.plan_epoch()[0].batches()).x for run in runs]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_the_best_start_is_kept_and_all_are_reported(restarts: Finished) -> None:
    losses = [result(restarts.path / f"init-seed={seed}")["best_val_loss"] for seed in range(3)]
    assert len(set(losses)) == 3
    best = int(np.argmin(losses))
    assert restarts.best["init_seed"] == best
    assert [row["best_val_loss"] for row in restarts.rows] == losses
    assert f"Best           init-seed={best}  by val loss\n" in restarts.outcome.out


def test_restarts_begin_with_the_seed_and_go_with_several_values(tmp_path: Path) -> None:
    one = made(tmp_path / "a", "--restarts", 2, "--seed", 7, "--lr", 0.1, 0.2)
    pairs = [(row["lr"], row["init_seed"]) for row in one.rows]
    assert pairs == [(0.1, 7), (0.1, 8), (0.2, 7), (0.2, 8)]
    assert (tmp_path / "a" / "lr=0.1_init-seed=8").is_dir()


# Folds -------------------------------------------------------------------------------------------


def numbered(path: Path, classes: int) -> str:
    """Write a file in which the only feature is the number of the row; return its path."""
    rows = [f"{i},{'abc'[i % 9 % classes] if classes else i / 7}" for i in range(90)]
    path.write_text("\n".join(["x,t", *rows]) + "\n")
    return str(path)


def row_numbers(data: Data, x: torch.Tensor) -> list[int]:
    """Return which rows these are, of the numbers 0 to 89 standardised."""
    train = data.train.x[:, 0]
    assert float(train.mean()) == pytest.approx(0, abs=1e-6)
    assert float(train.std(correction=0)) == pytest.approx(1)
    # The distance between two rows is 1 / std: the smallest there is among 90 - 14 rows of 90.
    every = torch.cat([data.train.x, data.val.x, data.test.x])[:, 0].sort().values
    return [int((every < value - 1e-6).sum()) for value in x[:, 0]]


@pytest.mark.parametrize("classes", [3, 0])
def test_folds_share_out_all_rows_but_the_test(classes: int, tmp_path: Path) -> None:
    path = numbered(tmp_path / "rows.csv", classes)
    whole = load(path, seed=3, dtype=torch.float64)
    test = row_numbers(whole, whole.test.x)
    rest = sorted(set(range(90)) - set(test))
    seen: list[int] = []
    for part in range(1, 5):
        data = load(path, seed=3, dtype=torch.float64, fold=(part, 4))
        assert row_numbers(data, data.test.x) == test
        val, train = row_numbers(data, data.val.x), row_numbers(data, data.train.x)
        assert sorted(val + train) == rest
        assert len(val) in (len(rest) // 4, len(rest) // 4 + 1)
        seen += val
        if classes:
            shares = data.val.t.bincount() / len(data.val)
            expected = whole.train.t.bincount() / len(whole.train)
            assert (shares - expected).abs().max() < 1.5 / len(data.val)
    assert sorted(seen) == rest
    other = load(path, seed=4, dtype=torch.float64, fold=(1, 4))
    assert row_numbers(other, other.val.x) != seen[: len(other.val)]


def test_folds_that_cannot_be(tmp_path: Path) -> None:
    path = numbered(tmp_path / "rows.csv", 3)
    with pytest.raises(UsageError, match=r"rows\.csv: 30 folds of \d+ rows of the rarest class "):
        load(path, fold=(1, 30))
    path = numbered(tmp_path / "numbers.csv", 0)
    with pytest.raises(UsageError, match=r"numbers\.csv: 90 folds of 76 rows \(those for the test"):
        load(path, fold=(1, 90))
    with pytest.raises(UsageError, match=r"^xor cannot be cut into folds"):
        load("xor", fold=(1, 2))


@pytest.mark.parametrize("fold", ["0/4", "5/4", "1/1", "1", "a/b", "-1/4", "1/4/2"])
def test_a_fold_that_is_none_is_refused(fold: str) -> None:
    with pytest.raises(UsageError, match=rf"^--fold is {fold}: it must be a part of 2 or more"):
        TrainConfig(fold=fold).validate()


def test_a_fold_alone_is_a_run_without_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(
        RunLogs, "confusion_matrix", lambda self, e, matrix, c: drawn.append(matrix)
    )
    code, out, err = made(tmp_path / "a", "--fold", "2/3").outcome
    val = load("iris", fold=(2, 3)).val
    assert drawn[0].sum(1).tolist() == val.t.bincount().tolist()
    assert (code, err) == (0, "")
    found = result(tmp_path / "a")
    assert not {"test_loss", "test_accuracy"} & found.keys()
    assert out.startswith(f"Val accuracy   {found['best_val_accuracy']:.4f}  (loss ")
    assert not any("test" in tag for tag in scalars(tmp_path / "a" / "val"))
    several_rates = made(tmp_path / "b", "--fold", "2/3", "--lr", 0.1, 0.2)
    assert several_rates.outcome.code == 0
    assert "Val accuracy" in several_rates.outcome.out


# Cross-validation --------------------------------------------------------------------------------


def test_the_rate_is_chosen_by_the_mean_over_the_folds(folds: Finished) -> None:
    assert folds.outcome.code == 0, folds.outcome.err
    means = {}
    for lr in (0.001, 0.1):
        runs = [result(folds.path / f"lr={lr}" / f"fold={k}") for k in (1, 2, 3)]
        assert not any("test_loss" in run for run in runs)
        means[lr] = np.mean([run["best_val_loss"] for run in runs])
    assert [row["mean_val_loss"] for row in folds.rows] == pytest.approx(list(means.values()))
    assert folds.best["lr"] == min(means, key=lambda lr: means[lr])
    losses = folds.best["val_loss"]
    spread = np.std(losses, ddof=1)
    line = f"{folds.best['lr']}    {np.mean(losses):.4f}  {spread:.4f}  "
    assert line in folds.outcome.out


def test_the_final_run_is_an_ordinary_one_with_that_rate(folds: Finished, tmp_path: Path) -> None:
    best, alone = folds.best["lr"], tmp_path / "alone"
    assert call("train", *IRIS, "--lr", best, "--run-dir", alone, "--quiet") == (0, "", "")
    assert_same(weights(folds.path / "final"), weights(alone))
    final = result(folds.path / "final")
    assert final["test_loss"] == result(alone)["test_loss"]
    assert folds.best["final"] == final
    assert "by mean val loss of the folds\n" in folds.outcome.out
    assert f"Test accuracy  {final['test_accuracy']:.4f}  " in folds.outcome.out


def two_rates() -> Comparison:
    """Return a cross-validation that has not begun."""
    configs = [TrainConfig(cross_validate=2, lr=lr) for lr in (0.1, 1.0)]
    return Comparison.of(configs, build_engine)


def test_the_picture_shows_every_fold(folds: Finished) -> None:
    picture_of(folds.path / "comparison", "result/val_loss")
    comparison = Comparison.of(
        [TrainConfig(cross_validate=2, lr=lr) for lr in (0.1, 1.0)], build_engine
    )
    for alternative, losses in zip(comparison.alternatives, ((1.0, 3.0), (5.0, 30.0)), strict=True):
        for loss in losses:
            alternative.add({"stopped_reason": "max epochs"}, {"loss": loss})
    figure = comparison.draw()
    assert figure
    mean, dots = figure.axes[0].lines
    assert np.asarray(mean.get_xydata()).tolist() == [[0.1, 2.0], [1.0, 17.5]]
    assert np.asarray(dots.get_xydata()).tolist() == [[0.1, 1], [0.1, 3], [1, 5], [1, 30]]
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def test_a_rate_that_diverges_in_one_fold_is_not_chosen() -> None:
    comparison = Comparison.of(
        [TrainConfig(cross_validate=2, lr=lr) for lr in (0.1, 1.0)], build_engine
    )
    for alternative, end in zip(comparison.alternatives, ("max epochs", "non-finite"), strict=True):
        for reason, loss in ("max epochs", 9.0 if end == "max epochs" else 0.1), (end, 9.0):
            alternative.add({"stopped_reason": reason}, {"loss": loss})
    assert comparison.best is comparison.alternatives[0]


def test_there_are_rates_to_choose_from_for_each_optimizer() -> None:
    for optimizer, rate in LEARNING_RATES.items():
        rates = DEFAULT_RATES[optimizer]
        assert len(rates) == 6
        assert list(rates) == sorted(rates)
        assert rates[0] < rate < rates[-1]


def test_without_rates_the_usual_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Comparison, "run", lambda self: None)

    def tried(**settings: Any) -> list[float]:
        compared = experiment([TrainConfig(cross_validate=2, **settings)], build_engine)
        assert isinstance(compared, Comparison)
        return [alternative.options["lr"] for alternative in compared.alternatives]

    assert tried(optimizer="adam") == list(DEFAULT_RATES["adam"])
    assert tried(lr=0.2) == [0.2]


# Contradictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr 0.1 0.10", "two of the runs have the same settings: give each value once"),
        ("--lr 0.1 -1", "--lr is -1.0: it must be more than 0"),
        ("--lr 0.1 x", "--lr x: expected a number"),
        ("--find-lr --lr 0.1", "--find-lr looks for a learning rate: leave out --lr"),
        ("--find-lr --batch-size 1 2", "--find-lr is one short training: leave out several values"),
        (
            "--find-lr --cross-validate 4",
            "--find-lr is one short training: leave out --cross-validate",
        ),
        ("--find-lr --restarts 4", "--find-lr is one short training: leave out --restarts"),
        ("--cross-validate 4 --restarts 4", "--cross-validate and --restarts exclude each other: "),
        ("--cross-validate 4 --fold 1/4", "--cross-validate and --fold exclude each other: "),
        ("--cross-validate 1", "--cross-validate is 1: it must be 2 or more"),
        ("--cross-validate 100", "iris: 100 folds of 42 rows of the rarest class "),
        ("--restarts 1", "--restarts is 1: it must be 2 or more"),
        ("--restarts 2 --seed 4294967295", "--init-seed is 4294967296: it must be from 0 to 42949"),
        ("--resume run --lr 0.1 0.2", "--resume goes on with one run: leave out several values"),
        ("--resume run --find-lr", "--resume goes on with one run: leave out --find-lr"),
        ("--resume run --restarts 2", "--resume goes on with one run: leave out --restarts"),
        ("--resume run --cross-validate 2", "--resume goes on with one run: leave out --cross-val"),
        ("--lr 0.1 0.2 --run-dir run", "run directory run already holds a run: choose another"),
        ("--find-lr --run-dir run", "run directory run already holds a run: choose another"),
        ("--seed 1 2", "train: 2 is not the value of an option"),
        ("--fold 1/2 --data xor", "xor cannot be cut into folds: its four points are in every"),
    ],
)
def test_options_that_do_not_go_together(
    words: str, message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    before = contents(run.parent)
    data = () if "--resume" in words or "--data" in words else ("--data", "iris")
    code, out, err = call("train", *data, *words.split())
    assert (code, out) == (2, "")
    assert contents(run.parent) == before
    assert re.fullmatch(r"manualbp: .*\n", err)
    assert err.startswith(f"manualbp: {message}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run, and it alone in its directory."""
    path = tmp_path_factory.mktemp("one") / "run"
    assert call("train", *IRIS, "--run-dir", path, "--quiet") == (0, "", "")
    return path


# Signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_within_a_run_keeps_what_is_done(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, calls = RunLogs.epoch, 0

    def log_and_signal(self: RunLogs, epoch: int, **values: Any) -> None:
        nonlocal calls
        calls += 1
        log(self, epoch, **values)
        if calls == 7:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(RunLogs, "epoch", log_and_signal)
    path = tmp_path / "a"
    one = made(path, "--lr", 0.1, 0.2, 0.3)
    assert signal.getsignal(number) == before
    assert one.outcome == (
        code,
        "",
        f"manualbp: interrupted; 1 of 3 runs are done and kept in {path}; go on with this one: "
        f"manualbp train --resume {path}/lr=0.2\n",
    )
    assert [row["lr"] for row in one.rows] == [0.1]
    assert not one.summary["complete"]
    assert result(path / "lr=0.2")["stopped_reason"] == "interrupted"
    assert not (path / "lr=0.3").exists()
    resumed = call("train", "--resume", path / "lr=0.2", "--json")
    assert json.loads(resumed.out)["stopped_reason"] == "max epochs"
    assert trials(path)["a/lr=0.2"] == ["lr=0.2"]


def test_ctrl_c_between_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Comparison.save

    def save_and_signal(self: Comparison) -> None:
        save(self)
        if self.alternatives[0].results:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Comparison, "save", save_and_signal)
    path = tmp_path / "a"
    one = made(path, "--restarts", 3)
    message = f"manualbp: interrupted; 1 of 3 runs are done and kept in {path}\n"
    assert one.outcome == (130, "", message)
    assert (path / "init-seed=0" / "result.json").exists()
    assert not (path / "init-seed=1").exists()


# The range test ----------------------------------------------------------------------------------


def curve_of(losses: list[float], *, per_decade: int = 20) -> Curve:
    curve = Curve()
    for i, loss in enumerate(losses):
        curve.add(1e-6 * 10 ** (i / per_decade), loss)
    return curve


def test_the_rate_grows_by_the_same_factor() -> None:
    growing = Growing(1000.0, 4.0)
    assert [growing.factor(e) for e in (0, 2, 4)] == pytest.approx([1, math.sqrt(1000), 1000])


def test_the_smoothed_loss_is_a_weighted_mean() -> None:
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    for i in range(1, 6):
        shares = np.array([0.8 ** (i - j) for j in range(1, i + 1)])
        expected = (shares * losses[:i]).sum() / shares.sum()
        assert curve_of(losses[:i]).smoothed[-1] == pytest.approx(expected, rel=1e-12)


def fall(middle: int, by: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a loss that is divided by `by` around an update, of 120."""
    return by ** (-1 / (1 + np.exp((middle - np.arange(120)) / 6)))


def test_the_steepest_point_is_where_the_loss_falls_by_the_largest_share() -> None:
    curve = curve_of(list(2 * fall(60, by=20)))
    # The smoothed loss comes after the loss: by β / (1 - β) = 4 updates.
    assert curve.steepest in range(62, 68)
    shares = np.diff(np.log(curve.smoothed))
    assert abs(int(shares.argmin()) - curve.steepest) <= 1


def test_a_first_fall_from_outputs_that_are_too_large_is_not_the_steepest_point() -> None:
    losses = 3 * fall(30, by=3) * fall(90, by=10)
    curve = curve_of(list(losses))
    assert int(np.diff(losses).argmin()) in range(25, 35)  # from 3 to 1, and then to 0.1
    assert curve.steepest in range(90, 98)


def test_a_rise_after_the_lowest_point_does_not_count() -> None:
    losses = [*np.linspace(2, 1, 40), *np.linspace(1, 3, 10), *np.linspace(3, 1.5, 5)]
    curve = curve_of(losses)
    assert curve.lowest < 45
    assert curve.steepest is not None
    assert curve.steepest <= curve.lowest


def test_divergence_is_four_times_the_lowest_or_no_number() -> None:
    assert not curve_of([1.0] * 10).diverged
    assert not curve_of([1.0] * 40 + [3.9] * 40).diverged
    assert curve_of([1.0] * 40 + [4.1] * 40).diverged
    assert curve_of([1.0, math.nan]).diverged
    assert curve_of([math.nan]).diverged
    assert curve_of([1.0, math.inf]).diverged
    assert curve_of([1.0, 2.0, 3.0, 4.0]).steepest is None


def test_a_range_test_suggests_a_rate_at_which_digits_are_learnt(found: Finished) -> None:
    code, out, err = found.outcome
    assert (code, err) == (0, "")
    summary = found.summary
    assert 0.002 < summary["suggestion"] < 0.05
    assert summary["suggestion"] < summary["lowest_loss_at"] < summary["diverged_at"] < 10
    assert out.startswith(
        f"Learning rate  {summary['suggestion']:g}  where the loss falls by the largest share\n"
    )
    assert f"Lowest loss    at {summary['lowest_loss_at']:.2g}; " in out
    assert f"Diverges       at {summary['diverged_at']:.2g}, after {summary['updates']}" in out
    assert out.endswith(f"Look at it with:  tensorboard --logdir {found.path}\n")
    assert max(len(line) for line in out.splitlines() if str(found.path) not in line) <= 80


def test_the_rates_and_losses_are_those_of_one_training(found: Finished) -> None:
    rates, losses = found.summary["rates"], found.summary["losses"]
    assert rates[0] == pytest.approx(1e-6)
    factors = np.array(rates[1:]) / rates[:-1]
    assert factors == pytest.approx(10 ** (7 / 199), rel=1e-9)
    # After an update at so small a rate the loss is that of the start.
    run = prepared_on_digits()
    rows = run.trainer.train
    y = run.trainer.engine.predict(rows.x[:1000])
    assert losses[0] == pytest.approx(run.trainer.objective.metrics(y, rows.t[:1000])["loss"], 1e-4)


def prepared_on_digits() -> Run:
    config = TrainConfig(device="cpu")
    return Run.prepare(config, load("digits"), torch.device("cpu"), build_engine)


def test_a_range_test_writes_the_curve_and_trains_nothing_else(found: Finished) -> None:
    names = {path.name for path in found.path.iterdir()} - {".lock"}
    assert names == {"experiment.json", "range_test.png", "range_test"}
    with Image.open(found.path / "range_test.png") as image:
        assert image.size == (700, 420)
    picture_of(found.path / "range_test", "range_test/curve")
    logged = scalars(found.path / "range_test")
    rates = [(i, float(np.float32(r))) for i, r in enumerate(found.summary["rates"], 1)]
    assert logged["range_test/learning_rate"] == rates
    assert set(logged) == {f"range_test/{n}" for n in ("loss", "loss_smoothed", "learning_rate")}


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"batch_size": 1, "data": "wine"},
        {"data": "diabetes", "optimizer": "adam"},
        {"data": "iris", "engine": "autograd", "monitor": "val_accuracy"},
        {"data": "xor", "schedule": "cosine", "loss": "bce"},
    ],
    ids=str,
)
def test_a_range_test_goes_with_every_kind_of_run(settings: dict[str, Any], tmp_path: Path) -> None:
    words = [word for name, value in settings.items() for word in (_option(name), value)]
    path = tmp_path / "a"
    code, out, err = call(
        "train", "--find-lr", "--device", "cpu", *words, "--json", "--run-dir", path
    )
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert 1e-6 < summary["suggestion"] < 10
    assert len(summary["losses"]) == summary["updates"] <= 1000


@pytest.mark.parametrize(
    ("data", "loss"),
    {
        "digits": 0.1,
        "breast_cancer": 0.12,
        "iris": 0.08,
        "wine": 0.03,
        "diabetes": 0.7,
        "xor": 0.01,
    }.items(),
)
def test_the_suggested_rate_trains_well(data: str, loss: float, tmp_path: Path) -> None:
    config = TrainConfig(data=data, device="cpu", run_dir=tmp_path / "a")
    suggestion = find_learning_rate(config, build_engine).suggestion
    config = replace(config, lr=suggestion, max_epochs=80, run_dir=tmp_path / "b")
    assert train(config, build_engine)["best_val_loss"] < loss


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_a_loss_that_falls_at_no_rate_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_test, "LOWEST", 9.0)
    words = ("--find-lr", "--momentum", 0, "--model", "maxout", "--hidden", 64, 64)
    path = tmp_path / "a"
    code, out, err = made(path, *words).outcome
    assert (code, out) == (1, "")
    assert err.startswith("manualbp: the loss falls at no rate from 9 on; the curve is in ")
    assert (path / "range_test.png").exists()


def test_ctrl_c_keeps_the_curve_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Curve.add

    def add_and_signal(self: Curve, rate: float, loss: float) -> None:
        add(self, rate, loss)
        if len(self.rates) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Curve, "add", add_and_signal)
    path = tmp_path / "a"
    one = made(path, "--find-lr")
    message = f"manualbp: interrupted; the curve so far is in {path}\n"
    assert one.outcome == (130, "", message)
    assert one.summary["updates"] == 20
    assert (path / "range_test.png").exists()
