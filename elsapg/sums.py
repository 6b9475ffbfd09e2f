"""The sums that cross settings: what must fit into what, checked before anything is made.

Each rule yields a problem together with the keys it reads, so that a key which is already
reported as bad does not appear a second time as a wrong sum.
"""

from __future__ import annotations

from collections.abc import Iterator

from elsapg.errors import Problem, UsageError
from elsapg.runner import target as targets
from elsapg.settings import NAMESPACE, Settings

Finding = tuple[Problem, set[str]]

DATABASES = 2


def pools_at_once(settings: Settings) -> int:
    """One that leaves slowly is still there when its successor has come."""
    return settings.pooler.instances + (settings.kubernetes.pool_leave_s > 0)


def pool_connections(settings: Settings) -> int:
    """Server connections that all PgBouncers together may open to the primary."""
    return pools_at_once(settings) * one_pools_connections(settings)


def one_pools_connections(settings: Settings) -> int:
    """Server connections that one PgBouncer may open."""
    pooler = settings.pooler
    # The read-only door leads to the primary while there is no standby; one connection of each
    # PgBouncer looks passwords up.
    doors = pooler.max_db_connections + pooler.session_connections + pooler.readonly_connections
    return DATABASES * doors + 1


def check_sums(settings: Settings) -> list[Finding]:
    """Every rule that does not hold, with the keys that it involves."""
    return [
        *_connections(settings),
        *_patroni(settings),
        *_replication(settings),
        *_memory(settings),
        *_tls(settings),
        *_ports(settings),
        *_foreign(settings),
        *_recovery(settings),
        *_kubernetes(settings),
    ]


def _finding(key: str, value: object, reason: str, *others: str) -> Finding:
    return Problem(f"{NAMESPACE}:{key}", str(value), reason), {key, *others}


