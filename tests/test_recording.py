"""Replayed steps give the numbers of eager steps, bit for bit, and shapes never get mixed up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast
from weakref import ref

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manualbp.checks.agreement import make_inputs
from manualbp.checks.registry import case_owner, layer_cases, loss_cases
from manualbp.layers import Linear, Mode, Sequential, Tanh
from manualbp.losses import CrossEntropyLoss, MSELoss, Penalty
from manualbp.models import ModelName, build
from manualbp.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    LookAheadNesterov,
    Optimizer,
    RMSprop,
)
from manualbp.parameters import Parameters
from manualbp.recording import LARGE, MOST_SHAPES, Arena, Block, Captured, capture
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep

RULES = [
    SGD(0.1),
    SGD(0.1, 0.9, weight_decay=0.01),
    SGD(0.1, 0.9, dampening=0.1, weight_decay=0.01),
    SGD(0.1, 0.9, nesterov=True),
    LookAheadNesterov(0.1, 0.9),
    Adagrad(0.1),
    RMSprop(0.01, momentum=0.9, centered=True),
    Adam(0.01),
    AdamW(0.01),
]


def train(
    recorded: bool,
    rule: Optimizer,
    *,
    device: str = "cpu",
    model: ModelName = "mlp",
    dtype: torch.dtype = torch.float32,
    rounded_to: torch.dtype | None = None,
    **settings: object,
) -> tuple[ManualEngine, list[Tensor]]:
    """Make 25 updates on changing data with changing rates; every fifth batch is smaller."""
    net = build(model, 6, 4, hidden=(8, 8), dropout=0.3)
    step = TrainingStep(net, CrossEntropyLoss(), rule, Penalty(0.01), **settings)
    params = net.parameters(torch.Generator().manual_seed(0), dtype=dtype, device=device)
    params = Parameters(params.shapes, params.flat, rounded_to=rounded_to)
    engine = ManualEngine(step, params, torch.Generator(device).manual_seed(1), recorded=recorded)
    engine.plan([rule.lr / (1 + i) for i in range(25)])
    data = torch.Generator().manual_seed(2)
    outputs: list[Tensor] = []
    for i in range(25):
        rows = 3 if i % 5 == 4 else 8
        x = torch.randn(rows, 6, generator=data).to(dtype)
        target = torch.randint(0, 4, (rows,), generator=data)
        outputs.append(engine.step(x.to(device), target.to(device)).clone())
    return engine, outputs


def assert_same_run(rule: Optimizer, **settings: object) -> None:
    eager, eager_outputs = train(False, rule, **settings)
    replayed, replayed_outputs = train(True, rule, **settings)
    for a, b in zip(replayed_outputs, eager_outputs, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(replayed.params.flat, eager.params.flat)
    for name, tensor in eager.state.items():
        assert torch.equal(replayed.state[name], tensor), name
    assert torch.equal(replayed.generator.get_state(), eager.generator.get_state())
    assert isinstance(replayed._update, Captured)
    assert len(replayed._update.recordings) == 2  # batches of 8 and of 3


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_replayed_training_is_eager_training(rule: Optimizer, device: str) -> None:
    assert_same_run(rule, device=device)


@pytest.mark.parametrize("model", ["logistic", "maxout", "residual"])
def test_every_model(model: ModelName) -> None:
    assert_same_run(SGD(0.1, 0.9), model=model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types(dtype: torch.dtype) -> None:
    assert_same_run(SGD(0.1, 0.9), dtype=dtype)


@pytest.mark.parametrize("rule", [SGD(0.1, 0.9), LookAheadNesterov(0.1, 0.9), Adam(0.01)], ids=repr)
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_mixed_precision(rule: Optimizer, micro_batch: int, device: str) -> None:
    more = {"micro_batch": micro_batch} if micro_batch else {}
    assert_same_run(rule, rounded_to=torch.bfloat16, device=device, **more)


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_a_network_with_one_output(rows: int) -> None:
    """Along an axis of length 1 any stride would do, but kernels are chosen by it."""
    net = Sequential(Linear(8, 16), Tanh(), Linear(16, 1))
    engines = [
        ManualEngine(
            TrainingStep(net, MSELoss(), SGD(0.05)),
            net.parameters(torch.Generator().manual_seed(0)),
            torch.Generator(),
            recorded=recorded,
        )
        for recorded in (False, True)
    ]
    data = torch.Generator().manual_seed(0)
    for engine in engines:
        engine.plan([0.05] * 40)
    for _ in range(40):
        x, target = torch.randn(rows, 8, generator=data), torch.randn(rows, 1, generator=data)
        eager, replayed = (engine.step(x, target) for engine in engines)
        assert torch.equal(eager, replayed)
        assert torch.equal(*(engine.params.flat for engine in engines))


def test_clipping_and_micro_batches(device: str) -> None:
    more = {"clip_norm": 0.5, "clip_value": 0.1, "micro_batch": 3}
    assert_same_run(SGD(0.1, 0.9), device=device, **more)


@pytest.mark.cuda
def test_a_graph_outlives_others_and_the_workspaces_of_torch() -> None:
    """The products are of a size for which cuBLAS takes a workspace."""
    x, w = (torch.randn(512, 512, device="cuda") for _ in range(2))
    expected = x @ w @ w
    captured = capture(lambda x: x @ w @ w)
    assert torch.equal(captured(x), expected)
    for _ in range(40):  # more than torch has streams
        assert torch.equal(capture(lambda x: x @ w @ w)(x), expected)
    torch._C._cuda_clearCublasWorkspaces()  # as torch.compile does
    torch.cuda.empty_cache()
    assert torch.equal(captured(x), expected)


@pytest.mark.parametrize("case", layer_cases(), ids=lambda c: f"{case_owner(c)}, {c.name}")
def test_every_layer(case) -> None:
    inputs = make_inputs(case, torch.float32, "cpu", seed=0)
    layer, params = case.layer, inputs.parameters

    def passes(x: Tensor, dy: Tensor, masks: torch.Generator) -> Tensor:
        grads = params.zeros_like()
        y, saved = layer.forward(params.views, x, mode=Mode(case.training, masks))
        dx = layer.backward(params.views, saved, dy, grads.views)
        return torch.cat([y.flatten(), dx.flatten(), grads.flat])

    masks = torch.Generator().manual_seed(0)
    replayed = capture(lambda x, dy: passes(x, dy, masks))
    other = torch.Generator().manual_seed(0)
    for factor in (1.0, 0.5, -2.0):
        x, dy = factor * inputs.x, factor * inputs.dy
        assert torch.equal(replayed(x, dy), passes(x, dy, other))


@pytest.mark.parametrize("case", loss_cases(), ids=lambda c: f"{case_owner(c)}, {c.name}")
def test_every_loss(case) -> None:
    def passes(y: Tensor, target: Tensor) -> Tensor:
        error, saved = case.loss.forward(y, target)
        return torch.cat([error.reshape(1), case.loss.backward(saved).flatten()])

    replayed = capture(passes)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        y, target = case.y(generator), case.target(generator)
        assert torch.equal(replayed(y, target), passes(y, target))


def test_recording_changes_nothing_by_itself() -> None:
    memory = torch.zeros(3)
    counted = capture(lambda x: memory.add_(x).clone())
    assert counted(torch.ones(3)).tolist() == [1, 1, 1]
    assert memory.tolist() == [1, 1, 1]


def test_results_that_nobody_uses_are_left_out() -> None:
    unused: list[Callable[[Tensor], Tensor]] = [
        lambda x: x + 1,
        lambda x: (x.exp().sum(), x + 1)[1],
    ]
    calls = []
    for step in unused:
        captured = capture(step)
        captured(torch.ones(3))
        (recording,) = captured.recordings.values()
        calls.append(recording.calls)
    assert calls[0] == calls[1] == 1


def test_buffers_are_shared_by_results_that_do_not_meet() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(10):
            x = (x + 1).tanh() @ torch.eye(64)
        return x

    captured = capture(chain)
    x = torch.randn(64, 64)
    assert torch.equal(captured(x), chain(x))
    (recording,) = captured.recordings.values()
    one = x.numel() * x.element_size()
    assert recording.buffer_bytes <= 3 * one  # 30 results; the identity is made anew each time


def test_a_result_still_needed_is_not_overwritten() -> None:
    def step(x: Tensor) -> Tensor:
        a = x + 1
        b = a * 2
        c = b - a  # b dies here, a does not
        return c * a

    captured = capture(step)
    for factor in (1.0, 3.0):
        x = torch.full((4,), factor)
        assert torch.equal(captured(x), step(x))


def test_what_is_written_over_its_operand_is_called_in_place() -> None:
    seen: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(str(func))
            return func(*args, **kwargs or {})

    captured = capture(lambda x: x.exp().sin())
    x = torch.tensor([0.5, 1.0])
    captured(x)
    with Names():
        assert torch.equal(captured(x), x.exp().sin())
    assert seen[:3] == ["aten.copy_.default", "aten.exp.out", "aten.sin_.default"]


def test_an_operand_that_is_read_in_two_ways_is_not_overwritten() -> None:
    def step(x: Tensor) -> Tensor:
        product = x @ x  # dies at the sum, which must not write over what it has yet to read
        return product + product.T

    captured = capture(step)
    x = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(captured(x), step(x))


def test_the_largest_blocks_get_their_places_first() -> None:
    places = [(128, 0, 2), (256, 1, 3), (64, 0, 0)]  # bytes, from this call to that
    blocks = {number: Block(*place) for number, place in enumerate(places)}
    assert Arena(blocks, torch.device("cpu")).bytes == 128 + 256  # the last lies where the second


@pytest.mark.parametrize("large", [0, LARGE])
def test_arguments_may_lie_in_memory_in_any_way_and_are_not_changed(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.recording.LARGE", large)

    def step(x: Tensor, y: Tensor) -> Tensor:
        return (x.T @ y).add_(1) + x[1:].sum()

    captured = capture(step)
    table = torch.arange(48.0).reshape(6, 8)
    pairs = [
        (table[:3], table[3:]),
        (table[3:], table[:3]),
        (table[::2], table[1::2]),
        (torch.ones(3, 1).expand(3, 8), table.T.reshape(8, 6).T[:3]),
    ]
    for x, y in pairs:
        assert torch.equal(captured(x, y), step(x, y))
    assert torch.equal(table, torch.arange(48.0).reshape(6, 8))
    assert len(captured.recordings) == 1


@pytest.mark.parametrize("large", [0, LARGE])
def test_an_argument_that_the_step_changes_or_returns_stays_the_callers(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.recording.LARGE", large)
    for step in (lambda x: x.mul_(2), lambda x: x.mul_(2) + 1, lambda x: x, lambda x: x.view(2, 2)):
        captured = capture(step)
        for factor in (1.0, 3.0, -1.0):
            x = torch.full((4,), factor)
            assert torch.equal(captured(x), step(x.clone()))
            y = torch.full((8,), factor)[::2]
            assert torch.equal(captured(y), step(y.clone()))
            assert x.tolist() == y.tolist() == [factor] * 4


def test_an_argument_as_large_as_the_arena_is_not_taken_for_a_result() -> None:
    captured = capture(lambda x: x + 1)
    for factor in (1.0, 2.0):
        x = torch.full((16,), factor)  # 64 bytes, like a result's place
        assert torch.equal(captured(x), x + 1)


@pytest.mark.parametrize("large", [0, LARGE])
def test_a_result_may_be_the_next_argument(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies where the step writes while it still reads its argument."""
    monkeypatch.setattr("manualbp.recording.LARGE", large)

    def step(x: Tensor) -> Tensor:
        return (x + 1) * x

    captured = capture(step)
    found = expected = torch.full((4,), 0.1)
    for _ in range(3):
        found, expected = captured(found), step(expected)
        assert torch.equal(found, expected)


