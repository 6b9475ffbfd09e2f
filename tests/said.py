"""A failed test on a stack shows what the stack's nodes said meanwhile.

A fault that comes once in many runs is understood from the logs of that run, or not at all.
A conftest takes it in by `pytest_runtest_makereport = said.pytest_runtest_makereport`.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import docker
import pytest

from elsapg.errors import ElsapgError
from elsapg.services.deployment import Deployment
from elsapg.targets.docker import daemon as d

LINES = 120


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Called by pytest after each phase of a test."""
    report = yield
    if report.when == "call" and report.failed:
        fixtures: dict[str, Any] = getattr(item, "funcargs", {})
        found = [getattr(value, "deployment", value) for value in fixtures.values()]
        stacks = {each.stack: each for each in found if isinstance(each, Deployment)}
        for name, deployment in stacks.items():
            for node in deployment.nodes:
                said = _log(deployment, node, call.start)
                report.sections.append((f"log of {node} of {name}", said))
    return report


def _log(deployment: Deployment, node: str, since: float) -> str:
    """The last LINES of a node's log from `since` (seconds since 1970), or why there is none."""
    try:
        if deployment.pods:
            seconds = int(time.time() - since) + 1
            return deployment.pods.kubectl.run(
                "logs", node, "--container=postgres", f"--since={seconds}s", f"--tail={LINES}"
            )
        with d.daemon() as client:
            container = client.containers.get(deployment.hosts.physical(node))
            said: bytes = container.logs(since=int(since), tail=LINES)
            return said.decode(errors="replace")
    except (ElsapgError, docker.errors.DockerException) as error:
        return f"none to be had: {error}"
