"""A throw-away PostgreSQL with its data on disk, for what does not fit into memory.

From the product's image and bootstrapped by the product's runner, as in `tests/sql`; there the
data lie in a tmpfs. `fsync` is off: a disk's latency would hide what is compared here, so ratios
come out larger than a real server's.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.sql import sql_server
from tests.sql.sql_server import Server, docker

SEEDS = Path(__file__).resolve().parent / "seeds"

# pg_cron's jobs would run into the measurements.
START = """
set -eu
export PATH=/usr/lib/postgresql/17/bin:$PATH
chown postgres /bench
run() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
run initdb -D /bench/data -U postgres -A trust --no-sync -E UTF8 \
    --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C.UTF-8 >/dev/null
printf 'local all all trust\\nhost all postgres all trust\\nhost all all all scram-sha-256\\n' \
    > /bench/data/pg_hba.conf
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D /bench/data \
    -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off \
    -c full_page_writes=off -c shared_buffers=1GB -c effective_cache_size=12GB \
    -c max_wal_size=16GB -c checkpoint_timeout=1h -c maintenance_work_mem=1GB \
    -c max_connections=120 -c max_worker_processes=16 \
    -c shared_preload_libraries=pg_stat_statements,pgaudit,pg_cron -c pgaudit.log=ddl,role \
    -c cron.database_name=postgres -c cron.use_background_workers=on \
    -c cron.launch_active_jobs=off
"""


@contextmanager
def disk_server() -> Iterator[Server]:
    """A bootstrapped server on a Docker volume; both are removed whatever happens."""
    name = f"elsapg-bench-{uuid.uuid4().hex[:8]}"
    docker("volume", "create", "--label", sql_server.LABEL, name)
    try:
        docker(
            "run", "--detach", "--name", name, "--label", sql_server.LABEL, "--user", "root",
            "--publish", "127.0.0.1::5432", "--shm-size", "1g", "--volume", f"{name}:/bench",
            "--entrypoint", "bash", sql_server.find_image(), "-c", START,
        )  # fmt: skip
        server = sql_server.reach(name)
        server.bootstrap(log=lambda _line: None)
        yield server
    finally:
        docker("rm", "--force", "--volumes", name, check=False)
        docker("volume", "rm", "--force", name, check=False)


def pgbench(
    server: Server,
    script: str,
    *,
    clients: int,
    seconds: int | None = None,
    transactions: int = 1,
) -> float:
    """Run a pgbench script for some seconds, or so many transactions of each client.

    In elsa_workflows as the superuser, with prepared statements, inside the server's container,
    through its socket. Returns the median transaction's milliseconds: one that the machine's other
    work interrupts says nothing. Raises RuntimeError when a transaction fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.sql"
        file.write_text(script, encoding="utf-8")
        file.chmod(0o644)
        docker("cp", str(file), f"{server.container}:/tmp/bench.sql")
    length = f"-t {transactions}" if seconds is None else f"-T {seconds}"
    done = subprocess.run(
        [
            "docker", "exec", server.container, "bash", "-c",
            "rm -rf /tmp/log; mkdir /tmp/log; /usr/lib/postgresql/17/bin/pgbench -h /tmp"
            f" -U postgres -n -f /tmp/bench.sql -M prepared -c {clients} -j {min(clients, 2)}"
            f" {length} -l --log-prefix=/tmp/log/log elsa_workflows >&2 && cat /tmp/log/log*",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0 or "number of failed transactions: 0 " not in done.stderr:
        raise RuntimeError(f"pgbench failed:\n{done.stderr}\n{script}")
    # A line: client, transaction, latency in microseconds, …
    return statistics.median(int(line.split()[2]) / 1000 for line in done.stdout.splitlines())
