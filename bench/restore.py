"""Backup and restore against the seeds' way: `pg_dump | gzip`, and `psql <` into a new database.

The same rows in one run: GIB of them in elsa_workflows (5 unless ELSAPG_BENCH_GIB says otherwise).
Ours goes to S3, encrypted, and comes back from there; the seeds' stays on the node's disk. Then
what a drill takes, and what it costs four pgbench clients that read and write meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record import machine, table, write
from elsapg.services.deployment import Deployment

GIB = float(os.environ.get("ELSAPG_BENCH_GIB", "5"))
GOAL_RESTORE = 5.0
LONG = 4 * 3600
ROWS_PER_GIB = 760_000
# Made one by one; the rest repeats them under other ids, too far apart for any compression to see.
MADE_ROWS = 150_000
FILL = """
CREATE TABLE public.restore_bench (
    id bigint PRIMARY KEY, tenant_id text, created_at timestamptz, state jsonb
);
INSERT INTO public.restore_bench
SELECT n, 'tenant-' || n % 50, now() - make_interval(secs => n),
    jsonb_build_object('n', n, 'activities', (
        SELECT jsonb_agg(jsonb_build_object('id', md5((n * m)::text), 'name', 'activity-' || m,
            'state', md5((n + m)::text)))
        FROM generate_series(1, 10) AS m))
FROM generate_series(1, {made}) AS n;
"""
REPEAT = """
INSERT INTO public.restore_bench
SELECT id + {times} * {made}, tenant_id, created_at, state
FROM public.restore_bench WHERE id <= least({made}, {rows} - {times} * {made})
"""
INDEXES = """
CREATE INDEX ON public.restore_bench (tenant_id, created_at);
CREATE INDEX ON public.restore_bench (created_at);
VACUUM ANALYZE public.restore_bench;
"""
LOAD = (
    "\\set id random(1, 100000)\n"
    "UPDATE public.restore_bench SET created_at = now() WHERE id = :id;\n"
    "SELECT count(*) FROM public.restore_bench WHERE id BETWEEN :id AND :id + 100;\n"
)
RESTORE = """
import time
from elsapg.runner import drill, throwaway
from elsapg.runner.config import Config
config = Config.load()
lsn, _ = drill._source(config, drill._standby(config))
drill._archived(config, lsn)
began = time.monotonic()
try:
    plan = drill._plan(config, lsn)
    throwaway.restore(config, plan)
    copied = time.monotonic() - began
    with throwaway.running(plan):
        print(copied, time.monotonic() - began)
finally:
    throwaway.clear()
