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
Rule = dict[str, list[str]]
# `configure` looks whether the nodes' pods are being replaced (runner.rollout).
_RUNNERS_RULES: list[Rule] = [
    {
        "apiGroups": ["apps"],
        "resources": ["statefulsets"],
        "resourceNames": [NODES],
        "verbs": ["get"],
    }
]


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
        self.bindings = [
            self._allow(place, name, rules, inside)
            for name, rules in ((NODES, _rules(place)), (RUNNER, _RUNNERS_RULES))
        ]
        self.done()

    def _allow(
        self, place: Place, account: str, rules: list[Rule], inside: pulumi.ResourceOptions
    ) -> pulumi.Resource:
        """A Role for an account of the same name, bound to it."""
        api = "rbac.authorization.k8s.io"
        role = self.add(place.manifest(f"{api}/v1", "Role", account, account, rules=rules), inside)
        binding = place.manifest(
            f"{api}/v1",
            "RoleBinding",
            account,
            account,
            roleRef={"apiGroup": api, "kind": "Role", "name": account},
            subjects=[{"kind": "ServiceAccount", "name": account, "namespace": place.namespace}],
        )
        return self.add(binding, pulumi.ResourceOptions(depends_on=[role]))


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


def _rules(place: Place) -> list[Rule]:
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
