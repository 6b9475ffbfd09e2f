"""WAL archiving against the seeds' way: `aws s3 cp` for each segment, to the same S3.

Segments per second of a queue that is there, and how far each falls behind while four pgbench
clients write; the archiver's own loop is one process after the other in both. Then what archiving
costs the clients: their rate with each, and with a command that does nothing.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker

from bench.record import machine, table, write
from elsapg.services.deployment import Deployment

AWSCLI = "awscli==1.44.0"
SEGMENT = 16 * 1024 * 1024
QUEUE = 24
SECONDS = 30
CLIENTS = 4
GOAL = 10.0
# Each transaction is a large row, so that a segment fills in a second or less.
SCRIPT = (
    "\\set id random(1, 1000000000)\n"
    "INSERT INTO public.archive_bench SELECT :id, string_agg(md5(:id::text || n), '')"
    " FROM generate_series(1, 300) AS n;\n"
)


class Seeds:
    """awscli in an environment of its own, as the seeds' archive_command calls it."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", AWSCLI],
            check=True,
        )
        self._aws = folder / "venv" / "bin" / "aws"
        self._ca = folder / "ca.crt"
        self._ca.write_text(deployment.hosts.run("s3", "cat", "/etc/elsapg/tls/ca.crt").output)
        self._bucket = deployment.settings.archive.bucket
        key, secret = (
            deployment.hosts.run("s3", "cat", f"/etc/elsapg/s3-{name}-key").output.strip()
            for name in ("access", "secret")
        )
        client = docker.from_env()
        attributes = client.containers.get(deployment.hosts.physical("s3")).attrs
        [network] = attributes["NetworkSettings"]["Networks"].values()
        client.close()
        self._endpoint = f"https://{network['IPAddress']}:9000"
        self._env = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": deployment.settings.archive.region,
            "PYTHONWARNINGS": "ignore",
        }
        self._segment = folder / "segment"
        self._segment.write_bytes(os.urandom(SEGMENT // 2) + bytes(SEGMENT // 2))

    def push(self, name: str) -> None:
        """Archive one segment as the seeds do."""
        subprocess.run(
            [self._aws, "--endpoint-url", self._endpoint, "--no-verify-ssl", "s3", "cp",
             "--only-show-errors", self._segment, f"s3://{self._bucket}/seeds-wal/{name}"],
            env=self._env, check=True, capture_output=True,
        )  # fmt: skip


@contextlib.contextmanager
def archive_command(deployment: Deployment, node: str, command: str) -> Iterator[None]:
    """Another archive_command meanwhile."""
    deployment.query(node, f"ALTER SYSTEM SET archive_command = '{command}'")
    deployment.query(node, "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        deployment.query(node, "ALTER SYSTEM RESET archive_command")
        deployment.query(node, "SELECT pg_reload_conf()")


def _queued(deployment: Deployment, node: str) -> int:
    [[count]] = deployment.query(
        node, "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
    )
    return int(count)


def _drain(deployment: Deployment, node: str) -> None:
    while _queued(deployment, node):
        time.sleep(0.2)


def _ours(deployment: Deployment, node: str) -> float:
    """Segments per second: a queue is made while nothing is archived, and timed as it goes."""
    with archive_command(deployment, node, "/bin/false"):
        for _ in range(QUEUE):
            deployment.query(
                node,
                "INSERT INTO public.archive_bench SELECT n, string_agg(md5((n * m)::text), '')"
                " FROM generate_series(1, 400) AS n, generate_series(1, 300) AS m GROUP BY n;"
                " SELECT pg_switch_wal()",
            )
        before = _queued(deployment, node)
    began = time.monotonic()
    _drain(deployment, node)
    return before / (time.monotonic() - began)


def _wal(deployment: Deployment, node: str) -> float:
    """Segments written since the beginning."""
    [[number]] = deployment.query(
        node, f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') / {SEGMENT}"
    )
    return float(number)


class Load:
    """Four pgbench clients on the primary for SECONDS; what they managed."""

    def __init__(self, deployment: Deployment, node: str) -> None:
        script = f"cat > /tmp/archive.sql <<'E'\n{SCRIPT}E\n"
        done = deployment.hosts.run(node, "sh", "-c", script)
        assert done.code == 0, done.output
        self._thread = threading.Thread(target=self._run, args=(deployment, node))
        self._output = ""
        self._thread.start()

    def _run(self, deployment: Deployment, node: str) -> None:
        self._output = deployment.hosts.run(
            node, "pgbench", "-n", "-h", "/run/postgresql", "-U", "postgres", "-c", str(CLIENTS),
            "-j", "2", "-T", str(SECONDS), "-f", "/tmp/archive.sql", "elsa_runtime",
            timeout=SECONDS + 120,
        ).output  # fmt: skip

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    @property
    def tps(self) -> float:
        self._thread.join()
        [line] = [li for li in self._output.splitlines() if li.startswith("tps = ")]
        return float(line.split()[2])


def _behind_ours(deployment: Deployment, node: str) -> dict[str, float]:
    _drain(deployment, node)
    began, most, load = _wal(deployment, node), 0, Load(deployment, node)
    while load.runs:
        most = max(most, _queued(deployment, node))
        time.sleep(0.5)
    left, written = _queued(deployment, node), _wal(deployment, node) - began
    return {"tps": load.tps, "segments": written, "most_behind": most, "left_behind": left}


def _behind_seeds(deployment: Deployment, node: str, seeds: Seeds) -> dict[str, float]:
    """The same load; segments go one after the other through the seeds' command."""
    with archive_command(deployment, node, "/bin/true"):
        began, most, sent, load = _wal(deployment, node), 0, 0, Load(deployment, node)
        while load.runs:
            behind = int(_wal(deployment, node) - began) - sent
            most = max(most, behind)
            if behind > 0:
                seeds.push(f"load-{sent}")
                sent += 1
            else:
                time.sleep(0.1)
        written = _wal(deployment, node) - began
    left = int(written) - sent
    return {
        "tps": load.tps, "segments": written, "most_behind": max(most, left), "left_behind": left,
    }  # fmt: skip


def _nothing(deployment: Deployment, node: str) -> dict[str, float]:
    with archive_command(deployment, node, "/bin/true"):
        return {"tps": Load(deployment, node).tps}


def run(deployment: Deployment, runs: int | None = None) -> Path:
    """Measure on a running stack, which then has a hole in its archive: it is the bench's own."""
    on, node = machine(), deployment.primary()
    deployment.query(
        node, "CREATE TABLE IF NOT EXISTS public.archive_bench (id bigint, t text)", "elsa_runtime"
    )
    deployment.query(node, "CREATE TABLE IF NOT EXISTS public.archive_bench (id bigint, t text)")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        seeds = Seeds(deployment, Path(folder))
        seeds.push("warm")
        for number in range(runs or 3):
            began = time.monotonic()
            for count in range(QUEUE // 4):
                seeds.push(f"{number}-{count}")
            theirs = (QUEUE // 4) / (time.monotonic() - began)
            one = {
                "seeds_per_s": theirs,
                "ours_per_s": _ours(deployment, node),
                "none": _nothing(deployment, node),
                "ours": _behind_ours(deployment, node),
                "seeds": _behind_seeds(deployment, node, seeds),
            }
            found.append(one)
            print(one, file=sys.stderr, flush=True)
            deployment.query(node, "TRUNCATE public.archive_bench", "elsa_runtime")
            deployment.query(node, "TRUNCATE public.archive_bench")
    deployment.query(node, "DROP TABLE public.archive_bench", "elsa_runtime")
    deployment.query(node, "DROP TABLE public.archive_bench")

    def median(*keys: str) -> float:
        values = [one[keys[0]][keys[1]] if len(keys) > 1 else one[keys[0]] for one in found]
        return statistics.median(values)

    ratio = statistics.median(one["ours_per_s"] / one["seeds_per_s"] for one in found)
    cost = statistics.median(1 - one["ours"]["tps"] / one["none"]["tps"] for one in found)
    seeds_cost = statistics.median(1 - one["seeds"]["tps"] / one["none"]["tps"] for one in found)
    rows: list[list[object]] = [
        ["segments per second, of a queue", f"{median('seeds_per_s'):.2f}",
         f"{median('ours_per_s'):.2f}", f"{ratio:.1f}x (goal {GOAL:.0f}x)"],
        [f"{CLIENTS} clients: segments written in {SECONDS} s",
         f"{median('seeds', 'segments'):.0f}", f"{median('ours', 'segments'):.0f}", ""],
        ["most segments behind", f"{median('seeds', 'most_behind'):.0f}",
         f"{median('ours', 'most_behind'):.0f}", ""],
        ["still behind when the load ends", f"{median('seeds', 'left_behind'):.0f}",
         f"{median('ours', 'left_behind'):.0f}", "goal 0"],
        ["clients' transactions per second", f"{median('seeds', 'tps'):.0f}",
         f"{median('ours', 'tps'):.0f}", f"without archiving {median('none', 'tps'):.0f}"],
        ["of which archiving costs", f"{seeds_cost:.0%}", f"{cost:.0%}", ""],
    ]  # fmt: skip
    header = ("what", "aws s3 cp", "elsapg", "")
    return write("archive", "WAL archiving", on, found, table(header, rows))
