"""The dynamic resources of the docker target: network, volume, image, container, task.

Each adopts what carries the stack's label before it creates, so that an interrupted `up` is
finished by the next one. A container's identity is its name: a change of image or mounts
replaces the container inside an update, in the order that keeps the cluster serving.

The module's and the classes' names stand in every stack's state: renaming them breaks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pulumi
from pulumi.dynamic import (
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)

from elsapg.definition.topology import UID
from elsapg.errors import DeploymentError, MissingError, UsageError
from elsapg.targets.docker import containers
from elsapg.targets.docker import daemon as d

ROOT = Path(__file__).resolve().parents[3]
GONE = ReadResult("", {})


class _NetworkProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        with d.daemon() as client:
            found = client.networks.list(names=[f"^{props['name']}$"])
            if found:
                d.owned(found[0].attrs.get("Labels"), props["stack"], "network", props["name"])
                network = found[0]
            else:
                network = client.networks.create(
                    props["name"], driver="bridge", labels={d.STACK_LABEL: props["stack"]}
                )
            return CreateResult(props["name"], {**props, "network_id": network.id})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with d.daemon() as client:
            found = client.networks.list(names=[f"^{id_}$"])
            return ReadResult(id_, {**props, "network_id": found[0].id}) if found else GONE

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=olds["name"] != news["name"], replaces=["name"])

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        with d.daemon() as client:
            for network in client.networks.list(names=[f"^{id_}$"]):
                # Nothing of the state is in it any more: what is was made by a killed `up`.
                containers.remove_unknown(client, props["stack"])
                network.remove()


class Network(Resource, module="docker", name="Network"):
    """A bridge network of the stack. Outputs: name, network_id."""

    name: pulumi.Output[str]
    network_id: pulumi.Output[str]

    def __init__(
        self, resource_name: str, *, stack: str, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        props = {"stack": stack, "name": d.physical_name(stack, resource_name), "network_id": None}
        super().__init__(_NetworkProvider(), resource_name, props, opts)


_RELAY = (
    "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
    "frontend relay\n bind :{port}\n default_backend there\n"
    "backend there\n server there {address}:{port}\n"
)


_FROM_ARGUMENT = 'printf %s "$0" > /tmp/relay'


class _LinkProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        name = d.physical_name(props["stack"], props["unit"])
        port = int(props["port"])
        with d.daemon() as client:
            try:
                there = client.containers.get(props["container"])
                # Not by its name: in this network that is the relay's.
                [(theirs, attached), *_] = there.attrs["NetworkSettings"]["Networks"].items()
            except (docker.errors.NotFound, ValueError):
                raise UsageError(
                    f"{props['container']} does not run: the stack that this one is made of must, "
                    "until this one has its data"
                ) from None
            self._remove(client, props)
            config = _RELAY.format(address=attached["IPAddress"], port=port)
            relay = client.containers.create(
                name=name,
                image=props["image"],
                command=["sh", "-c", f"{_FROM_ARGUMENT} && exec haproxy -db -f /tmp/relay", config],
                # A host name is an alias in every network that the container is in.
                hostname=name,
                labels={d.STACK_LABEL: props["stack"], d.UNIT_LABEL: props["unit"]},
                network=props["network"],
                user=f"{UID}:{UID}",
                read_only=True,
                tmpfs={"/tmp": f"uid={UID},gid={UID},mode=1770"},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                mem_limit="256m",
            )
            network = client.networks.get(props["network"])
            network.disconnect(relay)
            network.connect(relay, aliases=[props["container"]])
            client.networks.get(theirs).connect(relay)
            relay.start()
        return CreateResult(name, props)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with d.daemon() as client:
            try:
                client.containers.get(id_)
            except docker.errors.NotFound:
                return GONE
        return ReadResult(id_, props)

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        keys = [k for k in ("container", "network", "image") if olds[k] != news[k]]
        return DiffResult(changes=bool(keys), replaces=keys, delete_before_replace=True)

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        with d.daemon() as client:
            self._remove(client, props)

    @staticmethod
    def _remove(client: docker.DockerClient, props: dict[str, Any]) -> None:
        left = containers.find(client, props)
        if left is not None:
            left.remove(force=True)


class Link(Resource, module="docker", name="Link"):
    """A way to one port of another stack's container, under that one's name, in this network.

    A relay, because a container that joined a second network would bring its host name along: two
    of one name. It is there for as long as this resource is.
    """

    def __init__(
        self,
        resource_name: str,
        *,
        stack: str,
        container: str,
        port: int,
        network: pulumi.Input[str],
        image: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "stack": stack,
            "unit": resource_name,
            "container": container,
            "port": port,
            "network": network,
            "image": image,
        }
        super().__init__(_LinkProvider(), resource_name, props, opts)


class _VolumeProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        with d.daemon() as client:
            try:
                volume = client.volumes.get(props["name"])
                d.owned(volume.attrs.get("Labels"), props["stack"], "volume", props["name"])
            except docker.errors.NotFound:
                labels = {d.STACK_LABEL: props["stack"], d.DATA_LABEL: str(props["data"]).lower()}
                client.volumes.create(props["name"], labels=labels)
        return CreateResult(props["name"], props)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with d.daemon() as client:
            try:
                client.volumes.get(id_)
            except docker.errors.NotFound:
                return GONE
        return ReadResult(id_, props)

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        for key, value in (olds.get("fixed") or {}).items():
            wanted = (news.get("fixed") or {}).get(key, value)
            if wanted != value:
                raise UsageError(
                    f"elsapg:{key} = {wanted:.0f}: it is {value:.0f} since the stack was made, and "
                    f"what volume {olds['name']} holds cannot follow; set it back, or make a new "
                    "stack"
                )
        return DiffResult(changes=olds["name"] != news["name"], replaces=["name"])

    def delete(self, id_: str, _props: dict[str, Any]) -> None:
        with d.daemon() as client:
            try:
                client.volumes.get(id_).remove()
            except docker.errors.NotFound:
                return


class Volume(Resource, module="docker", name="Volume"):
    """A named volume. `data`: what it holds cannot be made again. Outputs: name.

    `fixed`: settings that its content was made for; changing one is refused.
    """

    name: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        *,
        stack: str,
        volume: str,
        data: bool,
        fixed: Mapping[str, int] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "stack": stack,
            "name": d.physical_name(stack, volume),
            "data": data,
            "fixed": dict(fixed or {}),
        }
        super().__init__(_VolumeProvider(), resource_name, props, opts)


class _ImageProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(props["target"], self._have(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self._have(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with d.daemon() as client:
            try:
                client.images.get(props["image_id"])
            except docker.errors.ImageNotFound:
                return GONE
        return ReadResult(id_, props)

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=any(olds[k] != news[k] for k in ("context", "target", "base")))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Images stay: other stacks use them, and the next `up` is quicker."""

    @staticmethod
    def _have(props: dict[str, Any]) -> dict[str, Any]:
        with d.daemon() as client:
            revision = props.get("revision") or ""
            image = ensure_image(client, props["target"], props["context"], props["base"], revision)
            return {**props, "image_id": image.id, "tag": _tag(props["target"], props["context"])}


