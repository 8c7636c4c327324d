"""What hand-written code may be made of: tensor operations from a list, and imports from a list.

The operations are recorded while a pass runs, so nothing hides behind a name; the imports are read
from the sources.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ALLOWED_OPERATIONS: Mapping[str, frozenset[str]] = {
    "new tensors: no derivative": frozenset(
        {
            "_to_copy",
            "bernoulli_",
            "empty_like",
            "new_full",
            "new_ones",
            "new_zeros",
            "scalar_tensor",
            "zero_",
            "zeros_like",
        }
    ),
    "the same numbers in another shape or place": frozenset(
        {
            "_unsafe_view",
            "expand",
            "gather",
            "permute",
            "scatter_",
            "select",
            "squeeze_",
            "transpose",
            "unsqueeze",
            "view",
        }
    ),
    "comparisons: 0, 1 or a choice between two numbers": frozenset(
        {"eq", "ge", "gt", "heaviside", "ne", "sign", "where"}
    ),
    "arithmetic of single numbers, and bounds": frozenset(
        {
            "abs",
            "add",
            "add_",
            "addcmul",
            "addcmul_",
            "clamp",
            "clamp_",
            "clamp_max",
            "clamp_min",
            "div",
            "lerp",
            "lerp_",
            "mul",
            "mul_",
            "neg",
            "reciprocal",
            "rsub",
            "sub",
        }
    ),
    "functions of one number with a textbook derivative": frozenset(
        {"erf", "exp", "expm1", "log", "log1p", "sigmoid", "sqrt", "tanh"}
    ),
    "sums, running sums and the largest of several numbers": frozenset(
        {"amax", "cumsum", "scatter_add_", "sum"}
    ),
    "products of matrices and vectors": frozenset(
        {"addmm", "addmm_", "addmv_", "bmm", "dot", "mm"}
    ),
}
"""The operations of hand-written passes by kind, under aten's names.

