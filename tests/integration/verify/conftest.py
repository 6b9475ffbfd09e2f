"""The stack `test-verify`, shared by the modules of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from elsapg.services.deployment import Deployment
from tests import said
from tests.stacks import running_stack

pytest_runtest_makereport = said.pytest_runtest_makereport


@pytest.fixture(scope="package")
def stack() -> Iterator[Deployment]:
    """A stack that only they use, so that they may break it."""
    with running_stack("verify", {}) as deployment:
        yield deployment
