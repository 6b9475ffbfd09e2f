"""What runs and how it is, in one look: gathered in parallel, each part able to fail alone."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from elsapg.definition import topology as t
from elsapg.errors import ElsapgError, UnhealthyError
from elsapg.services import backups, clocks, hazards, recovery, restore
from elsapg.services.commands import for_stack
from elsapg.services.deployment import PATRONICTL, Deployment
from elsapg.targets.hosts import UnitState


@dataclass(frozen=True)
class Node:
    """A PostgreSQL node. `lag_bytes`: WAL that the primary has and this standby lacks."""

    name: str
    role: str
    state: str
    timeline: int | None
    lag_bytes: int | None
    pending_restart: bool


@dataclass(frozen=True)
class Pool:
    """Sums over one PgBouncer's pools."""

    name: str
    clients_active: int
    clients_waiting: int
    servers_active: int
    servers_idle: int
    paused: bool


@dataclass(frozen=True)
class Archive:
    """The WAL archive, as the primary sees it."""

    last_segment: str | None
    age_seconds: float | None
    failures_since: int
    queued: int


@dataclass
class Status:
    """All of it. `problems` is empty when everything is well."""

    stack: str
    nodes: list[Node] = field(default_factory=list)
    synchronous: str = "unknown"
    pools: list[Pool] = field(default_factory=list)
    archive: Archive | None = None
    last_backup: backups.Backup | None = None
    last_dump: recovery.Dump | None = None
    recovery: list[recovery.Recorded] = field(default_factory=list)
    disks: dict[str, int] = field(default_factory=dict)
    """How full each node's disk is, in per cent."""
    units_down: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "healthy": not self.problems}, indent=2)


# On kubernetes, and what it means when it does not run.
_BESIDE_POOL = {
    "gate": "nobody new comes to its pool, and a drain would break transactions of it",
    "readers": "nobody new comes to its pool, and its readers get no connection",
}


def gather(deployment: Deployment) -> Status:
    """Look everywhere at once. Only a stack that does not run at all is an error."""
    status = Status(deployment.stack)
    expected = {u.name for u in t.units(deployment.settings)}
    states = deployment.hosts.states()
    deployment.any_node()
    running = {name for name, unit in states.items() if unit.state == "running"}
    status.units_down = sorted(expected - running)
    status.problems += [
        f"{name} does not run ({_state(states, name)}): "
        + deployment.hosts.remedy(name, _state(states, name))
        for name in status.units_down
    ]
    status.problems += [
        f"{name} does not run ({unit.state}): {_BESIDE_POOL[what]}; {deployment.hosts.remedy(name)}"
        for name, unit in sorted(states.items())
        if (what := name.rpartition("-")[2]) in _BESIDE_POOL and unit.state != "running"
    ]
    status.problems += hazards.started_for_lack_of_memory(deployment, states)
    parts: list[Callable[[Deployment, Status], None]] = [
        *(_restore, _nodes, _archive, _backup, _recovery, _clocks, _hazards),
    ]
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        asked = [pool.submit(part, deployment, status) for part in parts]
        asked += [
            pool.submit(_pool, deployment, status, name)
            for name in deployment.poolers
            if name in running
        ]
        asked += [
            pool.submit(part, deployment, status, name)
            for name in deployment.nodes
            for part in (_disk, _damage, _memory)
            if name in running
        ]
        asked += [
            pool.submit(_certificates, deployment, status, name)
            for name in (*deployment.nodes, *deployment.poolers)
            if name in running
        ]
        failed: list[str] = []
        for future in asked:
            try:
                future.result()
            except ElsapgError as error:
                failed.append(str(error))
    for text in failed:
        # Those that ask the same unit are told the same, but for how long it took.
        if not any(_NUMBER.sub("", text) in _NUMBER.sub("", told) for told in status.problems):
            status.problems.append(text)
    status.pools.sort(key=lambda p: p.name)
    status.problems = [for_stack(text, deployment.stack) for text in status.problems]
    return status


