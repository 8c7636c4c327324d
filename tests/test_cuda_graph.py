"""Recording on CUDA without CUDA: a stand-in that captures nothing but calls, and replays those.

As with the real one, what is captured is not run, a replay runs on the tensors of the capture, and
every stream runs by itself unless it is told to wait.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch
from test_recording import RULES, assert_same_run
from torch import Tensor
from torch.utils._pytree import tree_leaves

from manualbp import recording
from manualbp.optimizers import SGD, Optimizer
from manualbp.recording import Tape, capture


class Stream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Graph:
    """Keeps calls and runs them again, with the results in the memory of the first ones."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.tape = log, Tape()

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.log.append("generator registered")

    def replay(self) -> None:
        for call in self.tape.calls:
            existing = {t.untyped_storage().data_ptr() for t in call.inputs}
            again = tree_leaves(call.op(*call.args, **call.kwargs))
            for old, new in zip(tree_leaves(call.out), again, strict=True):
                if old.untyped_storage().data_ptr() not in existing:
                    old.copy_(new)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Generator[list[str]]:
    """Let everything happen on a CUDA device that is none; return what happens there."""
    happened: list[str] = []
    main, side = Stream(happened, "main"), Stream(happened, "side")
    current = [main]

    @contextmanager
    def stream(other: Stream) -> Generator[None]:
        current.append(other)
        yield
        current.pop()

    @contextmanager
    def graph(graph: Graph, stream: Stream) -> Generator[None]:
        happened.append(f"capture on {stream.name}")
        with graph.tape:
            yield
        graph.tape.undo()

    undo = Tape.undo

    def logged_undo(self: Tape) -> None:
        undo(self)
        happened.append(f"undone on {current[-1].name}")

    def enter(self: Tape) -> Tape:
        happened.append(f"run on {current[-1].name}")
        return enter_tape(self)

    enter_tape = Tape.__enter__
    monkeypatch.setattr(Tape, "undo", logged_undo)
    monkeypatch.setattr(Tape, "__enter__", enter)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    for name, value in {
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "current_stream": lambda: current[-1],
        "Stream": lambda device: side,
        "stream": stream,
        "CUDAGraph": lambda: Graph(happened),
        "graph": graph,
        "synchronize": lambda: happened.append("synchronized"),
        "empty_cache": lambda: None,
        "memory_reserved": lambda: 100 * len(happened),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    recording._capture_stream.cache_clear()
    yield happened
    recording._capture_stream.cache_clear()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_replayed_training_is_eager_training(rule: Optimizer, log: list[str]) -> None:
    assert_same_run(rule)
    assert log.count("capture on side") == 2  # batches of 8 and of 3


def test_clipping_and_micro_batches(log: list[str]) -> None:
    assert_same_run(SGD(0.1, 0.9), clip_norm=0.5, clip_value=0.1, micro_batch=3)


def test_mixed_precision(log: list[str]) -> None:
    assert_same_run(SGD(0.1, 0.9), rounded_to=torch.bfloat16)


def test_the_warm_up_is_on_the_stream_of_the_capture_and_undone_before_it(log: list[str]) -> None:
    masks, memory = torch.Generator().manual_seed(0), torch.zeros(3)

    def step(x: Tensor) -> Tensor:
        return memory.add_(x) * torch.empty(3).bernoulli_(0.5, generator=masks)

    captured = capture(step)
    captured(torch.ones(3))
    assert log == [
        "side waits for main",
        "run on side",
        "main waits for side",
        "undone on main",
        "generator registered",
        "synchronized",
        "capture on side",
        *("run on main", "undone on main"),  # of the stand-in, which cannot but run to capture
    ]
    assert memory.tolist() == [1, 1, 1]
    captured(torch.full((3,), 2.0))
    assert memory.tolist() == [3, 3, 3]
    (only,) = captured.recordings.values()
    assert only.calls == 4
    assert only.buffer_bytes == 300  # as reserved from the capture on


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
    assert "capture on side" not in log
