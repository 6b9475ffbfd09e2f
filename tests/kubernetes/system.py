"""What a cluster has before anyone deploys to it: DNS, a StorageClass, volumes on each worker."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from elsapg import process
from elsapg.errors import ElsapgError, UnhealthyError
from tests.kubernetes.machine_files import Node

if TYPE_CHECKING:
    from tests.kubernetes.cluster import Cluster

VOLUMES_PER_NODE = 4
VOLUME_GIB = 64
CONTROL_LABEL = "elsapg.test/control"


def prepare(cluster: Cluster, nodes: tuple[Node, ...], timeout: float) -> None:
    """Wait for the API, add what belongs to every cluster, wait until all of it is ready."""
    deadline = time.monotonic() + timeout
    _until(deadline, "the API server", cluster, "get", "--raw", "/readyz")
    volumes = [
        _volume(node.name, number) for node in nodes[1:] for number in range(VOLUMES_PER_NODE)
    ]
    text = (Path(__file__).parent / "system.yaml").read_text(encoding="utf-8")
    apply(cluster, text + "---\n" + yaml.safe_dump_all(volumes))
    for node in nodes[1:]:
        make_folders(node.name)
    label = f"{CONTROL_LABEL}=true"
    _until(deadline, "the control plane's node", cluster, "label", "node", cluster.control, label)
    for node in nodes:
        _until(deadline, f"node {node.name}", cluster, "get", "node", node.name)
    _until(deadline, "every node", cluster, "wait", "node", "--all", "--for=condition=Ready")
    _until(
        deadline, "DNS", cluster,
        "-n", "kube-system", "wait", "deployment/coredns", "--for=condition=Available",
    )  # fmt: skip


def apply(cluster: Cluster, text: str) -> None:
    """Server-side apply, as a GitOps tool does it."""
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)


def renew_volumes(cluster: Cluster) -> None:
    """Give released volumes back, empty: nothing provisions or deletes them here."""
    found = json.loads(cluster.kubectl("get", "persistentvolumes", "-o", "json"))["items"]
    for volume in found:
        if volume.get("status", {}).get("phase") not in ("Released", "Failed"):
            continue
        node, _, number = volume["metadata"]["name"].rpartition("-")
        cluster.kubectl("delete", "persistentvolume", volume["metadata"]["name"])
        path = volume["spec"]["local"]["path"]
        process.run(
            ["docker", "exec", node, "sh", "-c", f"rm -rf {path}; mkdir {path}"], timeout=60
        )
        apply(cluster, yaml.safe_dump(_volume(node, int(number))))


def make_folders(node: str) -> None:
    """The folders of a worker's volumes, as `local` volumes want them."""
    folders = [f"/var/lib/volumes/{number}" for number in range(VOLUMES_PER_NODE)]
    process.run(["docker", "exec", node, "mkdir", "-p", *folders], timeout=30)


def _volume(node: str, number: int) -> dict[str, Any]:
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{node}-{number}"},
        "spec": {
            "capacity": {"storage": f"{VOLUME_GIB}Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "local",
            "local": {"path": f"/var/lib/volumes/{number}"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
        },
    }


def _until(deadline: float, what: str, cluster: Cluster, *words: str) -> None:
    """Run kubectl until it succeeds: what it asks for is not there yet."""
    while True:
        try:
            cluster.kubectl(*words, timeout=max(5.0, deadline - time.monotonic()))
        except ElsapgError as error:
            if time.monotonic() > deadline:
                raise UnhealthyError(f"{what} is not ready in time: {error}") from None
            time.sleep(0.2)
        else:
            return
