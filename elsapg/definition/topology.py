"""The units (long-running containers), tasks (containers that end) and volumes of a stack.

Pure structure: no secret and no rendered file, so that a target can register everything
before any secret is known. `elsapg.definition.files` renders what goes into `/etc/elsapg`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from elsapg.settings import Settings

UID = 999
CONFIG_DIR = "/etc/elsapg"
PGDATA = "/var/lib/postgresql/data"
STANZA = "elsa"
SCOPE = "elsa"
DATABASES = ("elsa_workflows", "elsa_runtime")

PG_PORT = 5432
REPLICA_PORT = 5433
PATRONI_PORT = 8008
POOL_PORT = 6432
AGENT_PORT = 8432
ETCD_PORT = 2379
ETCD_PEER_PORT = 2380
S3_PORT = 9000
# Where a PgBouncer's pod lets whoever stops the primary pause it, and what leads to all of them
# (kubernetes).
GATE_PORT = 6500
POOLER_PODS = "pgbouncer-pods"
GATES = f"{POOLER_PODS}:{GATE_PORT}"

# Where WAL is when it has a volume of its own.
WAL_MOUNT = "/var/lib/postgresql-wal"
PRIMARY_HOST = "primary"
REPLICA_HOST = "replica"
# Where a pool's own HAProxy has that name, on kubernetes. Not 127.0.0.1: PgBouncer's resolver
# (c-ares) takes names of one address for the same, and `localhost` is ::1 as well.
READERS_ADDRESS = "127.0.0.2"
# A connection that came to the primary because there was no standby ends after so many seconds; of
# a pool one after the other.
READERS_RETURN_S = 60
S3_HOST = "s3"


@dataclass(frozen=True)
class Mount:
    """A named volume at a path. `data`: it outlives `destroy` unless told --purge."""

    volume: str
    path: str
    data: bool = False
    read_only: bool = False


@dataclass(frozen=True)
class Port:
    """A container port published on the machine's bind address."""

    container: int
    host: int


@dataclass(frozen=True)
class Unit:
    """One long-running process in one container."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    tmpfs: tuple[str, ...] = ("/tmp",)
    ports: tuple[Port, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    memory_mb: int | None = None
    cpus: float | None = None
    shm_mb: int | None = None
    # How long a clean stop may take, in seconds, before it is killed.
    stop_timeout: int = 10
    stop_signal: str = "SIGTERM"
    # Run inside before a planned stop (a primary hands over), and after a planned start.
    before_stop: tuple[str, ...] = ()
    after_start: tuple[str, ...] = ()
    # How a change of files takes effect: a signal to process 1, or a restart.
    reload_signal: str | None = None


# What is done with all of a database lasts as it is large (a backup, a migration's index, a node
# that is being recovered). Whatever waits for something else has an end of its own.
LONG_S = 24 * 3600


@dataclass(frozen=True)
class Task:
    """A run that ends: it runs again when its files or its image change."""

    name: str
    image: str
    command: tuple[str, ...]
    timeout_s: int


def node_names(settings: Settings) -> tuple[str, ...]:
    """`pg-1` ... `pg-N`: the primary and its standbys; which is which is Patroni's affair."""
    return tuple(f"pg-{i + 1}" for i in range(settings.postgres.replicas + 1))


def etcd_names(settings: Settings) -> tuple[str, ...]:
    return tuple(f"etcd-{i + 1}" for i in range(settings.etcd.members))


def pooler_names(settings: Settings) -> tuple[str, ...]:
    return tuple(f"pgbouncer-{i + 1}" for i in range(settings.pooler.instances))


def agent_name(node: str) -> str:
    """The pgBackRest agent beside a node: it reads the node's volume and socket."""
    return f"{node}-agent"


def namespace(stack: str, settings: Settings) -> str:
    """The stack's namespace on kubernetes."""
    return settings.kubernetes.namespace or f"elsapg-{stack}"


# How Patroni finds the pods of its cluster, and what the Services select by (kubernetes).
POD_LABELS = {"app.kubernetes.io/name": "elsapg", "app.kubernetes.io/component": "pg"}
SCOPE_LABEL = "cluster-name"
ROLE_LABEL = "role"


def s3_address(settings: Settings) -> tuple[str, int]:
    """Host and port of the S3 service."""
    if settings.archive.endpoint is None:
        return S3_HOST, S3_PORT
    host, _, port = settings.archive.endpoint.partition(":")
    return host, int(port or 443)


def second_s3_address(settings: Settings) -> tuple[str, int]:
    """Of the second repository: the first one's S3 unless it names its own."""
    second = settings.archive.second
    if second is None or second.endpoint is None:
        return s3_address(settings)
    host, _, port = second.endpoint.partition(":")
    return host, int(port or 443)


def units(settings: Settings) -> tuple[Unit, ...]:
    """Every long-running unit, in start order.

    Kubernetes brings DCS, stable addresses, schedule and S3 itself. What it gives a unit beside
    this is the same for all of a kind.
    """
    if settings.target == "kubernetes":
        return (*_nodes(settings), *_agents(settings), *_poolers(settings))
    return (*_etcd(settings), _s3(settings), *_nodes(settings), *_agents(settings),
            _haproxy(settings), *_poolers(settings), _runner())  # fmt: skip


def tasks(_settings: Settings) -> tuple[Task, ...]:
    """What runs once the units are up, in this order."""
    return tuple(
        Task(name, "runner", (name,), LONG_S) for name in ("configure", "bootstrap", "first-backup")
    )


RECOVERY_CHECK = Task("recovery-check", "runner", ("recovery-check",), timeout_s=900)
"""Before any node, for a stack that is to come out of a repository: whether it can."""


