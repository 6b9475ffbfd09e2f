"""The namespace, the accounts of its pods, and what those may ask of the API server."""

from __future__ import annotations

import pulumi

from elsapg.definition import topology as t
from elsapg.targets.kubernetes.objects import KEEP, Component, Manifest, Place

NODES, POOLERS, RUNNER = "pg", "pgbouncer", "runner"
COMPONENTS = (NODES, POOLERS, RUNNER)
# Of Patroni: its leader, configuration, synchronous standby, planned failover, failsafe members.
_PATRONIS = tuple(
    f"{t.SCOPE}-{name}" for name in ("config", "failover", "failsafe", "leader", "sync")
)
_POD_SECURITY = "pod-security.kubernetes.io"


class Foundation(Component):
    """Everything else of the stack is made in it."""

    def __init__(self, place: Place) -> None:
        super().__init__("foundation", place)
        keep = place.settings.protect
        self.namespace = self.add(
            namespace_manifest(place), pulumi.ResourceOptions(protect=keep), name="namespace"
        )
        inside = pulumi.ResourceOptions(depends_on=[self.namespace])
        self.accounts = [
            self.add(
                place.manifest(
                    "v1",
                    "ServiceAccount",
                    name,
                    name,
                    # Who reads and writes S3 may need an identity there; PgBouncer has none.
                    annotations=place.settings.kubernetes.service_account_annotations
                    if name != POOLERS
                    else None,
                    automountServiceAccountToken=False,
                ),
                inside,
            )
            for name in COMPONENTS
        ]
        role = self.add(
            place.manifest(
                "rbac.authorization.k8s.io/v1", "Role", NODES, NODES, rules=_rules(place)
            ),
            inside,
        )
        binding = place.manifest(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            NODES,
            NODES,
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NODES},
            subjects=[{"kind": "ServiceAccount", "name": NODES, "namespace": place.namespace}],
        )
        self.binding = self.add(binding, pulumi.ResourceOptions(depends_on=[role]))
        self.done()


def namespace_manifest(place: Place) -> Manifest:
    """The stack's own namespace, in which nothing that is privileged may run."""
    levels = {f"{_POD_SECURITY}/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    metadata: Manifest = {
        "name": place.namespace,
        "labels": {**place.labels(), **levels, f"{_POD_SECURITY}/enforce-version": "latest"},
    }
    if place.settings.protect:
        metadata["annotations"] = KEEP
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _rules(place: Place) -> list[dict[str, list[str]]]:
    """What Patroni does, and no more: it may change its own ConfigMaps, not those with our
    configuration, and the labels of its own pods.

    Neither list, watch nor create can be limited by name.
    """
    return [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "list", "watch"]},
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": list(_PATRONIS),
            "verbs": ["get", "patch"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {
            "apiGroups": [""],
            "resources": ["pods"],
            "resourceNames": list(t.node_names(place.settings)),
            "verbs": ["get", "patch"],
        },
    ]
