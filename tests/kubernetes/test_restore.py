"""Back to the moment before an accident, in place, and back from there; killed on the way."""

from __future__ import annotations

import json
import re
import shlex
import time

import pytest

from elsapg.definition import topology as t
from elsapg.services import status
from elsapg.services.deployment import Deployment
from tests.chaos.faults import wait_for
from tests.chaos.writes import Access
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack
from tests.restore.commands import iso, restore, restore_killed
from tests.restore.data import DATABASE, clock, fill, present, sums, writing

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(2400)]

# A stack that is kept from run to run has the rows of the run before.
PREFIX = f"k8s{int(time.time())}"
QUICK = ("--no-backup", "--no-check")


def test_accident(stack: Stack, faults: KubernetesFaults, doors: Access) -> None:
    """DELETE without WHERE under a writer. The command is killed at some of its steps and goes on;
    what its schedule starts meanwhile says why it fails; no pod is restarted. Then undone.
    """
    deployment = stack.deployment
    fill(deployment)
    before, running = sums(deployment), containers(stack)
    assert before["bookmarks"][0] > 0
    with writing(doors, PREFIX) as writer:
        wait_for(lambda: len(writer.rows) > 50, "rows", 60)
        target = clock(deployment)
        seen = len(writer.rows)
        wait_for(lambda: len(writer.rows) > seen + 20, "rows after the target", 60)
        deployment.query(deployment.primary(), "DELETE FROM elsa_workflows.bookmarks", DATABASE)
        seen = len(writer.rows)
        wait_for(lambda: len(writer.rows) > seen + 20, "rows after the accident", 60)
        restore_killed(deployment, "stopping PostgreSQL on", "--to", iso(target))
        assert "is given up" in restore(deployment, "--abandon")
        faults.wait_healthy()
        restore_killed(deployment, "fetching", "--to", iso(target), *QUICK)
        shut = time.time()
        held = status.gather(deployment).problems
        assert any("a restore to" in problem for problem in held), held
        assert "the cluster is paused: a restore is under way" in _scheduled(stack, "dump")
        restore_killed(deployment, "bringing roles")
        told = restore(deployment, "--no-verify")
        resumed = len(writer.committed_before(time.time()))
        wait_for(lambda: len(writer.committed_before(time.time())) > resumed + 20, "rows again", 60)
    assert sums(deployment) == before
    # Whoever waited at a pool all the while has written on the new line.
    after = writer.committed_before(shut) & writer.begun_after(target)
    assert len(after) > 20
    for node in deployment.nodes:
        there = present(deployment, PREFIX, node)
        assert writer.committed_before(target) <= there, node
        assert not after & there, node
    said = dict(re.findall(r"^(last before|last now|gone|undo) +(.*)$", told, flags=re.M))
    assert int(said["gone"].split()[0]) > 0
    wal_has_its_volume(deployment)
    assert containers(stack) == running

    undo = shlex.split(said["undo"])
    assert undo[:4] == ["elsapg", "restore", "--stack", deployment.stack]
    # It ends with `verify`, which is green.
    restore(deployment, *undo[4:], *QUICK)
    assert sums(deployment)["bookmarks"][0] == 0
    assert writer.committed_before(shut) <= present(deployment, PREFIX)
    wal_has_its_volume(deployment)
    assert containers(stack) == running


def wal_has_its_volume(deployment: Deployment) -> None:
    for node in deployment.nodes:
        led = deployment.hosts.run(node, "readlink", f"{t.PGDATA}/pg_wal").output.strip()
        assert led == f"{t.WAL_MOUNT}/wal", node


def containers(stack: Stack) -> dict[str, int]:
    """Of each container of the stack that goes on, how often it was started again."""
    items = json.loads(stack.kubectl("get", "pods", "-o", "json"))["items"]
    return {
        f"{pod['metadata']['uid']}/{container['name']}": container["restartCount"]
        for pod in items
        if pod["metadata"]["labels"].get("app.kubernetes.io/component") in ("pg", "pgbouncer")
        for container in pod["status"]["containerStatuses"]
    }


def _scheduled(stack: Stack, name: str) -> str:
    """What a CronJob's Job says that is started now, and fails."""
    job = f"{name}-by-hand"
    stack.kubectl("create", "job", f"--from=cronjob/{name}", job)
    try:
        failed = wait_for(lambda: _failed_pods(stack, job), f"{job} fails", 120, 0.5)
        return stack.kubectl("logs", failed[0])
    finally:
        stack.kubectl("delete", "job", job)


def _failed_pods(stack: Stack, job: str) -> list[str]:
    """Another one may be tried already."""
    pods = json.loads(stack.kubectl("get", "pods", f"--selector=job-name={job}", "-o", "json"))
    return [p["metadata"]["name"] for p in pods["items"] if p["status"]["phase"] == "Failed"]
