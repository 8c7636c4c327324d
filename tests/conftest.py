"""Shapes and types of every call are checked while tests run; every device takes part."""

import pytest
import torch
from jaxtyping import install_import_hook

# Before any test imports what it tests.
install_import_hook(["manualbp", "reference"], "typechecker.check")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Run a test once on each device."""
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device, and is skipped without one")


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Skipped here and not by skipif, so that the report has one line with their number.
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
