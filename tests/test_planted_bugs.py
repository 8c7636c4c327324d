"""The tests are tested: a bug planted in a layer must be found by the check that is there for it.

Each function below is a wrong method that takes the place of a right one. Above it stand the class
and the method, a case, and the checks that must reject it: the very checks that
tests/layers/test_layers.py and tests/test_losses.py run.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from manualbp.checks import contract
from manualbp.checks.contract import (
    accumulation,
    agreement,
    empty_batch,
    fake_cuda,
    first_layer,
    layouts,
    loss_case,
    numerical_derivatives,
    reentrance,
    state_dicts,
    untouched_arguments,
    wider_gradients,
)
from manualbp.layers import Dropout, Linear, Maxout, ReLU, Residual, Sigmoid, Softmax, Step, Tanh
from manualbp.layers.base import SavedInput, SavedOutput
from manualbp.losses import CrossEntropyLoss, HalfSquaredError, MSELoss, SavedError
from reference.cases import Case, LossCase

LINEAR = Case("odd", Linear(7, 3), (9, 7))
LARGE = Case("large", Linear(40, 30), (9, 40))  # 1200 weights
SQUARE = Case("square", Linear(5, 5), (4, 5))
SIGMOID = Case("normal", Sigmoid(), (4, 5))
SOFTMAX = Case("normal", Softmax(), (4, 5))
MAXOUT = Case("normal", Maxout(5, 3), (4, 5))
RESIDUAL = Case("normal", Residual(Linear(5, 5)), (4, 5))
KINK = Case("kink", ReLU(0.5), (3,), values=(-1.0, 0.0, 1.0), kinks=True)
MSE = loss_case(LossCase("mean", MSELoss(), (4, 3)))
CROSS_ENTROPY = loss_case(LossCase("smoothed", CrossEntropyLoss(), (7, 5), "some ignored"))

# The right methods, for those wrong ones that are right but for one thing.
RIGHT = SimpleNamespace(
    cross_entropy=CrossEntropyLoss.backward,
    dropout=Dropout.forward,
    linear=Linear.backward,
    linear_forward=Linear.forward,
    linear_shapes=Linear.shapes,
    maxout=Maxout.backward,
    sigmoid=Sigmoid.backward,
)


@dataclass(frozen=True)
class Bug:
    cls: type
    method: str
    case: Case
    checks: tuple[contract.Check, ...]
    wrong: object


BUGS: list[Bug] = []


def plant(cls, method, case, *checks):
    def add(wrong):
        BUGS.append(Bug(cls, method, case, checks, wrong))
        return wrong

    return add


# Wrong formulas


@plant(Linear, "backward", LINEAR, agreement, numerical_derivatives)
def sign_of_dx_flipped(self, params, saved, dy, grads):
    return -RIGHT.linear(self, params, saved, dy, grads)


@plant(Linear, "backward", LARGE, agreement, numerical_derivatives)
def one_weight_in_a_thousand_off_by_a_thousandth(self, params, saved, dy, grads):
    before = grads.weight[7, 7].clone()
    dx = RIGHT.linear(self, params, saved, dy, grads)
    grads.weight[7, 7] = before + 0.999 * (grads.weight[7, 7] - before)
    return dx


@plant(Linear, "backward", SQUARE, agreement, numerical_derivatives)
def gradient_of_a_square_weight_transposed(self, params, saved, dy, grads):
    grads.weight.add_(saved.x.T @ dy)
    grads.bias.add_(dy.sum(0))
    return dy @ params.weight


@plant(Linear, "backward", SQUARE, agreement, numerical_derivatives)
def dx_by_the_weight_transposed(self, params, saved, dy, grads):
    RIGHT.linear(self, params, saved, dy, grads)
    return dy @ params.weight.T


@plant(Linear, "backward", LINEAR, agreement, numerical_derivatives)
def bias_averaged_over_the_batch(self, params, saved, dy, grads):
    grads.weight.addmm_(dy.T, saved.x)
    grads.bias.add_(dy.mean(0))
    return dy @ params.weight


@plant(Linear, "backward", LINEAR, agreement, numerical_derivatives)
def bias_of_the_first_example_only(self, params, saved, dy, grads):
    grads.weight.addmm_(dy.T, saved.x)
    grads.bias.add_(dy[0])
    return dy @ params.weight


@plant(Linear, "backward", LINEAR, agreement, numerical_derivatives, accumulation, first_layer)
def gradient_of_the_bias_forgotten_by_backward(self, params, saved, dy, grads):
    grads.weight.addmm_(dy.T, saved.x)
    grads.bias.zero_()
    return dy @ params.weight


@plant(Linear, "backward_parameters", LINEAR, wider_gradients)
def gradients_summed_in_the_type_of_dy(self, params, saved, dy, grads):
    grads.weight.copy_(grads.weight.to(dy.dtype).addmm(dy.T, saved.x))
    grads.bias.add_(dy.sum(0))


@plant(Residual, "backward_parameters", RESIDUAL, first_layer)
def gradients_forgotten_by_the_first_layer(self, params, saved, dy, grads):
    pass


@plant(Sigmoid, "backward", SIGMOID, agreement, numerical_derivatives)
def dy_ignored(self, params, saved, dy, grads):
    return saved.y * (1 - saved.y)


@plant(Sigmoid, "backward", SIGMOID, agreement, numerical_derivatives)
def derivative_taken_at_y(self, params, saved, dy, grads):
    p = saved.y.sigmoid()
    return dy * p * (1 - p)


@plant(Softmax, "backward", SOFTMAX, agreement, numerical_derivatives)
def softmax_without_the_mean(self, params, saved, dy, grads):
    return saved.y * dy


@plant(Softmax, "backward", SOFTMAX, agreement, numerical_derivatives)
def softmax_with_the_mean_along_another_axis(self, params, saved, dy, grads):
    return saved.y * (dy - (dy * saved.y).sum(0, keepdim=True))


@plant(Maxout, "backward", MAXOUT, agreement, numerical_derivatives)
def every_piece_wins(self, params, saved, dy, grads):
    everyone = saved._replace(share=torch.ones_like(saved.share))
    return RIGHT.maxout(self, params, everyone, dy, grads)


@plant(Residual, "backward", RESIDUAL, agreement, numerical_derivatives)
def skip_forgotten(self, params, saved, dy, grads):
    return self.inner.backward(params["inner"], saved, dy, grads["inner"])


@plant(ReLU, "backward", KINK, agreement)
def slope_at_the_kink_not_the_configured_one(self, params, saved, dy, grads):
    return dy * (saved.slope > 0)


@plant(ReLU, "backward", KINK, agreement, numerical_derivatives)
def slope_at_the_kink_between_no_slopes(self, params, saved, dy, grads):
    return dy * torch.heaviside(saved.slope, torch.full_like(saved.slope, 1.5))


@plant(Dropout, "forward", Case("", Dropout(), (4, 5), training=False), agreement)
def dropout_in_evaluation_too(self, params, x, *, mode):
    return RIGHT.dropout(self, params, x, mode=mode._replace(training=True))


@plant(Sigmoid, "backward", SIGMOID, agreement)
def result_in_another_dtype(self, params, saved, dy, grads):
    return RIGHT.sigmoid(self, params, saved, dy, grads).float()


@plant(Sigmoid, "backward", SIGMOID, agreement)
def computed_in_float32(self, params, saved, dy, grads):
    return (dy.float() * (saved.y * (1 - saved.y)).float()).to(dy.dtype)


@plant(MSELoss, "backward", MSE, agreement, numerical_derivatives)
def two_forgotten(self, saved, dE=1.0):
    return saved.error * (dE / saved.error.numel())


@plant(MSELoss, "backward", MSE, agreement, numerical_derivatives)
def upstream_factor_of_a_loss_ignored(self, saved, dE=1.0):
    return saved.error * (2 / saved.error.numel())


@plant(CrossEntropyLoss, "backward", CROSS_ENTROPY, agreement, numerical_derivatives)
def ignored_examples_divided_by_too(self, saved, dE=1.0):
    return RIGHT.cross_entropy(self, saved, dE) * (saved.total / len(saved.q))


# Broken promises


@plant(Linear, "backward", LINEAR, accumulation)
def assigned_instead_of_added(self, params, saved, dy, grads):
    grads.weight.copy_(dy.T @ saved.x)
    grads.bias.copy_(dy.sum(0))
    return dy @ params.weight


@plant(Sigmoid, "backward", SIGMOID, untouched_arguments)
def dy_overwritten(self, params, saved, dy, grads):
    return dy.mul_(saved.y * (1 - saved.y))


@plant(Sigmoid, "backward", SIGMOID, untouched_arguments)
def dy_overwritten_with_the_same_numbers(self, params, saved, dy, grads):
    dy.mul_(1)
    return RIGHT.sigmoid(self, params, saved, dy, grads)


@plant(Sigmoid, "backward", SIGMOID, untouched_arguments, accumulation)
def saved_tensor_overwritten(self, params, saved, dy, grads):
    return saved.y.mul_(1 - saved.y).mul_(dy)


@plant(Sigmoid, "forward", SIGMOID, untouched_arguments)
def input_overwritten(self, params, x, *, mode):
    y = x.sigmoid_()
    return y, SavedOutput(y)


@plant(Linear, "backward", LINEAR, untouched_arguments)
def parameters_updated_on_the_way(self, params, saved, dy, grads):
    dx = RIGHT.linear(self, params, saved, dy, grads)
    params.weight.sub_(0.1 * grads.weight)
    return dx


@plant(
    HalfSquaredError,
    "forward",
    loss_case(LossCase("", HalfSquaredError(), (4, 3))),
    untouched_arguments,
)
def target_overwritten(self, y, target):
    error = target.sub_(y).neg_()
    return 0.5 * (error * error).sum(), SavedError(error)


@plant(Linear, "forward", LINEAR, reentrance)
def input_kept_on_the_layer(self, params, x, *, mode):
    y, _ = RIGHT.linear_forward(self, params, x, mode=mode)
    MEMORY["x"] = x
    return y, FromMemory()


@plant(Sigmoid, "forward", SIGMOID, reentrance)
def output_in_a_buffer_that_is_used_again(self, params, x, *, mode):
    buffer = MEMORY.setdefault(x.shape, torch.empty_like(x))
    torch.sigmoid(x, out=buffer)
    return buffer.clone(), SavedOutput(buffer)


MEMORY = {}


class FromMemory(SavedInput):
    """Gives whatever x came last."""

    def __new__(cls):
        return super().__new__(cls, torch.empty(0))

    @property
    def x(self):
        return MEMORY["x"]


@plant(Sigmoid, "backward", SIGMOID, layouts)
def dy_taken_for_contiguous(self, params, saved, dy, grads):
    return (dy.view(-1) * (saved.y * (1 - saved.y)).view(-1)).view(dy.shape)


@plant(Sigmoid, "backward", SIGMOID, layouts)
def strides_of_dy_overlooked(self, params, saved, dy, grads):
    memory = dy.as_strided(dy.shape, (dy.shape[1], 1))
    return memory * (saved.y * (1 - saved.y))


@plant(Linear, "backward", LINEAR, empty_batch)
def empty_batch_divided_by(self, params, saved, dy, grads):
    dx = RIGHT.linear(self, params, saved, dy, grads)
    grads.bias.add_(dy.mean(0) * 0)  # the mean of nothing is NaN
    return dx


@plant(Softmax, "forward", SOFTMAX, contract.elementary_operations)
def an_operation_that_is_a_whole_layer(self, params, x, *, mode):
    y = torch.softmax(x, self.dim)
    return y, SavedOutput(y)


@plant(Tanh, "backward", Case("", Tanh(), (4, 5)), contract.elementary_operations)
def an_operation_that_is_a_whole_derivative(self, params, saved, dy, grads):
    return torch.ops.aten.tanh_backward(dy, saved.y)


@plant(Linear, "shapes", LINEAR, state_dicts)
def a_parameter_that_torch_does_not_have(self):
    return RIGHT.linear_shapes(self) | {"scale": (1,)}


@plant(Linear, "shapes", LINEAR, state_dicts)
def parameters_in_another_order(self):
    return dict(reversed(RIGHT.linear_shapes(self).items()))


@plant(Linear, "shapes", LINEAR, state_dicts)
def a_bias_that_broadcasts(self):
    return RIGHT.linear_shapes(self) | {"bias": (1, self.out_features)}


def on_fake_cuda(case, dtype, device, seed):
    return fake_cuda(case, dtype)


@plant(Step, "forward", Case("", Step(), (4, 5), constant=True), on_fake_cuda)
def a_number_read_back(self, params, x, *, mode):
    return x * x.max().item(), SavedInput(x)


@plant(Step, "forward", Case("", Step(), (4, 5), constant=True), on_fake_cuda)
def a_branch_on_data(self, params, x, *, mode):
    return (x if x.sum() > 0 else -x), SavedInput(x)


@plant(Sigmoid, "forward", SIGMOID, on_fake_cuda)
def a_constant_on_the_cpu(self, params, x, *, mode):
    y = (torch.tensor(1.0) * x).sigmoid()
    return y, SavedOutput(y)


@plant(Sigmoid, "backward", SIGMOID, on_fake_cuda)
def computed_on_the_cpu(self, params, saved, dy, grads):
    return dy.cpu() * (saved.y * (1 - saved.y)).cpu()


def complaint(check, case):
    """Return what a check says, be it by its lines or by the error of a pass that broke down."""
    try:
        return "\n".join(check(case, torch.float64, "cpu", 0))
    except RuntimeError as error:
        return str(error)


PLANTED = [(bug, check) for bug in BUGS for check in bug.checks]


@pytest.mark.parametrize(
    ("bug", "check"), PLANTED, ids=[f"{b.wrong.__name__}-{c.__name__}" for b, c in PLANTED]
)
def test_a_planted_bug_is_found(bug, check, monkeypatch):
    assert complaint(check, bug.case) == ""
    monkeypatch.setattr(bug.cls, bug.method, bug.wrong)
    assert complaint(check, bug.case) != ""


def test_every_check_finds_some_planted_bug():
    found = {check for bug in BUGS for check in bug.checks}
    assert found == {*contract.CHECKS, *contract.FLOAT64_CHECKS, on_fake_cuda}


def test_a_case_in_which_nothing_is_compared_is_rejected():
    case = Case("all negative", ReLU(), (4,), values=(-1.0, -2.0))
    assert "autograd's dx vanishes" in complaint(agreement, case)


def test_a_failure_says_where_how_much_and_how_to_see_it_again(monkeypatch):
    monkeypatch.setattr(Linear, "backward", one_weight_in_a_thousand_off_by_a_thousandth)
    (line,) = agreement(LARGE, torch.float32, "cpu", 3)
    for part in (
        "Linear, case 'large', cpu float32, seed 3: dweight has error ",
        " against autograd in float64, limit 1.00e-05, autograd's own ",
        "; worst at [7, 7]: ",
        ", expected ",
        "; what is wrong: manualbp check --layer Linear --dtype float32 --device cpu --seed 3",
    ):
        assert part in line
