"""Acquiring and releasing a lock: the toolkit's functions against the seeds' own, side by side.

Both in one database of a throw-away server, measured in turns by pgbench inside its container
(prepared statements, as elsa_worker): once without fsync, which leaves the work itself, and once
with it. A ratio is the median over pairs of runs that followed each other.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record import machine, spread, table, write
from tests.sql import sql_server
from tests.sql.sql_server import PASSWORDS, Server, docker

SECONDS = 5
RUNS = 5
ROLE = "elsa_worker"
DATABASE = "elsa_runtime"
SEEDS = Path(__file__).parent / "seeds" / "locks.sql"
VERSIONS = ("seeds", "elsa_runtime")


@dataclass(frozen=True)
class Scene:
    """Who asks for what, again and again.

    `resource` is an SQL expression, which `prelude` may prepare a variable for; `refused` is what
    pgbench does after a "no".
    """

    name: str
    title: str
    clients: int
    resource: str
    prelude: str = ""
    refused: str = ""


SCENES = (
    Scene("alone", "one client, one lock", 1, "'alone'"),
    Scene("contended", "32 clients, 4 locks", 32, "'lock-'||:r", "\\set r random(1, 4)\n"),
    Scene(
        "polling",
        "32 clients, 4 locks, 20 ms after a no",
        32,
        "'lock-'||:r",
        "\\set r random(1, 4)\n",
        "\\else\n\\sleep 20 ms\n",
    ),
    Scene("distinct", "32 clients, a lock each", 32, "'own-'||:client_id"),
)

# One transaction of pgbench: ask, and let go if it was given.
SCRIPT = """{prelude}SELECT acquire_lock({resource}, 'l'||:client_id, 'w'||:client_id, 30) AS got
\\gset
\\if :got
{release}
{refused}\\endif
"""
RELEASE = {
    # The seeds have no release; it can only be meant so.
    "seeds": "DELETE FROM distributed_locks WHERE resource_name = {resource}"
    " AND lock_id = 'l'||:client_id;",
    "elsa_runtime": "SELECT release_lock({resource}, 'l'||:client_id, 'w'||:client_id);",
}
COUNT_RELEASES = (
    "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements"
    " WHERE query LIKE 'DELETE FROM distributed_locks WHERE resource%%'"
    " OR query LIKE 'SELECT release_lock(%%'"
)
P99 = "cut -d' ' -f3 /tmp/log.* | sort -n | awk '{a[NR]=$1} END {print a[int(NR*.99)]}'"


@dataclass(frozen=True)
class Run:
    """What one run of pgbench found. `tries` and `grants` per second, `p99` in milliseconds."""

    tries: float
    grants: float
    p99: float


# As the tests' server, but with fsync, and on the container's disk instead of memory.
DURABLE = sql_server.START.replace("fsync=off", "fsync=on").replace(
    "/tmp/pgdata", "/var/lib/postgresql/bench"
)


def prepare(server: Server) -> None:
    """Bootstrap, and put the seeds' version beside the toolkit's."""
    server.bootstrap(log=lambda _: None)
    with server.connect(autocommit=True) as connection:
        # The tests log every statement.
        connection.execute("ALTER SYSTEM SET log_min_duration_statement = -1")
        connection.execute("SELECT pg_reload_conf()")
    with server.connect(DATABASE) as connection:
        connection.execute("CREATE SCHEMA seeds")
        connection.execute("SET LOCAL search_path = seeds")
        connection.execute(SEEDS.read_text(encoding="utf-8").encode())
        connection.execute(f"GRANT USAGE ON SCHEMA seeds TO {ROLE}".encode())
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA seeds TO {ROLE}".encode())
        connection.execute(f"GRANT ALL ON ALL FUNCTIONS IN SCHEMA seeds TO {ROLE}".encode())
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public")


def measure(server: Server, scene: Scene, version: str) -> Run:
    """One run of pgbench; raises RuntimeError if a transaction of it failed."""
    script = SCRIPT.format(
        prelude=scene.prelude,
        refused=scene.refused,
        resource=scene.resource,
        release=RELEASE[version].format(resource=scene.resource),
    )
    with server.connect(DATABASE, autocommit=True) as connection:
        connection.execute("SELECT public.pg_stat_statements_reset()")
    output = docker(
        "exec", "--env", f"PGPASSWORD={PASSWORDS[ROLE]}",
        "--env", f"PGOPTIONS=-c search_path={version},public", server.container,
        "bash", "-c",
        'rm -f /tmp/log.*; printf %s "$1" > /tmp/script.sql; '
        f"/usr/lib/postgresql/17/bin/pgbench --no-vacuum --protocol=prepared --jobs=2 "
        f"--host=127.0.0.1 --username={ROLE} --client={scene.clients} --time={SECONDS} "
        f"--log --log-prefix=/tmp/log --file=/tmp/script.sql {DATABASE} 2>&1; {P99}",
        "bash", script,
    )  # fmt: skip
    tps = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    count = re.search(r"actually processed: (\d+)", output)
    if tps is None or count is None or "aborted" in output:
        raise RuntimeError(f"pgbench, {scene.name}, {version}:\n{output}")
    with server.connect(DATABASE) as connection:
        row = connection.execute(COUNT_RELEASES.replace("%%", "%").encode()).fetchone()
    assert row is not None
    # By the number of tries: connecting takes time, too, and is not in tps.
    grants = float(tps[1]) * row[0] / int(count[1])
    return Run(round(float(tps[1]), 1), round(grants, 1), int(output.splitlines()[-1]) / 1000)


def compare(server: Server, runs: int) -> dict[str, dict[str, list[Run]]]:
    """All scenes, both versions in turns."""
    found: dict[str, dict[str, list[Run]]] = {}
    for scene in SCENES:
        found[scene.name] = {version: [] for version in VERSIONS}
        for number in range(runs):
            # Whoever goes second finds a warmer or a busier machine.
            for version in VERSIONS if number % 2 == 0 else reversed(VERSIONS):
                one = measure(server, scene, version)
                found[scene.name][version].append(one)
                print(f"{scene.name} {number + 1} {version}: {one}", flush=True)
    return found


def ratio(found: dict[str, list[Run]], value: Callable[[Run], float]) -> float:
    """Ours by the seeds', the median over the pairs."""
    pairs = zip(found["elsa_runtime"], found["seeds"], strict=True)
    return statistics.median(value(ours) / value(seeds) for ours, seeds in pairs)


