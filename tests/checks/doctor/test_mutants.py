"""The catalogue: every bug is in it with a subject, and its subjects are right without it."""

import pytest
import torch

from manualbp.checks.doctor.bugs import BUGS
from manualbp.checks.doctor.diagnosis import diagnose
from manualbp.checks.doctor.mutants import labels, labels_of_mutants, mutants, specimen
from manualbp.checks.doctor.selftest import examine_mutant
from manualbp.checks.doctor.truth import converted
from manualbp.checks.registry import layers, losses
from manualbp.checks.tolerances import TOLERANCES

CATALOGUE = [m for label in labels_of_mutants() for m in mutants(specimen(label, 0))]


def test_every_bug_is_in_the_catalogue_and_every_layer_has_mutants():
    assert {mutant.bug.name for mutant in CATALOGUE} == {bug.name for bug in BUGS}
    with_mutants = {mutant.specimen.label.partition(",")[0] for mutant in CATALOGUE}
    # A step has no gradient, and the identity and empty models are their own.
    missing = {cls.__name__ for cls in [*layers(), *losses()]} - with_mutants
    assert missing <= {"Step", "Sign"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_mutant_of_each_bug_is_killed_and_named(bug):
    of_the_bug = [mutant for mutant in CATALOGUE if mutant.bug is bug]
    for mutant in of_the_bug[:: max(len(of_the_bug) // 3, 1)]:
        tally = examine_mutant(mutant, 0)
        assert tally.named == 1, tally


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_no_right_pass_is_accused(dtype):
    for label in labels()[::3]:
        trial = specimen(label, 5).trial
        arguments = converted(trial.arguments, dtype)
        dys = [dy.to(dtype) for dy in trial.dys]
        assert diagnose(trial.subject, arguments, dys, trial.truth) == [], label


def test_the_operations_are_what_torch_says():
    trial = specimen("layer norm", 0).trial
    y = trial.subject.run(trial.arguments).outputs[0]
    expected = torch.layer_norm(trial.arguments["x"], (6,), trial.arguments["weight"])
    torch.testing.assert_close(y, expected)
