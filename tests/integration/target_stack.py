"""A stack on this machine's Docker as its tests see it: the CLI, the settings, what is there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import yaml
from docker.models.containers import Container

from elsapg import process, stackfile
from elsapg.definition.secrets import PASSWORD_ROLES
from elsapg.services import connect, status, workspace
from elsapg.services.deployment import Deployment
from elsapg.targets.docker import daemon as d
from tests.stacks import ROOT


class Target:
    """One stack on this machine's Docker, driven by the CLI as a user drives it."""

    def __init__(self, stack: str, root: Path = ROOT) -> None:
        self.stack = stack
        self.root = root
        self.docker = d.client()
        self.said: list[str] = []
        """All that the CLI has printed without --debug."""

    # -- the CLI ---------------------------------------------------------------------------

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, debug: bool = False
    ) -> subprocess.Popen[str]:
        """Begin `elsapg WORDS --stack STACK`."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PULUMI_", "ELSAPG_"))}
        clean |= {"PYTHONPATH": str(ROOT), "ELSAPG_ROOT": str(self.root), **(env or {})}
        flags = ["--debug"] if debug else []
        return subprocess.Popen(
            [sys.executable, "-m", "elsapg.cli", *flags, *words, "--stack", self.stack],
            cwd=self.root,
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self,
        *words: str,
        code: int = 0,
        env: Mapping[str, str] | None = None,
        debug: bool = False,
        timeout: float = 420,
    ) -> str:
        """Run it to its end and return what it printed; it must end with `code`."""
        child = self.start(*words, env=env, debug=debug)
        try:
            output, _ = child.communicate(timeout=timeout)
        finally:
            child.kill()
        if not debug:
            self.said.append(output)
        assert child.returncode == code, output
        if not debug:
            assert "Traceback" not in output
        return output

    def up(self, **options: Any) -> str:
        return self.run("up", "--yes", **options)

    def unchanged(self) -> None:
        """Another `up` has nothing to do."""
        self.run("up", "--expect-no-changes")

    def forget_protection(self, name: str) -> None:
        """`pulumi state unprotect` of one resource."""
        place = workspace.prepare(self.root, self.stack)
        words = [place.binary, "--non-interactive", "--stack", self.stack]
        listed = process.run(
            [*words, "stack", "--show-urns"], cwd=place.folder, env=place.env
        ).stdout
        [urn] = [w for w in listed.split() if w.startswith("urn:") and w.endswith(f"::{name}")]
        process.run([*words, "state", "unprotect", urn, "--yes"], cwd=place.folder, env=place.env)

    # -- its settings ----------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return stackfile.stack_file(self.root, self.stack)

    def write(self, settings: Mapping[str, Any]) -> None:
        config = {f"elsapg:{key}": value for key, value in settings.items()}
        self.path.write_text(yaml.safe_dump({"config": config}), encoding="utf-8")

    def change(self, group: str, **values: Any) -> None:
        document = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        document["config"].setdefault(f"elsapg:{group}", {}).update(values)
        self.path.write_text(yaml.safe_dump(document), encoding="utf-8")

    @property
    def deployment(self) -> Deployment:
        """Fresh at each call: settings and outputs may have changed."""
        return Deployment(self.root, self.stack)

    # -- what is really there --------------------------------------------------------------

    def container(self, unit: str) -> Container:
        return self.docker.containers.get(d.physical_name(self.stack, unit))

    @property
    def labelled(self) -> dict[str, Any]:
        return {"label": f"{d.STACK_LABEL}={self.stack}"}

    def containers(self) -> dict[str, Container]:
        """Every container with the stack's label, by unit."""
        found = self.docker.containers.list(all=True, filters=self.labelled, ignore_removed=True)
        units = [str(c.labels[d.UNIT_LABEL]) for c in found]
        assert len(set(units)) == len(units), f"twice: {sorted(units)}"
        return dict(zip(units, found, strict=True))

    def ids(self) -> dict[str, str]:
        return {unit: str(c.id) for unit, c in self.containers().items()}

    def process_starts(self) -> dict[str, str]:
        """When process 1 of each container was started: a restart in place changes it."""
        return {u: str(c.attrs["State"]["StartedAt"]) for u, c in self.containers().items()}

    def volumes(self) -> set[str]:
        return {v.name for v in self.docker.volumes.list(filters=self.labelled)}

    def networks(self) -> set[str]:
        return {str(n.name) for n in self.docker.networks.list(filters=self.labelled)}

    def postmasters(self) -> dict[str, str]:
        """When each node's postmaster started."""
        deployment = self.deployment
        sql = "SELECT extract(epoch FROM pg_postmaster_start_time())"
        return {node: deployment.query(node, sql)[0][0] for node in deployment.nodes}

    def setting(self, name: str) -> dict[str, str]:
        deployment = self.deployment
        return {n: deployment.query(n, f"SHOW {name}")[0][0] for n in deployment.nodes}

    def problems(self) -> list[str]:
        return status.gather(self.deployment).problems

    def wait_healthy(self, seconds: float = 240) -> None:
        """Until `status` has nothing to complain about."""

        def healthy() -> bool:
            problems = self.problems()
            assert not problems, problems
            return True

        eventually(healthy, seconds, 1)

    def uri(self, role: str = "elsa_app", via: connect.Via = "pool") -> str:
        return connect.libpq(connect.connection(self.deployment, role, via=via))

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[psycopg.Connection[Any]]:
        """A client of the pool, verified, one statement per transaction."""
        with psycopg.connect(self.uri(**options), autocommit=True, connect_timeout=10) as db:
            yield db

    def secrets(self) -> list[str]:
        """Every secret that the stack's configuration volumes and outputs hold.

        Of a private key its lines, for a log would print one with other line breaks.
        """
        outputs = self.deployment.outputs
        found = list(outputs["passwords"].values())
        found += outputs["encryption_keys"]["keys"].values()
        pgbackrest = self.deployment.hosts.run(
            "runner", "cat", "/etc/elsapg/pgbackrest.d/secrets.conf"
        )
        for line in pgbackrest.output.splitlines():
            key, _, value = line.partition("=")
            if key in ("repo1-s3-key", "repo1-s3-key-secret", "repo1-cipher-pass"):
                found.append(value)
        for unit, file in (("pg-1", "server"), ("pgbouncer-1", "client"), ("runner", "backup")):
            key_file = f"/etc/elsapg/tls/{file}.key"
            pem = self.deployment.hosts.run(unit, "cat", key_file).output
            body = [line for line in pem.splitlines() if line and "-----" not in line]
            assert len(body) == 3, pem[:40]
            # The first line of every P-256 key begins alike; its second is random.
            found.append(body[1])
        assert len(found) == len(PASSWORD_ROLES) + 1 + 3 + 3
        assert all(len(secret) >= 20 for secret in found)
        return found


def eventually(what: Callable[[], Any], seconds: float = 180, pause: float = 0.3) -> Any:
    """What `what` gives once it is true; the last failure if it never is."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := what():
                return value
            failure: Exception | None = None
        except Exception as error:
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s") from failure
        time.sleep(pause)
