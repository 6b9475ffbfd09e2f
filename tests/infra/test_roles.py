"""Roles and rights: who exists, who may do what, and that PUBLIC may do nothing."""

from __future__ import annotations

from elsapg.definition import topology as t
from tests.infra.facts import Facts, none, same

AGAIN = "run `elsapg up --refresh`, which applies bootstrap_sql/cluster again"
UNLIMITED = -1
# role: login, replication, bypasses row-level security, connection limit, kind of password
ROLES = {
    "elsa_owner": (False, False, False, UNLIMITED, "none"),
    "elsa_user": (False, False, False, UNLIMITED, "none"),
    "elsa_maintenance": (False, False, True, UNLIMITED, "none"),
    "elsa_auditor": (False, False, False, UNLIMITED, "none"),
    "elsa_migrator": (True, False, False, UNLIMITED, "scram-sha-256"),
    "elsa_app": (True, False, False, UNLIMITED, "scram-sha-256"),
    "elsa_worker": (True, False, False, UNLIMITED, "scram-sha-256"),
    "elsa_readonly": (True, False, False, UNLIMITED, "scram-sha-256"),
    "elsa_host": (True, False, False, UNLIMITED, "scram-sha-256"),
    "elsa_admin": (True, False, False, UNLIMITED, "scram-sha-256"),
    "elsa_jobs": (True, False, False, UNLIMITED, "none"),
    "monitoring": (True, False, False, 10, "scram-sha-256"),
    "backup": (True, False, True, 16, "none"),
    "replicator": (True, True, False, UNLIMITED, "none"),
    "rewind": (True, False, False, 10, "none"),
    "pgbouncer_auth": (True, False, False, 64, "none"),
}
MEMBERSHIPS = {
    "elsa_migrator in elsa_owner",
    "elsa_app in elsa_user",
    "elsa_maintenance in elsa_owner",
    "elsa_host in elsa_user",
    "elsa_admin in elsa_user",
    "elsa_admin in elsa_host",
    "monitoring in pg_monitor",
    "backup in pg_read_all_data",
    "backup in pg_read_all_settings",
    "backup in pg_checkpoint",
}
APPLICATION = {"elsa_user", "elsa_migrator", "elsa_worker", "elsa_readonly"}
SERVICES = {"monitoring", "backup", "elsa_jobs"}
CONNECT = {
    "postgres": {"rewind", "pgbouncer_auth", *SERVICES},
    "elsa_workflows": APPLICATION | SERVICES,
    "elsa_runtime": APPLICATION | SERVICES,
}
TIMEOUTS = {"elsa_app", "elsa_worker", "elsa_readonly", "elsa_host", "elsa_admin", "monitoring"}


def test_only_postgres_is_superuser(facts: Facts, primary: str) -> None:
    """postgres is the only superuser, and nobody else can create roles or databases."""
    none(
        (
            f"{r['role']} may "
            + ("do everything" if r["superuser"] else "create roles or databases")
            for r in facts.server(primary)["roles"]
            if r["role"] != "postgres" and (r["superuser"] or r["createrole"] or r["createdb"])
        ),
        f"ALTER ROLE … NOSUPERUSER NOCREATEROLE NOCREATEDB; {AGAIN}",
    )


def test_roles_are_the_expected(facts: Facts, primary: str) -> None:
    """Exactly the expected roles exist, each with its attributes and kind of password."""
    found = {
        r["role"]: (r["login"], r["replication"], r["bypassrls"], r["connections"], r["verifier"])
        for r in facts.server(primary)["roles"]
        # A verifier that is no SCRAM one is another check's finding.
        if r["role"] != "postgres"
    }
    for role, told in found.items():
        if told[4] not in ("none", "scram-sha-256"):
            found[role] = (*told[:4], "scram-sha-256")
    same(found, ROLES, f"DROP ROLE whom nobody knows; {AGAIN}")


def test_memberships_are_the_expected(facts: Facts, primary: str) -> None:
    """Nobody is a member of a role that gives more than planned, or may pass one on."""
    rows = facts.server(primary)["memberships"]
    same({f"{m['member']} in {m['role']}" for m in rows}, MEMBERSHIPS, f"REVOKE it; {AGAIN}")
    none((f"{m['member']} may grant {m['role']}" for m in rows if m["admin"]), AGAIN)


def test_public_has_no_rights_on_databases(facts: Facts, primary: str) -> None:
    """PUBLIC may neither connect to a database nor make temporary tables in it."""
    none(
        (
            f"PUBLIC may {r['privilege']} on {r['database']}"
            for r in facts.server(primary)["database_rights"]
            if r["grantee"] == "PUBLIC" and r["database"] != "template0"
        ),
        f"REVOKE ALL ON DATABASE … FROM PUBLIC; {AGAIN}",
    )


