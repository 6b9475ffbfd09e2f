"""One stack for all tests of dumps, drills and the archive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import said
from tests.recovery.archive_stack import FILL, FILL_RUNTIME, ArchiveStack
from tests.stacks import running_stack

pytest_runtest_makereport = said.pytest_runtest_makereport


@pytest.fixture(scope="package")
def archived() -> Iterator[ArchiveStack]:
    """A stack with data, which only these tests use."""
    with running_stack("dmp", {"docker": {"pool_port": 27432}}) as deployment:
        stack = ArchiveStack(deployment)
        stack.sql(FILL, "elsa_workflows")
        stack.sql(FILL_RUNTIME, "elsa_runtime")
        yield stack