def _state(states: Mapping[str, UnitState], name: str) -> str:
    return states[name].state if name in states else "missing"


def _hazards(deployment: Deployment, status: Status) -> None:
    status.problems += hazards.of_the_primary(deployment)
    status.problems += hazards.jobs(deployment)


def _damage(deployment: Deployment, status: Status, node: str) -> None:
    status.problems += hazards.damaged_pages(deployment, node)


def _memory(deployment: Deployment, status: Status, node: str) -> None:
    status.problems += hazards.memory(deployment, node)


def _certificates(deployment: Deployment, status: Status, unit: str) -> None:
    status.problems += hazards.certificates(deployment, unit)


def _restore(deployment: Deployment, status: Status) -> None:
    journal, left = restore.journals(deployment)
    if journal:
        status.problems.append(
            f"a restore to {journal['target']} (since {journal['since']}) has not ended, last step "
            f"{journal['stage']}: if nobody works on it, `elsapg restore --stack "
            f"{deployment.stack}` goes on with it; until then nothing fails over"
        )
    for node, other in left.items():
        status.problems.append(
            f"{node} was away while others went on: it still has the restore to {other['target']}"
            f" (since {other['since']}) half done. `elsapg restore --stack {deployment.stack} "
            "--abandon` forgets that"
        )
    if journal is None and deployment.patroni("/cluster").get("pause"):
        node = deployment.any_node()
        status.problems.append(
            "Patroni is paused, by hand or by a restore whose node is away: nothing fails over; "
            f"`{deployment.hosts.shell(node, *PATRONICTL, 'resume', t.SCOPE)}` ends that"
        )


def _nodes(deployment: Deployment, status: Status) -> None:
    try:
        members = deployment.members()
    except UnhealthyError as error:
        status.problems.append(_without_members(deployment, str(error)))
        return
    status.nodes = sorted(
        (
            Node(
                name=m["name"],
                role=m["role"],
                state=m["state"],
                timeline=m.get("timeline"),
                lag_bytes=m["lag"] if isinstance(m.get("lag"), int) else None,
                pending_restart=bool(m.get("pending_restart")),
            )
            for m in members
        ),
        key=lambda n: n.name,
    )
    missing = set(deployment.nodes) - {n.name for n in status.nodes}
    status.problems += [f"{name} is no member of the cluster" for name in sorted(missing)]
    led = any(n.role == "leader" and n.state == "running" for n in status.nodes)
    if not led:
        status.problems.append(
            "no primary: nothing can be written now; within half a minute Patroni makes one, or "
            f"`{deployment.hosts.shell(deployment.any_node(), *PATRONICTL, 'list')}` and the logs "
            "of the nodes say what it waits for"
        )
    for node in status.nodes:
        if not node.state:
            remedy = deployment.hosts.remedy(node.name)
            status.problems.append(f"Patroni knows no state of {node.name} yet: {remedy}")
        elif node.role != "leader" and node.state in _ON_ITS_WAY:
            status.problems.append(f"{node.name} is {node.state}: wait, it is on its way")
        elif node.role != "leader" and node.state != "streaming":
            # Without a primary there is nothing to make it from, and it may be the next one.
            rebuild = f"`{deployment.patronictl(node.name, 'reinit', '--force')}`"
            status.problems.append(
                f"{node.name} is {node.state}, not streaming"
                + (f"; if it stays so, rebuild it: {rebuild}" if led else "")
            )
        if node.pending_restart:
            # One that `up` itself caused is done by it; this one somebody caused by hand.
            status.problems.append(
                f"{node.name} needs a restart for a changed parameter: "
                f"`{deployment.patronictl(node.name, 'restart', '--pending', '--force')}`, "
                "standbys first"
            )
    mode = deployment.settings.postgres.synchronous
    synchronous = [n.name for n in status.nodes if n.role in ("sync_standby", "quorum_standby")]
    if mode == "off":
        status.synchronous = "off"
    elif synchronous:
        status.synchronous = f"{mode}: {', '.join(synchronous)}"
    else:
        # After a failover, until Patroni's next loop names a standby: commits wait for nobody.
        status.synchronous = "not yet" if mode == "on" else "not yet: commits wait"
        status.problems.append(
            "no synchronous standby now: a failover could lose commits"
            if mode == "on"
            else "no synchronous standby now: every commit waits until a standby streams; without "
            f"one, `{_lets_go_on(deployment)}` lets writes go on, and `synchronous: on` in the "
            "stack's file keeps it so"
        )


