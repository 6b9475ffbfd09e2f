"""The documents' four monitoring queries at ten million instances: as written, and as our views.

The seeds' queries run on the seeds' tables with the seeds' indexes (a database of its own, the same
rows, the same server); the views on the product's tables, as role monitoring over all tenants, and
as elsa_readonly for one. Only the query of sizes is let loose on the product's tables too, with its
schema's name: on its own three tables it would have less to do than anybody's database. Caches are
warm, which favours whoever reads more.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import history
from bench.database import SEEDS, disk_server
from bench.record import machine, spread, table, write
from tests.sql.sql_server import Server

ROWS = int(os.environ.get("ELSAPG_BENCH_ROWS", "10000000"))
RUNS = 15
TENANT = "tenant-007"
VIEWS = ("active_workflows", "workflow_performance", "slow_activities", "database_size")


def seeds_queries() -> dict[str, bytes]:
    """The documents' queries by the name of our view."""
    text = (SEEDS / "queries_monitoring.sql").read_text(encoding="utf-8")
    parts = text.split("-- query: ")[1:]
    return {name: body.encode() for name, _, body in (part.partition("\n") for part in parts)}


def run(runs: int | None = None) -> Path:
    """Load both sides, measure each query as often as told (15) in turns, and write it down."""
    on = machine()
    began = time.monotonic()
    with disk_server() as server:
        made = history.load_ours(server, ROWS)
        history.load_seeds(server, made)
        until = datetime.now(UTC)
        # The newest rows come as an application's would: pages that no vacuum has seen.
        for database in ("elsa_workflows", "seeds"):
            since = history.go_on(server, made, database, until)
        print(f"queries: loaded in {time.monotonic() - began:.0f} s, {since} since", flush=True)
        found = measure(server, runs or RUNS)
    rows: list[list[object]] = []
    for name in VIEWS:
        seconds = {side: spread(found[name][side]) for side in found[name]}
        rows.append(
            [
                name,
                *(f"{seconds[side]['median']:.1f} ms" for side in ("seeds", "ours", "tenant")),
                f"{seconds['seeds']['median'] / seconds['ours']['median']:.1f}",
            ]
        )
    markdown = table(
        ("view", "seeds", "ours, all tenants", "ours, one tenant", "seeds / ours"), rows
    )
    markdown += (
        f"\nMedian of {runs or RUNS} runs each, in turns, warm; {ROWS:,} instances of 12 months and"
        f" {ROWS // 12 * 5:,} activity records. The views answer more: see docs/monitoring.md.\n"
    )
    data = {"instances": ROWS, "ms": found}
    return write("queries", "Monitoring queries", on, data, markdown)


def measure(server: Server, runs: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each query of each side, as the client sees it; the first run is left out."""
    seeds = seeds_queries()
    seeds["database_size"] = seeds["database_size"].replace(b"'public'", b"'elsa_workflows'")
    found: dict[str, dict[str, list[float]]] = {}
    with (
        server.connect("seeds", autocommit=True) as theirs,
        server.connect("elsa_workflows", autocommit=True) as sizes,
        server.connect("elsa_workflows", "monitoring", autocommit=True) as ours,
        server.connect("elsa_workflows", "elsa_readonly", autocommit=True) as tenant,
    ):
        tenant.execute("SELECT set_config('app.current_tenant_id', %s, false)", (TENANT,))
        for name in VIEWS:
            view = f"TABLE monitoring.{name}".encode()
            sides = {
                "seeds": (sizes if name == "database_size" else theirs, seeds[name]),
                "ours": (ours, view),
                "tenant": (tenant, view),
            }
            found[name] = {side: [] for side in sides}
            for number in range(runs + 1):
                for side, (connection, query) in sides.items():
                    began = time.perf_counter()
                    # Planned each time, as when somebody looks.
                    connection.execute(query, prepare=False).fetchall()
                    if number:
                        found[name][side].append((time.perf_counter() - began) * 1000)
            print(
                f"queries: {name}: { {s: spread(v)['median'] for s, v in found[name].items()} }",
                flush=True,
            )
    return found
