"""Hands the primary's role to a standby, inside a PostgreSQL node.

Three ways in: before a planned stop (a container's or a pod's), the wait until a replaced node
is back in its place, and `elsapg switchover`, which drives this process by standard input so
that nothing has to start while the pools are paused.

On kubernetes nobody stands outside when a pod is evicted, drained or rolled: ELSAPG_GATES then
names the pools' gates, and this process holds the pools itself. A stop is never refused, and every
step of it has its bound, all together less than the pod's grace.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from elsapg.runner.gates import GATES, HELD_S, Pair, holding
from elsapg.runner.patroni import Member, Patroni, PatroniError, leader, wait_until

CONFIG = Path("/etc/elsapg")
HERE = "host=/run/postgresql user=postgres dbname=postgres connect_timeout=5"
# A standby that has just been rolled may not be named synchronous yet.
CANDIDATE_S = 10.0
CHECKPOINT_S = 20


def _say(text: str) -> None:
    print(text, flush=True)


def _report(text: str) -> None:
    """As `_say`, and into the container's log: nobody reads what a pod's preStop hook prints."""
    _say(text)
    if os.environ.get(GATES):
        with contextlib.suppress(OSError), Path("/proc/1/fd/1").open("w", encoding="utf-8") as log:
            print(f"handover: {text}", file=log, flush=True)


def _patroni(nodes: list[str]) -> Patroni:
    tls = CONFIG / "tls"
    return Patroni(
        nodes, 8008, str(tls / "ca.crt"), str(tls / "server.crt"), str(tls / "server.key")
    )


def _candidate(members: list[Member], wanted: str | None) -> Member:
    """The standby to hand over to: the one asked for, else the synchronous one."""
    standbys = [m for m in members if not m.leads]
    if wanted is not None:
        for member in standbys:
            if member.name == wanted:
                if not member.healthy:
                    raise PatroniError(f"{wanted} is {member.state}, not streaming; choose another")
                return member
        raise PatroniError(f"{wanted} is no standby; standbys: {_names(standbys)}")
    healthy = [m for m in standbys if m.healthy]
    for member in healthy:
        if member.role in ("sync_standby", "quorum_standby"):
            return member
    raise PatroniError(
        "no synchronous standby streams now, so a switchover could lose commits; "
        f"standbys: {_names(standbys)}"
    )


def _await_candidate(patroni: Patroni, wanted: str | None, patience: float = 30) -> Member:
    """As `_candidate`, but a standby that has just come back may take a moment to be named."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return _candidate(patroni.members(), wanted)
        except PatroniError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.3)


def _names(members: list[Member]) -> str:
    return ", ".join(f"{m.name} ({m.role}, {m.state})" for m in members) or "none"


def checkpoint(conninfo: str, patience_s: int = 0) -> None:
    """A shutdown writes a checkpoint: doing most of it beforehand is what makes it short.

    After `patience_s` seconds (0: as long as it takes) it goes on by itself, and we go on as well.
    """
    options = f"-c statement_timeout={patience_s}s"
    with (
        contextlib.suppress(psycopg.errors.QueryCanceled),
        psycopg.connect(conninfo, options=options, autocommit=True) as db,
    ):
        db.execute("CHECKPOINT")


def _writable() -> bool:
    """Whether the stable address leads to a server that takes writes."""
    tls = CONFIG / "tls"
    try:
        with psycopg.connect(
            host="primary",
            port=5432,
            user="rewind",
            dbname="postgres",
            sslmode="verify-full",
            sslrootcert=str(tls / "ca.crt"),
            sslcert=str(tls / "rewind.crt"),
            sslkey=str(tls / "rewind.key"),
            connect_timeout=2,
            target_session_attrs="read-write",
        ):
            return True
    except psycopg.OperationalError:
        return False


def switchover(patroni: Patroni, old: str, new: str, timeout: float = 30) -> float:
    """Switch over and return the seconds until the stable address takes writes again."""
    start = time.monotonic()
    answer: list[tuple[int, str]] = []

    def ask() -> None:
        try:
            # To the leader: a standby does not wake it.
            answer.append(
                patroni.call(
                    old, "POST", "/switchover", {"leader": old, "candidate": new}, timeout=timeout
                )
            )
        except PatroniError as error:
            answer.append((0, str(error)))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    deadline = start + timeout
    successor = patroni.only(new)
    while time.monotonic() < deadline:
        refused = answer and answer[0][0] not in (0, 200, 202)
        if refused:
            raise PatroniError(f"Patroni refused the switchover: {answer[0][1][:300]}")
        try:
            # The status alone: a body comes 40 ms later (TLS, delayed acknowledgement).
            status, _ = successor.call(new, "OPTIONS", "/primary", timeout=1)
        except PatroniError:
            status = 0
        if status != 200:
            # Its HA loop sleeps up to loop_wait; a poke may come too early, so repeat it.
            successor.poke()
        # Patroni says 200 before the promotion has ended: only a writable session counts.
        elif _writable():
            return time.monotonic() - start
        time.sleep(0.05)
    raise TimeoutError(f"{new} did not take over within {timeout:.0f} s")


