"""What is measured is written down with what it was measured on, and by which command."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Cores, memory and versions: what a figure depends on."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    client = docker.from_env()
    try:
        engine = client.version()["Version"]
    finally:
        client.close()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * size / 1024**3, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "docker": engine,
        # Above the number of cores, others were at work too, and figures are worse than they are.
        "load_before": round(os.getloadavg()[0], 2),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def write(name: str, title: str, on: Mapping[str, Any], data: object, markdown: str) -> Path:
    """Write `results/<name>.json` and `.md`; returns the latter."""
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    command = " ".join(["python -m bench", *sys.argv[1:]])
    document = {"date": stamp, "command": command, "machine": dict(on), "results": data}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    where = (
        f"{stamp}, {on['cores']} cores, {on['memory_gib']} GiB, {on['system']}, "
        f"Docker {on['docker']}, load before {on['load_before']}"
    )
    path = RESULTS / f"{name}.md"
    path.write_text(f"# {title}\n\n{where}\n\n    {command}\n\n{markdown}", encoding="utf-8")
    return path
