"""Record a training step once and replay its operations into the same memory.

Python, dispatch and allocation cost more than the arithmetic of a small network. A step that
depends on tensors only (no number read back, no branch on data) makes the same calls every time, so
they can be written down once: on CUDA as a CUDA graph, on the CPU as a list of calls whose results
go, by `out=`, into memory that is planned beforehand. The layers know nothing of it.

What the list on the CPU leaves out:
- views: the memory is the same at every replay, so a view is made once;
- results that nobody uses, such as the value of the loss where only its gradient is needed;
- allocations: all results lie in one piece of memory, each over those that are not needed any more,
  and an elementwise operation writes over its operand;
- copies of large arguments: they are read where they lie.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[..., Tensor]
ResultT = TypeVar("ResultT")

MOST_SHAPES = 8
"""Recordings that are kept, one for each combination of argument shapes; a step whose shapes change
all the time is run as it stands."""


class Captured:
    """`step`, recorded at the first call for each combination of argument shapes, then replayed.

    The result is overwritten by the next call for the same shapes. Tensors that the step reaches by
    itself (parameters, gradients, optimiser state) are changed in place, as by the step; arguments
    are not, and are read as they are at the call. A shape that is new is recorded anew: nothing is
    ever computed in another's memory. Two threads may not call it at the same time.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.recordings: dict[tuple[Any, ...], Recording] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Do what `step` does.

        It runs in inference mode. To enter that costs as much as a few operations: a loop over
        small steps enters it once, outside.
        """
        if not torch.is_inference_mode_enabled():
            if Tape.running:  # this is a part of another step, which is being recorded
                return self.step(*arguments)
            with torch.inference_mode():
                return self(*arguments)
        return self.like(*arguments)(*arguments)

    def like(self, *arguments: Tensor) -> Step:
        """Return what `step` is for arguments of these shapes, dtypes and devices.

        What is returned does not ask whether its arguments are so: with others it would compute
        wrongly. It is to be called in inference mode.
        """
        key = form(arguments)
        recording = self.recordings.get(key)
        if recording is None:
            if len(self.recordings) == MOST_SHAPES:
                return self.step
            recording = self.recordings[key] = record(self.step, arguments)
        return recording.replay


def form(arguments: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return shapes, dtypes and devices: where they are the same, a step makes the same calls."""
    key: tuple[Any, ...] = ()
    try:
        for argument in arguments:
            # get_device() is a number, many times cheaper to look up than .device.
            key += argument.shape, argument.dtype, argument.get_device()
    except AttributeError:
        kinds = ", ".join(type(argument).__name__ for argument in arguments)
        raise TypeError(f"a step that is recorded takes tensors only, not {kinds}") from None
    return key


def capture(step: Step) -> Captured:
    """Return `step` as a function that records itself at its first call, and then replays.

    A step takes tensors and returns one. It depends on tensors only: Python numbers that it uses
    keep for ever the values that they have while it is recorded. The first call raises ValueError
    if the step reads a number back from a tensor, has results whose shapes depend on the numbers in
    one, keeps a tensor that it makes, sets torch's seed, or on CUDA works with a tensor of the CPU;
    TypeError if it takes or returns anything but tensors. What it had changed in place by then is
    undone.
    """
    return Captured(step)


@dataclass(frozen=True)
class Recording:
    """A step for arguments of one shape."""

    replay: Step
    calls: int  # operations replayed
    buffer_bytes: int  # of all intermediate results together; on CUDA also what torch and cuBLAS
    # hold in reserve for them


