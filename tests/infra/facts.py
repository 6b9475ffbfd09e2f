"""What the checks look at: fetched once per run, in few commands, and shared.

A command inside a unit costs a tenth of a second, so one script tells all about a unit's
processes and files, and one query all about a server.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import psycopg
import pytest

from elsapg.definition import topology as t
from elsapg.definition.parameters import parameters
from elsapg.errors import ElsapgError
from elsapg.services.deployment import Deployment
from tests.infra.queries import DATABASE_FACTS, SERVER_FACTS

Row = dict[str, Any]
_T = TypeVar("_T")
UID = t.UID
SEPARATOR = "\x1e"
REPOSITORY_SECRETS = "/etc/elsapg/pgbackrest.d/secrets.conf"


class NotSo(AssertionError):
    """A check that does not hold: what was found instead, and what to do about it."""

    def __init__(self, found: str, todo: str) -> None:
        self.found = found
        self.todo = todo
        super().__init__(f"{found} -> {todo}")


# What to do, or, where that has to be asked for, how to find it out when it is needed.
Todo = str | Callable[[], str]


def judge(holds: object, found: object, todo: Todo) -> None:
    """Raise NotSo unless `holds`."""
    if not holds:
        raise NotSo(str(found), todo if isinstance(todo, str) else todo())


def same(found: object, wanted: object, todo: str) -> None:
    """Raise NotSo, naming the difference only, unless `found` equals `wanted`."""
    if found != wanted:
        raise NotSo(difference(found, wanted), todo)


def none(wrong: Iterable[object], todo: Todo) -> None:
    """Raise NotSo, listing them, if there are any `wrong` things."""
    listed = [str(thing) for thing in wrong]
    if listed:
        more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
        judge(False, "; ".join(listed[:8]) + more, todo)


def difference(found: object, wanted: object) -> str:
    """What differs, in words. Sets and mappings are compared by their members."""
    if isinstance(found, (set, frozenset)) and isinstance(wanted, (set, frozenset)):
        extra, missing = sorted(map(str, found - wanted)), sorted(map(str, wanted - found))
        parts = [f"unexpected: {', '.join(extra)}"] if extra else []
        return "; ".join(parts + ([f"missing: {', '.join(missing)}"] if missing else []))
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        keys = sorted({*found, *wanted}, key=str)
        absent = "nothing"
        return "; ".join(
            f"{key}: {found.get(key, absent)!r}, not {wanted.get(key, absent)!r}"
            for key in keys
            if found.get(key, absent) != wanted.get(key, absent)
        )
    return f"{found!r}, not {wanted!r}"


def unjudged(reason: str) -> NoReturn:
    """The check cannot be made; what prevents it is another check's finding."""
    pytest.skip(reason)


@dataclass(frozen=True)
class Containment:
    """How the engine holds a unit."""

    user: str
    read_only: bool
    memory_bytes: int
    restarts: int
    environment: tuple[str, ...]
    out_of_memory: bool


class Backend(Protocol):
    """What a target must offer so that its stacks can be verified."""

    def host(self, unit: str) -> Any:
        """A testinfra host for a unit."""

    def containment(self, unit: str) -> Containment: ...

    def logs(self, unit: str) -> str: ...

    def image_history(self) -> str:
        """What the stack's images tell about themselves: layers, commands, environment."""

    def pool(self, pooler: str) -> tuple[str, int]:
        """Where a client of this machine reaches a pooler."""

    def lost(self, pooler: str) -> bool:
        """Whether the way there was lost, and not the pooler said no: then try again."""

    def close(self) -> None: ...


