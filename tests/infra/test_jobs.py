"""Scheduled jobs: pg_cron runs each slot once, as elsa_jobs, on the primary only."""

from __future__ import annotations

import datetime

import pytest

from elsapg.definition import topology as t
from tests.infra.facts import Facts, Row, eventually, none, same
from tests.infra.queries import DATABASE_FACTS

HEARTBEAT = "elsapg-heartbeat"
MINUTE = 60.0
# A slot is due at the full minute; pg_cron starts it a second later, a catch-up a minute later.
GRACE_S = 75.0
LOOK_BACK_S = 600.0
# What a server slept through is made up for every five minutes; a minute after its start it is up.
CATCH_UP_S = 330.0
# What pg_cron writes at its start to runs that had not ended.
RESTARTED = "server restarted"
LOOK = "cron.job_run_details and the primary's log say why"


def test_every_job_is_scheduled_and_active(facts: Facts, primary: str) -> None:
    """Every job of elsa_jobs.job is in pg_cron, active, in its database, as elsa_jobs."""
    jobs = facts.database("postgres")["jobs"]
    found = {
        j["jobname"]: (j["schedule"], j["database"], j["username"], j["active"])
        for j in facts.server(primary)["cron_jobs"]
    }
    same(
        found,
        {j["cron_name"]: (j["schedule"], j["database"], "elsa_jobs", True) for j in jobs},
        "switch it on, as postgres in database postgres: SELECT cron.alter_job(jobid, username => "
        "'elsa_jobs', active => true) FROM cron.job; `elsapg up --refresh` schedules what lacks",
    )


def test_heartbeat_ran_on_every_slot(facts: Facts, database: str) -> None:
    """The heartbeat ran in every minute of the last ten, each slot once; unless jobs are off, or
    the server has just been started."""
    if not facts.deployment.settings.jobs.active:
        return
    rows = facts.database(database)
    since = next(
        j["since"] for j in rows["jobs"] if (j["database"], j["name"]) == (database, HEARTBEAT)
    )
    slots = {
        round(datetime.datetime.fromisoformat(r["slot"]).timestamp()): r["finished"]
        for r in rows["runs"]
        if r["job"] == HEARTBEAT
    }
    server = facts.server(facts.primary())["server"][0]
    now = datetime.datetime.fromisoformat(server["now"]).timestamp()
    first = max(now - LOOK_BACK_S, since)
    if now - server["started"] < CATCH_UP_S:
        first = max(first, server["started"] + MINUTE)
    slot = (now - GRACE_S) // MINUTE * MINUTE
    missed = []
    while slot > first:
        if not slots.get(round(slot)):
            missed.append(f"{datetime.datetime.fromtimestamp(slot, datetime.UTC):%H:%M} UTC")
        slot -= MINUTE
    none((f"no run at {moment}" for moment in missed), LOOK)


@pytest.mark.timeout(CATCH_UP_S + 90)
def test_no_job_is_overdue(facts: Facts, any_database: str) -> None:
    """No job of the database has missed its time, unless the stack's file has them off. A server
    that was started makes up for what it slept through: that is waited for."""
    if not facts.deployment.settings.jobs.active:
        return

    def told(rows: list[Row]) -> list[str]:
        return [f"{j['job']} ({j['last_error'] or 'no error told'})" for j in rows if j["overdue"]]

    def made_up_for() -> bool:
        query = {"jobs": DATABASE_FACTS[any_database]["job_status"]}
        found[:] = told(facts.batch(facts.primary(), query, any_database)["jobs"])
        return not found

    found = told(facts.database(any_database)["job_status"])
    server = facts.server(facts.primary())["server"][0]
    age_s = datetime.datetime.fromisoformat(server["now"]).timestamp() - server["started"]
    if found and age_s < CATCH_UP_S:
        eventually(made_up_for, CATCH_UP_S - age_s, step=5)
    none(found, LOOK)


def test_jobs_succeed_as_elsa_jobs(facts: Facts) -> None:
    """The last run of each job that pg_cron started succeeded, and ran as elsa_jobs."""
    rows = facts.database("postgres")["cron_runs"]
    last = {}
    for row in sorted(rows, key=lambda r: r["runid"]):
        # A run that a restart of the server has ended is made up for, and that is judged elsewhere.
        if row["status"] in ("succeeded", "failed") and row["return_message"] != RESTARTED:
            last[row["jobname"]] = row
    none(
        (
            f"{name}: {row['status']} as {row['username']}: {row['return_message']}"
            for name, row in last.items()
            if row["status"] != "succeeded" or row["username"] != "elsa_jobs"
        ),
        LOOK,
    )


def test_no_slot_ran_twice(facts: Facts) -> None:
    """pg_cron started no heartbeat twice in a minute."""
    rows = facts.database("postgres")
    wrong = []
    for name in t.DATABASES:
        retried = [
            r["slot"]
            for r in facts.database(name)["runs"]
            if r["job"] == HEARTBEAT and r["finished"] and r["attempts"] > 1 and not r["caught_up"]
        ]
        wrong += [f"{name}: slot {slot} took several attempts" for slot in retried]
    none(wrong, LOOK)
    same(len({j["cron_name"] for j in rows["jobs"]}), len(rows["jobs"]), LOOK)


def test_standbys_run_no_job(facts: Facts, standbys: tuple[str, ...]) -> None:
    """No standby runs a job."""
    none(
        (
            f"{node}: {row['application_name']}"
            for node in standbys
            if facts.runs(node)
            for row in facts.server(node)["running_jobs"]
        ),
        f"restart that node: pg_cron works on the primary only; {LOOK}",
    )
