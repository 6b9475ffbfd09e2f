"""How long the bootstrap of both databases takes: on an empty server, and again with nothing to do.

On a throw-away server from the product's image; the runner's own code, over TCP.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.record import machine, spread, table, write
from tests.sql import sql_server

GOAL_FIRST_S = 5.0
GOAL_AGAIN_S = 1.0


def run(runs: int | None = None) -> Path:
    """Bootstrap as many new servers as told (5), each twice."""
    on = machine()
    found: list[dict[str, float]] = []
    for number in range(runs or 5):
        with sql_server.running() as server:
            times = []
            for _ in range(2):
                began = time.monotonic()
                server.bootstrap(log=lambda _line: None)
                times.append(time.monotonic() - began)
        found.append({"first": times[0], "again": times[1]})
        print(f"bootstrap {number + 1}: {times[0]:.2f} s, {times[1]:.2f} s", flush=True)
    rows: list[list[object]] = []
    for key, title, goal in (
        ("first", "both databases, from an empty server", GOAL_FIRST_S),
        ("again", "again, nothing to do", GOAL_AGAIN_S),
    ):
        seconds = spread([each[key] for each in found])
        met = "yes" if seconds["median"] <= goal else "NO"
        rows.append([title, f"{seconds['median']} s", f"{seconds['max']} s", f"{goal:g} s", met])
    markdown = table(("what", "median", "max", "goal", "met"), rows)
    return write("bootstrap", "Bootstrap", on, found, markdown)
