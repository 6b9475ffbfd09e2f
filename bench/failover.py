"""Faults under load, as a client sees them: the longest gap between two acknowledged commits.

8 writers through both PgBouncers, one row per commit, synchronous replication on. Every
acknowledged row is looked for afterwards in the node that leads then.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bench.record import machine, spread, table, write
from elsapg.services.deployment import Deployment
from tests.chaos.faults import Faults, Healthy, Subject
from tests.chaos.writes import Access, ContinuousWrites, Report, access, continuous_writes

F = TypeVar("F", bound=Subject)

QUIET_S = 3.0
# Patroni looks every loop_wait seconds: a fault must not always come at the same moment of it.
JITTER_S = 2.0


@dataclass(frozen=True)
class Scene(Generic[F]):
    """What a fault acts on."""

    faults: F
    state: Healthy
    writes: ContinuousWrites


@dataclass(frozen=True)
class Scenario(Generic[F]):
    """One fault: what is done under load, how often, and the longest gap that is allowed."""

    name: str
    title: str
    act: Callable[[Scene[F]], None]
    runs: int
    goal_s: float | None = None
    errors_allowed: bool = True
    # Seconds after which a writer connects anew.
    lifetime: float = math.inf


def _postmaster(scene: Scene[Faults]) -> None:
    scene.faults.kill_postmaster(scene.state.leader)
    time.sleep(8)


def _container(scene: Scene[Faults]) -> None:
    scene.faults.kill_container(scene.state.leader)
    try:
        time.sleep(26)
        scene.writes.wait_for_progress()
    finally:
        scene.faults.start(scene.state.leader)
    time.sleep(4)


def _crash(scene: Scene[Faults]) -> None:
    scene.faults.crash(scene.state.leader)
    time.sleep(12)


def _standby(scene: Scene[Faults]) -> None:
    scene.faults.kill_container(scene.state.sync_standby)
    try:
        time.sleep(8)
        scene.writes.wait_for_progress()
    finally:
        scene.faults.start(scene.state.sync_standby)
    time.sleep(4)


def _standby_silent(scene: Scene[Faults]) -> None:
    with scene.faults.paused(scene.state.sync_standby):
        time.sleep(16)
        scene.writes.wait_for_progress()
    time.sleep(4)


def _switchover(scene: Scene[Faults]) -> None:
    scene.faults.switchover()
    time.sleep(2)


def _network(scene: Scene[Faults]) -> None:
    with scene.faults.cut_off(scene.state.leader):
        time.sleep(30)
        scene.writes.wait_for_progress()
    time.sleep(6)


def _etcd(scene: Scene[Faults]) -> None:
    with scene.faults.down("etcd-1"):
        time.sleep(60)
    time.sleep(6)


def _pooler(scene: Scene[Faults]) -> None:
    scene.faults.crash(scene.faults.deployment.poolers[0])
    time.sleep(6)


def _haproxy(scene: Scene[Faults]) -> None:
    scene.faults.crash("haproxy")
    time.sleep(6)


def _frozen(scene: Scene[Faults]) -> None:
    scene.faults.freeze(scene.state.leader)
    try:
        time.sleep(30)
        scene.writes.wait_for_progress()
    finally:
        scene.faults.thaw(scene.state.leader)
    time.sleep(6)


SCENARIOS = (
    Scenario("switchover", "`elsapg switchover`", _switchover, 5, 2.0, errors_allowed=False),
    Scenario("postmaster", "postmaster killed", _postmaster, 5, 3.0),
    Scenario("container", "primary's container killed", _container, 5, 22.0),
    Scenario("standby", "standby killed", _standby, 5, 3.0),
    Scenario("network", "network of the primary cut", _network, 2),
    Scenario("etcd", "etcd stopped for 60 s", _etcd, 2),
    Scenario("crash", "primary's container crashed, restarted by Docker", _crash, 2),
    Scenario("silent", "standby silently unreachable", _standby_silent, 2),
    Scenario("pooler", "one PgBouncer killed", _pooler, 2),
    Scenario("haproxy", "HAProxy killed", _haproxy, 2),
    Scenario("frozen", "Patroni of the primary frozen", _frozen, 1),
)


@dataclass(frozen=True)
class Run:
    """One run of one scenario. `healed_s`: from the end of the load to a whole cluster."""

    report: Report
    healed_s: float


def measure(scenario: Scenario[F], faults: F, doors: Access) -> Run:
    """Run one scenario once, from a whole cluster to a whole cluster."""
    state = faults.wait_healthy()
    with continuous_writes(faults.deployment, doors, lifetime=scenario.lifetime) as writes:
        time.sleep(QUIET_S + random.uniform(0, JITTER_S))  # noqa: S311 - no secret
        scenario.act(Scene(faults, state, writes))
        writes.wait_for_progress()
    began = time.monotonic()
    faults.wait_healthy()
    healed = time.monotonic() - began
    report = writes.check()
    writes.drop()
    return Run(report, round(healed, 1))


def run(deployment: Deployment, names: Sequence[str], runs: int | None) -> Path:
    """Measure the scenarios named (all, if none is) and write the results down."""
    on = machine()
    chosen = [s for s in SCENARIOS if not names or s.name in names]
    faults = Faults(deployment)
    try:
        with access(deployment) as doors:
            data, markdown = measure_all(chosen, runs, faults, doors)
    finally:
        faults.close()
    name = f"failover-{chosen[0].name}" if len(chosen) == 1 else "failover"
    return write(name, "Failover", on, data, markdown)


def measure_all(
    scenarios: Sequence[Scenario[F]], runs: int | None, faults: F, doors: Access
) -> tuple[dict[str, object], str]:
    """Measure each scenario several times; for the JSON, and as a table."""
    rows: list[list[object]] = []
    data: dict[str, object] = {}
    for scenario in scenarios:
        found = []
        for number in range(runs or scenario.runs):
            found.append(measure(scenario, faults, doors))
            print(f"{scenario.name} {number + 1}: {found[-1].report.summary()}", flush=True)
        rows.append(_row(scenario, found))
        data[scenario.name] = {
            "title": scenario.title,
            "goal_s": scenario.goal_s,
            "gap_s": spread([r.report.gap.seconds for r in found]),
            "runs": [{**r.report.as_dict(), "healed_s": r.healed_s} for r in found],
        }
    header = ("fault", "runs", "gap, median", "gap, max", "goal", "errors, median", "lost", "met")
    markdown = table(header, rows) + (
        "\nGap: the longest time between two acknowledged commits, over 8 writers. Lost: "
        "acknowledged commits that were not there afterwards, over all runs.\n"
    )
    return data, markdown


def _row(scenario: Scenario[F], found: Sequence[Run]) -> list[object]:
    gaps = spread([r.report.gap.seconds for r in found])
    errors = [r.report.errors for r in found]
    lost = sum(r.report.lost for r in found)
    met = lost == 0 and (scenario.goal_s is None or gaps["median"] <= scenario.goal_s)
    if not scenario.errors_allowed:
        met = met and not any(errors)
    return [
        scenario.title,
        len(found),
        f"{gaps['median']:.2f} s",
        f"{gaps['max']:.2f} s",
        "-" if scenario.goal_s is None else f"{scenario.goal_s:.0f} s",
        round(spread(errors)["median"]),
        lost,
        "yes" if met else "NO",
    ]
