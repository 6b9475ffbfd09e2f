"""How one container comes to be as its spec says: adopted, made, changed in place or replaced.

Files live in a volume of the container's own at `/etc/elsapg`: root's, so that no process in
the container can write them, and never in its environment or arguments.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import docker
import docker.errors
import docker.types
import requests
from docker.models.containers import Container

from elsapg.definition.topology import CONFIG_DIR, UID
from elsapg.errors import DeploymentError
from elsapg.targets.docker import daemon as d
from elsapg.targets.wire import whole

# What can change while a container runs; the rest of the props makes a new container.
_IN_PLACE = frozenset(
    {"files", "reload_signal", "before_stop", "after_start", "stop_timeout", "memory_mb", "cpus"}
)
_PERIOD_US = 100_000
TAIL = 15


def digest(value: object) -> str:
    """A short hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def inputs(props: dict[str, Any]) -> dict[str, Any]:
    """`props` without what Pulumi or we add to it."""
    added = ("__provider", "spec", "running", "log")
    return {k: whole(v) for k, v in props.items() if k not in added and v is not None}


def spec(props: dict[str, Any]) -> str:
    """What identifies a container that needs no replacement."""
    return digest({k: v for k, v in inputs(props).items() if k not in _IN_PLACE})


def name_of(props: dict[str, Any]) -> str:
    return d.physical_name(props["stack"], props["unit"])


def find(client: docker.DockerClient, props: dict[str, Any]) -> Container | None:
    """The container of this stack and unit, or None. Raises if a stranger has its name."""
    try:
        container = client.containers.get(name_of(props))
    except docker.errors.NotFound:
        return None
    d.owned(container.labels, props["stack"], "container", name_of(props))
    return container


def converge(
    client: docker.DockerClient, props: dict[str, Any], old_files: list[dict[str, Any]] | None
) -> None:
    """Make the container what `props` say. `old_files`: those it has, if it is being updated.

    An update hands over before it stops a primary and waits until the unit is back; a creation
    waits for nobody, because its peers may not exist yet.
    """
    container = find(client, props)
    updating = old_files is not None
    if container is not None and container.status == "created":
        # Whoever made it was killed before it ran: it may be in no network yet. It has no data.
        container.remove(force=True)
        container = None
    if container is None:
        _make(client, props)
    elif container.labels.get(d.SPEC_LABEL) != spec(props):
        _replace(client, container, props, graceful=updating)
    elif _shrinks(container, props):
        # PostgreSQL's buffers are larger than the new limit until it is started afresh.
        _replace(client, container, props, graceful=updating)
    else:
        _limits(container, props)
        if container.status != "running":
            _push(container, props)
            _start(container)
        elif old_files != props["files"]:
            _push(container, props)
            _drop_stale(container, old_files or [], props["files"])
            _reload(container, props)
            return
    # Also after an `up` that was killed between a replacement and this wait.
    if updating:
        _run_inside(client, props, props.get("after_start"), must=True)


def _make(client: docker.DockerClient, props: dict[str, Any]) -> None:
    config = f"{name_of(props)}-config"
    labels = {d.STACK_LABEL: props["stack"], d.UNIT_LABEL: props["unit"]}
    # Of a container that was removed by hand; its files may be stale.
    _remove_volume(client, config)
    client.volumes.create(config, labels=labels)
    container = client.containers.create(
        name=name_of(props),
        image=props["image"],
        command=props.get("command") or None,
        hostname=props["unit"],
        user=f"{UID}:{UID}",
        environment=props.get("env") or {},
        labels={**labels, d.SPEC_LABEL: spec(props)},
        mounts=[
            docker.types.Mount(CONFIG_DIR, config, type="volume"),
            *(
                docker.types.Mount(
                    m["path"], m["volume"], type="volume", read_only=bool(m.get("read_only"))
                )
                for m in props.get("mounts", [])
            ),
        ],
        tmpfs=dict.fromkeys(props.get("tmpfs", []), f"uid={UID},gid={UID},mode=1770"),
        ports={f"{p['container']}/tcp": (p["address"], p["host"]) for p in props.get("ports", [])},
        network=props["network"],
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        restart_policy={"Name": props.get("restart", "unless-stopped")},
        stop_signal=props.get("stop_signal"),
        shm_size=f"{props['shm_mb']}m" if props.get("shm_mb") else None,
        log_config=docker.types.LogConfig(
            type="json-file", config={"max-size": "10m", "max-file": "3"}
        ),
        **_limit_arguments(props),
    )
    network = client.networks.get(props["network"])
    network.disconnect(container)
    network.connect(container, aliases=props.get("aliases") or None)
    _push(container, props)
    try:
        _start(container)
    except DeploymentError:
        # What cannot start has no data; the next `up` makes it afresh.
        container.remove(force=True)
        _remove_volume(client, config)
        raise


def _limit_arguments(props: dict[str, Any]) -> dict[str, Any]:
    memory = f"{int(props['memory_mb'])}m" if props.get("memory_mb") else None
    arguments: dict[str, Any] = {"mem_limit": memory, "memswap_limit": memory}
    if props.get("cpus"):
        arguments |= {"cpu_period": _PERIOD_US, "cpu_quota": int(props["cpus"] * _PERIOD_US)}
    return {k: v for k, v in arguments.items() if v is not None}


def _shrinks(container: Container, props: dict[str, Any]) -> bool:
    now = int(container.attrs["HostConfig"]["Memory"] or 0)
    return 0 < int(props.get("memory_mb") or 0) * 1024 * 1024 < now


