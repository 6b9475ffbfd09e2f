"""What the runner is told: `/etc/elsapg/runner.json`, written by the definition."""

from __future__ import annotations

import json
from dataclasses import dataclass
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

    def patroni(self) -> Patroni:
        return Patroni(self.nodes, self.patroni_port, self.sslrootcert, self.sslcert, self.sslkey)
