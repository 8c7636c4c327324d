"""Pass a training step through torch.compile as one program, and call that program directly.

What torch.compile returns asks at each call whether all that it saw in Python still holds. For a
small network that takes several times as long as the program. A step that depends on tensors only
needs none of it, as long as its arguments have the shapes of the first call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

from manualbp.errors import UsageError
from manualbp.recording import Step, as_cuda_graph, form

Run = Callable[[list[Tensor]], Sequence[Tensor]]


class Compiled:
    """`step`, compiled at the first call; arguments of other shapes than its go to `others`.

    To compile takes half a minute, so that is done for the usual batch only, and not for the
    last of an epoch, which may be smaller. The usual one has `rows` rows: those of the first call,
    or as set before, because a run that is resumed may begin with the last batch of an epoch.
    Tensors that the step reaches by itself are changed in place. No two of them may share memory,
    because the program takes each for independent of the others: ValueError where they do.
    """

    def __init__(self, step: Step, others: Step) -> None:
        self.rows = 0
        self._step = step
        self._others = others
        self._form: tuple[Any, ...] = ()
        self._run: Step | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Do what `step` does."""
        if self._run is None:
            self.rows = self.rows or len(arguments[0])
            if len(arguments[0]) != self.rows:
                return self._others(*arguments)
            self._form = form(arguments)
            with torch.inference_mode(False), torch.no_grad():
                return self._first(arguments)
        if form(arguments) == self._form:
            return self._run(*arguments)
        return self._others(*arguments)

    def _first(self, arguments: Sequence[Tensor]) -> Tensor:
        """Let torch.compile trace the step, keep the program, and return its first result.

        On CUDA the program is kept as a CUDA graph: to start its kernels from Python would take
        longer than they take.
        """
        own = [a.clone(memory_format=torch.contiguous_format) for a in arguments]

        def backend(graph: GraphModule, examples: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
            def run(*inputs: Tensor) -> Sequence[Tensor]:
                self._run = Program(graph, inputs, own)
                return [self._run(*own)]

            return run

        compiler = cast(Any, torch).compile
        traced = compiler(self._step, fullgraph=True, dynamic=False, backend=backend)
        result = traced(*own)
        torch.compiler.reset()  # torch keeps eight traces at most, and this has done its work
        if self._run and result.is_cuda:
            with torch.cuda.device(result.device):
                self._run, _ = as_cuda_graph(self._run, own)
        return result


class Program:
    """The machine code of a graph that torch.compile traced, and what to call it with.

    `inputs` are the arguments of the step and the tensors that it reaches by itself, in the order
    in which the graph takes them. Raises UsageError where torch's compiler fails, as it does where
    there is no C++ compiler.
    """

    def __init__(
        self, graph: GraphModule, inputs: Sequence[Tensor], arguments: Sequence[Tensor]
    ) -> None:
        memories = [tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.numel()]
        if len(set(memories)) < len(memories):
            raise ValueError("a step that reaches two tensors in one memory cannot be compiled")
        self._inputs = list(inputs)
        self._places = [
            (place, number)
            for place, tensor in enumerate(inputs)
            for number, argument in enumerate(arguments)
            if tensor is argument
        ]
        try:
            self._run = machine_code(graph, self._inputs)
        except (RuntimeError, OSError) as error:  # torch's compiler raises many kinds of the first
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"torch.compile fails here: {reason}; mend that, or train without --compile"
            ) from error

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the step's result for arguments of the same shapes."""
        for place, number in self._places:
            self._inputs[place] = arguments[number].contiguous()  # as were those of the first call
        return self._run(self._inputs)[0]


def machine_code(graph: GraphModule, inputs: list[Tensor]) -> Run:
    """Compile the graph with torch's compiler, TorchInductor."""
    import torch._inductor as inductor  # two seconds, for --compile only

    compiler = cast(Any, inductor)
    if inputs[0].is_cuda:  # what follows would take the CUDA toolkit besides
        with warnings.catch_warnings():
            # torch advises the user to switch on what is off on purpose unless asked for.
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            program = compiler.compile(graph, inputs)
        return lambda values: program(*values)
    # Ahead of time, so that the calls between the kernels are machine code too, not Python.
    exported = cast(Any, torch.export.export(graph, tuple(inputs)))
    # torch warns of calls between its own parts.
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):
        exported = exported.run_decompositions(_products())
        kept = _kept_as(exported, inputs)
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=kept.parent) as here:  # so that it is there whole or not
                package = str(Path(here, kept.name))
                compiler.aoti_compile_and_package(exported, package_path=package)
                Path(package).replace(kept)
        model = compiler.aoti_load_package(str(kept))
    # `model(...)` does the same, but first works out the structure of its arguments: 30 µs.
    return model.loader.run


def _kept_as(program: torch.export.ExportedProgram, inputs: Sequence[Tensor]) -> Path:
    """Return the file in torch's cache for the machine code of this program, there or not.

    Its name stands for all that the results depend on, so that whoever trains the same network
    again need not compile again. torch keeps by itself only what it compiles just in time.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    depends_on = (
        program.graph_module.code,
        program.graph_signature,
        {name: cast(Any, value).tolist() for name, value in program.constants.items()},
        [(t.shape, t.stride(), t.dtype, t.data_ptr() % 64) for t in inputs],
        torch.get_num_threads(),
        torch.__version__,
        cast(Any, torch.backends).cpu.get_cpu_capability(),
    )
    name = sha256(repr(depends_on).encode()).hexdigest()
    return Path(cache_dir(), "manualbp", f"{name}.pt2")


SMALL = 64
"""Multiplications of a product of matrices below which to call a library costs more than they do.
"""


def _products() -> dict[Any, Any]:
    """Return how products of matrices become operations that are fused with what comes next.

    A small product becomes a sum. A product that is added to something becomes the product alone;
    the library would first copy the other summand to where the result goes. The product lies as the
    other summand does, so that none of them is read across: gradients of weights lie transposed.
    """

    def product(a: Tensor, b: Tensor) -> Tensor:
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] * a.shape[1] * b.shape[1] > SMALL:
            return NotImplemented
        return (a[:, :, None] * b[None]).sum(1)

    def added(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        transposed = c.ndim == 2 and c.stride(0) == 1 < c.stride(1)
        return beta * c + alpha * ((b.T @ a.T).T if transposed else a @ b)

    aten = cast(Any, torch.ops).aten
    return {aten.matmul.default: product, aten.mm.default: product, aten.addmm.default: added}