def _without_members(deployment: Deployment, error: str) -> str:
    """Patroni does not list the members without its DCS; each node still tells of itself."""
    leads = []
    for node in deployment.running_nodes():
        with contextlib.suppress(ElsapgError):
            if deployment.patroni("/patroni", node).get("role") in ("primary", "master"):
                leads.append(node)
    if not leads:
        return error
    return (
        f"{error}; its DCS may be away: {', '.join(leads)} leads all the same and takes writes "
        "(failsafe_mode), but nothing fails over until the DCS is back"
    )


def _lets_go_on(deployment: Deployment) -> str:
    command = ("edit-config", t.SCOPE, "--set", "synchronous_mode_strict=false", "--force")
    return deployment.hosts.shell(deployment.any_node(), *PATRONICTL, *command)


# Patroni's words for a member from which something comes by itself.
_ON_ITS_WAY = ("creating replica", "starting", "restarting", "running custom bootstrap script")
_NUMBER = re.compile(r"\d+ (?=milliseconds)")
# Npgsql gives up after 15 s.
_WAIT_S = 5
_CLIENTS_PERCENT = 80
_ACTIVITY = (
    "SELECT pid, usename, state, wait_event, now() - xact_start AS since, query "
    "FROM pg_stat_activity WHERE xact_start IS NOT NULL OR usename LIKE 'elsa%' "
    "ORDER BY since DESC NULLS LAST"
)
_ARCHIVER = (
    "SELECT last_archived_wal, extract(epoch FROM clock_timestamp() - last_archived_time), "
    "CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') "
    "THEN failed_count ELSE 0 END, "
    "(SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') "
    "FROM pg_stat_archiver"
)
# Segments of 16 MiB. Fewer wait now and then under load.
QUEUED = 32
# WAL is never dropped, so a disk that fills up is told while there is time to do something.
DISK_PERCENT = 80


def _archive(deployment: Deployment, status: Status) -> None:
    rows = deployment.query(deployment.primary(), _ARCHIVER)
    if not rows:
        status.problems.append("the primary says nothing about its archiver: look again")
        return
    [[segment, age, failures, queued]] = rows
    status.archive = Archive(
        segment or None, float(age) if age else None, int(failures), int(queued)
    )
    if status.archive.queued > QUEUED:
        status.problems.append(
            f"{queued} WAL segments ({int(queued) * 16} MiB) wait on the primary's disk for S3: "
            "nothing is dropped, so see that S3 takes them before the disk is full"
        )
    if status.archive.failures_since:
        status.problems.append(
            f"WAL archiving fails since {f'segment {segment}' if segment else 'the first segment'} "
            f"({failures} attempts): WAL queues up on the primary's disk until S3 takes it"
        )


def _backup(deployment: Deployment, status: Status) -> None:
    found = backups.backups(deployment)
    if not found:
        status.problems.append("no backup yet: `elsapg backup now` takes one")
        return
    status.last_backup = found[-1]
    if found[-1].failed:
        status.problems.append(
            f"backup {found[-1].label} has errors, of pages whose checksums are wrong: keep the "
            "older ones, and see docs/runbook.md, 'Pages are damaged'"
        )