UNIT_SCRIPT = r"""
section() { printf '\036%s\n' "$1"; }
section self; echo $$
section processes
# grep passes by what has ended meanwhile; awk by itself would end with it, and miss all the rest.
grep -sE '^(Name|State|Pid|PPid|Uid|CapEff|CapPrm|NoNewPrivs):' /proc/[0-9]*/status \
  | sed 's/:/ /' | awk '{print $1, $2, $3}'
section cmdline; grep -as '' /proc/[0-9]*/cmdline | tr '\000' ' '
section environ; grep -as '' /proc/[0-9]*/environ | tr '\000' '\n'
section executable
for p in /proc/[0-9]*; do printf '%s %s\n' "${p#/proc/}" "$(readlink "$p/exe")"; done
section open_files; sed -n 's/^Max open files *\([0-9]*\).*/\1/p' /proc/1/limits
section mounts; cat /proc/1/mounts
section files; find /etc/elsapg -printf '%y %m %U %G %p\n'
section packages; dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n'
section release; cat /etc/os-release
section writable
for d in / /etc /etc/elsapg /etc/elsapg/tls /usr/bin /usr/local/bin /usr/lib; do
  [ -d "$d" ] && ( : > "$d/.elsapg-write-test" ) 2>/dev/null \
    && { echo "$d"; rm -f "$d/.elsapg-write-test"; }
done
section owner
[ -d /var/lib/postgresql/data ] && stat -c '%a %u %g' /var/lib/postgresql/data
section certificates
for f in /etc/elsapg/tls/*.crt; do echo "# $f"; cat "$f"; done
section end
"""


@dataclass
class Process:
    """One process of a unit."""

    pid: int
    name: str = ""
    state: str = ""
    parent: int = 0
    uid: int = -1
    capabilities: str = ""
    no_new_privileges: bool = False
    command: str = ""
    executable: str = ""


@dataclass(frozen=True)
class FileFact:
    """A file or folder below /etc/elsapg."""

    path: str
    kind: str
    mode: int
    owner: int
    group: int


@dataclass(frozen=True)
class Unit:
    """One running unit, as seen from inside."""

    name: str
    host: Any
    processes: tuple[Process, ...]
    environ: str
    open_files: int
    mounts: tuple[str, ...]
    files: tuple[FileFact, ...]
    packages: Mapping[str, str]
    release: Mapping[str, str]
    writable: tuple[str, ...]
    data_directory: str
    certificates: Mapping[str, str]

    @property
    def first(self) -> Process:
        """Process 1."""
        return next(p for p in self.processes if p.pid == 1)

    @property
    def tree(self) -> tuple[Process, ...]:
        """Process 1 and what came of it: not the sessions of people who look in."""
        members = {1}
        while True:
            found = {p.pid for p in self.processes if p.parent in members} | members
            if found == members:
                return tuple(p for p in self.processes if p.pid in members)
            members = found


def read_unit(name: str, host: Any) -> Unit:
    """Look at everything in a unit, by one command."""
    output = host.run(UNIT_SCRIPT).stdout
    parts = {
        head: body
        for head, _, body in (p.partition("\n") for p in output.split(SEPARATOR) if p.strip())
    }
    judge("end" in parts, f"{name} answered only: {sorted(parts)}", "look at its log")
    processes = _processes(parts)
    files = []
    for line in parts["files"].splitlines():
        kind, mode, owner, group, path = line.split(" ", 4)
        files.append(FileFact(path, kind, int(mode, 8), int(owner), int(group)))
    packages = (line.split() for line in parts["packages"].splitlines())
    release = (line.partition("=") for line in parts["release"].splitlines() if "=" in line)
    return Unit(
        name=name,
        host=host,
        processes=processes,
        environ=parts["environ"],
        open_files=int(parts["open_files"]),
        mounts=tuple(parts["mounts"].splitlines()),
        files=tuple(files),
        packages={p[0]: p[1] for p in packages if p[2:] == ["installed"]},
        release={key: value.strip('"') for key, _, value in release},
        writable=tuple(parts["writable"].split()),
        data_directory=parts["owner"].strip(),
        certificates={
            path.strip().rpartition("/")[2]: pem
            for path, _, pem in (
                part.partition("\n") for part in parts["certificates"].split("# ") if part.strip()
            )
        },
    )


