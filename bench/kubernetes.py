"""The kubernetes target on a cluster of this machine: from manifests to verified, and faults.

The cluster is the tests' own: a control plane and three nodes, each a container, on the same cores
as the writers. So figures are beside those of docker (failover.md), not better for more machines.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.failover import Scenario, Scene, measure_all
from bench.record import machine, table, write
from tests.kubernetes import s3
from tests.kubernetes.cluster import running_cluster
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack, prepare, remove
from tests.stacks import ROOT

NAME = "test-bench-kubernetes"
DEPLOY_GOAL_S = 120

Here = Scene[KubernetesFaults]


def _postmaster(scene: Here) -> None:
    scene.faults.kill_postmaster(scene.state.leader)
    time.sleep(8)


def _force_deleted(scene: Here) -> None:
    scene.faults.delete_pod(scene.state.leader, force=True)
    time.sleep(15)


def _node_lost(scene: Here) -> None:
    with scene.faults.node_lost(scene.faults.stack.machine(scene.state.leader)):
        time.sleep(30)
        scene.writes.wait_for_everyone()


def _switchover(scene: Here) -> None:
    scene.faults.switchover()
    time.sleep(2)


def _drained(scene: Here) -> None:
    with scene.faults.node_drained(scene.faults.stack.machine(scene.state.leader)):
        time.sleep(4)


SCENARIOS = (
    Scenario("switchover", "`elsapg switchover`", _switchover, 3, 3.0, errors_allowed=False),
    # Its writers connect anew as Npgsql does by this stack's `elsapg appsettings`.
    Scenario("drain", "`kubectl drain` of the primary's node", _drained, 3, 3.0, False, 12),
    Scenario("postmaster", "postmaster killed", _postmaster, 3, 3.0),
    Scenario("pod", "primary's pod force-deleted", _force_deleted, 3, 8.0),
    Scenario("node", "primary's node lost", _node_lost, 2, 25.0),
)


def run(runs: int | None) -> Path:
    """Deploy a stack and take its node away in each way; returns what was written."""
    on = machine()
    with running_cluster(ROOT, print) as cluster:
        stack = prepare(cluster, ROOT, s3.start(cluster, ROOT), NAME)
        try:
            stack.run("images", "push")
            deployed = _deploy(stack)
            with stack.doors() as doors:
                faults, markdown = measure_all(SCENARIOS, runs, KubernetesFaults(stack), doors)
        finally:
            remove(stack)
    rows = [[name, f"{seconds:.0f} s"] for name, seconds in deployed.items()]
    text = (
        f"Deployed: goal {DEPLOY_GOAL_S} s from the first rendered file to a verified stack; the "
        f"images are in the registry already.\n\n{table(('step', 'seconds'), rows)}\n{markdown}"
    )
    data = {"deployed_s": deployed, "faults": faults}
    return write("kubernetes", "The kubernetes target", on, data, text)


def _deploy(stack: Stack) -> dict[str, float]:
    """Seconds of each step, and of all."""
    started = time.monotonic()
    stack.render()
    stack.apply()
    stack.wait_ready()
    began = time.monotonic()
    stack.run("verify")
    verified = round(time.monotonic() - began, 1)
    return {**stack.timings, "verify": verified, "all": round(time.monotonic() - started, 1)}
