"""Record a training step once and replay its operations into the same memory.

Python, dispatch and allocation cost more than the arithmetic of a small network. A step that
depends on tensors only (no number read back, no branch on data) makes the same calls every time, so
they can be written down once: on CUDA as a CUDA graph, on the CPU as a list of calls whose results
go, by `out=`, into buffers that are planned beforehand. The layers know nothing of it.

What the list on the CPU leaves out:
- views: the memory is the same at every replay, so a view is made once;
- results that nobody uses, such as the value of the loss where only its gradient is needed;
- allocations: a buffer serves several results whose lifetimes do not overlap, and an elementwise
  operation writes over an operand that is not needed any more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Step = Callable[..., Tensor]

MOST_SHAPES = 8
"""Recordings that are kept, one for each combination of argument shapes; a step whose shapes change
all the time is run as it stands."""


READ_BACK = ("_local_scalar_dense", "equal", "nonzero")
"""Operations that make Python numbers, or shapes, out of the contents of a tensor."""


class Captured:
    """`step`, recorded at the first call for each combination of argument shapes, then replayed.

    The result is overwritten by the next call for the same shapes. Tensors that the step reaches by
    itself (parameters, gradients, optimiser state) are changed in place, as by the step. A shape
    that is new is recorded anew: nothing is ever computed with another's buffers.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.recordings: dict[tuple[Any, ...], Recording] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Do what `step` does.

        It runs in inference mode. To enter that costs as much as a few operations: a loop over
        small steps enters it once, outside.
        """
        if torch.is_inference_mode_enabled():
            return self._run(arguments)
        with torch.inference_mode():
            return self._run(arguments)

    def _run(self, arguments: Sequence[Tensor]) -> Tensor:
        # get_device() is a number, many times cheaper to look up than .device.
        key = tuple([(a.shape, a.dtype, a.get_device()) for a in arguments])
        recording = self.recordings.get(key)
        if recording is None:
            if len(self.recordings) == MOST_SHAPES:
                return self.step(*arguments)
            recording = self.recordings[key] = record(self.step, arguments)
        for buffer, argument in zip(recording.arguments, arguments, strict=True):
            buffer.copy_(argument)
        recording.replay()
        return recording.result


def capture(step: Step) -> Captured:
    """Return `step` as a function that records itself and replays."""
    return Captured(step)


@dataclass(frozen=True)
class Recording:
    """A step for arguments of one shape."""

    arguments: list[Tensor]  # where the arguments of a call are copied to
    result: Tensor
    replay: Callable[[], None]
    calls: int  # operations replayed
    buffer_bytes: int  # memory of all intermediate results together


def record(step: Step, arguments: Sequence[Tensor]) -> Recording:
    """Run the step once on copies of the arguments, undo what it changed; return the recording."""
    tape = Tape()
    # Outside of inference mode composite operations reach the tape as what they are made of.
    with torch.inference_mode(False), torch.no_grad():
        own = [argument.clone() for argument in arguments]
        with tape:
            result = step(*own)
        tape.undo()
    if result.is_cuda:
        return _record_graph(step, own, tape)
    return _plan(tape.calls, own, result)


@dataclass(frozen=True)
class Call:
    """One operation with what went in and what came out."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def inputs(self) -> list[Tensor]:
        return _tensors((self.args, self.kwargs))

    @property
    def outputs(self) -> list[Tensor]:
        return _tensors(self.out)

    @property
    def changed(self) -> list[Tensor]:
        """Return the arguments that the operation writes to."""
        arguments = _schema(self.op).arguments
        named = dict(zip([a.name for a in arguments], self.args, strict=False)) | self.kwargs
        if torch.Tag.inplace_view in self.op.tags:
            return []  # it changes a shape, no numbers
        return [
            cast(Tensor, named[a.name])
            for a in arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in named
        ]


