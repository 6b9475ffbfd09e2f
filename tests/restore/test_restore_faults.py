"""What cannot be is refused, and named, before anything stops; what broke half-way goes on."""

from __future__ import annotations

import time

import pytest

from elsapg.definition import topology as t
from elsapg.services import backups
from elsapg.services.deployment import Deployment
from elsapg.targets.docker import daemon as d
from tests.chaos.faults import Faults, wait_for
from tests.restore.commands import iso, restore
from tests.restore.data import BUCKET, archived, clock, sums
from tests.stacks import elsapg, inside

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2400)]


def _postmasters(deployment: Deployment) -> list[str]:
    sql = "SELECT pg_postmaster_start_time()"
    return [deployment.query(node, sql)[0][0] for node in deployment.nodes]


def _path(deployment: Deployment, segment: str) -> str:
    found = deployment.hosts.run("s3", "find", f"{BUCKET}/wal/archive", "-name", f"{segment}-*")
    (path,) = found.output.split()
    return path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--to", "2001-01-01T00:00:00Z"), "possible is"),
        (("--to", "FF/0"), "the database is only at"),
        (("--to", "latest", "--confirm", "other", "--no-check"), "is not the stack's name"),
    ],
)
def test_refused_before_anything_stops(
    filled: Deployment, words: tuple[str, ...], told: str
) -> None:
    before = _postmasters(filled)
    assert told in restore(filled, *words, code=2)
    assert _postmasters(filled) == before


def test_missing_and_damaged_segments(filled: Deployment) -> None:
    """Named beforehand; without the look beforehand, recovery stops there and pretends nothing."""
    deployment = filled
    good = sums(deployment)
    segment = archived(deployment)
    time.sleep(1)
    target = iso(clock(deployment))
    archived(deployment)
    path = _path(deployment, segment)
    before = _postmasters(deployment)

    inside(deployment, "s3", "mv", path, f"{BUCKET}/aside")
    told = restore(deployment, "--to", target, code=2)
    assert f"{segment} is missing" in told
    assert _postmasters(deployment) == before

    damage = f"cp {BUCKET}/aside {path} && printf damaged | dd of={path} bs=1 seek=64 conv=notrunc"
    inside(deployment, "s3", "sh", "-c", damage)
    told = restore(deployment, "--to", target, code=7)
    assert f"{segment} cannot be read" in told
    assert _postmasters(deployment) == before

    told = restore(deployment, "--to", target, "--no-check", "--no-backup", code=7)
    assert f"{segment} cannot be read" in told
    assert "Nothing was promoted" in told
    inside(deployment, "s3", "mv", f"{BUCKET}/aside", path)
    restore(deployment, "--no-verify")
    assert sums(deployment) == good


_ELSEWHERE = """
from elsapg.errors import ElsapgError
from elsapg.runner import found, recovery
repository = found.source({})
plan = found.plan(repository, {"to": "latest"})
found.DATA.mkdir(0o700)
server = recovery.PrivateServer(found.DATA, found.WORK, repository, archive=False)
try:
    recovery.fetch(repository, plan, found.DATA, found.WORK, found.say, found._never)
    server.start(plan)
    server.wait(plan, found.say, found._never)
except ElsapgError as error:
    print("error:", error)
finally:
    recovery.stop(found.DATA)
"""


