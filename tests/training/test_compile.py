"""--compile: forward, backward and update in one program, with the numbers of the eager step.

Here the program runs on torch's kernels (the backend "aot_eager"), so that no C++ compiler is
needed: what is tested is that the step can be traced whole, and that what was traced stays right.
One test makes machine code, where there is a compiler.

This file is also the program that does so, because torch.compile cannot trace the checks of shapes
which tests put around every pass.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from manualbp.checks.agreement import relative_error
from manualbp.errors import UsageError
from manualbp.losses import CrossEntropyLoss, Loss, MSELoss, Penalty
from manualbp.models import build
from manualbp.optimizers import SGD, Adam, AdamW, LookAheadNesterov, RMSprop
from manualbp.parameters import Parameters
from manualbp.training.compiled import Compiled
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep

ROOT = Path(__file__).parents[2]

CASES: Mapping[str, Mapping[str, Any]] = {
    "momentum and weight decay": {"rule": SGD(0.1, 0.9, weight_decay=0.01)},
    "look-ahead, residual": {"rule": LookAheadNesterov(0.1, 0.9), "model": "residual"},
    "penalty and clipping, maxout": {
        "rule": RMSprop(0.01, momentum=0.9),
        "model": "maxout",
        "penalty": Penalty(0.01),
        "clip_norm": 0.5,
    },
    "adamw, squared error, logistic": {"rule": AdamW(), "loss": MSELoss(), "model": "logistic"},
    "mixed precision": {"rule": SGD(0.1, 0.9), "rounded_to": torch.bfloat16},
}

ROWS = [8, 8, 3, 8, 5, 3, 8]


def trained(
    compiled: bool,
    *,
    rule: Any,
    model: Any = "mlp",
    loss: Loss[Any] = CrossEntropyLoss(None, None),  # noqa: B008  it is frozen
    rounded_to: torch.dtype | None = None,
    sizes: Sequence[int] = ROWS,
    **settings: Any,
) -> list[Tensor]:
    """Return the outputs of updates on changing data with changing rates, then all that changed."""
    net = build(model, 6, 4, hidden=(8, 8))
    dtype = torch.float32 if rounded_to else torch.float64
    params = net.parameters(torch.Generator().manual_seed(0), dtype=dtype)
    params = Parameters(params.shapes, params.flat, rounded_to=rounded_to)
    step = TrainingStep(net, loss, rule, **settings)
    engine = ManualEngine(step, params, torch.Generator(), recorded=False, compiled=compiled)
    engine.plan([rule.lr / (1 + i) for i in range(len(sizes))])
    data = torch.Generator().manual_seed(2)
    found: list[Tensor] = []
    with engine.context():
        for rows in sizes:
            x = torch.randn(6, rows, generator=data, dtype=dtype).T  # not contiguous
            target = torch.randint(0, 4, (rows,), generator=data)
            if isinstance(loss, MSELoss):
                target = torch.randn(4, rows, generator=data, dtype=dtype).T
            found.append(engine.step(x, target).clone())
    return [*found, params.flat, *engine.state.values()]


def programs_and_agreement(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operations of each program that torch.compile makes, and what comes of updates
    some of which it makes, and some a recording.

    A step that takes more than one program cannot be compiled at all: the engine asks for that.
    """
    from torch._dynamo.backends.debugging import aot_eager  # two seconds, for this program only

    programs: list[list[str]] = []

    def on_kernels(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        calls = [node for node in graph.graph.nodes if node.op in ("call_function", "call_method")]
        programs.append([getattr(node.target, "__name__", node.target) for node in calls])
        program = aot_eager(graph, inputs)
        return lambda values: program(*values)

    asked: list[bool] = []
    right = torch.compile

    def compiled(function: Any, **options: Any) -> Any:
        asked.append(options["fullgraph"])
        return right(function, **options)

    with (
        mock.patch("manualbp.training.compiled.machine_code", on_kernels),
        mock.patch("torch.compile", compiled),
    ):
        ours = trained(True, **case)
    return {"programs": programs, "asked": asked, **agreement(ours, trained(False, **case))}


def refusal() -> str:
    """Return what is said of a step that reaches a tensor and a view of it."""
    whole = torch.zeros(2)
    part = whole[:1]

    def step(x: Tensor) -> Tensor:
        whole.add_(x)
        return part * 2

    with pytest.raises(ValueError, match="memory") as refused:
        Compiled(step, others=step)(torch.ones(2))
    return str(refused.value)


def no_compiler() -> str:
    """Return what is said where torch's compiler fails."""
    failure = RuntimeError("No working C++ compiler found\nin many places")
    with (
        mock.patch("manualbp.training.compiled.machine_code", side_effect=failure),
        pytest.raises(UsageError) as refused,
    ):
        Compiled(torch.neg, others=torch.neg)(torch.ones(2))
    return str(refused.value)


def agreement(ours: list[Tensor], eager: list[Tensor]) -> dict[str, Any]:
    return {
        "errors": [relative_error(a, b) for a, b in zip(ours, eager, strict=True)],
        "moved": not torch.equal(eager[0], eager[1]),
    }


def machine_code_and_agreement() -> dict[str, Any]:
    """Return what comes out of machine code, of a net with small products and larger ones; and
    whether that was compiled again for the same step, and for one with another number in it.
    """
    case: dict[str, Any] = {"rule": Adam(0.01), "loss": MSELoss(), "sizes": [2, 2, 2, 2]}
    first = trained(True, **case)
    with mock.patch("torch._inductor.aoti_compile_and_package") as compiler:
        again = trained(True, **case)
        same = compiler.call_count
        compiler.side_effect = RuntimeError("compiled anew")
        with pytest.raises(UsageError, match="compiled anew"):
            trained(True, **case | {"rule": Adam(0.01, eps=1e-7, betas=(0.8, 0.999))})
    return agreement(first, trained(False, **case)) | {
        "compiled again": same,
        "same numbers": all(map(torch.equal, first, again)),
    }


def said(*arguments: str, **variables: str) -> dict[str, Any]:
    """Return what this file says as a program."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, __file__, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return said()


@pytest.mark.parametrize("case", CASES)
def test_the_whole_step_is_one_program_with_the_numbers_of_the_eager_step(
    case: str, found: dict[str, Any]
) -> None:
    outcome = found[case]
    assert outcome["asked"] == [True]
    assert outcome["moved"]
    # Not to the last bit: torch.compile makes a multiplication and an addition one operation.
    assert max(outcome["errors"]) < (1e-3 if case == "mixed precision" else 1e-13)
    # For the first size of a batch. No other data, no other learning rate takes a new one.
    (calls,) = outcome["programs"]
    layers = 1 if "logistic" in case else 3
    products = sum(calls.count(name) for name in ("addmm", "addmm_", "matmul"))
    assert products >= 2 * layers  # both passes are in it


def test_tensors_that_share_memory_are_refused(found: dict[str, Any]) -> None:
    # The program would read the part before or after the whole is changed, as it comes.
    assert "two tensors in one memory" in found["refused"]


def test_a_compiler_that_fails_is_told_of_in_one_line(found: dict[str, Any]) -> None:
    assert found["no compiler"] == (
        "torch.compile fails here: No working C++ compiler found; mend that, or train without "
        "--compile"
    )


def test_a_resumed_run_compiles_the_usual_batch_even_if_it_begins_with_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or else it would not have the numbers of the run that was never interrupted."""
    compiled: list[int] = []

    def first(self: Compiled, arguments: Sequence[Tensor]) -> Tensor:
        compiled.append(len(arguments[0]))
        return self._others(*arguments)

    monkeypatch.setattr(Compiled, "_first", first)

    def engine() -> ManualEngine:
        net = build("mlp", 6, 4, hidden=(8,))
        params = net.parameters(torch.Generator().manual_seed(0))
        step = TrainingStep(net, CrossEntropyLoss(), SGD(0.1))
        return ManualEngine(step, params, torch.Generator(), compiled=True)

    def update(trained: ManualEngine, rows: int) -> None:
        trained.plan([0.1])
        trained.step(torch.zeros(rows, 6), torch.zeros(rows, dtype=torch.int64))

    killed, resumed = engine(), engine()
    update(killed, 8)
    resumed.load_memory(killed.memory())
    update(resumed, 3)
    assert compiled == [8]
    update(resumed, 8)
    assert compiled == [8, 8]


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_machine_code_has_the_numbers_of_the_eager_step_and_is_kept(tmp_path: Path) -> None:
    outcome = said("machine code", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert outcome["moved"]
    assert max(outcome["errors"]) < 1e-12
    assert outcome["compiled again"] == 0
    assert outcome["same numbers"]
    (kept,) = (tmp_path / "manualbp").iterdir()  # and nothing half done
    assert kept.suffix == ".pt2"


if __name__ == "__main__":
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with redirect_stdout(sys.stderr):
        if sys.argv[1:]:
            results = machine_code_and_agreement()
        else:
            for name, case in CASES.items():
                results[name] = programs_and_agreement(case)
            results |= {"refused": refusal(), "no compiler": no_compiler()}
    print(json.dumps(results))