def _rows(storage: str, found: dict[str, dict[str, list[Run]]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for scene in SCENES:
        both = found[scene.name]
        tries, grants = ratio(both, lambda r: r.tries), ratio(both, lambda r: r.grants)
        p99 = ratio(both, lambda r: r.p99)
        seeds, ours = both["seeds"], both["elsa_runtime"]
        met = tries > 1 and grants > 1 and p99 < 1
        rows.append(
            [
                scene.title,
                storage,
                _pair([r.tries for r in seeds], [r.tries for r in ours], "{:.0f}"),
                f"{tries:.2f}",
                _pair([r.grants for r in seeds], [r.grants for r in ours], "{:.0f}"),
                f"{grants:.2f}",
                _pair([r.p99 for r in seeds], [r.p99 for r in ours], "{:.2f} ms"),
                f"{p99:.2f}",
                "yes" if met else "NO",
            ]
        )
    return rows


def _pair(seeds: Sequence[float], ours: Sequence[float], form: str) -> str:
    return " → ".join(form.format(spread(values)["median"]) for values in (seeds, ours))


def run(runs: int | None = None) -> Path:
    """Measure both versions, without fsync and with it, and write the result down."""
    on = machine()
    rows: list[list[object]] = []
    data: dict[str, object] = {"seconds_per_run": SECONDS}
    for storage, start in (("off", sql_server.START), ("on", DURABLE)):
        with sql_server.running(start) as server:
            prepare(server)
            found = compare(server, runs or RUNS)
        rows += _rows(storage, found)
        data[f"fsync_{storage}"] = {
            scene: {version: [vars(r) for r in each] for version, each in both.items()}
            for scene, both in found.items()
        }
    header = ("scene", "fsync", "tries/s", "ratio", "grants/s", "ratio", "p99", "ratio", "met")
    markdown = table(header, rows) + (
        "\nSeeds → elsa_runtime, medians; a ratio is the median over pairs of runs. A try asks for "
        "a lock and, if it is granted, releases it. Goal: ahead in all three.\n"
    )
    return write("locks", "Locks", on, data, markdown)
