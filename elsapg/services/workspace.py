"""A stack's private Pulumi workspace: its folder, backend, passphrase and environment.

The user's `stacks/Pulumi.<stack>.yaml` is only ever read: Pulumi adds a salt to the file it
works with, and that would dirty Git. So it works with a copy below `.elsapg/workspaces/`,
regenerated at each run, which keeps the salt of the run before.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

import elsapg
from elsapg import process, stackfile
from elsapg.errors import DeploymentError, MissingError, NotDeployedError, UsageError
from elsapg.services.places import Places, find_root, write_private

PROJECT = "elsapg"
# How the state's secrets are encrypted. Where the user's stack file says so, it wins.
SECRET_KEYS = ("secretsprovider", "encryptedkey", "encryptionsalt")
# `pulumi.Stash` and the Automation API's event stream are in every engine from here on.
MINIMUM_PULUMI = (3, 208, 0)


@dataclass(frozen=True)
class Workspace:
    """What is needed to run `pulumi` for one stack. `env` is added to the process's own."""

    stack: str
    places: Places
    folder: Path
    binary: Path
    version: str
    env: Mapping[str, str]
    state: Path | None
    """The folder of the file backend, or None when the state is elsewhere."""

    @property
    def exists_here(self) -> bool:
        """Whether the file backend knows the stack (True when the state is elsewhere)."""
        return self.state is None or _state_file(self.state, self.stack).exists()

    def forget(self) -> None:
        """Remove what is left of a stack that the backend no longer has."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.places.recovery(self.stack).unlink(missing_ok=True)
        if self.state is not None:
            # Old states, with the secrets in them (encrypted, but why keep them).
            for kind in ("backups", "history"):
                shutil.rmtree(self.state / ".pulumi" / kind / PROJECT / self.stack, True)
            for old in (self.places.private / "connect").glob(f"{self.stack}.*"):
                old.unlink()
            for old in _state_file(self.state, self.stack).parent.glob(f"{self.stack}.json.bak*"):
                old.unlink()


def prepare(root: Path, stack: str) -> Workspace:
    """Make the workspace of `stack`; the caller holds the stack's lock.

    Raises MissingError without a usable `pulumi`, UsageError when passphrase or backend do not
    hold together.
    """
    places = Places(root)
    folder = places.workspace(stack)
    binary, version = find_pulumi(places)
    env = _environment(places)
    backend = _backend(root, places, env)
    # Read as late as can be: a first `up` may be writing its salt there.
    config = _config(root, stack, folder)
    _passphrase(places, stack, config, env, backend)
    folder.mkdir(parents=True, exist_ok=True)
    _update(folder / "Pulumi.yaml", yaml.safe_dump(_project(root), sort_keys=False))
    _update(folder / f"Pulumi.{stack}.yaml", yaml.safe_dump(config, sort_keys=False))
    return Workspace(stack, places, folder, binary, version, env, backend.folder)


def outputs(stack: str, root: Path | None = None) -> Mapping[str, Any]:
    """The decrypted outputs of `stack`: they hold secrets, and are for use, never for printing.

    Raises NotDeployedError when the stack has none.
    """
    root = root or find_root()
    stackfile.check_stack_name(stack)
    absent = NotDeployedError(f"stack {stack!r} is not deployed; run 'elsapg up --stack {stack}'")
    workspace = prepare(root, stack)
    if not workspace.exists_here:
        raise absent
    done = process.run(
        [workspace.binary, "stack", "output", "--json", "--show-secrets", "--stack", stack,
         "--non-interactive"],
        cwd=workspace.folder,
        env=workspace.env,
        check=False,
        timeout=120,
    )  # fmt: skip
    if done.code != 0:
        if re.search("no stack named", done.stderr):
            raise absent
        raise explain(stack, done.stderr, "reading the outputs")
    values: Mapping[str, Any] = json.loads(done.stdout)
    if not values:
        raise absent
    return values


def explain(stack: str, stderr: str, doing: str) -> DeploymentError:
    """What Pulumi's `stderr` means, in one or two lines."""
    if "incorrect passphrase" in stderr or "passphrase must be set" in stderr:
        return DeploymentError(
            f"the passphrase does not open the state of stack {stack!r}: set "
            "PULUMI_CONFIG_PASSPHRASE (or _FILE) to the one it was made with, or unset both to "
            "use .elsapg/passphrase"
        )
    lines = [line.removeprefix("error: ") for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in stderr.splitlines() if "error: " in line]
    told = " ".join((errors or lines)[:2]) or "the engine ended without a message"
    return DeploymentError(f"{doing} of stack {stack!r} failed: {told}")


def find_pulumi(places: Places) -> tuple[Path, str]:
    """The first usable `pulumi` in .elsapg/bin and on PATH, and its version without the v."""
    seen = []
    for path in (str(places.bin), os.environ.get("PATH", os.defpath)):
        binary = process.find("pulumi", path=path)
        if binary is None:
            continue
        env = {"PULUMI_SKIP_UPDATE_CHECK": "true"}
        done = process.run([binary, "version"], env=env, timeout=60, check=False)
        match = re.match(r"v?((\d+)\.(\d+)\.(\d+)\S*)", done.stdout.strip())
        if match and tuple(int(part) for part in match.group(2, 3, 4)) >= MINIMUM_PULUMI:
            return binary, match[1]
        seen.append(f"{binary} is {match[1] if match else 'of no readable version'}")
    wanted = ".".join(str(part) for part in MINIMUM_PULUMI)
    raise MissingError(
        f"no pulumi {wanted} or newer ({'; '.join(seen) or 'none on PATH'}); run 'elsapg setup'"
    )


