"""The PostgreSQL nodes: a StatefulSet of Patroni with a pgBackRest agent, its claims, its Services.

Who leads is Patroni's affair: its leader objects and the pods' role label are never declared here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pulumi
import yaml

from elsapg.definition import topology as t
from elsapg.definition.files import files_for
from elsapg.targets.kubernetes import pods
from elsapg.targets.kubernetes.foundation import NODES
from elsapg.targets.kubernetes.objects import KEEP, Component, Manifest, Place, digest, selector

POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
RESTART_ANNOTATION = "elsapg/restart"
# Headless: each pod's own address, from its start on.
_HEADLESS = {"clusterIP": "None", "publishNotReadyAddresses": True}
# Of the StatefulSet's own claims, which are there already when it looks: the claims' sizes stand
# in their own objects, so that growth changes them and never the StatefulSet, which cannot.
_NOMINAL_SIZE = "1Gi"
DEFAULT_CPUS = 2.0
# A handover takes up to 80 s at worst, and a clean stop ships the last WAL after it.
_GRACE_S = 150
# A pod that was deleted by force may still write to the volume that its successor starts with.
_ALONE = ("alone", "/var/lib/postgresql/.in-use")


class Nodes(Component):
    """StatefulSet, claims, Services and disruption budget of the nodes."""

    def __init__(self, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("nodes", place, opts)
        settings = place.settings
        keep = settings.protect
        nodes = t.node_names(settings)
        files = files_for(nodes[0], settings, pods.NO_SECRETS)
        before = [self.add(pods.config_map(place, NODES, NODES, files))]
        for volume, size in _volumes(place).items():
            for node in nodes:
                claim = place.manifest(
                    "v1",
                    "PersistentVolumeClaim",
                    f"{volume}-{node}",
                    NODES,
                    annotations=KEEP if keep else None,
                    spec=pods.claim(place, size),
                )
                before.append(self.add(claim, pulumi.ResourceOptions(protect=keep)))
        before += [self.add(service) for service in _services(place)]
        self.stateful_set = self.add(
            _stateful_set(place), pulumi.ResourceOptions(depends_on=before)
        )
        self.add(disruption_budget(place, NODES))
        self.done()


def disruption_budget(place: Place, component: str) -> Manifest:
    """One at a time; one that is broken anyway does not hold up a drain."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector(component)},
    }
    return place.manifest("policy/v1", "PodDisruptionBudget", component, component, spec=spec)


def _volumes(place: Place) -> dict[str, str]:
    """The volumes of each node that hold data, with their sizes."""
    pg = place.settings.postgres
    return {"data": pg.volume_size, **({"wal": pg.wal_volume_size} if pg.wal_volume_size else {})}


def _services(place: Place) -> list[Manifest]:
    postgres = {"name": "postgres", "port": t.PG_PORT, "targetPort": t.PG_PORT}
    patroni = {"name": "patroni", "port": t.PATRONI_PORT, "targetPort": t.PATRONI_PORT}
    agent = {"name": "agent", "port": t.AGENT_PORT, "targetPort": t.AGENT_PORT}
    readonly = {"name": "readonly", "port": t.REPLICA_PORT, "targetPort": t.PG_PORT}
    own = selector(NODES)
    made = [_service(place, NODES, own, [postgres, patroni, agent], **_HEADLESS)]
    for node in t.node_names(place.settings):
        chosen = {**own, POD_NAME_LABEL: node}
        made.append(_service(place, node, chosen, [postgres, patroni], **_HEADLESS))
        made.append(_service(place, t.agent_name(node), chosen, [agent], **_HEADLESS))
    # The primary's second port is for pools of before November 2026 (definition/secrets.py).
    for name, role, ports in (
        (t.PRIMARY_HOST, "primary", [postgres, readonly]),
        (t.REPLICA_HOST, "replica", [readonly]),
    ):
        chosen = {**own, t.SCOPE_LABEL: t.SCOPE, t.ROLE_LABEL: role}
        made.append(_service(place, name, chosen, ports, type="ClusterIP"))
    return made


def _service(
    place: Place, name: str, chosen: Manifest, ports: list[Manifest], **spec: Any
) -> Manifest:
    return place.manifest(
        "v1", "Service", name, NODES, spec={**spec, "selector": chosen, "ports": ports}
    )


