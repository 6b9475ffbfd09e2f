"""A running stack with data in it, and the means to hurt its archive."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from elsapg.definition import topology as t
from elsapg.services.deployment import Deployment
from elsapg.services.recovery import Trouble, overview
from elsapg.services.verify import settled
from elsapg.targets.docker import daemon as d
from tests.chaos.faults import wait_for
from tests.stacks import elsapg, inside

# Months, tenants, names that need quotes, and values whose text depends on settings.
FILL = """
SELECT elsa_workflows.create_monthly_partitions(3, now() - interval '3 months');
INSERT INTO elsa_workflows.workflow_instances
    (id, tenant_id, definition_id, definition_version, workflow_state, status, created_at)
SELECT 'i' || n, 'tenant-' || n % 3, 'd' || n % 7, 1,
    jsonb_build_object('n', n, 'text', repeat(md5(n::text), 8)), 'Running',
    now() - make_interval(days => n % 80)
FROM generate_series(1, 3000) AS n
WHERE NOT EXISTS (SELECT FROM elsa_workflows.workflow_instances);
CREATE TABLE IF NOT EXISTS "Elsa"."Odd Table" ("Id" int PRIMARY KEY, f float8, b bytea, i interval);
INSERT INTO "Elsa"."Odd Table"
SELECT n, n / 3.0, decode(md5(n::text), 'hex'), make_interval(secs => n)
FROM generate_series(1, 100) AS n
ON CONFLICT DO NOTHING;
"""
FILL_RUNTIME = """
INSERT INTO elsa_runtime.worker_registration
    (worker_id, host_name, version, queues, capabilities, capacity, heartbeat_interval_seconds)
SELECT 'w' || n, 'host', '1', '{a}', '{}', 1, 30 FROM generate_series(1, 50) AS n
ON CONFLICT DO NOTHING;
"""
# Of every table but the jobs' ledger, which goes on: its rows, and the sum of their hashes.
CONTENTS = """
SELECT n.nspname || '.' || c.relname, (xpath('/row/c/text()', query_to_xml(format(
    'SELECT count(*) || '' '' || coalesce(sum(hashtextextended(t.*::text, 0)), 0) AS c'
    ' FROM %I.%I t', n.nspname, c.relname), false, true, '')))[1]::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%'
    AND n.nspname NOT IN ('information_schema', 'elsa_jobs')
ORDER BY 1
"""
# Rights, policies, columns, indexes, constraints, functions: what a dump has to bring along.
SHAPE = r"""
SET search_path = '';
SELECT concat_ws(' ', 'r', c.oid::regclass, c.relkind, c.relowner::regrole,
    -- None is the same as the default written out.
    coalesce(c.relacl,
        acldefault((CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END)::"char", c.relowner)),
    c.relrowsecurity, c.relforcerowsecurity)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' AND c.relkind <> 't'
UNION ALL SELECT concat_ws(' ', 'p', schemaname, tablename, policyname, roles, cmd, qual)
FROM pg_policies
UNION ALL SELECT concat_ws(' ', 'f', p.oid::regprocedure, p.proowner::regrole,
    coalesce(p.proacl, acldefault('f', p.proowner)))
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
UNION ALL SELECT concat_ws(' ', 'c', conrelid::regclass, conname, convalidated)
FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
UNION ALL SELECT concat_ws(' ', 'e', evtname, evtenabled) FROM pg_event_trigger
ORDER BY 1
"""


# What pgBackRest says when a backup comes there.
PHASES = {
    "start": "execute non-exclusive backup start",
    "middle": "backup file ",
    "end": "execute non-exclusive backup stop",
}


_BACKUP_STOPPED = """
set -o pipefail
pgbackrest --stanza=elsa --repo=1 --type=full --log-level-console=detail {options} backup 2>&1 |
while IFS= read -r line; do
  printf '%s\\n' "$line"
  case $line in *"{phase}"*)
    [ "$stopped" ] || {{ pkill -STOP -x pgbackrest && stopped=yes && echo STOPPED; }} ;;
  esac
