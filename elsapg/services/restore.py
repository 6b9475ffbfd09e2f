"""Restore in place: the running stack goes back to a moment, and nobody's way forward is cut off.

Everything is checked before anything stops; what there was is kept on its own line of history, with
a backup, so that a wrong target can be undone. The steps run inside the nodes
(`elsapg.runner.restore`), each with a journal beside the data: stopped anywhere, the same command
goes on.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from elsapg.definition import topology as t
from elsapg.errors import ElsapgError, UnhealthyError, UsageError
from elsapg.runner import target as targets
from elsapg.runner.archive import iso
from elsapg.runner.target import Target
from elsapg.services import backups, clocks, lock
from elsapg.services.deployment import Deployment
from elsapg.services.peer import Peer
from elsapg.services.places import Places
from elsapg.targets.hosts import NEVER_STARTED, START_AGAIN_AFTER_S, STARTS

Say = Callable[[str], None]
Ask = Callable[[str], str]

# A restore of a large database takes hours, and the pools stay closed all the while.
POOLS_RESUME_AFTER_S = 24 * 3600
ARCHIVED_WITHIN_S = 180
# From these on the old data is gone from the node, and only going on helps.
TOUCHED = ("fetching", "fetched", "recovering", "promoted", "open")
# The line is not the control file's: that one follows a promotion only with the next checkpoint.
_NOW = (
    "SELECT extract(epoch FROM clock_timestamp()), pg_current_wal_lsn(),"
    " pg_walfile_name(pg_current_wal_lsn())"
)
# A transaction of our own is the last one: then a target after the last commit has an end.
_LAST = "SET synchronous_commit = local; SELECT pg_current_xact_id()"


@dataclass(frozen=True)
class Request:
    """What was asked for. `target` None: on with what was begun."""

    target: Target | None = None
    timeline: int | None = None
    backup: str | None = None
    save: bool = True
    """Take a backup before, so that it is quickly undone."""
    check: bool = True
    """Read every WAL segment that is needed before anything stops."""


@dataclass
class Restored:
    """What happened. Times in UTC as text; `before` is empty if there was no primary."""

    target: str
    backup: str
    node: str
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    undo: str = ""
    same_line: bool = True
    """Whether the target was on the line that was left; else there is nothing to count."""
    trouble: str = ""
    """Why roles, migrations or configuration are not what the stack says, if they are not."""

    @property
    def lost_transactions(self) -> int | None:
        """How many transaction ids were given out after the target, on the line that was left."""
        if "next_xid" not in self.before or not self.same_line:
            return None
        return max(0, int(self.before["next_xid"]) - int(self.after["next_xid"]))

    @property
    def lost_seconds(self) -> float | None:
        """Between the last commit before and the last one that is there now."""
        before, after = self.before.get("last_commit"), self.after.get("last_commit")
        if not before or not after:
            return None
        parse = datetime.datetime.fromisoformat
        return max(0.0, (parse(before) - parse(after)).total_seconds())


class Restore:
    """One restore of one stack, begun or gone on with."""

    def __init__(self, deployment: Deployment, say: Say = print) -> None:
        self._deployment = deployment
        self._say = say
        self._stack = deployment.stack

    # -- looking -----------------------------------------------------------------------------

    def unfinished(self) -> dict[str, Any] | None:
        """The journal of a restore that was begun and has not ended."""
        return unfinished(self._deployment)

    def plan(self, request: Request, now: float | None, *, fresh: bool = False) -> dict[str, Any]:
        """How the target is reached; `fresh`: WAL has just been archived.

        Raises UsageError for what cannot be.
        """
        wanted = request.target or Target("latest")
        order = {
            "target": {"kind": wanted.kind, "value": wanted.value},
            "timeline": request.timeline,
            "backup": request.backup,
            "now": now,
            "fresh": fresh,
        }
        answer = json.loads(self._deployment.runner("restore-plan", json.dumps(order), timeout=600))
        if "refused" in answer:
            raise UsageError(answer["refused"])
        return dict(answer["plan"])

    def prepare(self, request: Request) -> Prepared:
        """Look at everything, and stop nothing. Raises UsageError, UnhealthyError."""
        journal = self.unfinished()
        if journal and journal["stage"] in TOUCHED:
            return self._resumed(request, journal)
        if request.target is None:
            if journal is None:
                raise UsageError(
                    f"no restore of stack {self._stack!r} was begun, so there is nothing to go on "
                    "with: say where to, --to TIME, LSN, a mark's name or latest"
                )
            request = _as_begun(request, journal)
        primary = self._primary()
        now = None
        if primary is not None:
            ((clock, lsn, segment),) = self._deployment.query(primary, _NOW)
            line = _line(segment)
            now = float(clock)
            wanted = request.target
            if wanted and wanted.kind == "time":
                self._one_clock(wanted)
            here = request.timeline in (None, line)
            if wanted and wanted.kind == "lsn" and here and wanted.lsn > targets.parse_lsn(lsn):
                raise UsageError(
                    f"--to {wanted.value}: the database is only at {lsn} (timeline {line}); "
                    "`elsapg restore points` lists what can be reached"
                )
        before: dict[str, Any] = {}
        if journal and primary is None:
            # Begun and stopped, and nothing of the data touched yet.
            before, node = dict(journal.get("before") or {}), str(journal["node"])
        else:
            node = primary or self._deployment.any_node()
        plan = self.plan(request, now)
        if request.check:
            self._say(f"checking {len(plan['segments'])} WAL segments in the archive")
            self._step(node, "check", {"segments": plan["segments"]})
        return Prepared(request, plan, node, primary, before, "new")

    def _one_clock(self, wanted: Target) -> None:
        """Raise UsageError where nodes have lived in different times: each has been a primary."""
        states = ("running", "streaming")
        up = [str(m["name"]) for m in self._deployment.members() if m["state"] in states]
        found = clocks.apart(self._deployment, up)
        if found:
            raise UsageError(
                f"--to {wanted.value}: {found}, so that a time is two moments: use an LSN or a "
                "mark (`elsapg restore points`), and put the clocks right"
            )

    def abandon(self) -> str:
        """Set the cluster going again as it was. Returns the target that is given up.

        Raises UsageError if there is nothing to give up, or the data has been touched.
        """
        journal, left = journals(self._deployment)
        if journal is None:
            self._forget(list(left))
            if left:
                return ", ".join(str(one["target"]) for one in left.values())
            raise UsageError(f"no restore of stack {self._stack!r} was begun")
        if journal["stage"] in TOUCHED:
            raise UsageError(
                f"the restore to {journal['target']} has begun to replace the data (last step "
                f"{journal['stage']}): end it, by `elsapg restore --stack {self._stack}`; to have "
                "the data of before, then undo it as it says"
            )
        node = str(journal["node"])
        places = Places(self._deployment.root)
        with lock.hold(places.lock(self._stack), self._stack, "restore"):
            if journal.get("before"):
                self._step(node, "open")
            # Without a primary nobody leads before Patroni may choose.
            self._step(node, "resume")
            self._end(node)
        return str(journal["target"])

    def _resumed(self, request: Request, journal: dict[str, Any]) -> Prepared:
        """Go on with what was begun; to another target, if one is asked for."""
        same = request.target is None or _same(request, journal)
        if journal["stage"] == "open" and not same:
            raise UsageError(
                f"the restore to {journal['target']} has still to be ended: run `elsapg restore "
                f"--stack {self._stack}` without --to first, then this again"
            )
        node, before = str(journal["node"]), dict(journal.get("before") or {})
        if journal["stage"] in ("promoted", "open") and same:
            return Prepared(request, journal["plan"], node, None, before, journal["stage"], journal)
        if request.target is None:
            request = _as_begun(request, journal)
        if same:
            # On the line that was planned: the archive has gone on since, and S3's clock with it.
            line = int(journal["plan"]["timeline"])
            plan = self.plan(replace(request, timeline=line), before.get("now"))
        else:
            plan = self.plan(request, None)
        return Prepared(request, plan, node, None, before, "again", journal)

    def _primary(self) -> str | None:
        try:
            return self._deployment.primary()
        except UnhealthyError:
            return None

    # -- doing -------------------------------------------------------------------------------

    def run(self, prepared: Prepared, finish: Finish) -> Restored:
        """Do it. `finish`: what `up`'s tasks and `verify` do, after the restored server runs."""
        places, deployment = Places(self._deployment.root), self._deployment
        with contextlib.ExitStack() as closing:
            with lock.hold(places.lock(self._stack), self._stack, "restore"):
                if prepared.how == "new":
                    self._save(prepared)
                gates = closing.enter_context(self._closed_pools())
                if prepared.how in ("new", "again"):
                    self._go_back(prepared)
                self._open(prepared)
                self._standbys(prepared, wait=False)
            # Passwords, settings and migrations are those of the stack's file, not of that moment.
            self._say("bringing roles, passwords and migrations to what the stack says")
            trouble = _attempt(finish.bootstrap)
            catch_up(deployment, prepared.node)
            gates.open()
            self._say("the database takes writes again; rebuilding the standbys")
            with lock.hold(places.lock(self._stack), self._stack, "restore"):
                self._standbys(prepared, wait=True)
                self._step(prepared.node, "resume")
        trouble = trouble or _attempt(finish.tasks)
        journal = self.unfinished() or {}
        self._end(prepared.node)
        return Restored(
            target=str(journal.get("target", prepared.request.target or "latest")),
            backup=prepared.plan["backup"],
            node=prepared.node,
            before=dict(journal.get("before") or {}),
            after=dict(journal.get("after") or {}),
            undo=_undo(deployment.stack, journal.get("before") or {}),
            same_line=prepared.plan["timeline"] == (journal.get("before") or {}).get("timeline"),
            trouble=trouble,
        )

    def _save(self, prepared: Prepared) -> None:
        """What there is now goes into the archive whole; that is the way back."""
        if prepared.primary is None:
            self._say(
                "no primary runs: nothing can be saved first but the finished WAL that is left"
            )
            return
        if prepared.request.save:
            self._say("taking an incremental backup first, so that this can be undone")
            # It may not expire the oldest history: that may be what is wanted back.
            self._say(f"backup {backups.now(self._deployment, 'incr', expire=False)}")

    def _go_back(self, prepared: Prepared) -> None:
        node, request = prepared.node, prepared.request
        if prepared.how == "new" and prepared.primary is not None:
            prepared.before = self._last_words(prepared.primary)
            # With the last of the WAL in the archive: now it is known where it ends.
            prepared.plan = self.plan(request, prepared.before["now"], fresh=True)
        if prepared.how == "new":
            self._forget([n for n in self._deployment.running_nodes() if n != node])
        self._step(
            node,
            "begin" if prepared.how == "new" else "note",
            {
                "target": str(request.target or "latest"),
                "timeline": request.timeline,
                "backup": request.backup,
                "before": prepared.before,
                # Together with its target, whose line it says.
                "plan": prepared.plan,
                "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )
        # Somebody may have let Patroni go on meanwhile.
        if prepared.how == "again" and not self._step(node, "look")["paused"]:
            self._step(node, "pause")
        for name in (node, *(n for n in self._deployment.running_nodes() if n != node)):
            self._say(f"stopping PostgreSQL on {name}")
            self._step(name, "stop")
            if prepared.how == "new" and prepared.primary is None:
                saved = self._step(name, "save")["archived"]
                self._say(f"{saved} finished WAL segments of {name} archived first")
        plan = prepared.plan
        self._say(f"fetching backup {plan['backup']} (of {plan['backup_stopped']}) on {node}")
        self._step(node, "fetch", {"plan": plan})
        self._say(f"recovering to {plan['value'] or 'the end'} on timeline {plan['timeline']}")
        self._step(node, "recover", {"plan": plan})

    def _last_words(self, primary: str) -> dict[str, Any]:
        """Where the present ends, once all of it is in the archive."""
        deployment = self._deployment
        last_commit = self._last_commit(primary)
        ((xid,),) = deployment.query(primary, _LAST)
        ((now, lsn, segment),) = deployment.query(primary, _NOW)
        deployment.query(primary, "SELECT pg_switch_wal()")
        self._say(f"waiting until {segment} is in the archive")
        self._archived(primary, segment)
        return {
            "lsn": lsn,
            "last_commit": last_commit,
            "next_xid": int(xid),
            "timeline": _line(segment),
            "now": float(now),
        }

    def _last_commit(self, primary: str) -> str | None:
        """The last transaction's time, which a standby knows."""
        for member in self._deployment.members():
            if member["name"] != primary and member["state"] == "streaming":
                rows = self._deployment.query(
                    str(member["name"]),
                    "SELECT to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC',"
                    ' \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')',
                )
                if rows and rows[0][0]:
                    return rows[0][0]
        return None

    def _archived(self, primary: str, segment: str) -> None:
        """Wait until a segment is in the archive. Raises UnhealthyError."""
        deadline = time.monotonic() + ARCHIVED_WITHIN_S
        while True:
            ((last,),) = self._deployment.query(
                primary, "SELECT coalesce(last_archived_wal, '-') FROM pg_stat_archiver"
            )
            if last[:24] >= segment:
                return
            if time.monotonic() > deadline:
                raise UnhealthyError(
                    f"WAL segment {segment} does not reach the archive (the last one there is "
                    f"{last}), so what there is now would be lost: see that S3 answers; "
                    "nothing was stopped"
                )
            time.sleep(0.3)

    def _open(self, prepared: Prepared) -> None:
        if prepared.how != "open":
            self._say(f"starting {prepared.node} as the primary")
            self._step(prepared.node, "open")

    def _standbys(self, prepared: Prepared, *, wait: bool) -> None:
        nodes = [n for n in self._deployment.running_nodes() if n != prepared.node]
        if nodes:
            self._step(prepared.node, "reinit", {"nodes": nodes, "wait": wait})

    def _end(self, node: str) -> None:
        """Nobody remembers it; nor one that was begun from another node, and not gone on with."""
        self._forget([*(n for n in self._deployment.running_nodes() if n != node), node])

    def _forget(self, nodes: list[str]) -> None:
        for name in nodes:
            self._step(name, "end")

    def _step(self, node: str, step: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        return run_step(self._deployment, node, step, order or {}, self._say)

    @contextlib.contextmanager
    def _closed_pools(self) -> Iterator[_Gates]:
        """Nobody comes in by the pools until they are opened; they open when this process dies."""
        gates = _Gates()
        try:
            for pooler in self._deployment.pools():
                command = ("pool-gate", str(POOLS_RESUME_AFTER_S), "kill")
                gate = Peer(pooler, partial(self._deployment.hosts.converse, pooler, *command))
                gates.all.append(gate)
                try:
                    gate.begun("ready", timeout=30)
                    gate.say("pause")
                    gate.expect("paused", timeout=20)
                except UnhealthyError as error:
                    # The database stops all the same: its clients only get to know it rudely.
                    self._say(f"{pooler} is not closed: {error}")
            yield gates
        finally:
            gates.open()


@dataclass
class Prepared:
    """A restore about to be done. `how`: new, again (from the fetch), promoted, or open."""

    request: Request
    plan: dict[str, Any]
    node: str
    primary: str | None
    before: dict[str, Any]
    how: str
    journal: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finish:
    """What the restored database still needs, which is `up`'s to do."""

    bootstrap: Callable[[], None]
    tasks: Callable[[], None]


class _Gates:
    def __init__(self) -> None:
        self.all: list[Peer] = []

    def open(self) -> None:
        for gate in self.all:
            gate.close()
        self.all.clear()


def _attempt(work: Callable[[], None]) -> str:
    """Do it; what went wrong, in words. The data of that moment may not be one that fits (a table
    was missing then): the cluster becomes whole again all the same.
    """
    try:
        work()
    except ElsapgError as error:
        return str(error)
    return ""


def run_step(
    deployment: Deployment, node: str, step: str, order: dict[str, Any], say: Say
) -> dict[str, Any]:
    """One step of `elsapg.runner.restore` inside a node; returns what it found."""
    for left in reversed(range(STARTS)):
        peer = Peer(node, partial(deployment.hosts.converse, node, "restore-step", step))
        try:
            peer.say(json.dumps(order))
            return peer.finish(say)
        except UnhealthyError as error:
            if not left or not NEVER_STARTED.search(str(error)):
                raise
        finally:
            peer.close()
        time.sleep(START_AGAIN_AFTER_S)
    raise AssertionError


def unfinished(deployment: Deployment) -> dict[str, Any] | None:
    """The journal of the restore that has not ended, from whichever node has it."""
    return journals(deployment)[0]


def journals(deployment: Deployment) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """That of the restore that has not ended; and by node those of restores that others have gone
    on without, while it was away: to go on with such a one would take all of them back once more.
    """
    live, left = {}, {}
    for node in deployment.running_nodes():
        done = deployment.hosts.run(
            node, "sh", "-c", "cat /var/lib/postgresql/elsapg-restore.json 2>/dev/null || true"
        )
        with contextlib.suppress(ValueError):
            live[node] = dict(json.loads(done.output))
    if live and not _paused(deployment):
        left = {n: j for n, j in live.items() if j["stage"] in TOUCHED[:-1]}
        live = {n: j for n, j in live.items() if j["stage"] == "open"}
    return max(live.values(), key=lambda journal: str(journal["since"]), default=None), left


def _paused(deployment: Deployment) -> bool:
    """So it is from a restore's begin until its new primary has been opened."""
    try:
        return bool(deployment.patroni("/cluster").get("pause"))
    except UnhealthyError:
        # Then nobody leads either.
        return True


# The catch-ups' own slot as well: nobody else makes up for it, and it is overdue in ten minutes.
_CATCH_UP = """
SET ROLE elsa_jobs;
SELECT elsa_jobs.catch_up();
SELECT CASE WHEN j.batched THEN elsa_jobs.run_batch(j.name, s.slot)
    ELSE elsa_jobs.run_slot(j.name, s.slot) END
FROM elsa_jobs.job AS j CROSS JOIN LATERAL (
    SELECT date_bin(j.every, now(), timestamptz '1970-01-01 00:00:00+00' + j.anchor) AS slot
) AS s
WHERE j.database = current_database() AND j.command ~ '^SELECT elsa_jobs.catch_up'
"""


def catch_up(deployment: Deployment, primary: str) -> None:
    """Run the job slots that a restored database has slept through, before a check misses them."""
    if not deployment.settings.jobs.active:
        return
    for database in ("postgres", *t.DATABASES):
        # That of a moment without them runs by itself in five minutes, if ever.
        with contextlib.suppress(UnhealthyError):
            deployment.query(primary, _CATCH_UP, database)


def _as_begun(request: Request, journal: dict[str, Any]) -> Request:
    return replace(
        request,
        target=targets.parse(journal["target"]),
        timeline=journal.get("timeline"),
        backup=journal.get("backup"),
    )


def _line(segment: str) -> int:
    return int(segment[:8], 16)


def _same(request: Request, journal: dict[str, Any]) -> bool:
    wanted = (str(request.target), request.timeline or journal.get("timeline"))
    return wanted == (journal["target"], journal.get("timeline"))


def _undo(stack: str, before: dict[str, Any]) -> str:
    if "timeline" not in before:
        return ""
    return shlex.join(
        ["elsapg", "restore", "--stack", stack, "--to", "latest", "--timeline",
         str(before["timeline"])]
    )  # fmt: skip


# -- points and marks --------------------------------------------------------------------------


def points(deployment: Deployment) -> dict[str, Any]:
    """Windows, marks and backups, as `elsapg.runner.points` has them."""
    return dict(json.loads(deployment.runner("restore-points", timeout=600)))


def mark(deployment: Deployment, name: str) -> dict[str, str]:
    """Make a named restore point now. Raises UsageError for a bad or taken name."""
    targets.check_name(name)
    taken = [m["name"] for m in points(deployment)["marks"]]
    if name in taken:
        raise UsageError(f"mark {name!r} is there already; marks: {', '.join(taken)}")
    primary = deployment.primary()
    ((lsn,),) = deployment.query(primary, f"SELECT pg_create_restore_point('{name}')")
    ((now, _, segment),) = deployment.query(primary, _NOW)
    moment, line = iso(float(now)), str(_line(segment))
    try:
        answer = json.loads(deployment.runner("restore-mark", name, line, lsn, moment))
    except ElsapgError as error:
        raise UnhealthyError(
            f"mark {name!r} could not be written down; it is in the WAL at {lsn} (timeline {line}),"
            f" which --to takes as well: {error}"
        ) from None
    if "refused" in answer:
        raise UsageError(answer["refused"])
    return {"name": name, "lsn": lsn, "time": moment, "timeline": line}