def record(step: Step, arguments: Sequence[Tensor]) -> Recording:
    """Run the step once on copies of the arguments, undo what it changed; return the recording."""
    tape = Tape()
    # Outside of inference mode composite operations reach the tape as what they are made of.
    with torch.inference_mode(False), torch.no_grad():
        own = [argument.clone() for argument in arguments]
        try:
            with tape, NumbersStayTensors():
                result = _only_tensor(step(*own))
        except BaseException:
            tape.undo()
            raise
        if tape.seeded():
            tape.undo()
            raise ValueError(SETS_THE_SEED)
        if name := tape.kept_elsewhere(result):
            tape.undo()
            raise ValueError(
                f"a step that keeps a tensor that it makes, here by {name}, cannot be recorded: a "
                "replay makes it without Python; make it beforehand, and change it in place"
            )
        if result.is_cuda:
            tape.undo()
            with torch.cuda.device(result.device):
                return _record_graph(step, own, tape)
    try:
        return _plan(tape, own, result)
    finally:
        tape.undo()  # last, because planning tries operations out, and some draw random numbers


def _only_tensor(result: object) -> Tensor:
    if not isinstance(result, Tensor):
        kind = type(result).__name__
        raise TypeError(f"a step that returns {kind} cannot be recorded; return one tensor")
    return result