def _connections(s: Settings) -> Iterator[Finding]:
    reserved = s.postgres.superuser_reserved_connections + s.postgres.direct_connections
    room = s.postgres.max_connections - reserved
    wanted = pool_connections(s)
    if wanted > room:
        others = s.pooler.session_connections + s.pooler.readonly_connections
        pools = pools_at_once(s)
        also = " and one that leaves" if pools > s.pooler.instances else ""
        fitting = (room // pools - 1) // DATABASES - others
        way_out = f"lower it to {fitting}" if fitting >= 1 else "lower the other doors or instances"
        yield _finding(
            "pooler.max_db_connections",
            s.pooler.max_db_connections,
            f"{s.pooler.instances} PgBouncers{also} x ({DATABASES} databases x ("
            f"max_db_connections + session_connections {s.pooler.session_connections} + "
            f"readonly_connections {s.pooler.readonly_connections}) + 1 for logins) = {wanted} "
            f"connections, but max_connections {s.postgres.max_connections} leaves {room} beside "
            f"{reserved} kept; {way_out}, or raise postgres.max_connections to {wanted + reserved}",
            "kubernetes.pool_leave_s",
            "pooler.instances",
            "pooler.readonly_connections",
            "pooler.session_connections",
            "postgres.max_connections",
            "postgres.direct_connections",
            "postgres.superuser_reserved_connections",
        )


def _patroni(s: Settings) -> Iterator[Finding]:
    needed = s.patroni.loop_wait + 2 * s.patroni.retry_timeout
    if needed > s.patroni.ttl:
        yield _finding(
            "patroni.ttl",
            s.patroni.ttl,
            f"loop_wait {s.patroni.loop_wait} + 2 x retry_timeout {s.patroni.retry_timeout} = "
            f"{needed} must be at most ttl; raise ttl to {needed} or lower the others",
            "patroni.loop_wait",
            "patroni.retry_timeout",
        )


def _replication(s: Settings) -> Iterator[Finding]:
    if s.postgres.synchronous == "strict" and s.postgres.replicas < 2:
        yield _finding(
            "postgres.synchronous",
            "'strict'",
            f"needs at least 2 standbys, or every commit hangs while the only one restarts; "
            f"replicas is {s.postgres.replicas}; set postgres.replicas to 2 or synchronous to 'on'",
            "postgres.replicas",
        )
    # Each standby streams with one sender; pg_basebackup takes two while one is (re)built;
    # two more are kept for people and tools.
    for key, per_standby, spare in (("max_wal_senders", 1, 4), ("max_replication_slots", 1, 2)):
        needed = s.postgres.replicas * per_standby + spare
        value = getattr(s.postgres, key)
        if value < needed:
            yield _finding(
                f"postgres.{key}",
                value,
                f"{s.postgres.replicas} standbys need {needed} (one each, and {spare} for base "
                f"backups and tools); raise it to {needed}",
                "postgres.replicas",
            )


_UNITS_KB = {"kB": 1, "MB": 1024, "GB": 1024**2, "TB": 1024**3}


def parse_kb(value: object, default_unit_kb: int) -> int | None:
    """A PostgreSQL memory value in KiB; `default_unit_kb` is the unit of a bare number."""
    text = str(value).strip()
    for unit, factor in _UNITS_KB.items():
        if text.endswith(unit):
            number = text.removesuffix(unit).strip()
            return int(number) * factor if number.isdigit() else None
    return int(text) * default_unit_kb if text.isdigit() else None


def _memory(s: Settings) -> Iterator[Finding]:
    memory_kb = s.postgres.memory_mb * 1024
    bounds = {"shared_buffers": (8, 0.5), "maintenance_work_mem": (1, 0.25), "work_mem": (1, 0.25)}
    for name, (unit_kb, share) in bounds.items():
        value = s.postgres.parameters.get(name)
        if value is None:
            continue
        size = parse_kb(value, unit_kb)
        if size is None:
            reason = "is not a memory size; write it as '256MB'"
        elif size > memory_kb * share:
            reason = (
                f"{size // 1024} MiB is more than {share:.0%} of memory_mb {s.postgres.memory_mb}; "
                f"lower it to {int(s.postgres.memory_mb * share)}MB or raise postgres.memory_mb"
            )
        else:
            continue
        yield _finding(
            f"postgres.parameters.{name}",
            repr(value),
            reason,
            "postgres.memory_mb",
            "postgres.parameters",
        )
    # A backend costs 2 to 3 MiB of its own before it does any work; half the memory is theirs.
    most = s.postgres.memory_mb // 2 // 3
    if s.postgres.max_connections > most:
        yield _finding(
            "postgres.max_connections",
            s.postgres.max_connections,
            f"memory_mb {s.postgres.memory_mb} carries {most} backends; lower it to {most}, or "
            f"raise postgres.memory_mb to {s.postgres.max_connections * 6}",
            "postgres.memory_mb",
        )


def _tls(s: Settings) -> Iterator[Finding]:
    if s.tls.renew_before_days >= s.tls.valid_days:
        yield _finding(
            "tls.renew_before_days",
            s.tls.renew_before_days,
            f"must be less than valid_days {s.tls.valid_days}, or every `up` renews everything",
            "tls.valid_days",
        )
    if s.tls.valid_days >= s.tls.ca_valid_days:
        yield _finding(
            "tls.valid_days",
            s.tls.valid_days,
            f"must be less than ca_valid_days {s.tls.ca_valid_days}: a CA outlives what it signs",
            "tls.ca_valid_days",
        )


def _ports(s: Settings) -> Iterator[Finding]:
    if s.target != "docker":
        return
    last = s.docker.pool_port + s.pooler.instances - 1
    if last > 65535:
        yield _finding(
            "docker.pool_port",
            s.docker.pool_port,
            f"{s.pooler.instances} PgBouncers need ports up to {last}, above 65535; lower it",
            "pooler.instances",
        )
    direct = s.docker.direct_port
    if direct is not None and direct <= last and direct + 1 >= s.docker.pool_port:
        yield _finding(
            "docker.direct_port",
            direct,
            f"ports {direct} and {direct + 1} collide with the pool's {s.docker.pool_port} to "
            f"{last}; choose another",
            "docker.pool_port",
            "pooler.instances",
        )


# Keys that one target alone reads: elsewhere they would be believed and do nothing.
_ONLY: dict[str, dict[str, tuple[str, ...]]] = {
    "docker": {"docker": (), "etcd": ()},
    "kubernetes": {
        "kubernetes": (),
        "archive": ("endpoint", "uri_style", "credentials", "ca"),
        "postgres": ("volume_size", "wal_volume_size"),
    },
}


def _recovery(s: Settings) -> Iterator[Finding]:
    """Whose backups a stack may come out of, and to where."""
    if s.recovery is None:
        return
    if s.target == "docker" and s.recovery.source is None:
        yield _finding(
            "recovery.source",
            "",
            "name the stack whose backups this one is made of; out of its own archive a stack "
            "comes by `elsapg up --from-backup`, and recovery stays out of its file",
            "target",
        )
    try:
        targets.parse(s.recovery.to)
    except UsageError as error:
        yield _finding("recovery.to", s.recovery.to, str(error).partition(": ")[2])


def _foreign(s: Settings) -> Iterator[Finding]:
    for target, groups in _ONLY.items():
        if target == s.target:
            continue
        for group, names in groups.items():
            model = getattr(s, group)
            if model is None:
                continue
            for name in sorted(model.model_fields_set & set(names or model.model_fields_set)):
                yield _finding(
                    f"{group}.{name}",
                    _short(getattr(model, name)),
                    f"is for the {target} target alone, and target is {s.target}; remove it, or "
                    f"set target to {target}",
                    "target",
                )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kubernetes(s: Settings) -> Iterator[Finding]:
    if s.target != "kubernetes":
        return
    k = s.kubernetes
    if k.registry is None:
        yield _finding(
            "kubernetes.registry",
            None,
            "is needed: the registry that the cluster pulls the images from, such as "
            "registry.example.com/platform",
            "target",
        )
    if s.archive.endpoint is None:
        yield _finding(
            "archive.endpoint",
            None,
            f"is needed: HOST or HOST:PORT of the S3 service, such as s3.{s.archive.region}."
            "example.com",
            "target",
        )
    if k.secrets == "external" and k.secret_store is None:
        yield _finding(
            "kubernetes.secret_store",
            None,
            "is needed where secrets is 'external': SecretStore/NAME or ClusterSecretStore/NAME",
            "kubernetes.secrets",
        )
    if k.secrets == "cluster" and len(s.archive.key_ids) > 1:
        yield _finding(
            "archive.key_ids",
            ", ".join(s.archive.key_ids),
            "`elsapg secrets apply` keeps one key of the repository, the one that is there: for "
            "another one write down and delete Secret repository, and put the new key into "
            "ELSAPG_REPOSITORY_CIPHER for one run of it",
            "kubernetes.secrets",
        )
    stores = ("SecretStore", "ClusterSecretStore")
    if k.secret_store is not None and k.secret_store.partition("/")[0] not in stores:
        yield _finding(
            "kubernetes.secret_store",
            repr(k.secret_store),
            "must be SecretStore/NAME or ClusterSecretStore/NAME",
        )
    needs = (
        ("secret_store", k.secret_store, k.secrets == "external", "secrets is 'external'"),
        ("secret_prefix", k.secret_prefix, k.secrets == "external", "secrets is 'external'"),
        ("cert_manager_issuer", k.cert_manager_issuer, k.cert_manager, "cert_manager is true"),
    )
    for name, value, met, condition in needs:
        if value and not met:
            yield _finding(
                f"kubernetes.{name}", repr(value), f"is read only where {condition}; remove it"
            )
