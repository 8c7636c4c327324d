"""What hand-written code is made of: its operations, its imports, and where its results lie.

That each layer, loss and model keeps to the list is among the promises in test_layers.py,
test_losses.py and test_models.py; here is the rest of a training step, and the list itself.
"""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import manualbp
import reference
from manualbp.checks.audit import (
    ALLOWED_OPERATIONS,
    Recorder,
    import_faults,
    reference_import_faults,
)
from manualbp.checks.contract import loss_case, record, record_update
from manualbp.checks.registry import layer_cases, loss_cases
from manualbp.layers import Linear, Mode, Sequential
from manualbp.losses import Penalty
from manualbp.optimizers import clip_norm_, clip_value_
from manualbp.parameters import Parameters
from reference.optimizers import CASES as RULES

MODEL = Sequential(Linear(5, 4), Linear(4, 3))


def recorded(function, *arguments):
    recorder = Recorder()
    with recorder:
        function(*arguments)
    return recorder


def clip_norm(device):
    return {"clip_norm_": recorded(clip_norm_, torch.ones(8, device=device), 0.5)}


def clip_value(device):
    return {"clip_value_": recorded(clip_value_, torch.ones(8, device=device), 0.5)}


def passes_of(thing):
    """Return a function that gives the recorders of a rule's or a penalty's passes on a device."""

    def passes(device):
        if not isinstance(thing, Penalty):
            return record_update(thing, torch.ones(8, device=device))
        params = Parameters.zeros(MODEL.shapes(), device=device)
        return {
            "forward": recorded(thing.forward, params),
            "backward": recorded(thing.backward, params, params.zeros_like()),
        }

    return passes


REST_OF_A_STEP = {"clip_norm_": clip_norm, "clip_value_": clip_value}
REST_OF_A_STEP |= {str(thing): passes_of(thing) for thing in (*RULES, Penalty(1), Penalty(1, "l1"))}
EACH = pytest.mark.parametrize("passes", REST_OF_A_STEP.values(), ids=REST_OF_A_STEP)


@EACH
def test_the_rest_of_a_step_keeps_to_the_list(passes, device):
    found = {name: recorder.forbidden() for name, recorder in passes(device).items()}
    assert not any(found.values()), found


@EACH
def test_the_rest_of_a_step_stays_on_the_gpu(passes):
    with FakeTensorMode():
        recorders = passes("cuda")
    for name, recorder in recorders.items():
        assert recorder.operations
        for operation, devices in recorder.operations.items():
            assert devices <= {"cuda"}, (name, operation)


def test_every_operation_on_the_list_is_used():
    used = set()
    for case in [*layer_cases(), *map(loss_case, loss_cases())]:
        params = case.layer.parameters(dtype=torch.float64)
        x = case.x(torch.Generator().manual_seed(0))
        for recorder in record(case.layer, params, x, Mode(case.training)).values():
            used |= recorder.operations.keys()
    for passes in REST_OF_A_STEP.values():
        for recorder in passes("cpu").values():
            used |= recorder.operations.keys()
    assert frozenset().union(*ALLOWED_OPERATIONS.values()) == used


def test_no_operation_is_listed_twice():
    names = [name for group in ALLOWED_OPERATIONS.values() for name in group]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        ("relu", torch.relu),
        ("_softmax", lambda x: x.softmax(-1)),
        ("_log_softmax", lambda x: x.log_softmax(-1)),
        ("gelu", torch.nn.functional.gelu),
        ("sigmoid_backward", lambda x: torch.ops.aten.sigmoid_backward(x, x)),
        ("threshold_backward", lambda x: torch.ops.aten.threshold_backward(x, x, 0)),
        ("native_layer_norm", lambda x: torch.layer_norm(x, (4,))),
        ("convolution", lambda x: torch.conv1d(x[None], x[None])),
        ("mse_loss", torch.nn.functional.mse_loss),
    ],
)
def test_an_operation_that_is_a_layer_is_seen(operation, function):
    x = torch.ones(4, 4)
    arguments = (x, x) if operation == "mse_loss" else (x,)
    assert operation in recorded(function, *arguments).forbidden()


