"""The right gradients: from differences, from a reference, at kinks."""

import pytest
import torch
from torch import Tensor

from manualbp.checks.doctor.truth import Differences, Interval, Reference, slopes_at
from manualbp.errors import UsageError


def f(arguments: dict[str, Tensor]) -> list[Tensor]:
    return [(arguments["x"] @ arguments["w"].T).tanh(), arguments["w"].exp().sum()]


@pytest.fixture
def arguments() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (4, 3), "w": (2, 3)}
    return {
        n: torch.randn(shape, generator=generator, dtype=torch.float64)
        for n, shape in shapes.items()
    }


def dys_for(arguments: dict[str, Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(y.shape, generator=generator).double() for y in f(arguments)]


def test_differences_are_as_good_as_they_say(arguments: dict[str, Tensor]) -> None:
    dys = dys_for(arguments)
    truth = Reference(f, "autograd")(arguments, dys)
    for name, interval in Differences(f).intervals(arguments, dys).items():
        assert (interval.value - truth[name]).abs().max() < 1e-9
        assert interval.excess(truth[name]).max() == 0
        assert interval.slack.max() < 1e-6 * interval.scale()


def test_differences_in_float32_say_that_they_know_less(arguments: dict[str, Tensor]) -> None:
    short = {name: tensor.float() for name, tensor in arguments.items()}
    dys = dys_for(arguments)
    truth = Reference(f, "autograd")(short, dys)
    for name, interval in Differences(f, torch.float32).intervals(short, dys).items():
        assert interval.excess(truth[name]).max() == 0
        assert 1e-8 < interval.slack.max() < 1e-2 * interval.scale()


def test_a_thousandth_of_one_number_is_outside(arguments: dict[str, Tensor]) -> None:
    dys = dys_for(arguments)
    interval = Differences(f).intervals(arguments, dys)["x"]
    wrong = interval.value.clone()
    smallest = wrong.abs().argmin()
    wrong.view(-1)[smallest] *= 1.001
    excess = interval.excess(wrong)
    assert (excess > 0).sum() == 1
    assert excess.argmax() == smallest


@pytest.mark.parametrize("kind", ["differences", "reference"])
def test_at_a_kink_every_slope_between_the_one_sided_ones_is_right(kind: str) -> None:
    def relu(arguments: dict[str, Tensor]) -> list[Tensor]:
        return [arguments["x"].relu()]

    x = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    dy = [torch.tensor([-2.0, 1.0, 1.0], dtype=torch.float64)]
    truth = Differences(relu) if kind == "differences" else Reference(relu, "autograd")
    for slope, right in ((0.0, True), (0.5, True), (1.0, True), (1.5, False), (-0.5, False)):
        gradient = dy[0] * torch.tensor([slope, 1.0, 0.0])
        interval = truth.intervals({"x": x}, dy, {"x": gradient})["x"]
        assert (interval.excess(gradient).max() < 1e-4) == right, slope
    # Beside the kink nothing but the slope is right.
    wrong = dy[0] * torch.tensor([0.0, 0.5, 0.0])
    assert truth.intervals({"x": x}, dy, {"x": wrong})["x"].excess(wrong)[1] > 0.4


def test_a_kink_near_by_is_stepped_around() -> None:
    x = torch.tensor([1e-4], dtype=torch.float64)
    slopes = slopes_at(lambda: 3 * x.relu(), x, (0,))
    assert not slopes.kink
    assert abs(slopes.value.item() - 3) < 1e-9
    assert slopes.error.item() < 1e-6


def test_rounding_within_the_forward_pass_is_no_kink() -> None:
    x = torch.tensor([0.3], dtype=torch.float64)
    slopes = slopes_at(lambda: (x.float() * 3).double(), x, (0,))
    assert not slopes.kink
    assert abs(slopes.value.item() - 3) < slopes.error.item() < 0.1


def test_an_argument_without_effect_has_the_gradient_zero(arguments: dict[str, Tensor]) -> None:
    def g(arguments: dict[str, Tensor]) -> list[Tensor]:
        return [arguments["x"] * 2]

    dys = [torch.ones(4, 3, dtype=torch.float64)]
    for truth in (Differences(g), Reference(g, "autograd")):
        assert truth(arguments, dys)["w"].abs().max() == 0


def test_whole_numbers_have_no_gradient() -> None:
    def g(arguments: dict[str, Tensor]) -> list[Tensor]:
        return [arguments["x"][arguments["t"]]]

    arguments = {"x": torch.randn(3).double(), "t": torch.tensor([2, 0])}
    dys = [torch.ones(2, dtype=torch.float64)]
    for truth in (Differences(g), Reference(g, "autograd")):
        assert truth(arguments, dys).keys() == {"x"}
        assert torch.allclose(truth(arguments, dys)["x"], torch.tensor([1.0, 0.0, 1.0]).double())


def test_nan_is_outside_everything() -> None:
    value = torch.zeros(2, dtype=torch.float64)
    excess = Interval.exactly(value).excess(torch.tensor([0.0, torch.nan]))
    assert excess[0] == 0
    assert excess[1] == torch.inf


def test_too_many_numbers_are_refused() -> None:
    x = torch.zeros(30_000, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"30000 numbers.*--reference"):
        Differences(lambda a: [a["x"]])({"x": x}, [x])
