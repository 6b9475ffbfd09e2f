"""What row-level security costs the application: its hot statements with the policies on and off.

The same tables and indexes, as elsa_app, whom the policies bind, and as a role with the same rights
and BYPASSRLS, whose statements name the tenant themselves, as an application without policies must.
Both set the context, in the same transaction, so that what differs is the policy.

What counts is the processor's time that the server's process takes, as the kernel counts it: on a
shared machine, the time on the clock says more about the others. Rounds alternate.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench import history
from bench.database import disk_server
from bench.record import machine, spread, table, write
from tests.sql.sql_server import Server

ROWS = int(os.environ.get("ELSAPG_BENCH_RLS_ROWS", "1000000"))
ROUNDS = 60
# Of one statement in one round, on each side: few, so that both sides see the same weather.
TRANSACTIONS = 25
SLOW_ROUNDS = 15
SLOW_TRANSACTIONS = 1
GOAL_PERCENT = 5.0
BYPASS = "bench_bypass"
BOOKMARKS = 50_000
TENANT = history.BIG_TENANT
CONTEXT = "SELECT set_config('app.current_tenant_id', %(tenant)s, true)"


@dataclass(frozen=True)
class Hot:
    """A statement of the application. {own} is where one without policies names its tenant."""

    name: str
    text: str
    slow: bool = False


HOT = (
    Hot(
        "instance by id", "SELECT * FROM elsa_workflows.workflow_instances WHERE id = %(id)s {own}"
    ),
    Hot(
        "instance by id and time",
        "SELECT * FROM elsa_workflows.workflow_instances WHERE id = %(id)s"
        " AND created_at >= %(low)s AND created_at <= %(high)s {own}",
    ),
    Hot(
        "instances by correlation id",
        "SELECT * FROM elsa_workflows.workflow_instances WHERE correlation_id = %(order)s {own}",
    ),
    Hot(
        "bookmark by hash",
        "SELECT * FROM elsa_workflows.bookmarks WHERE bookmark_hash = %(hash)s {own}",
    ),
    Hot(
        "newest 20 of a status",
        "SELECT id, status FROM elsa_workflows.workflow_instances WHERE status = 'Suspended' {own}"
        " ORDER BY created_at DESC LIMIT 20",
    ),
    Hot(
        "records of an instance",
        "SELECT * FROM elsa_workflows.activity_execution_records"
        " WHERE workflow_instance_id = %(recent)s {own} ORDER BY started_at",
    ),
    Hot(
        "records of an order",
        "SELECT id FROM elsa_workflows.activity_execution_records"
        " WHERE payload ->> 'orderId' = %(recent_order)s {own}",
    ),
    Hot(
        "instances by a variable",
        "SELECT id FROM elsa_workflows.workflow_instances"
        " WHERE workflow_state -> 'variables' @> %(variables)s::jsonb {own}",
    ),
    Hot(
        "update of an instance",
        "UPDATE elsa_workflows.workflow_instances SET updated_at = now() WHERE id = %(id)s {own}",
    ),
    Hot(
        "insert of an instance",
        "INSERT INTO elsa_workflows.workflow_instances"
        " (id, definition_id, definition_version, workflow_state, status, tenant_id)"
        " VALUES (%(new)s, 'workflow-01', 1, %(variables)s::jsonb, 'Running', %(tenant)s)",
    ),
    Hot(
        "insert of a record",
        "INSERT INTO elsa_workflows.activity_execution_records"
        " (id, workflow_instance_id, activity_id, activity_node_id, activity_type,"
        " activity_type_version, started_at, status, tenant_id)"
        " VALUES (%(new)s, %(id)s, 'a', 'n', 'type', 1, now(), 'Running', %(tenant)s)",
    ),
    Hot(
        "a tenant's instances by status",
        "SELECT status, count(*), max(updated_at) FROM elsa_workflows.workflow_instances"
        " WHERE true {own} GROUP BY status",
        slow=True,
    ),
)


def run(runs: int | None = None) -> Path:
    """Measure each statement in as many rounds as told (60), prepared and not; write it down."""
    on = machine()
    chance = random.Random(1)  # noqa: S311 - no secret
    with disk_server() as server:
        made = history.load_ours(server, ROWS)
        _prepare(server)
        found = {
            how: measure(server, made, HOT, chance, runs or ROUNDS, prepare=how == "prepared")
            for how in ("prepared", "planned each time")
        }
    rows: list[list[object]] = []
    for hot in HOT:
        row: list[object] = [hot.name]
        for by_name in found.values():
            result = by_name[hot.name]
            row += [f"{result['off_us']:,.0f} µs", f"{result['on_us']:,.0f} µs"]
            row.append(f"{result['percent']:+.1f} %")
        rows.append(row)
    header = ["statement"]
    for how in found:
        header += [f"{how}: off", "on", "cost"]
    costs = {
        how: spread([result["percent"] for result in by_name.values()])["median"]
        for how, by_name in found.items()
    }
    markdown = table(header, rows) + (
        "\nThe server's processor time per transaction (BEGIN, the context, the statement, COMMIT)."
        f" Median of {runs or ROUNDS} rounds; {ROWS:,} instances, a tenth of them the tenant's."
        " Median cost over the statements: "
        + ", ".join(f"{percent:+.1f} % {how}" for how, percent in costs.items())
        + f"; goal: {GOAL_PERCENT:g} %.\n"
    )
    data = {"instances": ROWS, "goal_percent": GOAL_PERCENT, "found": found}
    return write("rls", "Row-level security", on, data, markdown)


def _prepare(server: Server) -> None:
    with server.connect("elsa_workflows", autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {BYPASS} BYPASSRLS IN ROLE elsa_user".encode())
        connection.execute(
            "INSERT INTO elsa_workflows.bookmarks (id, bookmark_id, bookmark_hash,"
            " workflow_instance_id, activity_node_id, activity_type_name, tenant_id)"
            " SELECT 'w' || n, 'b', 'wait-' || n, (100000000000 + n * 10)::text, 'n', 't', %s"
            " FROM generate_series(1, least(%s, %s / 10)) AS n",
            (TENANT, BOOKMARKS, ROWS),
        )
        connection.execute("VACUUM (ANALYZE)")


def parameters(made: history.History, chance: random.Random) -> dict[str, object]:
    """What a transaction asks for: rows of the big tenant, of which every tenth is one."""
    number = chance.randint(1, made.rows // 10) * 10
    recent = chance.randint(made.first_with_records // 10 + 1, made.rows // 10) * 10
    at = made.since.timestamp() + number * made.step_s
    return {
        "tenant": TENANT,
        "id": str(10**11 + number),
        "low": history.moment(at - 1),
        "high": history.moment(at + 1),
        "order": f"order-{number}",
        "hash": f"wait-{chance.randint(1, min(BOOKMARKS, made.rows // 10))}",
        "recent": str(10**11 + recent),
        "recent_order": f"order-{recent}",
        "variables": f'{{"orderId": {number}}}',
        "new": f"{chance.getrandbits(96):024x}",
    }


def measure(
    server: Server,
    made: history.History,
    statements: Sequence[Hot],
    chance: random.Random,
    rounds: int,
    *,
    prepare: bool,
) -> dict[str, dict[str, Any]]:
    """Microseconds with the policies off and on, and what they cost, in percent."""
    found = {}
    with (
        server.connect("elsa_workflows", autocommit=True) as off,
        server.connect("elsa_workflows", autocommit=True) as on,
    ):
        sides = {"off": (off, BYPASS, "AND tenant_id = %(tenant)s"), "on": (on, "elsa_app", "")}
        for hot in statements:
            taken: dict[str, list[float]] = {side: [] for side in sides}
            many = SLOW_TRANSACTIONS if hot.slow else TRANSACTIONS
            # The first round warms caches and plans.
            for number in range((min(rounds, SLOW_ROUNDS) if hot.slow else rounds) + 1):
                for side in sides if number % 2 == 0 else reversed(sides):
                    connection, role, own = sides[side]
                    text = hot.text.format(own=own)
                    values = [parameters(made, chance) for _ in range(many)]
                    us = _processor_us(connection, role, text, values, prepare=prepare)
                    if number:
                        taken[side].append(us / many)
            medians = {side: statistics.median(us) for side, us in taken.items()}
            percent = (medians["on"] / medians["off"] - 1) * 100
            found[hot.name] = {
                "off_us": round(medians["off"], 1),
                "on_us": round(medians["on"], 1),
                "percent": round(percent, 1),
                "rounds": {side: [round(us, 1) for us in each] for side, each in taken.items()},
            }
            how = "prepared" if prepare else "planned"
            print(f"rls: {how}: {hot.name}: {percent:+.1f} %", flush=True)
    return found


def _processor_us(
    connection: psycopg.Connection[Any],
    role: str,
    text: str,
    values: Sequence[dict[str, object]],
    *,
    prepare: bool,
) -> float:
    """The time that the session's own process takes on a processor for transactions of a role."""
    look = b"SELECT split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::bigint"
    before = connection.execute(look).fetchone()
    connection.execute(f"SET ROLE {role}".encode())
    for row in values:
        connection.execute("BEGIN", prepare=prepare)
        connection.execute(CONTEXT, row, prepare=prepare)
        connection.execute(text.encode(), row, prepare=prepare)
        connection.execute("COMMIT", prepare=prepare)
    connection.execute("RESET ROLE")
    after = connection.execute(look).fetchone()
    assert before is not None
    assert after is not None
    return float(after[0] - before[0]) / 1000
