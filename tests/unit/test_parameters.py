"""What PostgreSQL is told: the seeds' figures for the small profile, sizes by memory above it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as within
from hypothesis import strategies as st

from elsapg import stackfile
from elsapg.definition.parameters import dynamic_configuration, memory_profile, parameters
from elsapg.errors import SettingsError
from elsapg.settings import OWNED_PARAMETERS, Settings
from elsapg.sums import check_sums, parse_kb, pool_connections


def settings(**groups: Any) -> Settings:
    return stackfile.load(groups, "test")


def test_the_small_profile_is_the_seeds() -> None:
    """S1-50 ... S1-56."""
    found = parameters(settings())
    assert {
        name: found[name]
        for name in (
            "max_connections",
            "shared_buffers",
            "effective_cache_size",
            "maintenance_work_mem",
            "checkpoint_completion_target",
            "wal_buffers",
            "default_statistics_target",
            "work_mem",
        )
    } == {
        "max_connections": 100,
        "shared_buffers": "256MB",
        "effective_cache_size": "1GB",
        "maintenance_work_mem": "64MB",
        "checkpoint_completion_target": 0.9,
        "wal_buffers": "16MB",
        "default_statistics_target": 100,
        "work_mem": "4MB",
    }


@pytest.mark.parametrize(
    ("memory_mb", "connections", "wanted"),
    [
        (768, 100, ("192MB", "576MB", "32MB", "2MB")),
        (1024, 100, ("256MB", "1GB", "64MB", "4MB")),
        (2047, 100, ("256MB", "1GB", "64MB", "4MB")),
        (2048, 100, ("512MB", "1536MB", "128MB", "4MB")),
        (16384, 200, ("4096MB", "12288MB", "1024MB", "10MB")),
        (131072, 500, ("32768MB", "98304MB", "2048MB", "32MB")),
    ],
)
def test_sizes_follow_the_memory(
    memory_mb: int, connections: int, wanted: tuple[str, str, str, str]
) -> None:
    found = memory_profile(memory_mb, connections)
    names = ("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem")
    assert tuple(found[name] for name in names) == wanted


def test_the_seeds_replication_and_archive() -> None:
    """S0-76 ... S0-80 and S0-88."""
    found = parameters(settings())
    assert found["wal_level"] == "replica"
    assert found["synchronous_commit"] == "on"
    assert found["max_wal_senders"] == found["max_replication_slots"] == 10
    assert found["archive_mode"] is True
    assert "archive-push %p" in str(found["archive_command"])


def test_who_may_do_what_is_audited_and_no_parameter_of_a_statement_logged() -> None:
    """S1-66. What these do is tried in tests/sql/test_sql_audit.py."""
    found = parameters(settings())
    assert found["pgaudit.log"] == "ddl,role"
    assert found["pgaudit.role"] == "elsa_auditor"
    assert found["pgaudit.log_parameter"] is False
    assert found["log_parameter_max_length"] == found["log_parameter_max_length_on_error"] == 0


def test_a_users_parameters_win() -> None:
    mine = {"work_mem": "9MB", "random_page_cost": 1.1, "autovacuum_naptime": "15s"}
    found = parameters(settings(postgres={"parameters": mine}))
    assert {name: found[name] for name in mine} == mine
    assert found["shared_buffers"] == "256MB"


def test_nobody_overrides_what_failover_rests_on() -> None:
    base = parameters(settings())
    for name in OWNED_PARAMETERS & base.keys():
        with pytest.raises(SettingsError, match="belongs to the toolkit"):
            settings(postgres={"parameters": {name: base[name]}})


@pytest.mark.parametrize(
    ("mode", "replicas", "wanted"),
    [("on", 1, (True, False)), ("strict", 2, (True, True)), ("off", 1, (False, False))],
)
def test_synchronous_modes(mode: str, replicas: int, wanted: tuple[bool, bool]) -> None:
    found = dynamic_configuration(settings(postgres={"synchronous": mode, "replicas": replicas}))
    assert (found["synchronous_mode"], found["synchronous_mode_strict"]) == wanted


def test_patroni_is_told_what_failover_needs() -> None:
    found = dynamic_configuration(settings(patroni={"maximum_lag_on_failover_mb": 2}))
    assert found["ttl"] >= found["loop_wait"] + 2 * found["retry_timeout"]
    assert found["maximum_lag_on_failover"] == 2 * 1024 * 1024
    assert found["failsafe_mode"] is found["check_timeline"] is True
    assert found["postgresql"]["use_pg_rewind"] is found["postgresql"]["use_slots"] is True


@within(deadline=None)
@given(
    memory_mb=st.integers(512, 1_048_576),
    max_connections=st.integers(20, 5000),
    instances=st.integers(1, 8),
    per_pool=st.integers(1, 200),
)
def test_whatever_is_accepted_fits(
    memory_mb: int, max_connections: int, instances: int, per_pool: int
) -> None:
    given_ = Settings.model_validate(
        {
            "postgres": {"memory_mb": memory_mb, "max_connections": max_connections},
            "pooler": {"instances": instances, "max_db_connections": per_pool},
        }
    )
    if check_sums(given_):
        return
    found = parameters(given_)

    def size(name: str) -> int:
        kb = parse_kb(found[name], 1)
        assert kb
        return kb

    memory = memory_mb * 1024
    assert size("shared_buffers") <= memory // 2
    assert size("effective_cache_size") <= memory
    assert size("maintenance_work_mem") <= memory // 4
    # One sort in a quarter of all connections at once still fits beside the buffers, unless the
    # floor of 4 MB (S1-56) is what decides.
    sorts = size("work_mem") * max_connections // 4
    assert size("shared_buffers") + sorts <= memory or size("work_mem") <= 4096
    assert int(found["max_connections"]) == max_connections
    assert pool_connections(given_) + 10 + 3 <= max_connections


@within(deadline=None)
@given(memory_mb=st.integers(2048, 1_048_575))
def test_more_memory_never_gives_less(memory_mb: int) -> None:
    less, more = memory_profile(memory_mb, 100), memory_profile(memory_mb + 1, 100)
    for name in ("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem"):
        assert (parse_kb(less[name], 1) or 0) <= (parse_kb(more[name], 1) or 0)
