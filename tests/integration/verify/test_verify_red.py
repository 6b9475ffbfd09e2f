"""Every kind of check can fail: a stack is broken in one way, and exactly those checks go red.

Then it is mended. What were not mended would show in the next proof of the same group, which
names every red check, and in the last test, where everything is green.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from elsapg.definition import topology as t
from elsapg.services import status
from elsapg.services.deployment import Deployment
from elsapg.services.verify import Verification, settled, verify, write_report
from elsapg.targets.docker import daemon as d
from tests.chaos.faults import wait_for
from tests.stacks import inside

pytestmark = [pytest.mark.docker, pytest.mark.slow]

TABLE = "elsa_workflows.workflow_definitions"
POLICY_FILE = "bootstrap_sql/elsa_workflows/0001_workflow_definitions.sql"
POOLER = "pgbouncer-1"


class Stack:
    """A running stack, and the means to break it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @property
    def primary(self) -> str:
        return self.deployment.primary()

    @property
    def standby(self) -> str:
        return next(node for node in self.deployment.nodes if node != self.primary)

    def sql(self, *statements: str, database: str = "postgres", node: str = "") -> list[list[str]]:
        rows: list[list[str]] = []
        for statement in statements:
            rows = self.deployment.query(node or self.primary, statement, database)
        return rows

    def root(self, unit: str, *command: str) -> str:
        """Run a command in a unit as root."""
        return inside(self.deployment, unit, *command, user="0:0")

    def write(self, unit: str, files: dict[str, str]) -> None:
        """Write files below /etc/elsapg as `elsapg up` would."""
        entries = [{"path": p, "content": c, "mode": 0o640} for p, c in files.items()]
        with d.daemon() as client:
            container = client.containers.get(self.deployment.hosts.physical(unit))
            assert container.put_archive(t.CONFIG_DIR, d.archive(entries, t.UID))

    def read(self, unit: str, path: str) -> str:
        return self.root(unit, "cat", f"{t.CONFIG_DIR}/{path}")

    def signal(self, unit: str, name: str) -> None:
        with d.daemon() as client:
            client.containers.get(self.deployment.hosts.physical(unit)).kill(signal=name)

    def stop(self, unit: str) -> None:
        with d.daemon() as client:
            client.containers.get(self.deployment.hosts.physical(unit)).stop(timeout=30)

    def start(self, unit: str) -> None:
        with d.daemon() as client:
            client.containers.get(self.deployment.hosts.physical(unit)).start()

    def limit(self, unit: str, megabytes: int) -> None:
        with d.daemon() as client:
            client.containers.get(self.deployment.hosts.physical(unit)).update(
                mem_limit=f"{megabytes}m", memswap_limit=f"{megabytes}m"
            )

    def patch(self, change: dict[str, object]) -> None:
        """Change Patroni's dynamic configuration as an operator could, past the stack's file."""
        tls = f"{t.CONFIG_DIR}/tls"
        node = self.primary
        done = self.deployment.hosts.run(
            node, "curl", "-sSf", "--cacert", f"{tls}/ca.crt", "--cert", f"{tls}/server.crt",
            "--key", f"{tls}/server.key", "-X", "PATCH", "-d", json.dumps(change),
            f"https://{node}:{t.PATRONI_PORT}/config",
        )  # fmt: skip
        assert done.code == 0, done.output
        # Every node has looked again since, and once more: what it saw is in force.
        looked = time.time() + self.deployment.settings.patroni.loop_wait
        _until(
            lambda: all(
                float(self.deployment.patroni("/patroni", n)["dcs_last_seen"]) > looked
                for n in self.deployment.nodes
            )
        )

    def console(self, pooler: str, command: str) -> None:
        self.deployment.pooler_console(pooler, command)

    def verify(self, *only: str) -> Verification:
        found = verify(self.deployment, only)
        assert not found.broken, found.broken
        return found