def test_arguments_are_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manualbp.recording.LARGE", 0)
    captured = capture(lambda x: x + x[:1])
    for _ in range(2):
        x = torch.ones(3)
        storage = ref(x.untyped_storage())
        captured(x)
        del x
        assert storage() is None


def test_random_numbers_are_drawn_anew_whoever_draws_them() -> None:
    def step(x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(generator=generator) + torch.rand(
            8, generator=generator
        )

    for generator in (None, torch.Generator()):  # None is torch's own
        runs: list[list[Tensor]] = []
        for how in (capture(lambda x, g=generator: step(x, g)), lambda x, g=generator: step(x, g)):
            (generator or torch.default_generator).manual_seed(3)
            runs.append([how(torch.full((8,), factor)).clone() for factor in (1.0, 2.0, 3.0)])
        for replayed, eager in zip(*runs, strict=True):
            assert torch.equal(replayed, eager)


def test_what_follows_from_constants_alone_is_computed_once() -> None:
    captured = capture(lambda x: x + torch.ones(3).mul(2).exp())
    for factor in (1.0, 2.0):
        x = torch.full((3,), factor)
        assert torch.equal(captured(x), x + torch.ones(3).mul(2).exp())
    (recording,) = captured.recordings.values()
    assert recording.calls == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.zeros(3),
        lambda x: torch.zeros_like(x),
        lambda x: x.new_zeros(3),
        lambda x: torch.ones_like(x),
        lambda x: x.new_ones(3),
        lambda x: torch.full((3,), 7.0),
        lambda x: torch.full_like(x, 7.0),
        lambda x: x.new_full((3,), 7.0),
        lambda x: torch.arange(3.0),
        lambda x: torch.empty_like(x).fill_(7.0),
        lambda x: torch.tensor(7.0).repeat(3),
        lambda x: torch.tensor([0.0, 1.0, 2.0]),
        lambda x: x.new_tensor([0.0, 1.0, 2.0]),
        lambda x: torch.Tensor([0.0, 1.0, 2.0]),
        lambda x: torch.asarray([0.0, 1.0, 2.0]),
        lambda x: torch.from_numpy(np.zeros(3, np.float32)),
    ],
)
def test_a_new_tensor_that_is_changed_is_made_anew(make: Callable[[Tensor], Tensor]) -> None:
    captured = capture(lambda x: make(x).add_(x))
    for factor in (1.0, 2.0):
        x = torch.full((3,), factor)
        assert torch.equal(captured(x), make(x).add_(x))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * sum(x.tolist()),
        lambda x: torch.from_numpy(x.numpy() * 2),
        lambda x: x * float(np.asarray(x)[0]),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0).sum(),
        lambda x: x.nonzero().sum(),
        lambda x: x.unique().sum(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.tensor_split(x, x.long())[0],
        lambda x: torch.from_dlpack(x * 2) + x,
    ],
)
def test_a_step_that_reads_numbers_back_is_refused(step: Callable[[Tensor], Tensor]) -> None:
    """Or that has a result of as many numbers as there are ones in a mask."""
    captured = capture(step)
    for _ in range(2):
        with pytest.raises(ValueError, match="a step that reads numbers back"):
            captured(torch.ones(3))


