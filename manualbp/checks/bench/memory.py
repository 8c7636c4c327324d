"""How much memory a training step takes, counted in the same way for every variant.

Peak: the bytes of all tensors that are alive at the worst moment of a step. These are the batch
that was handed in, parameters, gradients, the optimiser's state, recorded buffers, and whatever the
step makes on its way, be it for an instant. A block of memory counts once however many views there
are of it. What an operation uses inside itself is not seen, on no side.

Saved: the bytes that wait between forward and backward pass for the latter, parameters left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manualbp.checks.bench.variants import Autograd, Timed
from manualbp.checks.bench.workloads import Batch, Problem
from manualbp.layers import Mode

WARM_UP = 3
"""Steps before the one that counts: after them all state is there, and the step is recorded."""


class Meter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the `with` block and are still alive."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler, two seconds long, to tell it to leave the meter alone.
        return False

    def __init__(self) -> None:
        cast(Any, super()).__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def peak_bytes(build: Callable[[], Timed], problem: Problem) -> int:
    """Return the peak of one step of the variant that `build` makes."""
    with Meter() as meter:
        variant = build()
        for _ in range(WARM_UP):
            variant.run([_on_device(problem)], 1)
        batch = _on_device(problem)
        meter.peak = meter.live
        variant.run([batch], 1)
        return meter.peak


def saved_by_hand(problem: Problem) -> int:
    """Return the bytes that the hand-written passes save."""
    step, params = problem.step, problem.start
    x, target = _on_device(problem)
    rows = step.micro_batch or len(x)
    masks = torch.Generator(problem.device).manual_seed(0)
    with torch.inference_mode():
        y, saved = step.model.forward(
            params.views, x[:rows].clone(), mode=Mode(training=True, generator=masks)
        )
        _, saved_error = step.loss.forward(y, target[:rows].clone())
    return _bytes(_tensors((saved, saved_error)), without=[params.flat])


def saved_by_autograd(problem: Problem) -> int:
    """Return the bytes that autograd saves."""
    autograd, saved = Autograd(problem), list[Tensor]()

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        autograd.eager_error(*_on_device(problem))
    return _bytes(saved, without=autograd.parameters.values())


def _on_device(problem: Problem) -> Batch:
    """Return a copy of a batch."""
    x, target = problem.batches[0]
    return x.to(problem.device, copy=True), target.to(problem.device, copy=True)


def _bytes(tensors: Iterable[Tensor], without: Iterable[Tensor]) -> int:
    """Return the bytes of the memory that these tensors keep, each piece once."""
    left_out = {id(tensor.untyped_storage()) for tensor in without}
    kept = {id(storage): storage for storage in (t.untyped_storage() for t in tensors)}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in left_out)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
