"""Where the project and its private files are.

Everything that elsapg writes is below `.elsapg/`, which Git ignores.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import elsapg
from elsapg.errors import UsageError


def find_root() -> Path:
    """The folder holding Pulumi.yaml: ELSAPG_ROOT, else around the cwd, else the package's."""
    named = os.environ.get("ELSAPG_ROOT")
    if named:
        root = Path(named).expanduser().resolve()
        if not (root / "Pulumi.yaml").is_file():
            raise UsageError(
                f"ELSAPG_ROOT = {named}: no Pulumi.yaml there; name the project folder"
            )
        return root
    here = Path.cwd().resolve()
    package = Path(elsapg.__file__).resolve().parent.parent
    for folder in (here, *here.parents, package):
        if _is_project(folder):
            return folder
    raise UsageError(
        "no elsapg project here: change into the folder holding Pulumi.yaml, or set ELSAPG_ROOT"
    )


def _is_project(folder: Path) -> bool:
    # Another Pulumi project around the cwd must not be mistaken for ours.
    try:
        text = (folder / "Pulumi.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.split("#")[0].strip() == "name: elsapg" for line in text.splitlines())


def write_private(path: Path, text: str, *, mode: int = 0o600, replace: bool = True) -> bool:
    """Write `path` whole or not at all. Returns False if `replace` is off and it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        if replace:
            temporary.replace(path)
            return True
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Places:
    """The private files below one project folder."""

    root: Path

    @property
    def private(self) -> Path:
        return self.root / ".elsapg"

    @property
    def bin(self) -> Path:
        return self.private / "bin"

    @property
    def state(self) -> Path:
        return self.private / "state"

    @property
    def passphrase(self) -> Path:
        return self.private / "passphrase"

    @property
    def pulumi_home(self) -> Path:
        return self.private / "pulumi-home"

    @property
    def tools(self) -> Path:
        return self.root / "tools"

    @property
    def launcher(self) -> Path:
        return self.bin / "pulumi-resource-pulumi-python"

    @property
    def dockerd_pid(self) -> Path:
        return self.private / "dockerd.pid"

    def lock(self, stack: str) -> Path:
        return self.private / "locks" / stack

    def recovery(self, stack: str) -> Path:
        """Says that the stack is on its way out of a repository: `elsapg.services.rescue`."""
        return self.private / "recovery" / f"{stack}.json"

    def workspace(self, stack: str) -> Path:
        return self.private / "workspaces" / stack

    @property
    def path_variable(self) -> str:
        """PATH with our own tools first."""
        return os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
