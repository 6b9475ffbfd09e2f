"""The pooler, as clients see it: who gets in, by which door, and who does not."""

from __future__ import annotations

import secrets

from elsapg import sums
from elsapg.definition import topology as t
from tests.infra.facts import Facts, eventually, judge, none, same, unjudged

ROLES = (
    "elsa_app",
    "elsa_worker",
    "elsa_readonly",
    "elsa_host",
    "elsa_admin",
    "elsa_migrator",
    "monitoring",
)
# Its log, sockets, epoll and such.
OWN_FILES = 20
AGAIN = "run `elsapg up --refresh`, which sets PgBouncer and the passwords again"


def test_nothing_is_paused(facts: Facts, pooler: str) -> None:
    """No database of the pooler is paused or disabled."""
    none(
        [
            *facts.paused(pooler),
            *(
                f"{d['name']} is disabled"
                for d in facts.show(pooler, "DATABASES")
                if d["disabled"] == "1"
            ),
        ],
        "`elsapg status` says what holds it: a switchover, or a restore that has not ended; "
        "DISABLE is undone by ENABLE on that pooler's console",
    )


def test_it_may_open_enough_files(facts: Facts, pooler: str) -> None:
    """Each client is one, and each connection to a server."""
    settings = facts.deployment.settings
    servers = sums.one_pools_connections(settings)
    needs = settings.pooler.max_client_conn + servers + OWN_FILES
    has = facts.unit(pooler).open_files
    judge(
        has >= needs,
        f"{pooler} may open {has} files, and needs {needs} for pooler.max_client_conn",
        f"the machine's hard limit for containers (nofile) must be {needs} or more; then make "
        f"{pooler} anew",
    )


def test_every_role_gets_in(facts: Facts, pooler: str) -> None:
    """Every role with a password logs in to both databases, over verified TLS."""
    refused = []
    for role in ROLES:
        for name in t.DATABASES:
            reason = facts.attempt(pooler, role, name)
            if reason:
                refused.append(f"{role} into {name}: {_short(reason)}")
    none(refused, AGAIN)


def test_nobody_gets_in_without_tls(facts: Facts, pooler: str) -> None:
    """A right password does not help without TLS."""
    reason = facts.attempt(pooler, "elsa_app", "elsa_workflows", sslmode="disable")
    judge("SSL required" in reason, f"{_short(reason) or 'elsa_app got in'}", AGAIN)


def test_nobody_gets_in_with_a_wrong_password(facts: Facts, pooler: str) -> None:
    """A wrong password is refused."""
    reason = facts.attempt(pooler, "elsa_app", "elsa_workflows", password=secrets.token_urlsafe(12))
    judge("authentication failed" in reason, f"{_short(reason) or 'elsa_app got in'}", AGAIN)


def test_nobody_gets_in_by_a_service_role(facts: Facts, pooler: str) -> None:
    """The superuser and the services' roles cannot log in through the pooler at all."""
    got_in = []
    for role in ("postgres", "backup", "replicator", "pgbouncer_auth", "elsa_jobs"):
        reason = facts.attempt(pooler, "elsa_app", "elsa_workflows", user=role)
        if "authentication failed" not in reason and "no such user" not in reason:
            got_in.append(f"{role}: {_short(reason) or 'got in'}")
    none(got_in, AGAIN)


def test_the_maintenance_database_is_closed(facts: Facts, pooler: str) -> None:
    """No role reaches database postgres, by its name or by PgBouncer's own door."""
    got_in = [
        f"{role} into {name}"
        for role in ROLES
        for name in ("postgres", "elsapg_auth")
        # One role is enough for what does not depend on the role.
        if (name == "elsapg_auth" or role == "elsa_app") and not facts.attempt(pooler, role, name)
    ]
    none(got_in, f"REVOKE CONNECT ON DATABASE postgres; {AGAIN}")


def test_one_server_connection_serves_many_clients(facts: Facts, pooler: str) -> None:
    """The main door pools by transaction: an idle client does not hold a server connection."""
    query = "SELECT pg_backend_pid()"
    with (
        facts.connect(pooler, "elsa_worker", "elsa_runtime") as first,
        facts.connect(pooler, "elsa_worker", "elsa_runtime") as second,
    ):
        seen: tuple[set[int], set[int]] = (set(), set())
        for _ in range(100):  # others take and leave connections in between
            for client, pids in zip((first, second), seen, strict=True):
                pids.add(client.execute(query).fetchone()[0])
            if seen[0] & seen[1]:
                return
    judge(False, "each client holds a server connection of its own", AGAIN)


def test_prepared_statements_work(facts: Facts, pooler: str) -> None:
    """A client's prepared statements work through the main door, as Npgsql and JDBC need it."""
    with facts.connect(pooler, "elsa_app", "elsa_workflows") as connection:
        found = [
            connection.execute("SELECT %s::int + 1", (n,), prepare=True).fetchone()[0]
            for n in range(3)
        ]
    same(found, [1, 2, 3], "max_prepared_statements must not be 0")


def test_the_session_door_keeps_advisory_locks(facts: Facts, pooler: str) -> None:
    """A session-level advisory lock taken through the session door is held until released."""
    key = secrets.randbits(62)
    door = "elsa_runtime_session"
    with (
        facts.connect(pooler, "elsa_migrator", door) as holder,
        facts.connect(pooler, "elsa_migrator", door) as other,
    ):

        def take(connection: object) -> bool:
            done = connection.execute("SELECT pg_try_advisory_lock(%s)", (key,))  # type: ignore[attr-defined]
            return bool(done.fetchone()[0])

        judge(take(holder), "the lock is refused to its first taker", AGAIN)
        judge(not take(other), "a second session got the same lock", AGAIN)
        holder.execute("SELECT pg_advisory_unlock(%s)", (key,))
        judge(take(other), "the lock is not free after its release", AGAIN)
        other.execute("SELECT pg_advisory_unlock(%s)", (key,))


def test_the_main_door_leads_to_the_primary(facts: Facts, pooler: str) -> None:
    """The main door leads to the primary."""
    with facts.connect(pooler, "elsa_app", "elsa_runtime") as connection:
        recovery = connection.execute("SELECT pg_is_in_recovery()").fetchone()[0]
    judge(not recovery, "it leads to a standby", "see where the name `primary` leads to")


def test_the_readonly_door_leads_to_a_standby(facts: Facts, pooler: str) -> None:
    """The read-only door leads to a standby."""
    if not any(facts.runs(node) for node in facts.standbys()):
        unjudged("no standby runs")

    def led() -> bool:
        with facts.connect(pooler, "elsa_readonly", "elsa_runtime_readonly") as connection:
            return bool(connection.execute("SELECT pg_is_in_recovery()").fetchone()[0])

    # Those that had no standby go on for so long with the primary.
    judge(
        eventually(led, 2 * t.READERS_RETURN_S, step=1),
        "it leads to the primary",
        "`elsapg status` shows whether a standby is healthy",
    )


def _short(reason: str) -> str:
    return reason.rpartition("failed: ")[2][:160]
