"""Each contract on a pass that breaks it, and on right ones, which break none."""

import examined_functions
import pytest
import torch

from manualbp.checks.doctor.contracts import (
    CONTRACTS,
    Outcome,
    Trial,
    check_contract,
    determinism,
    with_batch,
)
from manualbp.checks.doctor.examination import differences_of
from manualbp.checks.doctor.operations import OPERATIONS
from manualbp.checks.doctor.targets import load, of_case, wrap
from manualbp.checks.doctor.truth import Reference
from manualbp.checks.registry import find_cases
from manualbp.layers import Linear, Maxout
from reference.cases import Case

FILE = examined_functions.__file__


def trial(name: str) -> Trial:
    target = load(f"{FILE}:{name}")
    arguments = {n: t.double() if t.is_floating_point() else t for n, t in target.arguments.items()}
    truth = target.truth or differences_of(target.subject, arguments)
    return Trial.of(target.subject, arguments, truth, seed=0)


def outcomes(name: str) -> dict[str, Outcome]:
    now = trial(name)
    return {contract: check_contract(contract, now) for contract in CONTRACTS}


RIGHT = (
    *("LinearFunction", "ReLU", "SavesItsOutput", "LayerNorm", "CrossEntropy", "Mask"),
    *("UsedApart", "MaxToTheFirst", "MaxShared", "LargerOfTwo"),
    *("WithSetup", "TwoOutputs", "Log", "net", "pair", "linear", "Double"),
)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pass_breaks_no_contract(name: str) -> None:
    assert [o for o in outcomes(name).values() if o.verdict == "FAIL"] == []
    assert determinism(trial(name)).verdict == "PASS"


