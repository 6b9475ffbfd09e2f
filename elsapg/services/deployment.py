"""A running stack, as every day-2 command sees it: settings, units to run commands in, outputs."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.errors import LockedError, NotDeployedError, UnhealthyError, UsageError
from elsapg.services import workspace
from elsapg.services.commands import for_stack
from elsapg.services.places import Places
from elsapg.settings import Settings
from elsapg.targets.docker.hosts import DockerHosts
from elsapg.targets.hosts import Hosts
from elsapg.targets.kubernetes.hosts import KubernetesHosts

PATRONICTL = ("patronictl", "-c", f"{t.CONFIG_DIR}/patroni.yml")
_CURL = ("curl", "-sS", "--max-time", "5", "--cacert", f"{t.CONFIG_DIR}/tls/ca.crt")


class Deployment:
    """One stack. Nothing is looked up before it is asked for.

    Raises UsageError for a stack whose database is not the toolkit's to run.
    """

    def __init__(self, root: Path, stack: str) -> None:
        self.root = root
        self.stack = stackfile.check_stack_name(stack)
        self.settings: Settings = stackfile.read(root, stack)
        if not self.settings.database.provisioned:
            raise UsageError(
                f"stack {stack!r} uses {self.settings.database.provider} (elsapg:database): the "
                "toolkit runs no database for it, so there is nothing that this command could look "
                f"at or change; `elsapg appsettings --stack {stack}` prints Elsa's settings"
            )
        self.hosts: Hosts = (
            KubernetesHosts(stack, self.settings)
            if self.settings.target == "kubernetes"
            else DockerHosts(stack)
        )

    @property
    def pods(self) -> KubernetesHosts | None:
        """The hosts of a stack on kubernetes; None of any other."""
        return self.hosts if isinstance(self.hosts, KubernetesHosts) else None

    @functools.cached_property
    def outputs(self) -> Mapping[str, Any]:
        """The program's outputs, secrets decrypted: never print them whole.

        What Pulumi does not run (GitOps), or runs elsewhere, is asked of the cluster itself.
        """
        if self.pods is not None and not Places(self.root).workspace(self.stack).exists():
            from elsapg.services.secrets import outputs_from_cluster  # noqa: PLC0415 - a second

            return outputs_from_cluster(self.stack, self.settings)
        found = workspace.outputs(self.stack, self.root)
        if self.pods is not None and not {"passwords", "ca"} <= found.keys():
            from elsapg.services.secrets import outputs_from_cluster  # noqa: PLC0415 - a second

            # Somebody else keeps the secrets (kubernetes.secrets), or signs (cert_manager).
            return outputs_from_cluster(self.stack, self.settings)
        if "passwords" not in found:
            raise NotDeployedError(
                f"stack {self.stack!r} has no outputs: run `elsapg up --stack {self.stack}` first"
            )
        return found

    @property
    def nodes(self) -> tuple[str, ...]:
        return t.node_names(self.settings)

    @property
    def poolers(self) -> tuple[str, ...]:
        return t.pooler_names(self.settings)

    def pools(self) -> tuple[str, ...]:
        """All that have clients now: the poolers, and on kubernetes those that are leaving."""
        return (*self.poolers, *(self.pods.leaving() if self.pods is not None else ()))

    def any_node(self) -> str:
        """A PostgreSQL node that runs. Raises NotDeployedError if none does."""
        return self._running()[0]

    def running_nodes(self) -> list[str]:
        """The PostgreSQL nodes that run."""
        states = self.hosts.states()
        return [n for n in self.nodes if n in states and states[n].state == "running"]

    def _running(self) -> list[str]:
        if found := self.running_nodes():
            return found
        raise NotDeployedError(
            f"no PostgreSQL node of stack {self.stack!r} runs: " + self.hosts.remedy(self.nodes[0])
        )

    def patroni(self, path: str, node: str | None = None) -> Any:
        """The JSON that a member's Patroni answers to GET `path`; of any, if no `node` is named."""
        failures = []
        # One that has just started, or hangs, must not hide what the others know.
        for where in [node] if node else self._running():
            done = self.hosts.run(where, *_CURL, f"https://{where}:{t.PATRONI_PORT}{path}")
            try:
                return done.json()
            except ValueError:
                told = done.output.strip()[:200]
                failures.append(f"Patroni on {where} does not answer GET {path}: {told}")
        raise UnhealthyError("; ".join(failures))

    def patronictl(self, node: str, command: str, *options: str) -> str:
        """What a person types to have Patroni do something with a node."""
        return self.hosts.shell(node, *PATRONICTL, command, t.SCOPE, node, *options)

    def members(self) -> list[dict[str, Any]]:
        """Patroni's members: name, role, state, timeline, lag (bytes), pending_restart."""
        return list(self.patroni("/cluster").get("members", []))

    def primary(self) -> str:
        """The node that leads now. Raises UnhealthyError when none does."""
        for member in self.members():
            if member["role"] == "leader" and member["state"] == "running":
                return str(member["name"])
        raise UnhealthyError(
            f"stack {self.stack!r} has no primary now: "
            f"`elsapg status --stack {self.stack} --watch` shows when it has one again"
        )

    def query(self, node: str, sql: str, database: str = "postgres") -> list[list[str]]:
        """Rows of a query run on a node as its superuser, over the node's own Unix socket."""
        done = self.hosts.run(
            node, "psql", "-XqAt", "-F", "\x1f", "-v", "ON_ERROR_STOP=1",
            "-h", "/run/postgresql", "-U", "postgres", "-d", database, "-c", sql,
        )  # fmt: skip
        if done.code:
            raise UnhealthyError(f"{node}: {done.output.strip()[:300]}")
        return [line.split("\x1f") for line in done.output.splitlines() if line]

    def pooler_console(self, pooler: str, command: str) -> list[dict[str, str]]:
        """Rows of PgBouncer's admin console, by its Unix socket."""
        done = self.hosts.run(
            pooler, "psql", "-XqA", "-F", "\x1f", "-P", "footer=off",
            "-h", "/run/pgbouncer", "-p", str(t.POOL_PORT), "-U", "pgbouncer", "-d", "pgbouncer",
            "-c", command,
        )  # fmt: skip
        if done.code:
            raise UnhealthyError(f"{pooler}: {done.output.strip()[:300]}")
        lines = done.output.splitlines()
        if not lines:
            return []
        columns = lines[0].split("\x1f")
        return [dict(zip(columns, line.split("\x1f"), strict=False)) for line in lines[1:]]

    def runner(self, *command: str, timeout: int = t.LONG_S) -> str:
        """Run one of the runner's commands (`backup`, …) and return its output."""
        done = self.hosts.task(*command, timeout=timeout)
        # The runner does not know the stack's name, and may name commands.
        told = for_stack(done.output.strip(), self.stack)
        if done.code == LockedError.exit_code:
            raise LockedError(told[:600])
        if done.code:
            raise UnhealthyError(told[:1200] or f"runner {command[0]} failed")
        return done.output

    def backup_info(self) -> dict[str, Any]:
        """pgBackRest's account of the repository, for `elsapg.services.backups.parse`."""
        if self.pods is None:
            found: dict[str, Any] = json.loads(self.runner("backup-info", timeout=60))
            return found
        # A node has the repository, too: no pod has to be started to look.
        node = self.any_node()
        done = self.hosts.run(
            node, "pgbackrest", f"--stanza={t.STANZA}", "--output=json", "--log-level-console=off",
            "info",
        )  # fmt: skip
        try:
            stanzas = json.loads(done.output)
        except ValueError:
            raise UnhealthyError(
                f"pgBackRest on {node}: {' '.join(done.output.split())[:300]}"
            ) from None
        return dict(stanzas[0]) if stanzas else {}