def test_what_a_refused_step_had_changed_is_undone() -> None:
    w, masks = torch.ones(3), torch.Generator().manual_seed(0)
    before = masks.get_state()

    def step(x: Tensor) -> Tensor:
        w.add_(x).mul_(torch.rand(3, generator=masks))
        return w * w.sum().item()

    captured = capture(step)
    for _ in range(2):
        with pytest.raises(ValueError, match="reads numbers back"):
            captured(torch.ones(3))
        assert w.tolist() == [1, 1, 1]
        assert torch.equal(masks.get_state(), before)


@pytest.mark.parametrize("result", [None, 1.0, (torch.ones(3), torch.ones(3))], ids=repr)
def test_a_step_that_returns_no_tensor_is_refused(result: Any) -> None:
    kind = type(result).__name__
    with pytest.raises(TypeError, match=f"a step that returns {kind} cannot be recorded"):
        capture(lambda x: result)(torch.ones(3))


def test_a_step_that_takes_a_number_is_refused() -> None:
    with pytest.raises(TypeError, match="takes tensors only, not Tensor, float"):
        capture(lambda x, rate: x * rate)(torch.ones(3), cast(Any, 0.1))


@pytest.mark.parametrize("large", [0, LARGE])
@pytest.mark.parametrize(
    "step",
    [
        lambda x: x[x.argmax(1)],
        lambda x: x[x[:, 0].argsort()],
        lambda x: x[:, x[0].argsort()] + x[[4, 3, 2, 1, 0]],
        lambda x: x.index_select(0, x.argmax(1)),
        lambda x: x.gather(1, x.argsort(1)),
        lambda x: torch.nn.functional.embedding(x.argmax(1), x),
        lambda x: torch.zeros_like(x).index_add(0, x.argmax(1), x),
        lambda x: torch.zeros_like(x).index_put((x.argmax(1),), x[:1]),
        lambda x: torch.linalg.inv(x @ x.T + torch.eye(5)),
        lambda x: torch.rsub(x, 2, alpha=3),
        lambda x: torch.addmm(x, x, x, beta=-1),
        lambda x: torch.addmm(x[0], x, x.T),
        lambda x: torch.nn.grad.conv1d_weight(x[None], (5, 5, 1), x[None] * 2),
    ],
)
def test_an_operation_is_tried_out_on_numbers_that_suit_it(
    step: Callable[[Tensor], Tensor], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row numbers, say; and where none of its forms can be tried, it runs as it stands."""
    monkeypatch.setattr("manualbp.recording.LARGE", large)
    captured = capture(step)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(5, 5, generator=generator)
        assert torch.equal(captured(x), step(x))


@pytest.mark.parametrize("around", [nullcontext, torch.random.fork_rng])
def test_a_step_that_sets_the_seed_is_refused(around: Callable[[], Any]) -> None:
    w = torch.zeros(3)

    def step(x: Tensor) -> Tensor:
        with around():
            torch.manual_seed(0)
            return w.add_(x * torch.rand(3))

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for _ in range(2):
        with pytest.raises(ValueError, match="a step that sets the seed"):
            capture(step)(torch.ones(3))
    assert torch.equal(w, torch.zeros(3))
    assert torch.equal(torch.rand(3), expected)


def test_random_numbers_that_nobody_uses_are_drawn() -> None:
    """The next ones would be others."""

    def step(x: Tensor, masks: torch.Generator) -> Tensor:
        torch.rand(3, generator=masks)
        return x * torch.rand(3, generator=masks)

    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    captured = capture(lambda x: step(x, ours))
    for _ in range(3):
        assert torch.equal(captured(torch.ones(3)), step(torch.ones(3), theirs))


class Buffers:
    """Tensors that a step changes, in a way that is not the usual one."""

    def __init__(self) -> None:
        self.a, self.b = torch.zeros(4), torch.ones(4)

    def batch_norm(self, x: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, self.a, self.b, training=True)

    def several_at_once(self, x: Tensor) -> Tensor:
        torch._foreach_add_([self.a, self.b], [x[0], x[1]])
        torch._foreach_mul_([self.a, self.b], 0.5)
        return self.a + self.b

    def batch_norm_in_inference_mode(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.batch_norm(x) * 1

    def columns(self, x: Tensor) -> Tensor:
        self.a.view(2, 2)[:, torch.tensor([1])] = x[:2, :1]
        return self.a.add_(1) * 2

    def out(self, x: Tensor) -> Tensor:
        torch.mul(x[0], 2, out=self.a)
        torch.mv(x.T, x[:, 0], out=self.b)
        return self.a - self.b


@pytest.mark.parametrize(
    "name",
    ["batch_norm", "batch_norm_in_inference_mode", "several_at_once", "columns", "out"],
)
def test_whatever_an_operation_changes_is_changed_once(name: str) -> None:
    ours, theirs = Buffers(), Buffers()
    captured, eager = capture(getattr(ours, name)), getattr(theirs, name)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(6, 4, generator=generator)
        assert torch.equal(captured(x), eager(x))
        assert torch.equal(ours.a, theirs.a)
        assert torch.equal(ours.b, theirs.b)


@pytest.mark.parametrize("large", [0, LARGE])
def test_an_argument_that_the_step_changes_besides_is_read_as_it_was(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.recording.LARGE", large)
    w = torch.zeros(3)

    def step(x: Tensor) -> Tensor:
        w.add_(1)
        return x * 1

    captured = capture(step)
    captured(torch.zeros(3))
    assert captured(w).tolist() == [1, 1, 1]
    assert w.tolist() == [2, 2, 2]


@pytest.mark.parametrize("large", [0, LARGE])
@pytest.mark.parametrize(
    "step",
    [
        lambda x: x * 2,
        lambda x: (x * 2).conj() * 3,
        lambda x: (x * 2).conj(),
        lambda x: x.conj() @ (x + 1),
        lambda x: (x * 2).conj().imag * 3,
    ],
)
def test_a_conjugate_that_is_put_off(
    step: Callable[[Tensor], Tensor], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.recording.LARGE", large)
    captured = capture(step)
    x = torch.tensor([1 + 2j, 3j])
    for z in (x, x.conj(), -x):
        assert torch.equal(captured(z), step(z))


@pytest.mark.parametrize("large", [0, LARGE])
def test_a_sign_that_is_put_off(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manualbp.recording.LARGE", large)
    captured, a = capture(lambda x: x * 2), torch.tensor([1.0, 2.0])
    for x in (a, torch._neg_view(a), a):
        assert torch.equal(captured(x), x * 2)


@pytest.mark.parametrize("large", [0, LARGE])
def test_a_result_may_be_another_argument(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies where the step has its own copy of the first one."""
    monkeypatch.setattr("manualbp.recording.LARGE", large)

    def step(a: Tensor, b: Tensor) -> Tensor:
        return a.mul_(2).add_(b)

    captured, x = capture(step), torch.ones(3)
    result = captured(x, torch.full((3,), 5.0))
    assert result.tolist() == [7, 7, 7]
    assert captured(x, result).tolist() == [9, 9, 9]
    assert captured(result, result).tolist() == [27, 27, 27]


def test_a_constant_that_the_caller_changes_is_made_anew() -> None:
    captured = capture(lambda x: torch.ones(3) * 2)
    with torch.inference_mode():
        captured(torch.ones(3)).zero_()
        assert captured(torch.ones(3)).tolist() == [2, 2, 2]


def test_random_numbers_of_every_kind() -> None:
    def step(x: Tensor, masks: torch.Generator) -> Tensor:
        draws = torch.poisson(x, generator=masks), torch.binomial(x, x / 9, generator=masks)
        return draws[0] + draws[1]

    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    captured = capture(lambda x: step(x, ours))
    for _ in range(3):
        x = torch.full((4,), 5.0)
        assert torch.equal(captured(x), step(x, theirs))


def test_a_captured_step_within_another() -> None:
    def mask(x: Tensor, masks: torch.Generator) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(0.5, generator=masks)

    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    inner = capture(lambda x: mask(x, ours))
    outer = capture(lambda x: inner(x) + inner(x * 2))
    for _ in range(3):
        x = torch.ones(8)
        assert torch.equal(outer(x), mask(x, theirs) + mask(x * 2, theirs))
    assert torch.equal(inner(x), mask(x, theirs))


class State:
    """What a step keeps in Python, in ways that a replay cannot follow."""

    def __init__(self) -> None:
        self.w = torch.ones(3)
        self.v: Tensor | None = None
        self.seen: list[Tensor] = []

    def made_when_needed(self, x: Tensor) -> Tensor:
        if self.v is None:
            self.v = torch.zeros(3)
        return self.w.sub_(self.v.mul_(0.9).add_(x)).sum()

    def replaced(self, x: Tensor) -> Tensor:
        self.w = self.w - x
        return self.w.sum()

    def replaced_data(self, x: Tensor) -> Tensor:
        self.w.data = self.w.data - x
        return self.w.sum()

    def remembered(self, x: Tensor) -> Tensor:
        self.seen.append(x * 2)
        return x + 1


@pytest.mark.parametrize("name", ["made_when_needed", "replaced", "replaced_data", "remembered"])
def test_a_step_that_keeps_what_it_makes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a step that keeps a tensor that it makes, here by"):
        capture(getattr(State(), name))(torch.ones(3))


def test_a_step_may_keep_constants_and_leave_garbage() -> None:
    ones: list[Tensor] = []

    class Cycle:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.me = tensor, self

    def step(x: Tensor) -> Tensor:
        if not ones:
            ones.append(torch.ones(3))
        return Cycle(x * 2).tensor + ones[0]

    captured = capture(step)
    for factor in (1.0, 2.0):
        assert captured(torch.full((3,), factor)).tolist() == [2 * factor + 1] * 3


def test_another_type_is_recorded_anew_and_too_many_shapes_run_eagerly() -> None:
    captured = capture(lambda x: x * 2)
    assert captured(torch.ones(3)).dtype == torch.float32
    assert captured(torch.ones(3, dtype=torch.float64)).dtype == torch.float64
    for rows in range(20):
        x = torch.arange(float(rows))
        assert torch.equal(captured(x), x * 2)
    assert len(captured.recordings) == MOST_SHAPES


def test_what_a_captured_step_is_for_arguments_of_one_shape() -> None:
    captured = capture(lambda x, y: x * y + 1)
    x, y = torch.arange(6.0).view(2, 3), torch.tensor([1.0, -1.0, 2.0])
    replay = captured.like(torch.zeros(2, 3), torch.zeros(3))
    assert torch.equal(replay(x, y), x * y + 1)
    assert torch.equal(replay(-x, x[1]), -x * x[1] + 1)
    assert replay is captured.like(x, y)
    assert len(captured.recordings) == 1
    assert captured.like(x, x) is not replay
    for _ in range(MOST_SHAPES):
        x = torch.cat((x, x))
        assert torch.equal(captured.like(x, y)(x, y), x * y + 1)
    assert captured.like(x, y) is captured.step


def test_a_shape_that_changes_in_place_is_no_operation() -> None:
    w = torch.ones(3, 3)

    def step(x: Tensor) -> Tensor:
        row = x + 1
        product = row @ w  # which reads the row as a matrix
        row.squeeze_(0)
        return product + row

    captured = capture(step)
    for factor in (1.0, 2.0):
        x = torch.full((1, 3), factor)
        assert torch.equal(captured(x), step(x))
    (recording,) = captured.recordings.values()
    assert recording.calls == 3


AXES = [None, (), (0,), (1,), (0, 1)]


@pytest.mark.parametrize("axes", AXES, ids=repr)
def test_sums_and_maxima_over_any_axes(axes: tuple[int, ...] | None) -> None:
    def step(x: Tensor) -> Tensor:
        largest = x.amax() if axes is None else x.amax(axes, keepdim=True)
        return x.sum(axes, keepdim=True) * largest

    captured = capture(step)
    for x in (torch.rand(3, 4), torch.rand(3, 4)):
        assert torch.equal(captured(x), step(x))


def test_operations_with_several_results() -> None:
    def step(x: Tensor) -> Tensor:
        values, indices = x.sort(1)
        mean = torch.var_mean(x, 1)[1]
        return values * indices + mean.unsqueeze(1) + x.max(1).indices.unsqueeze(1)

    captured = capture(step)
    for seed in range(3):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(captured(x), step(x))


def test_operations_without_an_out_form_work_too() -> None:
    def step(x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, x).reshape(2, 2) @ torch.heaviside(x, x).view(2, 2)

    captured = capture(step)
    for seed in range(3):
        x = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(captured(x), step(x))
