"""up, preview, refresh and destroy of a stack, through the Pulumi Automation API.

Every operation holds the stack's lock, clears what a killed run left behind, shows the engine's
progress, and ends in a summary or in an ElsapgError that says what to do.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pulumi import automation
from pulumi.automation._stack import StackInitMode
from pulumi.automation.errors import CommandError, ConcurrentUpdateError, StackNotFoundError
from rich.console import Console

from elsapg import process, stackfile
from elsapg.definition import topology as t
from elsapg.errors import (
    DeploymentError,
    ElsapgError,
    LockedError,
    UnexpectedChangesError,
    UsageError,
)
from elsapg.services import lock, workspace
from elsapg.services.deployment import Deployment
from elsapg.services.engine import EngineCommand
from elsapg.services.places import Places
from elsapg.services.progress import Record, display
from elsapg.settings import Settings


class StoppedError(ElsapgError):
    """Ctrl-C or SIGTERM."""

    exit_code = 130


Program = Callable[[str, Settings, Path], None]
_VERBS = {"up": "deploy", "preview": "preview", "refresh": "refresh", "destroy": "remove"}


def our_program(stack: str, settings: Settings, root: Path) -> None:
    """The toolkit's own program; imported late, for it needs everything."""
    from elsapg.program import program  # noqa: PLC0415

    program(stack, settings, root)


