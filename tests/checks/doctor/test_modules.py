"""Modules as subjects: every pass has a copy of its own, with the tensors that are examined."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualbp.checks.doctor.examination import differences_of, examine
from manualbp.checks.doctor.targets import Target, wrap


def inputs() -> list[Tensor]:
    return [torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]


def by_autograd(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return torch's own gradients of the sum of the outputs."""
    leaves = {"x": x.clone().requires_grad_()} | dict(module.double().named_parameters())
    gradients = torch.autograd.grad(module(leaves["x"]).sum(), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def gradients(target: Target) -> dict[str, Any]:
    run = target.subject.run({n: t.double() for n, t in target.arguments.items()})
    return dict(run.backward([torch.ones_like(y) for y in run.outputs]))


class Tied(nn.Module):
    """One parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Holding(nn.Module):
    """Its parts and its parameters stand in lists as well, and are found by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.by_name = {"linear": [self.linear]}
        self.scales = [self.linear.bias]

    def forward(self, x: Tensor) -> Tensor:
        penalty = sum((p**2).sum() for p in self.parameters())
        return self.by_name["linear"][0](x) * self.scales[0] + penalty


class Recurrent(nn.Module):
    """A part that holds its parameters in a list besides."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x[None])[0]


class Locked(nn.Module):
    """It says itself how it is copied: a lock cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lock = nn.Linear(2, 2), Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.linear(x).exp()


@pytest.mark.parametrize("build", [Tied, Holding, Recurrent, Locked])
def test_a_parameter_is_examined_wherever_it_is_used(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = build(), inputs()[0]
    target = wrap(module, "module", [x])
    expected = by_autograd(module, x)
    found = gradients(target)
    right = differences_of(target.subject, target.arguments)(
        {n: t.double() for n, t in target.arguments.items()}, [torch.ones(3, 2).double()]
    )
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient)
        assert torch.allclose(right[name], gradient)


class Counting(nn.Module):
    """A module with all that a forward pass may leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("passes", torch.zeros(2))
        self.seen: list[int] = []
        self.kept = {"inner": {"passes": 0}}
        self.names: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen.append(1)
        self.kept["inner"]["passes"] += 1
        self.names.add(f"pass {len(self.names)}")
        count = self.passes + len(self.seen) + self.kept["inner"]["passes"] + len(self.names)
        return x * self.weight * count


def test_every_pass_starts_with_what_the_module_had() -> None:
    module = Counting()
    target = wrap(module, "module", inputs())
    for _ in range(3):
        assert torch.allclose(gradients(target)["x"], torch.full((3, 2), 4.0).double())
    assert (module.passes.sum(), module.seen, module.kept, module.names) == (
        0,
        [],
        {"inner": {"passes": 0}},
        set(),
    )


class WrongSign(Function):
    """Linear, with a wrong sign in the weight's gradient; it counts its forward passes."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        WrongSign.passes += 1
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return dy @ w, -dy.T @ x


def test_a_failing_target_is_not_differenced_more_often_than_needed() -> None:
    """Four forward passes for each number are one truth; three points are looked at."""
    x, w = torch.randn(4, 10), torch.randn(20, 10)
    WrongSign.passes = 0
    report = examine(wrap(WrongSign, "WrongSign", [x, w]).subject, {"x": x, "w": w})
    assert [d.words for d in report.diagnoses] == ["the gradient of w has the wrong sign"]
    numbers = x.numel() + w.numel()
    # For float64 and float32, for bfloat16, for the cause, and something for all the rest.
    assert 3 * 4 * numbers < WrongSign.passes < 5 * 4 * numbers
