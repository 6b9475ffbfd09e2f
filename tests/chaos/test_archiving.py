"""A left-over of a line that was left does not keep the present from the archive."""

from __future__ import annotations

import pytest

from elsapg.definition import topology as t
from elsapg.services import status
from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, archive_all, last_archived, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.slow]

WAL = f"{t.PGDATA}/pg_wal"


def _left_over(deployment: Deployment, name: str) -> None:
    """A segment of the archive waits for the archive again, with other bytes at its end."""
    path, note = f"{WAL}/{name}", f"{WAL}/archive_status/{name}"
    script = (
        f"set -e; pgbackrest --stanza=elsa --no-archive-async archive-get {name} {path}; "
        f"dd if=/dev/urandom of={path} bs=1M seek=12 count=4 conv=notrunc 2>/dev/null; "
        f"rm -f {note}.done; touch {note}.ready"
    )
    done = deployment.hosts.run(deployment.primary(), "sh", "-c", script)
    assert done.code == 0, done.output


def test_what_a_new_primary_has_of_the_old_line(faults: Faults) -> None:
    deployment = faults.deployment
    line = faults.wait_healthy().timeline
    old = archive_all(deployment)
    faults.switchover()
    assert faults.wait_healthy().timeline > line
    node = deployment.primary()
    archive_all(deployment)
    _left_over(deployment, old)
    archive_all(deployment)
    waiting = deployment.hosts.run(node, "sh", "-c", f"ls {WAL}/archive_status | grep ready")
    assert old not in waiting.output
    logs = faults.container(node).logs(tail=200).decode()
    assert f"{old}, of a line that was left, is in the archive" in logs


def test_the_present_line_stays_an_error(faults: Faults) -> None:
    """Two servers may be writing it: nothing goes past that, and it is told."""
    deployment = faults.deployment
    faults.wait_healthy()
    node = deployment.primary()
    present = archive_all(deployment)
    _left_over(deployment, present)

    def failing() -> bool:
        sql = "SELECT last_failed_wal FROM pg_stat_archiver"
        return deployment.query(node, sql) == [[present]]

    # A segment with nothing in it is not switched, and the archiver looks by itself once a minute.
    segment = "SELECT pg_logical_emit_message(false, 'test', 'a record'), pg_switch_wal()"
    try:
        deployment.query(node, segment)
        wait_for(failing, f"{present} fails", 60)
        told = [p for p in status.gather(deployment).problems if "WAL archiving fails" in p]
        assert told
        assert last_archived(deployment, node) == present
    finally:
        ready = f"{WAL}/archive_status/{present}.ready"
        deployment.hosts.run(node, "mv", ready, ready.replace(".ready", ".done"))
    archive_all(deployment)
