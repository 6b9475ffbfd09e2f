"""The Docker daemon as this target sees it: one client, labels, and errors a person can use."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import struct
import tarfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import docker
import docker.errors
import requests
from docker.models.containers import Container

from elsapg.errors import DeploymentError, MissingError, UnhealthyError
from elsapg.targets.hosts import NEVER_STARTED, started

STACK_LABEL = "elsapg.stack"
UNIT_LABEL = "elsapg.unit"
SPEC_LABEL = "elsapg.spec"
DATA_LABEL = "elsapg.data"

PREFIX = "elsapg"
BASE_IMAGE = "debian:trixie-slim"

EXIT_CODE_WITHIN_S = 30.0
EXIT_CODE_UNKNOWN = 125
# Docker's own, for a command that runc did not start.
CANNOT_START = 126

_FRAME = struct.Struct(">4xL")


def physical_name(stack: str, name: str) -> str:
    """The name of a container, volume or network of a stack on this machine."""
    return f"{PREFIX}-{stack}-{name}"


@contextlib.contextmanager
def daemon(timeout: int = 600) -> Iterator[docker.DockerClient]:
    """A client of the daemon that DOCKER_HOST names; its failures become ElsapgErrors."""
    try:
        made = client(timeout)
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise MissingError(_down(error)) from None
    try:
        yield made
    except docker.errors.APIError as error:
        raise DeploymentError(explain(error)) from None
    except requests.exceptions.RequestException as error:
        raise MissingError(_down(error)) from None
    finally:
        made.close()


def client(timeout: int = 600) -> docker.DockerClient:
    """As `daemon` gives, for those who close it themselves; its failures are Docker's own."""
    return docker.from_env(timeout=timeout, version=_speaks(os.environ.get("DOCKER_HOST")))


@functools.cache
def _speaks(_host: str | None) -> str:
    """The API's version there. Asked once: the daemon runs its parts to answer, and under load its
    answer has been seen without the version."""
    with contextlib.closing(docker.from_env(timeout=30)) as first:
        return str(first.api.api_version)


def check() -> None:
    """Raise MissingError when no daemon answers: told once, before anything is made."""
    with daemon(timeout=30) as found:
        found.ping()


def _down(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (
        f"Docker does not answer ({text[:160]}): start it with `elsapg setup`, or set DOCKER_HOST "
        "to a running one, and run the same command again"
    )


def explain(error: docker.errors.APIError) -> str:
    """An API error as one sentence with the way out, where we know one."""
    text = " ".join(str(error.explanation or error).split())
    port = re.search(r"(?:bind for|listen tcp4?) (\S+?):(\d+)", text, re.IGNORECASE)
    if port and ("already" in text or "in use" in text):
        return (
            f"port {port[2]} of {port[1]} is already taken on this machine: stop what listens "
            "there, or set docker.pool_port (docker.direct_port) in the stack to a free one"
        )
    if "no space left" in text.lower():
        return (
            f"Docker's disk is full ({text}): free some space (`docker image prune`) and run again"
        )
    return f"Docker: {text}"


def owned(labels: dict[str, str] | None, stack: str, kind: str, name: str) -> None:
    """Refuse to touch what carries our name but not our label."""
    owner = (labels or {}).get(STACK_LABEL)
    if owner != stack:
        raise DeploymentError(
            f"{kind} {name} exists and is not of stack {stack!r} "
            f"(label {STACK_LABEL}={owner!r}): remove or rename it, then run again"
        )


def timed_out(error: requests.exceptions.RequestException) -> bool:
    """Whether an answer took longer than it may; requests has more than one class for that."""
    return "timed out" in str(error).lower()


def execute(container: Container, command: Sequence[str], user: str = "") -> tuple[int, str]:
    """Run a command inside: its exit code, and its output and errors together.

    Raises UnhealthyError when it says nothing for as long as the client's timeout.
    """
    return started(
        lambda: _execute(container, command, user),
        lambda done: done[0] == CANNOT_START and bool(NEVER_STARTED.search(done[1])),
    )


def _execute(container: Container, command: Sequence[str], user: str) -> tuple[int, str]:
    assert container.client is not None
    api = container.client.api
    run = api.exec_create(container.id, list(command), user=user)["Id"]
    output = _output(api, run, f"{container.name}: `{shlex.join(command)[:200]}`")
    # The output may end before the daemon knows how the command did; that is no success yet.
    deadline = time.monotonic() + EXIT_CODE_WITHIN_S
    while (code := api.exec_inspect(run)["ExitCode"]) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return EXIT_CODE_UNKNOWN if code is None else int(code), output.decode(errors="replace")


def _output(api: docker.APIClient, run: str, what: str) -> bytes:
    """What a command printed, both streams in the order they came.

    Not by docker-py's `exec_start`: that reads past the HTTP library's buffer, and loses without a
    word what came together with the answer's header (docker-py 3332, 2042).
    """
    url = f"{api.base_url}/v{api.api_version}/exec/{run}/start"
    try:
        answer = api.post(url, json={"Detach": False, "Tty": False}, timeout=api.timeout)
        answer.raise_for_status()
    except requests.exceptions.HTTPError as error:
        docker.errors.create_api_error_from_http_exception(error)
    except requests.exceptions.ConnectionError as error:
        if not timed_out(error):
            raise
        raise UnhealthyError(
            f"{what} said nothing for {api.timeout} s, and may go on: see what it waits for, "
            "then run the same command again"
        ) from None
    # Frames of a header (the stream's number, three bytes of nothing, the length) and content:
    # https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
    left, content = memoryview(answer.content), []
    while left:
        length = _FRAME.unpack_from(left)[0] if len(left) >= _FRAME.size else 0
        end = _FRAME.size + length
        if len(left) < end:
            raise UnhealthyError(f"{what}: its output broke off: run the same command again")
        content.append(left[_FRAME.size : end])
        left = left[end:]
    return b"".join(content)


def archive(files: list[dict[str, Any]], gid: int) -> bytes:
    """A tar of `files` ({path, content, mode}): root's, readable by the group `gid`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folders = {f["path"].rpartition("/")[0] for f in files if "/" in f["path"]}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.gid = tarfile.DIRTYPE, 0o750, gid
            tar.addfile(entry)
        for file in files:
            content = file["content"].encode()
            entry = tarfile.TarInfo(file["path"])
            entry.size, entry.mode, entry.gid = len(content), int(file["mode"]), gid
            entry.mtime = int(time.time())
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
