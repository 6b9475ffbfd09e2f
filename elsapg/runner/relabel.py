"""Patroni's on_role_change, on kubernetes: a new primary takes the primary's label off the others.

Each Patroni keeps the label of its own pod. One whose machine is gone cannot, and Kubernetes leaves
it in the Service `primary` until the kubelet has been silent for most of a minute: every other
connection would meet a dead address. Whoever runs this has been promoted by Patroni, so
nobody else leads.

A pod that comes back labels itself again.
"""

from __future__ import annotations

import socket
import sys

from elsapg.runner import kube

# As the definition's topology names them; the runner's images do not hold it.
SCOPE_LABEL, ROLE_LABEL = "cluster-name", "role"


def main(arguments: list[str]) -> int:
    """`relabel on_role_change ROLE SCOPE`, as Patroni calls it."""
    action, role, scope = arguments
    if action != "on_role_change" or role != "primary":
        return 0
    try:
        chosen = f"{SCOPE_LABEL}%3D{scope},{ROLE_LABEL}%3Dprimary"
        for pod in kube.get(f"pods?labelSelector={chosen}")["items"]:
            name = pod["metadata"]["name"]
            # Patroni keeps its variables from what it starts; a pod's host has the pod's name.
            if name != socket.gethostname():
                kube.merge(f"pods/{name}", {"metadata": {"labels": {ROLE_LABEL: None}}})
                print(f"relabel: {name} no longer leads", flush=True)
    except kube.KubeError as error:
        print(f"relabel: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
