"""Partitions: every month that is needed has its own, and no row lies outside."""

from __future__ import annotations

from tests.infra.facts import Facts, judge, none

MAKE = (
    "SELECT elsa_workflows.create_monthly_partitions() as elsa_admin; elsa_jobs.status says why "
    "the job create-monthly-partitions did not"
)


def test_months_are_there_ahead(facts: Facts) -> None:
    """Every table by months has this month's partition and the next ones'."""
    rows = facts.database("elsa_workflows")["months"]
    judge(rows, "no table by months", "run `elsapg up --refresh`: migrations lack")
    none(
        (
            f"{r['table_name']}: {r['months_ahead']} months ahead"
            for r in rows
            if not r["healthy"] and not r["default_rows"]
        ),
        MAKE,
    )


def test_no_row_lies_outside_all_months(facts: Facts) -> None:
    """The DEFAULT partitions of the tables by months are empty."""
    none(
        (
            f"{r['table_name']}: {r['default_rows']}{' or more' if r['default_rows'] > 999 else ''}"
            for r in facts.database("elsa_workflows")["months"]
            if r["default_rows"]
        ),
        "SELECT elsa_workflows.create_stray_months() as elsa_admin: it makes their months and "
        "moves the rows",
    )
