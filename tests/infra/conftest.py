"""Which stack is verified, by which backend, and the fixtures that every check uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elsapg.definition import topology as t
from elsapg.services import verify_plugin
from elsapg.services.deployment import Deployment
from elsapg.services.places import find_root
from elsapg.targets.docker import daemon as d
from tests.infra import hosts
from tests.infra.facts import Backend, Containment, Facts, Unit
from tests.infra.kubernetes_backend import Cluster, KubernetesBackend

_STACK = "ELSAPG_VERIFY_STACK"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stack", help=f"The running stack to verify (or {_STACK}).")


def _stack(config: pytest.Config) -> str | None:
    # pytest loads this file too late for the option when it is given a folder above.
    return config.getoption("--stack", default=None) or os.environ.get(_STACK)


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Without a stack there is nothing to verify: `pytest tests` passes this folder by."""
    return None if _stack(config) else True


class DockerBackend:
    """Units are containers: testinfra's docker backend, and the daemon for what is around them."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def host(self, unit: str) -> Any:
        return hosts.get(f"docker://{self._deployment.hosts.physical(unit)}")

    def containment(self, unit: str) -> Containment:
        with d.daemon(timeout=30) as client:
            container = client.containers.get(self._deployment.hosts.physical(unit))
            config, host = container.attrs["Config"], container.attrs["HostConfig"]
            return Containment(
                user=config["User"],
                read_only=bool(host["ReadonlyRootfs"]),
                memory_bytes=int(host["Memory"]),
                restarts=int(container.attrs["RestartCount"]),
                environment=tuple(config["Env"] or ()),
                out_of_memory=bool(container.attrs["State"]["OOMKilled"]),
            )

    def logs(self, unit: str) -> str:
        with d.daemon(timeout=30) as client:
            container = client.containers.get(self._deployment.hosts.physical(unit))
            output = container.logs(stdout=True, stderr=True, tail=20_000)
            assert isinstance(output, bytes)
            return output.decode(errors="replace")

    def image_history(self) -> str:
        told = []
        with d.daemon(timeout=30) as client:
            label = f"{d.STACK_LABEL}={self._deployment.stack}"
            found = client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
            for image in {c.attrs["Image"] for c in found}:
                attributes = client.api.inspect_image(image)  # type: ignore[no-untyped-call]
                history = client.api.history(image)  # type: ignore[no-untyped-call]
                told += [str(attributes.get("Config")), str(history)]
        return "\n".join(told)

    def pool(self, pooler: str) -> tuple[str, int]:
        found = self._deployment.outputs["pools"][self._deployment.poolers.index(pooler)]
        return str(found["host"]), int(found["port"])

    def lost(self, pooler: str) -> bool:
        return False

    def close(self) -> None:
        pass


def _deployment(config: pytest.Config) -> Deployment:
    stack = _stack(config)
    assert stack is not None
    if _DEPLOYMENT not in config.stash:
        found = config.stash[_DEPLOYMENT] = Deployment(find_root(), stack)
        if verify_plugin.OUTPUTS:
            found.outputs = verify_plugin.OUTPUTS
    return config.stash[_DEPLOYMENT]


_DEPLOYMENT = pytest.StashKey[Deployment]()


def _backend(deployment: Deployment) -> Backend:
    """The one place that knows which targets can be verified."""
    if deployment.settings.target == "kubernetes":
        return KubernetesBackend(deployment)
    return DockerBackend(deployment)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for another target; the report tells of it (verify_plugin)."""
    target = _deployment(config).settings.target

    def fits(item: pytest.Item) -> bool:
        marker = item.get_closest_marker("target")
        return marker is None or marker.args[0] == target

    left_out = [item for item in items if not fits(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if fits(item)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`unit`, `node`, `standby` and `pooler` stand for each of the stack's."""
    deployment = _deployment(metafunc.config)
    units = [unit.name for unit in t.units(deployment.settings)]
    for name, values in (
        ("unit_name", units),
        ("node", list(deployment.nodes)),
        ("pooler", list(deployment.poolers)),
        ("database", list(t.DATABASES)),
        ("any_database", ["postgres", *t.DATABASES]),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, scope="session")


@pytest.fixture(scope="session")
def root() -> Path:
    return find_root()


@pytest.fixture(scope="session")
def deployment(pytestconfig: pytest.Config) -> Deployment:
    """The stack under verification."""
    return _deployment(pytestconfig)


@pytest.fixture(scope="session")
def facts(deployment: Deployment) -> Iterator[Facts]:
    found = Facts(deployment, _backend(deployment))
    yield found
    found.close()


@pytest.fixture(scope="session")
def cluster(facts: Facts) -> Cluster:
    """The stack's objects in a Kubernetes cluster."""
    assert isinstance(facts.backend, KubernetesBackend)
    return facts.backend.cluster


@pytest.fixture
def unit(facts: Facts, unit_name: str) -> Unit:
    """One running unit; a stopped one is the finding of one check, not of all."""
    return facts.unit(unit_name)


@pytest.fixture
def primary(facts: Facts) -> str:
    return facts.primary()


@pytest.fixture
def standbys(facts: Facts) -> tuple[str, ...]:
    return facts.standbys()
