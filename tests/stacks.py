"""A stack of its own for tests that break things: written, brought up, and gone at the end.

    with running_stack("chaos", {}, ROOT) as deployment: ...

ELSAPG_TEST_STACK=NAME uses a stack that runs already, and leaves it. ELSAPG_KEEP_STACKS=1 leaves
the stacks that were made, so that the next run finds them up and is quick.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from elsapg import stackfile
from elsapg.services.deployment import Deployment
from elsapg.services.places import Places
from elsapg.services.ports import free_in_a_row
from elsapg.targets.docker import daemon as d
from elsapg.targets.docker.place import CONTEXTS
from elsapg.targets.docker.resources import context_digest, ensure_image

ROOT = Path(__file__).resolve().parents[1]
FIRST_PORT = 7432
PORTS = 8  # as many PgBouncers as a stack may have
APART = 100


def far_off() -> dict[str, str]:
    """Schedules as by default, but for the hour: no test is meant to meet a job that is due."""
    hour = (datetime.datetime.now(datetime.UTC).hour + 12) % 24
    days = {"full": "0", "incremental": "1-6", "dump": "*", "check": "*", "drill": "0"}
    return {f"{job}_schedule": f"0 {hour} * * {day}" for job, day in days.items()}


SMALL: Mapping[str, Mapping[str, Any]] = {
    "postgres": {"memory_mb": 768},
    "archive": far_off(),
}


def elsapg(root: Path, *words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run the CLI as a user would; its output comes back in `stdout`."""
    env = {k: v for k, v in os.environ.items() if k != "ELSAPG_STACK"}
    env |= {"PYTHONPATH": str(ROOT), "ELSAPG_ROOT": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "elsapg.cli", *words],
        cwd=root,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


@functools.cache
def images() -> Mapping[str, str]:
    """The id of each of the product's images, as this tree makes them; built once for all workers.

    `up` would build them too, but two at the same time would do all of it twice.
    """
    lock = Places(ROOT).private / "locks" / "test-images"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held, d.daemon(timeout=3600) as client:
        fcntl.flock(held, fcntl.LOCK_EX)
        return {
            name: ensure_image(
                client, name, context_digest(("images/Dockerfile", *extra)), d.BASE_IMAGE, ""
            ).id
            for name, extra in CONTEXTS.items()
        }


@contextlib.contextmanager
def running_stack(
    name: str, settings: Mapping[str, Any], root: Path = ROOT
) -> Iterator[Deployment]:
    """Bring up the stack `test-<name>` with `settings` (as under `config:`, without `elsapg:`).

    Missing settings are SMALL, and a pool_port is chosen where nothing listens.
    """
    reused = os.environ.get("ELSAPG_TEST_STACK")
    if reused:
        yield Deployment(root, reused)
        return
    stack = f"test-{name}"
    keep = os.environ.get("ELSAPG_KEEP_STACKS", "") not in ("", "0")
    images()
    path = stackfile.stack_file(root, stack)
    path.write_text(yaml.safe_dump({"config": _config(path, settings)}), encoding="utf-8")
    finished = False
    try:
        done = elsapg(root, "up", "--stack", stack, "--yes")
        assert done.returncode == 0, f"elsapg up --stack {stack} failed:\n{done.stdout}"
        yield Deployment(root, stack)
        finished = True
    finally:
        if not keep:
            done = elsapg(root, "destroy", "--stack", stack, "--purge", "--confirm", stack)
            if done.returncode == 0:
                path.unlink(missing_ok=True)
            elif finished:
                raise AssertionError(f"elsapg destroy --stack {stack} failed:\n{done.stdout}")
            else:  # what went wrong first is what matters
                print(f"elsapg destroy --stack {stack} failed:\n{done.stdout}", file=sys.stderr)


def inside(deployment: Deployment, unit: str, *command: str, user: str = "999:999") -> str:
    """Run a command in a unit's container, as any user; it succeeds."""
    with d.daemon() as client:
        container = client.containers.get(deployment.hosts.physical(unit))
        code, output = d.execute(container, command, user)
    assert code == 0, output
    return output


def lose(stack: str, places: Places) -> None:
    """Every container, every volume but S3's, and the state: as if its machine were gone."""
    label = {"label": f"{d.STACK_LABEL}={stack}"}
    client = d.client(timeout=120)
    for container in client.containers.list(all=True, filters=label, ignore_removed=True):
        container.remove(force=True)
    for volume in client.volumes.list(filters=label):
        if volume.name != d.physical_name(stack, "s3"):
            volume.remove()
    for network in client.networks.list(filters=label):
        network.remove()
    client.close()
    shutil.rmtree(places.workspace(stack), ignore_errors=True)
    stacks = places.state / ".pulumi" / "stacks" / "elsapg"
    for file in stacks.glob(f"{stack}.json*"):
        file.unlink()


def _config(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    groups: dict[str, Any] = {k: dict(v) for k, v in SMALL.items()}
    for key, value in settings.items():
        groups[key] = {**groups.get(key, {}), **value} if isinstance(value, Mapping) else value
    docker = groups.setdefault("docker", {})
    if "pool_port" not in docker:
        docker["pool_port"] = _port_of(path) or free_ports(PORTS)
    return {"elsapg:target": "docker", **{f"elsapg:{k}": v for k, v in groups.items()}}


def _port_of(path: Path) -> int | None:
    """The port that a kept stack has already."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        port = document["config"]["elsapg:docker"]["pool_port"]
    except (OSError, KeyError, TypeError):
        return None
    return int(port)


def free_ports(count: int, first: int = FIRST_PORT) -> int:
    """The first of `count` ports in a row on which nothing listens."""
    # Another worker may look at the same time (pytest-xdist names them gw0, gw1).
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    # Below those that the system gives out by itself.
    return free_in_a_row(count, first + worker * APART, below=32768)