def _tag(target: str, context: str) -> str:
    return f"{d.PREFIX}/{target}:{context}"


def ensure_image(
    client: docker.DockerClient, target: str, context: str, base: str, revision: str
) -> Any:
    """A target of `images/Dockerfile` as an image, built unless its content is there."""
    tag = _tag(target, context)
    try:
        return client.images.get(tag)
    except docker.errors.ImageNotFound:
        props = {"target": target, "base": base, "revision": revision}
        return _build(client, props, tag)


def _build(client: docker.DockerClient, props: dict[str, Any], tag: str) -> Any:
    try:
        client.images.get(props["base"])
    except docker.errors.ImageNotFound:
        raise MissingError(
            f"the base image {props['base']} is not here: run `elsapg setup`, which pulls or "
            "makes it"
        ) from None
    try:
        image, _log = client.images.build(
            path=str(ROOT),
            dockerfile="images/Dockerfile",
            target=props["target"],
            tag=tag,
            rm=True,
            forcerm=True,
            buildargs={"BASE": props["base"], "REVISION": props.get("revision") or ""},
            labels={"elsapg.image": props["target"]},
        )
    except docker.errors.BuildError as error:
        parts = [str(part.get("stream") or part.get("error") or "") for part in error.build_log]
        lines = [" ".join(line.split()) for line in "\n".join(parts).splitlines()]
        tail = " / ".join([line for line in lines if line][-8:])[-600:]
        if "no space left" in f"{error} {tail}".lower():
            raise DeploymentError(
                f"no disk space to build image {props['target']}: free some "
                "(`docker image prune`) and run again"
            ) from None
        raise DeploymentError(
            f"image {props['target']} does not build: {error.msg} ({tail})"
        ) from None
    return image


