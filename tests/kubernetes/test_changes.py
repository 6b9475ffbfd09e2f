"""A changed setting touches only what it must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import proof
from tests.chaos.faults import wait_for
from tests.chaos.writes import Access, continuous_writes
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(2400)]

# The kubelet looks for changed files once a minute, and a little more.
FILES_ARRIVE_S = 150


@pytest.fixture(autouse=True)
def as_before(stack: Stack) -> Iterator[None]:
    yield
    stack.write()


def _settings(stack: Stack, name: str) -> set[str]:
    deployment = stack.deployment
    return {deployment.query(node, f"SHOW {name}")[0][0] for node in deployment.nodes}


def test_figures_that_reload_restart_nothing(
    stack: Stack, faults: KubernetesFaults, doors: Access
) -> None:
    """PostgreSQL by Patroni at once, PgBouncer when the kubelet has brought its file; the
    bootstrap runs again, since what it reads has changed."""
    nodes, poolers, job = stack.uids("pg"), stack.uids("pgbouncer"), stack.bootstrap_job()

    def taken() -> bool:
        found = [
            {row["key"]: row["value"] for row in stack.deployment.pooler_console(p, "SHOW CONFIG")}
            for p in stack.deployment.poolers
        ]
        return all(values["max_client_conn"] == "900" for values in found)

    with continuous_writes(stack.deployment, doors) as writes:
        stack.change(
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
    assert stack.uids("pg") == nodes
    assert stack.uids("pgbouncer") == poolers


def test_a_restart_takes_the_standby_first(
    stack: Stack, faults: KubernetesFaults, doors: Access
) -> None:
    """PostgreSQL restarts inside its pods; no pod is replaced, and nobody's transaction fails."""
    nodes = stack.uids("pg")
    with continuous_writes(stack.deployment, doors) as writes:
        stack.change(postgres={"max_connections": 101})
        stack.wait_bootstrapped()
        writes.wait_for_progress()
    report = writes.check()
    print(report.summary())
    assert (report.errors, report.lost) == (0, 0), report.summary()
    assert _settings(stack, "max_connections") == {"101"}
    assert not any(m.get("pending_restart") for m in stack.deployment.members())
    assert stack.uids("pg") == nodes
    faults.wait_healthy()


@proof.twice
def test_more_memory_rolls_the_pods(stack: Stack, faults: KubernetesFaults, doors: Access) -> None:
    """A pod's limits cannot change in place: each is replaced in turn, the primary's after it has
    handed over, and nobody's transaction fails. The same with less again."""
    nodes = stack.uids("pg")
    with continuous_writes(stack.deployment, doors) as writes:
        for postgres in ({"memory_mb": 800}, {}):
            stack.change(postgres=postgres)
            stack.wait_ready()
            faults.wait_healthy()
        writes.wait_for_progress()
    report = writes.check()
    print(report.summary())
    assert report.lost == 0, report.summary()
    after = stack.uids("pg")
    assert after.keys() == nodes.keys()
    assert not set(after.values()) & set(nodes.values())
    proof.unnoticed(report)
