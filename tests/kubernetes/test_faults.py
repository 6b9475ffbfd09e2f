"""The primary goes, or is asked to: nothing acknowledged is lost, what is planned fails nobody."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from elsapg.errors import UnhealthyError
from elsapg.services.connect import connection
from tests.chaos import proof
from tests.chaos.faults import Healthy, wait_for
from tests.chaos.writes import Access, ContinuousWrites
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

UnderWrites = Callable[..., Any]
# For longer than nodes may be silent (50 s) before Kubernetes takes them for gone.
AWAY_S = 56
# Its clients stay until somebody has looked at them, and go before its pod has to.
LONG_LIFE_S = 40
# What a client sees that begins a transaction while PgBouncer ends, or just after.
POOL_LEAVES = re.compile(
    r"server shutting down|unexpected eof|EOF detected|closed the connection unexpectedly"
)


def test_postmaster_killed(faults: KubernetesFaults, under_writes: UnderWrites) -> None:
    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.kill_postmaster(state.leader)
        writes.wait_for_progress()

    under_writes(act)


def test_primary_pod_force_deleted(faults: KubernetesFaults, under_writes: UnderWrites) -> None:
    """The API server forgets the pod at once; its kubelet stops it all the same, handover first."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.delete_pod(state.leader, force=True)
        faults.wait_leader_other_than(state.leader)
        writes.wait_for_progress()

    under_writes(act)


@proof.twice
def test_switchover(faults: KubernetesFaults, under_writes: UnderWrites) -> None:
    """`elsapg switchover`: nobody sees more than a short wait."""

    def act(_state: Healthy, writes: ContinuousWrites) -> None:
        faults.switchover()
        writes.wait_for_progress()

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert after.leader != before.leader
    assert faults.paused_pools() == []
    proof.unnoticed(report)


@proof.twice
def test_primary_pod_deleted(faults: KubernetesFaults, under_writes: UnderWrites) -> None:
    """An ordinary delete, as an eviction: the pod hands over before it stops."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.delete_pod(state.leader)
        faults.wait_leader_other_than(state.leader)
        writes.wait_for_progress()

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert after.leader != before.leader
    proof.unnoticed(report)


@proof.twice
def test_node_drained(faults: KubernetesFaults, under_writes: UnderWrites) -> None:
    """`kubectl drain` of the primary's node: no transaction fails. If a pool is on it as well, its
    clients are told to go, between two transactions."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        with faults.node_drained(faults.stack.machine(state.leader)):
            faults.wait_leader_other_than(state.leader)
            writes.wait_for_progress()

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert report.unacknowledged == 0, report.summary()
    assert after.leader != before.leader
    assert faults.paused_pools() == []
    proof.unnoticed(report, but=POOL_LEAVES)


def test_readers_return_to_the_standby(
    stack: Stack, faults: KubernetesFaults, doors: Access
) -> None:
    """Its machine is drained; a pool that is there as well goes, and its successor begins without
    a standby."""
    _ours(stack)  # elsewhere its volume may follow it to another machine
    proof.readers_return(faults, doors, lambda node: faults.node_drained(stack.machine(node)))
    faults.wait_ready()


@proof.twice
def test_a_pool_leaves(stack: Stack, faults: KubernetesFaults, under_writes: UnderWrites) -> None:
    """Each in turn. Clients that connect anew now and then, as Npgsql does by `elsapg appsettings`,
    have gone to another one before it ends: nobody sees anything."""

    def act(_state: Healthy, writes: ContinuousWrites) -> None:
        for pod in before:
            stack.kubectl("delete", "pod", pod, timeout=120)
            stack.wait_ready()
            writes.wait_for_everyone()

    faults.wait_healthy()
    before = stack.uids("pgbouncer")
    assert len(before) == 2
    report, _ = under_writes(act, lifetime=_lifetime(stack))
    assert not before.items() & stack.uids("pgbouncer").items()
    proof.unnoticed(report)


