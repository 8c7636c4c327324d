"""A pytest fixture, registered by the installation: `assert_gradients_agree`.

Nothing of torch or manualbp is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(name="assert_gradients_agree", scope="session")
def _assert_gradients_agree() -> Callable[..., None]:  # pyright: ignore[reportUnusedFunction]  pytest finds it
    """Return `manualbp.checks.assert_gradients_agree`: say what is wrong with a backward pass."""
    from manualbp.checks import assert_gradients_agree

    return assert_gradients_agree
