"""How a stack's first node comes to its data: Patroni calls this when the cluster has none.

Without an order it is made empty; but never beside an archive that holds backups, for whoever lost
the volumes wants them back, and a new cluster could not archive there. With an order
(/etc/elsapg/recovery.json: from `up`, or on kubernetes from the stack's file) it is recovered from
the repository, the stack's own or another one's (/etc/elsapg/source.conf), which is only ever read.

Killed in the middle, it would leave Patroni something worse than nothing: its word in the DCS that
somebody makes the cluster, for which all nodes wait, and data that looks like a database's and has
but a part of the WAL, which Patroni would open. `again` clears both away before Patroni starts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from elsapg.errors import DeploymentError, ElsapgError
from elsapg.runner import kube, recovery, target
from elsapg.runner.archive import Plan
from elsapg.runner.pgbackrest import Repository, RepositoryError
from elsapg.runner.recovery import PrivateServer

FOLDER = Path("/var/lib/postgresql")
DATA = FOLDER / "data"
WORK = FOLDER / "elsapg-restore"
CONFIG = Path("/etc/elsapg")
NOTE = FOLDER / "elsapg-recovered.json"
# There while a node's data is being made. Once it says so, what lies in DATA is no database.
BEGUN = FOLDER / "elsapg-founding"
_LOOKING, _MAKING = "looking", "making"
ORDER = CONFIG / "recovery.json"
SOURCE = CONFIG / "source.conf"
# Patroni's state of a member that runs this.
_FOUNDING = "running custom bootstrap script"
# S3 may be starting as well; and a Secret takes a minute to reach a pod that runs.
PATIENCE_S = 120.0


def say(text: str) -> None:
    print(f"elsapg: {text}", flush=True)


def order(path: Path = ORDER) -> dict[str, Any] | None:
    """What is to be recovered: {"to", "timeline", "backup"}, and {"source"} if the backups are
    those of another stack; None for an empty database."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def source(
    wanted: dict[str, Any], config: Path = SOURCE, patience: float = PATIENCE_S
) -> Repository:
    """The repository to recover from. Raises DeploymentError where it is another stack's, and
    nothing opens it."""
    stack = wanted.get("source")
    if stack is None:
        return Repository()
    deadline = time.monotonic() + patience
    if not config.exists():
        say(f"waiting, for {_closed(stack)}")
    while not config.exists():
        if time.monotonic() > deadline:
            raise DeploymentError(_closed(stack))
        time.sleep(1)
    return Repository(config=config)


def _closed(stack: str) -> str:
    return (
        f"this stack is made of the backups of stack {stack!r}, and what opens them is not there: "
        f"Secret source of namespace {_namespace()} (`elsapg secrets apply` of this stack makes it)"
    )


def plan(repository: Repository, wanted: dict[str, Any]) -> Plan:
    """How the order is carried out. Raises UsageError, RepositoryError."""
    return repository.archive().plan(
        target.parse(wanted["to"]), timeline=wanted.get("timeline"), label=wanted.get("backup")
    )


def patient_info(repository: Repository, patience: float = PATIENCE_S) -> dict[str, Any]:
    """The repository's account, once it answers. Raises RepositoryError."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return repository.info()
        except RepositoryError as error:
            if time.monotonic() > deadline or "does not answer" not in str(error):
                raise
        time.sleep(1)


def check() -> str:
    """The runner's task before a recovery: everything that can be told before a node is made."""
    wanted = order()
    if wanted is None:
        raise DeploymentError("nothing is to be recovered: recovery.json is missing")
    repository = source(wanted)
    patient_info(repository)
    found = plan(repository, wanted)
    return (
        f"backup {found.backup} (of {found.backup_stopped}) and {len(found.segments)} WAL segments"
        f" lead to {found.value or 'the end'} on timeline {found.timeline}"
    )


def empty() -> None:
    """A new database, unless the archive is that of another one."""
    held = patient_info(Repository()).get("backup", [])
    if held:
        raise DeploymentError(
            f"the archive holds {len(held)} backups, the last one {held[-1]['label']}, and this "
            f"stack has no data: {_way_back()} brings the data back; for an empty "
            "database set archive.prefix to an unused one"
        )
    settings = _patroni()
    words = ["initdb", "--pgdata", str(DATA), "--username=postgres"]
    for option in settings["bootstrap"]["initdb"]:
        if isinstance(option, dict):
            words += [f"--{name}={value}" for name, value in option.items()]
        else:
            words.append(f"--{option}")
    BEGUN.write_text(_MAKING, encoding="utf-8")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeploymentError(f"initdb failed: {' '.join(done.stderr.split())[-400:]}")


