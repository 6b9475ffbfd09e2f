"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from elsapg.services.deployment import Deployment
from tests.stacks import running_stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Deployment]:
    """A stack that only these tests use, so that they may break it."""
    with running_stack("verify", {}) as deployment:
        yield deployment
