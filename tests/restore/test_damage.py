"""The runbook's "Pages are damaged", followed on a standby whose disk has changed a page."""

from __future__ import annotations

import re

import pytest

from elsapg.definition import topology as t
from elsapg.errors import UnhealthyError
from elsapg.services import status
from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, wait_for
from tests.restore.data import DATABASE, sums
from tests.restore.page import commands, follow

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

TABLE = "elsa_workflows.bookmarks"
PAGE_BYTES = 8192


def _told(deployment: Deployment) -> list[str]:
    return [p for p in status.gather(deployment).problems if "damaged pages" in p]


def test_a_standby_has_a_damaged_page(filled: Deployment, faults: Faults) -> None:
    """pg_amcheck names the table, on that node alone; what `status` prints makes the node anew."""
    deployment, before = filled, sums(filled)
    state = faults.wait_healthy()
    _damage(faults, state.sync_standby)
    names = {
        f"elsapg-local-{example}": deployment.hosts.physical(node)
        for example, node in (("pg-1", state.leader), ("pg-2", state.sync_standby))
    }
    on_the_primary, on_the_standby = commands("", title="## Pages are damaged")
    try:
        follow([on_the_primary], {}, names)
        with pytest.raises(AssertionError, match=r"bookmarks.*\n.*invalid page in block 3"):
            follow([on_the_standby], {}, names)
        [told] = _told(deployment)
        assert told.startswith(f"{state.sync_standby} has read damaged pages (")
        reinit = re.search("`([^`]* reinit [^`]*)`", told)
        assert reinit, told
        follow([reinit[1]], {})
        faults.wait_healthy(300)
        follow([on_the_primary, on_the_standby], {}, names)
    finally:
        for database in t.DATABASES:
            deployment.query(deployment.primary(), "DROP EXTENSION IF EXISTS amcheck", database)
    assert _told(deployment) == []
    assert sums(deployment) == before


def _damage(faults: Faults, node: str) -> None:
    """Change a page of the table on the node's disk, and let nothing of it be in memory."""
    deployment = faults.deployment
    deployment.query(deployment.primary(), f"VACUUM {TABLE}", DATABASE)
    [[path]] = deployment.query(node, f"SELECT pg_relation_filepath('{TABLE}')", DATABASE)
    # What would be replayed later would repair it: a standby begins at a checkpoint of the primary.
    deployment.query(deployment.primary(), "CHECKPOINT")
    [[written]] = deployment.query(deployment.primary(), "SELECT pg_current_wal_lsn()")
    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
    wait_for(lambda: deployment.query(node, replayed) == [["t"]], "it is replayed", 60)
    deployment.query(node, "CHECKPOINT")
    where = f"of={t.PGDATA}/{path} bs=1 seek={3 * PAGE_BYTES + 4000} conv=notrunc"
    done = deployment.hosts.run(node, "sh", "-c", f"printf damaged | dd {where}")
    assert done.code == 0, done.output
    # Not by a stop, at which it would write.
    faults.kill_container(node)
    faults.start(node)
    faults.wait_healthy()
    # Whole rows: to count them, an index may do.
    rows = f"SELECT max(b::text) FROM {TABLE} AS b"
    with pytest.raises(UnhealthyError, match="invalid page in block 3"):
        deployment.query(node, rows, DATABASE)
