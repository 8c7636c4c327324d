"""Hand-written layers inside ordinary torch models."""

import gc
import subprocess
import sys
import weakref
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from manualbp import as_function
from manualbp.checks.agreement import Inputs, Results, autograd_results, by_hand, make_inputs
from manualbp.checks.registry import case_owner, layer_cases
from manualbp.errors import UsageError
from manualbp.layers import Dropout, Layer, Linear, Maxout, Residual, Sequential, Sigmoid, Tanh
from manualbp.layers.base import EVALUATION, Mode, SavedInput
from manualbp.parameters import Shapes, Views
from reference.cases import Case
from reference.twins import twin

CASES = layer_cases()
SMOOTH = [case for case in CASES if not case.kinks]  # gradcheck knows central differences only
NOT_RANDOM = [case for case in CASES if not case.training or "Dropout" not in repr(case.layer)]
ONE_EACH = list({case_owner(case): case for case in NOT_RANDOM}.values())
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def name(case: Case) -> str:
    return f"{case_owner(case)}, {case.name}"


def adapted(case: Case, inputs: Inputs) -> nn.Module:
    module = as_function(case.layer, inputs.parameters, generator=inputs.generator())
    return module.train(case.training)


@pytest.mark.parametrize("case", SMOOTH, ids=name)
def test_gradcheck_slow_and_fast(case: Case) -> None:
    inputs = make_inputs(case, torch.float64, "cpu", seed=3)
    module = adapted(case, inputs)
    named = dict(module.named_parameters())

    def f(x: Tensor, *weights: Tensor) -> Tensor:
        module.generator = inputs.generator()  # the same masks at every call
        return functional_call(module, dict(zip(named, weights, strict=True)), (x,))

    leaves = [tensor.detach().clone().requires_grad_() for tensor in (inputs.x, *named.values())]
    for fast_mode in (False, True):
        assert gradcheck(f, leaves, rtol=1e-5, atol=1e-7, nondet_tol=0.0, fast_mode=fast_mode)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_gradients_are_those_of_the_layer(case: Case, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype, "cpu", seed=4)
    ours = autograd_results(adapted(case, inputs), inputs)
    expected = by_hand(case.layer, inputs, training=case.training)
    assert ours.keys() == expected.keys()
    for tensor, value in ours.items():
        torch.testing.assert_close(value, expected[tensor], equal_nan=True)


@pytest.mark.parametrize("case", ONE_EACH, ids=name)
def test_opcheck(case: Case) -> None:
    # opcheck is about operators, so the module is made one here. It does not apply to layers that
    # draw random numbers, because it compares two runs.
    inputs = make_inputs(case, torch.float64, "cpu", seed=5)
    module = adapted(case, inputs)
    named = dict(module.named_parameters())

    def f(x: Tensor, weights: list[Tensor]) -> Tensor:
        return functional_call(module, dict(zip(named, weights, strict=True)), (x,))

    library = torch.library.Library("manualbp_adapter", "DEF")
    try:
        library.define("layer(Tensor x, Tensor[] weights) -> Tensor")
        library.impl("layer", f, "CompositeImplicitAutograd")
        leaves = [w.detach().clone().requires_grad_() for w in named.values()]
        x = inputs.x.detach().clone().requires_grad_()
        found = torch.library.opcheck(torch.ops.manualbp_adapter.layer.default, (x, leaves))
        assert set(found.values()) == {"SUCCESS"}
    finally:
        library._destroy()


def test_it_stands_in_an_ordinary_model_and_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        as_function(Linear(4, 8)), nn.ReLU(inplace=True), as_function(Maxout(8, 3)), nn.Tanh()
    )
    x, t = torch.randn(20, 4), torch.randn(20, 3).tanh() / 2
    rule = torch.optim.Adam(model.parameters(), lr=0.05)
    losses: list[float] = []
    for _ in range(100):
        rule.zero_grad()
        loss = nn.functional.mse_loss(model(x), t)
        loss.backward()
        rule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_names_values_and_copies() -> None:
    layer = Sequential(Linear(3, 5), Tanh(), Residual(Sequential(Linear(5, 5), Sigmoid())))
    parameters = layer.parameters(torch.Generator().manual_seed(1), dtype=torch.float64)
    module = as_function(layer, parameters)
    module_twin = twin(layer).double()
    module_twin.load_state_dict(module.state_dict())
    assert list(module.state_dict()) == list(module_twin.state_dict())
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(module(x), module_twin(x))
    assert "Linear(in_features=3" in repr(module)
    other = deepcopy(module)
    with torch.no_grad():
        next(other.parameters()).zero_()
    torch.testing.assert_close(module(x), module_twin(x))
    # The parameters are copies too: training the model leaves those that were given alone.
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert parameters.named()["0.weight"].abs().min() > 0


