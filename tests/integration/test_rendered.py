"""What is rendered, before the real parsers: those of the product's own images.

No network, a read-only root, no stack. Each parser is also shown the same file with one mistake
in it, for a parser that accepts everything would prove nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import docker
import docker.types
import pytest

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.definition.files import files_for
from elsapg.definition.parameters import parameters
from elsapg.definition.secrets import PASSWORD_ROLES, KeyPair, Secrets, certificate_names
from elsapg.pki import make_ca, make_certificate
from elsapg.settings import Settings
from elsapg.targets.docker import daemon as d
from elsapg.targets.docker.place import BASE_IMAGE, CONTEXTS
from elsapg.targets.docker.resources import _ImageProvider, context_digest
from tests.stacks import ROOT
from tests.unit.kubernetes_stacks import LEAST

pytestmark = pytest.mark.docker

SETTINGS = {
    "local": stackfile.read(ROOT, "local"),
    "large": stackfile.load(
        {
            "postgres": {
                "replicas": 3,
                "memory_mb": 16384,
                "max_connections": 300,
                "synchronous": "strict",
                "parameters": {"random_page_cost": 1.1, "autovacuum_naptime": "15s"},
            },
            "etcd": {"members": 3},
            "pooler": {"instances": 4},
        },
        "test",
    ),
}


@dataclass
class Ran:
    code: int
    output: str


class Bench:
    """Runs commands in the product's images over rendered files."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = d.client(timeout=120)
        self.secrets = self._secrets()

    def _secrets(self) -> Secrets:
        ca = make_ca("elsapg test", 30)
        pairs = {}
        for name, sans in certificate_names(self.settings).items():
            made = make_certificate(name, sans, 5, ca["certificate"], ca["private_key"])
            pairs[name] = KeyPair(made["certificate"], made["private_key"])
        passwords = dict.fromkeys(PASSWORD_ROLES, "x" * 30)
        return Secrets(ca["certificate"], pairs, passwords, "A" * 20, "B" * 40, "C" * 64)

    def image(self, target: str) -> str:
        """The product's image, built if need be just as `up` builds it."""
        context = context_digest(("images/Dockerfile", *CONTEXTS[target]))
        props = {"target": target, "context": context, "base": BASE_IMAGE}
        return str((_ImageProvider().create(props).outs or {})["image_id"])

    def run(
        self,
        unit: str,
        *command: str,
        broken: Mapping[str, tuple[str, str]] | None = None,
        hosts: tuple[str, ...] = (),
    ) -> Ran:
        """Run `command` in the unit's image with its files; `broken`: path to (old, new)."""
        [placed] = [u for u in t.units(self.settings) if u.name == unit]
        files = [asdict(f) for f in files_for(unit, self.settings, self.secrets)]
        for file in files:
            if file["path"] in (broken or {}):
                old, new = broken[file["path"]]  # type: ignore[index]
                assert old in file["content"]
                file["content"] = file["content"].replace(old, new, 1)
        scratch = (*placed.tmpfs, "/run/postgresql", "/var/lib/postgresql")
        container = self.client.containers.create(
            self.image(placed.image),
            list(command),
            entrypoint=[],
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            user="999:999",
            tmpfs=dict.fromkeys(scratch, "uid=999,gid=999,mode=1770"),
            extra_hosts=dict.fromkeys(hosts, "127.0.0.1"),
            mounts=[docker.types.Mount(t.CONFIG_DIR, None, type="volume")],
        )
        try:
            container.put_archive(t.CONFIG_DIR, d.archive(files, t.UID))
            container.start()
            code = int(container.wait(timeout=180)["StatusCode"])
            logs = container.logs()
            assert isinstance(logs, bytes)
            return Ran(code, logs.decode(errors="replace"))
        finally:
            container.remove(force=True, v=True)


@functools.cache
def made(name: str) -> Bench:
    return Bench(SETTINGS[name])


@pytest.fixture(params=sorted(SETTINGS))
def bench(request: pytest.FixtureRequest) -> Bench:
    return made(request.param)


@pytest.fixture
def kubernetes() -> Bench:
    return Bench(stackfile.load(LEAST, "test"))