def _etcd(settings: Settings) -> tuple[Unit, ...]:
    return tuple(
        Unit(
            name=name,
            image="etcd",
            aliases=(name,),
            mounts=(Mount(name, "/var/lib/etcd", data=True),),
            memory_mb=256,
            # Certificates are read at every handshake: nothing to signal.
            reload_signal=None,
            # One that is asked to end answers its last clients with errors and half answers, and
            # Patroni takes those to a keepalive for the loss of its lock: it demotes the primary,
            # failsafe_mode or not (Patroni 3572). A broken connection it takes for what it is.
            # What etcd has acknowledged is on disk.
            stop_signal="SIGKILL",
        )
        for name in etcd_names(settings)
    )


def _s3(settings: Settings) -> Unit:
    return Unit(
        name="s3",
        image="s3",
        aliases=(S3_HOST,),
        env={"S3_BUCKET": " ".join(_own_buckets(settings)), "S3_REGION": settings.archive.region},
        mounts=(
            Mount("s3", "/var/lib/s3", data=True),
            Mount("s3-versions", "/var/lib/s3-versions", data=True),
        ),
        memory_mb=512,
    )


def _own_buckets(settings: Settings) -> tuple[str, ...]:
    second = settings.archive.second
    also = second is not None and second.endpoint is None
    return (settings.archive.bucket, *((second.bucket,) if second and also else ()))


def _nodes(settings: Settings) -> tuple[Unit, ...]:
    return tuple(
        Unit(
            name=name,
            image="postgres",
            command=(
                *("no-orphans", "python3", "-m", "elsapg.runner.patroni_node"),
                f"{CONFIG_DIR}/patroni.yml",
            ),
            aliases=(name,),
            mounts=_node_mounts(name, settings),
            tmpfs=("/tmp", "/var/spool/pgbackrest", "/var/log/pgbackrest"),
            # A primary that is cut off must not spend the time in which it should demote itself
            # on looking names up: the resolver's own patience is 5 s, twice, for each name.
            env={"RES_OPTIONS": "timeout:1 attempts:1"},
            memory_mb=settings.postgres.memory_mb + 256,
            cpus=settings.postgres.cpus,
            shm_mb=_shared_memory_mb(settings.postgres.memory_mb),
            # A clean stop ships the last WAL to the standby and the archive.
            stop_timeout=60,
            before_stop=("handover",),
            after_start=("handover", "--wait-healthy"),
            reload_signal="SIGHUP",
        )
        for name in node_names(settings)
    )


def _node_mounts(node: str, settings: Settings) -> tuple[Mount, ...]:
    """Of a node and of its agent: the data, and the folder of the Unix socket."""
    wal = settings.postgres.wal_volume_size
    return (
        Mount(node, "/var/lib/postgresql", data=True),
        *((Mount(f"{node}-wal", WAL_MOUNT, data=True),) if wal else ()),
        Mount(f"{node}-run", "/run/postgresql"),
    )


def _shared_memory_mb(memory_mb: int) -> int:
    """The bound of what parallel queries take beside shared_buffers: at least a quarter.

    It is fixed when a container is made, so it grows in coarse steps: then more memory seldom
    needs a new container. It reserves nothing; the memory's own limit holds as well.
    """
    bound = 256
    while bound * 4 < memory_mb:
        bound *= 4
    return bound


def _agents(settings: Settings) -> tuple[Unit, ...]:
    return tuple(
        Unit(
            name=agent_name(name),
            image="postgres",
            command=("pgbackrest", "server", f"--config={CONFIG_DIR}/pgbackrest.conf"),
            aliases=(agent_name(name),),
            mounts=_node_mounts(name, settings),
            tmpfs=("/tmp", "/var/spool/pgbackrest", "/var/log/pgbackrest"),
            memory_mb=256,
            reload_signal="SIGHUP",
        )
        for name in node_names(settings)
    )


def _haproxy(settings: Settings) -> Unit:
    direct = settings.docker.direct_port
    return Unit(
        name="haproxy",
        image="haproxy",
        aliases=(PRIMARY_HOST, REPLICA_HOST),
        tmpfs=("/tmp", "/run"),
        ports=(Port(PG_PORT, direct), Port(REPLICA_PORT, direct + 1)) if direct else (),
        memory_mb=256,
        # The master process starts new workers and hands them the listening sockets.
        reload_signal="SIGUSR2",
        stop_signal="SIGUSR1",
        stop_timeout=5,
    )


def _poolers(settings: Settings) -> tuple[Unit, ...]:
    return tuple(
        Unit(
            name=name,
            image="pgbouncer",
            command=("all-files", "pgbouncer", f"{CONFIG_DIR}/pgbouncer.ini"),
            aliases=(name, "pgbouncer"),
            tmpfs=("/tmp", "/run/pgbouncer"),
            ports=(Port(POOL_PORT, settings.docker.pool_port + index),),
            # An idle client by TLS takes 33 KiB, its sockets included; 64 for those that work.
            memory_mb=max(256, 64 + settings.pooler.max_client_conn // 16),
            reload_signal="SIGHUP",
            # SIGINT lets running transactions end.
            stop_signal="SIGINT",
        )
        for index, name in enumerate(pooler_names(settings))
    )


def _runner() -> Unit:
    return Unit(
        name="runner",
        image="runner",
        command=("schedule",),
        aliases=("runner",),
        # Dumps until they are stored, and what a drill restores: as large as the data.
        mounts=(Mount("runner-scratch", "/var/lib/elsapg"),),
        tmpfs=("/tmp", "/var/spool/pgbackrest", "/var/log/pgbackrest"),
        memory_mb=1024,
    )
