"""The command line: its verbs, its help, and one line for each bad input."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import call, contents

from manualbp import cli
from manualbp.checks.compare import CompareConfig
from manualbp.errors import UsageError
from manualbp.training.config import TrainConfig
from manualbp.training.run_directory import RunDirectory

IRIS = ("--data", "iris", "--device", "cpu", "--hidden", 4, "--max-epochs", 2, "--quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty directory that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert call("train", *IRIS, "--run-dir", path) == (0, "", "")
    return path


@pytest.fixture
def run(finished: Path, here: Path) -> Path:
    """Return a copy of a finished run."""
    return shutil.copytree(finished, here / "run")


def refused(directory: Path, *words: object) -> str:
    """Return what a command says that is refused; assert that it says one line and does nothing."""
    before = contents(directory)
    code, out, err = call(*words)
    assert contents(directory) == before
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"manualbp: .{10,}\n", err)
    return err.removeprefix("manualbp: ").rstrip("\n")


# Verbs and help ----------------------------------------------------------------------------------


def help_of(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--help"])
    assert stop.value.code in (0, None)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_help_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    assert {"train", "compare"} <= set(re.findall(r"\w+", text))


VERBS = ["train", "compare", "check", "locate", "bench", "explain", "errata", "selftest"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_fits_80_columns(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, help_of(verb, capsys=capsys).splitlines())) <= 80


@pytest.mark.parametrize(("verb", "config"), [("train", TrainConfig), ("compare", CompareConfig)])
def test_the_help_of_a_verb_shows_every_option_with_its_default(
    verb: str, config: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(verb, capsys=capsys).splitlines()
    text = "\n".join(line.strip("│╰╯─ ") for line in lines)
    _, *parts = re.split(r"^--(?=[a-z])", text, flags=re.MULTILINE)
    entries = {re.split(r"[ ,]", part)[0]: " ".join(part.split()) for part in parts}
    for item in fields(config):
        value = getattr(config(), item.name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        entry = entries[item.name.replace("_", "-")]
        assert entry.endswith(f"(default: {shown})")
        assert len(entry.split()) > 4  # some words about it
    assert {name.replace("-", "_") for name in entries} == {item.name for item in fields(config)}


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_breaks_a_line_only_where_it_is_full(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip("│") for line in help_of(verb, capsys=capsys).splitlines()]
    (column,) = (line.find("show this help") for line in lines if "show this help" in line)
    width = 80 - column - len("│ │")
    goes_on = 0
    for line, below in pairwise(line.ljust(80) for line in lines):
        words, (first, *_) = line[column:].strip(), (*below[column:].split(), "")
        if line[column - 2 : column] == "  " and not below[:column].strip() and first:
            goes_on += 1
            assert len(f"{words} {first}") > width, f"{words}\n{first}"
    assert goes_on or verb == "errata"


def test_what_is_slow_to_load_is_not_loaded_for_the_help() -> None:
    slow = ("matplotlib", "sklearn", "tensorboard", "torch._dynamo")
    program = f"import sys, manualbp.cli; print([m for m in {slow} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.strip() == b"[]"


def test_the_long_names_of_the_options() -> None:
    names = {item.name.replace("_", "-") for item in fields(TrainConfig)}
    fixed = """data model hidden activation optimizer lr momentum weight-decay schedule batch-size
    max-epochs patience min-delta monitor clip-norm accumulate device dtype seed engine run-dir
    resume config json quiet"""
    assert set(fixed.split()) <= names


def test_python_m_is_the_same_program(capsys: pytest.CaptureFixture[str]) -> None:
    expected = help_of("train", capsys=capsys)
    words = [sys.executable, "-m", "manualbp", "train", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    # The frames around the words are drawn for a terminal's encoding, and a test has none.
    assert re.findall(r"\w+", done.stdout) == re.findall(r"\w+", expected)
    project = tomllib.loads((Path(cli.__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"manualbp": "manualbp.cli:run"}


def test_the_program_ends_with_the_code_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (0, 1, 2, 130):
        monkeypatch.setattr(cli, "main", lambda code=code: code)
        with pytest.raises(SystemExit) as stop:
            cli.run()
        assert stop.value.code == code


def test_debug_shows_the_traceback(here: Path) -> None:
    with pytest.raises(UsageError):
        call("train", "--data", "irsi", "--debug")


# Words that are not understood -------------------------------------------------------------------

COMMANDS = "train, compare, check, locate, bench, explain, errata, selftest"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", f"expected a command first, as in manualbp train; there are: {COMMANDS}"),
        ("trian", "trian: there is no such command; did you mean train?"),
        ("fit", f"fit: there is no such command; there are: {COMMANDS}"),
        ("--data iris", "expected a command first, as in manualbp train; there are: train"),
        ("train iris", "train: iris is not the value of an option; see manualbp train --help"),
        ("train --date iris", "train has no option --date; did you mean --data?"),
        ("train --max_epoch 3", "train has no option --max_epoch; did you mean --max-epochs?"),
        ("errata --lr=3", "errata has no option --lr; see manualbp errata --help"),
        ("train --no-hope", "train has no option --no-hope; see manualbp train --help"),
        ("train --lr", "--lr: the value is missing"),
        ("train --lr fast", "--lr fast: expected a number"),
        ("train --lr=fast --quiet", "--lr fast: expected a number"),
        ("train --hidden 64 x", "--hidden 64 x: expected whole numbers"),
        ("train --batch-size 1.5", "--batch-size 1.5: expected a whole number"),
        ("train --model mpl", "--model mpl: did you mean mlp?"),
        (
            "bench --model transformer",
            "--model transformer: there are: logistic, maxout, mlp, residual",
        ),
        ("train --engine hand", "--engine hand: there are: autograd, lockstep, manual"),
        ("train --no-json yes", "train: yes is not the value of an option; see"),
        ("compare --dtype double", "--dtype double: there are: bfloat16, float32, float64"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "80", "300"])
def test_words_that_are_not_understood(
    words: str, message: str, columns: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert refused(here, *words.split()).startswith(message)


class Terminal(io.TextIOWrapper):
    """A stream as at a terminal, where help and mistakes are drawn in frames and colours."""

    def isatty(self) -> bool:
        return True


def test_a_mistake_is_one_line_at_a_terminal_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal(io.BytesIO(), "utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), "utf-8", write_through=True))
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["train", "--date", "iris"]) == 2
    said = err.buffer.getvalue().decode()
    assert said == "manualbp: train has no option --date; did you mean --data?\n"


def test_a_sentence_is_drawn_in_one_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would draw numbers and paths in it in others."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal(io.BytesIO(), "utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["compare", "--data", "iris", "--device", "cpu"]) == 0
    said = out.buffer.getvalue().decode()
    assert re.search(r"\x1b\[1;32mAll \d+ tensors agree\x1b\[0m", said)


# Numbers out of range ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        *("--max-epochs 0", "--max-epochs -1", "--batch-size -1", "--accumulate 0"),
        *("--hidden 0", "--hidden 8 -8", "--patience -1", "--seed -1", "--seed 4294967296"),
        *("--lr 0", "--lr -1", "--lr nan", "--lr inf", "--momentum 1", "--momentum nan"),
        *("--weight-decay -1", "--weight-decay nan", "--dropout 1", "--dropout nan"),
        *("--clip-norm 0", "--clip-norm nan", "--clip-value -1", "--l1 -1", "--l2 nan"),
        *("--min-delta -1", "--min-delta nan", "--label-smoothing 2", "--lockstep-limit 0"),
        *("--checkpoint-seconds -1", "--threads -1"),
    ],
)
def test_numbers_out_of_range(words: str, here: Path) -> None:
    option, *_ = words.split()
    assert re.match(rf"{option} is .*: it must be ", refused(here, "train", *words.split()))


def test_a_seed_out_of_range_for_compare(here: Path) -> None:
    for seed in (-1, 2**32):
        message = f"--seed is {seed}: it must be from 0 to 4294967295"
        assert refused(here, "compare", "--seed", seed) == message


# Data, losses and devices ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data irsi", "there is no data set 'irsi'; did you mean 'iris'? known are "),
        ("--data none.csv", "there is no data set 'none.csv'; known are "),
        ("--data iris --target kind", "target 'kind' names a column of a CSV file; iris is not"),
        ("--data iris --loss bce", "--loss bce separates 2 classes, but iris has 3: use --loss c"),
        ("--data diabetes --loss bce", "--loss bce needs classes, but the targets of diabetes "),
        ("--data diabetes --label-smoothing 0.1", "--label-smoothing belongs to --loss cross-e"),
        ("--monitor val_los", "--monitor val_los: with digits there are val_loss, val_accuracy, "),
        ("--data diabetes --monitor val_accuracy", "--monitor val_accuracy: with diabetes there "),
        ("--l1 1 --l2 1", "--l1 and --l2 exclude each other: choose one penalty"),
        ("--optimizer nesterov --momentum 0", "--momentum is 0.0: it must be more than 0 with "),
    ],
)
def test_settings_that_do_not_fit(words: str, message: str, here: Path) -> None:
    assert refused(here, "train", *words.split()).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,\n", r"line 3, column 'b': the value is missing"),
        ("a,b\nx,2\n3,4\n", r"line 2, column 'a': 'x' is text; expected numbers in this column"),
        ("a,b\n1,inf\n3,4\n", r"line 2, column 'b': 'inf' is not a finite number"),
        ("a,b\n" + 9 * "1,0\n", r".*class"),
        ("a,b\n1,0\n2,1\n", r".*"),
    ],
)
def test_a_csv_file_that_cannot_be_used(text: str, message: str, here: Path) -> None:
    (here / "bad.csv").write_text(text)
    assert re.match(rf"bad\.csv[,:] ?{message}", refused(here, "train", "--data", "bad.csv"))


def test_examples_that_no_model_takes(here: Path) -> None:
    np.savez(here / "images.npz", x=np.zeros((30, 8, 8)), t=np.arange(30) % 2)
    message = refused(here, "train", "--data", "images.npz")
    assert message.startswith("images.npz: array 'x' has shape (30, 8, 8); expected (N, I)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("verb", ["train", "compare"])
def test_cuda_where_there_is_none(verb: str, here: Path) -> None:
    message = "--device cuda: there is no CUDA device here; use --device cpu or auto"
    assert refused(here, verb, "--device", "cuda") == message


# Configurations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lrr": 1}', "c.json: unknown setting 'lrr'; did you mean lr?"),
        ('{"colour": 1}', "c.json: unknown setting 'colour'; there are: data, target, "),
        ('{"run_dir": "x"}', "c.json: unknown setting 'run_dir'; "),
        ('{"lr": "fast"}', 'c.json: lr is "fast"; expected a number or null'),
        ('{"hidden": 64}', "c.json: hidden is 64; expected a list of whole numbers"),
        ('{"model": "mpl"}', 'c.json: model is "mpl"; expected one of mlp, logistic, maxout, '),
        ('{"lr": NaN}', "--lr is nan: it must be more than 0"),
        ('{"lr": -1}', "--lr is -1: it must be more than 0"),
        ('{"lr": 1', "c.json is no valid JSON: line 1, column 9: "),
        ("[1]", 'c.json must hold a JSON object, {"name": value, ...}'),
    ],
)
def test_a_configuration_that_cannot_be_used(text: str, message: str, here: Path) -> None:
    (here / "c.json").write_text(text)
    assert refused(here, "train", "--config", "c.json").startswith(message)
    assert refused(here, "train", "--config=c.json").startswith(message)


def test_a_configuration_that_is_not_there(here: Path) -> None:
    message = refused(here, "train", "--config", "none.json")
    assert message == "cannot read none.json: No such file or directory"


def test_options_go_before_the_configuration(here: Path) -> None:
    settings = {"data": "xor", "max_epochs": 3, "hidden": [5], "patience": None, "lr": 1}
    (here / "c.json").write_text(json.dumps(settings))
    words = ("train", "--config", "c.json", "--max-epochs", 2, "--run-dir", "run", "--quiet")
    assert call(*words) == (0, "", "")
    saved = json.loads((here / "run" / "config.json").read_text())
    assert saved == {**TrainConfig().saved(), **settings, "max_epochs": 2}


def test_of_two_configurations_the_last_counts(here: Path) -> None:
    (here / "a.json").write_text('{"data": "irsi"}')
    (here / "b.json").write_text('{"data": "wien"}')
    assert "'wien'" in refused(here, "train", "--config", "a.json", "--config", "b.json")


# Run directories ---------------------------------------------------------------------------------


def test_a_directory_with_a_run_is_not_written_over(run: Path) -> None:
    message = refused(run.parent, "train", *IRIS, "--run-dir", run)
    assert message == (
        f"run directory {run} already holds a run: choose another, or --resume {run}"
    )


def test_a_directory_with_something_else_is_not_written_over(here: Path) -> None:
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.tex").write_text("mine")
    message = refused(here, "train", *IRIS, "--run-dir", here / "thesis")
    assert message == f"run directory {here / 'thesis'} is not empty: choose another"


@pytest.mark.parametrize("option", ["--run-dir", "--resume"])
def test_a_directory_in_use(option: str, run: Path) -> None:
    with RunDirectory.resume(run):
        if option == "--run-dir":
            (run / "config.json").rename(run / ".lock.json")  # as just before it is written
            (run / ".lock.json").unlink()
            for path in [p for p in run.iterdir() if p.name != ".lock"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        words = IRIS if option == "--run-dir" else ()
        message = refused(run.parent, "train", *words, option, run)
    assert message.startswith(f"run directory {run} is in use by another process: ")


def test_a_run_that_is_not_there(here: Path) -> None:
    message = refused(here, "train", "--resume", "none")
    assert message == "--resume none: there is no such run directory"
    (here / "empty").mkdir()
    message = refused(here, "train", "--resume", "empty")
    assert message == "there is no run to resume in empty: it has no config.json"


# Checkpoints -------------------------------------------------------------------------------------


@pytest.fixture
def last(run: Path) -> Path:
    return run / "last.pt"


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_checkpoint_that_is_truncated(size: int, last: Path) -> None:
    last.write_bytes(last.read_bytes()[:size])
    message = refused(last.parents[1], "train", "--resume", last.parent)
    assert message == f"{last} is truncated or damaged, or no checkpoint at all"


@pytest.mark.parametrize(
    "settings",
    [("--hidden", 5), ("--hidden", 4, 4), ("--model", "maxout"), ("--optimizer", "adam")],
    ids=str,
)
def test_a_checkpoint_of_another_run(settings: tuple[object, ...], last: Path) -> None:
    other = last.parents[1] / "other"
    assert call("train", *IRIS, *settings, "--run-dir", other).code == 0
    shutil.copy(other / "last.pt", last)
    message = refused(last.parents[1], "train", "--resume", last.parent)
    assert message.startswith(f"checkpoint {last} is of another model or run: ")


@pytest.mark.parametrize("engine", ["manual", "autograd", "lockstep"])
@pytest.mark.parametrize("other", ["manual", "autograd", "lockstep"])
def test_a_checkpoint_of_another_engine(engine: str, other: str, here: Path) -> None:
    if engine == other:
        return
    for name in (engine, other):
        words = (*IRIS, "--engine", name, "--run-dir", here / name)
        assert call("train", *words).code == 0
    shutil.copy(here / other / "last.pt", here / engine / "last.pt")
    message = refused(here, "train", "--resume", here / engine)
    assert "is of another model or run: " in message


def weights_and_more(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "weights": {**content["weights"], "more": torch.zeros(1)}}


def no_weights(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "weights"}


def a_list_of_weights(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "weights": [1, 2]}


def no_memory(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "memory": None}


def no_state_of_stopping(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "early_stopping": {}}


def another_format(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "format": "other"}


@pytest.mark.parametrize(
    "change",
    [
        weights_and_more,
        no_weights,
        a_list_of_weights,
        no_memory,
        no_state_of_stopping,
        another_format,
    ],
)
def test_a_checkpoint_that_was_tampered_with(change: Any, last: Path) -> None:
    torch.save(change(torch.load(last, weights_only=True)), last)
    assert str(last) in refused(last.parents[1], "train", "--resume", last.parent)


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["weights", "memory", "format", "best"])
def test_a_malicious_checkpoint_executes_nothing(place: str, last: Path) -> None:
    mark = last.parents[1] / "executed"
    content = torch.load(last, weights_only=True)
    torch.save({**content, place: Malice(mark)}, last)
    message = refused(last.parents[1], "train", "--resume", last.parent)
    assert message.startswith(f"checkpoint {last} was refused: ")
    assert not mark.exists()
    torch.load(last, weights_only=False)  # the malice is real
    assert mark.exists()
