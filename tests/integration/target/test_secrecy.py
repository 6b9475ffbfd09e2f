"""What the stack generated as secret is found nowhere that a person or a tool may look."""

from __future__ import annotations

import gzip
import json
import subprocess

import pytest

from elsapg.services.places import Places
from tests.integration.target_stack import Target

pytestmark = pytest.mark.docker


def assert_none_in(secrets: list[str], text: str, where: str) -> None:
    # Never the secret itself in a test's report.
    found = [number for number, secret in enumerate(secrets) if secret in text]
    assert not found, f"secrets number {found} stand in {where}"


def test_no_output_holds_a_secret(target: Target) -> None:
    secrets = target.secrets()
    target.change("pooler", reserve_pool_timeout=6)
    said = [target.run("preview"), target.up()]
    target.wait_healthy()
    said.append(target.run("status"))
    said.append(target.run("up", "--yes", env={"PULUMI_CONFIG_PASSPHRASE": "wrong"}, code=6))
    for output in (*said, *target.said):
        assert_none_in(secrets, output, f"output beginning {output[:60]!r}")


def test_no_output_with_debug_holds_a_secret(target: Target) -> None:
    secrets = target.secrets()
    target.change("pooler", reserve_pool_timeout=7)
    child = target.start("up", "--yes", debug=True)
    output, _ = child.communicate(timeout=300)
    if child.returncode:
        pytest.fail(f"exit {child.returncode}", pytrace=False)
    assert_none_in(secrets, output, "the output of `up --debug`")


def test_no_container_shows_a_secret(target: Target) -> None:
    secrets = target.secrets()
    for unit, container in target.containers().items():
        assert_none_in(secrets, json.dumps(container.attrs), f"docker inspect {unit}")
        logs = container.logs(stdout=True, stderr=True)
        assert isinstance(logs, bytes)
        assert_none_in(secrets, logs.decode(errors="replace"), f"docker logs {unit}")
        # What runs as the container's user is seen by everyone on the machine.
        rows = container.top(ps_args="-eo pid,args")["Processes"]
        assert rows
        assert_none_in(secrets, json.dumps(rows), f"docker top {unit}")


def test_images_hold_no_secret(target: Target) -> None:
    secrets = target.secrets()
    images = {c.image.id: c.image for c in target.containers().values() if c.image}
    for image in images.values():
        assert_none_in(secrets, json.dumps([image.attrs, image.history()]), f"image {image.tags}")


def test_state_and_workspace_hold_no_clear_secret(target: Target) -> None:
    secrets = target.secrets()
    places = Places(target.root)
    files = [p for p in places.state.rglob("*") if p.is_file() and target.stack in str(p)]
    files += [p for p in places.workspace(target.stack).rglob("*") if p.is_file()]
    assert any(p.name == f"{target.stack}.json" for p in files)
    for path in files:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        assert_none_in(secrets, content.decode(errors="replace"), str(path))
    assert places.state.stat().st_mode & 0o077 == 0


def test_up_writes_nothing_that_git_sees(target: Target) -> None:
    def tree() -> str:
        words = ["git", "status", "--porcelain", "--", "stacks", "Pulumi.yaml"]
        done = subprocess.run(words, cwd=target.root, capture_output=True, text=True, check=True)
        return done.stdout

    git, stack_file = tree(), target.path.read_text()
    target.up()
    assert tree() == git
    assert target.path.read_text() == stack_file
    for path in (target.root / "stacks").iterdir():
        assert "encryptionsalt" not in path.read_text()
