"""A node whose clock can be set, as a machine's own can: its containers are made again with
libfaketime, and as they were at the end. Debian's package; there is no other clock for a container.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import docker
from docker.models.containers import Container

from elsapg.definition import topology as t
from elsapg.targets.docker import daemon as d
from tests.chaos.faults import Faults

# On the node's own volume, which its agent has as well.
_OFFSET = f"{t.PGDATA.rpartition('/')[0]}/clock"
_DOCKERFILE = """\
FROM {image}
USER 0:0
RUN apt-get update && apt-get install -y --no-install-recommends libfaketime \\
 && rm -rf /var/lib/apt/lists/*
USER {user}
"""
_ENVIRONMENT = (
    "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1",
    f"FAKETIME_TIMESTAMP_FILE={_OFFSET}",
    # Programs wait by another clock, which nobody can set.
    "FAKETIME_DONT_FAKE_MONOTONIC=1",
    "FAKETIME_CACHE_DURATION=1",
)


class Clock:
    """The clock of one node."""

    def __init__(self, faults: Faults, node: str) -> None:
        self._faults = faults
        self._node = node

    def set_off(self, seconds: int) -> None:
        """Set it so many seconds ahead; 0: right."""
        words = ("sh", "-c", f"echo {seconds:+d} > {_OFFSET}.new && mv {_OFFSET}.new {_OFFSET}")
        done = self._faults.deployment.hosts.run(self._node, *words)
        assert done.code == 0, done.output


@contextlib.contextmanager
def shifted(faults: Faults, node: str) -> Iterator[Clock]:
    """Inside the block the node's clock can be set; it is right at the beginning."""
    units = (node, t.agent_name(node))
    was = {unit: faults.container(unit).attrs for unit in units}
    with contextlib.closing(d.client()) as client:
        image = _image(client, was[node])
        try:
            clock = Clock(faults, node)
            clock.set_off(0)
            for unit in units:
                _make(client, faults.container(unit), image, _ENVIRONMENT)
            faults.wait_healthy()
            yield clock
        finally:
            for unit in units:
                _make(client, faults.container(unit), was[unit]["Config"]["Image"])
            faults.deployment.hosts.run(node, "rm", "-f", _OFFSET)
            client.images.remove(image)


def _image(client: docker.DockerClient, attributes: dict[str, Any]) -> str:
    text = _DOCKERFILE.format(image=attributes["Image"], user=attributes["Config"]["User"])
    image, _ = client.images.build(fileobj=io.BytesIO(text.encode()), rm=True)
    assert image.id is not None
    return image.id


def _make(
    client: docker.DockerClient, old: Container, image: str, environment: Sequence[str] = ()
) -> None:
    """A container in the place of `old`, with the same volumes, name and network."""
    config, host = old.attrs["Config"], old.attrs["HostConfig"]
    ours = {variable.partition("=")[0] for variable in _ENVIRONMENT}
    kept = [v for v in config["Env"] if v.partition("=")[0] not in ours]
    [(network, attached)] = old.attrs["NetworkSettings"]["Networks"].items()
    # Docker adds the short id to a container's aliases by itself.
    aliases = [a for a in attached["Aliases"] or [] if a != str(old.id)[:12]]
    old.stop(timeout=30)
    old.remove()
    made = client.api.create_container_from_config(
        {
            **config,
            "Image": image,
            "Env": [*kept, *environment],
            "HostConfig": host,
            "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": aliases}}},
        },
        old.name,
    )
    client.containers.get(made["Id"]).start()
