"""The page for 3 a.m. is followed word by word: a look at the past, and last the machine gone with
everything but S3. (Accidents and interruptions: test_restore.py.)
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.services import rescue
from elsapg.services.deployment import Deployment
from elsapg.services.places import Places
from elsapg.targets.docker import daemon as d
from tests.chaos.faults import wait_for
from tests.restore.commands import iso
from tests.restore.data import DATABASE, archived, clock, sums
from tests.restore.page import commands, follow
from tests.stacks import elsapg, lose

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2400)]

CLONE = "test-look"


def _objects(deployment: Deployment) -> str:
    """Every object of the source's bucket but what its own server archives meanwhile."""
    script = (
        "cd /var/lib/s3/elsa-backups && find . -type f -not -path './wal/archive/*' "
        "-exec sha256sum {} + | sort -k 2"
    )
    done = deployment.hosts.run("s3", "sh", "-c", script)
    assert done.code == 0, done.output
    return done.output


def test_a_look_at_the_past(filled: Deployment) -> None:
    """The clone has the same rows, nothing else in common, and the source's bucket is untouched."""
    deployment, before = filled, sums(filled)
    values = {"ELSAPG_STACK": deployment.stack, "WHEN": iso(clock(deployment))}
    time.sleep(0.1)  # what is a moment later must not be there: time is what this is about
    deployment.query(
        deployment.primary(),
        "UPDATE elsa_workflows.bookmarks SET bookmark_hash = md5(bookmark_hash)",
        DATABASE,
    )
    assert sums(deployment) != before
    archived(deployment)
    objects = _objects(deployment)
    lines = [f"WHEN={values['WHEN']}", *commands("Look at the past")]
    path = stackfile.stack_file(deployment.root, CLONE)
    try:
        follow([*commands(""), *lines], values, {"look": CLONE})
        clone = Deployment(deployment.root, CLONE)
        assert sums(clone) == before
        assert clone.settings.archive.prefix != deployment.settings.archive.prefix
        for role, password in clone.outputs["passwords"].items():
            assert password != deployment.outputs["passwords"][role]
        assert clone.outputs["ca"] != deployment.outputs["ca"]
        own, theirs = clone.outputs["repository"], deployment.outputs["repository"]
        assert not set(own.values()) & set(theirs.values())
        for node in clone.nodes:
            # Of the source nothing is left, and no job starts.
            listed = clone.hosts.run(node, "ls", "/etc/elsapg").output
            assert "source" not in listed
            assert clone.query(node, "SHOW cron.launch_active_jobs") == [["off"]]
        source = deployment.hosts.physical("s3")
        with d.daemon() as client:
            networks = client.containers.get(source).attrs["NetworkSettings"]["Networks"]
        assert len(networks) == 1, "the source's S3 is still in the clone's network"
        clone.query(clone.primary(), "SELECT pg_switch_wal()")
        assert _objects(deployment) == objects
    finally:
        done = elsapg(deployment.root, "destroy", "--stack", CLONE, "--purge", "--confirm", CLONE)
        assert done.returncode == 0, done.stdout
        path.unlink(missing_ok=True)


def test_the_machine_is_gone(filled: Deployment, tmp_path: Path) -> None:
    """Every container, every volume but S3's, and the state: what is left is S3 and the keys."""
    deployment = filled
    before, stack = sums(deployment), deployment.stack
    keys = tmp_path / "keys.json"
    keys.write_text(rescue.escrow(deployment), encoding="utf-8")
    archived(deployment)
    lose(stack, Places(deployment.root))
    deployment.__dict__.pop("outputs", None)

    refused = elsapg(deployment.root, "up", "--stack", stack, "--from-backup", "--yes")
    assert refused.returncode == 2
    assert "--keys FILE" in refused.stdout
    wrong = tmp_path / "wrong.json"
    wrong.write_text(
        json.dumps({**json.loads(keys.read_text()), "repository_cipher": "not-the-key"})
    )
    refused = elsapg(
        deployment.root, *("up", "--stack", stack, "--from-backup", "--yes", "--keys", str(wrong))
    )
    assert refused.returncode == 6
    assert "does not open it" in refused.stdout
    assert not any(n in deployment.hosts.states() for n in deployment.nodes), "a node was made"
    # And no empty database is made beside the archive meanwhile.
    refused = elsapg(deployment.root, "up", "--stack", stack, "--yes")
    assert refused.returncode == 2
    assert "--from-backup" in refused.stdout

    # The right keys win over what the attempt with the wrong ones has left.
    values = {"ELSAPG_STACK": stack, "KEYS": str(keys)}
    with ThreadPoolExecutor(2) as killers:
        killed = [killers.submit(_kill_while_it_recovers, deployment, n) for n in deployment.nodes]
        told = follow([*commands(""), *commands("The machine is gone")], values)
    assert "is back, from backup" in told
    assert sums(deployment) == before
    # Half-way its data looked like a database's, and Patroni would have opened it. Once it has
    # given way, the other node may be the first: and is killed as well.
    were_killed = [one.result() for one in killed]
    assert any(were_killed)


_WHILE_IT_RECOVERS = f"""
cd /var/lib/postgresql
for n in $(seq 6000); do
  [ ! -e test-killed ] || exit 0
  if [ -e elsapg-founding ] && [ -e data/global/pg_control ]; then
    : > test-killed
    # Process 1 ends with the one that it forked; and with it all others.
    for f in /proc/[0-9]*; do
      p=${{f#/proc/}}
      [ $p = 1 ] || [ $p = $$ ] || case $(tr '\\0' ' ' < $f/cmdline 2>/dev/null) in
      *python*patroni*{t.CONFIG_DIR}/patroni.yml*) kill -KILL $p ;;
      esac
    done
  elif [ ! -e elsapg-founding ] && [ -e data/global/pg_control ]; then
    exit 1
  fi
  sleep 0.02
done
exit 2
"""

_WAS_KILLED = """
cd /var/lib/postgresql
if [ -e test-killed ]; then rm test-killed && echo killed; else echo whole; fi
"""


def _kill_while_it_recovers(deployment: Deployment, node: str) -> bool:
    """Kill the node once, after its data was fetched and before it is a database, and wait until it
    clears that away. False for a node that is made from the other one.
    """

    def done() -> bool:
        return deployment.hosts.run(node, "sh", "-c", _WHILE_IT_RECOVERS, timeout=150).code < 2

    wait_for(done, f"{node} has its data", 900, pause=0.05)

    def was_killed() -> str:
        said = deployment.hosts.run(node, "sh", "-c", _WAS_KILLED).output.strip()
        return said if said in ("killed", "whole") else ""

    # It may be on its way back, and end the command.
    if wait_for(was_killed, f"{node} runs", 180) == "whole":
        return False

    def begins_again() -> bool:
        with d.daemon() as client:
            log = client.containers.get(deployment.hosts.physical(node)).logs().decode()
        return "did not come to its end; it is made again" in log

    return bool(wait_for(begins_again, f"{node} begins again", 300))