@pytest.fixture(scope="package")
def broken(stack: Deployment) -> Stack:
    return Stack(stack)


def labels(found: Verification) -> set[str]:
    return {f"{check.group}: {check.label}" for check in found.failures}


Break = Callable[[Stack], "contextlib.AbstractContextManager[None]"]
Expected = Callable[[Stack], set[str]]


@dataclass(frozen=True)
class Breakage:
    """A way to break a stack, the groups of checks to run, and those that must go red."""

    name: str
    groups: tuple[str, ...]
    red: Expected
    breaks: Break


BREAKAGES: list[Breakage] = []


def breakage(
    *groups: str, red: set[str] | Expected
) -> Callable[[Callable[[Stack], Iterator[None]]], None]:
    """Register a generator that breaks the stack, yields, and mends it."""

    def register(function: Callable[[Stack], Iterator[None]]) -> None:
        expected = red if callable(red) else lambda _stack: red
        name = function.__name__.replace("_", "-")
        BREAKAGES.append(Breakage(name, groups, expected, contextlib.contextmanager(function)))

    return register


def sql_breakage(
    name: str, *groups: str, red: set[str], breaks: str, mends: str, database: str = "postgres"
) -> None:
    def function(stack: Stack) -> Iterator[None]:
        stack.sql(breaks, database=database)
        try:
            yield
        finally:
            stack.sql(mends, database=database)

    function.__name__ = name
    breakage(*groups, red=red)(function)


# -- archive -----------------------------------------------------------------------------------


