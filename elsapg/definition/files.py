"""Renders what stands in `/etc/elsapg` of each unit and task.

One Jinja environment with StrictUndefined: a name that a template does not get is an error,
never an empty string. Files with secrets are mode 0640 like all others: root owns them, the
container's one group reads them, and no process can write them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from elsapg.definition import topology as t
from elsapg.definition.parameters import dynamic_configuration
from elsapg.definition.secrets import AUTH, BACKUP, REPLICATOR, REWIND, SUPERUSER, Secrets
from elsapg.settings import Settings

TEMPLATES = Path(__file__).resolve().parents[2] / "config_templates"


@dataclass(frozen=True)
class File:
    """A file below `/etc/elsapg`; `mode` is octal permissions, owner root, group 999."""

    path: str
    content: str
    mode: int = 0o640


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


def _key_pair(as_name: str, key_pair: str, secrets: Secrets) -> tuple[File, ...]:
    pair = secrets.key_pairs[key_pair]
    return (
        File(f"tls/{as_name}.crt", pair.certificate),
        File(f"tls/{as_name}.key", pair.private_key),
    )


def _tls(as_name: str, key_pair: str, secrets: Secrets) -> tuple[File, ...]:
    return (File("tls/ca.crt", secrets.ca), *_key_pair(as_name, key_pair, secrets))


def _pgbackrest(settings: Settings, secrets: Secrets, **values: Any) -> File:
    return _file("pgbackrest.conf", "pgbackrest.conf.j2", settings, secrets=secrets, **values)


def _node(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file(
            "patroni.yml",
            "patroni.yml.j2",
            settings,
            name=name,
            dynamic=dynamic_configuration(settings),
            replicator=REPLICATOR,
            rewind=REWIND,
        ),
        _pgbackrest(settings, secrets, node=name),
        *_recovery(settings, secrets),
        *_tls("server", name, secrets),
        *_key_pair(REPLICATOR, REPLICATOR, secrets),
        *_key_pair(REWIND, REWIND, secrets),
    )


def _recovery(settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    """For a stack that is to come out of a repository; nothing for any other."""
    order = secrets.recovery
    if order is None:
        return ()
    wanted = {"to": order.to, "timeline": order.timeline, "backup": order.backup}
    files = [File("recovery.json", json.dumps(wanted, indent=2))]
    if order.source is not None:
        files.append(_file("source.conf", "source.conf.j2", settings, source=order.source))
        if order.source.ca:
            files.append(File("source-ca.crt", order.source.ca))
    return tuple(files)


def _etcd(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file("etcd.yml", "etcd.yml.j2", settings, name=name),
        *_tls("server", name, secrets),
    )


def _pooler(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file("pgbouncer.ini", "pgbouncer.ini.j2", settings),
        _file("pgbouncer_hba.conf", "pgbouncer_hba.conf.j2", settings),
        *_tls("server", name, secrets),
        *_key_pair("client", AUTH, secrets),
    )


def _haproxy(_name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        _file("haproxy.cfg", "haproxy.cfg.j2", settings),
        File("tls/ca.crt", secrets.ca),
    )


def _s3(_name: str, _settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    return (
        File("s3-access-key", secrets.s3_access_key),
        File("s3-secret-key", secrets.s3_secret_key),
        *_tls("server", "s3", secrets),
    )


def _agent(name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    node = name.removesuffix("-agent")
    return (_pgbackrest(settings, secrets, node=node), *_tls("server", node, secrets))


def _runner(_name: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    """Of the schedule: backups need neither passwords nor the superuser's key."""
    return _select(BACKUP, {"pgbackrest.conf"}, settings, secrets)


def _select(
    client: str,
    paths: set[str],
    settings: Settings,
    secrets: Secrets,
    more: Mapping[str, Any] | None = None,
) -> tuple[File, ...]:
    """Of what the runner image's commands read: runner.json, `paths`, and one client's keys.

    `more` goes into runner.json: what this command alone reads, so that no other runs again for it.
    """
    tls = f"{t.CONFIG_DIR}/tls"
    config = {
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
        **(more or {}),
    }
    files = (
        File("runner.json", json.dumps(config, indent=2)),
        File("dynamic.json", json.dumps(dynamic_configuration(settings), indent=2, sort_keys=True)),
        File("roles.json", json.dumps(dict(secrets.passwords), indent=2, sort_keys=True)),
        _pgbackrest(settings, secrets, node=None),
        File("tls/ca.crt", secrets.ca),
        *_key_pair(client, client, secrets),
    )
    wanted = {"runner.json", *paths}
    return tuple(f for f in files if f.path in wanted or f.path.startswith("tls/"))


def task_files(task: str, settings: Settings, secrets: Secrets) -> tuple[File, ...]:
    """A task gets only the files that it reads, so that it runs again only when they change."""
    client, paths, more = {
        "configure": (SUPERUSER, {"dynamic.json"}, None),
        # For elsapg.setting, which the databases' own jobs read.
        "bootstrap": (SUPERUSER, {"roles.json"}, {"settings": settings.retention.model_dump()}),
        "first-backup": (BACKUP, {"pgbackrest.conf"}, None),
        "recovery-check": (BACKUP, {"pgbackrest.conf"}, None),
    }[task]
    if task == "recovery-check":
        return (
            *_select(client, paths, settings, secrets, more),
            *_recovery(settings, secrets),
        )
    return _select(client, paths, settings, secrets, more)
