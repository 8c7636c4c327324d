"""The verb: three counts, the goals, and what was missed."""

import json
from dataclasses import replace

import pytest

from manualbp.checks.doctor import examination
from manualbp.checks.doctor import selftest as module
from manualbp.checks.doctor.selftest import Tally, Task, run_task, selftest
from manualbp.checks.doctor.selftest_config import SelftestConfig
from manualbp.checks.doctor.subject import Diagnosis
from manualbp.cli import main


def test_a_small_selftest_passes_and_prints_its_counts(capsys):
    assert main(["selftest", "--only", "sign flipped: softmax"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 mutants" in printed
    assert "passed" in printed


def test_json_has_the_counts(capsys):
    assert main(["selftest", "--only", "tanh", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["killed"] == found["mutants"] > 10
    assert found["right_passes"] > 0
    assert found["false_alarms"] == []
    assert found["passed"] is True


def test_a_missed_goal_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(module, "fails", lambda trial: False)
    assert main(["selftest", "--only", "sign flipped: softmax"]) == 1
    printed = capsys.readouterr().out
    assert "0 of 1 mutants" in printed
    assert "not killed: sign flipped: softmax, x, seed 0: nothing; expected sign" in printed


def test_a_wrong_name_is_counted(monkeypatch):
    wrong = Diagnosis("transposed", "x", "it is [transposed]", "none")
    monkeypatch.setattr(module, "diagnoses_of", lambda trial: [wrong])
    tally = selftest(SelftestConfig(only="softplus"))
    assert (tally.killed, tally.named) == (tally.mutants, 0)
    assert not tally.passed


def test_a_false_alarm_is_counted(monkeypatch):
    # A check that wants the gradients to be another thing accuses who is right.
    monkeypatch.setattr(examination, "misfit", lambda name, gradient, argument: "wrong kind")
    tally = run_task(Task("right pass", "softplus", 3))
    assert (tally.right_passes, tally.accused) == (1, 1)
    assert [(miss.name, miss.seed) for miss in tally.false_alarms] == [("softplus", 3)]
    assert "dx, float64: wrong kind" in tally.false_alarms[0].said
    assert not tally.passed


def test_right_passes_are_examined_in_all_dtypes():
    tally = run_task(Task("right pass", "linear", 0))
    assert (tally.right_passes, tally.gradients, tally.accused) == (1, 9, 0)


def test_several_workers_find_the_same():
    config = SelftestConfig(only="Tanh", seeds=1, workers=1)
    assert selftest(replace(config, workers=2)) == selftest(config)


@pytest.mark.parametrize(
    ("counts", "passed"),
    [
        ({"mutants": 100, "killed": 100, "named": 95}, True),
        ({"mutants": 100, "killed": 100, "named": 94}, False),
        ({"mutants": 100, "killed": 99, "named": 99}, False),
        ({"mutants": 100, "killed": 100, "named": 100, "accused": 1}, False),
    ],
)
def test_the_goals(counts, passed):
    assert Tally(**counts).passed is passed


@pytest.mark.parametrize("option", ["seeds", "mutant-seeds", "workers"])
def test_less_than_one_of_anything_is_a_usage_error(option, capsys):
    assert main(["selftest", f"--{option}", "0"]) == 2
    assert f"--{option} is 0: it must be at least 1" in capsys.readouterr().err


def test_nothing_to_run_is_a_usage_error(capsys):
    assert main(["selftest", "--only", "no such thing"]) == 2
    assert "no mutant" in capsys.readouterr().err
