"""`python -m bench [up] [memory] [failover[:FAULT,FAULT]]`: all of them when none is named."""

from __future__ import annotations

import argparse
import sys

from bench import failover, memory, up
from tests.stacks import ROOT, running_stack

NAMES = ("up", "memory", "failover")


def main() -> int:
    """Run what the command line names, on a stack made for it, and write `bench/results/`."""
    faults = ", ".join(s.name for s in failover.SCENARIOS)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure on this machine and write the results into bench/results/.",
        epilog=f"Faults: {faults}. ELSAPG_TEST_STACK=NAME measures a stack that runs already; "
        "for failover that means killing its containers.",
    )
    parser.add_argument("what", nargs="*", help="up, memory, failover, failover:FAULT[,FAULT]")
    parser.add_argument("--runs", type=int, help="runs of each, instead of the usual number")
    arguments = parser.parse_args()
    wanted = {name: rest for name, _, rest in (w.partition(":") for w in arguments.what or NAMES)}
    for name in wanted:
        if name not in NAMES:
            parser.error(f"{name!r} is none of {', '.join(NAMES)}")
    chosen = [f for f in wanted.get("failover", "").split(",") if f]
    for fault in chosen:
        if fault not in {s.name for s in failover.SCENARIOS}:
            parser.error(f"{fault!r} is no fault; faults: {faults}")
    written = []
    if "up" in wanted:
        written.append(up.run(arguments.runs))
    if wanted.keys() & {"memory", "failover"}:
        with running_stack("bench", {"postgres": {"memory_mb": 1024}}, ROOT) as deployment:
            # Idle first: a failover leaves caches warm.
            if "memory" in wanted:
                written.append(memory.run(deployment))
            if "failover" in wanted:
                written.append(failover.run(deployment, chosen, arguments.runs))
    for path in written:
        print(f"\n{path.relative_to(ROOT)}\n\n{path.read_text(encoding='utf-8')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