def _refuse_own_backups(stack: str) -> None:
    """What was made of another stack, and lost, comes back out of its own archive."""
    held = patient_info(Repository()).get("backup", [])
    if held:
        raise DeploymentError(
            f"the archive of this stack holds {len(held)} backups of its own, the last one "
            f"{held[-1]['label']}: {_way_back()} brings the data back; to make it of stack "
            f"{stack!r} again set archive.prefix and archive.dump_prefix to unused ones"
        )


def _way_back() -> str:
    if _namespace() is not None:
        return "`elsapg:recovery: {to: latest}` in its file, rendered and applied,"
    return "`elsapg up --from-backup`"


def _namespace() -> str | None:
    """That of this pod, on kubernetes. Patroni has taken its variables out of the environment."""
    try:
        return (kube.ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def recover(wanted: dict[str, Any]) -> None:
    """The data of the backup, recovered to the target, on a line of its own."""
    repository = source(wanted)
    if repository.config is not None:
        _refuse_own_backups(wanted["source"])
    patient_info(repository)
    found = plan(repository, wanted)
    say(f"recovering to {found.value or 'the end'} from backup {found.backup}")
    BEGUN.write_text(_MAKING, encoding="utf-8")
    DATA.mkdir(mode=0o700, exist_ok=True)
    recovery.fetch(repository, found, DATA, WORK, say, _never)
    minimum = _patroni()["bootstrap"]["dcs"]["postgresql"]["parameters"]
    # Another stack's archive gets nothing from here; this stack's own learns of the new line.
    own = repository.config is None
    server = PrivateServer(DATA, WORK, repository, minimum=minimum, archive=own)
    server.start(found)
    try:
        reached = server.wait(found, say, _never)
        line = server.promote()
    finally:
        recovery.stop(DATA)
    note = {
        **asdict(reached),
        "timeline": line,
        "backup": found.backup,
        "target": str(wanted["to"]),
    }
    NOTE.write_text(json.dumps(note), encoding="utf-8")
    say(f"recovered to {reached.lsn}, last commit {reached.last_commit}; timeline {line}")


def again() -> None:
    """Clear away what a predecessor that did not come to its end has left. Only if there was one:
    whatever else lies in the data directory, or stands in the DCS, is not ours to judge.

    Nothing is kept to go on with: this node may be a standby now, and that begins empty. Raises
    DeploymentError when the DCS does not answer.
    """
    if not BEGUN.exists():
        return
    say("an attempt to make this node's data did not come to its end; it is made again")
    # Else there may still be the WAL of a database whose data was lost. It may be on a volume of
    # its own, which the data does not even lead to yet.
    if BEGUN.read_text(encoding="utf-8") == _MAKING:
        for folder in (recovery.WAL, DATA):
            if folder.exists():
                shutil.rmtree(folder)
    _withdraw()
    BEGUN.unlink()


def _withdraw() -> None:
    """Take back in the DCS that this node makes the cluster, unless another one does so now."""
    # Only the postgres image has it.
    from patroni.config import Config  # type: ignore[import-not-found]  # noqa: PLC0415
    from patroni.dcs import get_dcs  # type: ignore[import-not-found]  # noqa: PLC0415
    from patroni.exceptions import DCSError  # type: ignore[import-not-found]  # noqa: PLC0415

    # As patronictl asks: once, without watching.
    settings = {**Config(str(CONFIG / "patroni.yml"), validator=None).copy(), "patronictl": True}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            dcs = get_dcs(settings)
            cluster = dcs.get_cluster()
            # The word itself does not say whose it is.
            others = [
                m.data.get("state") for m in cluster.members if m.name != settings.get("name")
            ]
            if cluster.initialize != "" or _FOUNDING in others or dcs.cancel_initialization():
                return
            told = "it does not take the word back"
        except DCSError as error:
            told = str(error)
        if time.monotonic() > deadline:
            raise DeploymentError(f"Patroni's DCS does not answer: {told}")
        time.sleep(1)


def _patroni() -> dict[str, Any]:
    # Only the postgres image has it, where Patroni needs it.
    import yaml  # noqa: PLC0415

    return dict(yaml.safe_load((CONFIG / "patroni.yml").read_text(encoding="utf-8")))


def _never() -> bool:
    return False


def main(words: Sequence[str]) -> int:
    """Entry of the `found-cluster` command in the postgres image: `found-cluster [again]`."""
    try:
        if words:
            again()
            return 0
        BEGUN.write_text(_LOOKING, encoding="utf-8")
        wanted = order()
        if wanted is None:
            empty()
        else:
            recover(wanted)
    except (ElsapgError, TimeoutError, psycopg.Error, OSError) as error:
        # The mark stays: Patroni hears of the failure, but may be killed before it has cleared up.
        say(f"error: {' '.join(str(error).split())}")
        return 1
    BEGUN.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