@pytest.fixture
def local() -> Bench:
    return made("local")


# Patroni wants to reach etcd, and to find its own ports free.
PATRONI = f"""
import socket, subprocess, sys
listening = socket.create_server(("127.0.0.1", {t.ETCD_PORT}), backlog=64)
sys.exit(subprocess.call(["patroni", "--validate-config", "{t.CONFIG_DIR}/patroni.yml"]))
"""


def validated(bench: Bench, *broken: str) -> Ran:
    hosts = ("pg-1", *t.etcd_names(bench.settings))
    wrong = {"patroni.yml": broken} if broken else {}
    return bench.run("pg-1", "python3", "-c", PATRONI, broken=wrong, hosts=hosts)  # type: ignore[arg-type]


def test_patroni(bench: Bench) -> None:
    done = validated(bench)
    assert (done.code, done.output) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("scope: elsa", "scoop: elsa", "scope"),
        ("protocol: https", "hosts: []", "etcd3"),
        ("ttl: 20", "ttl: soon", "ttl"),
    ],
)
def test_patroni_refuses(local: Bench, old: str, new: str, says: str) -> None:
    assert says in validated(local, old, new).output


CHECK_HAPROXY = ("haproxy", "-c", "-f", f"{t.CONFIG_DIR}/haproxy.cfg")


def test_haproxy(bench: Bench) -> None:
    done = bench.run("haproxy", *CHECK_HAPROXY)
    assert done.code == 0, done.output
    complaints = [line for line in done.output.splitlines() if "ALERT" in line or "WARN" in line]
    # There is no network to ask for names in.
    assert not [line for line in complaints if "can't connect socket for nameserver" not in line]


def test_haproxy_refuses(local: Bench) -> None:
    done = local.run("haproxy", *CHECK_HAPROXY, broken={"haproxy.cfg": ("retries 0", "retrys 0")})
    assert done.code != 0
    assert "retrys" in done.output


@pytest.mark.parametrize(("old", "new", "says"), [("", "", ""), ("backup", "backdrop", "backdrop")])
def test_readers(kubernetes: Bench, old: str, new: str, says: str) -> None:
    """By the script that starts it, which knows the namespace's domain from the resolver's file."""
    script = (
        "echo search there.svc.cluster.local svc.cluster.local >/tmp/resolv.conf; "
        "ELSAPG_RESOLV_CONF=/tmp/resolv.conf readers -c"
    )
    broken = {"readers.cfg": (old, new)} if old else {}
    done = kubernetes.run("pgbouncer-1", "sh", "-c", script, broken=broken)
    complaints = [line for line in done.output.splitlines() if "ALERT" in line or "WARN" in line]
    told = [line for line in complaints if "can't connect socket for nameserver" not in line]
    assert (done.code != 0) is bool(says), done.output
    assert says in "".join(told) if says else not told


# What is right goes on until then; a busy machine takes its time to refuse what is wrong.
STARTS_WITHIN_S = "8"

START_PGBOUNCER = (
    "timeout",
    "-s",
    "INT",
    STARTS_WITHIN_S,
    "pgbouncer",
    f"{t.CONFIG_DIR}/pgbouncer.ini",
)


def test_pgbouncer(bench: Bench) -> None:
    done = bench.run("pgbouncer-1", *START_PGBOUNCER)
    assert "process up: PgBouncer 1." in done.output, done.output
    assert not re.search(r"WARNING|ERROR|FATAL", done.output), done.output


def test_pgbouncer_refuses(local: Bench) -> None:
    wrong = {"pgbouncer.ini": ("pool_mode = transaction", "pool_mood = transaction")}
    done = local.run("pgbouncer-1", *START_PGBOUNCER, broken=wrong)
    assert "pool_mood" in done.output
    assert "process up" not in done.output


ASK_PGBACKREST = ("pgbackrest", f"--stanza={t.STANZA}", "--io-timeout=1", "info")


