"""A throw-away copy in the runner: restored from the repository, reached by nobody else.

It listens on no address, its socket lies in a folder that only this user can enter, it archives
nothing, runs no job, and is gone with its folder. What was left by a killed run goes first.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from elsapg.runner import recovery, repository
from elsapg.runner.archive import Plan
from elsapg.runner.config import Config
from elsapg.runner.jobs import say
from elsapg.runner.pgbackrest import Repository
from elsapg.runner.recovery import PrivateServer

HOME = Path("/var/lib/elsapg/drill")
DATA, RUN, SPOOL, WORK = (HOME / name for name in ("data", "run", "spool", "work"))
# In memory: it holds the keys.
PGBACKREST = Path("/tmp/elsapg-drill-pgbackrest.conf")
_MEMORY_MB = 128


def clear() -> None:
    """Stop and remove what an earlier run left."""
    recovery.stop(DATA, timeout=30)
    shutil.rmtree(HOME, ignore_errors=True)
    PGBACKREST.unlink(missing_ok=True)


def restore(config: Config, plan: Plan) -> None:
    """Fetch the plan's backup. Raises RecoveryError."""
    clear()
    for folder in (HOME, DATA, RUN, SPOOL):
        folder.mkdir(mode=0o700, parents=True)
    _write_configuration(config)
    recovery.fetch(_source(), plan, DATA, WORK, say, _never)


def _source() -> Repository:
    return Repository(config=PGBACKREST)


def _never() -> bool:
    return False


def _write_configuration(config: Config) -> None:
    """The runner's own configuration, whose nodes are far away, with this folder instead."""
    wanted = re.compile(r"repo\d+-(?!retention|bundle|block)|(?:process-max|io-timeout)$")
    text = "[global]\n"
    text += "".join(f"{k}={v}\n" for k, v in repository.options().items() if wanted.match(k))
    text += f"lock-path={HOME}/lock\nlog-level-console=warn\nlog-level-file=off\n"
    # WAL is fetched ahead, in parallel: one process for each segment takes most of a recovery.
    text += f"archive-async=y\narchive-get-queue-max=256MiB\nspool-path={SPOOL}\n"
    text += f"[{config.stanza}]\npg1-path={DATA}\n"
    PGBACKREST.touch(mode=0o600)
    PGBACKREST.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def running(plan: Plan) -> Iterator[PrivateServer]:
    """Recover it along the plan, and let it take writes; gone at the end, whatever happens.

    Raises RecoveryError.
    """
    # Nothing of the source's own parameters: the memory here is another.
    own = HOME / "postgresql.conf"
    own.touch()
    settings = {
        "config_file": str(own),
        "shared_buffers": f"{_MEMORY_MB}MB",
        "maintenance_work_mem": "64MB",
        # What amcheck's installation sets off needs it, or must not be set off.
        "shared_preload_libraries": "pgaudit",
        "event_triggers": "off",
        "fsync": "off",
    }
    server = PrivateServer(DATA, WORK, _source(), archive=False, sockets=RUN, settings=settings)
    try:
        server.start(plan)
        server.wait(plan, say, _never)
        server.open()
        yield server
    finally:
        clear()
