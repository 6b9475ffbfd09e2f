"""A throw-away PostgreSQL from the product's image, bootstrapped by the product's runner.

Nobody but the superuser is trusted in it: every other role logs in with its SCRAM password, so
the tests see what a client sees.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from elsapg.runner.bootstrap import PASSWORD_ROLES, Result, bootstrap
from tests.stacks import images

SQL_DIR = Path(__file__).parents[2] / "bootstrap_sql"
PASSWORDS = {role: f"test-only-{role}" for role in PASSWORD_ROLES}
LABEL = "elsapg.test=sql"

# Background workers: pg_cron wants one per running job.
START = """
set -eu
export PATH=/usr/lib/postgresql/17/bin:$PATH
initdb -D /tmp/pgdata -U postgres -A trust --no-sync -E UTF8 \
    --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C.UTF-8 >/dev/null
cat > /tmp/pgdata/pg_hba.conf <<HBA
local all postgres trust
host all postgres all trust
host all all all scram-sha-256
HBA
exec postgres -D /tmp/pgdata -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off \
    -c max_connections=120 -c max_worker_processes=16 \
    -c shared_preload_libraries=pg_stat_statements,pgaudit,pg_cron \
    -c pgaudit.log=ddl,role -c pgaudit.role=elsa_auditor -c pgaudit.log_catalog=off \
    -c pgaudit.log_statement_once=on \
    -c cron.database_name=postgres -c cron.use_background_workers=on -c cron.timezone=UTC \
    -c log_min_duration_statement=0
"""


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"docker {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclass(frozen=True)
class Server:
    """One running PostgreSQL."""

    container: str
    port: int

    def connect(
        self, database: str = "postgres", user: str = "postgres", **options: Any
    ) -> psycopg.Connection[Any]:
        if user in PASSWORDS:
            options.setdefault("password", PASSWORDS[user])
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname=database, user=user, **options
        )

    def value(self, query: str, parameters: tuple[Any, ...] = (), **where: str) -> Any:
        """The first column of the only row, as the superuser unless told otherwise."""
        with self.connect(**where) as connection:
            row = connection.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return row[0]

    def rows(self, query: str, parameters: tuple[Any, ...] = (), **where: str) -> list[Any]:
        with self.connect(**where) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def logs(self) -> str:
        done = subprocess.run(
            ["docker", "logs", self.container], capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    def bootstrap(
        self,
        sql_dir: Path = SQL_DIR,
        passwords: dict[str, str] | None = None,
        log: Callable[[str], None] = print,
        **options: Any,
    ) -> Result:
        return bootstrap(self.connect, sql_dir, passwords or PASSWORDS, log, **options)


@contextmanager
def running(start: str = START) -> Iterator[Server]:
    """A new server, begun by the shell script `start`; gone at the end, whatever happens."""
    name = f"elsapg-test-sql-{uuid.uuid4().hex[:8]}"
    try:
        docker(
            "run", "--detach", "--rm", "--name", name, "--label", LABEL, "--user", "postgres",
            "--publish", "127.0.0.1::5432", "--tmpfs", "/tmp:exec,mode=1777",
            "--entrypoint", "bash", images()["postgres"], "-c", start,
        )  # fmt: skip
        yield reach(name)
    finally:
        docker("rm", "--force", name, check=False)


def reach(container: str) -> Server:
    """The server in a container, once it answers."""
    port = int(docker("port", container, "5432/tcp").splitlines()[0].rsplit(":", 1)[1])
    server = Server(container, port)
    deadline = time.monotonic() + 60
    while True:
        try:
            server.connect().close()
            return server
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no server after 60 s: {server.logs()}") from error
            time.sleep(0.2)
