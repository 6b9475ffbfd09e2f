"""What is rendered into `/etc/elsapg`: golden files, and where secrets may stand.

After a wanted change: `pytest tests/unit/test_files.py --snapshot-update`, and read the diff.
The real parsers judge the same files in tests/integration/test_rendered.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import UndefinedError
from syrupy.assertion import SnapshotAssertion

from elsapg import stackfile
from elsapg.definition import files as rendering
from elsapg.definition import topology as t
from elsapg.definition.files import File, files_for, readers_file, render, task_files
from elsapg.definition.secrets import BACKUP, PASSWORD_ROLES, Recovery, Source
from elsapg.settings import Settings
from tests.unit.fakes import fake_secrets

ROOT = Path(__file__).resolve().parents[2]
LOCAL = stackfile.read(ROOT, "local")


def everything(settings: Settings, recovery: Recovery | None = None) -> dict[str, tuple[File, ...]]:
    secrets = replace(fake_secrets(settings), recovery=recovery)
    found = {u.name: files_for(u.name, settings, secrets) for u in t.units(settings)}
    return found | {
        f"task {task.name}": task_files(task.name, settings, secrets) for task in t.tasks(settings)
    }


ALL = everything(LOCAL)
SOURCE = Source(
    *("elsapg-first-s3", 9000, "path", "bucket-of-first", "us-east-1", "/wal"),
    *("FIRST-ACCESS-KEY", "FIRST-SECRET-KEY", "FIRST-CIPHER", "FIRST-CA"),
)
CLONE = everything(LOCAL, Recovery("latest", 3, None, SOURCE, "first"))


def test_on_kubernetes_the_stacks_file_gives_the_order() -> None:
    values = {
        "target": "kubernetes",
        "archive": {"endpoint": "s3.example.org"},
        "kubernetes": {"registry": "registry.example.org"},
    }
    wanted = {"recovery": {"to": "0/3000000", "timeline": 2}}
    found = everything(stackfile.load({**values, **wanted}, "test"))
    [order] = [f for f in found["pg-1"] if f.path == "recovery.json"]
    assert json.loads(order.content) == {"to": "0/3000000", "timeline": 2, "backup": None}
    assert not order.secret
    # Only a node that has no data reads it: nothing else is made anew for it.
    del found["pg-1"], found["pg-2"]
    without = everything(stackfile.load(values, "test"))
    assert found == {name: without[name] for name in found}


def test_on_kubernetes_a_clones_nodes_wait_for_a_secret_that_may_be_absent() -> None:
    values = {
        "target": "kubernetes",
        "archive": {"endpoint": "s3.example.org"},
        "kubernetes": {"registry": "registry.example.org"},
        "recovery": {"source": "first", "to": "before-release"},
    }
    found = everything(stackfile.load(values, "test"))
    [order] = [f for f in found["pg-1"] if f.path == "recovery.json"]
    assert json.loads(order.content)["source"] == "first"
    optional = {(u, f.path, f.kept_in) for u, files in found.items() for f in files if f.optional}
    units = ("pg-1", "pg-2")
    paths = ("source.conf", "source-ca.crt")
    assert optional == {(unit, path, "source") for unit in units for path in paths}


@pytest.mark.parametrize("unit", sorted(ALL))
def test_golden(unit: str, snapshot: SnapshotAssertion) -> None:
    lines = [f"--- {f.path} {f.mode:o}\n{f.content}" for f in ALL[unit]]
    assert "\n".join(lines) == snapshot


def test_three_nodes_three_etcd_and_other_figures(snapshot: SnapshotAssertion) -> None:
    settings = stackfile.load(
        {
            "postgres": {"replicas": 2, "memory_mb": 4096, "synchronous": "strict"},
            "etcd": {"members": 3},
            "pooler": {"instances": 3, "max_db_connections": 5},
            "archive": {"bucket": "other", "region": "eu-west-1", "retention_days": 7},
        },
        "test",
    )
    found = everything(settings)
    wanted = {
        "pg-3": "patroni.yml",
        "etcd-2": "etcd.yml",
        "pgbouncer-3": "pgbouncer.ini",
        "haproxy": "haproxy.cfg",
        "runner": "pgbackrest.conf",
    }
    for unit, path in wanted.items():
        [content] = [f.content for f in found[unit] if f.path == path]
        assert content == snapshot(name=f"{unit} {path}")


def test_a_name_that_a_template_does_not_get_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        render("etcd.yml.j2", LOCAL)
    with pytest.raises(UndefinedError, match="'secrets' is undefined"):
        render("secrets.conf.j2", LOCAL)


@pytest.mark.parametrize("path", sorted(rendering.TEMPLATES.iterdir()), ids=lambda p: p.name)
def test_every_template_is_used(path: Path) -> None:
    """A template that nothing renders is dead, and this list of secrets would not cover it."""
    used = {"patroni.yml", "pgbackrest.conf", "etcd.yml", "pgbouncer.ini", "haproxy.cfg"}
    used |= {"pgbouncer_hba.conf", "readers.cfg", "secrets.conf", "source.conf"}
    assert path.name.removesuffix(".j2") in used
    rendered = {
        f.path.rpartition("/")[2] for files in (*ALL.values(), *CLONE.values()) for f in files
    }
    rendered.add(readers_file(LOCAL).path)
    assert path.name.removesuffix(".j2") in rendered


def test_a_clone_knows_its_source_in_the_file_that_restoring_reads(
    snapshot: SnapshotAssertion,
) -> None:
    """What archives and takes backups has no way to another stack's repository."""
    secret = ("FIRST-ACCESS-KEY", "FIRST-SECRET-KEY", "FIRST-CIPHER", "bucket-of-first")
    holders = {
        (unit, file.path)
        for unit, files in CLONE.items()
        for file in files
        if any(word in file.content for word in secret)
    }
    assert holders == {("pg-1", "source.conf"), ("pg-2", "source.conf")}
    [source] = [f.content for f in CLONE["pg-1"] if f.path == "source.conf"]
    assert source == snapshot
    by_identity = rendering.source_secret(LOCAL, replace(SOURCE, access_key="", secret_key=""))
    assert "repo1-s3-key-type=web-id\n" in by_identity[0].content
    assert not re.search("repo1-s3-key(-secret)?=", by_identity[0].content)
    for name in ("pgbackrest.conf", "pgbackrest.d/secrets.conf"):
        own = [f.content for f in ALL["pg-1"] if f.path == name]
        assert [f.content for f in CLONE["pg-1"] if f.path == name] == own