@proof.twice
def test_a_switchover_while_a_pool_leaves(
    stack: Stack, faults: KubernetesFaults, under_writes: UnderWrites
) -> None:
    """The clients that it still has wait like all others."""
    deployment = stack.deployment

    def replaced() -> bool:
        states = deployment.hosts.states()
        there = [states[name].state for name in deployment.poolers if name in states]
        return there == ["running", "running"] and len(deployment.pools()) == 3

    def act(_state: Healthy, writes: ContinuousWrites) -> None:
        pod = deployment.hosts.physical("pgbouncer-1")
        inside = ("exec", pod, "--container=pgbouncer", "--")
        # One that a switchover holds stays: for as long as this test looks, too.
        stack.kubectl(*inside, "touch", "/run/pgbouncer/held.test")
        stack.kubectl("delete", "pod", pod, "--wait=false")
        wait_for(replaced, "another one is there beside it", 60)
        leaving = deployment.pools()[-1]

        def users() -> set[str]:
            return {c["user"] for c in deployment.pooler_console(leaving, "SHOW CLIENTS")}

        assert "elsa_app" in users()
        faults.switchover()
        writes.wait_for_everyone()
        wait_for(lambda: "elsa_app" not in users(), "its clients have gone", 60)
        stack.kubectl(*inside, "rm", "/run/pgbouncer/held.test")
        stack.wait_ready()

    before = faults.wait_healthy()
    report, after = under_writes(act, lifetime=LONG_LIFE_S)
    assert after.leader != before.leader
    proof.unnoticed(report)


def _lifetime(stack: Stack) -> int:
    """Of Npgsql's connections: longer than a pool that has no time to leave."""
    found = connection(stack.deployment, "elsa_app").lifetime_s
    assert found is not None and found > 10
    return found


def test_an_answer_that_is_cut_off_is_none(stack: Stack, faults: KubernetesFaults) -> None:
    """The kubelet starts anew, as for an upgrade, and what runs goes on. kubectl ends with 0."""
    _ours(stack)
    node = faults.wait_healthy().leader
    machine, hosts = stack.machine(node), stack.deployment.hosts
    command = ("sh", "-c", "echo half; sleep 20.25; echo whole")
    with ThreadPoolExecutor() as aside:
        told = aside.submit(hosts.run, node, *command)
        wait_for(lambda: faults.on_machine(machine, "pgrep", "-f", "^sleep 20.25"), "it runs", 30)
        assert faults.on_machine(machine, "pkill", "-KILL", "-x", "kubelet")
        with pytest.raises(UnhealthyError, match=f"^{node}: the connection to .* broke off"):
            told.result()
    wait_for(lambda: hosts.run(node, "true").code == 0, "its kubelet answers again", 120)
    faults.wait_ready()


def _ours(stack: Stack) -> None:
    if not stack.cluster.ours:
        pytest.skip("KUBECONFIG names a cluster whose machines are not ours to kill")


@proof.twice
def test_control_plane_lost(stack: Stack, faults: KubernetesFaults, doors: Access) -> None:
    """failsafe_mode: while the primary reaches every member, losing the DCS changes nothing; nor
    does losing the DNS with it. When the API server is back all nodes are "not ready" for it at
    first, and no Service has an endpoint."""
    _ours(stack)

    def act(_state: Healthy, writes: ContinuousWrites) -> None:
        with faults.node_lost(stack.cluster.control):
            time.sleep(AWAY_S)
        faults.wait_healthy()
        writes.wait_for_everyone()

    before = faults.wait_healthy()
    # Not by the machine that goes: what is published here is published there.
    by_a_worker = replace(doors, address=stack.cluster.address(stack.machine(before.leader)))
    report, after = proof.under_writes(faults, by_a_worker, act)
    assert (after.leader, after.timeline) == (before.leader, before.timeline)
    proof.unnoticed(report)


def test_node_lost(faults: KubernetesFaults, under_writes: UnderWrites) -> None:
    """The primary's machine is gone, and nobody could say goodbye."""
    _ours(faults.stack)

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        with faults.node_lost(faults.stack.machine(state.leader)):
            faults.wait_leader_other_than(state.leader)
            writes.wait_for_everyone()

    before = faults.wait_healthy()
    _, after = under_writes(act)
    assert after.leader != before.leader
