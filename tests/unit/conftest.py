"""Fixtures of the unit tests: a project folder of its own, and an environment without surprises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import fake_kubectl

PULUMI_VARIABLES = (
    "PULUMI_BACKEND_URL",
    "PULUMI_CONFIG_PASSPHRASE",
    "PULUMI_CONFIG_PASSPHRASE_FILE",
    "PULUMI_HOME",
    "ELSAPG_ROOT",
    "ELSAPG_STACK",
    "ELSAPG_DEBUG",
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No login, passphrase or project of whoever runs the tests reaches them."""
    for name in PULUMI_VARIABLES:
        # setenv first, so that what the code under test sets is undone as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a stack `local`, named by ELSAPG_ROOT."""
    root = tmp_path / "project"
    (root / "stacks").mkdir(parents=True)
    (root / "Pulumi.yaml").write_text(
        "name: elsapg\nruntime:\n  name: python\n  options:\n    virtualenv: .venv\n"
        "stackConfigDir: stacks\n"
    )
    (root / "stacks" / "Pulumi.local.yaml").write_text("config:\n  elsapg:target: docker\n")
    monkeypatch.setenv("ELSAPG_ROOT", str(root))
    return root


@pytest.fixture
def fake_pulumi(project: Path) -> Path:
    """A `pulumi` in the project's own bin that knows its version and nothing else."""
    return write_command(project / ".elsapg" / "bin" / "pulumi", 'echo "v3.258.0"')


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fake_kubectl.FakeKubectl:
    """A `kubectl` that answers as the test says."""
    return fake_kubectl.install(tmp_path, monkeypatch)


def write_command(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
