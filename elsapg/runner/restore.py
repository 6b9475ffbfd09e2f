"""A restore in place, as far as it happens inside a node: `elsapg restore` drives it by standard
input, step by step, and everything that a step did is in a journal beside the data.

Each run of this process does one step. A step that was interrupted is done again; the journal says
which one that is. Patroni is paused from the first step to the last, so that it neither starts a
half-restored server nor promotes another node meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from elsapg.errors import ElsapgError
from elsapg.runner import recovery
from elsapg.runner.archive import Plan
from elsapg.runner.handover import node_name, peers
from elsapg.runner.patroni import Member, Patroni, PatroniError, leader, wait_until
from elsapg.runner.pgbackrest import Repository
from elsapg.runner.recovery import PrivateServer, RecoveryError

FOLDER = Path("/var/lib/postgresql")
DATA = FOLDER / "data"
WORK = FOLDER / "elsapg-restore"
JOURNAL = FOLDER / "elsapg-restore.json"
LOCK = FOLDER / "elsapg-restore.lock"
CONFIG = Path("/etc/elsapg")
PAUSE_TIMEOUT_S = 60.0
OPEN_TIMEOUT_S = 600.0
RESUME_TIMEOUT_S = 120.0
# A step looks often whether it is still wanted; it may stop a server before it ends.
PREDECESSOR_S = 60.0
# A copy of a large database takes hours; one that does not even begin is seen sooner.
STANDBY_TIMEOUT_S = 24 * 3600.0
STANDBY_BEGINS_S = 90.0
# Patroni's word for a member that is being made.
COPIES = "creating replica"
ALIVE_EVERY_S = 5.0


class Journal:
    """The JSON file that survives whoever writes it. None when no restore is under way."""

    def __init__(self, path: Path = JOURNAL) -> None:
        self._path = path

    def read(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write(self, **values: Any) -> dict[str, Any]:
        """Add to what is there; whole or not at all."""
        content = {**(self.read() or {}), **values}
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        return content

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class Driver:
    """Whoever reads our output and holds our input open; gone when the input ends."""

    def __init__(self) -> None:
        self._gone = threading.Event()
        self._lock = threading.Lock()
        self._said = time.monotonic()

    def order(self) -> dict[str, Any]:
        """The one line of JSON that says what is wanted."""
        line = sys.stdin.readline()
        threading.Thread(target=self._watch, daemon=True).start()
        return dict(json.loads(line)) if line.strip() else {}

    def _watch(self) -> None:
        while select.select([sys.stdin], [], [], ALIVE_EVERY_S)[0] == [] or sys.stdin.readline():
            # Silence is how the other end would know that this one hangs.
            self.tell("alive")
        self._gone.set()

    def gone(self) -> bool:
        return self._gone.is_set()

    def say(self, text: str) -> None:
        self.tell("say", text)

    def tell(self, word: str, text: str = "") -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):
            print(f"{word} {text.replace(chr(10), ' ')}".rstrip(), flush=True)


@contextlib.contextmanager
def _alone(driver: Driver) -> Iterator[None]:
    """One step at a time. That of a driver who was killed comes to its end, and is waited for."""

    def free() -> bool:
        if driver.gone():
            raise recovery.StoppedError("stopped while another step was waited for")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    with LOCK.open("w", encoding="utf-8") as file:
        try:
            wait_until(free, PREDECESSOR_S, "", pause=0.2)
        except TimeoutError:
            raise RecoveryError(
                "another restore works on this node: wait for it, or stop it"
            ) from None
        yield


class Node:
    """The steps. Each takes what it was ordered and returns what it found, as JSON."""

    def __init__(self, driver: Driver, me: str) -> None:
        self.driver = driver
        self.me = me
        self.journal = Journal()
        self.repository = Repository()
        tls = CONFIG / "tls"
        self.patroni = Patroni(
            [me], 8008, str(tls / "ca.crt"), str(tls / "server.crt"), str(tls / "server.key")
        )

    # -- looking -----------------------------------------------------------------------------

    def look(self, _order: dict[str, Any]) -> dict[str, Any]:
        """The journal, and whether Patroni is paused."""
        return {"journal": self.journal.read(), "paused": self._paused()}

    def check(self, order: dict[str, Any]) -> dict[str, Any]:
        """Read each of the segments out of the archive: all that recovery will read."""
        segments = list(order["segments"])
        target = Path("/tmp/elsapg-wal-check")
        try:
            for count, segment in enumerate(segments, start=1):
                if self.driver.gone():
                    raise recovery.StoppedError("stopped while WAL was being checked")
                try:
                    self.repository.run("--no-archive-async", "archive-get", segment, str(target))
                except ElsapgError as error:
                    raise RecoveryError(
                        f"WAL segment {segment} cannot be read: {error}; no restore can pass it: "
                        "mend the archive, or choose a target before that segment"
                    ) from None
                if count % 50 == 0:
                    self.driver.say(f"{count} of {len(segments)} WAL segments checked")
        finally:
            target.unlink(missing_ok=True)
        return {"checked": len(segments)}

    def _paused(self) -> bool:
        try:
            return bool(self.patroni.get(self.me, "/config").get("pause"))
        except PatroniError:
            return False

    # -- stopping ----------------------------------------------------------------------------

    def begin(self, order: dict[str, Any]) -> dict[str, Any]:
        """Write the journal and pause Patroni on every node."""
        self.journal.remove()
        self.journal.write(stage="begun", node=self.me, **order)
        return self.pause({})

    def pause(self, _order: dict[str, Any]) -> dict[str, Any]:
        """Pause Patroni on every node, if somebody has let it go on meanwhile."""
        self._patch({"pause": True})
        names = [self.me, *peers(self.me)]

        def noticed() -> bool:
            return all(self._says_paused(name) for name in names)

        wait_until(noticed, PAUSE_TIMEOUT_S, f"not all of {', '.join(names)} have paused")
        return {}

    def _says_paused(self, name: str) -> bool:
        try:
            return bool(self.patroni.get(name, "/patroni").get("pause"))
        except PatroniError:
            # A node that does not run cannot do anything; when it starts, it reads that it pauses.
            return True

    def stop(self, _order: dict[str, Any]) -> dict[str, Any]:
        """Stop PostgreSQL here. Only under a pause, or Patroni would start it again."""
        if not self._paused():
            raise RecoveryError("Patroni is not paused; nothing was stopped")
        recovery.stop(DATA)
        return {}

    # -- restoring ---------------------------------------------------------------------------

    def save(self, _order: dict[str, Any]) -> dict[str, Any]:
        """Archive the finished WAL that the stopped server here could not: it would be lost."""
        return {"archived": recovery.push_waiting(self.repository, DATA)}

    def fetch(self, order: dict[str, Any]) -> dict[str, Any]:
        """Bring the data directory to the backup."""
        plan = Plan(**order["plan"])
        self.journal.write(stage="fetching", plan=asdict(plan))
        recovery.fetch(self.repository, plan, DATA, WORK, self.driver.say, self.driver.gone)
        self.journal.write(stage="fetched")
        return {}

    def recover(self, order: dict[str, Any]) -> dict[str, Any]:
        """Replay to the target, look, promote, stop."""
        plan = Plan(**order["plan"])
        recovery.stop(DATA)
        minimum = self._dynamic().get("postgresql", {}).get("parameters", {})
        server = PrivateServer(DATA, WORK, self.repository, minimum=minimum)
        self.journal.write(stage="recovering")
        server.start(plan)
        try:
            reached = server.wait(plan, self.driver.say, self.driver.gone)
            self.driver.say(f"reached {reached.lsn}, last commit {reached.last_commit or 'none'}")
            line = server.promote()
        except BaseException:
            recovery.stop(DATA, timeout=30)
            raise
        found = {**asdict(reached), "timeline": line}
        self.journal.write(stage="promoted", after=found)
        return found

    # -- opening -----------------------------------------------------------------------------

    def open(self, _order: dict[str, Any]) -> dict[str, Any]:
        """Let Patroni start the restored server, as the primary."""
        if recovery.running(DATA) is None:
            status, text = self.patroni.call(
                self.me, "POST", "/restart", {"timeout": int(OPEN_TIMEOUT_S)},
                timeout=OPEN_TIMEOUT_S,
            )  # fmt: skip
            if status != 200:
                raise RecoveryError(f"Patroni does not start the server: {text.strip()[:300]}")

        def leads() -> bool:
            first = leader(self.patroni.members())
            return first is not None and first.name == self.me

        wait_until(leads, OPEN_TIMEOUT_S, f"{self.me} does not lead")
        # One that is given up has promoted nothing.
        if (self.journal.read() or {}).get("stage") == "promoted":
            self.journal.write(stage="open")
        return {}

    def reinit(self, order: dict[str, Any]) -> dict[str, Any]:
        """Make every other node anew from this one; with `wait`, wait until they stream."""
        journal = self.journal.read() or {}
        line = int(journal["after"]["timeline"])
        # Who was asked for this line before, and copies now, is not to begin anew.
        known = set(
            journal["asked"]["nodes"] if journal.get("asked", {}).get("line") == line else ()
        )
        asked: dict[str, float] = {}
        deadline = time.monotonic() + STANDBY_TIMEOUT_S
        while True:
            members = {m.name: m for m in self.patroni.members()}
            late = [n for n in order["nodes"] if not _streams(members.get(n), line)]
            if not late:
                return {"late": []}
            for name in late:
                if name in known and name in members and members[name].state == COPIES:
                    asked.setdefault(name, time.monotonic())
                idle = name not in members or members[name].state in ("stopped", "running", "")
                due = time.monotonic() - asked.get(name, float("-inf")) > STANDBY_BEGINS_S
                if due and (idle or name not in asked):
                    asked[name] = time.monotonic()
                    if self._reinitialize(name):
                        known.add(name)
                        self.journal.write(asked={"line": line, "nodes": sorted(known)})
            if not order.get("wait"):
                return {"late": late}
            if self.driver.gone():
                raise recovery.StoppedError("stopped while standbys were being rebuilt")
            if time.monotonic() > deadline:
                raise RecoveryError(f"{', '.join(late)}: not streaming after a day")
            time.sleep(0.3)

    def _reinitialize(self, name: str) -> bool:
        try:
            status, text = self.patroni.call(
                name, "POST", "/reinitialize", {"force": True}, timeout=30
            )
        except PatroniError as error:
            self.driver.say(f"{name}: {error}")
            return False
        self.driver.say(f"rebuilding {name}" if status == 200 else f"{name}: {text.strip()[:200]}")
        return status == 200

    def resume(self, _order: dict[str, Any]) -> dict[str, Any]:
        """End the pause: Patroni watches over the cluster again."""
        self._patch({"pause": None})
        wait_until(
            lambda: not self.patroni.get(self.me, "/patroni").get("pause"),
            RESUME_TIMEOUT_S,
            f"Patroni on {self.me} has not resumed",
        )
        return {}

    def end(self, _order: dict[str, Any]) -> dict[str, Any]:
        """Forget the restore: it is done, or nothing had been touched yet."""
        self.journal.remove()
        for file in WORK.glob("*"):
            file.unlink()
        with contextlib.suppress(FileNotFoundError):
            WORK.rmdir()
        return {}

    def note(self, order: dict[str, Any]) -> dict[str, Any]:
        """Add to the journal."""
        return self.journal.write(**order)

    # -- Patroni -----------------------------------------------------------------------------

    def _dynamic(self) -> dict[str, Any]:
        return dict(self.patroni.get(self.me, "/config"))

    def _patch(self, change: dict[str, Any]) -> None:
        status, text = self.patroni.call(self.me, "PATCH", "/config", change)
        if status != 200:
            raise PatroniError(f"{self.me}: Patroni refused {change}: {text[:200]}")


def _streams(member: Member | None, line: int) -> bool:
    return member is not None and member.state == "streaming" and member.timeline == line


STEPS: dict[str, Callable[[Node, dict[str, Any]], dict[str, Any]]] = {
    step.__name__: step
    for step in (
        Node.look, Node.check, Node.begin, Node.pause, Node.stop, Node.save, Node.fetch,
        Node.recover, Node.open, Node.reinit, Node.resume, Node.end, Node.note,
    )
}  # fmt: skip


def main() -> int:
    """Entry of the `restore-step` command in the postgres image."""
    parser = argparse.ArgumentParser(prog="restore-step")
    parser.add_argument("step", choices=sorted(STEPS))
    step = STEPS[parser.parse_args().step]
    driver = Driver()
    try:
        order = driver.order()
        with contextlib.nullcontext() if step is Node.look else _alone(driver):
            found = step(Node(driver, node_name()), order)
    except (ElsapgError, PatroniError, TimeoutError, psycopg.Error, OSError) as error:
        driver.tell("error", str(error))
        return 1
    driver.tell("done", json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
