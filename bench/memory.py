"""What the whole stack holds in memory when nobody uses it.

The working set, as Kubernetes counts it: what the control group uses, minus file pages that the
kernel would drop at once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import docker

from bench.record import machine, table, write
from elsapg.services.deployment import Deployment
from elsapg.targets.docker import daemon as d

IDLE_S = 30
SAMPLES = 3
GOAL_MIB = 1536.0


def working_sets(stack: str) -> dict[str, float]:
    """MiB of each running container of the stack."""
    client = docker.from_env(timeout=60)
    try:
        found = {}
        for container in client.containers.list(filters={"label": f"{d.STACK_LABEL}={stack}"}):
            answer = container.stats(stream=False)
            assert isinstance(answer, dict)
            memory = answer["memory_stats"]
            stats = memory.get("stats", {})
            # The first is control groups v1's name of it.
            idle = stats.get("total_inactive_file", stats.get("inactive_file", 0))
            unit = container.labels.get(d.UNIT_LABEL, container.name or "")
            found[unit] = (memory["usage"] - idle) / 1024**2
        return found
    finally:
        client.close()


def run(deployment: Deployment, _names: Sequence[str] = (), _runs: int | None = None) -> Path:
    """Wait until the stack is idle, measure, and write the result down."""
    on = machine()
    time.sleep(IDLE_S)
    samples = []
    for _ in range(SAMPLES):
        samples.append(working_sets(deployment.stack))
        time.sleep(5)
    units = {u: statistics.median(s.get(u, 0.0) for s in samples) for u in sorted(samples[0])}
    total = sum(units.values())
    rows: list[list[object]] = [[unit, f"{mib:.0f}"] for unit, mib in units.items()]
    rows.append(["**whole stack**", f"**{total:.0f}**"])
    data = {"total_mib": round(total, 1), "goal_mib": GOAL_MIB, "units_mib": units}
    met = "yes" if total <= GOAL_MIB else "NO"
    markdown = table(("unit", "MiB"), rows) + f"\nGoal: {GOAL_MIB:.0f} MiB; met: {met}\n"
    print(f"memory: {total:.0f} MiB in {len(units)} containers", flush=True)
    return write("memory", "Idle memory", on, data, markdown)
