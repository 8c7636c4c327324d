"""The directory of a run: its name, what lies where, and the lock that keeps others out."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from manualbp.errors import UsageError
from manualbp.training.checkpoint import replace_file, temporary_path

LOCK = ".lock"
EXPERIMENT = "experiment.json"
"""In a directory whose directories are the runs of one experiment: what it is, and the results."""


class RunDirectory:
    """A directory that belongs to one run, and from `create` or `resume` to `close` to one process.

    The lock is the operating system's: it ends with the process, however that ends. Works in a
    `with` statement.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK)

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make the directory, with its parents, and hold it; an empty one will do too.

        Raises UsageError where there is something already, or it cannot be made or written to.
        """
        run = cls(path)
        with _named_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            present = set(path.iterdir())
        if run.config in present:
            raise UsageError(
                f"run directory {path} already holds a run: choose another, or --resume {path}"
            )
        # These are left by a process that was killed before it had written its configuration.
        if present - {path / LOCK, temporary_path(run.config)}:
            raise UsageError(f"run directory {path} is not empty: choose another")
        with _named_errors(path):
            run._lock.acquire(timeout=0)
        return run

    @classmethod
    def resume(cls, path: Path) -> RunDirectory:
        """Hold the directory of an earlier run. It has a configuration; a checkpoint only perhaps.

        Raises UsageError where there is no run, or it is in use, or it cannot be written to.
        """
        run = cls(path)
        with _named_errors(path):
            if not run.config.is_file():
                raise UsageError(f"there is no run to resume in {path}: it has no config.json")
            run._lock.acquire(timeout=0)
            # With the lock ours, nobody is about to rename these: a killed process left them.
            for file in (run.config, run.result, run.best, run.last):
                temporary_path(file).unlink(missing_ok=True)
        return run

    def close(self) -> None:
        """Let other processes have the directory."""
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def trial(self) -> str:
        """The run's name among others: that of the directory, after that of its experiment.

        The folds of a cross-validation, EXPERIMENT/lr=0.1/fold=2, share one, EXPERIMENT/lr=0.1.
        """
        path = self.path.resolve()
        for experiment in (path.parent, path.parent.parent):
            if (experiment / EXPERIMENT).is_file():
                return f"{experiment.name}/{path.relative_to(experiment).parts[0]}"
        return path.name

    @property
    def config(self) -> Path:
        """The resolved configuration. It is what makes the directory a run: written first."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """What the run reached and why it stopped, written last."""
        return self.path / "result.json"

    @property
    def experiment(self) -> Path:
        """What an experiment is about and came to, in a directory of several runs."""
        return self.path / EXPERIMENT

    @property
    def train(self) -> Path:
        """TensorBoard's events of the training split."""
        return self.path / "train"

    @property
    def val(self) -> Path:
        """TensorBoard's events of the validation split."""
        return self.path / "val"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "last.pt"


def default_path(
    root: Path, *, data: str, model: str, engine: str, seed: int, now: datetime
) -> Path:
    """Return a path such as ROOT/2026-11-21_05-17-22_digits_mlp_manual_seed0, where it has made an
    empty directory.

    Names sort by time. `data` is the name of a data set, or the path of a file, which counts
    without its directory and extension.

    Raises UsageError where it cannot be made.
    """
    return new_directory(root, f"{Path(data).stem}_{model}_{engine}_seed{seed}", now)


def new_directory(root: Path, name: str, now: datetime) -> Path:
    """Return a path such as ROOT/2026-11-21_05-17-22_NAME, where it has made an empty directory:
    two runs that start in the same second must not get the same one.

    Where the name is taken it gets the suffix -2, -3, ...

    Raises UsageError where it cannot be made.
    """
    name = f"{now:%Y-%m-%d_%H-%M-%S}_{name}"
    path, number = root / name, 1
    with _named_errors(path):
        root.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                path = root / f"{name}-{number}"
            else:
                return path


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as JSON, all or nothing as `replace_file` does.

    Raises ValueError for NaN and ±infinity, which JSON has no word for: None says that there is no
    number. Raises UsageError where the file cannot be written.
    """
    text = json.dumps(dict(value), indent=2, allow_nan=False) + "\n"
    replace_file(path, text.encode())


def json_number(value: float) -> float | None:
    """Return the value, or None, JSON's null, for NaN and infinity."""
    return value if isfinite(value) else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises UsageError where it cannot be read, with line and column where it is not JSON, and where
    it holds something else than an object.
    """
    try:
        value: object = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{path} is no valid JSON: {where}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no valid JSON: it is not UTF-8 text") from error
    if not isinstance(value, dict):
        raise UsageError(f'{path} must hold a JSON object, {{"name": value, ...}}')
    return cast("dict[str, Any]", value)


@contextmanager
def _named_errors(path: Path) -> Generator[None, None, None]:
    """Turn what the operating system refuses into a UsageError that names the run directory."""
    try:
        yield
    except Timeout as error:
        raise UsageError(
            f"run directory {path} is in use by another process: wait for it, or choose another"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot use {path} as a run directory: {error.strerror}; choose another"
        ) from error
