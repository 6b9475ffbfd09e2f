"""What the nodes lean on goes away for a while: etcd, S3, HAProxy, a PgBouncer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from elsapg.definition import topology as t
from elsapg.services.deployment import Deployment
from elsapg.targets.docker import containers
from tests.chaos import proof
from tests.chaos.faults import Faults, Healthy, last_archived, wait_for
from tests.chaos.writes import ContinuousWrites

pytestmark = [pytest.mark.docker, pytest.mark.slow]

UnderWrites = Callable[..., Any]

# bench/ does it for 60 s; half of that is past ttl too.
ETCD_DOWN_S = 30
# "No gap": well above a busy machine's hiccups (without S3 each new segment is written in full, on
# both nodes), below what a failover by ttl takes.
HICCUP_S = 12.0
# Keeps a lease alive as often as it can; says "ready" when it does, and at the end, when nobody
# has answered for a while, every answer that was no success.
_KEEPALIVES = """
import json, sys, threading, urllib3
tls = "/etc/elsapg/tls/"
http = urllib3.PoolManager(cert_file=tls + "server.crt", key_file=tls + "server.key",
                           ca_certs=tls + "ca.crt", maxsize=8, timeout=3, retries=False)
post = lambda path, body: http.request("POST", sys.argv[1] + path, body=json.dumps(body))
lease = json.loads(post("/v3/lease/grant", {"TTL": 60}).data)["ID"]
odd = []
def work():
    broken = 0
    while broken < 20:
        try:
            answer = post("/v3/lease/keepalive", {"ID": lease}).data.decode()
        except urllib3.exceptions.HTTPError:
            broken += 1
            continue
        try:
            assert json.loads(answer)["result"]["TTL"] == "60"
        except (AssertionError, KeyError, ValueError):
            odd.append(answer)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
print("ready", flush=True)
for thread in threads: thread.join()
print(json.dumps(odd), flush=True)
"""


@proof.twice
def test_etcd_down_under_load(faults: Faults, under_writes: UnderWrites) -> None:
    """failsafe_mode: while the primary reaches every member, losing the DCS changes nothing."""

    def act(_state: Healthy, _writes: ContinuousWrites) -> None:
        with faults.down(t.etcd_names(faults.deployment.settings)[0]):
            time.sleep(ETCD_DOWN_S)

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert (after.leader, after.timeline) == (before.leader, before.timeline)
    proof.unnoticed(report, within_s=HICCUP_S)


def test_an_etcd_that_is_stopped_says_nothing_odd(faults: Faults) -> None:
    """Patroni takes all but a few errors in answer to a keepalive for the loss of its lock, and
    demotes the primary at once; failsafe_mode helps against silence only."""
    state = faults.wait_healthy()
    etcd = t.etcd_names(faults.deployment.settings)[0]
    url = f"https://{etcd}:{t.ETCD_PORT}"
    with faults.deployment.hosts.converse(
        state.leader, "python3", "-c", _KEEPALIVES, url
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        with faults.down(etcd):
            odd = json.loads(client.stdout.readline())
    assert odd == []
    assert faults.wait_healthy() == state


@proof.twice
def test_s3_down_under_load(
    deployment: Deployment, faults: Faults, under_writes: UnderWrites
) -> None:
    """WAL queues up while S3 is away, drains when it is back, and no segment is missing."""
    switched: list[str] = []

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        with faults.down("s3"):
            for _ in range(4):
                writes.wait_for_progress()
                switched.append(_switch_wal(deployment, state.leader))
            wait_for(lambda: _waiting(deployment, state.leader) >= 4, "WAL queues up", 60)
            writes.wait_for_progress()
        wait_for(
            lambda: (
                last_archived(deployment, state.leader) >= switched[-1]
                and _waiting(deployment, state.leader) == 0
            ),
            "the queue drains",
            180,
        )

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert (after.leader, after.timeline) == (before.leader, before.timeline)
    archived = _archived_range(deployment)
    assert archived >= switched[-1], f"{archived} in the repository, {switched[-1]} was switched"
    proof.unnoticed(report, within_s=HICCUP_S)


def test_haproxy_killed(faults: Faults, under_writes: UnderWrites) -> None:
    """Docker restarts it; the poolers find it again by themselves."""
    before = faults.wait_healthy()
    _, after = under_writes(lambda _state, writes: _crash_and_go_on(faults, "haproxy", writes))
    assert (after.leader, after.timeline) == (before.leader, before.timeline)


@proof.twice
def test_pooler_killed(faults: Faults, under_writes: UnderWrites) -> None:
    """Only its own clients see an error; those of the other one do not even wait."""
    others: list[int] = []

    def act(_state: Healthy, writes: ContinuousWrites) -> None:
        _crash_and_go_on(faults, faults.deployment.poolers[0], writes)
        others.extend(writes.errors_by_pool()[1:])

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert (after.leader, after.timeline) == (before.leader, before.timeline)
    # The killed one's clients did see it.
    proof.unnoticed(report, within_s=HICCUP_S, but=re.compile(""))
    if others != [0]:
        raise proof.NoticedError(f"errors of clients of the other pools: {others}")


def test_a_reload_keeps_the_restart_policy(faults: Faults) -> None:
    """Docker takes any `docker kill`, a reload's signal too, for a stop by hand, and then does
    not restart what crashes later."""
    containers._reload(faults.container("haproxy"), {"reload_signal": "SIGUSR2"})
    time.sleep(2)
    try:
        _crash_and_wait(faults, "haproxy")
    finally:
        faults.start("haproxy")
    faults.wait_healthy()


def _crash_and_wait(faults: Faults, unit: str) -> None:
    before = faults.container(unit).attrs["State"]["StartedAt"]
    faults.crash(unit)

    def is_back() -> bool:
        now = faults.container(unit).attrs["State"]
        return bool(now["Running"]) and now["StartedAt"] != before

    wait_for(is_back, f"Docker restarts {unit}", 60)


def _crash_and_go_on(faults: Faults, unit: str, writes: ContinuousWrites) -> None:
    _crash_and_wait(faults, unit)
    # Every writer again, not only those of the other pooler.
    writes.wait_for_everyone()


def _switch_wal(deployment: Deployment, node: str) -> str:
    """Switch to a new segment; the name of the one that ended."""
    rows = deployment.query(node, "SELECT pg_walfile_name(pg_switch_wal())")
    return rows[0][0]


def _waiting(deployment: Deployment, node: str) -> int:
    """Segments that wait for the archive."""
    sql = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
    return int(deployment.query(node, sql)[0][0])


def _archived_range(deployment: Deployment) -> str:
    """The last segment that the repository has, by pgBackRest's own account."""
    done = deployment.hosts.run(
        "runner", "pgbackrest", f"--stanza={t.STANZA}", "--output=json", "info"
    )
    assert done.code == 0, done.output
    return max(str(archive["max"]) for archive in json.loads(done.output)[0]["archive"])
