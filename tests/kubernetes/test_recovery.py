"""Dumps, checks of the repository and drills, by the Jobs that their CronJobs make."""

from __future__ import annotations

import json

import pytest

from tests.chaos.faults import wait_for
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack
from tests.stacks import elsapg

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

DATABASE = "elsa_restored"


def test_a_dump_is_made_and_restored(stack: Stack, faults: KubernetesFaults) -> None:
    """From a standby to S3, and from there into a database of its own."""
    stack.run("dump", "now")
    [newest] = json.loads(stack.run("dump", "list", "--json"))[-1:]
    assert newest["source"].endswith("(standby)"), newest
    leader = faults.wait_healthy().leader
    deployment = stack.deployment
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'"
    stack.run("dump", "restore", newest["label"], "-D", "elsa_workflows", "--as", DATABASE)
    try:
        restored = deployment.query(leader, tables, database=DATABASE)
        assert restored == deployment.query(leader, tables, database="elsa_workflows")
    finally:
        deployment.query(leader, f"DROP DATABASE {DATABASE} WITH (FORCE)")


def test_a_drill_finds_the_same_rows(stack: Stack, faults: KubernetesFaults) -> None:
    told = json.loads(stack.run("drill", "--json"))
    assert told["findings"] == [] and told["tables"] > 20, told


def test_the_repository_is_checked_by_its_cronjob(stack: Stack, faults: KubernetesFaults) -> None:
    """What the schedule starts, started now; the record tells of it."""
    stack.kubectl("create", "job", "--from=cronjob/check", "check-by-hand")
    try:
        wait_for(
            lambda: stack.job_ends("check-by-hand") & {"Complete", "Failed"},
            "the check ends",
            600,
            1,
        )
        logs = stack.kubectl("logs", "job/check-by-hand", check=False)
        assert "Complete" in stack.job_ends("check-by-hand"), logs
    finally:
        stack.kubectl("delete", "job", "check-by-hand")
    state = json.loads(elsapg(stack.root, "status", "--json", "--stack", stack.name).stdout)
    assert not [p for p in state["problems"] if "check" in json.dumps(p)], state["problems"]
