"""`python -m bench [NAME …]`, or `failover:FAULT,FAULT`: everything when none is named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bench import (
    archive,
    bootstrap,
    failover,
    integrity,
    kubernetes,
    locks,
    memory,
    pooled,
    queries,
    restore,
    retention,
    rls,
    up,
)
from tests.stacks import ROOT, running_stack

# On a server or a stack of their own.
ALONE: dict[str, Callable[[int | None], Path]] = {
    "up": up.run,
    "bootstrap": bootstrap.run,
    "locks": locks.run,
    "retention": retention.run,
    "integrity": integrity.run,
    "rls": rls.run,
    "queries": queries.run,
    "kubernetes": kubernetes.run,
}
# On one running stack, in this order: idle first, since a failover leaves caches warm.
ON_STACK = ("memory", "pooled", "restore", "archive", "failover")


def main() -> int:
    """Run what the command line names, and write `bench/results/`."""
    faults = ", ".join(s.name for s in failover.SCENARIOS)
    names = (*ALONE, *ON_STACK)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure on this machine and write the results into bench/results/.",
        epilog=f"Faults: {faults}. ELSAPG_TEST_STACK=NAME measures a stack that runs already; "
        "for failover that means killing its containers.",
    )
    parser.add_argument("what", nargs="*", help=f"{', '.join(names)}, failover:FAULT[,FAULT]")
    parser.add_argument("--runs", type=int, help="runs of each, instead of the usual number")
    arguments = parser.parse_args()
    wanted = {name: rest for name, _, rest in (w.partition(":") for w in arguments.what or names)}
    for name in wanted:
        if name not in names:
            parser.error(f"{name!r} is none of {', '.join(names)}")
    chosen = [f for f in wanted.get("failover", "").split(",") if f]
    for fault in chosen:
        if fault not in {s.name for s in failover.SCENARIOS}:
            parser.error(f"{fault!r} is no fault; faults: {faults}")
    written = [run(arguments.runs) for name, run in ALONE.items() if name in wanted]
    if wanted.keys() & set(ON_STACK):
        with running_stack("bench", {"postgres": {"memory_mb": 1024}}, ROOT) as deployment:
            if "memory" in wanted:
                written.append(memory.run(deployment))
            if "pooled" in wanted:
                written.append(pooled.run(deployment, arguments.runs))
            if "restore" in wanted:
                written.append(restore.run(deployment, arguments.runs))
            if "archive" in wanted:
                written.append(archive.run(deployment, arguments.runs))
            if "failover" in wanted:
                written.append(failover.run(deployment, chosen, arguments.runs))
    for path in written:
        print(f"\n{path.relative_to(ROOT)}\n\n{path.read_text(encoding='utf-8')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
