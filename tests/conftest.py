"""Shapes and types are checked while tests run; every device takes part."""

import os
from collections.abc import Generator
from importlib.util import find_spec
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

MISSING = [name for name in ("tyro", "beartype") if find_spec(name) is None]
"""Pure Python that a machine with torch may lack: what tests can do without them is tested."""

# Before a test hides the GPUs: torch counts them once.
CUDA = torch.cuda.is_available()

# Before any test imports what it tests.
if "beartype" not in MISSING:
    install_import_hook(modules_with_shapes(), "typechecker.check")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Run a test once on each device."""
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device, and is skipped without one")


def pytest_report_header() -> list[str]:
    return [f"{name} is not installed: some tests are left out" for name in MISSING]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    for name in MISSING:
        if f"No module named '{name}'" in str(report.longrepr):
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"{name} is not installed")
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Skipped here and not by skipif, so that the report has one line with their number.
    if item.get_closest_marker("cuda") and not CUDA:
        pytest.skip("no CUDA device")
