"""One stack for all chaos tests, healthy before each and healed after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, Healthy, LeaderWatch
from tests.chaos.writes import Access, ContinuousWrites, Report, access, continuous_writes
from tests.stacks import ROOT, running_stack

Act = Callable[[Healthy, ContinuousWrites], None]


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    with running_stack("chaos", {}, ROOT) as running:
        yield running


@pytest.fixture(scope="session")
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
def under_writes(
    deployment: Deployment, doors: Access, faults: Faults
) -> Callable[..., tuple[Report, Healthy]]:
    """Runs `act` under continuous writes and proves what always holds: every acknowledged commit
    is there, writes go on, never two leaders, and the cluster heals by itself."""

    def run(act: Act, *, one_leader: bool = True) -> tuple[Report, Healthy]:
        before = faults.wait_healthy()
        with LeaderWatch(deployment) as watch:
            with continuous_writes(deployment, doors) as writes:
                time.sleep(1)
                act(before, writes)
                writes.wait_for_progress()
            after = faults.wait_healthy()
        report = writes.check()
        writes.drop()
        print(report.summary())
        assert report.lost == 0, f"acknowledged and gone: {report.lost_rows}; {report.summary()}"
        assert report.stuck == 0, report.summary()
        if one_leader:
            assert watch.overlaps() == [], "two nodes took writes at the same time"
        assert {reign.node for reign in watch.reigns} >= {after.leader}, "the watch saw nothing"
        return report, after

    return run
