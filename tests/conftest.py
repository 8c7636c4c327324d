"""Shapes and types are checked while tests run; every device takes part."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

ROOT = Path(__file__).parent.parent


def modules_with_shapes() -> list[str]:
    """Return the modules that annotate shapes; the plain types of the others are pyright's."""
    sources = [*ROOT.glob("manualbp/**/*.py"), *ROOT.glob("reference/**/*.py")]
    with_shapes = [path for path in sources if "jaxtyping" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in with_shapes]


# One process of tests for each core is enough: with threads of their own they would wait for each
# other. The variable is for the programs that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Before any test imports what it tests.
install_import_hook(modules_with_shapes(), "typechecker.check")


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