def _processes(parts: Mapping[str, str]) -> tuple[Process, ...]:
    found: dict[int, Process] = {}
    for line in parts["processes"].splitlines():
        words = line.split(" ")
        if len(words) != 3:
            continue
        pid = int(words[0].split("/")[2])
        process = found.setdefault(pid, Process(pid))
        match words[1]:
            case "Name:":
                process.name = words[2]
            case "State:":
                process.state = words[2]
            case "PPid:":
                process.parent = int(words[2])
            case "Uid:":
                process.uid = int(words[2])
            case "CapEff:" | "CapPrm:":
                process.capabilities = max(process.capabilities, words[2])
            case "NoNewPrivs:":
                process.no_new_privileges = words[2] == "1"
    for line in parts["cmdline"].splitlines():
        match = re.match(r"/proc/(\d+)/cmdline:(.*)", line)
        if match and int(match[1]) in found:
            found[int(match[1])].command = match[2].strip()
    for line in parts["executable"].splitlines():
        number, _, executable = line.partition(" ")
        if int(number) in found:
            found[int(number)].executable = executable
    own = int(parts["self"].strip())
    return tuple(p for p in found.values() if own not in (p.pid, p.parent))


@dataclass
class Facts:
    """Everything about one stack; each part is fetched when it is first asked for."""

    deployment: Deployment
    backend: Backend
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(6))
    # Poolers that have turned a client away since.
    _refused: set[str] = field(default_factory=set)

    @property
    def kubernetes(self) -> bool:
        """Whether the units are in pods."""
        return self.deployment.settings.target == "kubernetes"

    @functools.cached_property
    def states(self) -> Mapping[str, Any]:
        return self.deployment.hosts.states()

    @functools.cached_property
    def unit_names(self) -> tuple[str, ...]:
        return tuple(unit.name for unit in t.units(self.deployment.settings))

    def runs(self, unit: str) -> bool:
        return unit in self.states and self.states[unit].state == "running"

    def need(self, unit: str) -> None:
        """Leave the check unjudged when the unit does not run."""
        if not self.runs(unit):
            unjudged(f"{unit} does not run")

    @functools.cached_property
    def _units(self) -> Mapping[str, Future[Unit]]:
        return {
            name: self._pool.submit(self._read, name) for name in self.unit_names if self.runs(name)
        }

    def _read(self, name: str) -> Unit:
        return read_unit(name, self.backend.host(name))

    def unit(self, name: str) -> Unit:
        self.need(name)
        return self._units[name].result()

    @functools.cached_property
    def _containments(self) -> Mapping[str, Future[Containment]]:
        return {
            name: self._pool.submit(self.backend.containment, name)
            for name in self.unit_names
            if name in self.states
        }

    def containment(self, name: str) -> Containment:
        if name not in self.states:
            unjudged(f"{name} does not exist")
        return self._containments[name].result()

    @functools.cached_property
    def members(self) -> list[Row]:
        """Patroni's view; empty when no member answers."""
        try:
            return self.deployment.members()
        except ElsapgError:
            return []

    def primary(self) -> str:
        for member in self.members:
            if member["role"] == "leader" and member["state"] == "running":
                return str(member["name"])
        unjudged("the stack has no primary")

    def standbys(self) -> tuple[str, ...]:
        """The nodes that should follow the primary."""
        primary = self.primary()
        return tuple(node for node in self.deployment.nodes if node != primary)

    @functools.cached_property
    def _servers(self) -> Mapping[str, Future[dict[str, list[Row]]]]:
        facts = {**SERVER_FACTS, "parameters": _parameters_query(self.deployment)}
        return {
            node: self._pool.submit(self.batch, node, facts)
            for node in self.deployment.nodes
            if self.runs(node)
        }

    def server(self, node: str) -> dict[str, list[Row]]:
        """The results of SERVER_FACTS on a node, in database postgres."""
        self.need(node)
        return _result(self._servers[node], f"PostgreSQL on {node} does not answer")

    @functools.cached_property
    def _databases(self) -> Mapping[str, Future[dict[str, list[Row]]]]:
        primary = self.primary()
        return {
            name: self._pool.submit(self.batch, primary, DATABASE_FACTS[name], name)
            for name in DATABASE_FACTS
        }

    def database(self, name: str) -> dict[str, list[Row]]:
        """The results of DATABASE_FACTS of a database, on the primary."""
        return _result(self._databases[name], f"database {name} does not answer")

    def batch(
        self, node: str, queries: Mapping[str, str], database: str = "postgres"
    ) -> dict[str, list[Row]]:
        """Run several queries in one round trip; the rows of each come back as mappings."""
        parts = ", ".join(
            f"'{name}', (SELECT coalesce(jsonb_agg(q), '[]') FROM ({sql}) AS q)"
            for name, sql in queries.items()
        )
        rows = self.deployment.query(node, f"SELECT jsonb_build_object({parts})", database)
        found: dict[str, list[Row]] = json.loads(rows[0][0])
        return found

    @functools.cached_property
    def _pooler_shows(self) -> Mapping[tuple[str, str], Future[list[dict[str, str]]]]:
        return {
            (pooler, show): self._pool.submit(
                self.deployment.pooler_console, pooler, f"SHOW {show}"
            )
            for pooler in self.deployment.poolers
            if self.runs(pooler)
            for show in ("CONFIG", "DATABASES", "STATE", "VERSION")
        }

    def show(self, pooler: str, what: str) -> list[dict[str, str]]:
        """A pooler's SHOW, as of the start of the run."""
        self.need(pooler)
        return _result(self._pooler_shows[pooler, what], f"{pooler}'s console does not answer")

    def paused(self, pooler: str) -> list[str]:
        """What is paused: everything at once shows in STATE only, one database in DATABASES."""
        whole = [row for row in self.show(pooler, "STATE") if row["key"] == "paused"]
        found = [f"{pooler} is paused" for row in whole if row["value"] != "no"]
        databases = self.show(pooler, "DATABASES")
        return found + [f"{d['name']} is paused" for d in databases if d["paused"] == "1"]

    # -- what a client sees ------------------------------------------------------------------

    @functools.cached_property
    def passwords(self) -> Mapping[str, str]:
        return dict(self.deployment.outputs["passwords"])

    @functools.cached_property
    def ca_file(self) -> Path:
        with tempfile.NamedTemporaryFile("w", suffix=".crt", delete=False) as file:
            file.write(self.deployment.outputs["ca"])
        return Path(file.name)

    def need_pooler(self, pooler: str) -> None:
        """Leave the check unjudged when the pooler does not run, or would let nobody through."""
        if self.paused(pooler):
            unjudged(f"{pooler} is paused")

    @functools.cached_property
    def any_pooler(self) -> str:
        """The first pooler that can be used."""
        for pooler in self.deployment.poolers:
            if self.runs(pooler):
                return pooler
        unjudged("no PgBouncer runs")

    def connect(self, pooler: str, role: str, database: str, **options: Any) -> Any:
        """A connection through a pooler, TLS verified. The caller closes it."""
        if pooler in self._refused:
            # What was broken off may still take the way with it.
            self._refused.remove(pooler)
            self.backend.lost(pooler)
        return self._connect(pooler, role, database, **options)

    def _connect(self, pooler: str, role: str, database: str, **options: Any) -> Any:
        self.need_pooler(pooler)
        again = 2
        while True:
            host, port = self.backend.pool(pooler)
            arguments: dict[str, Any] = {
                "host": host,
                "port": port,
                "user": role,
                "password": self.passwords[role],
                "dbname": database,
                "sslmode": "verify-full",
                "sslrootcert": str(self.ca_file),
                "connect_timeout": 5,
                "gssencmode": "disable",
                **options,
            }
            try:
                connection = psycopg.connect(**arguments, autocommit=True)
            except psycopg.OperationalError as error:
                # FATAL is a word of the other end, so the way is there.
                if not again or "FATAL:" in str(error) or not self.backend.lost(pooler):
                    raise
                again -= 1
                continue
            connection.prepare_threshold = None
            return connection

    def attempt(self, pooler: str, role: str, database: str, **options: Any) -> str:
        """Try to log in and run a query: "" if that works, else what it was refused with."""
        try:
            with self._connect(pooler, role, database, **options) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            self._refused.add(pooler)
            return " ".join(str(error).split()) or type(error).__name__
        return ""

    @functools.cached_property
    def private(self) -> Mapping[str, str]:
        """Further secrets by what they are, read where they are used."""
        found = {f"the password of {role}": value for role, value in self.passwords.items()}
        ring = self.deployment.outputs.get("encryption_keys", {})
        found |= {f"encryption key {name}": key for name, key in ring.get("keys", {}).items()}
        readers = [unit for unit in ("runner", *self.deployment.nodes) if self.runs(unit)]
        for unit, command in (
            *((unit, f"cat {REPOSITORY_SECRETS}") for unit in readers[:1]),
            ("s3", "printf 's3-key='; cat /etc/elsapg/s3-secret-key; echo"),
        ):
            if not self.runs(unit):
                continue
            for line in self.backend.host(unit).run(command).stdout.splitlines():
                key, _, value = line.partition("=")
                if key in ("repo1-cipher-pass", "repo1-s3-key-secret", "s3-key"):
                    found[key] = value.strip()
        return {what: value for what, value in found.items() if len(value) > 8}

    def close(self) -> None:
        self.backend.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if "ca_file" in self.__dict__:
            self.ca_file.unlink(missing_ok=True)


