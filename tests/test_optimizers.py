"""Update rules: 200 steps beside torch.optim, and how the gradient is clipped."""

from math import cos

import pytest
import torch
from torch import nn

from manualbp.checks.agreement import relative_error
from manualbp.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    LookAheadNesterov,
    RMSprop,
    clip_norm_,
    clip_value_,
    descend,
)
from reference.optimizers import CASES
from reference.optimizers import LookAheadNesterov as LookAheadNesterovTwin
from reference.twins import twin_optimizer

STEPS = 200
SIZE = 40

EACH_RULE = pytest.mark.parametrize("rule", CASES, ids=str)


class Bowl:
    """E_t = Σ_j ½ c_j (w_j - n_tj)²: a gradient that depends on the parameters and on chance."""

    def __init__(self, dtype=torch.float64, device="cpu"):
        generator = torch.Generator().manual_seed(0)

        def draw(sample, *shape):
            return sample(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        self.start = draw(torch.randn, SIZE)
        self.curvature = draw(torch.rand, SIZE) + 0.1
        self.noise = draw(torch.randn, STEPS + 1, SIZE)

    def gradient(self, w, step):
        return self.curvature * (w - self.noise[step])


class ByHand:
    """A rule with the parameters, gradients and memory it works on."""

    def __init__(self, rule, bowl, *, directly=False):
        self.rule, self.bowl = rule, bowl
        self.w = bowl.start.clone()
        self.state = rule.init(self.w)
        self.g = rule.accumulator(self.state) if directly else torch.ones_like(self.w)

    def step(self, step, lr):
        self.rule.begin(self.w, self.g, self.state)
        self.g.add_(self.bowl.gradient(self.w, step))
        before = self.g.clone()
        coefficients = self.w.new_tensor(self.rule.coefficients(step, lr)).unbind()
        self.rule.update(self.w, self.g, self.state, coefficients)
        assert torch.equal(self.g, before), "update changes the gradients"


@EACH_RULE
def test_200_steps_are_those_of_torch_optim(rule, device):
    """With a rate that changes at each step, and is 0 at the first as in a warm-up."""
    bowl = Bowl(device=device)
    ours = ByHand(rule, bowl)
    w = nn.Parameter(bowl.start.clone())
    optimizer = twin_optimizer(rule, [w])
    for step in range(1, STEPS + 1):
        lr = rule.lr * (1 - cos(step - 1)) / 2
        ours.step(step, lr)
        optimizer.param_groups[0]["lr"] = lr
        if isinstance(optimizer, LookAheadNesterovTwin):
            optimizer.look_ahead()
        w.grad = bowl.gradient(w.detach(), step)
        optimizer.step()

        assert relative_error(ours.w, w.detach()) < 1e-12, step
        expected = {name: s for name, s in optimizer.state[w].items() if name != "step"}
        expected = {name: tensor for name, tensor in expected.items() if tensor is not None}
        assert ours.state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert relative_error(ours.state[name], tensor) < 1e-12, (step, name)


@pytest.mark.parametrize(
    "rule", [rule for rule in CASES if rule.accumulator(rule.init(torch.zeros(1))) is not None]
)
def test_gradients_added_straight_into_the_memory_give_the_same_run(rule, device):
    bowl = Bowl(device=device)
    apart, direct = ByHand(rule, bowl), ByHand(rule, bowl, directly=True)
    for step in range(1, STEPS + 1):
        lr = rule.lr * (1 - cos(step - 1)) / 2
        w, v = direct.w.clone(), direct.g.clone()
        apart.step(step, lr)
        direct.step(step, lr)
        assert relative_error(direct.w, apart.w) < 1e-12, step
        for name, tensor in apart.state.items():
            assert relative_error(direct.state[name], tensor) < 1e-12, (step, name)
        # What was added can be told from what was there.
        gradient = rule.gradient(direct.g, v, w)
        assert relative_error(gradient, bowl.gradient(w, step)) < 1e-12, step


def test_momentum_is_a_memory_to_add_gradients_to_only_where_it_gets_them_as_they_are():
    v = {"momentum_buffer": torch.zeros(1)}
    assert SGD(momentum=0.9).accumulator(v) is v["momentum_buffer"]
    assert SGD().accumulator({}) is None
    assert SGD(momentum=0.9, nesterov=True).accumulator(v) is None
    assert SGD(momentum=0.9, dampening=0.1).accumulator(v) is None


@EACH_RULE
def test_a_zero_whose_gradient_is_zero_stays(rule):
    """As in the gaps between the parameters in the flat tensor."""
    bowl = Bowl()
    bowl.start[::2] = bowl.curvature[::2] = 0
    ours = ByHand(rule, bowl)
    for step in range(1, 6):
        ours.step(step, rule.lr)
    assert (ours.w[::2] == 0).all()
    assert (ours.w[1::2] != bowl.start[1::2]).all()


def test_adagrad_with_its_eps_in_the_start_of_the_sum_has_it_inside_the_root():
    bowl = Bowl()
    inside = descend(
        Adagrad(0.1, initial_accumulator_value=1e-2, eps=0.0),
        lambda w: bowl.gradient(w, 1),
        bowl.start,
        3,
    )
    w, s = bowl.start.clone(), torch.zeros(SIZE, dtype=torch.float64)
    for step in range(1, 4):
        g = bowl.gradient(w, 1)
        s += g * g
        w -= 0.1 * g / (s + 1e-2).sqrt()
        assert relative_error(inside[step], w) < 1e-14


@EACH_RULE
def test_descend_makes_the_steps_of_the_rule(rule):
    """Also where the backward pass may add straight into the memory, which it does not use."""
    bowl = Bowl()
    ours = ByHand(rule, bowl)
    path = descend(rule, lambda w: bowl.gradient(w, 1), bowl.start, 4)
    assert torch.equal(path[0], bowl.start)
    bowl.noise[:] = bowl.noise[1]
    for step in range(1, 5):
        ours.step(step, rule.lr)
        assert relative_error(path[step], ours.w) < 1e-12


def test_looking_ahead_runs_through_the_parameters_of_torch_s_nesterov():
    """With a constant rate, w + μ v of the one is w of the other at every step."""
    classical = ByHand(LookAheadNesterov(0.1, momentum=0.9, weight_decay=0.01), Bowl())
    torchs = ByHand(SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True), Bowl())
    for step in range(1, STEPS + 1):
        classical.step(step, 0.1)
        torchs.step(step, 0.1)
        assert relative_error(classical.w + 0.9 * classical.state["velocity"], torchs.w) < 1e-12
    assert relative_error(classical.w, torchs.w) > 1e-3  # else the two would be one


