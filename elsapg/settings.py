"""A stack's settings: one frozen model, read once, checked before any resource exists.

The keys are those of `stacks/Pulumi.<stack>.yaml` under `config:`, each prefixed `elsapg:`.
Both targets read the same keys. Types and bounds live on the fields; the sums that cross
fields live in `elsapg.sums`; `elsapg.stackfile` reads a stack and reports every problem at once.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAMESPACE = "elsapg"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _cron(value: str) -> str:
    fields = value.split()
    if len(fields) != len(_CRON_BOUNDS) or not all(
        _cron_part(part, bounds)
        for field, bounds in zip(fields, _CRON_BOUNDS, strict=True)
        for part in field.split(",")
    ):
        raise ValueError(
            "must be five cron fields in UTC (minute, hour, day, month, weekday), such as "
            "'0 1 * * 0'; Sunday is 0 (Kubernetes knows no 7)"
        )
    return value


_CRON_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def _cron_part(part: str, bounds: tuple[int, int]) -> bool:
    """Whether `part` is `*`, `N` or `N-M`, each with an optional `/STEP`, within the bounds."""
    match = re.fullmatch(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/[1-9]\d?)?", part)
    if match is None:
        return False
    numbers = [int(number) for number in match.groups() if number is not None]
    return numbers == sorted(numbers) and all(bounds[0] <= n <= bounds[1] for n in numbers)


def _on_or_off(value: object) -> object:
    """Without quotes, YAML takes `on` and `off` for truth values."""
    return ("off", "on")[value] if isinstance(value, bool) else value


def _endpoint(value: str | None) -> str | None:
    if value is None:
        return None
    host, _, port = value.partition(":")
    if not re.fullmatch(_DNS_NAME, host) or (port and not _is_port(port)) or value.endswith(":"):
        raise ValueError("must be HOST or HOST:PORT without https://, such as s3.eu-west-1.example")
    return value


def _is_port(text: str) -> bool:
    return text.isdigit() and 1 <= int(text) <= 65535


_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*"


def _certificates(value: str | None) -> str | None:
    if value is None:
        return None
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    if not value.strip().startswith(begin) or value.count(begin) != value.count(end):
        raise ValueError("must be one or more certificates in PEM, from BEGIN to END CERTIFICATE")
    if "PRIVATE KEY" in value:
        raise ValueError("holds a private key; give the certificates alone")
    return value.strip() + "\n"


def _cidrs(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError(f"{text!r} is no network; write it as 10.20.0.0/16") from None
    return value


def _dns_names(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(_DNS_NAME, name):
            raise ValueError(f"{name!r} is no DNS name; lower case, such as pool.example.com")
    return value


def _labels(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(_DNS_LABEL, name):
            raise ValueError(
                f"{name!r} is no name: lower-case letters, digits and dashes, up to 63"
            )
        if value.count(name) > 1:
            raise ValueError(f"{name!r} is there twice; name each once")
    return value


def _reference(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(rf"[A-Z][A-Za-z]{{1,62}}/{_DNS_NAME}", value):
        raise ValueError("must be KIND/NAME, such as ClusterIssuer/company-ca")
    return value


def _annotations(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not re.fullmatch(rf"(?:{_DNS_NAME}/)?[A-Za-z0-9][A-Za-z0-9._-]{{0,62}}", name):
            raise ValueError(f"{name!r} is no annotation's name, such as example.com/role")
    return value


def _address(value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise ValueError("must be an IPv4 address of this machine, such as 127.0.0.1") from None


Cron = Annotated[str, AfterValidator(_cron)]
Cidrs = Annotated[tuple[str, ...], AfterValidator(_cidrs)]
Labels = Annotated[tuple[str, ...], AfterValidator(_labels)]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
Annotations = Annotated[dict[str, str], AfterValidator(_annotations)]
Reference = Annotated[str | None, AfterValidator(_reference)]

# Parameters that Patroni or the toolkit sets: changing them by hand breaks failover,
# archiving or TLS, so `postgres.parameters` refuses them.
OWNED_PARAMETERS = frozenset(
    {
        "archive_command",
        "archive_library",
        "archive_mode",
        "archive_timeout",
        "cluster_name",
        "cron.database_name",
        "cron.enable_superuser_jobs",
        "cron.host",
        "cron.use_background_workers",
        "data_directory",
        "fsync",
        "full_page_writes",
        "hba_file",
        "hot_standby",
        "ident_file",
        "listen_addresses",
        "log_parameter_max_length",
        "log_parameter_max_length_on_error",
        "max_connections",
        "max_replication_slots",
        "max_slot_wal_keep_size",
        "max_wal_senders",
        "password_encryption",
        # A log with parameters would hold the encryption keys.
        "pgaudit.log_parameter",
        "pgaudit.role",
        "port",
        "primary_conninfo",
        "primary_slot_name",
        "reserved_connections",
        "restore_command",
        "shared_preload_libraries",
        "ssl",
        "ssl_ca_file",
        "ssl_cert_file",
        "ssl_key_file",
        "ssl_min_protocol_version",
        "superuser_reserved_connections",
        "synchronous_commit",
        "synchronous_standby_names",
        "unix_socket_directories",
        "wal_level",
        "wal_log_hints",
    }
)


def _parameters(value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    for name in value:
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?", name):
            raise ValueError(f"{name!r} is not a PostgreSQL parameter's name")
        if name in OWNED_PARAMETERS:
            raise ValueError(f"{name!r} belongs to the toolkit; remove it from parameters")
    return value


class DatabaseSettings(_Model):
    """Which database Elsa works with. The toolkit runs PostgreSQL; for the others it only names
    what is elsewhere. Keys of a provider that is not chosen may stay: switching is one line.
    """

    provider: Literal["postgresql", "sqlite", "sqlserver"] = Field(
        default="postgresql",
        description="postgresql is provisioned; sqlite and sqlserver provision nothing.",
    )
    file: str = Field(
        default="elsa.db",
        pattern=r"^[^\x00-\x1f]{1,400}$",
        description="sqlite: the file, absolute or relative to Elsa's content root.",
    )
    host: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,252}$",
        description="sqlserver: the server's name or address.",
    )
    port: int = Field(default=1433, ge=1, le=65535, description="sqlserver: its port.")
    database: str = Field(
        default="elsa_workflows",
        pattern=r"^[^\x00-\x1f]{1,128}$",
        description="sqlserver: the database, which must exist.",
    )
    user: str | None = Field(
        default=None,
        pattern=r"^[^\x00-\x1f]{1,128}$",
        description="sqlserver: the login. Its password is never in a stack's file.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [key for key in ("host", "user") if getattr(self, key) is None]
        if self.provider == "sqlserver" and missing:
            raise ValueError(f"provider sqlserver needs {' and '.join(missing)} as well; add them")
        return self

    @property
    def provisioned(self) -> bool:
        """Whether the toolkit runs this database."""
        return self.provider == "postgresql"


class RetentionSettings(_Model):
    """How long data stays, and for how many months ahead there are partitions.

    The jobs in the databases read these; the bootstrap writes them there.
    """

    instances_days: int = Field(
        default=90, ge=1, le=3650, description="Until finished instances go to the archive, days."
    )
    archive_months: int = Field(
        default=0, ge=0, le=1200, description="Until archived months are dropped; 0: never."
    )
    snapshots_hours: int = Field(
        default=24, ge=1, le=720, description="Until execution snapshots are deleted, hours."
    )
    months_ahead: int = Field(
        default=2, ge=1, le=24, description="Months beyond this one that have partitions."
    )


_SIZE = r"^[1-9][0-9]*(Mi|Gi|Ti)$"


class PostgresSettings(_Model):
    """PostgreSQL: how many nodes, how large, how durable."""

    replicas: int = Field(default=1, ge=1, le=7, description="Standbys beside the primary.")
    memory_mb: int = Field(
        default=1024,
        ge=512,
        le=1_048_576,
        description="Memory of one node, in MiB; sizes the buffers.",
    )
    cpus: float | None = Field(
        default=None,
        gt=0,
        le=256,
        description="CPU limit of a node; if unset, none on docker and 2 on kubernetes.",
    )
    max_connections: int = Field(default=100, ge=20, le=5000)
    superuser_reserved_connections: int = Field(default=3, ge=1, le=50)
    direct_connections: int = Field(
        default=10,
        ge=5,
        le=1000,
        description="Kept free for migrations, backups, monitoring, replication.",
    )
    max_wal_senders: int = Field(default=10, ge=2, le=100)
    max_replication_slots: int = Field(default=10, ge=2, le=100)
    max_slot_wal_keep_size_mb: int = Field(
        default=4096,
        ge=256,
        description="WAL kept for a lost standby before its slot is given up, in MiB.",
    )
    synchronous: Annotated[Literal["on", "strict", "off"], BeforeValidator(_on_or_off)] = Field(
        default="on",
        description="on: commits wait for a standby if there is one; strict: always; off: never.",
    )
    synchronous_commit: Annotated[
        Literal["on", "remote_write", "remote_apply"], BeforeValidator(_on_or_off)
    ] = "on"
    parameters: Annotated[dict[str, str | int | float | bool], AfterValidator(_parameters)] = Field(
        default_factory=dict, description="Further PostgreSQL parameters."
    )
    volume_size: str = Field(
        default="20Gi",
        pattern=_SIZE,
        description="Data volume of a node (kubernetes). It may grow, never shrink.",
    )
    wal_volume_size: str | None = Field(
        default=None,
        pattern=_SIZE,
        description="A volume of its own for WAL (kubernetes), from the stack's first day on.",
    )


class PatroniSettings(_Model):
    """Failover timing, in seconds. `loop_wait + 2 * retry_timeout <= ttl` (Patroni's rule)."""

    ttl: int = Field(default=20, ge=20, le=300)
    loop_wait: int = Field(default=2, ge=1, le=60)
    retry_timeout: int = Field(default=5, ge=3, le=60)
    primary_start_timeout: int = Field(default=0, ge=0, le=600)
    maximum_lag_on_failover_mb: int = Field(default=1, ge=1, le=1024)


class EtcdSettings(_Model):
    """The DCS of the docker target."""

    members: Literal[1, 3, 5] = 1


class PoolerSettings(_Model):
    """PgBouncer. Figures are the seeds'; `max_db_connections` is what makes their sum fit."""

    instances: int = Field(default=2, ge=1, le=8)
    max_client_conn: int = Field(default=1000, ge=10, le=100_000)
    default_pool_size: int = Field(default=50, ge=1, le=2000)
    reserve_pool_size: int = Field(default=10, ge=0, le=1000)
    reserve_pool_timeout: int = Field(default=5, ge=1, le=60, description="Seconds.")
    max_db_connections: int = Field(
        default=14, ge=1, le=2000, description="Server connections per database and PgBouncer."
    )
    session_connections: int = Field(
        default=3, ge=1, le=500, description="Of the session door, per database and PgBouncer."
    )
    readonly_connections: int = Field(
        default=4,
        ge=1,
        le=500,
        description="Of the read-only door, per database and PgBouncer.",
    )
    max_prepared_statements: int = Field(default=200, ge=1, le=10_000)
    reset_after_transaction: bool = Field(
        default=True,
        description="Clean the server's session after each transaction, so that nothing that a "
        "client leaves in it, such as a tenant, reaches the next client. Costs a round trip of the "
        "server connection, not of the client.",
    )


def _key_ids(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,31}", name):
            raise ValueError(f"{name!r} names no key: 1 to 32 of a-z, 0-9, '.', '_' and '-'")
        if value.count(name) > 1:
            raise ValueError(f"{name!r} is there twice; name each key once")
    return value


class SecondRepositorySettings(_Model):
    """Another bucket that gets every WAL segment and every backup as well.

    The same credentials open it, and the same key encrypts it.
    """

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    prefix: str = Field(default="/wal", pattern=r"^(/[a-z0-9][a-z0-9._-]*)+$")
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,40}$")
    endpoint: Annotated[str | None, AfterValidator(_endpoint)] = Field(
        default=None, description="HOST[:PORT] of its S3; that of the first one if unset."
    )
    ca: Annotated[str | None, AfterValidator(_certificates)] = Field(
        default=None,
        description="PEM of the CA that signed that endpoint's certificate, if no public one did.",
    )
    retention_days: int = Field(
        default=30, ge=1, le=3650, description="Full backups are kept this long."
    )


