"""The units, tasks and volumes of a stack, by its settings."""

from __future__ import annotations

from typing import Any

import pytest

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.definition.files import files_for, task_files
from elsapg.settings import Settings
from tests.unit.fakes import fake_secrets


def settings(**groups: Any) -> Settings:
    return stackfile.load(groups, "test")


def test_the_embedded_default() -> None:
    assert [u.name for u in t.units(settings())] == [
        "etcd-1",
        "s3",
        "pg-1",
        "pg-2",
        "pg-1-agent",
        "pg-2-agent",
        "haproxy",
        "pgbouncer-1",
        "pgbouncer-2",
        "runner",
    ]
    assert [task.name for task in t.tasks(settings())] == ["configure", "bootstrap", "first-backup"]


def test_counts_follow_the_settings() -> None:
    found = settings(
        postgres={"replicas": 2},
        etcd={"members": 3},
        pooler={"instances": 1},
    )
    names = [u.name for u in t.units(found)]
    assert [n for n in names if n.startswith("etcd")] == ["etcd-1", "etcd-2", "etcd-3"]
    assert [n for n in names if n.startswith("pg-") and "agent" not in n] == [
        "pg-1",
        "pg-2",
        "pg-3",
    ]
    assert [n for n in names if n.startswith("pgb")] == ["pgbouncer-1"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("docker", "published"),
    [
        ({}, {6432, 6433}),
        ({"pool_port": 7000}, {7000, 7001}),
        ({"direct_port": 5555}, {6432, 6433, 5555, 5556}),
    ],
)
def test_only_the_doors_are_published(docker: dict[str, Any], published: set[int]) -> None:
    units = t.units(settings(docker=docker))
    assert {p.host for u in units for p in u.ports} == published
    assert {u.name for u in units if u.ports} <= {"haproxy", "pgbouncer-1", "pgbouncer-2"}


def test_what_holds_data_is_marked() -> None:
    mounts = {m.volume: m for u in t.units(settings()) for m in u.mounts}
    held = {name for name, m in mounts.items() if m.data}
    assert held == {"pg-1", "pg-2", "etcd-1", "s3", "s3-versions"}


def test_a_primary_hands_over_before_it_stops() -> None:
    for unit in t.units(settings()):
        is_node = unit.name in t.node_names(settings())
        assert bool(unit.before_stop) == is_node
        assert bool(unit.after_start) == is_node
        if is_node:
            assert unit.stop_timeout >= 60


@pytest.mark.parametrize(("less", "more"), [(512, 1024), (768, 1000), (4096, 16384 // 4)])
def test_more_memory_needs_no_new_container(less: int, more: int) -> None:
    """Shared memory's size is fixed when a container is made: it goes in coarse steps."""
    one, other = (
        t.units(Settings.model_validate({"postgres": {"memory_mb": mb}})) for mb in (less, more)
    )
    assert {u.name: u.shm_mb for u in one} == {u.name: u.shm_mb for u in other}


@pytest.mark.parametrize("memory_mb", [512, 1024, 1025, 8192, 65536, 1_048_576])
def test_shared_memory_suffices_and_is_bounded(memory_mb: int) -> None:
    [unit, *_] = [
        u
        for u in t.units(Settings.model_validate({"postgres": {"memory_mb": memory_mb}}))
        if u.name == "pg-1"
    ]
    assert unit.shm_mb
    assert memory_mb // 4 <= unit.shm_mb <= max(256, memory_mb)
    assert unit.memory_mb == memory_mb + 256


def test_every_unit_and_task_has_its_files() -> None:
    found = settings(etcd={"members": 3}, postgres={"replicas": 3})
    secrets = fake_secrets(found)
    for unit in t.units(found):
        paths = [f.path for f in files_for(unit.name, found, secrets)]
        assert "tls/ca.crt" in paths, unit.name
        assert len(paths) == len(set(paths)), unit.name
    for task in t.tasks(found):
        assert "runner.json" in [f.path for f in task_files(task.name, found, secrets)]
