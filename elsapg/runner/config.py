"""What the runner is told: `/etc/elsapg/runner.json`, written by the definition."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from elsapg.runner.patroni import Patroni

PATH = Path("/etc/elsapg/runner.json")


@dataclass(frozen=True)
class Config:
    """Hosts, files and schedules; no secret stands in it, only the paths to their files."""

    nodes: list[str]
    patroni_port: int
    primary: dict[str, Any]
    superuser: str
    sslrootcert: str
    sslcert: str
    sslkey: str
    sql_dir: str
    passwords_file: str
    dynamic_file: str
    stanza: str
    schedules: dict[str, str]
    # Of the jobs other than backups: dump, check, drill.
    job_schedules: dict[str, str] = field(default_factory=dict)
    dump: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    repositories: int = 1

    @classmethod
    def load(cls, path: Path = PATH) -> Config:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def conninfo(self, database: str, host: str | None = None) -> str:
        """libpq's words for `database` on `host` (the primary's stable address if not given)."""
        return make_conninfo(
            host=host or str(self.primary["host"]),
            port=str(self.primary["port"]),
            dbname=database,
            user=self.superuser,
            sslmode="verify-full",
            sslrootcert=self.sslrootcert,
            sslcert=self.sslcert,
            sslkey=self.sslkey,
            connect_timeout="5",
            application_name="elsapg",
        )

    def backup_conninfo(self, database: str, host: str | None = None) -> str:
        """The same as role `backup`: it reads everything and writes nothing."""
        certificate, key = self._backup_keys
        return make_conninfo(
            self.conninfo(database, host), user="backup", sslcert=certificate, sslkey=key
        )

    @property
    def _backup_keys(self) -> tuple[str, str]:
        folder = Path(self.sslcert).parent
        return str(folder / "backup.crt"), str(folder / "backup.key")

    def backup_patroni(self) -> Patroni:
        """Patroni, to be asked only."""
        return Patroni(self.nodes, self.patroni_port, self.sslrootcert, *self._backup_keys)

    def patroni(self) -> Patroni:
        return Patroni(self.nodes, self.patroni_port, self.sslrootcert, self.sslcert, self.sslkey)
