"""Turns the engine's events into something to look at, and into an account of what happened.

`Record` understands the events; `Plain` prints a line per finished step, `Live` keeps a table
on a terminal. Neither prints property values: those may be secret.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from pulumi.automation.events import EngineEvent, StepEventMetadata
from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from elsapg import process

# The engine's operations, as (while it runs, when it has ended, what the summary counts).
OPERATIONS = {
    "create": ("creating", "created", "created"),
    "update": ("updating", "updated", "updated"),
    "delete": ("deleting", "deleted", "deleted"),
    "replace": ("replacing", "replaced", "replaced"),
    "create-replacement": ("replacing", "replaced", "replaced"),
    "delete-replaced": ("deleting old", "old one deleted", None),
    "discard-replaced": ("discarding old", "old one discarded", None),
    "remove-pending-replace": ("cleaning up", "cleaned up", None),
    "refresh": ("looking at", "looked at", None),
    "read": ("reading", "read", None),
    "import": ("importing", "imported", "created"),
    "same": ("checking", "unchanged", "unchanged"),
}
_COLOUR_MARKUP = re.compile(r"<\{%[^%]*%\}>")
# Our launcher is on PATH on purpose.
_EXPECTED = "using pulumi-resource-pulumi-python from $PATH"
_NOISE = re.compile(r"^(error: |Exception calling application: |rpc error: code = \w+ desc = )+")


@dataclass
class Step:
    """One operation on one resource."""

    urn: str
    type: str
    name: str
    operation: str
    started: float
    ended: float | None = None
    failed: bool = False

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started


@dataclass
class Record:
    """What the events of one operation say happened."""

    planning: bool = False
    debug: bool = False
    steps: dict[tuple[str, str], Step] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    pending_operations: bool = False

    def take(self, event: EngineEvent) -> Step | None:
        """Account for `event`; returns the step that it began or ended, if any."""
        if event.resource_pre_event:
            return self._begin(event.resource_pre_event.metadata)
        if event.res_outputs_event:
            return self._end(event.res_outputs_event.metadata, failed=False)
        if event.res_op_failed_event:
            return self._end(event.res_op_failed_event.metadata, failed=True)
        if event.diagnostic_event:
            diagnostic = event.diagnostic_event
            if not diagnostic.ephemeral:
                self._diagnose(diagnostic.severity, diagnostic.urn or "", diagnostic.message)
        return None

    def _begin(self, metadata: StepEventMetadata) -> Step | None:
        if not shown(metadata):
            return None
        name = metadata.urn.rpartition("::")[2]
        step = Step(
            metadata.urn, short_type(metadata.type), name, str(metadata.op.value), time.monotonic()
        )
        self.steps[metadata.urn, step.operation] = step
        return step

    def _end(self, metadata: StepEventMetadata, *, failed: bool) -> Step | None:
        # A refresh ends as the operation that it found to be needed (same, update, delete).
        operation = str(metadata.op.value)
        key = (metadata.urn, operation)
        if key not in self.steps and (metadata.urn, "refresh") in self.steps:
            step = self.steps.pop((metadata.urn, "refresh"))
            step.operation = operation
            self.steps[key] = step
        found = self.steps.get(key) or self._begin(metadata)
        if found is None:
            return None
        found.ended = time.monotonic()
        found.failed = failed
        return found

    def _diagnose(self, severity: str, urn: str, message: str) -> None:
        text = clean(message)
        if not text or _EXPECTED in text:
            return
        if "pending operations" in text:
            # The killed run's; `lifecycle` clears them, so there is nothing to tell.
            self.pending_operations = True
            if not self.debug:
                return
        entry = (urn.rpartition("::")[2] if "pulumi:pulumi:Stack" not in urn else "", text)
        if severity == "error":
            _add(self.errors, entry)
        elif severity == "warning":
            _add(self.warnings, entry)
        elif severity == "info":
            _add(self.notes, text)
        # The SDK's debug messages hold resources as they are, secrets too: never shown.

    @property
    def changes(self) -> list[Step]:
        """The steps that change, or would change, something."""
        return [
            s
            for s in self.steps.values()
            if OPERATIONS.get(s.operation, ("", "", s.operation))[2] not in (None, "unchanged")
        ]

    @property
    def unfinished(self) -> list[Step]:
        return [step for step in self.steps.values() if step.ended is None]

    @property
    def counts(self) -> dict[str, int]:
        """Finished (when planning: planned) steps by what was done, in a fixed order."""
        # A replacement comes as several steps of one resource: count the resource.
        kinds: dict[str, str] = {}
        order = ["created", "replaced", "updated", "deleted", "unchanged", "failed"]
        for step in self.steps.values():
            kind = OPERATIONS.get(step.operation, ("", "", step.operation))[2]
            if step.failed:
                kind = "failed"
            elif step.ended is None and not self.planning:
                continue
            if kind is None:
                continue
            before = kinds.get(step.urn)
            if before is None or before not in ("failed", "replaced"):
                kinds[step.urn] = kind
        counted = Counter(kinds.values())
        return {kind: counted[kind] for kind in order if counted[kind]}

    def summary(self) -> str:
        """Such as '3 created, 12 unchanged in 4.1 s'."""
        parts = [
            f"{number} {'to be ' if self.planning and kind != 'unchanged' else ''}{kind}"
            for kind, number in self.counts.items()
        ]
        seconds = time.monotonic() - self.started
        return f"{', '.join(parts) or 'nothing to do'} in {seconds:.1f} s"


def _add(entries: list[Any], entry: object) -> None:
    if entry not in entries:
        entries.append(entry)


def shown(metadata: StepEventMetadata) -> bool:
    """Whether a resource is one that a person would count: made by a provider, not by Pulumi."""
    state = metadata.new or metadata.old
    return bool(state and state.custom) and not metadata.type.startswith("pulumi:providers:")


def short_type(token: str) -> str:
    return token.rpartition(":")[2] or token


def clean(message: str) -> str:
    """A diagnostic as one readable text: no colours, control characters or RPC prefixes."""
    text = process.printable(_COLOUR_MARKUP.sub("", message)).strip()
    return _NOISE.sub("", text).strip()


def words(step: Step, *, planning: bool) -> str:
    running, done, _ = OPERATIONS.get(step.operation, (step.operation, step.operation, None))
    if step.failed:
        return f"{running} FAILED"
    if planning:
        return step.operation if step.operation != "same" else "unchanged"
    return done if step.ended is not None else running


class Display(Protocol):
    """Shows a record while it grows. A context manager: what it holds is given back at the end."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *exc: object) -> None: ...
    def on_event(self, event: EngineEvent) -> None: ...
    def say(self, text: str) -> None: ...