@EACH_RULE
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str
)
def test_lower_precision_goes_the_same_way(rule, dtype, tolerance, device):
    low, exact = ByHand(rule, Bowl(dtype, device)), ByHand(rule, Bowl(device=device))
    for step in range(1, 11):
        low.step(step, rule.lr)
        exact.step(step, rule.lr)
    assert all(tensor.dtype == dtype for tensor in (low.w, *low.state.values()))
    assert relative_error(low.w, exact.w) < tolerance


def gradients(device, scale):
    """Return the gradients of two parameters in one flat tensor, and as torch's."""
    flat = scale * Bowl(device=device).start
    leaves = [nn.Parameter(torch.zeros_like(part)) for part in flat.split(SIZE // 2)]
    for leaf, part in zip(leaves, flat.split(SIZE // 2), strict=True):
        leaf.grad = part.clone()
    return flat, leaves


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
def test_clipping_by_norm_is_that_of_torch(scale, device):
    flat, leaves = gradients(device, scale)
    norm = clip_norm_(flat, 0.5)
    expected = nn.utils.clip_grad_norm_(leaves, 0.5)
    torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)
    clipped = torch.cat([leaf.grad for leaf in leaves])
    torch.testing.assert_close(flat, clipped, rtol=1e-12, atol=0)
    assert flat.norm() <= 0.5


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_clipping_by_value_is_that_of_torch(scale, device):
    flat, leaves = gradients(device, scale)
    clip_value_(flat, 0.5)
    nn.utils.clip_grad_value_(leaves, 0.5)
    assert torch.equal(flat, torch.cat([leaf.grad for leaf in leaves]))


def test_the_settings_have_the_names_and_defaults_of_torch():
    for rule in (SGD(), Adagrad(), RMSprop(), Adam(), AdamW()):
        defaults = getattr(torch.optim, type(rule).__name__)(
            [nn.Parameter(torch.zeros(1))]
        ).defaults
        for name, value in vars(rule).items():
            # torch has no choice of where ε stands: it is outside the root
            expected = False if name == "eps_inside_root" else defaults[name]
            assert expected == value, (rule, name)