class ArchiveSettings(_Model):
    """WAL archive and backups: pgBackRest into an S3 bucket."""

    bucket: str = Field(default="elsa-backups", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,40}$")
    prefix: str = Field(default="/wal", pattern=r"^(/[a-z0-9][a-z0-9._-]*)+$")
    endpoint: Annotated[str | None, AfterValidator(_endpoint)] = Field(
        default=None,
        description="HOST[:PORT] of the S3 service (kubernetes; docker brings its own).",
    )
    uri_style: Literal["host", "path"] = Field(
        default="path", description="How the bucket stands in the address (kubernetes)."
    )
    credentials: Literal["keys", "web-id"] = Field(
        default="keys",
        description="keys: an access key and its secret; web-id: the pods' own identity, as the "
        "cloud's workload identity gives it (kubernetes).",
    )
    ca: Annotated[str | None, AfterValidator(_certificates)] = Field(
        default=None,
        description="PEM of the CA that signed the endpoint's certificate, if no public one did "
        "(kubernetes).",
    )
    archive_timeout_s: int = Field(
        default=60, ge=10, le=3600, description="Longest wait for a segment switch."
    )
    process_max: int = Field(default=2, ge=1, le=64)
    compress_level: int = Field(default=3, ge=1, le=19, description="zstd level.")
    full_schedule: Cron = Field(default="0 1 * * 0", description="Full backups, UTC.")
    incremental_schedule: Cron = Field(
        default="0 1 * * 1-6", description="Incremental backups, UTC."
    )
    retention_days: int = Field(
        default=30, ge=1, le=3650, description="Full backups are kept this long."
    )
    key_ids: Annotated[tuple[str, ...], AfterValidator(_key_ids)] = Field(
        default=("k1",),
        min_length=1,
        max_length=16,
        description="A key is made for each; the last one encrypts the repository and the dumps. "
        "A new one goes with a new prefix and dump_prefix: docs/backups.md.",
    )
    second: SecondRepositorySettings | None = Field(
        default=None, description="Another bucket that gets everything as well."
    )
    dump_schedule: Cron = Field(default="0 2 * * *", description="pg_dump of each database, UTC.")
    dump_prefix: str = Field(
        default="/daily",
        pattern=r"^(/[a-z0-9][a-z0-9._-]*)+$",
        description="Where the dumps lie in the bucket.",
    )
    dump_retention_days: int = Field(
        default=30, ge=1, le=3650, description="Dumps are kept this long, the newest always."
    )
    dump_jobs: int = Field(default=2, ge=1, le=32, description="Tables dumped at a time.")
    dump_plain: bool = Field(default=False, description="Dumps have plain SQL as well.")
    versions_days: int = Field(
        default=7,
        ge=0,
        le=3650,
        description="What is removed or overwritten in the bucket stays this long; 0: no longer.",
    )
    check_schedule: Cron = Field(
        default="0 4 * * *",
        description="The repository's files are read and compared, gaps in the WAL found, UTC.",
    )
    drill_schedule: Cron = Field(
        default="0 5 * * 0",
        description="The newest backup is restored beside the stack and compared, UTC.",
    )