class Image(Resource, module="docker", name="Image"):
    """A target of `images/Dockerfile`, built unless its content is there. Output: image_id."""

    image_id: pulumi.Output[str]
    tag: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        *,
        target: str,
        context: str,
        base: str,
        revision: str = "",
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "target": target,
            "context": f"{context}-{revision}" if revision else context,
            "base": base,
            "revision": revision,
            "image_id": None,
            "tag": None,
        }
        super().__init__(_ImageProvider(), resource_name, props, opts)


class _ContainerProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        props = containers.inputs(props)
        with d.daemon() as client:
            containers.converge(client, props, old_files=None)
        return CreateResult(containers.name_of(props), _outputs(props))

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        news = containers.inputs(news)
        with d.daemon() as client:
            containers.converge(client, news, old_files=olds.get("files") or [])
        return UpdateResult(_outputs(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with d.daemon() as client:
            container = containers.find(client, props)
            if container is None:
                return GONE
            found = container.labels.get(d.SPEC_LABEL)
            running = container.status == "running"
        return ReadResult(id_, {**props, "spec": found, "running": running})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        old, new = containers.inputs(olds), containers.inputs(news)
        same = old == new and olds.get("spec") == containers.spec(new) and olds.get("running")
        renamed = containers.name_of(old) != containers.name_of(new)
        return DiffResult(
            changes=not same, replaces=["unit"] if renamed else [], delete_before_replace=True
        )

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        with d.daemon() as client:
            containers.retire(client, props)


def _outputs(props: dict[str, Any]) -> dict[str, Any]:
    return {**props, "spec": containers.spec(props), "running": True}


class Container(Resource, module="docker", name="Container"):
    """One unit. `files` is secret as a whole. Outputs: running, spec."""

    running: pulumi.Output[bool]
    spec: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        props: Mapping[str, pulumi.Input[Any]],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            _ContainerProvider(),
            resource_name,
            {**props, "spec": None, "running": None},
            _secret_files(opts),
        )


class _TaskProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(containers.name_of(props), self._run(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self._run(news))

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=containers.inputs(olds) != containers.inputs(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, props)

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        with d.daemon() as client:
            leftover = containers.find(client, props)
            if leftover is not None:
                containers.remove(client, leftover, props)

    @staticmethod
    def _run(props: dict[str, Any]) -> dict[str, Any]:
        props = containers.inputs(props)
        with d.daemon(timeout=int(props["timeout_s"]) + 60) as client:
            return {**props, "log": containers.run_task(client, props)}


class Task(Resource, module="docker", name="Task"):
    """A run that ends; it runs again when anything of it changes. Output: log."""

    log: pulumi.Output[str]

    def __init__(
        self,
        resource_name: str,
        props: Mapping[str, pulumi.Input[Any]],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            _TaskProvider(), resource_name, {**props, "log": None}, _secret_files(opts)
        )


def _secret_files(opts: pulumi.ResourceOptions | None) -> pulumi.ResourceOptions:
    secret = pulumi.ResourceOptions(additional_secret_outputs=["files"])
    return pulumi.ResourceOptions.merge(secret, opts)


def context_digest(paths: Sequence[str]) -> str:
    """A hash of the files (and whole folders) below the project root that an image is made of."""
    entries = []
    for name in paths:
        path = ROOT / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in found:
            if file.is_file() and "__pycache__" not in file.parts:
                entries.append(
                    [str(file.relative_to(ROOT)), containers.digest(file.read_bytes().hex())]
                )
    return containers.digest(entries)