class Tape(TorchDispatchMode):
    """Runs operations as usual and writes them down; keeps what is needed to undo their effects."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler, two seconds long, to tell it to leave the tape alone.
        return False

    def __init__(self) -> None:
        cast(Any, super()).__init__()
        self.calls: list[Call] = []
        self.generators: list[torch.Generator] = []
        self._made: set[int] = set()
        self._before: list[tuple[Tensor, Tensor]] = []
        self._states: list[tuple[torch.Generator, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        call = Call(func, args, kwargs or {}, None)
        if _name(func) in READ_BACK:
            raise ValueError(
                f"a step that reads numbers back ({_name(func)}) cannot be recorded: a replay "
                "would go on with the numbers of the recording; use tensor operations instead"
            )
        for tensor in call.changed:
            if _memory(tensor) not in self._made:
                self._before.append((tensor, tensor.clone()))
        for leaf in tree_leaves(call.kwargs):
            if isinstance(leaf, torch.Generator):
                self.generators.append(leaf)
                self._states.append((leaf, leaf.get_state()))
        out = func(*args, **call.kwargs)
        existing = {_memory(tensor) for tensor in call.inputs}
        self._made |= {_memory(t) for t in _tensors(out)} - existing
        # Aliases, because a later `squeeze_` would change the shape in this note too.
        self.calls.append(Call(func, *tree_map(_alias, (args, call.kwargs, out))))
        return out

    def undo(self) -> None:
        """Give tensors made before the recording, and random generators, their old contents."""
        for tensor, content in reversed(self._before):
            tensor.copy_(content)
        for generator, state in reversed(self._states):
            generator.set_state(state)


# What makes a tensor from shape, dtype and numbers alone; the value is what its memory is filled
# with, None is nothing in particular.
FACTORIES: dict[str, Callable[[Call], Any]] = {
    "empty": lambda call: None,
    "empty_like": lambda call: None,
    "new_empty": lambda call: None,
    "zeros": lambda call: 0,
    "zeros_like": lambda call: 0,
    "new_zeros": lambda call: 0,
    "ones_like": lambda call: 1,
    "new_ones": lambda call: 1,
    "full": lambda call: call.args[1],
    "full_like": lambda call: call.args[1],
    "new_full": lambda call: call.args[2],
}


def _plan(calls: list[Call], arguments: list[Tensor], result: Tensor) -> Recording:
    """Turn what was written down into a list of calls over planned buffers."""
    kept = _needed(calls, result)
    last_use = {_memory(t): i for i, c in enumerate(kept) for t in [*c.inputs, *c.outputs]}
    last_use[_memory(result)] = len(kept)
    changed = {_memory(tensor) for call in kept for tensor in call.changed}
    constants: set[int] = set()
    buffers = Buffers()
    program: list[Callable[[], Any]] = []
    for i, call in enumerate(kept):
        made = [t for t in call.outputs if _memory(t) not in {_memory(x) for x in call.inputs}]
        dying = [t for t in call.inputs if last_use[_memory(t)] == i]
        factory = FACTORIES.get(_name(call.op))
        if _always_the_same(call, constants) and not changed & {_memory(t) for t in made}:
            constants |= {_memory(t) for t in made}
            continue  # the tensor of the recording serves for ever
        args, kwargs = tree_map(buffers.mapped, (call.args, call.kwargs))
        for out in made:
            successor = _overwritable(call, out, dying)
            if successor is not None and buffers.owns(successor):
                buffers.pass_on(successor, out)
            else:
                buffers.take(out)
        if made and factory:
            if factory(call) is not None:
                program.append(partial(buffers.mapped(made[0]).fill_, factory(call)))
        elif made:
            program.append(_into(call.op, args, kwargs, buffers.mapped(made[0])))
        elif call.changed:
            program.append(_in_place(call.op, args, kwargs))
        for tensor in dying:
            buffers.give_back(tensor)
    return Recording(
        arguments, buffers.mapped(result), partial(_run, program), len(program), buffers.bytes
    )


def _run(program: list[Callable[[], Any]]) -> None:
    for call in program:
        call()


def _needed(calls: list[Call], result: Tensor) -> list[Call]:
    """Return the calls whose effect reaches the result or memory from outside the recording."""
    made: set[int] = set()
    for call in calls:
        made |= {_memory(t) for t in call.outputs} - {_memory(t) for t in call.inputs}
    needed = {_memory(result)}
    kept: list[Call] = []
    for call in reversed(calls):
        written = {_memory(tensor) for tensor in call.changed}
        if written - made or (written | {_memory(t) for t in call.outputs}) & needed:
            kept.append(call)
            needed |= {_memory(tensor) for tensor in call.inputs}
    return kept[::-1]


def _always_the_same(call: Call, constants: set[int]) -> bool:
    """Return whether the results depend on no argument, no parameter and no chance."""
    if call.changed or torch.Tag.nondeterministic_seeded in call.op.tags:
        return False
    return _name(call.op) in FACTORIES or {_memory(t) for t in call.inputs} <= constants


def _overwritable(call: Call, out: Tensor, dying: Iterable[Tensor]) -> Tensor | None:
    """Return an operand that an elementwise operation may write its result over, or None."""
    if torch.Tag.pointwise not in call.op.tags:
        return None
    for tensor in dying:
        others = [t for t in call.inputs if _memory(t) == _memory(tensor)]
        if all(_layout(t) == _layout(out) for t in others):
            return tensor
    return None


class Buffers:
    """Memory for results: a block goes to the next when the first needs it no more."""

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}  # by the memory that a result had in the recording
        self._free: list[Tensor] = []
        self.bytes = 0

    def owns(self, tensor: Tensor) -> bool:
        """Return whether the tensor lies in a planned block."""
        return _memory(tensor) in self._blocks

    def take(self, tensor: Tensor) -> None:
        """Find a block: the smallest free one that is large enough, or else a new one."""
        size = tensor.untyped_storage().nbytes()
        fitting = [block for block in self._free if block.numel() >= size]
        if fitting:
            block = min(fitting, key=Tensor.numel)
            self._free = [other for other in self._free if other is not block]
        else:
            block = torch.empty(size, dtype=torch.uint8, device=tensor.device)
            self.bytes += size
        self._blocks[_memory(tensor)] = block

    def pass_on(self, tensor: Tensor, successor: Tensor) -> None:
        """Let the successor have the tensor's block."""
        self._blocks[_memory(successor)] = self._blocks.pop(_memory(tensor))

    def give_back(self, tensor: Tensor) -> None:
        """Free the tensor's block, if it still has one."""
        block = self._blocks.pop(_memory(tensor), None)
        if block is not None:
            self._free.append(block)

    def mapped(self, leaf: Any) -> Any:
        """Return a tensor of the recording as it lies in its block; anything else as it is."""
        if not isinstance(leaf, Tensor) or not self.owns(leaf):
            return cast(Any, leaf)
        size = leaf.untyped_storage().nbytes()
        block = self._blocks[_memory(leaf)].narrow(0, 0, size).view(leaf.dtype)
        return block.as_strided(leaf.size(), leaf.stride(), leaf.storage_offset())