def test_a_number_read_back_and_a_branch_on_data_are_seen():
    with FakeTensorMode():
        x = torch.ones(4, device="cuda")
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(DataDependentOutputException):
            bool(x.sum() > 0)


def test_a_result_on_another_device_is_seen():
    with FakeTensorMode():
        x = torch.ones(4, device="cuda")
        recorder = recorded(lambda: x * torch.tensor(2.0))
    assert any("cpu" in devices for devices in recorder.operations.values())


def test_the_imports_run_one_way():
    assert import_faults(Path(manualbp.__file__).parent) == []


def test_the_twins_call_no_hand_written_pass():
    assert reference_import_faults(Path(reference.__file__).parent) == []


def faults(folder, audit, path, source):
    """Return the faults of a package with one file."""
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_text(source)
    return audit(folder / Path(path).parts[0])


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("layers/new.py", "import torch.nn", "manualbp/layers/new.py:1 uses torch.nn"),
        ("layers/new.py", "\nfrom torch import nn", "manualbp/layers/new.py:2 uses torch.nn"),
        ("layers/new.py", "from torch.nn import Linear", "uses torch.nn.Linear"),
        ("layers/new.py", "import torch.nn.functional as F", "uses torch.nn.functional"),
        ("layers/new.py", "y = torch.nn.functional.relu(x)", "uses torch.nn.functional.relu"),
        ("layers/new.py", "g = torch.autograd.grad(y, x)", "uses torch.autograd.grad"),
        ("layers/new.py", "from torch.func import vjp", "uses torch.func.vjp"),
        ("training/loop.py", "from torch.optim import SGD", "uses torch.optim.SGD"),
        ("optimizers.py", "from reference.twins import twin", "uses reference.twins"),
        ("layers/new.py", "x.requires_grad_()", "uses requires_grad_"),
        ("losses.py", "x = torch.ones(3, requires_grad=True)", "uses requires_grad"),
        ("layers/new.py", "loss.backward()", "calls autograd's .backward()"),
        ("layers/new.py", "import manualbp.losses", "imports manualbp.losses, expected:"),
        ("layers/new.py", "from manualbp import losses", "imports manualbp.losses, expected:"),
        ("layers/new.py", "from .. import losses", "imports ...losses, expected:"),
        ("losses.py", "from manualbp.layers import Linear", "imports manualbp.layers.Linear"),
        ("optimizers.py", "from manualbp.layers import Linear", "imports manualbp.layers.Linear"),
        ("models.py", "from manualbp.training import data", "imports manualbp.training.data"),
        ("training/a.py", "import manualbp.checks", "imports manualbp.checks"),
        ("training/a.py", "from manualbp.cli import run", "imports manualbp.cli.run"),
        ("new.py", "", "manualbp/new.py has no line in MAY_IMPORT"),
    ],
)
def test_a_forbidden_import_is_named(path, source, fault, tmp_path):
    found = faults(tmp_path, import_faults, f"manualbp/{path}", source)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("layers/new.py", "import torch\nfrom manualbp.layers.base import Layer\n"),
        ("layers/new.py", "dx = self.inner.backward(params, saved, dy, grads)"),
        ("layers/new.py", "from manualbp.parameters import Views"),
        ("models.py", "from manualbp.layers import Linear"),
        ("training/loop.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("checks/new.py", "import torch.nn\nfrom reference.twins import twin\nE.backward()"),
        ("cli.py", "from manualbp.checks import agreement"),
    ],
)
def test_what_the_design_allows_is_no_fault(path, source, tmp_path):
    assert faults(tmp_path, import_faults, f"manualbp/{path}", source) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from manualbp.checks import contract", "imports manualbp.checks.contract"),
        ("from manualbp.training.step import TrainingStep", "imports manualbp.training.step"),
        ("y, _ = layer.forward(params, x)", "calls .forward()"),
        ("dx = layer.backward(params, saved, dy, grads)", "calls .backward()"),
    ],
)
def test_a_twin_that_uses_the_other_side_is_named(source, fault, tmp_path):
    found = faults(tmp_path, reference_import_faults, "reference/new.py", source)
    assert any(fault in line for line in found), found