READ_BACK = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
BATCH_NORMS = ("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
"""They change the running mean and variance, and do not declare it."""


@dataclass(frozen=True)
class Call:
    """One operation with what went in and what came out."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @cached_property
    def inputs(self) -> list[Tensor]:
        return _tensors((*self.args, *self.kwargs.values()))

    @cached_property
    def outputs(self) -> list[Tensor]:
        return _tensors(self.out)

    @cached_property
    def reads(self) -> set[int]:
        """Return the memory of the inputs."""
        return {_memory(tensor) for tensor in self.inputs}

    @cached_property
    def made(self) -> dict[int, Tensor]:
        """Return results in memory of their own, by memory; not views and changed arguments."""
        return {m: tensor for tensor in self.outputs if (m := _memory(tensor)) not in self.reads}

    @cached_property
    def changed(self) -> list[Tensor]:
        """Return the arguments whose numbers the operation changes."""
        batch_norm = _name(self.op) in BATCH_NORMS
        if torch.Tag.inplace_view in self.op.tags:
            return []
        if not batch_norm and not _schema(self.op).is_mutable:
            return []
        arguments = _schema(self.op).arguments
        named = dict(zip([a.name for a in arguments], self.args, strict=False)) | self.kwargs
        if batch_norm:
            running = [named["running_mean"], named["running_var"]]
            return _tensors(running) if named["training"] else []
        return _tensors(
            [
                named[a.name]
                for a in arguments
                if a.alias_info is not None and a.alias_info.is_write and a.name in named
            ]
        )

    @property
    def draws(self) -> bool:
        """Return whether the operation draws random numbers."""
        return torch.Tag.nondeterministic_seeded in self.op.tags

    @property
    def reads_back(self) -> bool:
        """Return whether Python numbers, or shapes of results, come of the numbers in tensors."""
        if _name(self.op) == "index":  # a mask picks as many as it has ones; row numbers do not
            masks = (torch.bool, torch.uint8)
            return any(index.dtype in masks for index in _tensors(self.args[1]))
        return any(tag in READ_BACK for tag in self.op.tags)


class NumbersStayTensors(TorchFunctionMode):
    """Raises ValueError for what reads numbers back, yet is no operation that a tape would see."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        at = name == "tensor_split" and any(isinstance(a, Tensor) for a in args[1:])
        if at or name in ("tolist", "numpy", "__array__", "__dlpack__"):
            raise ValueError(reads_back(name))
        return func(*args, **(kwargs or {}))


def reads_back(name: str) -> str:
    """Return why a step with that operation cannot be recorded."""
    return (
        f"a step that reads numbers back, as {name} does, or makes a shape of them, cannot be "
        "recorded: a replay would go on with those of the recording; use operations whose results "
        "are tensors of one shape, such as torch.where"
    )


OF_A_TAPE = 7_368_129_045_512
"""The seed of torch's generators while a step is recorded, which no step would set itself."""

SETS_THE_SEED = (
    "a step that sets the seed of torch's random numbers cannot be recorded: a replay would draw "
    "others; set it outside"
)


class Tape(TorchDispatchMode):
    """Runs operations as usual and writes them down; keeps what is needed to undo their effects."""

    running: ClassVar[int] = 0
    """How many there are at work; a recording makes one at a time."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler, two seconds long, to tell it to leave the tape alone.
        return False

    def __init__(self) -> None:
        cast(Any, super()).__init__()
        self.calls: list[Call] = []
        self.numbers: list[Tensor] = []
        self.generators: list[torch.Generator] = []
        self._made: set[int] = set()
        self._before: list[tuple[Tensor, Tensor]] = []
        self._of_torch = _generators_of_torch()
        self._states = [(own, own.get_state()) for own in self._of_torch]

    def __enter__(self) -> Self:
        Tape.running += 1
        for generator in self._of_torch:
            generator.manual_seed(OF_A_TAPE)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Tape.running -= 1
        cast(Any, super()).__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        call = Call(func, args, kwargs or {}, None)
        if call.reads_back:
            raise ValueError(reads_back(_name(func)))
        if call.draws and self.seeded():  # in torch.random.fork_rng, which sets it back at its end
            raise ValueError(SETS_THE_SEED)
        for tensor in call.changed:
            if _memory(tensor) not in self._made:
                self._before.append((tensor, tensor.clone()))
        for leaf in (*args, *call.kwargs.values()):
            if isinstance(leaf, torch.Generator):
                self.generators.append(leaf)
                self._states.append((leaf, leaf.get_state()))
        if _name(func) == "lift_fresh":
            # A tensor made of numbers, as by torch.tensor(0.0). The step gets a copy, for it may
            # change that; the numbers stay.
            func = torch.ops.aten.clone.default
            self.numbers.append(args[0])
        out = func(*args, **call.kwargs)
        # Aliases, because a later `squeeze_` would change the shape in this note too.
        noted = Call(func, *_map(_alias, (args, call.kwargs, out)))
        self._made |= noted.made.keys()
        self.calls.append(noted)
        return out

    def seeded(self) -> bool:
        """Return whether the step has set the seed of a generator of torch's."""
        return any(generator.initial_seed() != OF_A_TAPE for generator in self._of_torch)

    def kept_elsewhere(self, result: Tensor) -> str | None:
        """Return the operation that made a tensor which, after the step, is neither its result nor
        garbage; None if there is none. Constants may be kept.
        """
        constants = _constants(self.calls, self.numbers)
        # Memory, and what refers to it; a view refers to the tensor that it is a view of, too.
        noted = {_memory(result): {0, 1} if result._base is not None else {0}}
        for call in self.calls:
            for tensor in (*call.inputs, *call.outputs):
                noted.setdefault(_memory(tensor), set()).add(id(tensor))
        for collect in (False, True):  # mostly garbage is gone at once
            if collect:
                gc.collect()
            found = (
                _name(call.op)
                for call in self.calls
                for memory in call.made
                if memory not in constants and _references(memory) > len(noted[memory])
            )
            name = next(found, None)
            if name is None:
                return None
        return name

    def undo(self) -> None:
        """Give tensors made before the recording, and random generators, their old contents."""
        for tensor, content in reversed(self._before):
            tensor.copy_(content)
        for generator, state in reversed(self._states):
            generator.set_state(state)
        self._before, self._states = [], []


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


def _plan(tape: Tape, arguments: list[Tensor], result: Tensor) -> Recording:
    """Turn what was written down into a list of calls over planned memory."""
    kept = _needed(tape.calls, result)
    constants = _constants(kept, tape.numbers) - {_memory(result)}  # which the caller may change
    kept = [call for call in kept if not call.made or not call.made.keys() <= constants]
    blocks = _lifetimes(kept, result)
    arena = Arena(blocks, result.device)
    own = {_memory(result)}.union(*({_memory(t) for t in call.changed} for call in kept))
    inputs = Inputs(arguments, own, arena)

    def place(tensor: Tensor) -> Tensor:
        return inputs.place(arena.place(tensor))

    program: list[Callable[[], Any]] = []
    for call in kept:
        made = list(call.made.values())
        args = call.args
        if _name(call.op) == "addmm" and made:  # it would spread the bias over the rows every time
            args = (args[0].expand_as(made[0]), *args[1:])
        args, kwargs = _map(place, (args, call.kwargs))
        factory = FACTORIES.get(_name(call.op))
        if not made:
            program.append(_in_place(call.op, args, kwargs))
        elif not isinstance(call.out, Tensor):
            program.append(_into_several(call, args, kwargs, [place(out) for out in made]))
        elif factory is None:
            program.append(_into(call.op, args, kwargs, place(made[0])))
        elif factory(call) is not None:
            program.append(partial(place(made[0]).fill_, factory(call)))
    own_result = place(result)
    returned = _memory(result)
    returns_argument = any(_memory(argument) == returned for argument in arguments)

    def replay(*values: Tensor) -> Tensor:
        if returns_argument:  # the last result may be another argument now
            values = tuple(v.clone() if _memory(v) == returned else v for v in values)
        for write, number in inputs.copies:
            write(values[number])
        if inputs.views:
            inputs.show(values)
        for call in program:
            call()
        if inputs.views:
            inputs.forget()
        return own_result

    return Recording(replay, len(program), arena.bytes)


def _constants(kept: list[Call], numbers: list[Tensor]) -> set[int]:
    """Return the memory of results that follow from no argument, no parameter and no chance.

    The tensors of the recording serve for ever. `numbers` are those made of Python's numbers.
    """
    changed = {_memory(tensor) for call in kept for tensor in call.changed}
    constants = {_memory(tensor) for tensor in numbers}
    for call in kept:
        follows = call.reads <= constants
        if (
            (follows or _name(call.op) in FACTORIES)
            and not call.draws
            and not changed & call.made.keys()
        ):
            constants |= call.made.keys()
    return constants


def _needed(calls: list[Call], result: Tensor) -> list[Call]:
    """Return the calls whose effect reaches the result, memory from outside the recording, or the
    random numbers that are drawn next.

    A view has none: it makes nothing and changes no number.
    """
    made = {memory for call in calls for memory in call.made}
    needed = {_memory(result)}
    kept: list[Call] = []
    for call in reversed(calls):
        written = {_memory(tensor) for tensor in call.changed}
        if call.draws or written - made or (written | call.made.keys()) & needed:
            kept.append(call)
            needed |= call.reads
    return kept[::-1]


@dataclass
class Block:
    """A place in the arena, taken from the call `first` to the call `last`."""

    size: int
    first: int
    last: int
    start: int = 0

    def meets(self, other: Block) -> bool:
        """Return whether the two are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


def _lifetimes(kept: list[Call], result: Tensor) -> dict[int, Block]:
    """Return a block for the memory of each result; an elementwise operation goes on with the block
    of an operand that dies there.
    """
    last_use = {_memory(t): i for i, c in enumerate(kept) for t in [*c.inputs, *c.outputs]}
    last_use[_memory(result)] = len(kept)
    blocks: dict[int, Block] = {}
    for i, call in enumerate(kept):
        free = {memory for memory in call.reads if last_use[memory] == i and memory in blocks}
        for memory, out in call.made.items():
            heir = next((m for m in free if _may_overwrite(call, m, out)), None)
            if heir is None:
                blocks[memory] = Block(_size(out), i, last_use[memory])
            else:
                free.remove(heir)
                blocks[memory] = blocks[heir]
                blocks[memory].last = last_use[memory]
    return blocks


def _may_overwrite(call: Call, memory: int, out: Tensor) -> bool:
    """Return whether an elementwise operation may write `out` over what it reads in `memory`."""
    if torch.Tag.pointwise not in call.op.tags:
        return False
    return all(_layout(t) == _layout(out) for t in call.inputs if _memory(t) == memory)


class Arena:
    """One piece of memory with a place for every block; blocks that never meet share bytes."""

    def __init__(self, blocks: dict[int, Block], device: torch.device) -> None:
        self._blocks = blocks
        self.bytes = 0
        placed: list[Block] = []
        # The largest first, each at the lowest place that is free for as long as it is needed.
        for block in sorted({id(b): b for b in blocks.values()}.values(), key=lambda b: -b.size):
            for other in sorted(filter(block.meets, placed), key=lambda b: b.start):
                if other.start < block.start + block.size:
                    block.start = max(block.start, other.start + other.size)
            placed.append(block)
            self.bytes = max(self.bytes, block.start + block.size)
        # Zeros, because operations are tried out on it, and 0 is a row number that there is.
        self._memory = torch.zeros(self.bytes, dtype=torch.uint8, device=device)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether the tensor lies here."""
        return _memory(tensor) == _memory(self._memory)

    def place(self, leaf: Tensor) -> Tensor:
        """Return a result of the recording as it lies here; another tensor as it is."""
        block = self._blocks.get(_memory(leaf))
        if block is None:
            return leaf
        numbers = self._memory.narrow(0, block.start, block.size).view(leaf.dtype)
        start = numbers.storage_offset() + leaf.storage_offset()
        placed = numbers.as_strided(leaf.size(), leaf.stride(), start)
        placed = placed.conj() if leaf.is_conj() else placed
        return _negative(placed) if leaf.is_neg() else placed


LARGE = 65_536
"""Bytes of an argument from which to read it where it lies is cheaper than to copy it."""


class Inputs:
    """The arguments: large ones are read where the caller has them, the others copied.

    An argument in memory that is the recording's `own`, because the step changes or returns it, is
    copied too; and so is a tensor that the step changes besides, and the result of the last call,
    over which this one writes.
    """

    def __init__(self, arguments: list[Tensor], own: set[int], arena: Arena) -> None:
        self._arena = arena
        self._own = own
        self._number = {_memory(argument): i for i, argument in enumerate(arguments)}
        self.copies: list[tuple[Callable[[Tensor], Tensor], int]] = []
        self.views: dict[int, dict[tuple[Any, ...], Tensor]] = {}
        self._strides = [argument.stride() for argument in arguments]
        for i, argument in enumerate(arguments):
            if argument.nbytes < LARGE or _memory(argument) in own:
                self.copies.append((argument.copy_, i))
            else:
                self.views[i] = {}

    def place(self, leaf: Tensor) -> Tensor:
        """Return the one tensor that stands for an argument, or for this view of it."""
        number = self._number.get(_memory(leaf), -1)
        if number not in self.views:
            return leaf
        # Not `_alias`, which would hold on to the recording's copy; `show` gives it its strides.
        return self.views[number].setdefault(_layout(leaf), leaf.view_as(leaf))

    def show(self, values: Sequence[Tensor]) -> None:
        """Let the program read the large ones of these arguments."""
        for i, views in self.views.items():
            value, stride = values[i], self._strides[i]
            # The kernels were told the recording's strides, and of no conjugate or sign put off.
            put_off = value.is_conj() or value.is_neg()
            if (
                value.stride() != stride
                or put_off
                or self._arena.holds(value)
                or _memory(value) in self._own
            ):
                value = value.new_empty_strided(value.size(), stride).copy_(value)
            storage, start = value.untyped_storage(), value.storage_offset()
            for (size, stride, offset, *_), view in views.items():
                view.set_(storage, start + offset, size, stride)

    def forget(self) -> None:
        """Let go of the caller's memory."""
        for views in self.views.values():
            for view in views.values():
                cast(Any, view).set_()


def _into(op: OpOverload, args: Any, kwargs: Any, out: Tensor) -> Callable[[], Any]:
    """Return a call of the operation that writes its result to `out`."""
    name, overload, as_recorded = _name(op), _overload(op), args
    if name in ("clone", "_to_copy"):
        return partial(out.copy_, args[0])
    writes_over = torch.Tag.pointwise in op.tags and isinstance(args[0], Tensor)
    if writes_over and _place(args[0]) == _place(out) and hasattr(out, f"{name}_"):
        return _in_place(op, (out, *args[1:]), kwargs)  # the same kernel, and quicker to call
    if name == "rsub":  # 1 - y; it has no fast `out` form of its own
        name, args = "sub", (args[1], args[0], *args[2:])
    if name in ("sum", "mean") and len(args) == 1:  # over all axes: with `out` they must be named
        args = (args[0], tuple(range(args[0].ndim)))
    if name in ("sum", "amax") and args[1:] and args[1] and len(args[1]) == 1:
        args = (args[0], args[1][0], *args[2:])  # a number is read faster than a list
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
    return lambda: out.copy_(op(*as_recorded, **kwargs))


def _into_several(call: Call, args: Any, kwargs: Any, outs: list[Tensor]) -> Callable[[], Any]:
    """Return a call of an operation with several results that copies them to `outs`."""
    numbers = [i for i, t in enumerate(call.outputs) if _memory(t) in call.made]

    def run() -> None:
        results = _tensors(call.op(*args, **kwargs))
        for number, out in zip(numbers, outs, strict=True):
            out.copy_(results[number])

    return run


def _in_place(op: OpOverload, args: Any, kwargs: Any) -> Callable[[], Any]:
    """Return a call of an operation that changes arguments; mostly the first one only."""
    name, (changed, *others) = _name(op).removesuffix("_"), args
    method = isinstance(changed, Tensor) and hasattr(changed, f"{name}_") and "out" not in kwargs
    if not method or name == "index_put":  # as a method it takes no None, for all of an axis
        return partial(op, *args, **kwargs)
    others = _with_tensors_for_numbers(name, others, changed)
    return partial(getattr(changed, f"{name}_"), *others, **kwargs)


def _with_tensors_for_numbers(name: str, args: Sequence[Any], like: Tensor) -> Sequence[Any]:
    """Return the arguments of an arithmetic operation with its Python numbers made into tensors.

    torch would do so at every call; for lerp it has a slower kernel for numbers. Only for the two
    types in which the number is rounded to the type of the operation anyway, so that the result
    stays the same bit for bit.
    """
    arithmetic = name in ("add", "sub", "mul", "div", "lerp")
    if not arithmetic or like.dtype not in (torch.float32, torch.float64):
        return args
    return [like.new_tensor(a) if isinstance(a, int | float) else a for a in args]


def _record_graph(step: Step, arguments: list[Tensor], tape: Tape) -> Recording:
    """Capture the step as a CUDA graph; the run that filled the tape was its warm-up."""
    for call in tape.calls:
        if not all(tensor.is_cuda for tensor in [*call.inputs, *call.outputs]):
            raise ValueError(
                f"a step on CUDA with a tensor of the CPU (in {_name(call.op)}) cannot be "
                "recorded: a replay would go on with its numbers; make it on the device"
            )
    calls = len(tape.calls)
    tape.calls.clear()  # and with them the results of the warm-up
    replay, memory = as_cuda_graph(step, arguments, tape.generators)
    return Recording(replay, calls, memory)


def as_cuda_graph(
    step: Callable[..., ResultT],
    arguments: Sequence[Tensor],
    generators: Sequence[torch.Generator] = (),
) -> tuple[Callable[..., ResultT], int]:
    """Capture a step that has been run before; return its replay, and the bytes that it holds.

    Nothing is computed here. `arguments` become the graph's: a replay copies into them. The graph
    has memory of its own, from which it takes all intermediate results.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        cast(Any, graph).register_generator_state(generator)
    # The outer stream is for a capture that fails: torch then goes on with the inner one.
    here = torch.cuda.current_stream()
    with _undisturbed(), torch.cuda.stream(here):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # so that all memory reserved below is the graph's
        before = torch.cuda.memory_reserved()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            result = step(*arguments)
        memory = torch.cuda.memory_reserved() - before

    def replay(*values: Tensor) -> ResultT:
        for own, value in zip(arguments, values, strict=True):
            own.copy_(value)
        graph.replay()
        return result

    return replay, memory


@contextmanager
def _undisturbed() -> Generator[None]:
    """Let a graph be captured inside that nothing from outside breaks into.

    Products of matrices take their workspace from the memory of the graph. torch keeps one for each
    stream, and gives it back when it likes: at the end of another graph of that stream, or when
    torch.compile makes a graph. This one would go on with memory that is somebody else's, or
    nobody's.

    The garbage collector waits. A recording and the step that it belongs to refer to each other,
    so those that are no longer used are there until it comes by, at any moment; and to destroy a
    graph while another is captured makes the capture fail.
    """
    with no_garbage_collection():
        _forget_workspaces()
        try:
            yield
        finally:
            _forget_workspaces()


@contextmanager
def no_garbage_collection() -> Generator[None]:
    """Collect garbage now, and not inside the `with` block."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


# The things that torch keeps private and a recording cannot do without.


def _negative(tensor: Tensor) -> Tensor:
    """Return a view that takes the numbers with the other sign, as the .imag of a conjugate is."""
    return cast(Any, torch)._neg_view(tensor)


def _forget_workspaces() -> None:
    cast(Any, torch._C)._cuda_clearCublasWorkspaces()  # pyright: ignore[reportPrivateUsage]


def _generators_of_torch() -> list[torch.Generator]:
    """Return the default generators: the CPU's, and that of each GPU once CUDA is in use."""
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *gpus]