def _into(op: OpOverload, args: Any, kwargs: Any, out: Tensor) -> Callable[[], Any]:
    """Return a call of the operation that writes its result to `out`."""
    name, overload = _name(op), _overload(op)
    if name in ("clone", "_to_copy"):
        return partial(out.copy_, args[0])
    if name == "rsub":  # 1 - y; it has no fast `out` form of its own
        name, args = "sub", (args[1], args[0], *args[2:])
    args = _with_tensors_for_numbers(name, args, out)
    # torch.mm(..., out=) takes half the time of torch.ops.aten.mm.out, which is the same kernel.
    candidates = [getattr(torch, name, None)]
    candidates += [getattr(op.overloadpacket, o, None) for o in (f"{overload}_out", "out")]
    for function in candidates:
        try:
            with warnings.catch_warnings(action="error"):  # such as that `out` was resized
                cast(Any, function)(*args, **kwargs, out=torch.empty_like(out))
        except (TypeError, RuntimeError, UserWarning):  # it has no `out`, or wants other arguments
            continue
        return partial(cast(Any, function), *args, **kwargs, out=out)
    return lambda: out.copy_(op(*args, **kwargs))


def _in_place(op: OpOverload, args: Any, kwargs: Any) -> Callable[[], Any]:
    """Return a call of an operation that changes its first argument."""
    name, (changed, *others) = _name(op), args
    others = _with_tensors_for_numbers(name.removesuffix("_"), others, changed)
    return partial(getattr(changed, name), *others, **kwargs)


def _with_tensors_for_numbers(name: str, args: Sequence[Any], like: Tensor) -> Sequence[Any]:
    """Return the arguments of an arithmetic operation with its Python numbers made into tensors.

    torch would do so at every call. Only for the two types in which the number is rounded to the
    type of the operation anyway, so that the result stays the same bit for bit.
    """
    if name not in ("add", "sub", "mul", "div") or like.dtype not in (torch.float32, torch.float64):
        return args
    return [like.new_tensor(a) if isinstance(a, int | float) else a for a in args]


def _record_graph(step: Step, arguments: list[Tensor], tape: Tape) -> Recording:
    """Capture the step as a CUDA graph; the run that filled the tape was its warm-up."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    for generator in tape.generators:
        cast(Any, graph).register_generator_state(generator)
    before = torch.cuda.memory_allocated()
    with torch.cuda.graph(graph):
        result = step(*arguments)
    kept = torch.cuda.memory_allocated() - before
    return Recording(arguments, result, graph.replay, len(tape.calls), kept)


# The three things that torch keeps private and a recording cannot do without.


def _schema(op: OpOverload) -> torch.FunctionSchema:
    return op._schema  # pyright: ignore[reportPrivateUsage]


def _name(op: OpOverload) -> str:
    return _schema(op).name.removeprefix("aten::")


def _overload(op: OpOverload) -> str:
    return op._overloadname  # pyright: ignore[reportPrivateUsage]


def _memory(tensor: Tensor) -> int:
    """Return what tells one piece of memory from another, whatever views there are of it."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _alias(leaf: Any) -> Any:
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    size = tensor.untyped_storage().nbytes()
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, size
