"""A user's own file: what is there under a name, `file.py:name` or `package.module:name`.

The code of the file is executed.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from manualbp.errors import UsageError, did_you_mean
from manualbp.layers import AnyLayer, Residual, Sequential
from manualbp.training.data import load

ROWS = 64
"""Rows of the batch on which a model is examined."""


def load_object(where: str) -> Any:
    """Execute the file or import the module, and return what `name` is there.

    Raises UsageError where there is no such file or name, or where the file fails.
    """
    source, _, name = where.rpartition(":")
    if not source or not name:
        raise UsageError(f"{where}: expected file.py:NAME or package.module:NAME")
    with execution(source):
        module = _from_file(Path(source)) if source.endswith(".py") else _imported(source)
    names = [known for known in vars(module) if not known.startswith("_")]
    if not hasattr(module, name):
        raise UsageError(f"{source} has no {name}; {did_you_mean(name, names)}")
    return getattr(module, name)


def load_model(where: str) -> nn.Module:
    """Return the torch.nn model that `where` names, or that the function there returns.

    Raises UsageError, as `load_object` does, and where it is no model.
    """
    found = load_object(where)
    if callable(found) and not isinstance(found, nn.Module):
        with execution(f"{where}()"):
            found = found()
    if not isinstance(found, nn.Module):
        kind = type(found).__name__
        raise UsageError(f"{where} is a {kind}; expected a torch.nn.Module or a function of one")
    return found


def rows_for(layer: AnyLayer, data: str | None, seed: int) -> Tensor:
    """Return rows (N, I) in float64 for a model: the first of the data set, or random ones.

    Random ones have as many numbers as the model's first layer with `in_features` takes.
    """
    if data is not None:
        split = load(data, seed=seed, dtype=torch.float64, device=torch.device("cpu")).train
        return split.x[:ROWS]
    generator = torch.Generator().manual_seed(seed)
    width = _in_features(layer) or 8
    return torch.randn(ROWS, width, generator=generator, dtype=torch.float64)


def _in_features(layer: AnyLayer) -> int | None:
    """Return how many inputs the first layer takes that says so."""
    if isinstance(layer, Sequential):
        return next(filter(None, map(_in_features, layer.layers)), None)
    if isinstance(layer, Residual):
        return _in_features(layer.inner)
    return getattr(layer, "in_features", None)


@contextmanager
def execution(what: str) -> Generator[None]:
    """Run a user's code: whatever it raises becomes a UsageError in one line.

    What it prints goes to standard error, because standard output is for our own results.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    # It may raise anything, or leave the program, which must not look like success.
    except (Exception, SystemExit) as error:
        said = " ".join([f"{type(error).__name__}:", *str(error).split()]).removesuffix(":")
        frames = [frame for frame in extract_tb(error.__traceback__) if _is_of_user(frame.filename)]
        where = f"line {frames[-1].lineno} of {Path(frames[-1].filename).name}: " if frames else ""
        raise UsageError(f"{what} fails: {where}{said}") from error


def _is_of_user(file: str) -> bool:
    """Return whether a file is neither of ours nor of a library."""
    own = Path(__file__).parents[1]
    return not Path(file).is_relative_to(own) and "site-packages" not in file and "<" not in file


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # As when Python runs the file: it finds its neighbours, and its classes find their module.
    sys.path.insert(0, str(path.parent.resolve()))
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
        if before is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = before
    return module


def _imported(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return import_module(name)
    finally:
        sys.path.pop(0)