done
"""


class ArchiveStack:
    """The stack, the CLI on it, and its containers."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.stack = deployment.stack

    # -- as a user ---------------------------------------------------------------------------

    def elsapg(self, *words: str, code: int | None = 0) -> str:
        done = elsapg(self.deployment.root, *words, "--stack", self.stack)
        assert code in (done.returncode, None), (
            f"{words}: {done.returncode}, not {code}:\n{done.stdout}"
        )
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """The same, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "elsapg.cli", *words, "--stack", self.stack],
            cwd=self.deployment.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def red(self, *only: str) -> set[str]:
        """The red checks among those of these groups; those that stay so, on a busy machine."""
        found = settled(self.deployment, 1, only)
        assert not found.broken, found.broken
        return {check.name for check in found.failures}

    def problems(self) -> tuple[Trouble, ...]:
        return overview(self.deployment).problems

    def dumps(self) -> list[str]:
        return [d["label"] for d in json.loads(self.elsapg("dump", "list", "--json"))]

    def backup_stopped_at(self, phase: str, *, patient: bool = False) -> subprocess.Popen[str]:
        """A full backup that has come to a phase and stands still until it gets SIGCONT.

        Not `patient`: what it does not get within seconds it fails for, instead of within minutes.
        It is stopped where it runs: from here that would come too late.
        """
        hasty = "" if patient else "--archive-timeout=30 --io-timeout=2 --job-retry=0"
        seen: list[str] = []
        # A standby that is behind is no reason to have no backup, as the product does it; and one
        # so hasty fails on a busy machine.
        for source in ("", "--no-backup-standby", "--no-backup-standby"):
            script = _BACKUP_STOPPED.format(options=f"{hasty} {source}", phase=PHASES[phase])
            process = self.deployment.hosts.converse("runner", "bash", "-c", script)
            assert process.stdout
            for line in process.stdout:
                seen.append(line)
                if line == "STOPPED\n":
                    return process
        raise AssertionError("".join(seen))

    # -- inside ------------------------------------------------------------------------------

    def sql(self, statement: str, database: str = "postgres", node: str = "") -> list[list[str]]:
        return self.deployment.query(node or self.deployment.primary(), statement, database)

    def database_exists(self, name: str) -> bool:
        return bool(self.sql(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"))

    def drop_database(self, name: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def python(self, script: str, *, check: bool = True) -> str:
        """Run Python in the runner, with the runner's own modules."""
        done = self.deployment.hosts.run("runner", "python3", "-c", script, timeout=600)
        assert done.code == 0 or not check, done.output
        return done.output

    def shell(self, unit: str, script: str, user: str = "999:999") -> str:
        """Run a script in a unit, as the user of its processes; root owns /etc/elsapg."""
        return inside(self.deployment, unit, "bash", "-ec", script, user=user)

    def write(self, unit: str, path: str, content: str) -> None:
        """Write a file below /etc/elsapg as `elsapg up` would."""
        entries = [{"path": path, "content": content, "mode": 0o640}]
        with d.daemon() as client:
            container = client.containers.get(self.deployment.hosts.physical(unit))
            assert container.put_archive(t.CONFIG_DIR, d.archive(entries, t.UID))

    @contextlib.contextmanager
    def stopped(self, unit: str) -> Iterator[None]:
        with d.daemon() as client:
            container = client.containers.get(self.deployment.hosts.physical(unit))
            container.stop(timeout=10)
            try:
                yield
            finally:
                container.start()
        self.wait(lambda: self.deployment.hosts.run(unit, "true").code == 0, "it does not start")

    @contextlib.contextmanager
    def locked(self, table: str, database: str = "elsa_workflows") -> Iterator[None]:
        """Nobody reads a table meanwhile, on any node: a dump waits."""
        node = self.deployment.primary()
        process = self.deployment.hosts.converse(
            node, "psql", "-XqAt", "-h", "/run/postgresql", "-U", "postgres", "-d", database
        )
        assert process.stdin and process.stdout
        process.stdin.write(f"BEGIN; LOCK TABLE {table}; SELECT 'held';\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "held"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(30)

    @staticmethod
    def wait(condition: Callable[[], Any], otherwise: str, timeout: float = 180) -> None:
        wait_for(condition, otherwise, timeout)

    # -- the bucket --------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        """Of the bucket, in the S3 unit."""
        return f"/var/lib/s3/{self.deployment.settings.archive.bucket}"

    def plant(self, label: str) -> None:
        """A dump of long ago: the newest one's files under another label, properly signed."""
        self.python(f"""
import io, json
from elsapg.runner import dumps, repository, sealed
from elsapg.runner.s3 import Bucket
where = repository.read(); bucket = Bucket(where)
last = dumps.dumps(bucket, '/daily', where.cipher)[-1]
for name in last.manifest['objects']:
    bucket.put(f'daily/{label}/{{name}}', io.BytesIO(bucket.read(f'daily/{{last.label}}/{{name}}')))
manifest = sealed.sign({{**last.manifest, 'label': '{label}'}}, where.cipher)
bucket.put(f'daily/{label}/manifest.json', io.BytesIO(json.dumps(manifest).encode()))
""")
