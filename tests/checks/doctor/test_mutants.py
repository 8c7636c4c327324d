"""The catalogue: every bug is in it with a subject, and its subjects are right without it."""

import pytest
import torch

from manualbp.checks.doctor.bugs import BUGS
from manualbp.checks.doctor.diagnosis import diagnose
from manualbp.checks.doctor.mutants import mutants, specimens_of_layers, specimens_of_operations
from manualbp.checks.doctor.selftest import rightly_named
from manualbp.checks.registry import layers, losses
from manualbp.checks.tolerances import TOLERANCES

CATALOGUE = list(mutants(0))


def test_every_bug_is_in_the_catalogue_and_every_layer_has_mutants():
    assert {mutant.bug.name for mutant in CATALOGUE} == {bug.name for bug in BUGS}
    labels = {mutant.specimen.label.partition(",")[0] for mutant in CATALOGUE}
    # A step has no gradient, and the identity and empty models are their own.
    missing = {cls.__name__ for cls in [*layers(), *losses()]} - labels
    assert missing <= {"Step", "Sign"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_mutant_of_each_bug_is_killed_and_named(bug):
    of_the_bug = [mutant for mutant in CATALOGUE if mutant.bug is bug]
    for mutant in of_the_bug[:: max(len(of_the_bug) // 3, 1)]:
        specimen = mutant.specimen
        found = diagnose(mutant, specimen.arguments, specimen.dys, specimen.truth)
        assert rightly_named(mutant, found), (mutant.name, found)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_no_right_pass_is_accused(dtype):
    for specimen in [*specimens_of_operations(5, dtype), *specimens_of_layers(5, dtype)[::4]]:
        found = diagnose(specimen.subject, specimen.arguments, specimen.dys, specimen.truth)
        assert found == [], specimen.label


def test_the_operations_are_what_torch_says():
    (norm,) = (s for s in specimens_of_operations(0) if s.label == "layer norm")
    y = norm.subject.run(norm.arguments).outputs[0]
    expected = torch.layer_norm(norm.arguments["x"], (6,), norm.arguments["weight"])
    torch.testing.assert_close(y, expected)
