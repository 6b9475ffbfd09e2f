"""Audit and encryption: the trail is written, whole and without secrets; no key is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable

from tests.infra.facts import Facts, judge, none, same

AGAIN = (
    "run `elsapg up --refresh`, which sets the parameters and applies bootstrap_sql/cluster again"
)
AUDITED = ("elsa_workflows.tenants", "elsa_workflows.users")
# As they must run, whatever the stack's own parameters say; more classes may be logged.
WANTED = {
    "pgaudit.role": "elsa_auditor",
    "pgaudit.log_parameter": "off",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
TRIGGERS = {"pgaudit_ddl_command_end", "pgaudit_sql_drop"}


def test_audit_is_on(facts: Facts, node: str) -> None:
    """DDL and role changes are audited, and no statement's parameters get into the log."""
    found = {p["name"]: p["running"] for p in facts.server(node)["parameters"]}
    same({name: found.get(name) for name in WANTED}, WANTED, AGAIN)
    classes = {word.strip() for word in str(found.get("pgaudit.log")).split(",")}
    none(
        (f"pgaudit.log lacks {c}" for c in {"ddl", "role"} - classes if "all" not in classes), AGAIN
    )
    none((f"pgaudit.log excludes {c}" for c in classes if c in ("-ddl", "-role")), AGAIN)


def test_ddl_is_told_with_its_objects(facts: Facts, database: str) -> None:
    """pgaudit's event triggers, which name the objects of DDL, are enabled."""
    found = {g["trigger"] for g in facts.database(database)["guards"] if g["enabled"] in ("O", "A")}
    same(found & TRIGGERS, TRIGGERS, f"ALTER EVENT TRIGGER … ENABLE; {AGAIN}")


def test_writes_to_users_are_audited(facts: Facts) -> None:
    """Every INSERT, UPDATE and DELETE on users and tenants is audited, whoever makes it."""
    grants = {r["relation"]: set(r["grants"]) for r in facts.database("elsa_workflows")["tables"]}
    wanted = {f"elsa_auditor {right}" for right in ("INSERT", "UPDATE", "DELETE")}
    for table in AUDITED:
        same(grants.get(table, set()) & wanted, wanted, f"{table}: {AGAIN}")


def test_nobody_is_exempt(facts: Facts, primary: str) -> None:
    """No role and no database has audit settings of its own."""
    none(
        _settings(facts, primary, "pgaudit."),
        f"ALTER ROLE (or DATABASE) … RESET it: what it hid is not in the trail; {AGAIN}",
    )


def test_the_trail_is_written(facts: Facts, primary: str) -> None:
    """An audited act shows in the server's log at once."""
    # A temporary table: gone with the session, never replicated.
    name = f"elsapg_audit_{uuid.uuid4().hex}"
    facts.deployment.query(primary, f"CREATE TEMPORARY TABLE {name} ()")
    deadline = time.monotonic() + 30
    while not any(
        name in line and "AUDIT: SESSION" in line and "DDL,CREATE TABLE" in line
        for line in facts.backend.logs(primary).splitlines()
    ):
        judge(
            time.monotonic() < deadline,
            f"CREATE TABLE on {primary} left no line in its log",
            f"see that pgaudit is in shared_preload_libraries; {AGAIN}",
        )
        time.sleep(0.2)


def test_encryption_can_be_used(facts: Facts, database: str) -> None:
    """pgcrypto, which elsa_crypto works with, is there."""
    found = {row["name"] for row in facts.database(database)["extensions"]}
    judge("pgcrypto" in found, f"{database} lacks pgcrypto", AGAIN)


def test_no_key_is_stored_in_the_database(facts: Facts, primary: str) -> None:
    """No role and no database has encryption keys as a setting: everybody could read them."""
    none(
        (found.partition("=")[0] for found in _settings(facts, primary, "app.encryption_keys")),
        "ALTER ROLE (or DATABASE) … RESET app.encryption_keys, and replace the keys: "
        "docs/encryption.md, 'A new key'",
    )


def _settings(facts: Facts, node: str, prefix: str) -> Iterable[str]:
    return (
        f"{r['role'] or 'every role'} in {r['database'] or 'every database'}: {r['setting']}"
        for r in facts.server(node)["role_settings"]
        if r["setting"].startswith(prefix)
    )
