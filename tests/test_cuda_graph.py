"""Recording on CUDA without CUDA: a stand-in that captures nothing but calls, and replays those.

As with the real one, what is captured is not run, a replay runs on the tensors of the capture, and
what a capture forbids is an error.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any
from weakref import ref

import pytest
import torch
from test_recording import RULES, assert_same_run
from torch import Tensor
from torch.utils._pytree import tree_leaves

from manualbp.checks.bench.variants import Floor
from manualbp.checks.bench.workloads import WORKLOADS
from manualbp.optimizers import SGD, Optimizer
from manualbp.recording import Tape, capture
from manualbp.training.compiled import Compiled


class Strict(Tape):
    """Raises an error for what a capture forbids; a `Tape` does so for numbers read back."""

    def __init__(self) -> None:
        super().__init__()
        self.registered: list[torch.Generator] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.lift_fresh.default:  # of torch.tensor, and all its kin
            raise RuntimeError("a tensor is copied from the host while a stream is captured")
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        if drawn and (kwargs or {}).get("generator") not in self.registered:
            raise RuntimeError(f"{func} draws from a generator that the graph does not know")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Graph:
    """Keeps calls and runs them again, with the results in the memory of the first ones."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.tape = log, Strict()

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.log.append("generator registered")
        self.tape.registered.append(generator)

    def replay(self) -> None:
        for call in self.tape.calls:
            existing = {t.untyped_storage().data_ptr() for t in call.inputs}
            again = tree_leaves(call.op(*call.args, **call.kwargs))
            for old, new in zip(tree_leaves(call.out), again, strict=True):
                if old.untyped_storage().data_ptr() not in existing:
                    old.copy_(new)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let everything happen on a CUDA device that is none; return what happens there."""
    happened: list[str] = []
    streams = (f"stream {number}" for number in count(1))

    @contextmanager
    def graph(graph: Graph, stream: str) -> Generator[None]:
        happened.append(f"capture on {stream}")
        # Else the generators' places on the device could not be written to outside of it.
        assert not torch.is_inference_mode_enabled()
        # It might destroy another graph, which a capture forbids.
        assert not gc.isenabled()
        with graph.tape:
            yield
        undo(graph.tape)
        happened.append("captured")

    @contextmanager
    def stream(stream: str) -> Generator[None]:
        try:
            yield
        finally:
            happened.append(f"back on {stream}")

    @contextmanager
    def device(device: torch.device) -> Generator[None]:
        happened.append(f"device {device}")
        yield

    undo = Tape.undo

    def logged_undo(self: Tape) -> None:
        undo(self)
        happened.append("warm-up undone")

    monkeypatch.setattr(Tape, "undo", logged_undo)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    for name, value in {
        "Stream": lambda: next(streams),
        "CUDAGraph": lambda: Graph(happened),
        "graph": graph,
        "current_stream": lambda: "the usual stream",
        "stream": stream,
        "device": device,
        "synchronize": lambda: happened.append("synchronized"),
        "empty_cache": lambda: None,
        "memory_reserved": lambda: 100 * len(happened),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    forget = partial(happened.append, "workspaces forgotten")
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", forget, raising=False)
    return happened


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_replayed_training_is_eager_training(rule: Optimizer, log: list[str]) -> None:
    assert_same_run(rule)
    captures = [line for line in log if line.startswith("capture on")]
    assert len(captures) == 2  # batches of 8 and of 3
    assert len(set(captures)) == 2


def test_clipping_and_micro_batches(log: list[str]) -> None:
    assert_same_run(SGD(0.1, 0.9), clip_norm=0.5, clip_value=0.1, micro_batch=3)


def test_mixed_precision(log: list[str]) -> None:
    assert_same_run(SGD(0.1, 0.9), rounded_to=torch.bfloat16)


def test_the_warm_up_is_undone_before_the_capture(log: list[str]) -> None:
    masks, memory = torch.Generator().manual_seed(0), torch.zeros(3)

    def step(x: Tensor) -> Tensor:
        return memory.add_(x) * torch.empty(3).bernoulli_(0.5, generator=masks)

    captured = capture(step)
    captured(torch.ones(3))
    assert log == [
        "warm-up undone",
        "device cpu",
        "generator registered",
        # Before, so that the products take a workspace from the graph's memory, and after, so that
        # nobody else takes theirs from there.
        "workspaces forgotten",
        "synchronized",
        "capture on stream 1",
        "captured",
        "back on the usual stream",
        "workspaces forgotten",
    ]
    assert memory.tolist() == [1, 1, 1]
    captured(torch.full((3,), 2.0))
    assert memory.tolist() == [3, 3, 3]
    (only,) = captured.recordings.values()
    assert only.calls == 4
    assert only.buffer_bytes == 200  # as reserved from the capture on
    assert gc.isenabled()


def test_after_a_capture_that_fails_all_is_as_before(log: list[str]) -> None:
    with pytest.raises(RuntimeError, match="copied from the host"):
        capture(lambda x: x * torch.tensor(2.0))(torch.ones(3))
    # torch.cuda.graph itself stays on the stream of a capture that fails.
    assert log[-2:] == ["back on the usual stream", "workspaces forgotten"]
    assert gc.isenabled()


def test_a_compiled_step_becomes_a_graph(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def uncompiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        return lambda values: graph(*values)

    monkeypatch.setattr("manualbp.training.compiled.machine_code", uncompiled)
    memory = torch.zeros(2)
    others: list[Tensor] = []
    compiled = Compiled(lambda x: memory.add_(x) * 2, others=lambda x: (others.append(x), x)[1])
    results = [compiled(torch.full((2,), x)).tolist() for x in (1.0, 2.0)]
    results.append(compiled(torch.tensor([3.0, 9.0, 4.0, 9.0])[::2]).tolist())  # not contiguous
    assert results == [[2, 2], [6, 6], [12, 14]]
    assert memory.tolist() == [6, 7]  # the first update was made once
    assert compiled(torch.ones(3)) is others[0]
    assert log.count("captured") == 1


def test_the_products_of_the_floor_are_a_graph(log: list[str]) -> None:
    """Else the floor would be the time that Python takes to start them."""
    floor = Floor(WORKLOADS["W1"].problem(torch.float32, torch.device("cpu")))
    assert log.count("captured") == 1
    for product in floor.products:
        product.keywords["out"].zero_()
    floor.run([], 1)
    assert len(floor.products) == 5
    for product in floor.products:
        assert torch.equal(product.keywords["out"], torch.mm(*product.args))


def test_graphs_that_nobody_uses_are_gone_before_the_capture(log: list[str]) -> None:
    """With their memory on the device. A step that knows its recording keeps it in a cycle."""

    class Owner:
        def __init__(self) -> None:
            self.update = capture(self.step)

        def step(self, x: Tensor) -> Tensor:
            return x * 2

    owner = Owner()
    owner.update(torch.ones(3))
    unused = ref(owner)
    del owner
    assert unused() is not None
    capture(lambda x: x * 2)(torch.ones(3))
    assert unused() is None


def test_the_results_of_the_warm_up_are_gone_before_the_capture(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a large step would need its memory twice."""
    tapes: list[Tape] = []
    right = Tape.undo
    monkeypatch.setattr(Tape, "undo", lambda self: (tapes.append(self), right(self)))
    held: list[int] = []

    def reserved() -> int:
        held.append(len(tapes[0].calls) + len(tapes[0]._before))
        return 0

    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved)
    capture(lambda x: x.mul_(2) + 1)(torch.ones(3))
    assert held[0] == 0


def test_a_tensor_of_the_cpu_is_refused(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA would copy its number into the graph once and for all."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.ndim > 0))
    two = torch.tensor(2.0)
    with pytest.raises(ValueError, match=r"with a tensor of the CPU \(in mul\) cannot be recorded"):
        capture(lambda x: x * two)(torch.ones(3))
    assert "capture on stream 1" not in log


def test_a_tensor_made_of_numbers_in_the_step_is_refused(log: list[str]) -> None:
    with pytest.raises(RuntimeError, match="copied from the host while a stream is captured"):
        capture(lambda x: x * torch.tensor(2.0))(torch.ones(3))
