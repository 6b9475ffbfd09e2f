"""One stack for all recovery tests, with data of months and tenants in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from elsapg.services.deployment import Deployment
from tests import said
from tests.chaos.faults import Faults
from tests.chaos.writes import Access, access
from tests.restore.data import fill
from tests.stacks import ROOT, running_stack

pytest_runtest_makereport = said.pytest_runtest_makereport


@pytest.fixture(scope="package")
def deployment() -> Iterator[Deployment]:
    with running_stack("recovery", {"docker": {"pool_port": 26532}}, ROOT) as running:
        yield running


@pytest.fixture(scope="package")
def filled(deployment: Deployment) -> Deployment:
    fill(deployment)
    return deployment


@pytest.fixture(scope="package")
def doors(deployment: Deployment) -> Iterator[Access]:
    with access(deployment) as found:
        yield found


@pytest.fixture
def faults(deployment: Deployment) -> Iterator[Faults]:
    found = Faults(deployment)
    yield found
    found.close()
