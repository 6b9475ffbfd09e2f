"""A second stack out of the first one's backups, which it reads, and never writes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import yaml

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.services.deployment import Deployment
from elsapg.targets.hosts import Completed
from tests.chaos.faults import archive_all, wait_for
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack, remove
from tests.kubernetes.test_restore import containers, wal_has_its_volume
from tests.restore.data import DATABASE, fill, sums
from tests.stacks import elsapg

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(1800)]

# Its place in the bucket must be an unused one, also where a stack is kept from run to run.
CLONE = f"test-look-{int(time.time())}"


@pytest.fixture
def look(stack: Stack) -> Iterator[Stack]:
    """Where the clone will be."""
    found = Stack(stack.cluster, stack.root, CLONE, {})
    try:
        yield found
    finally:
        remove(found, bucket=False)


def test_a_look_at_the_past(
    stack: Stack, faults: KubernetesFaults, look: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clone has the rows as at the mark and the keys to read them, nothing else in common with
    its source, and the source's archive is as it was. Without what opens that archive it is no
    empty database; when it has its data, that goes."""
    deployment = stack.deployment
    # What the stack's own Secrets say is enough.
    monkeypatch.delenv("ELSAPG_S3_ACCESS_KEY", raising=False)
    monkeypatch.delenv("ELSAPG_S3_SECRET_KEY", raising=False)
    fill(deployment)
    before = sums(deployment)
    stack.run("restore", "mark", CLONE)
    deployment.query(deployment.primary(), "DELETE FROM elsa_workflows.bookmarks", DATABASE)
    accident = sums(deployment)
    assert accident != before
    archive_all(deployment)
    held = _objects(deployment)

    made = elsapg(stack.root, "clone", "--stack", stack.name, "--to", CLONE, "--as", CLONE)
    assert made.returncode == 0, made.stdout
    assert "made     source" in made.stdout
    assert f"elsapg render --stack {CLONE} --out DIR" in made.stdout
    _comes_once_it_is_opened(look)
    assert sums(look.deployment) == before
    _is_its_own(look.deployment, deployment)

    look.run("backup", "now")
    archive_all(look.deployment)
    line = _line(look.deployment)
    assert line != _line(deployment)
    assert [path for path in _objects(look.deployment) if _is_wal(path, line)]
    after = _objects(deployment)
    # Nothing is changed or gone, and what is new is the source's own WAL.
    assert {path: after.get(path) for path in held} == held
    assert not [path for path in after.keys() - held if not _is_wal(path, _line(deployment))]
    assert sums(deployment) == accident

    _ends(look)
    assert sums(look.deployment) == before
    wait_for(look.verified, "verify is green", 400, 5)
    # Another one of its name would find what this one has written.
    stackfile.stack_file(look.root, CLONE).unlink()
    again = elsapg(stack.root, "clone", "--stack", stack.name, "--to", CLONE, "--as", CLONE)
    assert again.returncode == 2 and f"/{CLONE} in the bucket holds something" in again.stdout


def _comes_once_it_is_opened(look: Stack) -> None:
    """Without the Secret the nodes say which, and make nothing; with it the same pods go on."""
    look.kubectl("delete", "secret", "source")
    look.render()
    look.apply_manifests()
    wait_for(lambda: _closed(look), "a node says what is missing", 180, 1)
    for node in look.deployment.nodes:
        # It may be on its way, or have waited for too long and start again.
        [done] = wait_for(lambda node=node: [_look_for_data(look, node)], f"{node} runs", 240)
        assert done.code != 0, node
    assert "made     source" in look.run("secrets", "apply")
    # A Secret takes its time to reach a pod, and a node that waited too long for it starts again.
    look.wait_ready(480)
    KubernetesFaults(look).wait_healthy()


def _look_for_data(look: Stack, node: str) -> Completed:
    return look.deployment.hosts.run(node, "ls", f"{t.PGDATA}/PG_VERSION")


def _is_its_own(clone: Deployment, source: Deployment) -> None:
    wal_has_its_volume(clone)
    own, theirs = clone.outputs, source.outputs
    assert own["encryption_keys"] == theirs["encryption_keys"]
    assert not set(own["passwords"].values()) & set(theirs["passwords"].values())
    assert own["ca"] != theirs["ca"]
    for node in clone.nodes:
        assert clone.query(node, "SHOW cron.launch_active_jobs") == [["off"]]
        conf = clone.hosts.run(node, "cat", "/etc/elsapg/pgbackrest.conf").output
        assert f"repo1-path=/{CLONE}\n" in conf


def _ends(look: Stack) -> None:
    """What opens the source may go while the order stands, and no pod is replaced or started again;
    it goes with the order."""
    running = containers(look)
    look.kubectl("delete", "secret", "source")
    wait_for(lambda: not _opened(look.deployment), "the pods have it no more", 180, 2)
    KubernetesFaults(look).wait_healthy()
    assert containers(look) == running
    look.run("secrets", "apply")
    path = stackfile.stack_file(look.root, look.name)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    del document["config"]["elsapg:recovery"]
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert "removed  source" in look.run("secrets", "apply")
    look.render()
    look.apply()
    look.wait_ready()
    KubernetesFaults(look).wait_healthy()


def _closed(look: Stack) -> bool:
    """Whether a node says which Secret is missing, and what makes it."""
    logs = [
        look.kubectl("logs", node, "-c", "postgres", check=False) for node in look.deployment.nodes
    ]
    says = f"Secret source of namespace {look.namespace} (`elsapg secrets apply`"
    return any(says in text for text in logs)


def _opened(clone: Deployment) -> list[str]:
    """The nodes that have what opens the source."""
    return [n for n in clone.nodes if "source" in clone.hosts.run(n, "ls", "/etc/elsapg").output]


def _objects(deployment: Deployment) -> dict[str, tuple[int, int]]:
    """Size and time of every object of a stack's repository, by its path."""
    words = ("pgbackrest", "repo-ls", "--recurse", "--output=json", "--log-level-console=off")
    done = deployment.hosts.run(deployment.primary(), *words)
    assert done.code == 0, done.output
    return {p: (e["size"], e["time"]) for p, e in done.json().items() if e["type"] == "file"}


def _line(deployment: Deployment) -> str:
    """The present line of history, as in the names of WAL segments."""
    sql = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
    return deployment.query(deployment.primary(), sql)[0][0]


def _is_wal(path: str, line: str) -> bool:
    return path.startswith("archive/") and path.rpartition("/")[2].startswith(line)
