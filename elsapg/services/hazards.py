"""What works now and will not for long, or not for everybody: certificates that end, sessions in
the way of others or of vacuum, transaction ids, damaged pages, jobs and months that are missing,
memory that ran out.

Each look returns sentences that name the thing and the way out. Of other people's statements only
the first words are told: the rest may hold values.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from elsapg.definition import topology as t
from elsapg.errors import UnhealthyError
from elsapg.services.deployment import Deployment
from elsapg.targets.hosts import UnitState

# Nobody waits 3 s for a lock by plan; roles give up after 10 s. Advisory locks are Elsa's own, held
# as long as a workflow takes. A commit that waits for a standby is not to be cancelled: it would
# count as done without one. Vacuum begins to freeze at autovacuum_freeze_max_age (200 million), and
# PostgreSQL stops at 2.1 billion.
_LOOK = """
SELECT jsonb_build_object(
    'blocking', (
        SELECT coalesce(jsonb_agg(b), '[]') FROM (
            SELECT b.pid, b.usename AS role, b.state, count(*) AS waiting,
                round(extract(epoch FROM max(now() - w.query_start))) AS seconds,
                concat_ws(' ', split_part(b.query, ' ', 1), split_part(b.query, ' ', 2)) AS does
            FROM pg_stat_activity AS w
            CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS by (pid)
            INNER JOIN pg_stat_activity AS b ON by.pid = b.pid
            WHERE w.wait_event_type = 'Lock' AND w.wait_event <> 'advisory'
                AND b.wait_event IS DISTINCT FROM 'SyncRep'
                AND w.query_start < now() - interval '3 s'
                AND cardinality(pg_blocking_pids(b.pid)) = 0
            GROUP BY 1, 2, 3, 6 ORDER BY 4 DESC LIMIT 5
        ) AS b),
    'open', (
        SELECT coalesce(jsonb_agg(o), '[]') FROM (
            SELECT pid, usename AS role, state,
                round(extract(epoch FROM now() - xact_start) / 3600) AS hours,
                concat_ws(' ', split_part(query, ' ', 1), split_part(query, ' ', 2)) AS does
            FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND usename <> 'backup'
                AND wait_event IS DISTINCT FROM 'SyncRep'
                AND xact_start < now() - interval '1 h'
            ORDER BY xact_start LIMIT 5
        ) AS o),
    'held', (
        SELECT coalesce(jsonb_agg(h), '[]') FROM (
            SELECT slot_name AS slot, age(xmin) AS age FROM pg_replication_slots
            WHERE age(xmin) > 50000000
        ) AS h),
    'ids', (
        SELECT coalesce(jsonb_agg(i), '[]') FROM (
            SELECT datname AS database,
                round(100.0 * greatest(age(datfrozenxid), mxid_age(datminmxid)) / 2147483648.0)
                    AS percent
            FROM pg_database
            -- To a template nobody can connect; autovacuum does it.
            WHERE datallowconn AND greatest(age(datfrozenxid), mxid_age(datminmxid)) > 1200000000
        ) AS i),
    'behind', (
        SELECT coalesce(jsonb_agg(r), '[]') FROM (
            SELECT application_name AS node,
                round(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) / 1048576.0) AS mib
            FROM pg_stat_replication
            WHERE pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) > 1073741824
                -- What is being copied by pg_basebackup replays nothing.
                AND state = 'streaming'
        ) AS r)
)
"""
_DAMAGED = (
    "SELECT coalesce(datname, 'what all databases share'), checksum_failures, "
    "date_trunc('second', checksum_last_failure) FROM pg_stat_database WHERE checksum_failures > 0"
)
_HOLDS_BACK = (
    "SELECT pg_get_wal_replay_pause_state(), pid, usename, now() - xact_start AS since "
    "FROM pg_stat_activity WHERE xact_start < now() - interval '1 min' ORDER BY xact_start"
)
# What a server slept through is made up for every five minutes.
_OVERDUE = (
    "SELECT job, coalesce(left(last_error, 200), '') FROM elsa_jobs.status "
    "WHERE overdue AND pg_postmaster_start_time() < now() - interval '330 s'"
)
# The kernel counts per container, and says no time. A server whose session is killed recovers under
# the same postmaster, with statistics anew: neither a restart nor a rebuilt node does both.
_KILLED = (
    "cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null"
    " | sed -n 's/^oom_kill //p'"
)
_BEGAN_ANEW = """
SELECT to_char(stats_reset AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')
FROM pg_stat_bgwriter
WHERE stats_reset > greatest(
    pg_postmaster_start_time() + interval '10 s', now() - interval '1 d'
)
"""
_MONTHS = (
    "SELECT table_name, months_ahead, default_rows FROM elsapg.partition_health WHERE NOT healthy"
)


def of_the_primary(deployment: Deployment) -> list[str]:
    """Sessions in the way, ids that run out, standbys that replay far behind."""
    node = deployment.primary()
    rows = deployment.query(node, _LOOK)
    if not rows:
        # A container that is being stopped may answer nothing, with success.
        raise UnhealthyError(f"{node} told nothing of its sessions: look again")
    found: dict[str, list[dict[str, Any]]] = json.loads(rows[0][0])

    def types(sql: str, database: str = "postgres") -> str:
        return _psql(deployment, node, sql, database)

    told = []
    for one in found["blocking"]:
        ends = "pg_cancel_backend" if one["state"] == "active" else "pg_terminate_backend"
        command = types(f"SELECT {ends}({one['pid']})")
        told.append(
            f"pid {one['pid']} ({one['role']}, {one['state']}: {one['does']} …) holds up "
            f"{one['waiting']} sessions, the longest for {one['seconds']} s: {command} ends that"
        )
    for one in found["open"]:
        command = types(f"SELECT pg_terminate_backend({one['pid']})")
        told.append(
            f"pid {one['pid']} ({one['role']}, {one['state']}: {one['does']} …) is in a "
            f"transaction for {one['hours']} h: its locks stay, and vacuum removes nothing that is "
            f"newer; {command} ends it, and loses what it did"
        )
    for one in found["held"]:
        told.append(
            f"replication slot {one['slot']} keeps vacuum from {one['age']} transactions: a long "
            "query on that standby, or one that is away; pg_stat_activity there says which"
        )
    for one in found["ids"]:
        told.append(
            f"database {one['database']} has used {one['percent']} % of its transaction ids, and "
            "stops when none are left: end what holds vacuum back (old transactions, slots), then "
            f"{types('VACUUM (FREEZE, SKIP_LOCKED)', one['database'])}"
        )
    for one in found["behind"]:
        look = _psql(deployment, one["node"], _HOLDS_BACK, "postgres")
        told.append(
            f"{one['node']} has yet to replay {one['mib']} MiB: its readers see the past, and a "
            "failover would have to replay all of it first; a long query there, or a replay that "
            f"is paused, holds it back: {look} says which"
        )
    return told


def damaged_pages(deployment: Deployment, node: str) -> list[str]:
    """Pages that a node has read and found damaged."""
    found = deployment.query(node, _DAMAGED)
    if not found:
        return []
    anew = f"make this node anew: `{deployment.patronictl(node, 'reinit', '--force')}`"
    if node == deployment.primary():
        anew = f"`elsapg switchover` to a clean standby, then {anew}"
    return [
        f"{node} has read damaged pages ({count} in {where}, last {last}): its disk or memory is "
        f"bad; let no backup expire (archive.retention_days), and {anew} (docs/runbook.md, 'Pages "
        "are damaged', has what to look at first)"
        for where, count, last in found
    ]


def memory(deployment: Deployment, node: str) -> list[str]:
    """Processes of a node that were killed for lack of memory, within a day."""
    read = deployment.hosts.run(node, "sh", "-c", _KILLED)
    # A container that is just being stopped may say nothing at all.
    killed = int(read.output) if read.code == 0 and read.output.strip().isdigit() else 0
    began = deployment.query(node, _BEGAN_ANEW) if killed else []
    return [f"{_ran_out(deployment, node, when)}; processes killed: {killed}" for [when] in began]


def started_for_lack_of_memory(
    deployment: Deployment, states: Mapping[str, UnitState]
) -> list[str]:
    """Units whose container was killed as a whole for that, within a day."""
    now, told = datetime.datetime.now(datetime.UTC), []
    for name, unit in sorted(states.items()):
        if not unit.out_of_memory:
            continue
        at = datetime.datetime.fromisoformat(unit.out_of_memory)
        if now - at < datetime.timedelta(days=1):
            told.append(_ran_out(deployment, name, f"{at:%Y-%m-%d %H:%M}"))
    return told


def _ran_out(deployment: Deployment, unit: str, when: str) -> str:
    told = f"{unit} ran out of memory and began anew, {when} UTC, and its sessions ended"
    settings = deployment.settings
    if unit in deployment.nodes:
        limit = f"postgres.memory_mb, {settings.postgres.memory_mb}, and 256 MiB"
    elif unit in deployment.poolers:
        limit = f"what pooler.max_client_conn, {settings.pooler.max_client_conn}, needs"
    else:
        return told
    return f"{told} (it may have {limit}; docs/runbook.md, 'Memory runs out')"


def jobs(deployment: Deployment) -> list[str]:
    """Scheduled jobs that missed their time, and tables without the months to come."""
    if not deployment.settings.jobs.active:
        return []
    node, told = deployment.primary(), []
    for database in ("postgres", *t.DATABASES):
        for job, error in deployment.query(node, _OVERDUE, database):
            ran = _psql(deployment, node, "TABLE elsa_jobs.cron_run", "postgres")
            why = f"last error: {error}" if error else "no error told"
            told.append(f"job {job} of {database} is overdue ({why}): {ran} says what ran")
    for table, ahead, strays in deployment.query(node, _MONTHS, "elsa_workflows"):
        if strays == "0":
            wrong = f"has partitions for {ahead} months ahead"
            call, does = "create_monthly_partitions()", "makes more"
        else:
            wrong = f"has {strays} rows{' or more' if strays == '1000' else ''} outside all months"
            call, does = "create_stray_months()", "makes their months and moves them there"
        make = _psql(deployment, node, f"SELECT elsa_workflows.{call}", "elsa_workflows")
        told.append(f"{table} {wrong}: {make} {does}")
    return told


def certificates(deployment: Deployment, unit: str) -> list[str]:
    """A unit's certificates that end soon: half of the time in which they are renewed is gone."""
    read = deployment.hosts.run(unit, "sh", "-c", f"cat {t.CONFIG_DIR}/tls/*.crt")
    if read.code:
        return []
    now = datetime.datetime.now(datetime.UTC)
    window = datetime.timedelta(days=deployment.settings.tls.renew_before_days / 2)
    told = []
    for one in dict.fromkeys(x509.load_pem_x509_certificates(read.output.encode())):
        ends = one.not_valid_after_utc
        if ends - now > window:
            continue
        names = one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = names[0].value if names else one.serial_number
        verb = "has ended" if ends < now else "ends"
        told.append(
            f"certificate {name!r} of {unit} {verb} on {ends:%Y-%m-%d %H:%M} UTC, and then nobody "
            f"talks to it any more: {renews(deployment)}"
        )
    return told


def renews(deployment: Deployment) -> str:
    """Who renews certificates; all of them do what lies in their window, and no more."""
    settings, stack = deployment.settings, deployment.stack
    if settings.target == "kubernetes" and settings.kubernetes.cert_manager:
        return "cert-manager does it: `kubectl describe certificates` in the namespace says why not"
    if settings.target == "kubernetes" and settings.kubernetes.secrets != "pulumi":
        return f"`elsapg secrets apply --stack {stack}` renews it"
    return f"`elsapg up --stack {stack}` renews it"


def _psql(deployment: Deployment, node: str, sql: str, database: str) -> str:
    """What a person types, as the superuser, past the pools."""
    words = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", database, "-c", sql)
    return f"`{deployment.hosts.shell(node, *words)}`"