class EncryptionSettings(_Model):
    """The keys for JSON values that applications encrypt in the database: docs/encryption.md."""

    key_ids: Annotated[tuple[str, ...], AfterValidator(_key_ids)] = Field(
        default=("k1",),
        min_length=1,
        max_length=16,
        description="A key is made for each; all decrypt, the last one encrypts.",
    )


class TlsSettings(_Model):
    """The stack's own CA. `up` renews whatever expires within the renewal window."""

    ca_valid_days: int = Field(default=3650, ge=30, le=7300)
    valid_days: int = Field(default=365, ge=2, le=825)
    renew_before_days: int = Field(default=30, ge=1, le=365)


class DockerSettings(_Model):
    """Placement on one machine."""

    bind_address: Annotated[str, AfterValidator(_address)] = Field(
        default="127.0.0.1", description="Where the ports are published."
    )

    @property
    def connect_address(self) -> str:
        """What a client on this machine connects to."""
        return "127.0.0.1" if self.bind_address == "0.0.0.0" else self.bind_address

    pool_port: int = Field(
        default=6432,
        ge=1024,
        le=65535,
        description="Port of the first PgBouncer; the others follow.",
    )
    image_revision: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,40}$",
        description="Change it (say, to today's date) to rebuild the images with new packages.",
    )
    direct_port: int | None = Field(
        default=None,
        ge=1024,
        le=65535,
        description="Publishes the primary (and, one above, the standbys).",
    )


