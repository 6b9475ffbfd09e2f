"""What must hold in every fault: nothing acknowledged is lost, and never do two nodes lead."""

from __future__ import annotations

import contextlib
import functools
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import psycopg

from elsapg.definition import topology as t
from tests.chaos.faults import Healthy, LeaderWatch, Subject, wait_for
from tests.chaos.writes import DATABASE, Access, ContinuousWrites, Report, continuous_writes

Act = Callable[[Healthy, ContinuousWrites], None]


class NoticedError(AssertionError):
    """A client saw something, and lost nothing."""


def unnoticed(
    report: Report, *, within_s: float | None = None, but: re.Pattern[str] | None = None
) -> None:
    """No client saw an error (`but` those), none waited longer than `within_s`. Raises
    NoticedError: say it last, when all has been proved that counts the first time."""
    errors = [kind for kind in report.error_kinds if not (but and but.search(kind))]
    waited = within_s is not None and report.gap.seconds >= within_s
    if errors or waited:
        raise NoticedError(report.summary())


def twice(test: Callable[..., None]) -> Callable[..., None]:
    """A decorator: what clients notice counts if they notice it two times in a row.

    A machine that stands still for ten seconds looks like a fault of the product, and the next time
    it does not. What is lost, stuck or led by two counts the first time.
    """

    @functools.wraps(test)
    def looked_at(*args: Any, **words: Any) -> None:
        try:
            test(*args, **words)
        except NoticedError as noticed:
            warnings.warn(f"once more, for clients noticed: {noticed}", stacklevel=1)
            test(*args, **words)

    return looked_at


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


def readers_return(
    subject: Subject, doors: Access, away: Callable[[str], contextlib.AbstractContextManager[Any]]
) -> None:
    """Without a standby (`away` takes it) readers read from the primary, and do not stay there when
    it is back."""

    def at_a_standby() -> bool | None:
        with (
            contextlib.suppress(psycopg.OperationalError),  # what the standby took with it
            doors.connect("elsa_readonly", f"{DATABASE}_readonly") as reader,
        ):
            row = reader.execute("SELECT pg_is_in_recovery()").fetchone()
            return bool(row and row[0])
        return None

    def at_the_primary() -> bool:
        return at_a_standby() is False

    state = subject.wait_healthy()
    wait_for(at_a_standby, "readers are at the standby", 2 * t.READERS_RETURN_S + 30)
    with away(state.sync_standby):
        wait_for(at_the_primary, "readers are at the primary", 60)
    subject.wait_healthy()
    # Somebody reads all the while: no connection is idle for long.
    wait_for(at_a_standby, "readers are at the standby again", 2 * t.READERS_RETURN_S + 30)