def test_dy_is_not_drawn_as_somebody_draws_x_with_the_same_seed() -> None:
    """For dy = x many a wrong gradient is right."""
    (dy,) = trial("Double").dys
    x = torch.randn(dy.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.corrcoef(torch.stack([x.flatten(), dy.flatten()]))[0, 1].abs() < 0.9


BROKEN = [
    ("NeedsContiguous", "dy transposed", "view size"),
    ("ReadsMemory", "dy strided", "for a strided dy"),
    ("ReadsMemory", "dy transposed", "for a transposed dy"),
    ("WritesToDy", "dy expanded", "for an expanded dy"),
    ("WritesToDy", "no mutation", "the backward pass changes dy in place"),
    ("WritesToItsOutput", "no mutation", "the backward pass changes the output in place"),
    ("WritesToX", "no mutation", "the forward pass changes x in place"),
    ("CapsDy", "dy scaled", "for 1024 dy"),
    ("IgnoresDy", "dy zero", "for dy = 0"),
    ("AddsAConstant", "dy zero", "for dy = 0"),
    ("UsesDyTwice", "linear in dy", "twice that for dy"),
    ("AddsAConstant", "linear in dy", "twice that for dy"),
    ("MaxToAll", "ties", "and the gradients add up to"),
    ("LargerOfTwoToBoth", "ties", "db is wrong where b and a are equal"),
    ("NeedsBothOutputs", "outputs alone", "it fails if only output 0 is used"),
    ("LosesOneOutput", "outputs alone", "dx is None if only output 0 is used"),
    ("ComputesAll", "requires_grad", "if only x needs a gradient"),
    ("SpendsItsContext", "repeated backward", "second backward pass"),
    ("Remembers", "second forward", "after a second forward pass"),
    ("Accumulates", "nothing carried over", "after passes on other inputs"),
    ("Accumulates", "used twice", "used twice in a graph"),
    ("BatchTooSmall", "batch of one", "for a batch of one"),
    ("BatchNotEmpty", "empty batch", "for an empty batch"),
    ("WrongShape", "batch of one", "has shape"),
]


@pytest.mark.parametrize(("name", "contract", "words"), BROKEN)
def test_a_wrong_pass_breaks_the_contract_that_is_about_it(
    name: str, contract: str, words: str
) -> None:
    outcome = check_contract(contract, trial(name))
    assert outcome.verdict == "FAIL"
    assert any(words in line for line in outcome.words), outcome.words


def test_what_is_right_unless_others_make_a_mistake_is_a_warning() -> None:
    outcome = check_contract("inputs overwritten", trial("Square"))
    assert outcome.verdict == "WARNING"
    assert "if x is overwritten in place" in outcome.words[0]


def test_a_wrong_number_breaks_no_contract_that_compares_a_pass_with_itself() -> None:
    found = outcomes("WrongSign")
    failing = {name for name, outcome in found.items() if outcome.verdict == "FAIL"}
    assert failing == {"batch of one"}


def test_a_pass_that_is_not_deterministic_is_told_from_a_wrong_one() -> None:
    outcome = determinism(trial("Rolls"))
    assert outcome.verdict == "FAIL"
    assert "in an equal pass" in outcome.words[0]


def test_what_cannot_be_tried_is_skipped_with_the_reason() -> None:
    found = outcomes("pair")
    assert found["requires_grad"].verdict == "SKIPPED"
    assert "pair" in found["requires_grad"].words[0]
    found = outcomes("CrossEntropy")
    assert found["empty batch"].words == ("the output of an empty batch is not empty",)


class Assigns(Linear):
    def backward_parameters(self, params, saved, dy, grads):
        grads.weight.copy_(dy.T @ saved.x)
        grads.bias.copy_(dy.sum(0))


class LeavesOutTheBias(Linear):
    def backward(self, params, saved, dy, grads):
        super().backward_parameters(params, saved, dy, grads)
        return dy @ params.weight

    def backward_parameters(self, params, saved, dy, grads):
        grads.weight.addmm_(dy.T, saved.x)


@pytest.mark.parametrize(
    ("layer", "contract", "words"),
    [
        (Assigns(5, 3), "used twice", "are there already, to be added to"),
        (LeavesOutTheBias(5, 3), "requires_grad", "if only bias needs"),
    ],
)
def test_a_layer_must_accumulate_and_agree_with_itself(
    layer: Linear, contract: str, words: str
) -> None:
    target = of_case(Case("wrong", layer, (4, 5)))
    truth = differences_of(target.subject, target.arguments)
    now = Trial.of(target.subject, target.arguments, truth, seed=0)
    outcome = check_contract(contract, now)
    assert outcome.verdict == "FAIL"
    assert words in outcome.words[0]


def test_our_layers_keep_every_contract() -> None:
    for case in find_cases("Linear"):
        target = of_case(case)
        assert target.truth is not None
        now = Trial.of(target.subject, target.arguments, target.truth, seed=0)
        for name in CONTRACTS:
            assert check_contract(name, now).verdict != "FAIL", (case.name, name)


def test_a_contract_leaves_the_arguments_and_dy_as_they_were() -> None:
    target = wrap(examined_functions.WritesToDy, "WritesToDy", [torch.randn(4, 3).double()])
    truth = differences_of(target.subject, target.arguments)
    now = Trial.of(target.subject, target.arguments, truth, seed=0)
    before = [dy.clone() for dy in now.dys]
    for name in CONTRACTS:
        check_contract(name, now)
        assert torch.equal(now.dys[0], before[0]), name


def test_a_length_that_equals_the_batch_is_not_cut_with_it():
    # Its passes know how many outputs it has, so that they cannot do with fewer.
    target = of_case(Case("as many outputs as examples", Maxout(4, 3, 2), (3, 4)))
    trial = Trial.of(target.subject, target.arguments, target.truth, 0)
    for examples in (0, 1):
        small = with_batch(trial, examples)
        assert small.arguments["x"].shape == (examples, 4)
        assert small.arguments["weight"].shape == trial.arguments["weight"].shape
    for contract in ("empty batch", "batch of one"):
        assert check_contract(contract, trial).verdict == "PASS"


def test_all_tensors_with_examples_are_cut():
    truth = Reference(lambda given: [given["a"] * given["b"]], "autograd")
    arguments = {name: torch.randn(3, 3, dtype=torch.float64) for name in ("a", "b")}
    trial = Trial.of(OPERATIONS["product"], arguments, truth, 0)
    for examples in (0, 1):
        small = with_batch(trial, examples)
        assert {tuple(t.shape) for t in small.arguments.values()} == {(examples, 3)}
