"""Configuration as it runs: asked of PostgreSQL, Patroni and PgBouncer, not of their files."""

from __future__ import annotations

from typing import Any

from elsapg.definition import topology as t
from elsapg.definition.parameters import dynamic_configuration
from tests.infra.facts import Facts, judge, none, same

Server = dict[str, list[dict[str, Any]]]
EXTENSIONS = {
    "postgres": {"plpgsql", "pg_stat_statements", "pgaudit", "pg_cron"},
    "elsa_workflows": {"plpgsql", "pg_stat_statements", "pgaudit", "pgcrypto"},
    "elsa_runtime": {"plpgsql", "pg_stat_statements", "pgaudit", "pgcrypto"},
}


def test_parameters_run_as_defined(facts: Facts, node: str) -> None:
    """Every parameter of the stack has its value in the running server."""
    found = facts.server(node)["parameters"]
    none(
        (f"{p['name']} is {p['running']!r}, not {p['value']!r}" for p in found if not p["holds"]),
        "run `elsapg up --refresh`; ALTER SYSTEM and ALTER ROLE postgres may also stand in the way",
    )


def test_no_parameter_waits_for_a_restart(facts: Facts, node: str) -> None:
    """No changed parameter waits for a restart."""
    waiting = [p["name"] for p in facts.server(node)["pending"]]
    # What Patroni gives PostgreSQL as arguments, only Patroni knows.
    told = any(m["name"] == node and m.get("pending_restart") for m in facts.members)
    none(
        waiting or (["Patroni says so"] if told else []),
        f"restart {node}, the standby before the primary: `elsapg status` prints the command",
    )


def test_nothing_was_set_past_patroni(facts: Facts, node: str) -> None:
    """Nobody used ALTER SYSTEM, and every configuration file is free of errors."""
    server = facts.server(node)
    none(
        (f"{p['name']} = {p['setting']} by ALTER SYSTEM" for p in server["auto_conf"]),
        "ALTER SYSTEM RESET it, and put the value into the stack's file (postgres.parameters)",
    )
    none(
        (f"{e['sourcefile']}:{e['sourceline']} {e['error']}" for e in server["file_errors"]),
        "run `elsapg up --refresh`",
    )


def test_data_is_safe_on_disk(facts: Facts, node: str) -> None:
    """Data checksums, fsync and full page writes are on."""
    row = facts.server(node)["server"][0]
    names = ("data_checksums", "fsync", "full_page_writes")
    same(
        {name: row[name] for name in names},
        dict.fromkeys(names, "on"),
        "checksums: make the node afresh; the others: remove them from postgres.parameters",
    )