# -- secrets -------------------------------------------------------------------------------

TLS_KEYS = "PRIVATE-KEY-"
S3 = ("S3-ACCESS-KEY", "S3-SECRET-KEY")
CIPHER = "REPOSITORY-CIPHER"


def holding(marker: str) -> set[tuple[str, str]]:
    return {(u, f.path) for u, files in ALL.items() for f in files if marker in f.content}


@pytest.mark.parametrize("role", PASSWORD_ROLES)
def test_passwords_stand_where_roles_are_made_only(role: str) -> None:
    assert holding(f"PASSWORD-{role}") == {("task bootstrap", "roles.json")}


def test_the_repositorys_secrets_stand_with_who_reads_it_only() -> None:
    repository = {"pg-1", "pg-2", "pg-1-agent", "pg-2-agent", "runner", "task first-backup"}
    conf = {(unit, "pgbackrest.d/secrets.conf") for unit in repository}
    assert holding(CIPHER) == conf
    assert holding(S3[0]) == conf | {("s3", "s3-access-key")}
    assert holding(S3[1]) == conf | {("s3", "s3-secret-key")}


def test_a_key_stands_in_files_of_its_own() -> None:
    for unit, path in holding(TLS_KEYS):
        assert path.startswith("tls/"), (unit, path)
        assert path.endswith(".key"), (unit, path)


@pytest.mark.parametrize(
    ("unit", "keys"),
    [
        ("pg-1", {"pg-1", "replicator", "rewind"}),
        ("pg-1-agent", {"pg-1"}),
        ("etcd-1", {"etcd-1"}),
        ("s3", {"s3"}),
        ("haproxy", set()),
        ("pgbouncer-2", {"pgbouncer-2", "pgbouncer_auth"}),
        ("runner", {"backup"}),
        ("task configure", {"postgres"}),
        ("task bootstrap", {"postgres"}),
        ("task first-backup", {"backup"}),
    ],
)
def test_a_unit_has_the_keys_that_it_uses_only(unit: str, keys: set[str]) -> None:
    found = {
        f.content.strip().removeprefix(TLS_KEYS)
        for f in ALL[unit]
        if f.content.startswith(TLS_KEYS)
    }
    assert found == keys
    # The superuser's key opens every node: nothing that keeps running has it.
    assert "postgres" not in keys or unit.startswith("task ")


