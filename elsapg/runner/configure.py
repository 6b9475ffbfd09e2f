"""Waits for the cluster, brings Patroni's dynamic configuration to what the stack says, and
restarts what a reload cannot change: standbys first, then the primary.

Where the pools have gates (kubernetes) they are held while the primary restarts, and no transaction
fails. On docker those that run then do.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from elsapg.runner import rollout
from elsapg.runner.config import Config
from elsapg.runner.gates import GATES, Pair, holding
from elsapg.runner.handover import checkpoint
from elsapg.runner.patroni import Member, Patroni, PatroniError, leader, wait_until

UNDER_WAY = ("running custom bootstrap script", "creating replica")


def say(text: str) -> None:
    print(text, flush=True)


def merge_patch(current: Any, desired: Any) -> Any:
    """The JSON merge patch (RFC 7396) that turns `current` into `desired`; {} when equal."""
    patch: dict[str, Any] = {}
    for key, value in desired.items():
        old = current.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            inner = merge_patch(old, value)
            if inner:
                patch[key] = inner
        elif old != value or type(old) is not type(value):
            patch[key] = value
    for key in current.keys() - desired.keys():
        patch[key] = None
    return patch


def _wait_for_members(
    patroni: Patroni, enough: Callable[[list[Member]], bool], what: str, timeout: float
) -> list[Member]:
    """Wait until the members are `enough`; longer while one of them is being made."""
    seen: list[Member] = []

    def complete() -> bool:
        seen[:] = patroni.members()
        return enough(seen)

    def state() -> str:
        found = ", ".join(f"{m.name} {m.role} {m.state}" for m in seen) or "no member"
        return f"{what}: {found} (wanted {', '.join(patroni.nodes)})"

    while True:
        try:
            wait_until(complete, timeout, state)
            return seen
        except TimeoutError:
            # A large database is longer on its way out of the repository, or to a standby.
            if not any(m.state in UNDER_WAY for m in seen):
                raise
            say(state())


def wait_for_cluster(patroni: Patroni, timeout: float = 240) -> list[Member]:
    """Wait until every node is a member, one leads, and the others stream."""

    def enough(seen: list[Member]) -> bool:
        names = {m.name for m in seen if m.healthy}
        return set(patroni.nodes) <= names and leader(seen) is not None

    return _wait_for_members(patroni, enough, "the cluster is not complete", timeout)


def wait_for_sync(patroni: Patroni, timeout: float = 60) -> None:
    """Wait until the primary has named a synchronous standby, where it should."""
    if len(patroni.nodes) < 2 or not patroni.from_any("/config").get("synchronous_mode"):
        return
    wait_until(
        lambda: any(m.role == "sync_standby" for m in patroni.members()),
        timeout,
        "no standby became synchronous",
    )


def wait_for_leader(patroni: Patroni, timeout: float = 240) -> Member:
    """Wait until a node leads, whatever the others do."""

    def enough(seen: list[Member]) -> bool:
        return leader(seen) is not None

    found = leader(_wait_for_members(patroni, enough, "no node leads", timeout))
    assert found is not None
    return found


# What each node ran of the parameters that were changed: node, name, value.
Values = dict[str, dict[str, str]]


def _running_values(config: Config, node: str, names: list[str]) -> dict[str, str]:
    with psycopg.connect(config.conninfo("postgres", host=node), autocommit=True) as db:
        rows = db.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", [names]
        ).fetchall()
    return dict(rows)


def _values(config: Config, nodes: Iterable[str], names: list[str]) -> Values:
    """Of each node that answers: one that does not will start with what is new."""
    found = {}
    for node in nodes if names else ():
        with contextlib.suppress(psycopg.OperationalError):
            found[node] = _running_values(config, node, names)
    return found


def _patience(config: Config, before: Values, loop_wait: int) -> float:
    """How long a change may take to be noticed, in seconds. One that needs a restart would stay
    without effect if it were noticed after that."""
    node, old = next((n, v) for n, v in before.items() if v)
    sql = "SELECT EXISTS (SELECT FROM pg_settings WHERE name = ANY(%s) AND context = 'postmaster')"
    with psycopg.connect(config.conninfo("postgres", host=node), autocommit=True) as db:
        row = db.execute(sql, [list(old)]).fetchone()
    usual = 3 * loop_wait + 10
    return max(60, usual) if row and row[0] else usual


def wait_until_noticed(config: Config, patroni: Patroni, before: Values, timeout: float) -> None:
    """Wait until each member runs the new values or says that it needs a restart for them."""

    def noticed() -> bool:
        pending = {m.name for m in patroni.members() if m.pending_restart}
        for node, old in before.items():
            if node in pending:
                continue
            now = _running_values(config, node, list(old))
            if any(now.get(name) == value for name, value in old.items()):
                return False
        return True

    try:
        wait_until(noticed, timeout, "", pause=0.3)
    except TimeoutError:
        # A value written another way ('1GB' for '1024MB') changes nothing: nothing to notice.
        say("no member reports a changed value")


def change(config: Config, patroni: Patroni, desired: dict[str, Any]) -> Values:
    """PATCH what differs; returns what the nodes ran of it until now."""
    node = wait_for_leader(patroni).name
    patch = merge_patch(patroni.from_any("/config"), desired)
    if not patch:
        say("configuration unchanged")
        return {}
    changed = sorted(patch.get("postgresql", {}).get("parameters", {}))
    before = _values(config, patroni.nodes, changed)
    status, text = patroni.call(node, "PATCH", "/config", patch)
    if status != 200:
        raise PatroniError(f"{node}: Patroni refused the configuration: {text[:300]}")
    say(f"configuration changed: {', '.join(changed or sorted(patch))}")
    return before


OUR_EXTENSIONS = ("cron", "pg_stat_statements", "pgaudit")


def unknown(names: Iterable[str], known: set[str]) -> list[str]:
    """Of `names` those that a server which knows `known` does not take for parameters.

    Names with a dot may be anybody's own, except under the names of the extensions loaded here.
    """
    return sorted(
        name
        for name in names
        if name not in known and ("." not in name or name.split(".")[0] in OUR_EXTENSIONS)
    )


def check_known(config: Config, node: str, names: list[str]) -> None:
    """Raise PatroniError for names that PostgreSQL does not know: Patroni only drops them."""
    sql = "SELECT lower(name) FROM pg_settings WHERE lower(name) = ANY(%s)"
    with psycopg.connect(config.conninfo("postgres", host=node), autocommit=True) as db:
        known = {str(row[0]) for row in db.execute(sql, [names]).fetchall()}
    wrong = unknown(names, known)
    if wrong:
        raise PatroniError(
            f"PostgreSQL knows no parameter {', '.join(wrong)}, so it is without effect: correct "
            "or remove it in postgres.parameters of the stack"
        )


Held = Callable[[str], contextlib.AbstractContextManager[object]]
CHECKPOINT_S = 60


def pools_held(config: Config) -> Held:
    """Holds the pools in its block, in which the node named to it restarts; none without gates."""
    where = os.environ.get(GATES)
    pair = Pair(Path(config.sslrootcert), Path(config.sslcert), Path(config.sslkey))

    @contextlib.contextmanager
    def held(node: str) -> Iterator[None]:
        if not where:
            yield
            return
        # As much of it as can be had.
        with contextlib.suppress(psycopg.Error):
            checkpoint(config.conninfo("postgres", node), CHECKPOINT_S)
        with holding(where, pair, say) as pools:
            yield
        say(f"{len(pools)} pools were held meanwhile")

    return held


def restart_pending(patroni: Patroni, held: Held = contextlib.nullcontext, rounds: int = 3) -> None:
    """Restart members that wait for it: standbys first, so that the primary's pause is the last;
    it is made in a block of `held`.

    More than one round: a standby cannot lower max_connections and its like before the primary.
    """
    for _ in range(rounds):
        pending = sorted((m for m in patroni.members() if m.pending_restart), key=lambda m: m.leads)
        if not pending:
            return
        for member in pending:
            say(f"restarting {member.name} ({member.role})")
            with held(member.name) if member.leads else contextlib.nullcontext():
                status, text = patroni.call(member.name, "POST", "/restart", {}, timeout=120)
            if status not in (200, 202):
                raise PatroniError(f"{member.name}: restart refused: {text[:300]}")
            wait_for_cluster(patroni, timeout=120)
            wait_for_sync(patroni)
    left = [m.name for m in patroni.members() if m.pending_restart]
    if left:
        raise PatroniError(f"{', '.join(left)} still need a restart after {rounds} rounds")


PAUSED = (
    "the cluster is paused: a restore is under way or was interrupted (`elsapg restore` "
    "goes on with it; `elsapg status` says which), or somebody paused Patroni by hand"
)


def paused(patroni: Patroni) -> bool:
    """Whether somebody holds the cluster still. One that is not there yet is not held."""
    try:
        return bool(patroni.from_any("/config").get("pause"))
    except PatroniError:
        return False


def refuse_paused(patroni: Patroni) -> None:
    """Raise PatroniError while somebody holds the cluster still: this would set it going."""
    if paused(patroni):
        raise PatroniError(PAUSED)


def run(config: Config) -> int:
    """The `configure` task."""
    patroni = config.patroni()
    refuse_paused(patroni)
    desired = json.loads(Path(config.dynamic_file).read_text(encoding="utf-8"))
    # Before anybody is waited for: a pod that is being replaced then starts with what is new, and
    # needs no restart afterwards.
    before = change(config, patroni, desired)
    rollout.wait()
    members = wait_for_cluster(patroni)
    wait_for_sync(patroni)
    say("cluster: " + ", ".join(f"{m.name} {m.role}" for m in members))
    if any(before.values()):
        wait_until_noticed(config, patroni, before, _patience(config, before, desired["loop_wait"]))
    restart_pending(patroni, pools_held(config))
    first = leader(wait_for_cluster(patroni))
    check_known(
        config, first.name if first else patroni.nodes[0], list(desired["postgresql"]["parameters"])
    )
    return 0
