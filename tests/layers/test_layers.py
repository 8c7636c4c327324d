"""Every promise of a layer, over every case, dtype and device."""

import pytest
import torch

from manualbp.checks import contract
from manualbp.checks.registry import case_owner, layer_cases

SEED = 0
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
CASES = pytest.mark.parametrize(
    "case", layer_cases(), ids=lambda case: f"{case_owner(case)}, {case.name}"
)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@DTYPES
@CASES
def test_layer(check, case, dtype, device):
    lines = check(case, dtype, device, SEED)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("check", contract.FLOAT64_CHECKS, ids=lambda check: check.__name__)
@CASES
def test_layer_in_float64(check, case, device):
    lines = check(case, torch.float64, device, SEED)
    assert not lines, "\n".join(lines)


@CASES
def test_layer_stays_on_the_gpu(case):
    lines = contract.fake_cuda(case, torch.float32)
    assert not lines, "\n".join(lines)
