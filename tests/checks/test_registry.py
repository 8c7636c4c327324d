"""The registry: everything is found, and what is missing on one side is named with its file."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

import manualbp.layers.linear
import reference.layers.linear
from manualbp.checks import registry
from manualbp.layers import Dropout, Layer, Linear, Residual, Sequential, Softmax
from manualbp.losses import CrossEntropyLoss, MSELoss
from reference.twins import twin


@dataclass(frozen=True)
class NewLayer(Layer):
    """A hand-written layer of which nobody else knows."""

    def forward(self, params, x, *, mode=None):
        raise NotImplementedError

    def backward(self, params, saved, dy, grads):
        raise NotImplementedError


@pytest.fixture
def new_layer(monkeypatch):
    """Let NewLayer stand in manualbp/layers/linear.py."""
    monkeypatch.setattr(NewLayer, "__module__", "manualbp.layers.linear")
    monkeypatch.setattr(manualbp.layers.linear, "NewLayer", NewLayer, raising=False)


def test_every_layer_and_loss_has_a_twin_with_cases():
    assert registry.gaps() == []


def test_layers_and_losses_are_found():
    assert {Linear, Softmax, Dropout, Residual, Sequential} <= set(registry.layers())
    assert Layer not in registry.layers()  # the protocol is no layer
    assert {MSELoss, CrossEntropyLoss} <= set(registry.losses())


def test_every_layer_and_loss_found_is_run_over():
    names = {cls.__name__ for cls in [*registry.layers(), *registry.losses()]}
    assert names == {registry.case_owner(case) for case in registry.find_cases("all")}


def test_cases_are_found_by_the_name_of_the_layer_or_loss():
    assert {type(case.layer) for case in registry.find_cases("Linear")} == {Linear}
    assert {type(case.loss) for case in registry.find_cases("MSELoss")} == {MSELoss}
    assert registry.find_cases("Linea") == []


def test_case_names_are_unique_for_each_configuration():
    """A failure names layer, case and seed; that must lead to one case only."""
    seen = [(repr(case.layer), case.name) for case in registry.layer_cases()]
    assert len(seen) == len(set(seen))


@pytest.mark.usefixtures("new_layer")
def test_a_layer_without_a_twin_is_a_gap():
    path = "reference/layers/linear.py"
    assert registry.gaps() == [f"NewLayer has no twin: {path} does not define it"]
    with pytest.raises(LookupError, match=f"NewLayer has no twin: {path} does not define it"):
        twin(NewLayer())


@pytest.mark.usefixtures("new_layer")
def test_a_layer_without_a_case_is_a_gap(monkeypatch):
    monkeypatch.setattr(reference.layers.linear, "NewLayer", object, raising=False)
    line = "NewLayer has no case: CASES in reference/layers/linear.py does not name it"
    assert registry.gaps() == [line]


def test_a_layer_whose_twin_has_no_file_is_a_gap(monkeypatch):
    monkeypatch.setattr(NewLayer, "__module__", "manualbp.layers.new")
    monkeypatch.setattr(registry, "layers", lambda: [NewLayer])
    path = "reference/layers/new.py"
    assert f"NewLayer has no twin: the file {path} is missing" in registry.gaps()
    with pytest.raises(LookupError, match=f"the file {path} is missing"):
        twin(NewLayer())


def test_a_file_of_twins_without_layers_is_a_gap(monkeypatch):
    def families(path):
        names = ["linear", "convolution"] if "reference" in str(list(path)) else ["linear"]
        return [SimpleNamespace(name=name) for name in names]

    monkeypatch.setattr(registry, "iter_modules", families)
    line = "reference/layers/convolution.py has no manualbp/layers counterpart"
    assert registry.gaps() == [line]


def test_a_twin_has_the_settings_of_its_layer_and_of_the_layers_inside():
    module = twin(Sequential(Residual(Softmax(dim=0)), Dropout(0.25)))
    assert module[0].inner.dim == 0
    assert module[1].p == 0.25