def before_stop(patroni: Patroni, me: str, gates: str | None = None) -> int:
    """Hand over if this node leads and can; a stop is never refused.

    `gates` (HOST:PORT): where the gates of the pools are, which are held meanwhile.
    """
    try:
        members = patroni.members()
        first = leader(members)
        if first is None or first.name != me:
            return 0
        # One will be named soon, if there is anybody to name.
        wait = gates and len(members) > 1 and patroni.from_any("/config").get("synchronous_mode")
        target = _await_candidate(patroni, None, CANDIDATE_S if wait else 0)
        checkpoint(HERE, CHECKPOINT_S)
        pair = Pair.of_node(CONFIG / "tls")
        with holding(gates, pair, _report) if gates else _nobody() as held:
            seconds = switchover(patroni, me, target.name, HELD_S if gates else 30)
        pools = f", {len(held)} pools held" if gates else ""
        _report(f"handed over to {target.name} in {seconds:.1f} s{pools}")
    except (PatroniError, TimeoutError, psycopg.Error) as error:
        _report(f"not handed over: {error}")
    return 0


@contextlib.contextmanager
def _nobody() -> Iterator[list[str]]:
    yield []


def wait_healthy(patroni: Patroni, me: str, timeout: float) -> int:
    """Wait until this node leads or streams, and the primary has a synchronous standby."""

    def healthy() -> bool:
        members = patroni.members()
        mine = next((m for m in members if m.name == me), None)
        sync = patroni.from_any("/config").get("synchronous_mode")
        others = [m for m in members if not m.leads]
        return (
            mine is not None
            and mine.healthy
            and leader(members) is not None
            and (not sync or not others or any(m.role == "sync_standby" for m in others))
        )

    try:
        wait_until(healthy, timeout, f"{me} is not back in the cluster")
    except TimeoutError as error:
        _say(str(error))
        return 1
    return 0


def driven(patroni: Patroni, me: str, wanted: str | None) -> int:
    """Speak with `elsapg switchover`: "ready CANDIDATE", wait for "go", then "done SECONDS"."""
    try:
        members = patroni.members()
        first = leader(members)
        if first is None or first.name != me:
            raise PatroniError(f"{me} does not lead; {first.name if first else 'nobody'} does")
        target = _await_candidate(patroni, wanted)
        checkpoint(HERE)
        _say(f"ready {target.name}")
        if sys.stdin.readline().strip() != "go":
            _say("error not told to go; nothing was done")
            return 1
        seconds = switchover(patroni, me, target.name)
    except (PatroniError, TimeoutError, psycopg.Error) as error:
        _say(f"error {' '.join(str(error).split())}")
        return 1
    _say(f"done {seconds:.3f}")
    return 0


def main() -> int:
    """Entry of the `handover` command in the postgres image."""
    parser = argparse.ArgumentParser(prog="handover")
    parser.add_argument("--driven", action="store_true", help="obey `elsapg switchover` on stdin")
    parser.add_argument("--candidate", help="the standby that takes over")
    parser.add_argument("--wait-healthy", action="store_true", help="wait until this node is back")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for --wait-healthy")
    arguments = parser.parse_args()
    me = node_name()
    patroni = _patroni([me, *peers(me)])
    if arguments.driven:
        return driven(patroni, me, arguments.candidate)
    if arguments.wait_healthy:
        return wait_healthy(patroni, me, arguments.timeout)
    return before_stop(patroni, me, os.environ.get(GATES))


def node_name() -> str:
    """This member's name: Patroni's own variable (one file serves all pods), or its own file."""
    if os.environ.get("PATRONI_NAME"):
        return os.environ["PATRONI_NAME"]
    for line in (CONFIG / "patroni.yml").read_text(encoding="utf-8").splitlines():
        if line.startswith("name: "):
            return line.removeprefix("name: ").strip()
    return socket.gethostname()


def peers(me: str) -> list[str]:
    """The other members, as this node's Patroni knows them; none while it does not answer."""
    try:
        return [m.name for m in _patroni([me]).members() if m.name != me]
    except PatroniError:
        return []


if __name__ == "__main__":
    sys.exit(main())
