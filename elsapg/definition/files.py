"""Renders what stands in `/etc/elsapg` of each unit and task.

One Jinja environment with StrictUndefined: a name that a template does not get is an error,
never an empty string. Files with secrets are mode 0640 like all others: root owns them, the
container's one group reads them, and no process can write them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from elsapg.definition import topology as t
from elsapg.definition.parameters import dynamic_configuration
from elsapg.definition.secrets import (
    AUTH,
    BACKUP,
    REPLICATOR,
    REWIND,
    SUPERUSER,
    Recovery,
    Secrets,
    Source,
    key_pair_of,
)
from elsapg.settings import Settings

TEMPLATES = Path(__file__).resolve().parents[2] / "config_templates"


@dataclass(frozen=True)
class File:
    """A file below `/etc/elsapg`; `mode` is octal permissions, owner root, group 999.

    `kept_in`: the secret that it comes from, by the name that a target may give it: `repository`,
    `roles`, `s3`, `source`, or `tls-<pair>` for a key pair with its CA. None: nothing in it is one.
    `optional`: that secret may be absent, and then so is the file.
    """

    path: str
    content: str
    mode: int = 0o640
    kept_in: str | None = None
    optional: bool = False

    @property
    def secret(self) -> bool:
        """Whether it must not stand where anybody may read it."""
        return self.kept_in is not None


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - configuration files, not HTML
    )
    environment.filters["yaml"] = _inline_yaml
    environment.filters["indent_yaml"] = _indented_yaml
    return environment


def _inline_yaml(value: object) -> str:
    return json.dumps(value)


def _indented_yaml(value: object, spaces: int) -> str:
    text = yaml.safe_dump(value, default_flow_style=False, sort_keys=True)
    pad = " " * spaces
    return "".join(pad + line for line in text.splitlines(keepends=True))


def render(template: str, settings: Settings, **values: Any) -> str:
    """Render one template. `settings` and `t` (topology's names and ports) are always there."""
    return _environment().get_template(template).render(s=settings, t=t, **values)


def files_for(unit: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    """The files of a unit, by its name."""
    by_unit = {
        **dict.fromkeys(t.node_names(settings), _node),
        **{t.agent_name(node): _agent for node in t.node_names(settings)},
        **dict.fromkeys(t.etcd_names(settings), _etcd),
        **dict.fromkeys(t.pooler_names(settings), _pooler),
        "haproxy": _haproxy,
        "s3": _s3,
        "runner": _runner,
    }
    return by_unit[unit](unit, settings, secrets)


def _file(path: str, template: str, settings: Settings, **values: Any) -> File:
    return File(path, render(template, settings, **values))


def tls_secret(key_pair: str) -> str:
    """What a target may call the secret with a key pair: a name without underscores."""
    return f"tls-{key_pair.replace('_', '-')}"


def _key_pair(as_name: str, key_pair: str, secrets: Secrets) -> tuple[File, ...]:
    pair = secrets.key_pairs[key_pair]
    return (
        File(f"tls/{as_name}.crt", pair.certificate, kept_in=tls_secret(key_pair)),
        File(f"tls/{as_name}.key", pair.private_key, kept_in=tls_secret(key_pair)),
    )


def _tls(as_name: str, key_pair: str, secrets: Secrets) -> tuple[File, ...]:
    ca = File("tls/ca.crt", secrets.ca, kept_in=tls_secret(key_pair))
    return (ca, *_key_pair(as_name, key_pair, secrets))


def _pgbackrest(settings: Settings, secrets: Secrets, node: str | None) -> tuple[File, ...]:
    """Two files, so that what is no secret can be read and compared by anybody."""
    second = settings.archive.second
    authorities = {
        "s3-ca.crt": settings.archive.ca,
        "s3-second-ca.crt": second.ca if second else None,
    }
    return (
        _file("pgbackrest.conf", "pgbackrest.conf.j2", settings, node=node),
        repository_secret(settings, secrets),
        *(File(path, ca) for path, ca in authorities.items() if ca),
    )


def repository_secret(settings: Settings, secrets: Secrets) -> File:
    """What opens the repository: S3's keys (unless the pods' identity does), and its cipher."""
    path = "pgbackrest.d/secrets.conf"
    content = render("secrets.conf.j2", settings, secrets=secrets)
    return File(path, content, kept_in="repository")


def roles_secret(secrets: Secrets) -> File:
    """The passwords that the bootstrap gives to the roles."""
    content = json.dumps(dict(secrets.passwords), indent=2, sort_keys=True)
    return File("roles.json", content, kept_in="roles")


def _node(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file(
            "patroni.yml",
            "patroni.yml.j2",
            settings,
            # Where one file serves all nodes, each is told its name by its environment.
            name=None if settings.target == "kubernetes" else name,
            dynamic=dynamic_configuration(settings),
            replicator=REPLICATOR,
            rewind=REWIND,
        ),
        *_pgbackrest(settings, secrets, name),
        *_recovery(settings, secrets),
        *_tls("server", key_pair_of(name, settings), secrets),
        *_key_pair(REPLICATOR, REPLICATOR, secrets),
        *_key_pair(REWIND, REWIND, secrets),
    )


def _recovery(settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    """For a stack that is to come out of a repository; nothing for any other."""
    order = secrets.recovery or _own_recovery(settings)
    if order is None:
        return ()
    wanted = {"to": order.to, "timeline": order.timeline, "backup": order.backup}
    if order.source_stack is not None:
        # Without what opens that one's repository nothing is made, least of all an empty database.
        wanted["source"] = order.source_stack
    files = [File("recovery.json", json.dumps(wanted, indent=2))]
    if order.source is not None:
        files += [f for f in source_secret(settings, order.source) if f.content]
    elif order.source_stack is not None:
        files += [File(path, "", kept_in="source", optional=True) for path in SOURCE_FILES]
    return tuple(files)


SOURCE_FILES = ("source.conf", "source-ca.crt")


def source_secret(settings: Settings, source: Source) -> tuple[File, ...]:
    """What opens the repository of the stack that this one is made of; only restoring reads it.

    The CA's file is empty where a public one signed.
    """
    content = render("source.conf.j2", settings, source=source)
    return tuple(
        File(path, text, kept_in="source", optional=True)
        for path, text in zip(SOURCE_FILES, (content, source.ca), strict=True)
    )


def _own_recovery(settings: Settings) -> Recovery | None:
    """On kubernetes the stack's file gives the order, for no `up` may be there to give it; a node
    that has data, or another one to copy it from, never reads it."""
    wanted = settings.recovery
    if settings.target != "kubernetes" or wanted is None:
        return None
    return Recovery(wanted.to, wanted.timeline, source_stack=wanted.source)


def _etcd(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file("etcd.yml", "etcd.yml.j2", settings, name=name),
        *_tls("server", name, secrets),
    )


def _pooler(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file("pgbouncer.ini", "pgbouncer.ini.j2", settings),
        _file("pgbouncer_hba.conf", "pgbouncer_hba.conf.j2", settings),
        *((readers_file(settings),) if settings.target == "kubernetes" else ()),
        *_tls("server", key_pair_of(name, settings), secrets),
        *_key_pair("client", AUTH, secrets),
    )


def readers_file(settings: Settings) -> File:
    """Of the HAProxy beside each pool, which leads readers to the standbys (kubernetes)."""
    return _file("readers.cfg", "readers.cfg.j2", settings)


def _haproxy(_name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file("haproxy.cfg", "haproxy.cfg.j2", settings),
        File("tls/ca.crt", secrets.ca),
    )


def _s3(_name: str, _settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        File("s3-access-key", secrets.s3_access_key, kept_in="s3"),
        File("s3-secret-key", secrets.s3_secret_key, kept_in="s3"),
        *_tls("server", "s3", secrets),
    )


def _agent(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    node = name.removesuffix("-agent")
    pair = key_pair_of(node, settings)
    return (*_pgbackrest(settings, secrets, node), *_tls("server", pair, secrets))


def _runner(_name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    """Of the schedule: backups need neither passwords nor the superuser's key."""
    return _select(BACKUP, _PGBACKREST, settings, secrets, _jobs(settings))


def _jobs(settings: Settings) -> dict[str, Any]:
    """What the runner's schedule reads beside the backups' own times."""
    archive = settings.archive
    return {
        "job_schedules": {
            "dump": archive.dump_schedule,
            "check": archive.check_schedule,
            "drill": archive.drill_schedule,
        },
        "dump": {
            "prefix": archive.dump_prefix,
            "retention_days": archive.dump_retention_days,
            "jobs": archive.dump_jobs,
            "plain": archive.dump_plain,
            "databases": list(t.DATABASES),
        },
        **_repositories(settings),
    }


def _repositories(settings: Settings) -> dict[str, Any]:
    # The docker target's bucket is the stack's own; any other is somebody's.
    own = settings.target == "docker"
    return {
        "versions": {"days": settings.archive.versions_days, "own": own},
        "repositories": 2 if settings.archive.second else 1,
    }


_PGBACKREST = frozenset(
    {"pgbackrest.conf", "pgbackrest.d/secrets.conf", "s3-ca.crt", "s3-second-ca.crt"}
)


def schedule_config(settings: Settings) -> dict[str, Any]:
    """What the runner's schedule is told: hosts, paths and times, and no secret."""
    return {**_runner_config(settings), **_jobs(settings)}


def _runner_config(settings: Settings) -> dict[str, Any]:
    tls = f"{t.CONFIG_DIR}/tls"
    return {
        "nodes": list(t.node_names(settings)),
        "patroni_port": t.PATRONI_PORT,
        "primary": {"host": t.PRIMARY_HOST, "port": t.PG_PORT},
        "superuser": SUPERUSER,
        "sslrootcert": f"{tls}/ca.crt",
        "sslcert": f"{tls}/{SUPERUSER}.crt",
        "sslkey": f"{tls}/{SUPERUSER}.key",
        "sql_dir": "/usr/share/elsapg/bootstrap_sql",
        "passwords_file": f"{t.CONFIG_DIR}/roles.json",
        "dynamic_file": f"{t.CONFIG_DIR}/dynamic.json",
        "stanza": t.STANZA,
        "schedules": {
            "full": settings.archive.full_schedule,
            "incr": settings.archive.incremental_schedule,
        },
    }


def _select(
    client: str,
    paths: Set[str],
    settings: Settings,
    secrets: Secrets,
    more: Mapping[str, Any] | None = None,
) -> tuple[File, ...]:
    """Of what the runner image's commands read: runner.json, `paths`, and one client's keys.

    `more` goes into runner.json: what this command alone reads, so that no other runs again for it.
    """
    config = {**_runner_config(settings), **(more or {})}
    files = (
        File("runner.json", json.dumps(config, indent=2)),
        File("dynamic.json", json.dumps(dynamic_configuration(settings), indent=2, sort_keys=True)),
        roles_secret(secrets),
        *_pgbackrest(settings, secrets, None),
        *_tls(client, client, secrets),
    )
    wanted = {"runner.json", *paths}
    return tuple(f for f in files if f.path in wanted or f.path.startswith("tls/"))


def task_files(task: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    """A task gets only the files that it reads, so that it runs again only when they change."""
    client, paths, more = {
        "configure": (SUPERUSER, {"dynamic.json"}, None),
        # For elsapg.setting, which the databases' own jobs read.
        "bootstrap": (SUPERUSER, {"roles.json"}, {"settings": settings.retention.model_dump()}),
        "first-backup": (BACKUP, _PGBACKREST, _repositories(settings)),
        "recovery-check": (BACKUP, _PGBACKREST, None),
    }[task]
    if task == "recovery-check":
        return (
            *_select(client, paths, settings, secrets, more),
            *_recovery(settings, secrets),
        )
    return _select(client, paths, settings, secrets, more)