def test_only_the_planned_roles_connect(facts: Facts, primary: str) -> None:
    """Each database lets in the roles it is for, and no others."""
    rows = facts.server(primary)["database_rights"]
    for name, wanted in CONNECT.items():
        found = {
            r["grantee"]
            for r in rows
            if (r["database"], r["privilege"]) == (name, "CONNECT")
            and r["grantee"] not in ("PUBLIC", "postgres", "elsa_owner")
        }
        same(found, wanted, f"{name}: {AGAIN}")


def test_public_has_no_rights_inside(facts: Facts, any_database: str) -> None:
    """PUBLIC may create nothing, and reads none of the toolkit's or Elsa's tables."""
    rows = facts.database(any_database)
    none(
        (
            f"PUBLIC has {r['privilege']} on schema {r['schema']}"
            for r in rows["public_schemas"]
            if (r["schema"], r["privilege"]) != ("public", "USAGE")
        ),
        AGAIN,
    )
    none((f"PUBLIC has {r['privilege']} on {r['relation']}" for r in rows["public_tables"]), AGAIN)


def test_new_tables_get_the_planned_rights(facts: Facts, database: str) -> None:
    """Tables made later get the application's rights by default; functions are nobody's."""
    rows = facts.database(database)["default_rights"]
    found = {
        f"{r['grantee']} {r['privilege']}"
        for r in rows
        if (r["schema"], r["owner"], r["kind"]) == (database, "elsa_owner", "r")
    }
    rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
    wanted = {f"elsa_user {right}" for right in rights}
    wanted |= {f"{role} SELECT" for role in ("elsa_worker", "elsa_readonly", "backup")}
    same(found, wanted, AGAIN)
    functions = [r for r in rows if (r["schema"], r["owner"], r["kind"]) == ("", "elsa_owner", "f")]
    judge_public = [r["privilege"] for r in functions if r["grantee"] == "PUBLIC"]
    none((f"PUBLIC gets {p} on new functions" for p in judge_public), AGAIN)
    same(bool(functions), True, f"PUBLIC gets EXECUTE on new functions; {AGAIN}")


def test_definer_functions_have_a_fixed_path(facts: Facts, any_database: str) -> None:
    """Every SECURITY DEFINER function fixes its search_path and is not PUBLIC's to execute."""
    rows = facts.database(any_database)["definers"]
    none(
        (
            f"{f['function']}: {', '.join(f['config'] or ['no search_path'])}"
            for f in rows
            if not any(c.startswith("search_path=pg_catalog") for c in f["config"] or [])
        ),
        f"ALTER FUNCTION … SET search_path = pg_catalog, pg_temp; {AGAIN}",
    )
    none((f"PUBLIC may execute {f['function']}" for f in rows if "PUBLIC" in f["grantees"]), AGAIN)


def test_only_pgbouncer_reads_verifiers(facts: Facts) -> None:
    """Nobody but pgbouncer_auth may execute pgbouncer.get_auth, which tells verifiers."""
    found = {
        f["function"]: set(f["grantees"])
        for f in facts.database("postgres")["definers"]
        if f["function"].startswith("pgbouncer.")
    }
    same(found, {"pgbouncer.get_auth": {"pgbouncer_auth"}}, AGAIN)


def test_clients_have_timeouts(facts: Facts, primary: str) -> None:
    """No client of the application can hold a statement or a lock for ever."""
    rows = facts.server(primary)["role_settings"]
    for name in ("statement_timeout", "lock_timeout"):
        found = {
            r["role"]
            for r in rows
            if r["database"] is None
            and r["setting"].startswith(f"{name}=")
            and r["setting"] != f"{name}=0"
        }
        same(found & TIMEOUTS, TIMEOUTS, f"{name}: {AGAIN}")


def test_migrators_act_as_the_owner(facts: Facts, primary: str) -> None:
    """What elsa_migrator makes belongs to elsa_owner, in both databases."""
    # A setting of all databases has no name. One that was renamed takes its settings along.
    others = {d["database"] for d in facts.server(primary)["databases"]} - set(t.DATABASES)
    found = {
        r["database"]
        for r in facts.server(primary)["role_settings"]
        if (r["role"], r["setting"]) == ("elsa_migrator", "role=elsa_owner")
    }
    same(found - others, set(t.DATABASES), AGAIN)


def test_tables_are_the_owners(facts: Facts, database: str) -> None:
    """Every table belongs to elsa_owner, as whom nobody logs in."""
    none(
        (
            f"{r['relation']} is {r['owner']}'s"
            for r in facts.database(database)["tables"]
            if r["owner"] != "elsa_owner"
        ),
        "ALTER TABLE … OWNER TO elsa_owner: migrate by `elsapg up`, or as elsa_migrator",
    )
