"""PgBouncer: a Deployment and its Services. Beside each a gate, by which a primary that leaves
holds the pool for as long as the change takes, and a HAProxy that leads its readers.
"""

from __future__ import annotations

import pulumi

from elsapg.definition import topology as t
from elsapg.definition.files import files_for, readers_file
from elsapg.targets.kubernetes import pods
from elsapg.targets.kubernetes.foundation import POOLERS
from elsapg.targets.kubernetes.nodes import disruption_budget
from elsapg.targets.kubernetes.objects import Component, Manifest, Place, selector

GATE, READERS = "gate", "readers"
# Before that a pool that leaves does nothing (images/bin/pool-leave).
_KNOWN_AFTER_S = 5
_READERS_CONFIG = "readers-config"


class Poolers(Component):
    """Deployment, Services and disruption budget of the pools."""

    def __init__(self, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("poolers", place, opts)
        files = files_for(t.pooler_names(place.settings)[0], place.settings, pods.NO_SECRETS)
        before = [self.add(pods.config_map(place, POOLERS, POOLERS, files))]
        before += [self.add(service) for service in _services(place)]
        k, pooler = place.settings.kubernetes, place.settings.pooler
        # Pulumi's own ten minutes, and what the pools take that leave one by one.
        patience = f"{600 + pooler.instances * k.pool_leave_s}s"
        self.add(
            _deployment(place),
            pulumi.ResourceOptions(
                depends_on=before,
                custom_timeouts=pulumi.CustomTimeouts(update=patience),
            ),
        )
        self.add(disruption_budget(place, POOLERS))
        self.done()


def _services(place: Place) -> list[Manifest]:
    k = place.settings.kubernetes
    pool = {"name": "pgbouncer", "port": t.POOL_PORT, "targetPort": t.POOL_PORT}
    gate = {"name": GATE, "port": t.GATE_PORT, "targetPort": t.GATE_PORT}
    chosen = selector(POOLERS)
    service: Manifest = {"type": k.pool_service_type, "selector": chosen, "ports": [pool]}
    if k.pool_service_type == "LoadBalancer":
        # Else packets bear the address of the machine that they came by: to no network policy
        # would they be an application's.
        service["externalTrafficPolicy"] = "Local"
        if k.application_cidrs:
            service["loadBalancerSourceRanges"] = list(k.application_cidrs)
    return [
        place.manifest("v1", "Service", POOLERS, POOLERS, k.pool_service_annotations, spec=service),
        # By its addresses a primary finds every pool, also one that is not ready.
        place.manifest(
            "v1",
            "Service",
            t.POOLER_PODS,
            POOLERS,
            spec={
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": chosen,
                "ports": [pool, gate],
            },
        ),
    ]


def _deployment(place: Place) -> Manifest:
    stay_s = place.settings.kubernetes.pool_leave_s
    spec = {
        "replicas": place.settings.pooler.instances,
        "revisionHistoryLimit": 5,
        # Never more than there may be: their connections must fit into PostgreSQL's. Kubernetes
        # does not wait for a pod to have gone: the next one leaves when this one's clients have.
        **({"minReadySeconds": _KNOWN_AFTER_S + stay_s} if stay_s else {}),
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
        },
        "selector": {"matchLabels": selector(POOLERS)},
        "template": _pod(place),
    }
    return place.manifest("apps/v1", "Deployment", POOLERS, POOLERS, spec=spec)


def _pod(place: Place) -> Manifest:
    settings = place.settings
    first = t.pooler_names(settings)[0]
    [unit] = [u for u in t.units(settings) if u.name == first]
    files = files_for(first, settings, pods.NO_SECRETS)
    assert unit.memory_mb is not None
    folders = {POOLERS: [p for p in unit.tmpfs if p != "/run/pgbouncer"], GATE: ["/tmp"]}
    tmp = {name: pods.scratch(name, paths) for name, paths in folders.items()}
    # Its admin console is a Unix socket, which lets in its own user alone.
    run = pods.mount("run", "/run/pgbouncer")
    mounts = {
        name: [
            pods.mount(pods.CONFIG_VOLUME, t.CONFIG_DIR, read_only=True),
            run,
            *(pods.mount(volume, path) for volume, path in found.items()),
        ]
        for name, found in tmp.items()
    }
    # A pool that was held goes on when its own pod, too, sees the new primary.
    variables = pods.environment({**unit.env, "ELSAPG_AWAIT_PRIMARY": "1"})
    answers = {"tcpSocket": {"port": t.POOL_PORT}}
    pool = pods.container(
        POOLERS,
        place.images[unit.image],
        mounts[POOLERS],
        pods.resources(unit.memory_mb, 0.25, 2),
        command=pods.reloading(unit),
        env=variables,
        ports=[{"name": POOLERS, "containerPort": t.POOL_PORT, "protocol": "TCP"}],
        startupProbe={**answers, "periodSeconds": 1, "failureThreshold": 60},
        readinessProbe={**answers, "periodSeconds": 2, "failureThreshold": 2},
        livenessProbe={**answers, "periodSeconds": 10, "failureThreshold": 3},
        lifecycle=_leaving(POOLERS, settings.kubernetes.pool_leave_s),
    )
    gate = pods.container(
        GATE,
        place.images[unit.image],
        mounts[GATE],
        # It opens a pool's door within seconds, on a machine that has much else to do.
        pods.resources(96, 0.1, 1),
        command=["reload-on-change", "HUP", "--", "gate"],
        env=variables,
        ports=[{"name": GATE, "containerPort": t.GATE_PORT, "protocol": "TCP"}],
        lifecycle=_leaving(GATE),
    )
    readers = pods.container(
        READERS,
        place.images[unit.image],
        # No key: TLS passes through.
        [pods.mount(_READERS_CONFIG, t.CONFIG_DIR, read_only=True), run],
        pods.resources(96, 0.1, 1),
        command=["reload-on-change", "USR2", "--", "readers"],
        lifecycle=_leaving(READERS),
    )
    return pods.pod(
        place,
        POOLERS,
        POOLERS,
        [pool, gate, readers],
        [
            pods.config_volume(files, POOLERS),
            pods.config_volume([readers_file(settings)], POOLERS, _READERS_CONFIG),
            pods.empty("run"),
            *(pods.empty(volume) for found in tmp.values() for volume in found),
        ],
        # PgBouncer's name for the standbys: the same as on docker.
        hostAliases=[{"ip": t.READERS_ADDRESS, "hostnames": [t.REPLICA_HOST]}],
        terminationGracePeriodSeconds=60 + settings.kubernetes.pool_leave_s,
        **pods.spread(POOLERS, "preferred"),
    )


def _leaving(container: str, stay_s: int = 0) -> Manifest:
    """Together: a primary that leaves as well must still be able to hold this pool, and its readers
    read on."""
    command = ["pool-leave", container, *([str(stay_s)] if stay_s else [])]
    return {"preStop": {"exec": {"command": command}}}
