"""Monitoring: its views answer those whom they are for; row-level security costs no index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.infra.facts import Facts, none, same

AGAIN = "`elsapg up --refresh` applies bootstrap_sql/cluster again"
READERS = {f"{role} SELECT" for role in ("elsa_host", "elsa_readonly", "monitoring")}
VIEWS = {
    "elsa_workflows": {
        "active_workflows", "database_size", "slow_activities", "workflow_performance",
    },
    "elsa_runtime": {"database_size"},
}  # fmt: skip
COLUMNS = {
    "workflow_instances": {
        "created_at", "definition_id", "faulted_at", "finished_at", "status", "tenant_id",
    },
    "activity_execution_records": {
        "activity_type", "completed_at", "has_bookmarks", "started_at", "tenant_id",
    },
}  # fmt: skip
# See docs/decisions/0015-row-security-and-indexes.md.
LEAKPROOF = {
    "jsonb_contains(jsonb,jsonb)",
    "jsonb_exists(jsonb,text)",
    "jsonb_object_field(jsonb,text)",
    "jsonb_object_field_text(jsonb,text)",
    "lower(text)",
}
VIEWS_QUERY = """
    SELECT c.relname AS view,
        coalesce('security_invoker=true' = ANY (c.reloptions), false) AS invoker,
        ARRAY(
            SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END
                || ' ' || a.privilege_type
            FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner
        ) AS grants
    FROM pg_class AS c
    WHERE c.relkind = 'v' AND c.relnamespace = (
        SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'monitoring'
    )"""
COLUMNS_QUERY = """
    SELECT c.relname AS relation, a.attname AS name
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'elsa_workflows'::regnamespace AND c.relkind IN ('r', 'p')
        AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
        AND has_column_privilege('monitoring', c.oid, a.attnum, 'SELECT')"""
LEAKPROOF_QUERY = """
    SELECT p.oid::regprocedure::text AS name FROM pg_proc AS p WHERE p.proleakproof"""


@pytest.fixture(scope="module")
def views(facts: Facts) -> Mapping[str, list[dict[str, Any]]]:
    """The views of schema monitoring in each database."""
    primary = facts.primary()
    return {d: facts.batch(primary, {"views": VIEWS_QUERY}, d)["views"] for d in VIEWS}


def test_the_views_answer(
    facts: Facts, primary: str, database: str, views: Mapping[str, list[dict[str, Any]]]
) -> None:
    """The documents' queries are there as views, and each can be run."""
    same({v["view"] for v in views[database]} & VIEWS[database], VIEWS[database], AGAIN)
    facts.batch(
        primary,
        {name: f"SELECT count(*) FROM monitoring.{name}" for name in sorted(VIEWS[database])},
        database,
    )


def test_views_show_what_their_reader_may_see(
    views: Mapping[str, list[dict[str, Any]]], database: str
) -> None:
    """Every view asks with its reader's rights, and is for monitoring, reports and the host."""
    none((f"{v['view']} asks with its owner's" for v in views[database] if not v["invoker"]), AGAIN)
    none(
        (
            f"{v['view']}: {', '.join(sorted(set(v['grants']) - READERS))}"
            for v in views[database]
            if not set(v["grants"]) <= READERS
        ),
        f"REVOKE them; {AGAIN}",
    )


def test_monitoring_reads_no_data(facts: Facts, primary: str) -> None:
    """Role monitoring reads times, states and names of workflows, and no state or payload."""
    found: dict[str, set[str]] = {}
    for row in facts.batch(primary, {"c": COLUMNS_QUERY}, "elsa_workflows")["c"]:
        found.setdefault(row["relation"], set()).add(row["name"])
    same(found, COLUMNS, f"REVOKE or GRANT the difference; {AGAIN}")


def test_conditions_on_json_can_use_their_indexes(facts: Facts, primary: str) -> None:
    """The functions in indexes on JSON and on names are leakproof, and no others were made so."""
    found = {
        database: {
            row["name"] for row in facts.batch(primary, {"f": LEAKPROOF_QUERY}, database)["f"]
        }
        for database in ("postgres", "elsa_workflows")
    }
    same(
        found["elsa_workflows"] - found["postgres"],
        LEAKPROOF,
        f"ALTER FUNCTION … [NOT] LEAKPROOF in elsa_workflows; {AGAIN}",
    )