def _state_file(state: Path, stack: str) -> Path:
    return state / ".pulumi" / "stacks" / PROJECT / f"{stack}.json"


def _update(path: Path, text: str) -> None:
    # Untouched when nothing changed: `status` may prepare the workspace that `up` works in.
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_private(path, text)


def _project(root: Path) -> dict[str, Any]:
    """Our Pulumi.yaml, for an inline program: its runtime options name paths below the root."""
    document = _yaml(root / "Pulumi.yaml")
    return {
        **{key: value for key, value in document.items() if key != "stackConfigDir"},
        "name": PROJECT,
        "runtime": "python",
    }


def _config(root: Path, stack: str, folder: Path) -> dict[str, Any]:
    """The stack's file, and the keys that the run before added to our copy of it.

    A stack whose file is gone can still be destroyed: then the copy is all there is.
    """
    theirs_path = stackfile.stack_file(root, stack)
    ours_path = folder / f"Pulumi.{stack}.yaml"
    ours = _yaml(ours_path) if ours_path.exists() else {}
    if not theirs_path.exists() and ours:
        return ours
    theirs = _yaml(theirs_path)
    if any(key in theirs for key in SECRET_KEYS):
        return theirs
    return {**theirs, **{key: ours[key] for key in SECRET_KEYS if key in ours}}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    return document if isinstance(document, dict) else {}


def _environment(places: Places) -> dict[str, str]:
    package = str(Path(elsapg.__file__).resolve().parent.parent)
    before = os.environ.get("PYTHONPATH")
    return {
        "PATH": places.path_variable,
        # The dynamic providers are unpickled by reference: they import `elsapg`.
        "PYTHONPATH": os.pathsep.join([package, before] if before else [package]),
        "PULUMI_PYTHON_CMD": sys.executable,
        "ELSAPG_ROOT": str(places.root),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_AUTOMATION_API_SKIP_VERSION_CHECK": "true",
    }


@dataclass(frozen=True)
class _Backend:
    folder: Path | None
    """Of a file backend on this machine."""
    ours: bool
    service: bool
    """Pulumi Cloud or the like: it encrypts by itself, with no passphrase."""


def _backend(root: Path, places: Places, env: dict[str, str]) -> _Backend:
    """Where the state is: below .elsapg/, unless the environment, project or a login differ."""
    theirs = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    project = _yaml(root / "Pulumi.yaml").get("backend")
    url = os.environ.get("PULUMI_BACKEND_URL")
    url = url or (project.get("url") if isinstance(project, dict) else None)
    url = url or _login(theirs / "credentials.json")
    if not url:
        places.state.mkdir(parents=True, exist_ok=True)
        places.state.chmod(0o700)
        env["PULUMI_BACKEND_URL"] = f"file://{places.state}"
        # The user's own home, if there is one, has the plugins they installed.
        if "PULUMI_HOME" not in os.environ and not (theirs / "plugins").is_dir():
            places.pulumi_home.mkdir(parents=True, exist_ok=True)
            places.pulumi_home.chmod(0o700)
            env["PULUMI_HOME"] = str(places.pulumi_home)
        return _Backend(places.state, ours=True, service=False)
    parts = urlsplit(str(url))
    if parts.scheme != "file":
        return _Backend(None, ours=False, service=parts.scheme in {"http", "https"})
    folder = Path(unquote(parts.netloc + parts.path)).expanduser()
    return _Backend(folder, ours=folder == places.state, service=False)


def _login(credentials: Path) -> str | None:
    """The backend that `pulumi login` chose, if it did."""
    try:
        current = json.loads(credentials.read_text(encoding="utf-8")).get("current")
    except (OSError, ValueError, AttributeError):
        return None
    return str(current) if current else None


def _passphrase(
    places: Places, stack: str, config: Mapping[str, Any], env: dict[str, str], backend: _Backend
) -> None:
    """See to it that the engine finds a passphrase, if it needs one. Never in argv."""
    if {"PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"} & set(os.environ):
        return
    salted = "encryptionsalt" in config
    provider = config.get("secretsprovider") or ("passphrase" if salted else None)
    if provider not in (None, "passphrase") or (provider is None and backend.service):
        return
    if not places.passphrase.exists():
        # One passphrase serves every stack here: none may exist that it was made for.
        folder = backend.folder
        stacks = folder / ".pulumi" / "stacks" / PROJECT if folder else None
        if salted or (stacks and any(stacks.glob("*.json"))):
            raise UsageError(
                f"the passphrase of stack {stack!r} is lost: {places.passphrase} does not exist, "
                "but its state does; put the file back, or set PULUMI_CONFIG_PASSPHRASE"
            )
        if not backend.ours:
            # Made here, it would lock out everyone else who shares that state.
            raise UsageError(
                "the state is shared, so its passphrase must be too: set PULUMI_CONFIG_PASSPHRASE "
                f"(or _FILE), or a secretsprovider in stacks/Pulumi.{stack}.yaml"
            )
        write_private(places.passphrase, secrets.token_urlsafe(32) + "\n", replace=False)
    env["PULUMI_CONFIG_PASSPHRASE_FILE"] = str(places.passphrase)
