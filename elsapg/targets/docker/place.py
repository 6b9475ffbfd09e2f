"""Places a stack's units, tasks and volumes on one machine's Docker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from elsapg.definition import topology as t
from elsapg.definition.files import File, files_for, task_files
from elsapg.definition.secrets import Recovery, Secrets
from elsapg.settings import Settings
from elsapg.targets.docker.daemon import BASE_IMAGE
from elsapg.targets.docker.resources import (
    Container,
    Image,
    Link,
    Network,
    Task,
    Volume,
    context_digest,
)

# Of the runner's modules those that a node has: a change of any other leaves the nodes alone.
NODE_MODULES = (
    *("__init__", "archive", "backup", "config", "dumps", "duplicate", "found", "gates"),
    *("handover", "health", "jobs", "kube", "patroni", "patroni_node", "pgbackrest", "recovery"),
    *("relabel", "repository", "restore", "s3", "sealed", "target", "undump"),
)
# What each image is made of, beside the Dockerfile: a change of SQL rebuilds the runner only.
CONTEXTS: Mapping[str, tuple[str, ...]] = {
    "etcd": (),
    "s3": (".elsapg/bin/versitygw", "images/bin/s3"),
    "postgres": (
        "images/bin/alone",
        "images/bin/found-cluster",
        "images/bin/handover",
        "images/bin/no-orphans",
        "images/bin/relabel",
        "images/bin/reload-on-change",
        "images/bin/restore-step",
        "images/bin/wal-duplicate",
        "images/bin/wal-get",
        "elsapg/__init__.py",
        "elsapg/errors.py",
        *(f"elsapg/runner/{name}.py" for name in NODE_MODULES),
    ),
    "haproxy": (),
    "pgbouncer": (
        "images/bin/all-files",
        "images/bin/gate",
        "images/bin/pool-gate",
        "images/bin/pool-leave",
        "images/bin/readers",
        "images/bin/reload-on-change",
    ),
    "runner": (
        *("elsapg/__init__.py", "elsapg/errors.py", "elsapg/runner", "bootstrap_sql"),
        "images/bin/wal-get",
    ),
}


def place(
    stack: str,
    settings: Settings,
    secrets: pulumi.Output[Secrets],
    recovery: Recovery | None = None,
) -> None:
    """Register everything; Pulumi works out what to make, change or leave.

    `recovery`: the nodes come out of a repository, which is looked at before any of them is made.
    """
    images: dict[str, Image] = {}
    for target, extra in CONTEXTS.items():
        images[target] = Image(
            target,
            target=target,
            context=context_digest(("images/Dockerfile", *extra)),
            base=BASE_IMAGE,
            revision=settings.docker.image_revision,
            # Most of it is the nodes' image: at the same time it would be made twice.
            opts=pulumi.ResourceOptions(
                depends_on=[images["postgres"]] if target == "runner" else []
            ),
        )
    units = t.units(settings)
    volumes = _volumes(stack, settings, units)
    # So that it is deleted before them: it takes with it what a killed `up` left in them.
    after_volumes = pulumi.ResourceOptions(depends_on=list(volumes.values()))
    network = Network("network", stack=stack, opts=after_volumes)
    made: dict[str, Container] = {}
    checked: list[pulumi.Resource] = []
    links: list[pulumi.Resource] = []
    if recovery and recovery.source:
        links = [
            Link(
                "source",
                stack=stack,
                container=recovery.source.host,
                port=recovery.source.port,
                network=network.name,
                image=images["haproxy"].image_id,
            )
        ]
    for unit in units:
        after = _after(settings, unit, made)
        # Nor the runner: with the wrong key it would start again and again.
        if recovery and unit.name in (*t.node_names(settings), "runner"):
            checked = checked or [
                _task(
                    stack,
                    settings,
                    t.RECOVERY_CHECK,
                    secrets,
                    images,
                    network,
                    [made["s3"], *links],
                )
            ]
            after = [*after, *checked]
        made[unit.name] = Container(
            unit.name,
            _unit_props(stack, settings, unit, secrets, images, network, volumes),
            pulumi.ResourceOptions(depends_on=after),
        )
    before: list[pulumi.Resource] = list(made.values())
    for task in t.tasks(settings):
        before = [_task(stack, settings, task, secrets, images, network, before)]


def _task(
    stack: str,
    settings: Settings,
    task: t.Task,
    secrets: pulumi.Output[Secrets],
    images: Mapping[str, Image],
    network: Network,
    after: list[pulumi.Resource],
) -> Task:
    return Task(
        task.name,
        {
            "stack": stack,
            "unit": task.name,
            "image": images[task.image].image_id,
            "command": list(task.command),
            "network": network.name,
            "network_id": network.network_id,
            "timeout_s": task.timeout_s,
            "tmpfs": ["/tmp", "/var/spool/pgbackrest", "/var/log/pgbackrest"],
            "files": _files(secrets, lambda s: task_files(task.name, settings, s)),
        },
        pulumi.ResourceOptions(depends_on=after),
    )


def _after(
    settings: Settings, unit: t.Unit, made: Mapping[str, Container]
) -> list[pulumi.Resource]:
    """What a unit is made, and changed, after. One node, one pooler at a time: an update that
    replaces them waits until each is back."""
    for group in (t.node_names(settings), t.pooler_names(settings), t.etcd_names(settings)):
        if unit.name in group:
            first = group.index(unit.name) == 0
            earlier = [] if first else [made[group[group.index(unit.name) - 1]]]
            foundation = (
                [made[n] for n in (*t.etcd_names(settings), "s3")]
                if group == t.node_names(settings)
                else []
            )
            return [*earlier, *foundation]
    if unit.name.endswith("-agent"):
        return [made[unit.name.removesuffix("-agent")]]
    return []


def _volumes(stack: str, settings: Settings, units: tuple[t.Unit, ...]) -> dict[str, Volume]:
    mounts = {m.volume: m for unit in units for m in unit.mounts}
    return {
        mount.volume: Volume(
            f"volume-{mount.volume}",
            stack=stack,
            volume=mount.volume,
            data=mount.data,
            # A one-member etcd would stay one, and the others would found a cluster of their own.
            fixed={"etcd.members": settings.etcd.members}
            if mount.volume in t.etcd_names(settings)
            else None,
            opts=pulumi.ResourceOptions(protect=mount.data and settings.protect),
        )
        for mount in mounts.values()
    }


def _files(secrets: pulumi.Output[Secrets], render: Any) -> pulumi.Output[list[dict[str, Any]]]:
    def rendered(known: Secrets) -> list[dict[str, Any]]:
        files: tuple[File, ...] = render(known)
        return [{"path": f.path, "content": f.content, "mode": f.mode} for f in files]

    return secrets.apply(rendered)


def _unit_props(
    stack: str,
    settings: Settings,
    unit: t.Unit,
    secrets: pulumi.Output[Secrets],
    images: Mapping[str, Image],
    network: Network,
    volumes: Mapping[str, Volume],
) -> dict[str, pulumi.Input[Any]]:
    address = settings.docker.bind_address
    return {
        "stack": stack,
        "unit": unit.name,
        "image": images[unit.image].image_id,
        "command": list(unit.command),
        "env": unit.env,
        "network": network.name,
        "network_id": network.network_id,
        "aliases": list(unit.aliases),
        "mounts": [
            {"volume": volumes[m.volume].name, "path": m.path, "read_only": m.read_only}
            for m in unit.mounts
        ],
        "tmpfs": list(unit.tmpfs),
        "ports": [
            {"container": p.container, "host": p.host, "address": address} for p in unit.ports
        ],
        "memory_mb": unit.memory_mb,
        "cpus": unit.cpus,
        "shm_mb": unit.shm_mb,
        "stop_timeout": unit.stop_timeout,
        "stop_signal": unit.stop_signal,
        "before_stop": list(unit.before_stop),
        "after_start": list(unit.after_start),
        "reload_signal": unit.reload_signal,
        "files": _files(secrets, lambda s, n=unit.name: files_for(n, settings, s)),
    }