class Plain:
    """One line per step that changed something, and one now and then while nothing ends."""

    QUIET_S = 15.0

    def __init__(self, record: Record, console: Console) -> None:
        self._record = record
        self._console = console
        self._stop = threading.Event()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Plain:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def on_event(self, event: EngineEvent) -> None:
        step = self._record.take(event)
        if step is None or step.operation == "same":
            return
        if step.ended is None and not self._record.planning:
            return
        if self._record.planning and step.ended is not None:
            return
        seconds = "" if self._record.planning else f"  {step.seconds:.1f} s"
        what = words(step, planning=self._record.planning)
        self.say(f"  {what:<12} {step.type} {step.name}{seconds}")

    def say(self, text: str) -> None:
        self._last = time.monotonic()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            running = [s for s in self._record.unfinished if s.operation != "same"]
            if running and time.monotonic() - self._last >= self.QUIET_S:
                names = ", ".join(f"{s.name} ({s.seconds:.0f} s)" for s in running[:4])
                self.say(f"  ... still at {names}")


class Live:
    """A table on a terminal: what has changed, what is being worked on, and for how long."""

    def __init__(self, record: Record, console: Console, title: str) -> None:
        self._record = record
        self._console = console
        self._spinner = Spinner("dots", text=title)
        self._title = title
        self._live = RichLive(
            get_renderable=self._render, console=console, refresh_per_second=8, transient=False
        )

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def on_event(self, event: EngineEvent) -> None:
        self._record.take(event)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def _render(self) -> RenderableType:
        # The events' thread adds steps meanwhile; a copy of the values is taken in one go.
        steps = list(self._record.steps.values())
        rows = [s for s in steps if s.operation not in ("same", "refresh") or s.ended is None]
        room = max(5, self._console.size.height - 4)
        table = Table.grid(padding=(0, 2))
        hidden = len(rows) - room
        if hidden > 0:
            finished = [s for s in rows if s.ended is not None and not s.failed][:hidden]
            rows = [s for s in rows if s not in finished][-room:]
            table.add_row("", Text(f"{len(finished)} more done", style="dim"))
        for step in rows:
            style = "red" if step.failed else "green" if step.ended is not None else "yellow"
            table.add_row(
                Text(words(step, planning=self._record.planning), style=style),
                Text(step.type),
                Text(step.name),
                Text("" if self._record.planning else f"{step.seconds:.1f} s", style="dim"),
            )
        seconds = time.monotonic() - self._record.started
        checked = sum(s.operation in ("same", "refresh") and s.ended is not None for s in steps)
        self._spinner.update(text=Text(f"{self._title}  {seconds:.0f} s  {checked} unchanged"))
        return Group(table, self._spinner) if rows else Group(self._spinner)


def display(record: Record, console: Console, title: str) -> Display:
    """The display that fits the console."""
    return Live(record, console, title) if console.is_terminal else Plain(record, console)
