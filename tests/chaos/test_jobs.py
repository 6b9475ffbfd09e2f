"""Scheduled jobs over a failover: each slot once, none missing, also that of the very moment."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.slow]

DATABASES = ("elsa_workflows", "elsa_runtime")
HEARTBEAT, JOB = "elsapg-heartbeat", "chaos-effect"

_ADD = f"""
CREATE TABLE elsa_jobs.chaos_effect (at timestamptz NOT NULL DEFAULT clock_timestamp());
GRANT INSERT ON elsa_jobs.chaos_effect TO elsa_jobs;
INSERT INTO elsa_jobs.job (database, name, schedule, command, catch_up) VALUES
('elsa_workflows', '{JOB}', '* * * * *', 'INSERT INTO elsa_jobs.chaos_effect DEFAULT VALUES',
 interval '1 hour');
"""
_REMOVE = f"""
DELETE FROM elsa_jobs.job WHERE name = '{JOB}';
DELETE FROM elsa_jobs.run WHERE job = '{JOB}';
DROP TABLE IF EXISTS elsa_jobs.chaos_effect;
"""


@pytest.fixture
def counted_job(deployment: Deployment, faults: Faults) -> Iterator[None]:
    """A job of every minute that leaves a row for each time it really ran."""
    leader = faults.wait_healthy().leader
    _remove(deployment, leader)
    deployment.query(leader, _ADD, "elsa_workflows")
    deployment.query(
        leader,
        f"SELECT cron.schedule_in_database('{JOB}', '* * * * *', "
        f"$$SELECT elsa_jobs.run_due('{JOB}')$$, 'elsa_workflows', 'elsa_jobs')",
    )
    yield
    _remove(deployment, faults.wait_healthy().leader)


def _remove(deployment: Deployment, leader: str) -> None:
    # By id: a name means a job of one's own.
    sql = f"SELECT cron.unschedule(jobid) FROM cron.job WHERE jobname = '{JOB}'"
    deployment.query(leader, sql)
    deployment.query(leader, _REMOVE, "elsa_workflows")


def test_each_slot_runs_once_over_a_failover(
    deployment: Deployment, faults: Faults, counted_job: None
) -> None:
    """The primary dies just before a minute begins, so that no server is there when its slot is
    due; the new one runs it at its next minute."""
    before = faults.wait_healthy()
    time.sleep((59.3 - time.time() % 60) % 60)
    due = (int(time.time()) // 60 + 1) * 60
    faults.kill_postmaster(before.leader)
    leader = faults.wait_healthy().leader

    def next_slot_ran() -> bool:
        slots = [_last_slot(deployment, leader, database, HEARTBEAT) for database in DATABASES]
        slots.append(_last_slot(deployment, leader, "elsa_workflows", JOB))
        return all(slot > due for slot in slots)

    wait_for(next_slot_ran, "the slot after the failover's", 180, pause=1)
    for database in DATABASES:
        assert _holes(deployment, leader, database, HEARTBEAT) == [], database
    assert _holes(deployment, leader, "elsa_workflows", JOB) == []
    effects, runs = deployment.query(
        leader,
        "SELECT (SELECT count(*) FROM elsa_jobs.chaos_effect), (SELECT count(*) "
        f"FROM elsa_jobs.run WHERE job = '{JOB}' AND finished_at IS NOT NULL)",
        "elsa_workflows",
    )[0]
    assert effects == runs, f"{runs} slots finished, but the job's work was done {effects} times"
    assert int(runs) >= 2


def _last_slot(deployment: Deployment, node: str, database: str, job: str) -> float:
    sql = (
        "SELECT coalesce(extract(epoch FROM max(slot)), 0) FROM elsa_jobs.run "
        f"WHERE job = '{job}' AND finished_at IS NOT NULL"
    )
    return float(deployment.query(node, sql, database)[0][0])


def _holes(deployment: Deployment, node: str, database: str, job: str) -> list[str]:
    """Slots between a job's first and last that have no finished run."""
    sql = f"""
    SELECT s.slot
    FROM (
        SELECT generate_series(min(slot), max(slot), interval '1 minute') AS slot
        FROM elsa_jobs.run WHERE job = '{job}'
    ) AS s
    LEFT JOIN elsa_jobs.run AS r
        ON r.job = '{job}' AND r.slot = s.slot AND r.finished_at IS NOT NULL
    WHERE r.slot IS NULL
    """
    return [row[0] for row in deployment.query(node, sql, database)]
