"""How long `up` takes: from nothing (images built) to verified, and again with nothing to do."""

from __future__ import annotations

import time
from pathlib import Path

import yaml

from bench.record import machine, spread, table, write
from elsapg import stackfile
from tests.stacks import ROOT, elsapg, free_ports

STACK = "bench-up"
GOAL_UP_S = 60.0
GOAL_AGAIN_S = 10.0


def _timed(*words: str) -> float:
    began = time.monotonic()
    done = elsapg(ROOT, *words)
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise RuntimeError(f"elsapg {' '.join(words)} failed ({done.returncode}):\n{done.stdout}")
    return seconds


def run(runs: int | None = None) -> Path:
    """Bring a stack up, verify it, bring it up again, and remove it; as often as told (3)."""
    on = machine()
    config = {"elsapg:target": "docker", "elsapg:docker": {"pool_port": free_ports(2, 8432)}}
    path = stackfile.stack_file(ROOT, STACK)
    found: list[dict[str, float]] = []
    try:
        for number in range(runs or 3):
            path.write_text(yaml.safe_dump({"config": config}), encoding="utf-8")
            up = _timed("up", "--stack", STACK, "--yes")
            verify = _timed("verify", "--stack", STACK)
            again = _timed("up", "--stack", STACK, "--yes")
            found.append({"up": up, "verify": verify, "verified": up + verify, "again": again})
            print(
                f"up {number + 1}: { {k: round(v, 1) for k, v in found[-1].items()} }", flush=True
            )
            _timed("destroy", "--stack", STACK, "--purge", "--confirm", STACK)
    finally:
        elsapg(ROOT, "destroy", "--stack", STACK, "--purge", "--confirm", STACK)
        path.unlink(missing_ok=True)
    what = {
        "up": ("`up` of a new stack, images built", None),
        "verify": ("`verify`", None),
        "verified": ("both: from nothing to verified", GOAL_UP_S),
        "again": ("`up` with nothing to do", GOAL_AGAIN_S),
    }
    rows: list[list[object]] = []
    for key, (title, goal) in what.items():
        seconds = spread([each[key] for each in found])
        met = "-" if goal is None else ("yes" if seconds["median"] <= goal else "NO")
        shown = "-" if goal is None else f"{goal:.0f} s"
        rows.append([title, f"{seconds['median']} s", f"{seconds['max']} s", shown, met])
    markdown = table(("what", "median", "max", "goal", "met"), rows)
    return write("up", "Up", on, found, markdown)