def test_disk_full(filled: Deployment, faults: Faults) -> None:
    """A disk too small for the backup, and one too small for the WAL: named, nothing promoted.

    On a disk of its own beside the nodes', with their files: theirs is the machine's.
    """
    for _ in range(5):
        archived(filled)
    node = faults.container("pg-1")
    network, *_ = node.attrs["NetworkSettings"]["Networks"]
    backup = filled.backup_info()["backup"][-1]["info"]["size"] // 2**20

    def recover_on(megabytes: int) -> str:
        with d.daemon(timeout=120) as client:
            return client.containers.run(
                node.image,
                ["python3", "-c", _ELSEWHERE],
                user="999:999",
                # It would try twice more, a quarter of a minute later.
                environment={"PGBACKREST_JOB_RETRY": "0"},
                network=network,
                tmpfs={"/var/lib/postgresql": f"size={megabytes}m,uid=999,gid=999,mode=0700"},
                volumes={filled.hosts.physical("pg-1-config"): {"bind": "/etc/elsapg"}},
                labels={d.STACK_LABEL: filled.stack, d.UNIT_LABEL: "small-disk"},
                stderr=True,
                remove=True,
            ).decode()

    told = recover_on(backup // 2)
    assert "pgbackrest restore failed" in told and "is full: make room" in told, told
    told = recover_on(backup + 40)
    assert "fetched" in told, told
    assert "was full during recovery" in told and "Nothing was promoted" in told, told


def test_parameters_that_were_larger_for_a_while(filled: Deployment, faults: Faults) -> None:
    """Between the backup and the target max_connections was larger than in either, by hand."""
    deployment = filled
    # Of the present line, whatever lines there were before.
    before, backup = sums(deployment), backups.now(deployment, "incr")
    [[now]] = deployment.query(deployment.primary(), "SHOW max_connections")
    for value in (int(now) + 20, int(now)):
        _set(deployment, "max_connections", value)
        faults.wait_healthy()
    archived(deployment)
    target = iso(clock(deployment))
    quick = ("--no-verify", "--no-backup", "--no-check")
    told = restore(deployment, "--to", target, "--backup", backup, *quick)
    assert f"the database once had max_connections {int(now) + 20}: going on" in told
    assert sums(deployment) == before
    faults.wait_healthy()


def _set(deployment: Deployment, name: str, value: int) -> None:
    """A parameter that needs a restart, as an administrator sets it: the standby must not have less
    than the primary."""
    patronictl = ("patronictl", "-c", f"{t.CONFIG_DIR}/patroni.yml")
    change = ("edit-config", "--force", "-s", f"postgresql.parameters.{name}={value}")
    done = deployment.hosts.run(deployment.primary(), *patronictl, *change)
    assert done.code == 0, done.output

    def pending() -> list[str]:
        found = sorted(deployment.members(), key=lambda m: m["role"] == "leader")
        return [str(m["name"]) for m in found if m.get("pending_restart")]

    wait_for(pending, f"{name} waits for a restart", 60)

    def restarted() -> bool:
        for node in pending():
            words = ("restart", t.SCOPE, node, "--force")
            deployment.hosts.run(deployment.primary(), *patronictl, *words)
        values = {deployment.query(n, f"SHOW {name}")[0][0] for n in deployment.nodes}
        return values == {str(value)} and not pending()

    wait_for(restarted, f"{name} is {value} everywhere", 120, 2)


def test_s3_down(filled: Deployment, faults: Faults) -> None:
    deployment = filled
    before = _postmasters(deployment)
    with faults.down("s3"):
        told = restore(deployment, "--to", "latest", code=7)
        assert "S3 does not answer" in told
        assert _postmasters(deployment) == before


def test_wrong_key(filled: Deployment) -> None:
    """The repository is there and cannot be opened: that is what is said."""
    deployment = filled
    before = _postmasters(deployment)
    file = deployment.hosts.run(
        "runner", "sh", "-c", "grep -rl cipher-pass /etc/elsapg"
    ).output.split()[0]
    # Written into, not replaced: who may read it stays.
    change = (
        f"cp {file} /tmp/kept && "
        f"sed 's/cipher-pass=.*/cipher-pass=wrong/' /tmp/kept > /tmp/changed && "
        f"cat /tmp/changed > {file}"
    )
    inside(deployment, "runner", "sh", "-c", change, user="0")
    try:
        told = restore(deployment, "--to", "latest", code=7)
        assert "does not open it" in told
        listed = elsapg(deployment.root, "restore", "points", "--stack", deployment.stack)
        assert "does not open it" in listed.stdout
    finally:
        back = f"cat /tmp/kept > {file}; rm /tmp/kept /tmp/changed"
        inside(deployment, "runner", "sh", "-c", back, user="0")
    assert _postmasters(deployment) == before