@breakage(
    "archive",
    "configuration",
    red=lambda stack: {
        "archive: test_a_segment_written_now_reaches_s3",
        "archive: test_the_archive_lists_that_segment",
        "archive: test_archiving_does_not_fail",
        f"configuration: test_parameters_run_as_defined[{stack.primary}]",
        f"configuration: test_nothing_was_set_past_patroni[{stack.primary}]",
    },
)
def archiver_stopped(stack: Stack) -> Iterator[None]:
    node = stack.primary
    stack.sql("ALTER SYSTEM SET archive_command = '/bin/false'", "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        reset = "ALTER SYSTEM RESET archive_command"
        stack.sql(reset, "SELECT pg_reload_conf()", node=node)


# -- tenants -----------------------------------------------------------------------------------


@breakage(
    "tenants",
    red={
        "tenants: test_policies_compare_the_tenant[elsa_workflows]",
        "tenants: test_a_tenant_sees_its_own_rows_only",
    },
)
def policy_dropped(stack: Stack) -> Iterator[None]:
    text = (stack.deployment.root / POLICY_FILE).read_text(encoding="utf-8")
    policy = text[text.index("CREATE POLICY tenant_isolation") :].partition(";")[0]
    stack.sql(f"DROP POLICY tenant_isolation ON {TABLE}", database="elsa_workflows")
    try:
        yield
    finally:
        stack.sql(policy, database="elsa_workflows")


sql_breakage(
    "row_security_not_forced",
    "tenants",
    red={"tenants: test_row_security_is_forced[elsa_workflows]"},
    breaks=f"ALTER TABLE {TABLE} NO FORCE ROW LEVEL SECURITY",
    mends=f"ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY",
    database="elsa_workflows",
)
sql_breakage(
    "row_security_off",
    "tenants",
    red={
        "tenants: test_row_security_is_forced[elsa_workflows]",
        "tenants: test_a_tenant_sees_its_own_rows_only",
        "tenants: test_without_a_tenant_nothing_is_seen",
        "tenants: test_a_tenant_cannot_write_for_another",
    },
    breaks=f"ALTER TABLE {TABLE} DISABLE ROW LEVEL SECURITY",
    mends=f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY",
    database="elsa_workflows",
)
sql_breakage(
    "policy_for_everybody",
    "tenants",
    red={
        "tenants: test_nobody_sees_all_but_administration[elsa_workflows]",
        "tenants: test_a_tenant_sees_its_own_rows_only",
        "tenants: test_without_a_tenant_nothing_is_seen",
    },
    breaks=f"CREATE POLICY report ON {TABLE} FOR SELECT TO elsa_app USING (true)",
    mends=f"DROP POLICY report ON {TABLE}",
    database="elsa_workflows",
)
sql_breakage(
    "partition_opened",
    "tenants",
    red={
        "tenants: test_partitions_have_no_rights[elsa_workflows]",
        "tenants: test_the_guard_of_partitions_is_on[elsa_workflows]",
        "tenants: test_a_partition_cannot_be_read_directly",
    },
    breaks="ALTER EVENT TRIGGER elsapg_guard_partitions DISABLE;"
    f" GRANT SELECT ON {TABLE}_default TO elsa_user",
    mends=f"REVOKE ALL ON {TABLE}_default FROM elsa_user;"
    " ALTER EVENT TRIGGER elsapg_guard_partitions ENABLE",
    database="elsa_workflows",
)

sql_breakage(
    "view_with_its_owners_eyes",
    "tenants",
    red={"tenants: test_views_see_with_their_readers_eyes[elsa_workflows]"},
    breaks="CREATE VIEW public.report AS SELECT id FROM elsa_workflows.bookmarks;"
    " GRANT SELECT ON public.report TO elsa_readonly",
    mends="DROP VIEW public.report",
    database="elsa_workflows",
)
sql_breakage(
    "role_that_brings_a_tenant",
    "tenants",
    "audit",
    red={
        "tenants: test_no_role_or_database_brings_a_tenant_along",
        "audit: test_nobody_is_exempt",
        "audit: test_no_key_is_stored_in_the_database",
    },
    breaks="ALTER ROLE elsa_jobs SET app.current_tenant_id = 'a';"
    " ALTER ROLE elsa_jobs SET app.encryption_keys = 'x';"
    " ALTER ROLE elsa_jobs SET pgaudit.log = 'none'",
    mends="ALTER ROLE elsa_jobs RESET app.current_tenant_id;"
    " ALTER ROLE elsa_jobs RESET app.encryption_keys;"
    " ALTER ROLE elsa_jobs RESET pgaudit.log",
)
sql_breakage(
    "large_objects_for_everybody",
    "tenants",
    red={"tenants: test_there_are_no_large_objects[elsa_runtime]"},
    breaks="GRANT EXECUTE ON FUNCTION lo_creat(integer) TO PUBLIC",
    mends="REVOKE EXECUTE ON FUNCTION lo_creat(integer) FROM PUBLIC",
    database="elsa_runtime",
)
sql_breakage(
    "row_security_of_elsa_in_part",
    "tenants",
    red={"tenants: test_elsas_own_tables_are_all_isolated_or_none"},
    breaks='CREATE TABLE "Elsa"."A" ("TenantId" text); CREATE TABLE "Elsa"."B" ("TenantId" text);'
    ' ALTER TABLE "Elsa"."A" ENABLE ROW LEVEL SECURITY',
    mends='DROP TABLE "Elsa"."A", "Elsa"."B"',
    database="elsa_workflows",
)


@breakage("tenants", red={f"tenants: test_a_session_leaves_nothing_in_the_pool[{POOLER}]"})
def sessions_not_cleaned(stack: Stack) -> Iterator[None]:
    stack.console(POOLER, "SET server_reset_query_always = 0")
    try:
        yield
    finally:
        # What was left in the sessions goes with them.
        stack.console(POOLER, "SET server_reset_query_always = 1")
        stack.console(POOLER, "RECONNECT")


# -- audit, monitoring, partitions -------------------------------------------------------------

sql_breakage(
    "users_not_audited",
    "audit",
    red={
        "audit: test_writes_to_users_are_audited",
        "audit: test_ddl_is_told_with_its_objects[elsa_workflows]",
    },
    breaks="REVOKE UPDATE ON elsa_workflows.users FROM elsa_auditor;"
    " ALTER EVENT TRIGGER pgaudit_sql_drop DISABLE",
    mends="GRANT UPDATE ON elsa_workflows.users TO elsa_auditor;"
    " ALTER EVENT TRIGGER pgaudit_sql_drop ENABLE",
    database="elsa_workflows",
)
sql_breakage(
    "monitoring_sees_too_much",
    "monitoring",
    red={
        "monitoring: test_views_show_what_their_reader_may_see[elsa_workflows]",
        "monitoring: test_monitoring_reads_no_data",
        "monitoring: test_conditions_on_json_can_use_their_indexes",
    },
    breaks="GRANT SELECT (workflow_state) ON elsa_workflows.workflow_instances TO monitoring;"
    " ALTER VIEW monitoring.active_workflows RESET (security_invoker);"
    " ALTER FUNCTION jsonb_contains(jsonb, jsonb) NOT LEAKPROOF",
    mends="REVOKE SELECT (workflow_state) ON elsa_workflows.workflow_instances FROM monitoring;"
    " ALTER VIEW monitoring.active_workflows SET (security_invoker = true);"
    " ALTER FUNCTION jsonb_contains(jsonb, jsonb) LEAKPROOF",
    database="elsa_workflows",
)
sql_breakage(
    "view_gone",
    "monitoring",
    red={"monitoring: test_the_views_answer[elsa_workflows]"},
    breaks="ALTER VIEW monitoring.slow_activities RENAME TO gone",
    mends="ALTER VIEW monitoring.gone RENAME TO slow_activities",
    database="elsa_workflows",
)


@breakage(
    "partitions",
    red={
        "partitions: test_months_are_there_ahead",
        "partitions: test_no_row_lies_outside_all_months",
    },
)
def months_gone(stack: Stack) -> Iterator[None]:
    insert = (
        "INSERT INTO elsa_workflows.workflow_instances"
        " (id, definition_id, definition_version, workflow_state, status, created_at)"
        " VALUES ('elsapg-verify', 'd', 1, '{}', 'Running', '2001-01-01')"
    )
    [[month]] = stack.sql(
        "SELECT to_regclass('elsa_workflows.activity_execution_records'"
        " || to_char(now() AT TIME ZONE 'UTC', '_YYYY_MM'))",
        database="elsa_workflows",
    )
    stack.sql(insert, f"DROP TABLE {month}", database="elsa_workflows")
    try:
        yield
    finally:
        stack.sql(
            # As `status` and the check say: the row gets its month, so that it can be dropped.
            "SELECT elsa_workflows.create_stray_months()",
            "DROP TABLE elsa_workflows.workflow_instances_2001_01",
            "DELETE FROM elsa_workflows.workflow_instance_keys WHERE id = 'elsapg-verify'",
            "SELECT elsa_workflows.create_monthly_partitions()",
            database="elsa_workflows",
        )


# -- roles and rights --------------------------------------------------------------------------

sql_breakage(
    "public_may_connect",
    "roles",
    red={"roles: test_public_has_no_rights_on_databases"},
    breaks="GRANT CONNECT ON DATABASE elsa_workflows TO PUBLIC",
    mends="REVOKE CONNECT ON DATABASE elsa_workflows FROM PUBLIC",
)
sql_breakage(
    "another_superuser",
    "roles",
    red={"roles: test_only_postgres_is_superuser"},
    breaks="ALTER ROLE elsa_worker SUPERUSER",
    mends="ALTER ROLE elsa_worker NOSUPERUSER",
)
sql_breakage(
    "stranger",
    "roles",
    red={"roles: test_roles_are_the_expected"},
    breaks="CREATE ROLE intern LOGIN",
    mends="DROP ROLE intern",
)
sql_breakage(
    "membership_of_the_owner",
    "roles",
    red={"roles: test_memberships_are_the_expected"},
    breaks="GRANT elsa_owner TO elsa_app",
    mends="REVOKE elsa_owner FROM elsa_app",
)
sql_breakage(
    "verifiers_told",
    "roles",
    red={"roles: test_only_pgbouncer_reads_verifiers"},
    breaks="GRANT EXECUTE ON FUNCTION pgbouncer.get_auth(text) TO monitoring",
    mends="REVOKE EXECUTE ON FUNCTION pgbouncer.get_auth(text) FROM monitoring",
)
sql_breakage(
    "definer_without_a_path",
    "roles",
    red={"roles: test_definer_functions_have_a_fixed_path[elsa_runtime]"},
    breaks="CREATE FUNCTION elsa_runtime.oops() RETURNS int LANGUAGE sql SECURITY DEFINER"
    " AS 'SELECT 1'",
    mends="DROP FUNCTION elsa_runtime.oops()",
    database="elsa_runtime",
)
sql_breakage(
    "no_timeout",
    "roles",
    red={"roles: test_clients_have_timeouts"},
    breaks="ALTER ROLE elsa_app RESET statement_timeout",
    mends="ALTER ROLE elsa_app SET statement_timeout = '60s'",
)


# -- configuration -----------------------------------------------------------------------------


@breakage(
    "configuration",
    red=lambda stack: {f"configuration: test_access_rules_are_strict[{stack.primary}]"},
)
def trust_rule(stack: Stack) -> Iterator[None]:
    node = stack.primary
    path = f"{t.PGDATA}/pg_hba.conf"
    run = stack.deployment.hosts.run
    assert run(node, "sed", "-i", "1i host all all 127.0.0.1/32 trust", path).code == 0
    stack.sql("SELECT pg_reload_conf()", node=node)
    try:
        yield
    finally:
        assert run(node, "sed", "-i", "/trust$/d", path).code == 0
        stack.sql("SELECT pg_reload_conf()", node=node)


@breakage(
    "configuration",
    "pooler",
    red={
        "configuration: test_every_password_is_scram",
        "pooler: test_every_role_gets_in[pgbouncer-1]",
        "pooler: test_every_role_gets_in[pgbouncer-2]",
    },
)
def md5_password(stack: Stack) -> Iterator[None]:
    # Kept on the server: a verifier has no business in a test's output.
    stack.sql("CREATE TABLE public.kept AS SELECT rolpassword FROM pg_authid"
              " WHERE rolname = 'monitoring'")  # fmt: skip
    stack.sql(f"ALTER ROLE monitoring PASSWORD 'md5{'0' * 32}'")
    try:
        yield
    finally:
        stack.sql(
            "DO $$ BEGIN EXECUTE (SELECT format('ALTER ROLE monitoring PASSWORD %L', rolpassword)"
            " FROM public.kept); END $$",
            "DROP TABLE public.kept",
        )


@breakage(
    "configuration",
    red=lambda stack: {
        f"configuration: test_{name}[{node}]"
        for name in ("no_parameter_waits_for_a_restart", "patroni_runs_as_defined")
        for node in stack.deployment.nodes
    },
)
def restart_pending(stack: Stack) -> Iterator[None]:
    wanted = stack.deployment.patroni("/config")["postgresql"]["parameters"]["shared_buffers"]
    stack.patch({"postgresql": {"parameters": {"shared_buffers": "160MB"}}})
    try:
        yield
    finally:
        stack.patch({"postgresql": {"parameters": {"shared_buffers": wanted}}})


@breakage(
    "configuration",
    red=lambda stack: {
        f"configuration: test_{name}[{node}]"
        for name in ("patroni_is_not_paused", "patroni_runs_as_defined")
        for node in stack.deployment.nodes
    },
)
def failover_switched_off(stack: Stack) -> Iterator[None]:
    stack.patch({"pause": True})
    try:
        yield
    finally:
        stack.patch({"pause": None})


@breakage(
    "configuration",
    red=lambda stack: {
        f"configuration: test_{name}[{node}]"
        for name in ("parameters_run_as_defined", "patroni_runs_as_defined")
        for node in stack.deployment.nodes
    },
)
def parameter_changed(stack: Stack) -> Iterator[None]:
    wanted = stack.deployment.patroni("/config")["postgresql"]["parameters"]["work_mem"]
    stack.patch({"postgresql": {"parameters": {"work_mem": "3MB"}}})
    try:
        yield
    finally:
        stack.patch({"postgresql": {"parameters": {"work_mem": wanted}}})


sql_breakage(
    "extension_dropped",
    "configuration",
    red={"configuration: test_extensions_are_there[elsa_runtime]"},
    breaks="DROP EXTENSION pgaudit",
    mends="CREATE EXTENSION pgaudit SCHEMA public",
    database="elsa_runtime",
)


@breakage("configuration", red={f"configuration: test_pgbouncer_runs_as_defined[{POOLER}]"})
def pooler_set_by_hand(stack: Stack) -> Iterator[None]:
    stack.console(POOLER, "SET server_login_retry = 15")
    try:
        yield
    finally:
        stack.console(POOLER, "RELOAD")


# -- the rest ----------------------------------------------------------------------------------


@breakage("files", red={f"files: test_configuration_is_roots_and_private[{POOLER}]"})
def key_readable_by_all(stack: Stack) -> Iterator[None]:
    path = f"{t.CONFIG_DIR}/tls/server.key"
    stack.root(POOLER, "chmod", "0644", path)
    try:
        yield
    finally:
        stack.root(POOLER, "chmod", "0640", path)


@breakage("files", red=lambda stack: {f"files: test_data_directory_is_private[{stack.standby}]"})
def data_directory_opened(stack: Stack) -> Iterator[None]:
    node = stack.standby
    stack.deployment.hosts.run(node, "chmod", "0750", t.PGDATA)
    try:
        yield
    finally:
        stack.deployment.hosts.run(node, "chmod", "0700", t.PGDATA)


@breakage("processes", red={f"processes: test_its_memory_is_limited[{POOLER}]"})
def memory_limit_raised(stack: Stack) -> Iterator[None]:
    stack.limit(POOLER, 512)
    try:
        yield
    finally:
        stack.limit(POOLER, 256)


@breakage(
    "processes",
    "replication",
    red=lambda stack: {
        f"processes: test_every_unit_runs[{stack.standby}]",
        "replication: test_every_node_is_a_member",
        "replication: test_every_standby_streams",
        "replication: test_commits_wait_for_a_standby",
        "replication: test_slots_keep_the_wal_that_standbys_need",
    },
)
def standby_stopped(stack: Stack) -> Iterator[None]:
    node = stack.standby
    stack.stop(node)
    # Commits wait for the standby until Patroni has taken it off the list.
    _until(lambda: stack.sql("SHOW synchronous_standby_names", node=stack.primary) in ([], [[""]]))
    try:
        yield
    finally:
        stack.start(node)
        _until(
            lambda: (
                stack.sql("SELECT sync_state FROM pg_stat_replication", node=stack.primary)
                == [["sync"]]
            )
        )
        _until(lambda: {m["state"] for m in stack.deployment.members()} == {"running", "streaming"})


@breakage("processes", "archive", red={"processes: test_every_unit_runs[runner]"})
def runner_stopped(stack: Stack) -> Iterator[None]:
    stack.stop("runner")
    try:
        yield
    finally:
        stack.start("runner")


@breakage("processes", red={"processes: test_every_unit_runs[s3]"})
def s3_stopped(stack: Stack) -> Iterator[None]:
    stack.stop("s3")
    try:
        yield
    finally:
        stack.start("s3")


@breakage("jobs", red={"jobs: test_every_job_is_scheduled_and_active"})
def job_switched_off(stack: Stack) -> Iterator[None]:
    alter = "UPDATE cron.job SET active = {} WHERE jobname = 'elsapg-heartbeat'"
    stack.sql(alter.format("false"))
    try:
        yield
    finally:
        stack.sql(alter.format("true"))


@breakage(
    "audit",
    red=lambda stack: {
        f"audit: test_audit_is_on[{stack.primary}]",
        "audit: test_the_trail_is_written",
    },
)
def audit_switched_off(stack: Stack) -> Iterator[None]:
    node = stack.primary
    stack.sql("ALTER SYSTEM SET pgaudit.log = 'none'", "SELECT pg_reload_conf()")
    _until(lambda: stack.sql("SHOW pgaudit.log", node=node) == [["none"]])
    try:
        yield
    finally:
        stack.sql("ALTER SYSTEM RESET pgaudit.log", "SELECT pg_reload_conf()", node=node)
        _until(lambda: stack.sql("SHOW pgaudit.log", node=node) != [["none"]])


# Renamed, not dropped: elsa_crypto's functions would go with it.
sql_breakage(
    "pgcrypto_missing",
    "audit",
    red={"audit: test_encryption_can_be_used[elsa_runtime]"},
    breaks="UPDATE pg_extension SET extname = 'pgcrypto_hidden' WHERE extname = 'pgcrypto'",
    mends="UPDATE pg_extension SET extname = 'pgcrypto' WHERE extname = 'pgcrypto_hidden'",
    database="elsa_runtime",
)


# -- recovery ----------------------------------------------------------------------------------

sql_breakage(
    "record_gone",
    "recovery",
    red={"recovery: test_the_record_is_kept"},
    breaks="ALTER TABLE recovery.run RENAME TO gone",
    mends="ALTER TABLE recovery.gone RENAME TO run",
)


@breakage("recovery", red={"recovery: test_the_record_is_kept"})
def pgbackrest_does_not_answer(stack: Stack) -> Iterator[None]:
    node, path = stack.primary, "pgbackrest.conf"
    own = stack.read(node, path)
    stack.write(node, {path: own.replace("repo1-type=s3", "repo1-type=tape")})
    try:
        yield
    finally:
        stack.write(node, {path: own})


@breakage("recovery", red={"recovery: test_no_replay_is_held"})
def replay_held(stack: Stack) -> Iterator[None]:
    node = stack.standby
    # Patroni would let it go on at once.
    stack.patch({"pause": True})
    stack.sql("SELECT pg_wal_replay_pause()", node=node)
    try:
        yield
        # What the check says to do, word for word.
        [check] = stack.verify("recovery").failures
        assert check.found == f"the replay of {node} is paused"
        statement, _, where = check.todo.partition(" on ")
        assert where == node
        stack.sql(statement, node=node)
        assert stack.verify("recovery").green
    finally:
        stack.sql("SELECT pg_wal_replay_resume()", node=node)
        stack.patch({"pause": None})


@breakage("pooler", red={f"pooler: test_nothing_is_paused[{POOLER}]"})
def pool_paused(stack: Stack) -> Iterator[None]:
    stack.console(POOLER, "PAUSE elsa_runtime")
    try:
        yield
    finally:
        stack.console(POOLER, "RESUME elsa_runtime")


@breakage("pooler", red={f"pooler: test_it_may_open_enough_files[{POOLER}]"})
def few_files(stack: Stack) -> Iterator[None]:
    """As a container begins with containerd 2 or Docker 29."""
    run, one = stack.deployment.hosts.run, ("prlimit", "--pid", "1")
    before = run(POOLER, *one, "--nofile", "--output", "SOFT", "--noheadings").output.strip()
    assert run(POOLER, *one, "--nofile=1024:").code == 0
    try:
        yield
    finally:
        assert run(POOLER, *one, f"--nofile={before}:").code == 0


sql_breakage(
    "applied_migration_differs",
    "bootstrap",
    red={"bootstrap: test_no_migration_was_edited[elsa_runtime]"},
    breaks="CREATE TABLE public.kept AS SELECT version, sha256 FROM elsapg.schema_migration;"
    " UPDATE elsapg.schema_migration SET sha256 = repeat('0', 64) WHERE version = 1",
    mends="UPDATE elsapg.schema_migration AS m SET sha256 = k.sha256"
    " FROM public.kept AS k WHERE k.version = m.version; DROP TABLE public.kept",
    database="elsa_runtime",
)


def _stranger(names: list[str], days: int) -> dict[str, str]:
    """A certificate for the right names, signed by nobody whom the stack trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, POOLER)])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n)
        for n in names
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    return {
        "tls/server.crt": certificate.public_bytes(encoding).decode(),
        "tls/server.key": key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    }


def _other_certificate(stack: Stack, days: int, *, reload: bool) -> Iterator[None]:
    own = {path: stack.read(POOLER, path) for path in ("tls/server.crt", "tls/server.key")}
    stack.write(POOLER, _stranger([POOLER, "pgbouncer", "localhost", "127.0.0.1"], days))
    if reload:
        stack.signal(POOLER, "SIGHUP")
    try:
        yield
    finally:
        stack.write(POOLER, own)
        stack.signal(POOLER, "SIGHUP")


@breakage(
    "tls",
    red={
        f"tls: test_clients_get_verified_tls_1_3[{POOLER}]",
        "tls: test_every_port_is_verified_by_the_ca",
    },
)
def foreign_certificate(stack: Stack) -> Iterator[None]:
    yield from _other_certificate(stack, 365, reload=True)


@breakage(
    "tls",
    red={
        f"tls: test_no_certificate_nears_its_end[{POOLER}]",
        "tls: test_what_is_served_is_what_was_deployed",
    },
)
def ending_certificate_not_loaded(stack: Stack) -> Iterator[None]:
    yield from _other_certificate(stack, 3, reload=False)


def _until(true: Callable[[], bool], seconds: float = 180) -> None:
    wait_for(true, "what was waited for is so", seconds, 0.5)


# -- the proofs --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", BREAKAGES, ids=lambda way: way.name)
def test_exactly_the_right_checks_go_red(broken: Stack, way: Breakage) -> None:
    expected = way.red(broken)
    with way.breaks(broken):
        found = broken.verify(*way.groups)
        if labels(found) != expected:  # a busy machine: once more
            found = broken.verify(*way.groups)
    assert labels(found) == expected, [(c.label, c.found, c.trace[-600:]) for c in found.failures]
    assert not found.green
    for check in found.failures:
        assert check.claim
        assert check.found
        assert check.todo
        assert "Error" not in check.found.partition(":")[0]
        assert "Timeout" not in check.found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ending-certificate-not-loaded", f"of {POOLER} ends on "),
        ("months-gone", "activity_execution_records has partitions for "),
    ],
)
def test_status_tells_what_does_not_show_yet(broken: Stack, name: str, told: str) -> None:
    [way] = [w for w in BREAKAGES if w.name == name]
    with way.breaks(broken):
        found = status.gather(broken.deployment).problems
    assert any(told in problem for problem in found), found


def test_afterwards_everything_is_green(broken: Stack, tmp_path: Path) -> None:
    found = settled(broken.deployment, 60)
    assert found.green, [(c.label, c.found) for c in (*found.failures, *found.unjudged)]
    folder = write_report(found, tmp_path / "report", broken.deployment.root)
    passwords = dict(broken.deployment.outputs["passwords"]).values()
    for name in ("junit.xml", "report.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "test_every_unit_runs" in text or "The unit runs." in text
        assert not [p for p in passwords if p in text]
