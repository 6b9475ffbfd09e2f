"""Back to a second before the accident, and from one line of history to another; by the runbook's
page where it has the words.
"""

from __future__ import annotations

import re
import shlex
import time

import pytest

from elsapg import process
from elsapg.services import status
from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, wait_for
from tests.chaos.writes import Access
from tests.restore.commands import iso, restore, restore_killed
from tests.restore.data import DATABASE, Writer, clock, present, sums, writing
from tests.restore.page import commands, follow
from tests.stacks import elsapg

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2400)]

# A stack that is kept from run to run has the rows of the run before.
RUN = int(time.time())
FIRST, SECOND = f"first{RUN}", f"second{RUN}"


def _exactly(deployment: Deployment, writer: Writer, prefix: str, moment: float) -> None:
    """Every row committed before is there, none that began after, on every node."""
    for node in deployment.nodes:
        there = present(deployment, prefix, node)
        assert writer.committed_before(moment) - there == set(), node
        assert writer.begun_after(moment) & there == set(), node


def test_accident(filled: Deployment, doors: Access) -> None:
    """DELETE without WHERE, DROP TABLE, a writer all the while: one second before it, all is there.
    Then back to the old line, accident and all, and to a point on the new one.
    """
    deployment = filled
    before = sums(deployment)
    assert before["workflow_instances"][0] > 0
    with writing(doors, FIRST) as writer:
        wait_for(lambda: len(writer.rows) > 50, "rows", 60)
        time.sleep(2)  # the second before the accident, and one more: time is what this is about
        accident = clock(deployment)
        deployment.query(deployment.primary(), "DELETE FROM elsa_workflows.bookmarks", DATABASE)
        deployment.query(
            deployment.primary(),
            "DROP TABLE elsa_workflows.activity_execution_records CASCADE;"
            "DELETE FROM elsa_workflows.workflow_instances",
            DATABASE,
        )
        reached = len(writer.rows)
        wait_for(lambda: len(writer.rows) > reached + 20, "rows after the accident", 60)
        target = accident - 1
        values = {"ELSAPG_STACK": deployment.stack, "WHEN": iso(target)}
        told = follow([*commands(""), *commands("Somebody deleted")], values)
        # Whoever waited at the pool writes on, on the new line.
        resumed = len(writer.committed_before(time.time()))
        wait_for(lambda: len(writer.committed_before(time.time())) > resumed + 20, "rows again", 60)
        opened = time.time()
    assert sums(deployment) == before
    there = present(deployment, FIRST)
    assert writer.committed_before(target) <= there
    lost = {
        name
        for name in writer.begun_after(target)
        if (row := writer.rows[name]).acknowledged is not None and row.acknowledged < opened
    } - there
    assert lost, "nothing after the target was there to be lost"
    said = dict(re.findall(r"^(last before|last now|gone|undo) +(.*)$", told, flags=re.M))
    assert int(said["gone"].split()[0]) > 0
    old, new = (int(said[f"last {when}"].split()[-1]) for when in ("before", "now"))
    assert new > old
    assert said["last now"].split(",")[0] <= iso(target).replace("+00:00", "Z")

    # The new line: a mark, and an accident of its own.
    made = elsapg(deployment.root, "restore", "mark", f"between-{RUN}", "--stack", deployment.stack)
    assert made.returncode == 0, made.stdout
    marked = present(deployment, FIRST)
    deployment.query(
        deployment.primary(),
        f"DELETE FROM elsa_workflows.workflow_instances WHERE id LIKE '{FIRST}-%'",
        DATABASE,
    )
    # Undone, as it said: the line that was left is there to its end, accident and all. A table of
    # the migrations is missing there: the cluster is whole, and says what is not.
    quick = ("--no-verify", "--no-backup", "--no-check")
    undo = shlex.split(said["undo"])
    assert undo[:4] == ["elsapg", "restore", "--stack", deployment.stack]
    assert undo[-2:] == ["--timeline", str(old)]
    told = restore(deployment, *undo[4:], *quick, code=7)
    assert "the restore is done, but" in told
    assert "activity_execution_records" in told
    assert deployment.query(
        deployment.primary(), "SELECT count(*) FROM elsa_workflows.bookmarks", DATABASE
    ) == [["0"]]
    # And the mark is found on the line in between, where it was made.
    restore(deployment, "--to", f"between-{RUN}", *quick)
    assert present(deployment, FIRST) == marked
    assert sums(deployment) == before


