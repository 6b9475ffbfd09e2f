"""`elsapg up` with Pulumi's official plugin: all of it comes up, a second run changes nothing, a
setting changes what it must, `destroy` keeps the data, and the next `up` finds it.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator

import pytest

from elsapg.errors import UnexpectedChangesError
from tests.chaos.faults import archive_all
from tests.kubernetes import s3
from tests.kubernetes.binaries import PLUGIN
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.stack import Stack, prepare, remove
from tests.restore.data import DATABASE, fill, sums
from tests.stacks import ROOT, elsapg

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(1500)]

NAME = "test-plugin"


@pytest.fixture(scope="module")
def deployed(cluster: Cluster) -> Iterator[Stack]:
    """A stack whose secrets are Pulumi's, as a team without GitOps has it. It asks for little:
    its clone and the one that the other tests share run beside it."""
    if not shutil.which(PLUGIN):
        pytest.skip(f"{PLUGIN} is not on PATH; python -m tests.kubernetes plugin builds it")
    # The bucket may hold the backups of a run before, which no other cipher opens.
    own = f"/{NAME}-{secrets.token_hex(3)}"
    stack = prepare(
        cluster,
        ROOT,
        s3.start(cluster, ROOT),
        NAME,
        postgres={"cpus": 0.4},
        archive={"prefix": own, "dump_prefix": f"{own}-daily"},
        kubernetes={"secrets": "pulumi"},
    )
    try:
        stack.run("images", "push")
        stack.run("up", "--yes", timeout=1200)
        yield stack
    finally:
        done = elsapg(ROOT, "destroy", "--stack", NAME, "--purge", "--confirm", NAME)
        print(done.stdout[-2000:])
        remove(stack, bucket=False)


def _no_changes(stack: Stack) -> str:
    """What `up` says to whoever wants nothing changed; empty when there is nothing to change."""
    done = elsapg(ROOT, "up", "--stack", stack.name, "--expect-no-changes", timeout=600)
    assert done.returncode in (0, UnexpectedChangesError.exit_code), done.stdout
    return done.stdout if done.returncode else ""


def test_all_of_it_is_there_and_holds_every_check(deployed: Stack) -> None:
    """`up` returns when the bootstrap has run: `verify` is green at once."""
    assert deployed.run("verify")


def test_a_second_run_changes_nothing(deployed: Stack) -> None:
    assert _no_changes(deployed) == ""
    assert re.search(r"up test-plugin: \d+ unchanged in", deployed.run("up", "--yes"))


def test_what_the_cluster_adds_is_no_difference(deployed: Stack) -> None:
    """Not even after a look at what is really there: defaults, status, Patroni's labels."""
    done = elsapg(ROOT, "up", "--stack", NAME, "--expect-no-changes", "--refresh", timeout=600)
    assert done.returncode == 0, done.stdout


def test_a_change_by_hand_is_found_and_mended(deployed: Stack) -> None:
    deployed.kubectl("delete", "poddisruptionbudget", "pg")
    done = elsapg(ROOT, "refresh", "--stack", NAME, "--expect-no-changes", timeout=600)
    assert done.returncode == UnexpectedChangesError.exit_code, done.stdout
    assert "poddisruptionbudget-pg" in done.stdout
    deployed.run("up", "--yes", "--refresh")
    assert deployed.kubectl("get", "poddisruptionbudget", "pg", "-o", "name").strip()
    assert _no_changes(deployed) == ""


def test_a_setting_reaches_the_cluster(deployed: Stack) -> None:
    """By a bootstrap Job of its own, which takes the old one's place; no pod is replaced."""
    before, old = deployed.uids("pg", "pgbouncer"), _jobs(deployed)
    deployed.write({"postgres": {"parameters": {"work_mem": "5MB"}}})
    deployed.run("up", "--yes")
    deployment = deployed.deployment
    assert deployment.query(deployment.primary(), "SHOW work_mem") == [["5MB"]]
    assert deployed.uids("pg", "pgbouncer") == before
    assert len(_jobs(deployed)) == 1 and _jobs(deployed) != old
    assert _no_changes(deployed) == ""


def test_destroy_keeps_the_data_and_up_finds_it(deployed: Stack) -> None:
    fill(deployed.deployment)
    before = sums(deployed.deployment)
    said = deployed.run("destroy", "--yes")
    assert "persistentvolumeclaim-data-pg-1" in said
    assert deployed.kubectl("get", "pods", "-o", "name").strip() == ""
    deployed.run("up", "--yes", timeout=1200)
    assert sums(deployed.deployment) == before
    assert deployed.run("verify")


def test_a_clone_comes_up_by_itself(deployed: Stack) -> None:
    """With the source's keys in its own state, and nothing left of what opened the source."""
    deployment = deployed.deployment
    fill(deployment)
    before = sums(deployment)
    name = f"test-look-{secrets.token_hex(3)}"
    deployed.run("restore", "mark", name)
    deployment.query(deployment.primary(), "DELETE FROM elsa_workflows.bookmarks", DATABASE)
    archive_all(deployment)
    look = Stack(deployed.cluster, ROOT, name, {})
    try:
        deployed.run("clone", "--to", name, "--as", name, "--yes", timeout=1200)
        assert sums(look.deployment) == before != sums(deployment)
        own, theirs = look.deployment.outputs, deployment.outputs
        assert own["encryption_keys"] == theirs["encryption_keys"]
        assert not set(own["passwords"].values()) & set(theirs["passwords"].values())
        assert look.kubectl("get", "secret", "source", "--ignore-not-found") == ""
        assert _no_changes(look) == ""
    finally:
        done = elsapg(ROOT, "destroy", "--stack", name, "--purge", "--confirm", name)
        print(done.stdout[-2000:])
        remove(look, bucket=False)


def _jobs(stack: Stack) -> set[str]:
    names = stack.kubectl("get", "jobs", "-o", "name").split()
    return {name for name in names if "bootstrap-" in name}
