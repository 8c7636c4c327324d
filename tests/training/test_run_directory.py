import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from manualbp.errors import UsageError
from manualbp.training.run_directory import RunDirectory, default_path, read_json, write_json


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def a_run(path: Path) -> Path:
    with RunDirectory.create(path) as run:
        write_json(run.config, {"seed": 0})
    return path


# create


def test_create_makes_the_directory_and_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with RunDirectory.create(path) as run:
        assert path.is_dir()
        assert run.path == path
    assert names(path) == {".lock"}


def test_where_things_lie(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        places = [run.config, run.result, run.train, run.val, run.best, run.last]
    assert [str(place.relative_to(run.path)) for place in places] == [
        "config.json",
        "result.json",
        "train",
        "val",
        "best.pt",
        "last.pt",
    ]


def test_create_takes_an_empty_directory(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path) as run:
        write_json(run.config, {})


def test_create_refuses_an_earlier_run(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    message = f"run directory {path} already holds a run: choose another, or --resume {path}"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        RunDirectory.create(path)
    assert read_json(path / "config.json") == {"seed": 0}


def test_create_refuses_a_directory_with_other_things_and_leaves_nothing_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty: choose another$"):
        RunDirectory.create(tmp_path)
    assert names(tmp_path) == {"thesis.tex"}


def test_create_takes_what_a_run_killed_before_its_configuration_has_left(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "config.json.tmp").write_text('{"seed"')
    with RunDirectory.create(tmp_path) as run:
        write_json(run.config, {"seed": 1})
    assert names(tmp_path) == {".lock", "config.json"}


@pytest.mark.parametrize("inside", ["", "run", "deep/run"])
def test_create_refuses_a_file_and_a_path_under_one(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / inside
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(path)
    reason = "Not a directory" if inside else "File exists"
    assert str(caught.value) == f"cannot use {path} as a run directory: {reason}; choose another"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def unwritable() -> Iterator[Path]:
    # Root may write everywhere, so it is somebody else for the time of the test.
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            yield path
        finally:
            if root:
                os.seteuid(0)
            path.chmod(0o755)


@pytest.mark.parametrize("inside", ["", "run"])
def test_create_refuses_an_unwritable_place(unwritable: Path, inside: str) -> None:
    path = unwritable / inside
    message = f"cannot use {path} as a run directory: Permission denied; choose another"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        RunDirectory.create(path)


# resume


def test_resume_takes_a_run_and_clears_what_a_kill_has_left(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    for name in ("last.pt", "last.pt.tmp", "best.pt.tmp", "result.json.tmp", "mine.tmp"):
        (path / name).write_text(name)
    with RunDirectory.resume(path) as run:
        assert run.path == path
        assert names(path) == {".lock", "config.json", "last.pt", "mine.tmp"}
    assert (path / "last.pt").read_text() == "last.pt"


def test_resume_takes_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    with RunDirectory.resume(path) as run:
        assert not run.last.exists()


@pytest.mark.parametrize("there", ["nothing", "a file", "an empty directory", "other things"])
def test_resume_refuses_what_is_no_run(tmp_path: Path, there: str) -> None:
    path = tmp_path / "run"
    if there == "a file":
        path.touch()
    elif there != "nothing":
        path.mkdir()
        if there == "other things":
            (path / "last.pt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"^there is no run to resume in .*/run: it has no config"):
        RunDirectory.resume(path)
    assert sorted(tmp_path.rglob("*")) == before


# The lock

IN_USE = "is in use by another process: wait for it, or choose another$"


def test_a_held_directory_is_nobody_elses_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = RunDirectory.create(path)
    with pytest.raises(UsageError, match=IN_USE):
        RunDirectory.create(path)
    write_json(first.config, {})
    with pytest.raises(UsageError, match=IN_USE):
        RunDirectory.resume(path)
    first.close()
    second = RunDirectory.resume(path)
    with pytest.raises(UsageError, match=IN_USE):
        RunDirectory.resume(path)
    second.close()


def test_a_held_directory_keeps_its_temporary_files(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    with RunDirectory.resume(path) as run:
        (path / "last.pt.tmp").write_text("being written")
        with pytest.raises(UsageError, match=IN_USE):
            RunDirectory.resume(path)
        assert (run.path / "last.pt.tmp").read_text() == "being written"


def test_an_error_lets_go_of_the_lock(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    # Under a name, so that it is not the garbage collector that lets go.
    with pytest.raises(ZeroDivisionError), RunDirectory.resume(path) as first:
        _ = 1 / 0
    with RunDirectory.resume(path) as second:
        assert first is not second


HOLDS_UNTIL_KILLED = """
import sys, threading
from pathlib import Path
from manualbp.training.run_directory import RunDirectory, write_json

run = RunDirectory.create(Path(sys.argv[1]))
write_json(run.config, {"pid": 1})
print("held", flush=True)
threading.Event().wait()
"""


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLDS_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UsageError, match=IN_USE):
                RunDirectory.resume(path)
        finally:
            holder.send_signal(signal.SIGKILL)
    with RunDirectory.resume(path) as run:
        assert read_json(run.config) == {"pid": 1}


# default_path

NOW = datetime(2026, 3, 1, 5, 7, 2)


def path_for(root: Path, data: str = "digits", now: datetime = NOW) -> Path:
    return default_path(root, data=data, model="mlp", engine="manual", seed=0, now=now)


def test_default_path(tmp_path: Path) -> None:
    path = path_for(tmp_path / "my" / "runs")
    assert path == tmp_path / "my" / "runs" / "2026-03-01_05-07-02_digits_mlp_manual_seed0"
    with RunDirectory.create(path) as run:
        write_json(run.config, {})


def test_default_paths_sort_by_time(tmp_path: Path) -> None:
    times = [
        datetime(2026, 3, 1, 5, 7, 2),
        datetime(2026, 3, 1, 5, 7, 10),
        datetime(2026, 3, 1, 5, 10, 0),
        datetime(2026, 3, 1, 10, 0, 0),
        datetime(2026, 3, 1, 13, 0, 0),
        datetime(2026, 3, 10, 0, 0, 0),
        datetime(2026, 10, 1, 0, 0, 0),
        datetime(2027, 1, 1, 0, 0, 0),
    ]
    paths = [path_for(tmp_path, now=now) for now in times]
    assert sorted(paths) == paths


def test_a_taken_default_path_gets_a_number(tmp_path: Path) -> None:
    first, second, third = (path_for(tmp_path) for _ in range(3))
    assert second.name == first.name + "-2"
    assert third.name == first.name + "-3"


def test_a_file_with_the_default_name_is_left_alone(tmp_path: Path) -> None:
    name = "2026-03-01_05-07-02_digits_mlp_manual_seed0"
    (tmp_path / name).write_text("mine")
    assert path_for(tmp_path).name == name + "-2"
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("data", ["/data/my/wine.csv", "wine.npz", "../wine.csv"])
def test_a_data_file_counts_by_its_name(tmp_path: Path, data: str) -> None:
    path = path_for(tmp_path, data=data)
    assert path == tmp_path / "2026-03-01_05-07-02_wine_mlp_manual_seed0"


def test_a_root_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "none")
    for name, reason in (("file", "File exists"), ("dangling", "File exists")):
        root = tmp_path / name
        with pytest.raises(UsageError, match=f"cannot use {root}/.* as a run directory: {reason}"):
            path_for(root)


# JSON


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    value = {"run_dir": "löss/\udcff", "test_loss": 0.1 + 0.2, "best_epoch": None, "hidden": [128]}
    write_json(path, {"old": True})
    write_json(path, value)
    assert read_json(path) == value
    assert list(read_json(path)) == list(value)
    assert path.read_text().endswith("}\n")
    assert names(tmp_path) == {"result.json"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x")])
def test_what_json_has_no_word_for_leaves_the_old_file(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": True})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"first": 1, "loss": value})
    assert json.loads(path.read_text()) == {"old": True}
    assert names(tmp_path) == {"result.json"}


def test_json_is_renamed_into_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": True})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match=r"cannot write .*: No space left on device"):
        write_json(path, {"old": False})
    assert read_json(path) == {"old": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "seed": 1\n  "lr": 2\n}', r"is no valid JSON: line 3, column 3: Expecting ','"),
        (b"", "is no valid JSON: line 1, column 1: Expecting value"),
        (b'{"seed": ', "is no valid JSON: line 1, column 10: Expecting value"),
        (b'{"seed": "\xff"}', "is no valid JSON: it is not UTF-8 text"),
        (b"[1, 2]", "must hold a JSON object"),
        (b"null", "must hold a JSON object"),
    ],
)
def test_broken_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_json_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(UsageError, match=f"^cannot read {path}: No such file or directory$"):
        read_json(path)
