"""One stack for all chaos tests, healthy before each and healed after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from elsapg.services.deployment import Deployment
from tests import said
from tests.chaos import proof
from tests.chaos.faults import Faults, Healthy
from tests.chaos.proof import Act
from tests.chaos.writes import Access, Report, access
from tests.stacks import ROOT, running_stack

pytest_runtest_makereport = said.pytest_runtest_makereport


@pytest.fixture(scope="package")
def deployment() -> Iterator[Deployment]:
    with running_stack("chaos", {}, ROOT) as running:
        yield running


@pytest.fixture(scope="package")
def doors(deployment: Deployment) -> Iterator[Access]:
    with access(deployment) as found:
        yield found


@pytest.fixture
def faults(deployment: Deployment) -> Iterator[Faults]:
    """Starts from a whole cluster, whatever the test before left."""
    found = Faults(deployment)
    found.wait_healthy()
    yield found
    found.close()


@pytest.fixture
def under_writes(doors: Access, faults: Faults) -> Callable[..., tuple[Report, Healthy]]:
    """`proof.under_writes` on this stack."""

    def run(act: Act, *, one_leader: bool = True) -> tuple[Report, Healthy]:
        return proof.under_writes(faults, doors, act, one_leader=one_leader)

    return run
