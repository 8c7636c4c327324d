"""A run that is killed at any moment and resumed is the run that was never killed, bit for bit."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from small_runs import a_minute_ago, assert_same, call, scalars

from manualbp.cli import main
from manualbp.training import checkpoint, run_directory
from manualbp.training.logs import RunLogs
from manualbp.training.loop import Trainer

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds

COMMON = ("--data", "iris", "--device", "cpu", "--hidden", 6, "--patience", "None", "--quiet")
SHORT = (*COMMON, "--max-epochs", 6)
# 6 epochs of 4 updates each; with three of these seeds and rates an early epoch stays the best.
SETTINGS: dict[str, tuple[object, ...]] = {
    "sgd": (*SHORT, "--seed", 9, "--lr", 0.3),
    "adam, dropout, cosine": (
        *SHORT,
        *("--optimizer", "adam", "--dropout", 0.2, "--schedule", "cosine", "--dtype", "float64"),
    ),
    "autograd": (
        *(*SHORT, "--engine", "autograd", "--optimizer", "rmsprop", "--dropout", 0.2),
        *("--batch-size", 16, "--accumulate", 2, "--lr", 0.1),
    ),
    "mixed precision": (*SHORT, "--precision", "bf16-mixed", "--dropout", 0.2),
    "lockstep": (
        *(*SHORT, "--engine", "lockstep", "--optimizer", "look-ahead", "--dtype", "float64"),
        *("--seed", 8, "--lr", 0.1),
    ),
}
EVERY_EPOCH = ("--checkpoint-seconds", 0)
EVERY_UPDATE = ("--checkpoint-seconds", 1e-9)
NEVER = ("--checkpoint-seconds", 1000)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, owner: Any, name: str, how: Callable[..., None]) -> None:
    """Let a function be killed at a call, counted from 1; `how` comes before the end."""
    right, calls = getattr(owner, name), [0]

    def function(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            how(*arguments, **named)
            die()
        return right(*arguments, **named)

    setattr(owner, name, function)


def nothing(*arguments: Any, **named: Any) -> None:
    pass


def half_a_file(path: Path, content: Any) -> None:
    checkpoint.temporary_path(path).write_bytes(bytes(content)[: len(content) // 2])


def the_file_but_not_its_name(path: Path, content: Any) -> None:
    checkpoint.temporary_path(path).write_bytes(content)


# best.pt and last.pt are written in turn, so that an odd call is about best.pt.
MOMENTS: dict[str, tuple[tuple[object, ...], Callable[[], None]]] = {
    "before the logs": (EVERY_EPOCH, lambda: at_call(1, RunLogs, "configuration", nothing)),
    "before the first checkpoint": (NEVER, lambda: at_call(3, RunLogs, "epoch", nothing)),
    "in the first epoch": (NEVER, lambda: at_call(3, Trainer, "record", nothing)),
    "between the logs and a checkpoint": (
        EVERY_EPOCH,
        lambda: at_call(3, RunLogs, "flush", nothing),
    ),
    "within best.pt": (EVERY_EPOCH, lambda: at_call(5, checkpoint, "replace_file", half_a_file)),
    "within last.pt": (EVERY_EPOCH, lambda: at_call(6, checkpoint, "replace_file", half_a_file)),
    "within the first last.pt": (
        EVERY_EPOCH,
        lambda: at_call(2, checkpoint, "replace_file", half_a_file),
    ),
    "before last.pt has its name": (
        EVERY_EPOCH,
        lambda: at_call(6, checkpoint, "replace_file", the_file_but_not_its_name),
    ),
    "between best.pt and last.pt": (
        EVERY_EPOCH,
        lambda: at_call(6, checkpoint, "replace_file", nothing),
    ),
    "in the middle of an epoch": (EVERY_UPDATE, lambda: at_call(11, Trainer, "record", nothing)),
    "within result.json": (
        EVERY_EPOCH,
        lambda: at_call(2, run_directory, "replace_file", half_a_file),
    ),
}


def program(words: list[str], moment: str | None) -> None:
    """Be the program, in a process of its own, that is killed at a moment."""
    if moment is not None:
        MOMENTS[moment][1]()
    sys.exit(main(words))


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Return a context whose processes start at once, as copies of one that has all imported."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        context.set_forkserver_preload([__name__, "torch._dynamo"])  # which torch.optim imports
        yield context


def start(
    processes: ForkServerContext, *words: object, moment: str | None = None
) -> multiprocessing.process.BaseProcess:
    process = processes.Process(target=program, args=([str(word) for word in words], moment))
    process.start()
    return process


def killed(processes: ForkServerContext, moment: str, *words: object) -> None:
    """Run a command that gets killed."""
    process = start(processes, "train", *words, moment=moment)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL


def resumed(run: Path, *words: object) -> None:
    a_minute_ago(run)
    assert call("train", "--quiet", "--resume", run, *words) == (0, "", "")


Everything = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]


def everything(run: Path) -> Everything:
    """Return all that two runs must have in common."""
    result = json.loads((run / "result.json").read_text())
    for name in ("run_dir", "seconds", "steps_per_second"):
        del result[name]
    last = {**checkpoint.load(run / "last.pt"), "seconds": None}
    curves = {split: scalars(run / split) for split in ("train", "val")}
    return last, checkpoint.load(run / "best.pt"), result, curves


def assert_same_run(found: Everything, expected: Everything) -> None:
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)
    epochs = expected[2]["epochs"]
    assert [step for step, _ in found[3]["val"]["loss"]] == list(range(1, epochs + 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Everything]:
    """Return a function that tells what a run becomes that is never killed."""
    known: dict[str, Everything] = {}

    def of(name: str) -> Everything:
        if name not in known:
            path = tmp_path_factory.mktemp("whole") / "run"
            assert call("train", *SETTINGS[name], "--run-dir", path).code == 0
            known[name] = everything(path)
        return known[name]

    return of


@pytest.mark.parametrize(
    ("settings", "moment"),
    [
        *((name, moment) for name in ("adam, dropout, cosine", "autograd") for moment in MOMENTS),
        *(("sgd", moment) for moment in ("within last.pt", "in the middle of an epoch")),
        *(
            ("mixed precision", moment)
            for moment in ("within last.pt", "in the middle of an epoch")
        ),
        *(("lockstep", moment) for moment in ("within last.pt", "in the middle of an epoch")),
    ],
)
def test_killed_at_a_moment(
    settings: str,
    moment: str,
    tmp_path: Path,
    processes: ForkServerContext,
    whole: Callable[[str], Everything],
) -> None:
    path = tmp_path / "run"
    killed(processes, moment, *SETTINGS[settings], *MOMENTS[moment][0], "--run-dir", path)
    saved = (path / "last.pt").exists()
    early = ("before the logs", "before the first checkpoint", "in the first epoch")
    assert saved == (moment not in (*early, "within the first last.pt"))
    if moment == "in the middle of an epoch":
        assert checkpoint.load(path / "last.pt")["position"] > 0
    resumed(path)
    assert_same_run(everything(path), whole(settings))
    assert not list(path.glob("*.tmp"))


@pytest.mark.parametrize("settings", ["adam, dropout, cosine", "lockstep"])
def test_killed_again_and_again(
    settings: str,
    tmp_path: Path,
    processes: ForkServerContext,
    whole: Callable[[str], Everything],
) -> None:
    path = tmp_path / "run"
    words = (*SETTINGS[settings], "--run-dir", path)
    for moment in (
        "in the middle of an epoch",
        "in the first epoch",
        "in the middle of an epoch",
        "within the first last.pt",
        "within result.json",
    ):
        killed(processes, moment, *words, *MOMENTS[moment][0])
        a_minute_ago(path)
        words = ("--quiet", "--resume", path)
    resumed(path)
    assert_same_run(everything(path), whole(settings))


LONG = (*COMMON, "--batch-size", 8, "--optimizer", "adam", "--dropout", 0.2)


def test_killed_from_outside_at_several_moments(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    path, epochs = tmp_path / "run", 150
    words = ("train", *LONG, "--max-epochs", epochs, *EVERY_EPOCH)
    command = [sys.executable, "-m", "manualbp", *map(str, words), "--run-dir", str(path)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        wait_for(path / "last.pt")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    reached: list[int] = []
    for delay in (0.0, 0.0, 0.01, 0.02, 0.05):
        a_minute_ago(path)
        another = start(processes, "train", "--quiet", "--resume", path)
        wait_for(path / "last.pt.tmp")
        time.sleep(delay)
        another.kill()
        another.join()
        assert another.exitcode == -signal.SIGKILL
        reached.append(checkpoint.load(path / "last.pt")["epoch"])
    assert 0 < reached[-1] < epochs
    assert reached == sorted(reached)
    resumed(path, *NEVER)
    other = tmp_path / "whole"
    assert call("train", *LONG, "--max-epochs", epochs, "--run-dir", other).code == 0
    assert_same_run(everything(path), everything(other))


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end


def test_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = ("train", *LONG, "--max-epochs", 10**6, *EVERY_EPOCH, "--run-dir", path)
    command = [sys.executable, "-m", "manualbp", *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(path / "last.pt")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out == ""
    assert err == f"manualbp: interrupted; go on with: manualbp train --resume {path}\n"
    last = checkpoint.load(path / "last.pt")
    result = json.loads((path / "result.json").read_text())
    assert result["stopped_reason"] == "interrupted"
    assert result["epochs"] == last["epoch"]
    # The logs are closed: they hold all epochs.
    assert len(scalars(path / "val")["loss"]) == last["epoch"]
    epochs = last["epoch"] + 3
    resumed(path, "--max-epochs", epochs)
    other = tmp_path / "whole"
    assert call("train", *LONG, "--max-epochs", epochs, "--run-dir", other).code == 0
    assert_same_run(everything(path), everything(other))
