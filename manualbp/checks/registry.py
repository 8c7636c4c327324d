"""Find every hand-written layer and loss with its twin and its cases, by reading the folders.

So a new layer needs two files, `manualbp/layers/NAME.py` and `reference/layers/NAME.py`, and every
check runs over it.
"""

from __future__ import annotations

from importlib import import_module
from inspect import getmembers, isabstract, isclass
from pkgutil import iter_modules
from types import ModuleType
from typing import cast

import manualbp.layers
import manualbp.losses
import reference.layers
import reference.losses
from manualbp.layers import AnyLayer, Layer
from manualbp.losses import AnyLoss, Loss
from reference.cases import Case, LossCase


def layer_cases() -> list[Case]:
    """Return the cases of all layers, family by family."""
    families = iter_modules(reference.layers.__path__)
    modules = [import_module(f"reference.layers.{family.name}") for family in families]
    return [case for module in modules for case in cast(list[Case], module.CASES)]


def loss_cases() -> list[LossCase]:
    """Return the cases of all losses."""
    return reference.losses.CASES


def layers() -> list[type[AnyLayer]]:
    """Return every layer class under manualbp/layers."""
    families = iter_modules(manualbp.layers.__path__)
    modules = [import_module(f"manualbp.layers.{family.name}") for family in families]
    return [cls for module in modules for cls in _classes(module, Layer)]


def losses() -> list[type[AnyLoss]]:
    """Return every loss class in manualbp/losses.py."""
    return _classes(manualbp.losses, Loss)


def find_cases(name: str) -> list[Case | LossCase]:
    """Return the cases of the layer or loss called `name`, or of all for "all"; may be empty."""
    cases = [*layer_cases(), *loss_cases()]
    return [case for case in cases if name in ("all", case_owner(case))]


def case_owner(case: Case | LossCase) -> str:
    """Return the class name of the layer or loss that the case is about."""
    return type(case.layer if isinstance(case, Case) else case.loss).__name__


def gaps() -> list[str]:
    """Return one line for each thing that is missing on one of the two sides; empty is good."""
    lines: list[str] = []
    for cls in [*layers(), *losses()]:
        path = cls.__module__.replace("manualbp.", "reference.", 1).replace(".", "/") + ".py"
        try:
            twin_side = import_module(cls.__module__.replace("manualbp.", "reference.", 1))
        except ModuleNotFoundError:
            lines.append(f"{cls.__name__} has no twin: the file {path} is missing")
            continue
        if not hasattr(twin_side, cls.__name__):
            lines.append(f"{cls.__name__} has no twin: {path} does not define it")
        elif cls.__name__ not in map(case_owner, cast(list[Case | LossCase], twin_side.CASES)):
            lines.append(f"{cls.__name__} has no case: CASES in {path} does not name it")
    by_hand = {family.name for family in iter_modules(manualbp.layers.__path__)}
    for family in iter_modules(reference.layers.__path__):
        if family.name not in by_hand:
            lines.append(f"reference/layers/{family.name}.py has no manualbp/layers counterpart")
    return lines


def _classes(module: ModuleType, base: type) -> list[type]:
    return [
        cls
        for _, cls in getmembers(module, isclass)
        if issubclass(cls, base) and not isabstract(cls) and cls.__module__ == module.__name__
    ]