@dataclass
class Lifecycle:
    """The operations on one stack. `program` registers the resources."""

    root: Path
    stack: str
    console: Console
    program: Program = our_program
    debug: bool = False
    ask: Callable[[str], str] | None = None
    """Asks the user and returns the answer; None when there is no terminal."""

    def preview(self, *, expect_no_changes: bool = False, refresh: bool = False) -> Record:
        """Show what `up` would do. Raises UnexpectedChangesError if that was not to be."""
        settings = stackfile.read(self.root, self.stack)
        if not settings.database.provisioned:
            return self._leave_alone("preview", settings)
        with self._session("preview", settings) as session:
            stack = session.open(create=True)
            return self._preview(session, stack, expect_no_changes, refresh)

    def up(
        self, *, yes: bool = False, expect_no_changes: bool = False, refresh: bool = False
    ) -> Record:
        """Make the stack what its settings say.

        With `expect_no_changes` changes are reported (UnexpectedChangesError), not made.
        """
        settings = stackfile.read(self.root, self.stack)
        if not settings.database.provisioned:
            return self._leave_alone("up", settings)
        self._needs_answer("up", yes=yes or expect_no_changes)
        with self._session("up", settings) as session:
            stack = session.open(create=True)
            if expect_no_changes or not yes:
                planned = self._preview(session, stack, expect_no_changes, refresh)
                if not planned.changes and not refresh:
                    return planned
                self._confirm(f"up: make these changes to stack {self.stack!r}?")
            record = Record(debug=self.debug)
            # What a task did (SQL, configuration, the stanza) may have been undone by hand, which
            # no look at the task tells: they are safe to run again, so they do.
            tasks = session.tasks(stack) if refresh else None
            session.run(record, stack.up, refresh=refresh or None, replace=tasks)
            if record.pending_operations or session.was_killed:
                session.forget_pending_operations(stack)
            pods = Deployment(self.root, self.stack).pods if refresh else None
            if pods is not None:
                # There they are a Job, which runs once.
                pods.rerun(*(task.name for task in t.tasks(settings)))
            return record

    def unprotect(self) -> None:
        """Let everything in the state be replaced; the next `up` protects it again."""
        with self._session("up", None) as session:
            if session.known():
                session.pulumi("state", "unprotect", "--all", "--yes")

    def check_rerun(self) -> None:
        """Raise NotDeployedError where `rerun` would find nothing to run."""
        pods = Deployment(self.root, self.stack).pods
        if pods is not None:
            pods.bootstrap_job()

    def rerun(self, *tasks: str) -> None:
        """Run these tasks again, and touch nothing else."""
        pods = Deployment(self.root, self.stack).pods
        if pods is not None:
            # Whoever applied the stack: the Job is in the cluster, and Pulumi may know nothing.
            with lock.hold(Places(self.root).lock(self.stack), self.stack, "rerun"):
                pods.rerun(*tasks)
            return
        settings = stackfile.read(self.root, self.stack)
        with self._session("rerun", settings) as session:
            stack = session.open()
            wanted = [u for u in session.tasks(stack) if u.rpartition("::")[2] in tasks]
            session.run(Record(debug=self.debug), stack.up, target=wanted, replace=wanted)

    def refresh(self, *, yes: bool = False, expect_no_changes: bool = False) -> Record:
        """Compare the state with what is really there, and take over what differs."""
        settings = stackfile.read(self.root, self.stack)
        if not settings.database.provisioned:
            return self._leave_alone("refresh", settings)
        self._needs_answer("refresh", yes=yes or expect_no_changes)
        with self._session("refresh", settings) as session:
            if not session.known():
                self.console.print(f"nothing is deployed in stack {self.stack!r}")
                return Record()
            stack = session.open()
            if expect_no_changes or not yes:
                record = Record(planning=True, debug=self.debug)
                session.run(record, stack.preview_refresh, clear_pending_creates=True)
                if not record.changes:
                    return record
                if expect_no_changes:
                    raise _unexpected(self.stack, record)
                self._confirm(f"refresh: take these over into the state of {self.stack!r}?")
            record = Record(debug=self.debug)
            session.run(record, stack.refresh, clear_pending_creates=True)
            return record

    def destroy(
        self, *, yes: bool = False, purge: bool = False, confirm: str | None = None
    ) -> None:
        """Remove what the stack runs. Protected resources (its data) stay unless `purge`d.

        Purging wants the stack's name: `confirm`, or typed at the prompt.
        """
        stackfile.check_stack_name(self.stack)
        if purge:
            self._confirm_purge(confirm)
        else:
            self._needs_answer("destroy", yes=yes)
        if not Places(self.root).workspace(self.stack).exists():
            # A typing error in the name must not read like success.
            settings = stackfile.read(self.root, self.stack)
            if not settings.database.provisioned:
                self._leave_alone("destroy", settings)
                return
        with self._session("destroy", None) as session:
            if not session.known():
                self.console.print(f"nothing is deployed in stack {self.stack!r}")
                return
            stack = session.open()
            resources = session.resources(stack)
            kept = [r for r in resources if r.get("protect")]
            if not purge and any(_precious(r) and not r.get("protect") for r in resources):
                # `protect: false`, or a purge that was stopped half-way: data would go unasked.
                self._confirm_purge(confirm)
            if not purge and len(kept) == len(resources):
                self.console.print(f"nothing runs in stack {self.stack!r}")
                self._say_kept(kept)
                return
            if not purge and not yes:
                self._confirm(
                    f"destroy: remove {len(resources) - len(kept)} resources of {self.stack!r}, "
                    f"keeping {len(kept)} that hold data?"
                )
            if purge and kept:
                session.pulumi("state", "unprotect", "--all", "--yes")
            record = Record(debug=self.debug)
            if resources:
                session.run(record, stack.destroy, exclude_protected=not purge or None)
            if purge:
                stack.workspace.remove_stack(self.stack)
                session.place.forget()
                self.console.print(f"stack {self.stack!r} and all its data are gone", markup=False)
            else:
                self._say_kept(kept)

    def _leave_alone(self, operation: str, settings: Settings) -> Record:
        """Nothing, for a stack whose database is not the toolkit's to run.

        Raises UsageError while the stack still has a PostgreSQL of the toolkit's: a changed line in
        a file must not take that away.
        """
        provider = settings.database.provider
        # Without a workspace nothing was ever made from here, and no engine is needed to say so.
        if Places(self.root).workspace(self.stack).exists():
            with self._session(operation, settings) as session:
                held = session.resources(session.open()) if session.known() else []
            if held:
                data = sum(_precious(resource) for resource in held)
                raise UsageError(
                    f"stack {self.stack!r} is set to {provider}, but {len(held)} resources of its "
                    f"PostgreSQL are deployed, {data} of which hold data or secrets; nothing was "
                    "changed. Set elsapg:database back to provider postgresql; or give "
                    f"{provider} a stack of its own; or let that PostgreSQL go with all its data: "
                    f"`elsapg destroy --stack {self.stack} --purge`"
                )
        self._say(
            f"stack {self.stack!r} uses {provider}: the toolkit runs nothing for it, so there is "
            f"nothing to {_VERBS[operation]}; `elsapg appsettings --stack {self.stack}` prints "
            "Elsa's settings"
        )
        return Record()

    # -- asking ----------------------------------------------------------------------------

    def _needs_answer(self, operation: str, *, yes: bool) -> None:
        if not yes and self.ask is None:
            raise UsageError(
                f"{operation} asks before it changes anything, and there is no terminal to ask on; "
                "add --yes"
            )

    def _confirm(self, question: str) -> None:
        if self.ask is not None and self.ask(f"{question} [y/N] ").strip().lower() not in (
            "y",
            "yes",
        ):
            raise UsageError("not confirmed; nothing was changed")

    def _confirm_purge(self, confirm: str | None) -> None:
        if confirm is None:
            if self.ask is None:
                raise UsageError(
                    f"destroy --purge deletes the data of {self.stack!r}; "
                    f"add --confirm {self.stack}"
                )
            confirm = self.ask(
                f"this deletes stack {self.stack!r} with all its data and secrets; "
                "type its name to go on: "
            ).strip()
        if confirm != self.stack:
            raise UsageError(
                f"{confirm!r} is not the stack's name {self.stack!r}; nothing was changed"
            )

    def _say_kept(self, kept: list[dict[str, Any]]) -> None:
        if not kept:
            return
        names = ", ".join(sorted(str(r["urn"]).rpartition("::")[2] for r in kept))
        self.console.print(
            f"kept, for they hold data or secrets: {names}\n"
            f"to remove them too: elsapg destroy --stack {self.stack} --purge",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    # -- running ---------------------------------------------------------------------------

    def _preview(
        self, session: _Session, stack: automation.Stack, expect_no_changes: bool, refresh: bool
    ) -> Record:
        record = Record(planning=True, debug=self.debug)
        session.run(record, stack.preview, refresh=refresh or None)
        if expect_no_changes and record.changes:
            raise _unexpected(self.stack, record)
        return record

    @contextlib.contextmanager
    def _session(self, operation: str, settings: Settings | None) -> Iterator[_Session]:
        with lock.hold(Places(self.root).lock(self.stack), self.stack, operation):
            place = workspace.prepare(self.root, self.stack)
            session = _Session(self, place, operation, settings)
            if place.state is not None:
                session.was_killed = lock.clear_stale(
                    place.state, workspace.PROJECT, self.stack, self._say
                )
            try:
                yield session
            except KeyboardInterrupt:
                raise StoppedError(
                    f"{operation} of stack {self.stack!r} was stopped; "
                    "the same command run again continues"
                ) from None
            except ConcurrentUpdateError as error:
                raise LockedError(
                    f"stack {self.stack!r} is being worked on by another pulumi: "
                    f"{_last_line(str(error))}"
                ) from error
            except CommandError as error:
                raise session.failure() from error

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Stack(automation.Stack):
    """A stack that does not read all its outputs and history after every operation.

    Those would be three more runs of the engine, and secrets read that nobody asked for.
    """

    def outputs(self) -> automation.OutputMap:
        return {}

    def info(self, show_secrets: bool = False) -> automation.UpdateSummary:  # noqa: ARG002
        now = datetime.now(UTC)
        return automation.UpdateSummary(
            kind="", start_time=now, message="", environment={}, config={}, result=""
        )


class _Session:
    """One operation while the stack's lock is held."""

    def __init__(
        self,
        owner: Lifecycle,
        place: workspace.Workspace,
        operation: str,
        settings: Settings | None,
    ) -> None:
        self.place = place
        self.was_killed = False
        self._owner = owner
        self._operation = operation
        self._settings = settings
        self._engine = EngineCommand(place.binary, place.version)
        self._record = Record()
        self._raised: list[Exception] = []

    def open(self, *, create: bool = False) -> automation.Stack:
        """The stack; made if it does not exist and `create` is set."""
        space = automation.LocalWorkspace(
            work_dir=str(self.place.folder),
            program=self._program,
            env_vars=self.place.env,
            pulumi_command=self._engine,
        )
        if create and not (self.place.state and self.place.exists_here):
            return _Stack(self.place.stack, space, StackInitMode.CREATE_OR_SELECT)
        return _Stack(self.place.stack, space, StackInitMode.SELECT)

    def known(self) -> bool:
        """Whether the backend knows the stack."""
        if not self.place.exists_here:
            return False
        try:
            self.open()
        except StackNotFoundError:
            return False
        return True

    def run(self, record: Record, operation: Callable[..., Any], **options: Any) -> None:
        """Run one of the stack's methods under the progress display, and sum it up."""
        self._record = record
        title = f"{self._operation} {self.place.stack}"
        with (
            warnings.catch_warnings(),
            display(record, self._owner.console, title) as shown,
        ):
            # The SDK warns about events newer than itself, printing them whole.
            warnings.filterwarnings("ignore", module=r"pulumi\.automation")
            self._engine.on_interrupt = lambda count: shown.say(
                "stopping after the operations that have begun; Ctrl-C again kills them"
                if count == 1
                else "killed"
            )
            troubles: list[BaseException] = []
            output = _kept_from(shown.say, troubles) if self._owner.debug else None
            operation(
                on_event=_kept_from(shown.on_event, troubles),
                on_output=output,
                on_error=output,
                suppress_outputs=True,
                suppress_progress=True,
                color="never",
                **options,
            )
        # Rich ends the program when nobody reads its output; there was something to finish first.
        if real := [trouble for trouble in troubles if not isinstance(trouble, SystemExit)]:
            raise real[0]
        for name, text in record.warnings:
            self._owner._say(f"warning: {name + ': ' if name else ''}{text}")
        for text in record.notes:
            self._owner._say(text)
        self._owner._say(f"{title}: {record.summary()}")

    def _program(self) -> None:
        assert self._settings is not None
        try:
            self._owner.program(self.place.stack, self._settings, self._owner.root)
        except Exception as error:
            self._raised.append(error)
            raise

    def pulumi(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a subcommand that the Automation API does not have; returns what it printed."""
        done = process.run(
            [self.place.binary, *arguments, "--stack", self.place.stack, "--non-interactive"],
            cwd=self.place.folder,
            env=self.place.env,
            stdin=stdin,
            check=False,
        )
        if done.code != 0:
            raise workspace.explain(self.place.stack, done.stderr, arguments[0])
        return done.stdout

    def tasks(self, stack: automation.Stack) -> list[str]:
        """The URNs of the tasks."""
        return [r["urn"] for r in self.resources(stack) if str(r["type"]).endswith(":Task")]

    def resources(self, stack: automation.Stack) -> list[dict[str, Any]]:
        """The state's resources that providers made."""
        found = (stack.export_stack().deployment or {}).get("resources") or []
        return [r for r in found if r.get("custom") and "pulumi:providers:" not in r["type"]]

    def forget_pending_operations(self, stack: automation.Stack) -> None:
        """Drop the record of operations that a killed run did not see the end of.

        The engine keeps pending creates for ever, and warns each time. All our providers adopt
        what they find, so the `up` that has just succeeded has taken them over.
        """
        exported = stack.export_stack()
        deployment = dict(exported.deployment or {})
        if deployment.pop("pending_operations", None):
            stack.import_stack(automation.Deployment(exported.version, deployment))

    def failure(self) -> Exception:
        """What to raise for an engine that ended with an error."""
        if self._raised:
            # Our own program failed: an ElsapgError speaks for itself, all else is a defect.
            return self._raised[0]
        place, record = self.place, self._record
        last = self._engine.last
        stderr = last.stderr if last else ""
        if not record.errors:
            return workspace.explain(place.stack, stderr, self._operation)
        failed = [(name, text) for name, text in record.errors if name]
        lines = [
            f"  {name + ': ' if name else ''}{_short(t)}" for name, t in failed or record.errors
        ]
        if any("it is protected" in text for _, text in record.errors):
            lines.append(
                "  what holds data is never removed by a change of settings: to let it go, set "
                "elsapg:protect to false, run `elsapg up` with everything else as it was, make "
                "the change, and set it back to true"
            )
        return DeploymentError(
            f"{self._operation} of stack {place.stack!r} failed ({record.summary()}):\n"
            + "\n".join(lines)
            + "\nrun the same command again to continue; --debug shows everything"
        )


def _kept_from(show: Callable[[Any], None], troubles: list[BaseException]) -> Callable[[Any], None]:
    """`show`, for the threads that read from the engine: what it raises goes into `troubles`.

    There it would end the thread, and an engine whose events nobody takes waits for ever.
    """

    def call(told: Any) -> None:
        try:
            show(told)
        except (Exception, SystemExit) as error:
            troubles.append(error)

    return call


def _precious(resource: dict[str, Any]) -> bool:
    """Whether a resource of the state is data, a secret or the CA: nothing makes it again."""
    kind = str(resource["type"])
    data = (resource.get("inputs") or {}).get("data") is True
    return data or kind.endswith(_PRECIOUS)


_PRECIOUS = (":Stash", ":CertificateAuthority", ":PersistentVolumeClaim", ":Namespace")


def _unexpected(stack: str, record: Record) -> UnexpectedChangesError:
    named = [f"{step.operation} {step.type} {step.name}" for step in record.changes]
    more = f" and {len(named) - 10} more" if len(named) > 10 else ""
    return UnexpectedChangesError(
        f"no changes of stack {stack!r} were expected, but there are {len(named)}: "
        f"{', '.join(named[:10])}{more}; nothing was changed"
    )


def _short(text: str) -> str:
    """The first two lines that say something, of a provider's message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = " ".join(lines[:2])
    return joined if len(joined) <= 400 else joined[:397] + "..."


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def terminal_ask() -> Callable[[str], str] | None:
    """The `input` function when both ends are a terminal, else None."""
    return input if sys.stdin.isatty() and sys.stdout.isatty() else None
