"""The test cluster by hand: `python -m tests.kubernetes build|up|down|kubeconfig|plugin`."""

from __future__ import annotations

import argparse
import sys

from elsapg.errors import ElsapgError
from tests.kubernetes import binaries
from tests.kubernetes import cluster as c
from tests.stacks import ROOT


def main() -> int:
    """Build Kubernetes; make, remove, or name the cluster of this folder; build Pulumi's plugin."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes", description=__doc__)
    parser.add_argument("what", choices=("build", "up", "down", "kubeconfig", "plugin"))
    parser.add_argument("--workers", type=int, default=c.WORKERS)
    arguments = parser.parse_args()
    try:
        if arguments.what == "down":
            c.down(ROOT)
            return 0
        if arguments.what == "build":
            binaries.ensure(ROOT, print)
            return 0
        if arguments.what == "plugin":
            print(binaries.plugin(ROOT, print))
            return 0
        if arguments.what == "up":
            found: c.Cluster | None = c.up(ROOT, print, arguments.workers)
        else:
            found = c.load(ROOT)
    except ElsapgError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if found is None:
        print("no cluster runs here: python -m tests.kubernetes up", file=sys.stderr)
        return 1
    print(found.kubeconfig)
    if arguments.what == "up":
        print(f"registry {found.registry}, NodePorts {found.node_ports[0]}-{found.node_ports[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
