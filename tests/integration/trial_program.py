"""A program small enough to test the lifecycle with: things that are files, and a secret.

Run as `python -m tests.integration.trial_program ROOT COMMAND`, for it must be killable. The
environment steers it: TRIAL_BOX (the folder), TRIAL_VALUE, TRIAL_DELAY (seconds per operation),
TRIAL_FAIL (the thing that cannot be made), TRIAL_GIVEN (there is a secret of somebody else).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pulumi
from pulumi import dynamic
from rich.console import Console

from elsapg.cli import run_guarded
from elsapg.program import _given as given
from elsapg.services import workspace
from elsapg.services.lifecycle import Lifecycle
from elsapg.settings import Settings

THINGS = 6


class ThingProvider(dynamic.ResourceProvider):
    """A thing is a file; it is adopted if it is there, as ours adopt containers."""

    def _path(self, name: str) -> Path:
        return Path(os.environ["TRIAL_BOX"]) / name

    def _write(self, props: dict[str, Any]) -> dict[str, Any]:
        time.sleep(float(os.environ.get("TRIAL_DELAY", "0")))
        if os.environ.get("TRIAL_FAIL") == props["name"]:
            raise RuntimeError(f"port of {props['name']} is taken: free it\ndetails")
        self._path(props["name"]).write_text(str(props["value"]))
        return {"name": props["name"], "value": props["value"]}

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        return dynamic.CreateResult(props["name"], self._write(props))

    def update(self, _id: str, _olds: Any, news: dict[str, Any]) -> dynamic.UpdateResult:
        return dynamic.UpdateResult(self._write(news))

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> dynamic.DiffResult:
        return dynamic.DiffResult(changes=olds["value"] != news["value"])

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        here = self._path(id_).exists()
        return dynamic.ReadResult(id_, props) if here else dynamic.ReadResult("", {})

    def delete(self, id_: str, _props: dict[str, Any]) -> None:
        self._path(id_).unlink(missing_ok=True)


class Thing(dynamic.Resource, module="trial", name="Thing"):
    def __init__(self, name: str, value: str, opts: pulumi.ResourceOptions) -> None:
        super().__init__(ThingProvider(), name, {"name": name, "value": value}, opts)


def program(_stack: str, _settings: Settings, _root: Path) -> None:
    password = pulumi.Stash(
        "password",
        input=pulumi.Output.secret(f"hunter2-{os.urandom(4).hex()}"),
        opts=pulumi.ResourceOptions(protect=True, ignore_changes=["input"]),
    )
    volume = Thing("volume", "0", pulumi.ResourceOptions(protect=True))
    last = volume
    for number in range(1, THINGS + 1):
        # Two chains, so that some are created at once and some wait.
        after = volume if number % 2 else last
        opts = pulumi.ResourceOptions(depends_on=[after])
        last = Thing(f"thing-{number}", os.environ.get("TRIAL_VALUE", "1"), opts)
    pulumi.export("password", password.output)
    if "TRIAL_GIVEN" in os.environ:
        keep = pulumi.ResourceOptions(protect=True)
        pulumi.export("given", pulumi.Output.secret(given("s3-access-key", keep)))


def main() -> int:
    root, command, *words = sys.argv[1:]
    lifecycle = Lifecycle(Path(root), "local", Console(), program=program)
    actions = {
        "up": lambda: lifecycle.up(yes=True),
        "up-expecting-nothing": lambda: lifecycle.up(expect_no_changes=True),
        "preview": lifecycle.preview,
        "refresh": lambda: lifecycle.refresh(yes=True),
        "destroy": lambda: lifecycle.destroy(yes=True),
        "purge": lambda: lifecycle.destroy(purge=True, confirm=words[0]),
        "given": lambda: print(workspace.outputs("local", Path(root))["given"]),
        "password": lambda: print(workspace.outputs("local", Path(root))["password"]),
    }
    return run_guarded(actions[command], debug=False)


if __name__ == "__main__":
    # Pickled by reference: the provider must be found in the module, not in __main__.
    from tests.integration import trial_program  # noqa: PLW0406

    sys.exit(trial_program.main())