def _schema(op: OpOverload) -> torch.FunctionSchema:
    return op._schema  # pyright: ignore[reportPrivateUsage]


def _name(op: OpOverload) -> str:
    return _schema(op).name.removeprefix("aten::")


def _overload(op: OpOverload) -> str:
    return op._overloadname  # pyright: ignore[reportPrivateUsage]


def _memory(tensor: Tensor) -> int:
    """Return what tells one piece of memory from another, whatever views there are of it."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _references(memory: int) -> int:
    """Return how many tensors lie in a piece of memory."""
    uses = cast(Any, torch._C)._storage_Use_Count  # pyright: ignore[reportPrivateUsage]
    alone = torch.empty(1)
    return uses(memory) - uses(_memory(alone)) + 1  # what asks holds it, too


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among arguments, or results, of an operation."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [tensor for branch in cast("list[Any]", tree) for tensor in _tensors(branch)]
    return []


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return the arguments with each tensor replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, list | tuple):
        branches = (_map(function, branch) for branch in cast("list[Any]", tree))
        return list(branches) if isinstance(tree, list) else tuple(branches)
    if isinstance(tree, dict):
        return {name: _map(function, leaf) for name, leaf in cast("dict[str, Any]", tree).items()}
    return tree


def _alias(tensor: Tensor) -> Tensor:
    # Not `view_as`: along an axis of length 1 it makes up the stride, by which kernels are chosen.
    return torch.ops.aten.alias.default(tensor)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    place = tensor.shape, tensor.stride(), tensor.storage_offset()
    kind = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return *place, *kind, tensor.untyped_storage().nbytes()


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), *_layout(tensor)


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor's memory, rounded up to cache lines."""
    return -(-tensor.untyped_storage().nbytes() // 64) * 64