class JobsSettings(_Model):
    """pg_cron's jobs: partitions, retention and their like."""

    active: bool = Field(
        default=True,
        description="Off: nothing is started by itself, as in a clone that nobody has looked at.",
    )


class RecoverySettings(_Model):
    """Where the data of a stack comes from; read while it has none. `elsapg clone` writes it."""

    source: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9-]{0,29}$",
        description="The stack whose backups it is made of; unset: itself (kubernetes).",
    )
    to: str = Field(
        default="latest",
        pattern=r"^[^\x00-\x1f'\"]{1,60}$",
        description="A time with its zone, an LSN, a mark's name, or latest.",
    )
    timeline: int | None = Field(
        default=None, ge=1, description="The line of history there, if not its present one."
    )


class KubernetesSettings(_Model):
    """Placement in a namespace of a Kubernetes cluster, which is the stack's alone."""

    context: str | None = Field(
        default=None,
        pattern=r"^[^\s]{1,253}$",
        description="The kubeconfig's context; the current one if unset. KUBECONFIG is honoured.",
    )
    namespace: str | None = Field(
        default=None, pattern=rf"^{_DNS_LABEL}$", description="elsapg-<stack> if unset."
    )
    cluster_domain: str = Field(default="cluster.local", pattern=rf"^{_DNS_NAME}$")
    registry: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9.-]*(?::[0-9]{1,5})?(?:/[a-z0-9][a-z0-9._-]*)*$",
        description="Where the images are: HOST[:PORT][/PATH]; `elsapg images push` fills it.",
    )
    pull_secrets: Labels = Field(
        default=(), description="Secrets of type dockerconfigjson in the namespace."
    )
    storage_class: str | None = Field(
        default=None, pattern=rf"^{_DNS_NAME}$", description="The cluster's default if unset."
    )
    scratch_volume_size: str | None = Field(
        default=None,
        pattern=_SIZE,
        description="A volume of the storage class for each dump and restore drill while it runs, "
        "with room for all data; the machine's own disk (emptyDir) if unset.",
    )
    secrets: Literal["pulumi", "external", "cluster"] = Field(
        default="pulumi",
        description="Who makes the Secrets: Pulumi; External Secrets, out of a store; or `elsapg "
        "secrets apply`, straight in the cluster.",
    )
    secret_store: Reference = Field(
        default=None, description="secrets external: SecretStore/NAME or ClusterSecretStore/NAME."
    )
    secret_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9/_.-]{0,200}$",
        description="secrets external: stands before each key in the store; elsapg/<stack>/ if "
        "unset.",
    )
    cert_manager: bool = Field(
        default=False, description="Certificates by cert-manager, not by the toolkit's own CA."
    )
    cert_manager_issuer: str | None = Field(
        default=None,
        pattern=rf"^{_DNS_NAME}$",
        description="An Issuer in the namespace, for this stack alone: who gets a certificate of "
        "it in the name of a role can log in as that role. A CA of the stack's own if unset.",
    )
    monitoring: bool = Field(
        default=False, description="PodMonitor and PrometheusRule for the Prometheus operator."
    )
    monitoring_namespace: str = Field(
        default="monitoring", pattern=rf"^{_DNS_LABEL}$", description="Where Prometheus runs."
    )
    anti_affinity: Literal["required", "preferred"] = Field(
        default="required", description="Whether two nodes may never share a machine."
    )
    priority_class: str | None = Field(default=None, pattern=rf"^{_DNS_NAME}$")
    service_account_annotations: Annotations = Field(
        default_factory=dict, description="For workload identity: of who reads and writes S3."
    )
    pool_service_type: Literal["ClusterIP", "LoadBalancer"] = "ClusterIP"
    pool_service_annotations: Annotations = Field(default_factory=dict)
    pool_names: Annotated[tuple[str, ...], AfterValidator(_dns_names)] = Field(
        default=(), description="Further names by which clients reach the pools; for certificates."
    )
    pool_leave_s: int = Field(
        default=0,
        ge=0,
        le=300,
        description="Seconds that a pool which leaves (a drain, a new version) goes on for the "
        "clients that it has. Those that connect anew within them see nothing; the others' "
        "connections end. Its server connections must fit beside its successor's.",
    )
    network_policies: bool = True
    application_namespaces: Labels = Field(
        default=(), description="Namespaces whose pods may use the pools."
    )
    application_cidrs: Cidrs = Field(
        default=(), description="Networks outside the cluster that may use the pools."
    )
    api_server_cidrs: Cidrs = Field(
        default=(), description="Where the API server is; anywhere if unset."
    )
    api_server_ports: Annotated[tuple[PortNumber, ...], Field(min_length=1)] = Field(
        default=(443, 6443),
        description="The API server's own port, and its Service's: a policy may look before or "
        "after that one is translated.",
    )
    dns_namespaces: Labels = Field(
        default=("kube-system",), description="Where the cluster's DNS runs."
    )
    dns_cidrs: Cidrs = Field(
        default=("169.254.20.10/32",),
        description="Where else it answers: a machine's own cache, by convention there or, with "
        "kube-proxy in iptables mode, on the DNS Service's address.",
    )
    dns_ports: Annotated[tuple[PortNumber, ...], Field(min_length=1)] = Field(
        default=(53,), description="The port of its pods (OpenShift: 5353) and of its Service."
    )
    s3_cidrs: Cidrs = Field(
        default=(),
        description="Where S3 is (and, with web-id, the cloud's token service); anywhere if unset.",
    )
    s3_ports: tuple[PortNumber, ...] = Field(
        default=(), description="Ports of S3's pods, where S3 is a Service that maps its port."
    )


class Settings(_Model):
    """Everything a stack decides. Frozen: nothing changes it after `load`."""

    target: Literal["docker", "kubernetes"] = "docker"
    protect: bool = Field(
        default=True,
        description="Data volumes and secrets outlive `destroy` unless it is told --purge.",
    )
    database: DatabaseSettings = DatabaseSettings()
    postgres: PostgresSettings = PostgresSettings()
    patroni: PatroniSettings = PatroniSettings()
    etcd: EtcdSettings = EtcdSettings()
    pooler: PoolerSettings = PoolerSettings()
    archive: ArchiveSettings = ArchiveSettings()
    retention: RetentionSettings = RetentionSettings()
    jobs: JobsSettings = JobsSettings()
    recovery: RecoverySettings | None = None
    encryption: EncryptionSettings = EncryptionSettings()
    tls: TlsSettings = TlsSettings()
    docker: DockerSettings = DockerSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
