"""The stack `test-target`, shared by the modules of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import said
from tests.integration.target_stack import Target
from tests.stacks import running_stack

pytest_runtest_makereport = said.pytest_runtest_makereport


@pytest.fixture(scope="package")
def running_target() -> Iterator[Target]:
    """Brought up once; purged at the end, and then nothing of it is left."""
    if os.environ.get("ELSAPG_TEST_STACK"):
        pytest.skip("these tests change settings and destroy: they want a stack of their own")
    with running_stack("target", {"docker": {"pool_port": 7832}}) as deployment:
        made = Target(deployment.stack)
        yield made
    if not os.environ.get("ELSAPG_KEEP_STACKS"):
        assert (made.containers(), made.volumes(), made.networks()) == ({}, set(), set())


@pytest.fixture
def target(running_target: Target) -> Iterator[Target]:
    """The running stack. A test may write other settings: the next one brings them back."""
    before = running_target.path.read_text(encoding="utf-8")
    yield running_target
    running_target.path.write_text(before, encoding="utf-8")