def _limits(container: Container, props: dict[str, Any]) -> None:
    wanted = _limit_arguments(props)
    host = container.attrs["HostConfig"]
    memory = int(props.get("memory_mb") or 0) * 1024 * 1024
    quota = max(0, host["CpuQuota"])
    if quota and "cpu_quota" not in wanted:
        wanted["cpu_quota"] = -1  # 0 would mean "as it is"
    if memory != host["Memory"] or wanted.get("cpu_quota", 0) != quota:
        container.update(**wanted)


def _push(container: Container, props: dict[str, Any]) -> None:
    if not container.put_archive(CONFIG_DIR, d.archive(props["files"], UID)):
        raise DeploymentError(f"cannot write the configuration of {container.name}; run again")


def _drop_stale(container: Container, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    stale = sorted({f["path"] for f in old} - {f["path"] for f in new})
    if stale:
        d.execute(container, ["rm", "-f", *(f"{CONFIG_DIR}/{p}" for p in stale)], user="0:0")


def _reload(container: Container, props: dict[str, Any]) -> None:
    signal = props.get("reload_signal")
    if signal:
        # From inside: Docker takes a `docker kill`, whatever the signal, for a stop by hand, and
        # would not restart the container when it crashes later.
        code, output = d.execute(container, ["sh", "-c", f"kill -s {signal.removeprefix('SIG')} 1"])
        if code:
            raise DeploymentError(f"{container.name} does not take {signal}: {output.strip()}")
    else:
        container.restart(timeout=int(props["stop_timeout"]))


def _start(container: Container) -> None:
    try:
        container.start()
    except docker.errors.APIError as error:
        raise DeploymentError(d.explain(error)) from None


def _replace(
    client: docker.DockerClient, container: Container, props: dict[str, Any], graceful: bool
) -> None:
    if graceful and container.status == "running":
        _run_inside(client, props, props.get("before_stop"), must=False)
    remove(client, container, props)
    _make(client, props)


def _run_inside(
    client: docker.DockerClient, props: dict[str, Any], command: list[str] | None, must: bool
) -> None:
    if not command:
        return
    container = client.containers.get(name_of(props))
    code, output = d.execute(container, command)
    if code and must:
        raise DeploymentError(
            f"{name_of(props)} was changed but is not back: {output.strip()[-400:]}"
        )


def remove(client: docker.DockerClient, container: Container, props: dict[str, Any]) -> None:
    """Stop and remove a container and its configuration; its other volumes stay."""
    container.stop(timeout=int(props.get("stop_timeout") or 10))
    container.remove(force=True)
    _remove_volume(client, f"{name_of(props)}-config")


def retire(client: docker.DockerClient, props: dict[str, Any]) -> None:
    """Remove the container for good; a primary hands over first, if anybody can take over."""
    container = find(client, props)
    if container is None:
        return
    if container.status == "running":
        _run_inside(client, props, props.get("before_stop"), must=False)
    remove(client, container, props)


def remove_unknown(client: docker.DockerClient, stack: str) -> None:
    """Remove the containers and configurations that carry the stack's label. Data stays."""
    label = f"{d.STACK_LABEL}={stack}"
    for container in client.containers.list(
        all=True, filters={"label": label}, ignore_removed=True
    ):
        container.remove(force=True)
    for volume in client.volumes.list(filters={"label": [label, d.UNIT_LABEL]}):
        volume.remove()


def _remove_volume(client: docker.DockerClient, name: str) -> None:
    with contextlib.suppress(docker.errors.NotFound):
        client.volumes.get(name).remove()


def run_task(client: docker.DockerClient, props: dict[str, Any]) -> str:
    """Run a container that ends, return its output, leave nothing. Raises DeploymentError."""
    leftover = find(client, props)
    if leftover is not None:
        leftover.remove(force=True)
    _make(client, {**props, "restart": "no"})
    container = client.containers.get(name_of(props))
    try:
        code = _wait(container, int(props["timeout_s"]))
        logs = container.logs(stdout=True, stderr=True)
        assert isinstance(logs, bytes)
        output = logs.decode(errors="replace").strip()
    finally:
        container.remove(force=True)
        _remove_volume(client, f"{name_of(props)}-config")
    if code:
        told = [_reason(output, props["unit"]), *_suspects(client, props["stack"])]
        raise DeploymentError(f"{props['unit']} failed ({code}): " + "\n".join(told))
    return output


def _suspects(client: docker.DockerClient, stack: str) -> list[str]:
    """Units that do not run, with the last thing each said: likely why a task failed."""
    found = client.containers.list(
        all=True, filters={"label": f"{d.STACK_LABEL}={stack}"}, ignore_removed=True
    )
    suspects = []
    for container in found:
        if container.status != "running":
            logs = container.logs(tail=1)
            assert isinstance(logs, bytes)
            said = logs.decode(errors="replace").strip()[-200:]
            suspects.append(f"{container.name} is {container.status}: {said}")
    return suspects


def _reason(output: str, unit: str) -> str:
    """From the last line on that says which command failed, or `error:`; else the last lines."""
    lines = output.splitlines()
    marks = (f"{unit}: ", "error: ")
    told = [number for number, line in enumerate(lines) if line.startswith(marks)]
    if not told:
        return "\n".join(lines[-TAIL:])
    first = lines[told[-1]]
    return "\n".join([first.partition(": ")[2], *lines[told[-1] + 1 :]])


def _wait(container: Container, timeout_s: int) -> int:
    """The exit code, or 124 (as timeout(1) says it) after `timeout_s` seconds."""
    try:
        return int(container.wait(timeout=timeout_s)["StatusCode"])
    except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError) as error:
        if not d.timed_out(error):
            raise
        return 124
