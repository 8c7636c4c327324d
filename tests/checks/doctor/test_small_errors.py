"""0.1 % too much in one number of a thousand is found in float64, in tensors of any size."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from manualbp.checks.contract import loss_case
from manualbp.checks.doctor.contracts import Trial
from manualbp.checks.doctor.examination import differences_of, examine, fails
from manualbp.checks.doctor.subject import Gradients, Pass, Subject
from manualbp.checks.doctor.targets import of_case
from manualbp.cli import main
from manualbp.layers import Linear, Maxout, ReLU, Sequential, Softmax, Tanh
from manualbp.losses import CrossEntropyLoss
from reference.cases import Case, LossCase

NET = Sequential(Linear(40, 30), Tanh(), Linear(30, 20))

CASES = {
    "Linear": Case("Linear", Linear(60, 40), (30, 60)),
    "Tanh": Case("Tanh", Tanh(), (40, 50)),
    "ReLU": Case("ReLU", ReLU(), (40, 50)),
    "Softmax": Case("Softmax", Softmax(), (40, 50)),
    "Maxout": Case("Maxout", Maxout(40, 30, 2), (30, 40)),
    "network": Case("network", NET, (30, 40)),
}

LARGE = Case("large", Linear(400, 500), (300, 400))


@dataclass(frozen=True)
class Spoilt:
    """A right subject of which one number in a thousand of a gradient is 0.1 % too large."""

    subject: Subject
    argument: str
    first: int  # the first number that is

    @property
    def name(self):
        return "Spoilt"

    def run(self, arguments):
        return SpoiltPass(self, self.subject.run(arguments))


@dataclass(frozen=True)
class SpoiltPass:
    spoilt: Spoilt
    done: Pass

    @property
    def outputs(self):
        return self.done.outputs

    def backward(self, dys) -> Gradients:
        gradients = dict(self.done.backward(dys))
        wrong = gradients[self.spoilt.argument].clone(memory_format=torch.contiguous_format)
        wrong.view(-1)[self.spoilt.first :: 1000] *= 1.001
        return gradients | {self.spoilt.argument: wrong}


def trials(case: Case | LossCase, rank: float) -> Mapping[str, Trial]:
    """Return for each argument the trial of a spoilt layer.

    `rank` is that of the first number that is wrong among the first thousand by size, from 0 to 1.
    """
    target = of_case(case)
    trial = Trial.of(target.subject, target.arguments, target.truth, 0)
    assert not fails(trial)
    found = {}
    for name, gradient in trial.gradients().items():
        sizes = gradient.reshape(-1)[:1000].abs()
        sizes = sizes.masked_fill(sizes == 0, torch.inf)  # what is zero is not changed
        first = int(sizes.argsort()[int(rank * int(sizes.isfinite().sum()))])
        spoilt = Spoilt(target.subject, name, first)
        found[name] = Trial(spoilt, trial.arguments, trial.dys, trial.truth)
    return found


@pytest.mark.parametrize("rank", [0.01, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_of_a_layer(name, rank):
    for argument, trial in trials(CASES[name], rank).items():
        assert fails(trial), argument


def test_of_a_loss():
    loss = CrossEntropyLoss()
    case = LossCase("normal", loss, (50, 40), "classes")
    for trial in trials(loss_case(case), 0.5).values():
        assert fails(trial)


def test_of_a_large_layer():
    for argument, trial in trials(LARGE, 0.01).items():
        assert fails(trial), argument


def test_a_single_number_of_a_large_layer():
    for name, trial in trials(LARGE, 0.5).items():
        last = trial.arguments[name].numel() - 1
        alone = Trial(Spoilt(trial.subject.subject, name, last), *_others(trial))
        assert fails(alone), name


def test_by_differences_of_values():
    target = of_case(Case("Tanh", Tanh(), (8, 25)))
    subject, arguments = target.subject, target.arguments
    truth = differences_of(subject, arguments)
    assert not fails(Trial.of(subject, arguments, truth, 0))
    assert fails(Trial.of(Spoilt(subject, "x", 100), arguments, truth, 0))


def test_the_places_are_named():
    trial = trials(CASES["Softmax"], 0.5)["x"]
    report = examine(trial.subject, trial.arguments, trial.truth, contracts=())
    assert report.verdict == "FAIL"
    (row,) = (row for row in report.rows if row.dtype == "float64")
    assert "2 of 2000 numbers" in row.words
    assert [d.cause for d in report.diagnoses] == ["certain elements"]


def test_through_the_command(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def forward(x):\n"
        "    return x.sin(), x\n"
        "def backward(dy, x):\n"
        "    dx = dy * x.cos()\n"
        "    dx.view(-1)[617::1000] *= 1.001\n"
        "    return dx\n"
        "pair = forward, backward\n"
        "right = torch.sin\n",
        encoding="utf-8",
    )
    for shape in ("25x40", "300x400"):
        command = ["check", f"{file}:pair", "--shape", shape, "--reference", f"{file}:right"]
        assert main([*command, "--dtype", "float64"]) == 1
        assert "dx is wrong" in capsys.readouterr().out


def _others(trial: Trial):
    return trial.arguments, trial.dys, trial.truth
