"""What `pooler.reset_after_transaction` costs: the server's session cleaned each time.

The same PgBouncer with the setting off and on, in turns, changed at its console; pgbench as
elsa_app, each transaction with its tenant first. Once with more clients than server connections,
where the server's time is the limit, and once with one client, who only waits for his own answer.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import psycopg

from bench.record import machine, spread, table, write
from elsapg.definition import topology as t
from elsapg.errors import MissingError
from elsapg.services import connect
from elsapg.services.deployment import Deployment

SECONDS = 5
RUNS = 5
TENANT = "SELECT set_config('app.current_tenant_id', 'bench', true);\n"
SCRIPTS = {
    "read": "BEGIN;\n"  # noqa: S608
    + TENANT
    + "SELECT count(*) FROM elsa_workflows.bookmarks"
    " WHERE bookmark_hash = 'bench';\nCOMMIT;\n",
    "write": "\\set id random(1, 1000000000000)\nBEGIN;\n"  # noqa: S608
    + TENANT
    + "INSERT INTO elsa_workflows.triggers (id, workflow_definition_id,"
    " workflow_definition_version_id, name, activity_id, hash)"
    " VALUES (:id::bigint::text, 'bench', 'bench', 'bench', 'bench', 'bench');\nCOMMIT;\n",
}
CLIENTS = (1, 32)


def _pgbench(env: dict[str, str], script: str, clients: int) -> tuple[float, float]:
    """Transactions per second, and milliseconds of one."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        # A thread each: one that prepares waits, and would keep its fellows' transactions open.
        done = subprocess.run(
            ["pgbench", "--no-vacuum", "--protocol=prepared",
             f"--client={clients}", f"--jobs={clients}",
             f"--time={SECONDS}", f"--file={file.name}"],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"pgbench failed: {done.stderr}")
    tps = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    latency = re.search(r"^latency average = ([\d.]+) ms", done.stdout, re.MULTILINE)
    assert tps and latency, done.stdout
    return float(tps[1]), float(latency[1])


def run(deployment: Deployment, runs: int | None = None) -> Path:
    """Measure through the first pooler of a running stack, and write the result down."""
    on = machine()
    pooler = t.pooler_names(deployment.settings)[0]
    if shutil.which("pgbench") is None:
        raise MissingError("pgbench is not on this machine: install postgresql-client")
    app = connect.connection(deployment, "elsa_app")
    env = {**os.environ, **connect.variables(replace(app, addresses=app.addresses[:1]))}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    try:
        for name, script in SCRIPTS.items():
            for clients in CLIENTS:
                both = found.setdefault(f"{name}, {clients}", {"0": [], "1": []})
                for number in range(runs or RUNS):
                    for value in ("0", "1") if number % 2 == 0 else ("1", "0"):
                        deployment.pooler_console(
                            pooler, f"SET server_reset_query_always = {value}"
                        )
                        both[value].append(_pgbench(env, script, clients))
                print(name, clients, both, flush=True)
    finally:
        deployment.pooler_console(pooler, "RELOAD")
        host = connect.connection(deployment, "elsa_host")
        with psycopg.connect(connect.libpq(host)) as connection:
            connection.execute("DELETE FROM elsa_workflows.triggers WHERE hash = 'bench'")
    rows: list[list[object]] = []
    for name, both in found.items():
        pairs = list(zip(both["0"], both["1"], strict=True))
        rows.append(
            [
                *name.split(", "),
                " → ".join(f"{spread([tps for tps, _ in both[v]])['median']:.0f}" for v in "01"),
                f"{statistics.median(b[0] / a[0] for a, b in pairs):.2f}",
                " → ".join(f"{spread([ms for _, ms in both[v]])['median']:.2f}" for v in "01"),
                f"{statistics.median(b[1] / a[1] for a, b in pairs):.2f}",
            ]
        )
    header = ("transaction", "clients", "per second, off → on", "ratio", "ms, off → on", "ratio")
    return write("pooled", "Cleaning after each transaction", on, found, table(header, rows))