def _result(future: Future[_T], otherwise: str) -> _T:
    try:
        return future.result()
    except ElsapgError as error:
        raise NotSo(f"{otherwise}: {error}", "look at its log") from None


def _parameters_query(deployment: Deployment) -> str:
    """Each wanted parameter beside what runs; PostgreSQL itself compares the units.

    By reset_val: over a Unix socket the TCP parameters' own values read as 0.
    """
    wanted = ", ".join(
        f"({_literal(name)}, {_literal(_spelled(value))})"
        for name, value in parameters(deployment.settings).items()
    )
    return f"""
        SELECT w.name, w.value, current_setting(w.name, true) AS running,
            CASE
                WHEN s.name IS NULL THEN false
                WHEN s.vartype = 'bool' THEN s.reset_val::bool = w.value::bool
                WHEN s.vartype = 'enum' AND w.value IN ('true', 'false')
                    THEN s.reset_val = CASE w.value WHEN 'true' THEN 'on' ELSE 'off' END
                WHEN s.vartype IN ('integer', 'real') AND w.value ~ '^-?[0-9.]+$'
                    THEN s.reset_val::numeric = w.value::numeric
                WHEN s.unit ~ 'B$'
                    THEN s.reset_val::numeric
                        = pg_size_bytes(w.value) / pg_size_bytes(
                            CASE WHEN s.unit ~ '^[0-9]' THEN s.unit ELSE '1' || s.unit END)
                WHEN s.unit IS NOT NULL
                    THEN s.reset_val::numeric
                        = extract(epoch FROM w.value::interval)
                        / extract(epoch FROM ('1' || s.unit)::interval)
                ELSE lower(s.reset_val) = lower(w.value)
            END AS holds
        FROM (VALUES {wanted}) AS w (name, value)
        LEFT JOIN pg_settings AS s ON lower(s.name) = lower(w.name)"""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def eventually(found: Callable[[], bool], seconds: float, step: float = 0.25) -> bool:
    """Whether `found` becomes true in time."""

    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            return False
        time.sleep(step)
    return True