def _one_that_was_away(deployment: Deployment) -> None:
    """A node comes back with the journal of a restore that others have gone on with: to go on with
    that would take all of them back once more. And a pause of which no journal tells is told."""
    node = next(n for n in deployment.nodes if n != deployment.primary())
    journal = '{"stage": "fetching", "target": "latest", "since": "yesterday", "node": "pg-2"}'
    path = "/var/lib/postgresql/elsapg-restore.json"
    assert deployment.hosts.run(node, "sh", "-c", f"echo '{journal}' >{path}").code == 0
    _told(deployment, f"{node} was away while others went on", "--abandon")
    assert "no restore of stack" in restore(deployment, "--no-check", code=2)
    assert "is given up" in restore(deployment, "--abandon")
    wait_for(lambda: not status.gather(deployment).problems, "nothing to tell", 240, 1)
    ctl = ("patronictl", "-c", "/etc/elsapg/patroni.yml")
    assert deployment.hosts.run(node, *ctl, "pause", "--wait", "elsa").code == 0
    told = _told(deployment, "nothing fails over")
    process.run(shlex.split(told.split("`")[1]), timeout=60)
    wait_for(lambda: not status.gather(deployment).problems, "Patroni goes on", 240, 1)


def _told(deployment: Deployment, *words: str) -> str:
    """The problem that `status` tells with these words, once there is no other one."""

    def only() -> str:
        [*problems] = status.gather(deployment).problems
        fits = len(problems) == 1 and all(word in problems[0] for word in words)
        return problems[0] if fits else ""

    return str(wait_for(only, f"status tells {words}", 240, 1))


def test_killed_at_every_step(filled: Deployment, doors: Access, faults: Faults) -> None:
    """SIGKILL to the command at each of its steps, and S3 away in the middle and at the end; run
    again, it ends as if nothing had been.
    """
    deployment = filled
    before = sums(deployment)
    with writing(doors, SECOND) as writer:
        wait_for(lambda: len(writer.rows) > 20, "rows", 60)
        time.sleep(1)
        target = clock(deployment)
        wait_for(lambda: len(writer.begun_after(target)) > 10, "rows after the target", 60)
    first = ("--to", iso(target), "--no-backup", "--no-check")
    restore_killed(deployment, "stopping PostgreSQL on", *first)
    told = restore(deployment, "--abandon")
    assert "is given up" in told
    wait_for(lambda: not status.gather(deployment).problems, "all as it was", 120, 1)
    _one_that_was_away(deployment)
    restore_killed(deployment, "fetching", *first)
    found = status.gather(deployment)
    assert any("a restore to" in problem for problem in found.problems), found.problems
    with faults.down("s3"):
        assert "S3 does not answer" in restore(deployment, "--no-check", code=7)
    restore_killed(deployment, "recovering", "--no-check")
    restore_killed(deployment, "starting", "--no-check")
    restore_killed(deployment, "bringing roles", "--no-check")
    start, values = commands(""), {"ELSAPG_STACK": deployment.stack}
    assert "undo" in follow([*start, *commands("It was interrupted")], values)
    assert sums(deployment) == before
    _exactly(deployment, writer, SECOND, target)
    wait_for(lambda: not status.gather(deployment).problems, "a healthy stack", 240, 1)

    # To the same place again, and S3 away from where nothing of it is needed any more.
    restore_killed(deployment, "starting", *first)
    with faults.down("s3"):
        told = restore(deployment, "--no-check", "--no-verify", code=7)
    assert "S3 does not answer" in told, told
    wait_for(lambda: not status.gather(deployment).problems, "a healthy stack", 240, 1)
    _exactly(deployment, writer, SECOND, target)