None of them carries the derivative of a layer: a sigmoid is here as a function, its derivative
(`sigmoid_backward`) is not; a product of matrices is here, a convolution is not.
"""


class Recorder(TorchDispatchMode):
    """Record the operations that run inside the `with` block: how often, and on which devices."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler, a second long, to tell it to leave the recorder alone.
        return False

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]  untyped in torch
        self.operations: dict[str, set[str]] = {}
        """The device types on which results lay, by operation: {"mm": {"cuda"}}."""
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and take its name down."""
        result = func(*args, **(kwargs or {}))
        namespace, name = func.name().split("::")
        if namespace != "prim":  # questions about a tensor, such as its device
            operation = name.partition(".")[0]
            self.counts[operation] += 1
            devices = self.operations.setdefault(operation, set())
            devices.update(tensor.device.type for tensor in _tensors(result))
        return result

    def forbidden(self) -> list[str]:
        """Return the operations that are not on the list, in order."""
        return sorted(self.operations.keys() - frozenset().union(*ALLOWED_OPERATIONS.values()))


def _tensors(result: object) -> list[Tensor]:
    items = cast(Sequence[object], result) if isinstance(result, (tuple, list)) else [result]
    return [item for item in items if isinstance(item, Tensor)]


AUTOGRAD = ("torch.nn", "torch.autograd", "torch.func", "torch.optim", "reference")
"""What only manualbp/checks may import."""

AUTOGRAD_NAMES = {"enable_grad", "grad_fn", "requires_grad", "requires_grad_", "retain_grad"}
"""Attributes and keywords that no hand-written code needs."""

_TRAINING = (
    "recording",
    "errors",
    "initializers",
    "layers",
    "losses",
    "models",
    "optimizers",
    "parameters",
    "schedules",
    "training",
)

MAY_IMPORT: Mapping[str, tuple[str, ...]] = {
    "__init__": ("checks", "recording"),
    "errors": (),
    "recording": (),
    "parameters": (),
    "initializers": (),
    "optimizers": (),
    "schedules": (),
    "layers": ("initializers", "parameters"),
    "losses": ("parameters",),
    "models": ("initializers", "layers"),
    "training": _TRAINING,
    "checks": _TRAINING,
    "lectures": (),
    "perceptron": ("errors", "layers", "parameters"),
    "moments": ("layers", "losses", "parameters"),
    "explain": (*_TRAINING, "checks", "lectures", "moments", "perceptron"),
    "cli": (*_TRAINING, "checks", "explain"),
    "__main__": ("cli",),
}
"""Imports run one way: what each file or folder of manualbp may import of manualbp, besides itself.
"""


def import_faults(package: Path) -> list[str]:
    """Return a line for each import or use in the folder `manualbp` that breaks a rule above."""
    return [line for path in _sources(package) for line in _faults_of_manualbp(package, path)]


def reference_import_faults(package: Path) -> list[str]:
    """Return a line for each place in the folder `reference` that could call a hand-written pass.

    It may name hand-written layers, losses and update rules, as descriptions.
    """
    allowed = ("manualbp.initializers", "manualbp.layers", "manualbp.losses", "manualbp.optimizers")
    lines: list[str] = []
    for path in _sources(package):
        where, tree = _parsed(package, path)
        for number, name in _imports(tree):
            if _within(name, ("manualbp",)) and not _within(name, allowed):
                lines.append(f"{where}:{number} imports {name}, expected: {', '.join(allowed)}")
        for method, _ in _method_calls(tree):
            if method.attr in ("forward", "backward", "backward_parameters"):
                lines.append(f"{where}:{method.lineno} calls .{method.attr}(), a hand-written pass")
    return lines


def _faults_of_manualbp(package: Path, path: Path) -> list[str]:
    where, tree = _parsed(package, path)
    area = path.relative_to(package).parts[0].removesuffix(".py")
    if area not in MAY_IMPORT:
        return [f"{where} has no line in MAY_IMPORT that says what it may import"]
    lines: list[str] = []
    allowed = tuple(f"manualbp.{name}" for name in (area, *MAY_IMPORT[area]))
    for number, name in _imports(tree):
        if name.startswith(".") or (_within(name, ("manualbp",)) and not _within(name, allowed)):
            lines.append(f"{where}:{number} imports {name}, expected: {', '.join(allowed)}")
    if area == "checks":
        return lines
    uses = [*_imports(tree), *_dotted_names(tree)]
    lines += [f"{where}:{n} uses {name}" for n, name in uses if _within(name, AUTOGRAD)]
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else None
        name = node.arg if isinstance(node, ast.keyword) else name
        if isinstance(node, (ast.Attribute, ast.keyword)) and name in AUTOGRAD_NAMES:
            lines.append(f"{where}:{node.lineno} uses {name}")
    for method, arguments in _method_calls(tree):
        if method.attr == "backward" and not arguments:  # a layer's takes some
            lines.append(f"{where}:{method.lineno} calls autograd's .backward()")
    return lines


def _sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def _parsed(package: Path, path: Path) -> tuple[str, ast.Module]:
    return str(path.relative_to(package.parent)), ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, "torch.nn") for `import torch.nn` and for `from torch import nn`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def _dotted_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, "torch.nn.Linear") for every name with dots that begins at a plain name."""
    for node in ast.walk(tree):
        parts: list[str] = []
        root: ast.expr | None = node if isinstance(node, ast.Attribute) else None
        while isinstance(root, ast.Attribute):
            parts.append(root.attr)
            root = root.value
        if isinstance(root, ast.Name):
            yield root.lineno, ".".join([root.id, *reversed(parts)])


def _method_calls(tree: ast.Module) -> Iterator[tuple[ast.Attribute, int]]:
    """Yield the method of every call of one, and the number of its arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func, len(node.args) + len(node.keywords)


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)
