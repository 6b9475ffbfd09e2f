"""Keys that were kept elsewhere, a clone's file, and what a restore says is gone."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from elsapg import stackfile
from elsapg.errors import UsageError
from elsapg.runner.target import Target
from elsapg.services import clone, rescue, restore
from elsapg.services.deployment import Deployment
from elsapg.targets.hosts import Completed

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "stack": "prod",
    "s3_access_key": "a",
    "s3_secret_key": "b",
    "repository_cipher": "c",
    "encryption_keys": {"k1": "d"},
}


def _file(folder: Path, content: Any) -> str:
    path = folder / "keys.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_keys_from_a_file_and_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rescue.read_escrow(_file(tmp_path, KEYS), "prod") == KEYS
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(KEYS)))
    assert rescue.read_escrow("-", "prod") == KEYS


@pytest.mark.parametrize(
    "content",
    ["", "no json", "[]", {}, {**KEYS, "repository_cipher": ""}, {**KEYS, "s3_secret_key": 1}],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UsageError, match="not what `elsapg keys repository` printed"):
        rescue.read_escrow(_file(tmp_path, content), "prod")


def test_another_stacks_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of stack 'prod', not of 'staging'"):
        rescue.read_escrow(_file(tmp_path, KEYS), "staging")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        rescue.read_escrow(str(tmp_path / "nowhere"), "prod")


def _source(root: Path, config: dict[str, Any]) -> Deployment:
    (root / "stacks").mkdir()
    path = root / "stacks" / "Pulumi.first.yaml"
    path.write_text(
        yaml.safe_dump({"config": config, "encryptionsalt": "v1:salt"}), encoding="utf-8"
    )
    return Deployment(root, "first")


def test_a_clones_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(
        tmp_path,
        {
            "elsapg:postgres": {"memory_mb": 2048},
            "elsapg:docker": {"pool_port": 31000, "direct_port": 31100},
        },
    )
    monkeypatch.setattr(restore.Restore, "plan", lambda *_: {"timeline": 3})
    path = clone.write(source, Target("lsn", "0/3000000"), None, "second")
    settings = stackfile.read(tmp_path, "second")
    assert "encryptionsalt" not in path.read_text(encoding="utf-8")
    assert settings.archive.prefix == "/second" != source.settings.archive.prefix
    assert not settings.jobs.active
    assert settings.recovery is not None
    assert (settings.recovery.source, settings.recovery.to) == ("first", "0/3000000")
    assert settings.recovery.timeline == 3
    assert settings.postgres.memory_mb == 2048
    ports = {settings.docker.pool_port, settings.docker.direct_port}
    assert len(ports) == 2 and not ports & {31000, 31001, 31100, 31101}
    with pytest.raises(UsageError, match="is there already"):
        clone.write(source, Target("latest"), None, "second")


def test_what_is_gone() -> None:
    done = restore.Restored(
        target="x",
        backup="y",
        node="pg-1",
        before={"next_xid": 120, "last_commit": "2026-01-31T12:00:10.5Z"},
        after={"next_xid": 100, "last_commit": "2026-01-31T12:00:00Z"},
    )
    assert (done.lost_transactions, done.lost_seconds) == (20, 10.5)
    unknown = restore.Restored("x", "y", "pg-1", after={"next_xid": 1, "last_commit": None})
    assert (unknown.lost_transactions, unknown.lost_seconds) == (None, None)


def test_on_kubernetes_it_is_refused(tmp_path: Path) -> None:
    """What is made for docker alone says so, before anything is asked of the cluster."""
    shutil.copytree(ROOT / "stacks", tmp_path / "stacks")
    there = Deployment(tmp_path, "staging")
    for attempt, says in (
        (lambda: rescue.escrow(there), "get secret repository encryption-keys -o yaml"),
        (
            lambda: rescue._refuse_data(tmp_path, "staging", rescue.Order()),
            r"elsapg:recovery: \{to: latest\}",
        ),
    ):
        with pytest.raises(UsageError, match=says):
            attempt()


def test_a_time_is_refused_where_nodes_clocks_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Deployment(ROOT, "local")
    ahead = {"pg-1": 0.0, "pg-2": 3600.0}
    members = [
        {"name": "pg-1", "state": "running", "role": "leader"},
        {"name": "pg-2", "state": "streaming", "role": "sync_standby"},
    ]
    monkeypatch.setattr(there, "members", lambda: members)

    def date(node: str, *_command: str) -> Completed:
        return Completed(0, f"{time.time() + ahead[node]}\n")

    monkeypatch.setattr(there.hosts, "run", date)
    work, moment = restore.Restore(there), Target("time", "2026-01-31T12:00:00+00:00")
    with pytest.raises(UsageError, match=r"pg-2 is 3\d\d\d s ahead of that of pg-1"):
        work._one_clock(moment)
    ahead["pg-2"] = 2.0
    work._one_clock(moment)