def test_no_process_can_write_what_it_is_told() -> None:
    for files in ALL.values():
        assert {f.mode for f in files} == {0o640}


# -- what must hold in the rendered text ---------------------------------------------------


def content(unit: str, path: str, settings: Settings = LOCAL) -> str:
    [found] = [f.content for f in everything(settings)[unit] if f.path == path]
    return found


def test_hba_lets_nobody_in_without_tls() -> None:
    document = yaml.safe_load(content("pg-1", "patroni.yml"))
    rules = [line.split() for line in document["postgresql"]["pg_hba"]]
    assert {r[0] for r in rules} == {"local", "hostssl", "hostnossl"}
    assert rules[-1] == ["hostnossl", "all", "all", "all", "reject"]
    passwords = [r for r in rules if r[-1] == "scram-sha-256"]
    assert passwords == [["hostssl", "all", "all", "all", "scram-sha-256"]]
    infrastructure = rules.index(
        [
            "hostssl",
            "all",
            "postgres,backup,replicator,rewind,pgbouncer_auth,elsa_jobs",
            "all",
            "reject",
        ]
    )
    assert infrastructure < rules.index(passwords[0])


def test_dynamic_configuration_is_the_same_at_birth_and_later() -> None:
    """Else the first `configure` would change what the cluster was just born with."""
    born = yaml.safe_load(content("pg-1", "patroni.yml"))["bootstrap"]["dcs"]
    later = json.loads(content("task configure", "dynamic.json"))
    assert born == later


def test_pool_figures() -> None:
    ini = content("pgbouncer-1", "pgbouncer.ini")
    for line in (
        "pool_mode = transaction",
        "max_client_conn = 1000",
        "default_pool_size = 50",
        "reserve_pool_size = 10",
        "client_tls_sslmode = require",
        "server_tls_sslmode = verify-full",
    ):
        assert f"\n{line}\n" in ini
    for database in t.DATABASES:
        for door in ("", "_session", "_readonly"):
            assert f"\n{database}{door} = host=" in ini


def test_a_task_gets_what_it_reads_only() -> None:
    """So that it runs again only when that changes."""
    paths = {name: {f.path for f in files} for name, files in ALL.items()}
    assert "roles.json" not in paths["task configure"]
    assert "pgbackrest.conf" not in paths["task bootstrap"]
    assert "dynamic.json" not in paths["task first-backup"]
    other = stackfile.load({"pooler": {"reserve_pool_size": 5}}, "test")
    before, after = everything(stackfile.load({}, "test")), everything(other)
    changed = {unit for unit in before if before[unit] != after[unit]}
    assert changed == {"pgbouncer-1", "pgbouncer-2"}


@pytest.mark.parametrize(
    ("change", "units"),
    [
        ({"postgres": {"parameters": {"work_mem": "5MB"}}}, {"pg-", "task configure"}),
        ({"archive": {"full_schedule": "1 1 * * 0"}}, {"runner", "task "}),
        ({"archive": {"retention_days": 31}}, {"pg-", "runner", "task first-backup"}),
        ({"patroni": {"loop_wait": 3}}, {"pg-", "task configure"}),
        ({"retention": {"instances_days": 30}}, {"task bootstrap"}),
    ],
)
def test_a_change_reaches_whom_it_concerns(change: dict[str, Any], units: set[str]) -> None:
    before, after = everything(stackfile.load({}, "test")), everything(stackfile.load(change, "t"))
    changed = {unit for unit in before if before[unit] != after[unit]}
    assert changed
    assert all(unit.startswith(tuple(units)) for unit in changed), changed


def test_the_bootstrap_gets_what_the_databases_jobs_read() -> None:
    """As elsapg.setting has it: names and integers."""
    changed = stackfile.load({"retention": {"snapshots_hours": 48, "archive_months": 6}}, "test")
    config = json.loads(content("task bootstrap", "runner.json", changed))
    assert config["settings"] == {
        "instances_days": 90,
        "archive_months": 6,
        "snapshots_hours": 48,
        "months_ahead": 2,
    }
    for other in ("task configure", "task first-backup", "runner"):
        assert "settings" not in json.loads(content(other, "runner.json")), other


def test_backups_agents_trust_the_runner_alone() -> None:
    assert f"tls-server-auth={BACKUP}={t.STANZA}\n" in content("pg-1-agent", "pgbackrest.conf")
    assert "tls-server" not in content("runner", "pgbackrest.conf")
