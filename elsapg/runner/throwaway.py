"""A throw-away server in the runner: restored from the repository, reached by nobody else.

It listens on no address, its socket lies in a folder that only this user can enter, it archives
nothing, runs no job, and is gone with its folder. What was left by a killed run goes first.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from elsapg.errors import UnhealthyError
from elsapg.runner import repository
from elsapg.runner.config import Config

HOME = Path("/var/lib/elsapg/drill")
DATA = HOME / "data"
RUN = HOME / "run"
SPOOL = HOME / "spool"
# In memory: it holds the keys.
PGBACKREST = Path("/tmp/elsapg-drill-pgbackrest.conf")
# Recovery insists on what the primary had; pg_control says what that was.
_LEAST = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_xacts",
    "max_locks_per_xact",
)
_CALLED = {
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}
START_S = 24 * 3600


class RestoreError(UnhealthyError):
    """The backup could not be restored, or the server did not come up from it."""


def clear() -> None:
    """Stop and remove what an earlier run left."""
    with contextlib.suppress(OSError, ValueError):
        process = int((DATA / "postmaster.pid").read_text(encoding="ascii").split()[0])
        # The number may have gone to another process since.
        if b"postgres" in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGQUIT)
            deadline = time.monotonic() + 30
            while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
    shutil.rmtree(HOME, ignore_errors=True)
    PGBACKREST.unlink(missing_ok=True)


def restore(config: Config, lsn: str) -> float:
    """Restore the newest backup before `lsn`, to be recovered up to there; returns the seconds."""
    clear()
    for folder in (HOME, DATA, RUN, SPOOL):
        folder.mkdir(mode=0o700, parents=True)
    _write_configuration(config)
    clock = time.monotonic()
    done = subprocess.run(
        [
            "pgbackrest", f"--config={PGBACKREST}", f"--stanza={config.stanza}", "--type=lsn",
            f"--target={lsn}", "--target-exclusive", "--target-action=promote",
            "--archive-mode=off", "restore",
        ],
        env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        told = " ".join([line for line in lines if "ERROR" in line] or lines)[:600]
        raise RestoreError(f"the backup could not be restored ({done.returncode}): {told}")
    return time.monotonic() - clock


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("PGBACKREST_")}


def _write_configuration(config: Config) -> None:
    """The runner's own configuration, whose nodes are far away, with this folder instead."""
    own = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    includes = os.environ.get("PGBACKREST_CONFIG_INCLUDE_PATH", str(repository.INCLUDES))
    own.read(
        [
            os.environ.get("PGBACKREST_CONFIG", str(repository.CONFIG)),
            *sorted(Path(includes).glob("*.conf")),
        ],
        encoding="utf-8",
    )
    wanted = re.compile(r"^(repo\d+-(?!retention|bundle|block)|process-max$|io-timeout$)")
    text = "[global]\n"
    text += "".join(f"{k}={v}\n" for k, v in own["global"].items() if wanted.match(k))
    text += "lock-path=/tmp/elsapg-drill\nlog-level-console=warn\nlog-level-file=off\n"
    # WAL is fetched ahead, in parallel: one process for each segment takes most of a recovery.
    text += f"archive-async=y\narchive-get-queue-max=256MiB\nspool-path={SPOOL}\n"
    text += f"[{config.stanza}]\npg1-path={DATA}\n"
    PGBACKREST.touch(mode=0o600)
    PGBACKREST.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def running(memory_mb: int = 128) -> Iterator[None]:
    """Recover and promote it; gone at the end, whatever happens. Raises RestoreError."""
    (HOME / "hba.conf").write_text("local all all trust\n", encoding="ascii")
    (HOME / "ident.conf").touch()
    least = "".join(f"{name} = {value}\n" for name, value in _least().items())
    (HOME / "postgresql.conf").write_text(
        f"""{least}listen_addresses = ''
unix_socket_directories = '{RUN}'
data_directory = '{DATA}'
hba_file = '{HOME}/hba.conf'
ident_file = '{HOME}/ident.conf'
shared_buffers = {memory_mb}MB
maintenance_work_mem = 64MB
shared_preload_libraries = 'pgaudit'
event_triggers = off
archive_mode = off
fsync = off
hot_standby = on
log_destination = stderr
logging_collector = off
synchronous_standby_names = ''
""",
        encoding="utf-8",
    )
    log = HOME / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["postgres", "-D", str(DATA), "-c", f"config_file={HOME}/postgresql.conf"],
            stdout=output, stderr=subprocess.STDOUT, env=_environment(),
        )  # fmt: skip
    try:
        _wait(server, log)
        yield
    finally:
        server.send_signal(signal.SIGQUIT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        clear()


def _least() -> dict[str, str]:
    done = subprocess.run(["pg_controldata", str(DATA)], capture_output=True, text=True, check=True)
    found = {}
    for name in _LEAST:
        match = re.search(rf"^{name} setting:\s+(\d+)", done.stdout, re.MULTILINE)
        if match:
            found[_CALLED.get(name, name)] = match[1]
    return found


def connect(database: str) -> psycopg.Connection[Any]:
    return psycopg.connect(f"host={RUN} user=postgres dbname={database}")


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    """Until recovery has reached its target and the server takes writes."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RestoreError(f"recovery failed: {_last_words(log)}")
        with contextlib.suppress(psycopg.OperationalError), connect("postgres") as db:
            if db.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone() == (False,):
                return
        time.sleep(0.1)
    raise RestoreError(f"recovery did not end within {START_S // 3600} h: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # What our own asking was told meanwhile is of no interest.
    grave = [
        line
        for line in lines
        if any(word in line for word in ("FATAL", "PANIC", "ERROR"))
        and "the database system is" not in line
    ]
    return " ".join((grave or lines)[-4:])[:800]