def _disk(deployment: Deployment, status: Status, node: str) -> None:
    # Not PGDATA itself: it may have been moved away for a restore.
    folders = {t.PGDATA.rpartition("/")[0]: "disk"}
    if deployment.settings.postgres.wal_volume_size:
        folders[t.WAL_MOUNT] = "disk for WAL"
    done = deployment.hosts.run(node, "df", "-Pk", *folders)
    # A container that is just being stopped may say nothing at all.
    lines = done.output.splitlines()[-len(folders) :] if done.code == 0 else []
    found = [words for line in lines if len(words := line.split()) >= 6]
    if len(found) < len(folders) or not all(w[4].removesuffix("%").isdigit() for w in found):
        status.problems.append(f"{node}: its disk cannot be looked at: {done.output.strip()[:200]}")
        return
    status.disks[node] = max(int(words[4].removesuffix("%")) for words in found)
    status.problems += [
        f"the {name} of {node} is {words[4]} full, {int(words[3]) // 1024} MiB are left: a full "
        "disk stops the database (docs/runbook.md, 'The disk fills up')"
        for name, words in zip(folders.values(), found, strict=True)
        if int(words[4].removesuffix("%")) >= DISK_PERCENT
    ]


def _recovery(deployment: Deployment, status: Status) -> None:
    found = recovery.overview(deployment)
    status.last_dump = found.dumps[-1] if found.dumps else None
    status.recovery = list(found.ended)
    status.problems += [problem.text for problem in found.problems]


def _clocks(deployment: Deployment, status: Status) -> None:
    found = clocks.apart(deployment, deployment.nodes)
    if found:
        status.problems.append(
            f"{found}: S3 refuses what a machine more than 15 minutes off signs, so that WAL waits "
            "on its disk, and no restore to a time can be trusted; put the machines' clocks right"
        )


def _pool(deployment: Deployment, status: Status, name: str) -> None:
    pools = deployment.pooler_console(name, "SHOW POOLS")
    # A PAUSE of everything shows here, one of a single database only there.
    state = {row["key"]: row["value"] for row in deployment.pooler_console(name, "SHOW STATE")}
    databases = deployment.pooler_console(name, "SHOW DATABASES")

    def total(column: str) -> int:
        return sum(int(row[column]) for row in pools if row["database"] != "pgbouncer")

    paused = state.get("paused") == "yes" or any(row["paused"] == "1" for row in databases)
    status.pools.append(
        Pool(
            name=name,
            clients_active=total("cl_active"),
            clients_waiting=total("cl_waiting"),
            servers_active=total("sv_active"),
            servers_idle=total("sv_idle"),
            paused=paused,
        )
    )
    if paused:
        status.problems.append(f"{name} is paused: {_why_paused(deployment)}")
        return
    most = deployment.settings.pooler.max_client_conn
    if total("cl_active") + total("cl_waiting") > _CLIENTS_PERCENT * most / 100:
        status.problems.append(
            f"{name} has {total('cl_active') + total('cl_waiting')} clients and lets no more than "
            f"{most} in: `SHOW CLIENTS` on its console says whose; pooler.max_client_conn is how "
            "many there may be"
        )
    status.problems += [
        _waits(deployment, name, row) for row in pools if int(row["maxwait"]) >= _WAIT_S
    ]


def _why_paused(deployment: Deployment) -> str:
    journal, _ = restore.journals(deployment)
    if journal:
        return f"closed by the restore to {journal['target']}, which opens it; leave it so"
    return "a switchover is under way"


def _waits(deployment: Deployment, name: str, row: dict[str, str]) -> str:
    door, busy = row["database"], int(row["sv_active"])
    what = (
        f"{name}: clients of {row['user']} wait for a connection to {door} "
        f"({row['cl_waiting']}, the longest for {row['maxwait']} s)"
    )
    if not busy:
        return (
            f"{what}, and nobody has one: the log of {name} says why, and "
            f"`elsapg verify --stack {deployment.stack}` tries every door"
        )
    setting = {"session": "session_connections", "readonly": "readonly_connections"}.get(
        door.rpartition("_")[2], "max_db_connections"
    )
    # Not through the pool that is full.
    node = deployment.primary()
    if door.endswith("_readonly"):
        node = next((n for n in deployment.nodes if n != node), node)
    words = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-c", _ACTIVITY)
    return (
        f"{what}, and {busy} are busy: `{deployment.hosts.shell(node, *words)}` says with what; "
        f"pooler.{setting} is how many there may be"
    )
