"""A changed setting touches only what it must, and volumes grow where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.chaos.faults import wait_for
from tests.chaos.writes import Access, continuous_writes
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

# The kubelet looks for changed files once a minute, and a little more.
FILES_ARRIVE_S = 150


@pytest.fixture(autouse=True)
def as_before(stack: Stack) -> Iterator[None]:
    yield
    stack.write()


def _change(stack: Stack, **settings: Mapping[str, Any]) -> None:
    stack.write(settings)
    stack.render()
    stack.apply()


def _settings(stack: Stack, name: str) -> set[str]:
    deployment = stack.deployment
    return {deployment.query(node, f"SHOW {name}")[0][0] for node in deployment.nodes}


def _uids(stack: Stack, component: str) -> dict[str, str]:
    chosen = f"app.kubernetes.io/component={component}"
    items = json.loads(stack.kubectl("get", "pods", "-l", chosen, "-o", "json"))["items"]
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in items}


def test_figures_that_reload_restart_nothing(
    stack: Stack, faults: KubernetesFaults, doors: Access
) -> None:
    """PostgreSQL by Patroni at once, PgBouncer when the kubelet has brought its file; the
    bootstrap runs again, since what it reads has changed."""
    nodes, poolers, job = _uids(stack, "pg"), _uids(stack, "pgbouncer"), stack.bootstrap_job()

    def taken() -> bool:
        found = [
            {row["key"]: row["value"] for row in stack.deployment.pooler_console(p, "SHOW CONFIG")}
            for p in stack.deployment.poolers
        ]
        return all(values["max_client_conn"] == "900" for values in found)

    with continuous_writes(stack.deployment, doors) as writes:
        _change(
            stack,
            postgres={"parameters": {"work_mem": "5MB"}},
            pooler={"max_client_conn": 900},
        )
        stack.wait_bootstrapped()
        assert stack.bootstrap_job() != job
        wait_for(lambda: _settings(stack, "work_mem") == {"5MB"}, "work_mem is reloaded", 30)
        wait_for(taken, "PgBouncer has reloaded", FILES_ARRIVE_S, 2)
        writes.wait_for_progress()
    report = writes.check()
    assert (report.errors, report.lost) == (0, 0), report.summary()
    assert _uids(stack, "pg") == nodes
    assert _uids(stack, "pgbouncer") == poolers


def test_a_restart_takes_the_standby_first(
    stack: Stack, faults: KubernetesFaults, doors: Access
) -> None:
    """PostgreSQL restarts inside its pods; no pod is replaced, and nobody's transaction fails."""
    nodes = _uids(stack, "pg")
    with continuous_writes(stack.deployment, doors) as writes:
        _change(stack, postgres={"max_connections": 101})
        stack.wait_bootstrapped()
        writes.wait_for_progress()
    report = writes.check()
    print(report.summary())
    assert (report.errors, report.lost) == (0, 0), report.summary()
    assert _settings(stack, "max_connections") == {"101"}
    assert not any(m.get("pending_restart") for m in stack.deployment.members())
    assert _uids(stack, "pg") == nodes
    faults.wait_healthy()


def test_more_memory_rolls_the_pods(stack: Stack, faults: KubernetesFaults, doors: Access) -> None:
    """A pod's limits cannot change in place: each is replaced in turn, the primary's after it has
    handed over, and nobody's transaction fails. The same with less again."""
    nodes = _uids(stack, "pg")
    with continuous_writes(stack.deployment, doors) as writes:
        for postgres in ({"memory_mb": 800}, {}):
            _change(stack, postgres=postgres)
            stack.wait_ready()
            faults.wait_healthy()
        writes.wait_for_progress()
    report = writes.check()
    print(report.summary())
    assert (report.errors, report.lost) == (0, 0), report.summary()
    after = _uids(stack, "pg")
    assert after.keys() == nodes.keys()
    assert not set(after.values()) & set(nodes.values())


def test_volumes_grow_without_replacement(stack: Stack, faults: KubernetesFaults) -> None:
    """Only the claims change: the StatefulSet, whose own templates cannot, does not know."""
    nodes = _uids(stack, "pg")
    before = json.loads(stack.kubectl("get", "statefulset", "pg", "-o", "json"))["metadata"]
    _change(stack, postgres={"volume_size": "30Gi"})
    after = json.loads(stack.kubectl("get", "statefulset", "pg", "-o", "json"))["metadata"]
    assert (after["uid"], after["generation"]) == (before["uid"], before["generation"])
    for node in stack.deployment.nodes:
        claim = json.loads(stack.kubectl("get", "pvc", f"data-{node}", "-o", "json"))
        assert claim["spec"]["resources"]["requests"]["storage"] == "30Gi"
    assert _uids(stack, "pg") == nodes
