"""One flat tensor and its named views."""

import pytest
import torch
from torch import nn

from manualbp.layers import Linear, ReLU, Residual, Sequential
from manualbp.parameters import ALIGNMENT, Parameters

MODEL = Sequential(Linear(5, 4), ReLU(), Residual(Linear(4, 4, bias=False)), Linear(4, 3))
TWIN = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Identity(), nn.Linear(4, 3))
SHAPES = {
    "0.weight": (4, 5),
    "0.bias": (4,),
    "2.inner.weight": (4, 4),
    "3.weight": (3, 4),
    "3.bias": (3,),
}


@pytest.fixture
def params():
    return MODEL.parameters(torch.Generator().manual_seed(0))


def test_names_shapes_and_order_are_those_of_torch(params):
    assert {name: tuple(tensor.shape) for name, tensor in params.named().items()} == SHAPES
    assert list(params.named()) == list(SHAPES)


def test_views_are_places_in_the_flat_tensor(params):
    params.flat.zero_()
    params.views["2"]["inner"].weight[1, 2] = 7
    assert params.flat.sum() == 7
    params.flat.fill_(3)
    assert all((tensor == 3).all() for tensor in params.named().values())


def test_every_parameter_starts_at_a_cache_line_and_none_overlap(params):
    starts = [tensor.storage_offset() for tensor in params.named().values()]
    assert [start % ALIGNMENT for start in starts] == [0] * len(starts)
    for number, tensor in enumerate(params.named().values()):
        tensor.fill_(number)
    for number, tensor in enumerate(params.named().values()):
        assert (tensor == number).all()


def test_the_gaps_between_parameters_hold_zeros(params):
    for tensor in params.named().values():
        tensor.zero_()
    assert params.flat.numel() > sum(tensor.numel() for tensor in params.named().values())
    assert (params.flat == 0).all()


@pytest.mark.parametrize(("outputs", "rows_first"), [(15, True), (16, False)])
def test_a_matrix_lies_by_columns_unless_it_has_few_outputs(outputs, rows_first):
    weight = Linear(20, outputs).parameters().named()["weight"]
    assert weight.is_contiguous() == rows_first
    assert weight.T.is_contiguous() != rows_first


def test_an_unknown_parameter_is_named_with_those_there_are(params):
    with pytest.raises(
        AttributeError, match="no parameter 'weights' here; there are: weight, bias"
    ):
        _ = params.views["0"].weights


def test_zeros_like_and_clone_share_no_memory(params):
    before = params.flat.clone()
    params.zeros_like().flat.fill_(1)
    params.clone().flat.fill_(1)
    assert torch.equal(params.flat, before)
    assert torch.equal(params.clone().flat, before)
    assert params.zeros_like().flat.abs().sum() == 0
    assert list(params.zeros_like().named()) == list(SHAPES)


def test_a_state_dict_is_a_copy(params):
    state = params.state_dict()
    params.flat.zero_()
    assert state["0.weight"].abs().sum() > 0


def test_a_state_dict_goes_through_a_file_of_torch(params, tmp_path):
    torch.save(params.state_dict(), tmp_path / "weights.pt")
    other = params.zeros_like()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other.flat, params.flat)


def test_values_of_another_dtype_are_converted_on_loading(params):
    double = Parameters.zeros(MODEL.shapes(), dtype=torch.float64)
    double.load_state_dict(params.state_dict())
    assert double.flat.dtype == torch.float64
    assert torch.equal(double.flat.float(), params.flat)


def changed(state, name, tensor):
    state = dict(state)
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("3.bias", None, "parameter '3.bias' is missing; expected: 0.weight, 0.bias, 2.inner"),
        ("4.bias", torch.zeros(3), "there is no parameter '4.bias' here; expected: 0.weight"),
        ("3.bias", torch.zeros(4), r"parameter '3.bias' has shape \(4,\), expected \(3,\)"),
        ("3.bias", torch.zeros(1), r"parameter '3.bias' has shape \(1,\), expected \(3,\)"),
    ],
    ids=["missing", "superfluous", "misshapen", "would broadcast"],
)
def test_a_state_dict_that_does_not_fit_is_refused_whole(params, name, tensor, message):
    other = params.zeros_like()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(changed(params.state_dict(), name, tensor))
    assert (other.flat == 0).all()


def test_torch_refuses_what_does_not_fit_it():
    """The other direction: the twin takes a state dict of its own shapes only."""
    state = Sequential(Linear(5, 4), ReLU(), ReLU(), Linear(4, 3)).parameters().state_dict()
    assert list(state) == list(TWIN.state_dict())
    TWIN.load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        TWIN.load_state_dict(changed(state, "3.bias", torch.zeros(4)))


def test_parameters_are_on_the_device_and_in_the_dtype_asked_for(device):
    params = MODEL.parameters(dtype=torch.bfloat16, device=device)
    assert params.flat.dtype == torch.bfloat16
    assert params.views["0"].weight.device.type == device
    on_cpu = MODEL.parameters(torch.Generator().manual_seed(0))
    moved = MODEL.parameters(torch.Generator().manual_seed(0), device=device)
    assert torch.equal(moved.flat.cpu(), on_cpu.flat)


def test_a_model_without_parameters_has_an_empty_flat_tensor():
    params = Sequential(ReLU()).parameters()
    assert params.flat.shape == (0,)
    assert params.state_dict() == {}
