"""What must hold in every fault: nothing acknowledged is lost, and never do two nodes lead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.chaos.faults import Healthy, LeaderWatch, Subject
from tests.chaos.writes import Access, ContinuousWrites, Report, continuous_writes

Act = Callable[[Healthy, ContinuousWrites], None]


def under_writes(
    subject: Subject, doors: Access, act: Act, *, one_leader: bool = True, **writers: Any
) -> tuple[Report, Healthy]:
    """Run `act` under continuous writes and prove what always holds: every acknowledged commit
    is there, writes go on, never two leaders, and the cluster heals by itself. `writers`: as of
    ContinuousWrites."""
    before = subject.wait_healthy()
    with LeaderWatch(subject.deployment) as watch:
        with continuous_writes(subject.deployment, doors, **writers) as writes:
            time.sleep(1)
            act(before, writes)
            writes.wait_for_progress()
        after = subject.wait_healthy()
    report = writes.check()
    writes.drop()
    print(report.summary())
    assert report.lost == 0, f"acknowledged and gone: {report.lost_rows}; {report.summary()}"
    assert report.stuck == 0, report.summary()
    if one_leader:
        assert watch.overlaps() == [], "two nodes took writes at the same time"
    assert {reign.node for reign in watch.reigns} >= {after.leader}, "the watch saw nothing"
    return report, after
