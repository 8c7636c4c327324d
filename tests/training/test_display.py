"""What a person at a terminal sees of a run."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from manualbp.training.display import Display, print_summary
from manualbp.training.early_stopping import EarlyStopping
from manualbp.training.loop import EpochReport

RESULT: dict[str, Any] = {
    "run_dir": "runs/2026-11-21_05-17-22_digits_mlp_manual_seed0",
    "engine": "manual",
    "device": "cpu",
    "dtype": "float32",
    "epochs": 50,
    "stopped_reason": "patience exhausted",
    "best_epoch": 30,
    "best_val_loss": 0.0912,
    "test_loss": 0.1148,
    "test_accuracy": 0.97042,
    "seconds": 2.04,
    "steps_per_second": 1000.0,
}


def summary(width: int = 80, *, terminal: bool = False, **changed: Any) -> str:
    out = io.StringIO()
    result = {**RESULT, **changed}
    result = {name: value for name, value in result.items() if value != "absent"}
    print_summary(Console(file=out, width=width, force_terminal=terminal), result)
    return out.getvalue()


def test_the_summary_says_what_was_reached_why_it_stopped_and_where_it_lies() -> None:
    lines = [line.rstrip() for line in summary().splitlines()]
    assert lines == [
        "Test accuracy  0.9704  (loss 0.1148, weights of epoch 30)",
        "Stopped        patience exhausted after 50 epochs, 2,040 updates, 2.0 s",
        "Engine         manual, cpu, float32, 1,000 updates/s",
        "Run            runs/2026-11-21_05-17-22_digits_mlp_manual_seed0",
        "Look at it with:  tensorboard --logdir runs/2026-11-21_05-17-22_digits_mlp_manual_seed0",
    ]


def test_a_regression_has_r2_and_one_epoch_is_no_plural() -> None:
    text = summary(test_accuracy="absent", test_r2=0.5, epochs=1)
    assert text.startswith("Test R²        0.5000  (loss 0.1148, weights of epoch 30)")
    assert "after 1 epoch, " in text


def test_without_a_best_epoch_the_weights_are_the_last() -> None:
    assert "(loss 0.1148, weights of the last epoch)" in summary(best_epoch=None)


def test_a_result_that_is_no_number_is_told_as_such() -> None:
    text = summary(test_accuracy=None, test_loss=None, best_epoch=None)
    assert re.search(r"^Test accuracy +not a number *$", text, re.MULTILINE)


@pytest.mark.parametrize("run_dir", ["runs/[bold]x[/bold]", "runs/[/x]", "a b/it's", "runs/:x:"])
def test_the_name_of_the_run_stands_as_it_is(run_dir: str) -> None:
    lines = summary(run_dir=run_dir).splitlines()
    assert lines[3].rstrip() == f"Run            {run_dir}"
    quoted = {"a b/it's": "'a b/it'\"'\"'s'"}.get(run_dir)
    assert quoted is None or lines[4].endswith(f"--logdir {quoted}")


def test_a_long_name_is_not_cut_off_or_broken() -> None:
    run_dir = "/a/very/long" * 12
    assert summary(run_dir=run_dir).count(run_dir) == 2


def test_there_are_no_escape_codes_unless_at_a_terminal() -> None:
    assert "\x1b" not in summary()
    assert "\x1b" in summary(terminal=True)


def report(epoch: int) -> EpochReport:
    numbers = {"loss": 0.5 / epoch, "accuracy": 0.25}
    return EpochReport(epoch, numbers, {**numbers, "loss": 0.75 / epoch}, 0.1, None)


def shown(display: Display) -> None:
    stopper = EarlyStopping(patience=None)
    display.start(2, "compiling")
    for epoch in (3, 4):
        stopper.update(epoch, 1.0)
        display.epoch(report(epoch), stopper)
    display.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rich take any stream for a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_progress_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.training.display.SECONDS_BETWEEN_UPDATES", 0)
    shown(Display(10, "accuracy", quiet=False))
    out, err = capsys.readouterr()
    assert out == ""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
    assert re.search(r"epoch    2/10 .* compiling", plain)  # and no numbers yet
    assert "epoch    3/10" in plain
    assert "loss 0.1667 val 0.2500  accuracy 0.2500  best 3" in plain
    assert max(map(len, re.split(r"[\r\n]+", plain))) <= 80


@pytest.mark.usefixtures("terminal")
def test_epochs_that_follow_each_other_at_once_are_not_all_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.training.display.SECONDS_BETWEEN_UPDATES", 60)
    shown(Display(10, "accuracy", quiet=False))
    err = capsys.readouterr().err
    assert "0.2500  best" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
    assert "4/10" not in err


@pytest.mark.usefixtures("terminal")
def test_a_quiet_run_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown(Display(10, "accuracy", quiet=True))
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_no_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    shown(Display(10, "accuracy", quiet=False))
    assert capsys.readouterr() == ("", "")


def test_closing_before_the_start_is_no_mistake() -> None:
    Display(10, "accuracy", quiet=False).close()
