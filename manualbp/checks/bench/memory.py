"""How much memory a training step takes, counted in the same way for every variant.

Live: the bytes of all tensors that are alive between two steps. These are the batch that is handed
in, parameters, gradients, the optimiser's state, and the memory of a recording.
Step: the most bytes alive at once of those that a step makes on its way, be it for an instant.
Peak: the most bytes alive at once of all. It is less than live and step together where a step
begins by giving something back, as autograd does with the last gradients.
A block of memory counts once however many views there are of it. What an operation uses inside
itself is not seen, on no side.

Saved: the bytes that wait between forward and backward pass for the latter, parameters left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Memory:
    """Bytes, in the words of the module's docstring."""

    live: int
    step: int
    peak: int

    @property
    def total(self) -> int:
        """Return live and step together: what two variants are compared by."""
        return self.live + self.step


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
        self.begin_step()

    def begin_step(self) -> None:
        """Count from here what a step makes, apart from what is there already."""
        self.before = self.peak = self.live
        self.made = 0
        self.most_made = 0
        self._old = set(self._known)

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
            if key in self._old:
                self._old.remove(key)
            else:
                self.made -= size

        self._known[key] = ref(storage, gone)
        self.live += size
        self.made += size
        self.peak = max(self.peak, self.live)
        self.most_made = max(self.most_made, self.made)


def memory_of_step(build: Callable[[], Timed], problem: Problem) -> Memory:
    """Return what one step takes of the variant that `build` makes."""
    with Meter() as meter:
        variant = build()
        for _ in range(WARM_UP):
            variant.run([_on_device(problem)], 1)
        batch = _on_device(problem)
        meter.begin_step()
        variant.run([batch], 1)
        return Memory(meter.before, meter.most_made, meter.peak)


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