"""


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def run(deployment: Deployment, runs: int | None = None) -> Path:
    """Measure on a running stack, once unless told otherwise: it takes long."""
    del runs
    on, node = machine(), deployment.primary()

    def shell(script: str, unit: str = node) -> str:
        done = deployment.hosts.run(
            unit, "bash", "-o", "pipefail", "-ec",
            f"export PGHOST=/run/postgresql PGUSER=postgres; {script}", timeout=LONG,
        )  # fmt: skip
        assert done.code == 0, done.output
        return done.output

    def note(what: str) -> None:
        print(f"restore: {what}", flush=True)

    rows = int(GIB * ROWS_PER_GIB)
    made = min(rows, MADE_ROWS)
    for statement in FILL.format(made=made).strip().split(";\n"):
        deployment.query(node, statement, "elsa_workflows")
    for times in range(1, -(-rows // made)):
        repeat = REPEAT.format(times=times, made=made, rows=rows)
        deployment.query(node, repeat, "elsa_workflows")
    for statement in INDEXES.strip().split("\n"):
        deployment.query(node, statement, "elsa_workflows")
    [[size]] = deployment.query(node, "SELECT pg_database_size('elsa_workflows')")
    found: dict[str, Any] = {"database_bytes": int(size)}
    note(f"{int(size) / 1024**3:.2f} GiB")
    copy = "/var/lib/postgresql/seeds.sql.gz"
    try:
        found["seeds_backup"] = _timed(lambda: shell(f"pg_dump elsa_workflows | gzip > {copy}"))
        found["seeds_bytes"] = int(shell(f"stat -c %s {copy}"))
        note(f"pg_dump | gzip {found['seeds_backup']:.0f} s")
        shell("createdb -T template0 seeds_copy")
        found["seeds_restore"] = _timed(
            lambda: shell(f"gunzip -c {copy} | psql -qX -d seeds_copy > /dev/null")
        )
        note(f"psql < {found['seeds_restore']:.0f} s")
    finally:
        shell(f"rm -f {copy}; dropdb --if-exists seeds_copy")
    found["full"] = _timed(lambda: deployment.runner("backup", "full", timeout=LONG))
    note(f"full backup {found['full']:.0f} s")
    deployment.query(
        node, "UPDATE public.restore_bench SET tenant_id = 'x' WHERE id % 100 = 0", "elsa_workflows"
    )
    found["incr"] = _timed(lambda: deployment.runner("backup", "incr", timeout=LONG))
    note(f"incremental backup {found['incr']:.0f} s")
    info = json.loads(deployment.runner("backup-info"))["backup"][-2:]
    found["full_bytes"], found["incr_bytes"] = (b["info"]["repository"]["delta"] for b in info)
    done = deployment.hosts.run("runner", "python3", "-c", RESTORE, timeout=LONG)
    assert done.code == 0, done.output
    copied, ready = done.output.strip().splitlines()[-1].split()
    found["restore_copied"], found["restore"] = float(copied), float(ready)
    note(f"restore {found['restore']:.0f} s")
    found["dump"] = _timed(lambda: deployment.runner("dump", "--accept-smaller", timeout=LONG))
    note(f"dump {found['dump']:.0f} s")
    found.update(_drill(deployment, shell))
    deployment.query(node, "DROP TABLE public.restore_bench", "elsa_workflows")
    mib = found["database_bytes"] / 1024**2
    ratio = found["seeds_restore"] / found["restore"]
    line = [
        ["backup, full", f"{found['seeds_backup']:.0f} s", f"{found['full']:.0f} s",
         f"{found['seeds_backup'] / found['full']:.1f}x"],
        ["backup, incremental, 1 % changed", f"{found['seeds_backup']:.0f} s (no such thing)",
         f"{found['incr']:.0f} s", f"{found['seeds_backup'] / found['incr']:.1f}x"],
        ["dump of both databases, checked, stored", f"{found['seeds_backup']:.0f} s",
         f"{found['dump']:.0f} s", f"{found['seeds_backup'] / found['dump']:.1f}x"],
        ["restored and open for work", f"{found['seeds_restore']:.0f} s",
         f"{found['restore']:.0f} s ({mib / found['restore']:.0f} MiB/s)",
         f"{ratio:.1f}x (goal {GOAL_RESTORE:.0f}x)"],
        ["stored, full", f"{found['seeds_bytes'] / 1024**2:.0f} MiB",
         f"{found['full_bytes'] / 1024**2:.0f} MiB", ""],
        ["stored, incremental", "", f"{found['incr_bytes'] / 1024**2:.0f} MiB", ""],
        ["a drill", "-", f"{found['drill']:.0f} s", ""],
        ["clients' transactions per second", f"{found['tps_idle']:.0f} without a drill",
         f"{found['tps_drill']:.0f} during one",
         f"{1 - found['tps_drill'] / found['tps_idle']:.0%} less"],
    ]  # fmt: skip
    title = f"Backup and restore of {found['database_bytes'] / 1024**3:.1f} GiB"
    parts = ", ".join(f"{k} {v} s" for k, v in found["drill_parts"].items())
    markdown = table(("what", "seeds", "elsapg", "ratio"), line) + f"\nThe drill: {parts}.\n"
    return write("restore", title, on, found, markdown)


def _drill(deployment: Deployment, shell: Callable[[str], str]) -> dict[str, Any]:
    shell(f"cat > /tmp/load.sql <<'E'\n{LOAD}E\n")

    def tps(seconds: int) -> float:
        output = shell(f"pgbench -n -c 4 -j 2 -T {seconds} -f /tmp/load.sql elsa_workflows")
        match = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
        assert match, output
        return float(match[1])

    idle = tps(30)
    took: list[float] = []
    parts: dict[str, Any] = {}

    def make() -> None:
        began = time.monotonic()
        told = deployment.runner("drill", timeout=LONG)
        took.append(time.monotonic() - began)
        parts.update(json.loads(told.strip().splitlines()[-1])["seconds"])

    drill = threading.Thread(target=make)
    drill.start()
    rates = []
    while drill.is_alive():
        rates.append(tps(10))
    drill.join()
    assert took, "the drill failed"
    return {
        "drill": took[0],
        "drill_parts": parts,
        "tps_idle": idle,
        "tps_drill": sum(rates) / len(rates),
    }