def test_twice_in_one_graph() -> None:
    layer = Linear(4, 4)
    module, inputs = as_function(layer).double(), torch.randn(3, 4, dtype=torch.float64)
    torch_side = nn.Linear(4, 4, dtype=torch.float64)
    torch_side.load_state_dict(module.state_dict())
    found: list[list[Tensor]] = []
    for f in (module, torch_side):
        x = inputs.clone().requires_grad_()
        y = f(f(x).tanh()) + f(x)
        found.append(list(torch.autograd.grad(y.square().sum(), [x, *f.parameters()])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_two_names_for_one_weight() -> None:
    tied = as_function(Sequential(Linear(3, 3, bias=False), Tanh(), Linear(3, 3, bias=False)))
    plain = twin(tied.layer)
    plain.load_state_dict(tied.state_dict())
    x = torch.randn(5, 3)
    gradients: list[Tensor] = []
    for module in (tied, plain):
        module.get_submodule("2").weight = module.get_submodule("0").weight
        module(x).sum().backward()
        (weight,) = module.parameters()
        assert weight.grad is not None
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)


UPSTREAM = {
    "expanded": lambda y: torch.randn((), dtype=y.dtype).expand(y.shape),
    "transposed": lambda y: torch.randn(y.shape[::-1], dtype=y.dtype).T,
    "strided": lambda y: torch.randn(y.shape[0], 2 * y.shape[1], dtype=y.dtype)[:, ::2],
}


@pytest.mark.parametrize("kind", UPSTREAM)
def test_upstream_gradients_of_any_layout(kind: str) -> None:
    case = next(case for case in CASES if case.name == "nested, with dropout")
    inputs = make_inputs(case, torch.float64, "cpu", seed=6)
    dy = UPSTREAM[kind](inputs.dy)
    before = dy.clone()
    odd = Inputs(inputs.parameters, inputs.x, dy, inputs.seed)
    plain = Inputs(inputs.parameters, inputs.x, before, inputs.seed)
    ours: Results = autograd_results(adapted(case, odd), odd)
    expected = autograd_results(adapted(case, plain), plain)
    for tensor, value in ours.items():
        torch.testing.assert_close(value, expected[tensor])
    torch.testing.assert_close(dy, before, rtol=0, atol=0)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x weight", "weight bias", "x bias"])
def test_only_what_is_asked_for(wanted: str) -> None:
    module = as_function(Linear(3, 2))
    x = torch.randn(4, 3)
    tensors = {"x": x, **dict(module.named_parameters())}
    for tensor_name, tensor in tensors.items():
        tensor.requires_grad_(tensor_name in wanted.split())
    module(x).square().sum().backward()
    assert [n for n, tensor in tensors.items() if tensor.grad is not None] == wanted.split()


def test_data_costs_no_dx() -> None:
    """Where x needs no gradient the layer is not asked for dx."""

    @dataclass(frozen=True)
    class NoDx(Linear):
        def backward(self, params: Views, saved: SavedInput, dy: Tensor, grads: Views) -> Tensor:
            raise AssertionError("nobody needs dx")

    module = as_function(NoDx(3, 2))
    module(torch.randn(4, 3)).sum().backward()
    assert next(module.parameters()).grad is not None


@dataclass(frozen=True)
class Rows(Layer[SavedInput]):
    """y[n,:] = W[x[n],:], for whole numbers x."""

    def shapes(self) -> Shapes:
        return {"weight": (5, 3)}

    def forward(
        self, params: Views, x: Tensor, *, mode: Mode = EVALUATION
    ) -> tuple[Tensor, SavedInput]:
        return params.weight[x], SavedInput(x)

    def backward(self, params: Views, saved: SavedInput, dy: Tensor, grads: Views) -> Tensor:
        grads.weight.index_add_(0, saved.x, dy)
        return torch.zeros_like(saved.x)


def test_whole_numbers_have_no_gradient() -> None:
    module = as_function(Rows())
    x = torch.tensor([1, 1, 4])
    (dW,) = torch.autograd.grad(module(x), list(module.parameters()), torch.ones(3, 3))
    assert dW.sum(1).tolist() == [0, 6, 0, 0, 3]


def test_a_random_layer_draws_from_its_generator() -> None:
    generator = torch.Generator().manual_seed(7)
    module = as_function(Dropout(0.5), generator=generator)
    x = torch.ones(1000, requires_grad=True)
    first = module(x)
    (dx,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(dx, first.detach())  # the mask of its own forward pass
    second = module(x)
    assert not torch.equal(first, second)
    generator.manual_seed(7)
    assert torch.equal(module(x), first)
    assert torch.equal(module.eval()(x), x)


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(3, requires_grad=True)
    y = as_function(Tanh())(x)
    with pytest.raises(RuntimeError, match="the hand-written Tanh has first derivatives only"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_a_weight_that_changes_before_the_backward_pass_is_noticed() -> None:
    module = as_function(Linear(3, 2))
    y = module(torch.randn(4, 3, requires_grad=True))
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_memory_is_let_go() -> None:
    x = torch.randn(3, requires_grad=True)
    y = as_function(Sigmoid())(x)
    seen = weakref.ref(y)
    gc.disable()
    try:
        del y  # kept by a circle of references it would stay until the collector comes
        assert seen() is None
    finally:
        gc.enable()


def test_an_input_stays_as_it_is() -> None:
    x = torch.randn(3, requires_grad=True)
    y = as_function(Dropout(0.5)).eval()(x)
    before = y.detach().clone()
    y.relu_()
    assert torch.equal(x, before)


def test_what_is_no_layer() -> None:
    with pytest.raises(UsageError, match=r"as_function takes a layer .* not a ReLU"):
        as_function(nn.ReLU())


def test_importing_manualbp_stays_light() -> None:
    program = (
        "import sys, manualbp; assert not {'reference', 'manualbp.checks'} & sys.modules.keys();"
        "manualbp.as_function; assert 'manualbp.checks.adapter' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert sys.modules["manualbp"].as_function is as_function
