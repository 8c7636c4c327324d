"""The verb: three counts, the goals, and what was missed."""

import json

import pytest
import torch

from manualbp.checks.doctor import selftest as module
from manualbp.checks.doctor.selftest import (
    Tally,
    examine_mutants,
    examine_right_passes,
    selftest,
)
from manualbp.checks.doctor.selftest_config import SelftestConfig
from manualbp.checks.doctor.subject import Diagnosis
from manualbp.cli import main
from manualbp.errors import UsageError


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
    monkeypatch.setattr(module, "diagnose", lambda *_: [])
    assert main(["selftest", "--only", "sign flipped: softmax"]) == 1
    printed = capsys.readouterr().out
    assert "0 of 1 mutants" in printed
    assert "not killed: sign flipped: softmax, x, seed 0: nothing; expected sign" in printed


def test_a_wrong_name_and_a_false_alarm_are_counted(monkeypatch):
    wrong = Diagnosis("transposed", "x", "it is [transposed]", "none")
    monkeypatch.setattr(module, "diagnose", lambda *_: [wrong])
    tally = selftest(SelftestConfig(only="softplus"))
    assert (tally.killed, tally.named) == (tally.mutants, 0)
    assert tally.accused == tally.right_passes > 0
    assert not tally.passed


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


def test_nothing_to_run_is_a_usage_error(capsys):
    assert main(["selftest", "--only", "no such thing"]) == 2
    assert "no mutant" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--seeds is 0"):
        selftest(SelftestConfig(seeds=0))


def test_empty_runs_count_nothing():
    tally = Tally()
    examine_mutants([], 0, tally)
    examine_right_passes([], 0, torch.float64, tally)
    assert tally == Tally()
