"""The pytest plugin by which `elsapg verify` learns what each check found.

Loaded by name into the child process; writes one JSON line per check to ELSAPG_VERIFY_RESULTS,
a file that only the user can read and that the parent deletes: nothing here is redacted yet.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

RESULTS = "ELSAPG_VERIFY_RESULTS"
OUTPUTS: dict[str, Any] = {}
"""The stack's outputs, secrets included, as the parent gave them on standard input."""


def pytest_addoption() -> None:
    """Take the outputs before pytest puts its own standard input in place."""
    if RESULTS in os.environ:
        OUTPUTS.update(json.load(sys.stdin))


def _write(**record: Any) -> None:
    with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Tell which checks are for another target, and why."""
    for item in items:
        marker = item.get_closest_marker("target")
        if marker is not None:
            _write(
                kind="left out",
                group=_group(item),
                name=getattr(item, "originalname", item.name),
                target=marker.args[0],
                reason=marker.kwargs.get("reason", ""),
            )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say how many checks there will be."""
    _write(kind="collected", count=len(session.items))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that cannot be imported is told, not lost."""
    if report.failed:
        _write(kind="broken", name=report.nodeid, told=str(report.longrepr))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Write what a check came to. A set-up that fails stands for the check."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.when == "call" or report.outcome != "passed":
        _write(kind="result", **_result(item, call, report))
    return report  # type: ignore[return-value]


def _result(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> dict[str, Any]:
    function = getattr(item, "function", None)
    module = getattr(item, "module", None)
    callspec = getattr(item, "callspec", None)
    found, todo, trace = "", "", ""
    if report.skipped:
        found = str(getattr(call.excinfo.value, "msg", "")) if call.excinfo else ""
    elif call.excinfo is not None:
        error = call.excinfo.value
        found = getattr(error, "found", None) or _told(error)
        todo = getattr(error, "todo", "") or "run it with --debug to see where"
        trace = report.longreprtext
    return {
        "group": _group(item),
        "about": _summary(module),
        "name": getattr(item, "originalname", item.name),
        "subject": callspec.id if callspec else "",
        "claim": _summary(function),
        "outcome": report.outcome if report.outcome != "skipped" else "unjudged",
        "found": found,
        "todo": todo,
        "trace": trace,
        "seconds": round(report.duration, 3),
    }


def _group(item: pytest.Item) -> str:
    return Path(str(item.path)).stem.removeprefix("test_")


def _summary(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