@pytest.mark.parametrize("unit", ["pg-1", "runner"])
def test_pgbackrest(bench: Bench, unit: str) -> None:
    """Options are checked first; then S3 is not to be found, for there is no network."""
    done = bench.run(unit, *ASK_PGBACKREST)
    assert "unable to get address for 's3'" in done.output, done.output
    assert "WARN" not in done.output


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("repo1-bundle=y", "repo1-bungle=y", "invalid option 'repo1-bungle'"),
        ("repo1-type=s3", "repo1-type=s4", "'s4' is not allowed for 'repo1-type'"),
    ],
)
def test_pgbackrest_refuses(local: Bench, old: str, new: str, says: str) -> None:
    done = local.run("runner", *ASK_PGBACKREST, broken={"pgbackrest.conf": (old, new)})
    assert says in done.output, done.output


def test_pgbackrests_agent(bench: Bench) -> None:
    command = next(u for u in t.units(bench.settings) if u.name == "pg-1-agent").command
    done = bench.run("pg-1-agent", "timeout", STARTS_WITHIN_S, *command)
    # 124: it ran until it was told to end.
    assert done.code in (0, 124), done.output
    assert not re.search("WARN|ERROR", done.output), done.output


START_ETCD = ("timeout", STARTS_WITHIN_S, "etcd", "--config-file", f"{t.CONFIG_DIR}/etcd.yml")


def started_etcd(bench: Bench, *broken: str) -> Ran:
    old, new = broken or ("/var/lib/etcd/data", "/tmp/data")
    # Its volume is not there; a broken file does not come so far.
    wrong = {"etcd.yml": (old, new)}
    return bench.run("etcd-1", *START_ETCD, hosts=t.etcd_names(bench.settings), broken=wrong)


def test_etcd(bench: Bench) -> None:
    done = started_etcd(bench)
    assert done.code == 124, done.output
    assert not re.search(r'"level":"(error|fatal|panic)"', done.output), done.output


@pytest.mark.parametrize(
    ("old", "new"),
    [("tls-min-version: TLS1.3", "tls-min-version: TLS9"), ("state: new", "state: old")],
)
def test_etcd_refuses(local: Bench, old: str, new: str) -> None:
    assert started_etcd(local, old, new).code == 1


POSTGRES = """
set -eu
initdb -D /tmp/data -U postgres --no-sync -A trust >/dev/null
cat >>/tmp/data/postgresql.conf <<'END'
{conf}
END
echo "SELECT name FROM pg_settings WHERE source = 'configuration file';" \
  | postgres --single -D /tmp/data postgres 2>&1
"""


def ask_postgres(bench: Bench, wanted: Mapping[str, Any]) -> Ran:
    """Start a server with these parameters and its libraries, and ask what it took over."""

    def text(value: Any) -> str:
        return ("on" if value else "off") if isinstance(value, bool) else str(value)

    # The size is the machine's affair; everything else is as deployed.
    small = {**wanted, "shared_buffers": "16MB", "log_line_prefix": ""}
    lines = [f"{name} = '{text(value)}'" for name, value in small.items()]
    return bench.run("pg-1", "sh", "-c", POSTGRES.format(conf="\n".join(lines)))


def test_postgres_takes_over_every_parameter(bench: Bench) -> None:
    wanted = parameters(bench.settings)
    done = ask_postgres(bench, wanted)
    assert done.code == 0, done.output
    assert not re.search(r"WARNING|ERROR|FATAL", done.output), done.output
    taken = set(re.findall(r'name = "([^"]+)"', done.output))
    # PostgreSQL writes one of them with capitals.
    assert {name.lower() for name in taken} >= {name.lower() for name in wanted}


def test_postgres_refuses_what_it_does_not_know(local: Bench) -> None:
    wanted = parameters(local.settings)
    done = ask_postgres(local, {**wanted, "work_memory": "4MB"})
    assert 'unrecognized configuration parameter "work_memory"' in done.output
    done = ask_postgres(local, {**wanted, "work_mem": "4 bananas"})
    assert 'invalid value for parameter "work_mem"' in done.output
    # An extension's it takes for somebody's own: what counts is which ones it lists.
    done = ask_postgres(local, {**wanted, "cron.max_running_job": 1})
    assert 'name = "cron.max_running_jobs"' in done.output
    assert 'name = "cron.max_running_job"' not in done.output