def test_patroni_runs_as_defined(facts: Facts, node: str) -> None:
    """Patroni's dynamic configuration is the stack's."""
    facts.need(node)
    found = facts.deployment.patroni("/config", node)
    same(
        _flat(found),
        _flat(dynamic_configuration(facts.deployment.settings)),
        "run `elsapg up --refresh`; what was set by patronictl edit-config belongs into the "
        "stack's file",
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def test_patroni_is_not_paused(facts: Facts, node: str) -> None:
    """Patroni manages the node: failover is not switched off."""
    facts.need(node)
    state = facts.deployment.patroni("/patroni", node)
    judge(
        not state.get("pause") and state["state"] == "running",
        f"{node}: state {state['state']}, paused {state.get('pause', False)}",
        "`elsapg status` says what holds it, and the command",
    )


def test_access_rules_are_strict(facts: Facts, node: str) -> None:
    """pg_hba as it runs: no trust, no md5, no connection over the network without TLS."""
    server = facts.server(node)
    none(
        (f"line {r['number']}: {r['error']}" for r in server["hba"] if r["error"]),
        "run `elsapg up --refresh`: an invalid file leaves the rules of before in force",
    )
    judge(server["hba"], "there are no rules", "run `elsapg up --refresh`")
    allowed = {("local", "peer"), ("hostssl", "cert"), ("hostssl", "scram-sha-256")}
    none(
        (
            f"rule {r['number']}: {r['type']} {','.join(r['database'] or [])} "
            f"{','.join(r['user_name'] or [])} {r['method']}"
            for r in server["hba"]
            if r["method"] != "reject" and (r["type"], r["method"]) not in allowed
        ),
        "remove the rule from pg_hba.conf and reload: Patroni writes that file, "
        "`elsapg up --refresh` too",
    )
    last = server["hba"][-1]
    same((last["type"], last["method"]), ("hostnossl", "reject"), "run `elsapg up --refresh`")
    none((e["error"] for e in server["ident_errors"]), "run `elsapg up --refresh`")


def test_every_password_is_scram(facts: Facts, primary: str) -> None:
    """Every stored password is a SCRAM verifier: none is MD5 or clear text."""
    none(
        (
            f"{r['role']} has {r['verifier']}"
            for r in facts.server(primary)["roles"]
            if r["verifier"] not in ("none", "scram-sha-256")
        ),
        "run `elsapg up --refresh`, which sets the stack's passwords again",
    )


def test_extensions_are_there(facts: Facts, any_database: str) -> None:
    """The database has its extensions, and none besides."""
    found = {row["name"] for row in facts.database(any_database)["extensions"]}
    # Another migration may bring its own.
    same(found & EXTENSIONS[any_database], EXTENSIONS[any_database], "run `elsapg up --refresh`")


def test_databases_are_as_defined(facts: Facts, primary: str) -> None:
    """Both databases are elsa_owner's, UTF8, with the builtin C.UTF-8 locale."""
    found = {
        d["database"]: (d["owner"], d["encoding"], d["provider"], d["locale"])
        for d in facts.server(primary)["databases"]
        if d["database"] in t.DATABASES
    }
    wanted = ("elsa_owner", "UTF8", "b", "C.UTF-8")
    same(
        found,
        dict.fromkeys(t.DATABASES, wanted),
        "run `elsapg up --refresh`; a locale needs a dump",
    )


def test_pgbouncer_runs_as_defined(facts: Facts, pooler: str) -> None:
    """PgBouncer's settings in memory are the stack's."""
    s = facts.deployment.settings.pooler
    wanted = {
        "pool_mode": "transaction",
        "max_client_conn": s.max_client_conn,
        "default_pool_size": s.default_pool_size,
        "reserve_pool_size": s.reserve_pool_size,
        "reserve_pool_timeout": s.reserve_pool_timeout,
        "max_prepared_statements": s.max_prepared_statements,
        "auth_type": "hba",
        "auth_user": "pgbouncer_auth",
        "client_tls_sslmode": "require",
        "client_tls_protocols": "tlsv1.3",
        "server_tls_sslmode": "verify-full",
        "server_tls_protocols": "tlsv1.3",
        "server_login_retry": "0.2",
        "server_connect_timeout": "1",
        "admin_users": "",
        "auth_file": "",
    }
    found = {row["key"]: row["value"] for row in facts.show(pooler, "CONFIG")}
    same(
        {key: found.get(key) for key in wanted},
        {key: str(value) for key, value in wanted.items()},
        "run `elsapg up --refresh`; what was SET on the console is gone after a RELOAD",
    )


def test_pgbouncer_serves_both_databases(facts: Facts, pooler: str) -> None:
    """Each database has its transaction, session and read-only door, with its limit."""
    s = facts.deployment.settings.pooler
    writing, reading = (t.PRIMARY_HOST, str(t.PG_PORT)), (t.REPLICA_HOST, str(t.REPLICA_PORT))
    wanted: dict[str, tuple[str, ...]] = {}
    for name in t.DATABASES:
        pooled = str(s.max_db_connections)
        wanted[name] = (*writing, name, "", pooled)
        wanted[f"{name}_readonly"] = (*reading, name, "", str(s.readonly_connections))
        wanted[f"{name}_session"] = (*writing, name, "session", str(s.session_connections))
    wanted["elsapg_auth"] = (*writing, "postgres", "", "1")
    found = {
        d["name"]: (d["host"], d["port"], d["database"], d["pool_mode"], d["max_connections"])
        for d in facts.show(pooler, "DATABASES")
        if d["name"] != "pgbouncer"
    }
    same(found, wanted, "run `elsapg up --refresh`")


def test_every_connection_is_encrypted(facts: Facts, node: str) -> None:
    """Every connection over the network that the server has now is TLS 1.3."""
    none(
        (
            f"{c['usename']} ({c['application_name'] or c['backend_type']}): "
            f"{c['version'] or 'no TLS'}"
            for c in facts.server(node)["connections"]
            if not c["ssl"] or c["version"] != "TLSv1.3"
        ),
        "end that connection, and see how its rule came into pg_hba.conf",
    )
