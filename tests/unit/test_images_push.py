"""`elsapg images push`: what is built, pushed and written down, against a daemon that is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from elsapg import stackfile
from elsapg.cli import main
from elsapg.errors import DeploymentError, UsageError
from elsapg.services import images as service
from elsapg.targets.docker.place import CONTEXTS
from elsapg.targets.kubernetes import images
from tests.stacks import ROOT
from tests.unit.kubernetes_stacks import LEAST, digests, project


@dataclass
class FakeImages:
    """Pushes give a digest made of the image's name, or the events that the test wants."""

    events: list[dict[str, Any]] | None = None
    pushed: list[tuple[str, str]] = field(default_factory=list)
    tagged: list[tuple[str, str]] = field(default_factory=list)
    built: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def images(self) -> FakeImages:
        return self

    def tag(self, name: str, tag: str) -> None:
        self.tagged.append((name, tag))

    def push(self, name: str, tag: str, stream: bool, decode: bool) -> Iterator[dict[str, Any]]:
        assert stream and decode
        self.pushed.append((name, tag))
        if self.events is not None:
            yield from self.events
            return
        yield {"status": "Pushing"}
        letter = format(len(self.pushed), "x")
        yield {"aux": {"Tag": tag, "Digest": f"sha256:{letter * 64}", "Size": 1}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path, {"least": LEAST})


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeImages:
    fake = FakeImages()

    @contextlib.contextmanager
    def connected(timeout: int = 600) -> Iterator[FakeImages]:
        yield fake

    def ensure(client: FakeImages, target: str, tag: str, base: str, revision: str) -> FakeImages:
        client.built.append((target, tag, revision))
        return client

    monkeypatch.setattr(service.d, "daemon", connected)
    monkeypatch.setattr(service, "ensure_image", ensure)
    return fake


def test_the_digests_that_the_registry_gave_are_written(root: Path, daemon: FakeImages) -> None:
    said: list[str] = []
    path = service.push(root, "least", "", said.append)
    assert path == root / "stacks/images.least.yaml"
    found = images.read(root, "least", stackfile.read(root, "least"))
    assert found == {
        name: f"registry.example.com/platform/elsapg-{name}@sha256:{letter * 64}"
        for name, letter in zip(("postgres", "pgbouncer", "runner"), "123", strict=True)
    }
    # Built once, tagged and pushed under the name that the cluster pulls.
    assert daemon.tagged == daemon.pushed
    assert [target for target, _, _ in daemon.built] == ["postgres", "pgbouncer", "runner"]
    assert path.read_text(encoding="utf-8").startswith("# Which images stack 'least' runs")
    assert said[0] == "building postgres"


def test_again_writes_the_same_bytes(root: Path, daemon: FakeImages) -> None:
    path = service.push(root, "least", "", print)
    before = path.read_bytes()
    daemon.pushed.clear()
    assert service.push(root, "least", "", print).read_bytes() == before


def test_another_revision_is_another_image(root: Path, daemon: FakeImages) -> None:
    service.push(root, "least", "2026-02", print)
    assert all(tag.endswith("-2026-02") and rev == "2026-02" for _, tag, rev in daemon.built)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([{"error": "denied:\n not allowed"}], r"denied: not allowed.*docker login registry\.exam"),
        ([{"status": "Pushing"}], "gave no digest"),
        ([{"aux": None}], "gave no digest"),
    ],
)
def test_a_push_that_fails_leaves_the_file(
    root: Path, daemon: FakeImages, events: list[dict[str, Any]], told: str
) -> None:
    daemon.events = events
    with pytest.raises(DeploymentError, match=told):
        service.push(root, "least", "", print)
    assert (root / "stacks/images.least.yaml").read_text(encoding="utf-8") == digests()


def test_a_docker_stack_pushes_nothing(tmp_path: Path, daemon: FakeImages) -> None:
    root = project(tmp_path, {"local": {"target": "docker"}})
    with pytest.raises(UsageError, match="there is nothing to push"):
        service.push(root, "local", "", print)
    assert not daemon.built


def test_the_command(
    root: Path,
    daemon: FakeImages,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ELSAPG_ROOT", str(root))
    assert main(["images", "push", "--stack", "least"]) == 0
    assert f"written  {root}/stacks/images.least.yaml" in capsys.readouterr().out


def test_an_image_is_made_anew_when_something_that_it_copies_changes() -> None:
    """What a stage of the Dockerfile copies out of this tree, it is told by."""
    text = (ROOT / "images" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    copied: dict[str, set[str]] = {}
    stage = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["FROM"]:
            stage = words[3]
        elif words[:1] == ["COPY"]:
            copied.setdefault(stage, set()).update(words[1:-1])
    assert copied == {image: set(files) for image, files in CONTEXTS.items() if files}
