"""--compile: forward, backward and update in one program, with the numbers of the eager step.

Here the program runs on torch's kernels (the backend "aot_eager"), so that no C++ compiler is
needed: what is tested is that the step can be traced whole, and that what was traced stays right.

This file is also the program that does so, because torch.compile cannot trace the checks of shapes
which tests put around every pass.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manualbp.checks.agreement import relative_error
from manualbp.losses import CrossEntropyLoss, Loss, MSELoss, Penalty
from manualbp.models import build
from manualbp.optimizers import SGD, AdamW, LookAheadNesterov, RMSprop
from manualbp.parameters import Parameters
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
    **settings: Any,
) -> list[Tensor]:
    """Return the outputs of updates on changing data with changing rates, then all that changed."""
    net = build(model, 6, 4, hidden=(8, 8))
    dtype = torch.float32 if rounded_to else torch.float64
    params = net.parameters(torch.Generator().manual_seed(0), dtype=dtype)
    params = Parameters(params.shapes, params.flat, rounded_to=rounded_to)
    step = TrainingStep(net, loss, rule, **settings)
    engine = ManualEngine(step, params, torch.Generator(), recorded=False, compiled=compiled)
    engine.plan([rule.lr / (1 + i) for i in range(len(ROWS))])
    data = torch.Generator().manual_seed(2)
    found: list[Tensor] = []
    with engine.context():
        for rows in ROWS:
            x = torch.randn(rows, 6, generator=data, dtype=dtype)
            target = torch.randint(0, 4, (rows,), generator=data)
            if isinstance(loss, MSELoss):
                target = torch.randn(rows, 4, generator=data, dtype=dtype)
            found.append(engine.step(x, target).clone())
    return [*found, params.flat, *engine.state.values()]


def programs_and_agreement(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operations of each program that torch.compile makes, and what comes out of them.

    A step that takes more than one program cannot be compiled at all: the engine asks for that.
    """
    from torch._dynamo.backends.debugging import aot_eager  # two seconds, for this program only

    programs: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        calls = [node for node in graph.graph.nodes if node.op in ("call_function", "call_method")]
        programs.append([getattr(node.target, "__name__", node.target) for node in calls])
        return aot_eager(graph, inputs)

    asked: list[dict[str, Any]] = []
    right = torch.compile

    def compiled(function: Any, **options: Any) -> Any:
        asked.append(options)
        return right(function, backend=backend, **options)

    torch._dynamo.reset()
    torch.compile = compiled
    ours, eager = trained(True, **case), trained(False, **case)
    torch.compile = right
    return {
        "programs": programs,
        "asked": asked,
        "errors": [relative_error(a, b) for a, b in zip(ours, eager, strict=True)],
        "moved": not torch.equal(eager[0], eager[1]),
    }


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """Return what this file says as a program."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("case", CASES)
def test_the_whole_step_is_one_program_with_the_numbers_of_the_eager_step(
    case: str, found: dict[str, dict[str, Any]]
) -> None:
    outcome = found[case]
    assert all(options == {"fullgraph": True} for options in outcome["asked"])
    assert outcome["moved"]
    # Not to the last bit: torch.compile makes a multiplication and an addition one operation.
    assert max(outcome["errors"]) < (1e-3 if case == "mixed precision" else 1e-13)
    # One for batches of 8, then one for batches of any size. No other data, no other learning rate
    # takes a new one.
    assert len(outcome["programs"]) == 2
    for calls in outcome["programs"]:
        layers = 1 if "logistic" in case else 3
        products = sum(calls.count(name) for name in ("addmm", "addmm_", "matmul"))
        assert products >= 2 * layers  # both passes are in it


if __name__ == "__main__":
    torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):
        results = {name: programs_and_agreement(case) for name, case in CASES.items()}
    print(json.dumps(results))