def _stateful_set(place: Place) -> Manifest:
    settings = place.settings
    nodes = t.node_names(settings)
    spec = {
        "serviceName": NODES,
        "replicas": len(nodes),
        "ordinals": {"start": 1},
        # After an outage of all, any node may be the one that has to come up first.
        "podManagementPolicy": "Parallel",
        # One after the other nevertheless, the last one first; each must be ready, and Patroni
        # must have had time to name a synchronous standby, before the next one is stopped.
        "updateStrategy": {"type": "RollingUpdate"},
        "minReadySeconds": 2 * settings.patroni.loop_wait,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "revisionHistoryLimit": 5,
        "selector": {"matchLabels": selector(NODES)},
        "template": _pod(place),
        "volumeClaimTemplates": [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": volume},
                "spec": pods.claim(place, _NOMINAL_SIZE),
            }
            for volume in _volumes(place)
        ],
    }
    return place.manifest("apps/v1", "StatefulSet", NODES, NODES, spec=spec)


def _pod(place: Place) -> Manifest:
    settings = place.settings
    # All nodes are made from one template; the first one stands for them.
    first = t.node_names(settings)[0]
    units = {unit.name: unit for unit in t.units(settings)}
    node, agent = units[first], units[t.agent_name(first)]
    files = files_for(first, settings, pods.NO_SECRETS)
    names = {first: "data", f"{first}-wal": "wal", f"{first}-run": "run"}
    shared = [pods.mount(names[m.volume], m.path) for m in node.mounts]
    config = pods.mount(pods.CONFIG_VOLUME, t.CONFIG_DIR, read_only=True)
    tmp = {"postgres": pods.scratch("postgres", node.tmpfs)}
    tmp["agent"] = pods.scratch("agent", agent.tmpfs)
    mounts = {c: [pods.mount(v, path) for v, path in found.items()] for c, found in tmp.items()}
    cpus = settings.postgres.cpus or DEFAULT_CPUS
    assert node.memory_mb is not None and agent.memory_mb is not None
    postgres = pods.container(
        "postgres",
        place.images[node.image],
        [
            config,
            *shared,
            *mounts["postgres"],
            pods.mount("shm", "/dev/shm"),
            pods.TOKEN_MOUNT,
        ],
        pods.resources(node.memory_mb, cpus / 2, cpus),
        command=pods.reloading(replace(node, command=(*_ALONE, *node.command))),
        env=_environment(node),
        ports=[_port("postgres", t.PG_PORT), _port("patroni", t.PATRONI_PORT)],
        # Patroni answers these; the kubelet shows no certificate and checks none.
        startupProbe=_probe("/liveness", period=1, failures=300),
        livenessProbe=_probe("/liveness", period=10, failures=3),
        readinessProbe=_probe("/readiness", period=2, failures=3),
        lifecycle={"preStop": {"exec": {"command": list(node.before_stop)}}},
    )
    # No probe: without its agent a node still serves, and must stay in the Services.
    beside = pods.container(
        "agent",
        place.images[agent.image],
        [config, *shared, *mounts["agent"]],
        pods.resources(agent.memory_mb, 0.1, 1),
        command=pods.reloading(agent),
        env=pods.environment(agent.env),
        ports=[_port("agent", t.AGENT_PORT)],
    )
    return pods.pod(
        place,
        NODES,
        NODES,
        [postgres, beside],
        [
            pods.config_volume(files, NODES),
            pods.empty("run"),
            pods.empty("shm", medium="Memory", sizeLimit=f"{node.shm_mb}Mi"),
            *(pods.empty(volume) for found in tmp.values() for volume in found),
            pods.token(),
        ],
        labels={t.SCOPE_LABEL: t.SCOPE},
        annotations={RESTART_ANNOTATION: _restart_hash(place)},
        terminationGracePeriodSeconds=_GRACE_S,
        **pods.spread(NODES, settings.kubernetes.anti_affinity),
    )


def _environment(node: t.Unit) -> list[Manifest]:
    name = "$(PATRONI_NAME)"
    return pods.environment(
        {
            **node.env,
            "PATRONI_RESTAPI_CONNECT_ADDRESS": f"{name}:{t.PATRONI_PORT}",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"{name}:{t.PG_PORT}",
            # Whom to ask to hold the pools while this node hands over.
            "ELSAPG_GATES": t.GATES,
        },
        {
            "PATRONI_NAME": "metadata.name",
            "PATRONI_KUBERNETES_NAMESPACE": "metadata.namespace",
            "PATRONI_KUBERNETES_POD_IP": "status.podIP",
        },
    )


def _probe(path: str, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": t.PATRONI_PORT, "scheme": "HTTPS"},
        "periodSeconds": period,
        "timeoutSeconds": 5 if period > 5 else 2,
        "failureThreshold": failures,
    }


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _restart_hash(place: Place) -> str:
    """Of what Patroni reads only when it starts; for all else a reload is enough."""
    files = files_for(t.node_names(place.settings)[0], place.settings, pods.NO_SECRETS)
    [text] = [f.content for f in files if f.path == "patroni.yml"]
    patroni = yaml.safe_load(text)
    return digest({key: patroni.get(key) for key in ("scope", "kubernetes", "log")})
