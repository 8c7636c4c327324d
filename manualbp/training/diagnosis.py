"""Find out where a run stopped being finite: the update, and the first tensor."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from manualbp.layers import EVALUATION, AnyLayer, Sequential
from manualbp.parameters import Parameters
from manualbp.training.data import Split
from manualbp.training.last_update import Weights
from manualbp.training.loop import Trainer


def first_not_finite(trainer: Trainer, model: AnyLayer, params: Parameters) -> str | None:
    """Make the updates of the epoch again, one by one, and name the first tensor not finite.

    `trainer.progress.steps` then is the number of that update. None where all of them are finite.

    The trainer stands where the epoch began, as `NotFinite` leaves it. Normal steps are not checked
    one by one: that would make the device wait for the host at each of them.
    """
    rows, _ = trainer.plan_epoch()
    for batch in rows.batches(trainer.progress.position):
        before = trainer.engine.copy_weights()
        trainer.engine.watch()
        y = trainer.engine.step(batch.x, batch.t)
        trainer.record(y)
        for name, tensor in _in_order(trainer, model, params, batch, before, y):
            if not tensor.isfinite().all():
                return name
    return None


def _in_order(
    trainer: Trainer, model: AnyLayer, params: Parameters, batch: Split, before: Weights, y: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an update by name, in the order in which they were computed."""
    yield "the input", batch.x
    params = params.clone()
    params.load_state_dict(before)
    if isinstance(model, Sequential):
        h = batch.x.to(params.working.dtype)
        for l, layer in enumerate(model.layers):
            h, _ = layer.forward(params.views[str(l)], h, mode=EVALUATION)
            yield f"the output of layer {l} ({type(layer).__name__})", h
    yield "the output of the network", y
    yield "the loss", trainer.objective.loss.forward(y, batch.t)[0]
    for name, gradient in trainer.engine.gradients().items():
        yield f"the gradient of {name}", gradient
    for name, weight in trainer.engine.weights().items():
        yield f"the parameter {name}", weight
