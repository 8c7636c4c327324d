"""A user's own file: what is there under a name, `file.py:name` or `package.module:name`.

The code of the file is executed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from manualbp.checks.adapter import HandWritten
from manualbp.errors import UsageError, did_you_mean
from manualbp.layers import AnyLayer, Layer, Residual, Sequential
from manualbp.training.data import load

ROWS = 64
"""Rows of the batch on which a model is examined."""


def load_object(where: str) -> Any:
    """Execute the file or import the module, and return what `name` is there.

    Raises UsageError where there is no such file or name, or where the file fails.
    """
    return load_from_module(where)[1]


def load_from_module(where: str) -> tuple[ModuleType, Any]:
    """Return the module as well, which is executed once."""
    source, _, name = where.rpartition(":")
    if not source or not name:
        raise UsageError(f"{where}: expected file.py:NAME or package.module:NAME")
    with execution(source):
        module = _from_file(Path(source)) if source.endswith(".py") else _imported(source)
    names = [known for known in vars(module) if not known.startswith("_")]
    if not hasattr(module, name):
        raise UsageError(f"{source} has no {name}; {did_you_mean(name, names)}")
    return module, getattr(module, name)


def load_model(where: str, seed: int) -> nn.Module:
    """Return the torch.nn model that `where` names, or that the function there returns.

    torch's random numbers, for its weights, start from `seed`. Raises UsageError, as `load_object`
    does, and where it is no torch model.
    """
    _, model = load_network(where, seed)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{where} is a {type(model).__name__} of manualbp, which has its twin; "
            "expected a torch.nn.Module or a function of one"
        )
    return model


def load_network(where: str, seed: int) -> tuple[ModuleType, nn.Module | AnyLayer]:
    """Return the torch.nn model or layer of manualbp that `where` names, or that the function there
    returns; and the module that it is from.
    """
    cast(Any, torch).manual_seed(seed)
    module, found = load_from_module(where)
    if callable(found) and not isinstance(found, nn.Module):
        with execution(f"{where}()"):
            found = found()
    if not isinstance(found, (nn.Module, Layer)):
        kind = type(found).__name__
        raise UsageError(f"{where} is a {kind}; expected a torch.nn.Module or a function of one")
    return module, cast("nn.Module | AnyLayer", found)


def example_inputs(module: ModuleType, name: str) -> Callable[[], Any] | None:
    """Return the function of a user's file that returns inputs for what has this name there."""
    functions = (f"{name}_inputs", f"{name.lower()}_inputs", "example_inputs")
    found = (getattr(module, function, None) for function in functions)
    return next(filter(callable, found), None)


def rows_for(model: AnyLayer | nn.Module, data: str | None, seed: int) -> Tensor:
    """Return rows (N, I) in float64 for a model: the first of the data set, or random ones.

    Random ones have as many numbers as the model's first layer with `in_features` takes.
    """
    if data is not None:
        split = load(data, seed=seed, dtype=torch.float64, device=torch.device("cpu")).train
        return split.x[:ROWS]
    generator = torch.Generator().manual_seed(seed)
    width = _in_features(model) or 8
    return torch.randn(ROWS, width, generator=generator, dtype=torch.float64)


def _in_features(model: AnyLayer | nn.Module) -> int | None:
    """Return how many inputs the first layer takes that says so."""
    if isinstance(model, HandWritten):
        return _in_features(model.layer)
    own = getattr(model, "in_features", None)
    if isinstance(own, int):
        return own
    inside: list[Any] = []
    if isinstance(model, nn.Module):
        inside = [*model.children()]
    elif isinstance(model, Sequential):
        inside = [*model.layers]
    elif isinstance(model, Residual):
        inside = [model.inner]
    return next(filter(None, map(_in_features, inside)), None)


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
