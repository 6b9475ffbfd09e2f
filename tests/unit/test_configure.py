"""The `configure` task: the patch that makes Patroni's configuration ours, and the restarts."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsapg import stackfile
from elsapg.definition.parameters import dynamic_configuration
from elsapg.runner import configure
from elsapg.runner.configure import merge_patch, restart_pending
from elsapg.runner.patroni import Member, PatroniError

SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
NAMES = st.sampled_from("abcd")
DOCUMENTS = st.dictionaries(
    NAMES,
    st.recursive(SCALARS, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=8),
    max_size=4,
)


def applied(current: Any, patch: Any) -> Any:
    """RFC 7396, section 2, as Patroni applies it."""
    if not isinstance(patch, dict):
        return patch
    result = copy.deepcopy(current) if isinstance(current, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = applied(result.get(key), value)
    return result


def typed(value: Any) -> Any:
    """1, 1.0 and True are equal to Python, but not to PostgreSQL."""
    if isinstance(value, dict):
        return {k: typed(v) for k, v in value.items()}
    return (type(value).__name__, value)


@settings(deadline=None)
@given(current=DOCUMENTS, desired=DOCUMENTS)
def test_the_patch_makes_it_what_was_wanted(current: Any, desired: Any) -> None:
    before = copy.deepcopy((current, desired))
    assert typed(applied(current, merge_patch(current, desired))) == typed(desired)
    assert (current, desired) == before


@settings(deadline=None)
@given(document=DOCUMENTS)
def test_nothing_to_do_is_nothing_sent(document: Any) -> None:
    assert merge_patch(document, copy.deepcopy(document)) == {}


def test_numbers_and_switches_are_not_the_same() -> None:
    assert merge_patch({"a": 1, "b": {"c": 0}}, {"a": True, "b": {"c": False}}) == {
        "a": True,
        "b": {"c": False},
    }


def test_what_the_stack_no_longer_says_goes() -> None:
    plain = dynamic_configuration(stackfile.load({}, "test"))
    mine = dynamic_configuration(
        stackfile.load({"postgres": {"parameters": {"random_page_cost": 1.1}}}, "test")
    )
    stored = json.loads(json.dumps(mine))
    assert merge_patch(stored, mine) == {}, "JSON and back must be no difference"
    assert merge_patch(stored, plain) == {"postgresql": {"parameters": {"random_page_cost": None}}}
    assert merge_patch(plain, mine) == {"postgresql": {"parameters": {"random_page_cost": 1.1}}}


class Cluster:
    """Patroni as `restart_pending` sees it. `stubborn`: members that need more than one."""

    def __init__(self, *pending: str, stubborn: dict[str, int] | None = None) -> None:
        self.nodes = ["pg-1", "pg-2", "pg-3"]
        self.left = dict.fromkeys(pending, 1) | (stubborn or {})
        self.restarted: list[str] = []
        self.answer = (200, "")

    def members(self) -> list[Member]:
        roles = {"pg-1": ("replica", "streaming"), "pg-2": ("leader", "running")}
        found = []
        for name in self.nodes:
            role, state = roles.get(name, ("sync_standby", "streaming"))
            found.append(Member(name, role, state, 0, 1, self.left.get(name, 0) > 0))
        return found

    def call(self, node: str, method: str, path: str, body: Any, timeout: float = 5) -> Any:
        assert (method, path) == ("POST", "/restart")
        self.restarted.append(node)
        self.left[node] -= 1
        return self.answer

    def from_any(self, path: str) -> Any:
        return {"synchronous_mode": True}


def restart(cluster: Cluster) -> list[str]:
    restart_pending(cluster)  # type: ignore[arg-type]
    return cluster.restarted


def test_the_pools_are_held_for_the_primary_alone() -> None:
    cluster = Cluster("pg-1", "pg-2")
    seen: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def held(node: str) -> Iterator[None]:
        seen.append((node, " ".join(cluster.restarted)))
        yield
        seen.append((node, " ".join(cluster.restarted)))

    restart_pending(cluster, held)  # type: ignore[arg-type]
    assert seen == [("pg-2", "pg-1"), ("pg-2", "pg-1 pg-2")]


def test_the_primary_is_restarted_last() -> None:
    assert restart(Cluster("pg-1", "pg-2", "pg-3")) == ["pg-1", "pg-3", "pg-2"]


def test_only_who_waits_for_it_is_restarted() -> None:
    assert restart(Cluster("pg-3")) == ["pg-3"]
    assert restart(Cluster()) == []


def test_a_standby_may_need_the_primary_to_go_first() -> None:
    cluster = Cluster("pg-2", stubborn={"pg-1": 2})
    assert restart(cluster) == ["pg-1", "pg-2", "pg-1"]


def test_one_that_waits_for_ever_is_told() -> None:
    with pytest.raises(PatroniError, match="pg-3 still need a restart after 3 rounds"):
        restart(Cluster(stubborn={"pg-3": 9}))


def test_a_refused_restart_is_told() -> None:
    cluster = Cluster("pg-1")
    cluster.answer = (503, "restart is already in progress")
    with pytest.raises(PatroniError, match="pg-1: restart refused: restart is already"):
        restart(cluster)


def test_no_restart_before_the_one_before_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster("pg-1", "pg-2")
    order: list[str] = cluster.restarted
    monkeypatch.setattr(configure, "wait_for_cluster", lambda *_, **__: order.append("complete"))
    monkeypatch.setattr(configure, "wait_for_sync", lambda *_, **__: order.append("synchronous"))
    assert restart(cluster) == [
        "pg-1",
        "complete",
        "synchronous",
        "pg-2",
        "complete",
        "synchronous",
    ]


def test_an_incomplete_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    members = cluster.members()
    ill = [members[0], members[1], replace(members[2], state="starting")]
    monkeypatch.setattr(cluster, "members", lambda: ill)
    with pytest.raises(TimeoutError, match=r"pg-3 sync_standby starting \(wanted pg-1, pg-2, pg-3"):
        configure.wait_for_cluster(cluster, timeout=0)  # type: ignore[arg-type]


def test_one_node_waits_for_no_standby(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.nodes = ["pg-2"]
    configure.wait_for_sync(cluster, timeout=0)  # type: ignore[arg-type]
    cluster.nodes = ["pg-1", "pg-2"]
    with pytest.raises(TimeoutError, match="no standby became synchronous"):
        configure.wait_for_sync(cluster, timeout=0)  # type: ignore[arg-type]


def test_what_postgresql_does_not_know_is_named() -> None:
    """Patroni drops it with a line in its log; PostgreSQL takes an extension's for anybody's."""
    known = {"work_mem", "pgaudit.log"}
    names = ["work_mem", "work_memory", "pgaudit.log", "pgaudit.lock", "my_app.tenant"]
    assert configure.unknown(names, known) == ["pgaudit.lock", "work_memory"]
