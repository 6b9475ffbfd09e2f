"""What this machine needs: `examine` says what is missing, `install` gets it.

Whatever is already here is used: a running Docker, a `pulumi` on PATH, a base image. Only
package registries are needed: Debian's packages, and Go modules pinned in `tools/go.mod`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elsapg import process, stackfile
from elsapg.errors import ElsapgError, MissingError
from elsapg.services import ports, workspace
from elsapg.services.check import Check
from elsapg.services.places import Places, write_private
from elsapg.settings import Settings
from elsapg.targets.docker.daemon import BASE_IMAGE, STACK_LABEL

SUITE = "trixie"
MINIMUM_PYTHON = (3, 11)
MINIMUM_GO = (1, 25)
# Images and two small nodes; the figures of a fresh `up`, doubled.
MINIMUM_DISK_GIB = 6
MINIMUM_MEMORY_GIB = 2
DOCKER_PACKAGES = ("docker.io", "iptables")
PULUMI_MODULE = "github.com/pulumi/pulumi/pkg/v3"
_GIB = 1024**3
# As the official image leaves out what nobody reads in a container.
_SLIM = (
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "locale", "man")),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class GoTool:
    """A command built from a module that `tools/go.mod` pins."""

    name: str
    package: str
    module: str
    version_variable: str | None = None
    static: bool = False

    def version(self, places: Places) -> str:
        text = (places.tools / "go.mod").read_text(encoding="utf-8")
        match = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", text, re.M)
        if match is None:
            raise MissingError(f"tools/go.mod does not pin {self.module}; restore it from Git")
        return match[1]

    def command(self, places: Places, output: Path) -> list[str]:
        flags = "-s -w"
        if self.version_variable:
            # Without it the Automation API refuses the engine's version.
            flags += f" -X {self.version_variable}={self.version(places)}"
        return ["go", "build", "-trimpath", "-ldflags", flags, "-o", str(output), self.package]


PULUMI = GoTool(
    "pulumi",
    f"{PULUMI_MODULE}/cmd/pulumi",
    PULUMI_MODULE,
    "github.com/pulumi/pulumi/sdk/v3/go/common/version.Version",
)
VERSITYGW = GoTool(
    "versitygw",
    "github.com/versity/versitygw/cmd/versitygw",
    "github.com/versity/versitygw",
    static=True,
)


# -- doctor --------------------------------------------------------------------------------


def examine(root: Path, stack: str) -> list[Check]:
    """Everything that `up` of `stack` needs here, each found or with its way out."""
    places = Places(root)
    checks = [_python()]
    settings: Settings | None = None
    try:
        settings = stackfile.read(root, stack)
        if not settings.database.provisioned:
            what = f"{stack}: {settings.database.provider}, which needs nothing here"
            return [*checks, Check("stack", True, what)]
        checks.append(Check("stack", True, f"{stack}: target {settings.target}"))
    except ElsapgError as error:
        checks.append(Check("stack", False, f"{stack}: not readable", str(error)))
    checks += _optional([_pulumi(places), _launcher(places)], settings)
    if settings is None or settings.target == "docker":
        daemon = _docker()
        checks += [daemon, _versitygw(places)]
        if daemon.ok:
            checks.append(_base_image())
        checks += [_disk(root), _memory()]
        if settings is not None:
            checks += _ports(stack, settings)
    if settings is not None and settings.target == "kubernetes":
        from elsapg.services import cluster  # noqa: PLC0415 - which the docker target need not pay

        checks += cluster.examine(root, stack, settings)
    if any(not check.ok and check.name in ("pulumi", "versitygw") for check in checks):
        checks.append(_go())
    return checks


def _optional(checks: list[Check], settings: Settings | None) -> list[Check]:
    """Pulumi need not be where manifests are rendered, and something else makes the secrets."""
    if settings is None or settings.target == "docker" or settings.kubernetes.secrets == "pulumi":
        return checks
    told = "not found: `elsapg up` needs it (`elsapg render` does not)"
    return [check if check.ok else Check(check.name, True, told) for check in checks]


def _python() -> Check:
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    return Check(
        "python",
        sys.version_info >= MINIMUM_PYTHON,
        platform.python_version(),
        f"install Python {wanted} or newer, remove .venv and run 'make setup'",
    )


def _go() -> Check:
    way_out = f"install Go {'.'.join(map(str, MINIMUM_GO))} or newer and put it on PATH"
    try:
        text = process.run(["go", "version"], timeout=30).stdout.strip()
    except ElsapgError:
        return Check("go", False, "not found", way_out)
    match = re.search(r"go(\d+)\.(\d+)", text)
    new_enough = match is not None and (int(match[1]), int(match[2])) >= MINIMUM_GO
    return Check("go", new_enough, text.removeprefix("go version "), way_out)


def _pulumi(places: Places) -> Check:
    try:
        binary, version = workspace.find_pulumi(places)
    except ElsapgError as error:
        return Check("pulumi", False, "not found", str(error))
    return Check("pulumi", True, f"{version} ({binary})")


def _launcher(places: Places) -> Check:
    found = process.find(places.launcher.name, path=places.path_variable)
    return Check(
        "provider launcher", found is not None, str(found or "not found"), "run 'elsapg setup'"
    )


def _versitygw(places: Places) -> Check:
    binary = places.bin / VERSITYGW.name
    ok = binary.is_file() and _stamped(places, VERSITYGW)
    return Check(
        "versitygw",
        ok,
        str(binary) if ok else "of another version" if binary.exists() else "not found",
        "run 'elsapg setup'",
    )


def _docker() -> Check:
    way_out = "run 'elsapg setup' as root, or install Docker and start it"
    if process.find("docker") is None:
        return Check("docker", False, "no docker command", way_out)
    version, trouble = docker_server()
    if version is not None:
        return Check("docker", True, f"server {version}")
    if "permission denied" in trouble.lower():
        way_out = "add yourself to the group 'docker', or run as root"
    elif os.environ.get("DOCKER_HOST"):
        way_out = "DOCKER_HOST is set: start the daemon there, or unset it"
    return Check("docker", False, "the daemon does not answer", way_out)


def docker_server() -> tuple[str | None, str]:
    """The daemon's version, or None and why it does not answer."""
    try:
        done = process.run(
            ["docker", "version", "--format", "{{.Server.Version}}"], check=False, timeout=20
        )
    except ElsapgError as error:
        return None, str(error)
    version = done.stdout.strip()
    return (version or None) if done.code == 0 else None, done.stderr.strip()


def has_base_image() -> bool:
    """Whether the base image is in the daemon."""
    return process.run(["docker", "image", "inspect", BASE_IMAGE], check=False).code == 0


def _base_image() -> Check:
    ok = has_base_image()
    return Check("base image", ok, BASE_IMAGE if ok else "not here", "run 'elsapg setup'")


def _disk(root: Path) -> Check:
    done = None
    with contextlib.suppress(ElsapgError):
        done = process.run(
            ["docker", "info", "--format", "{{.DockerRootDir}}"], check=False, timeout=20
        )
    # A daemon elsewhere names a folder that is not here; then this folder's disk is all we know.
    folder = Path(done.stdout.strip()) if done and done.code == 0 and done.stdout.strip() else root
    if not folder.exists():
        folder = root
    free = shutil.disk_usage(folder).free / _GIB
    return Check(
        "disk",
        free >= MINIMUM_DISK_GIB,
        f"{free:.1f} GiB free at {folder}",
        f"free {MINIMUM_DISK_GIB} GiB there ('docker system df' shows what Docker holds)",
    )


def _memory() -> Check:
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except FileNotFoundError:
        return Check("memory", True, "unknown")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    free = int(match[1]) / 1024**2 if match else 0.0
    return Check(
        "memory",
        free >= MINIMUM_MEMORY_GIB,
        f"{free:.1f} GiB available",
        f"free {MINIMUM_MEMORY_GIB} GiB, or lower postgres.memory_mb and replicas in the stack",
    )


def _ports(stack: str, settings: Settings) -> list[Check]:
    docker = settings.docker
    wanted = {docker.pool_port + i: "pool_port" for i in range(settings.pooler.instances)}
    if docker.direct_port is not None:
        wanted |= {docker.direct_port: "direct_port", docker.direct_port + 1: "direct_port"}
    checks = []
    for port, key in sorted(wanted.items()):
        holder = _holder(docker.bind_address, port, stack)
        checks.append(
            Check(
                f"port {port}",
                holder in ("free", "this stack"),
                holder,
                f"stop what uses it, or change elsapg:docker.{key} in stacks/Pulumi.{stack}.yaml",
            )
        )
    return checks


def _holder(address: str, port: int, stack: str) -> str:
    trouble = ports.trouble(port, address)
    if trouble is None:
        return "free"
    with contextlib.suppress(ElsapgError):
        command = ["docker", "ps", "--filter", f"publish={port}", "--format", "{{.Names}}"]
        ours = ["--filter", f"label={STACK_LABEL}={stack}"]
        if process.run([*command, *ours], check=False, timeout=20).stdout.strip():
            return "this stack"
        name = process.run(command, check=False, timeout=20).stdout.strip()
        if name:
            return f"taken by container {name.splitlines()[0]}"
    return f"taken ({trouble})"


# -- setup ---------------------------------------------------------------------------------


def install(places: Places, say: Say) -> None:
    """Get whatever is missing. Each failure is a MissingError: which thing, and what to do."""
    write_launcher(places)
    install_docker(places, say)
    theirs = _pulumi_on_path(places)
    if theirs is None:
        build(places, PULUMI, say)
    else:
        say(f"pulumi is here: {theirs}")
    build(places, VERSITYGW, say)
    install_base_image(places, say)


def _pulumi_on_path(places: Places) -> Path | None:
    """A usable `pulumi` that is not one we built."""
    try:
        binary, _ = workspace.find_pulumi(places)
    except MissingError:
        return None
    return None if binary.parent == places.bin else binary


def write_launcher(places: Places) -> None:
    """The command by which the engine starts our dynamic providers.

    The normal Pulumi distribution brings one; the engine built from its Go module does not.
    """
    text = f'#!/bin/sh\nexec "{sys.executable}" -u -m elsapg.services.provider_host "$@"\n'
    if not places.launcher.exists() or places.launcher.read_text(encoding="utf-8") != text:
        write_private(places.launcher, text, mode=0o755)


def install_docker(places: Places, say: Say) -> None:
    """A Docker daemon that answers: the running one, else Debian's, started by hand."""
    version, trouble = docker_server()
    if version is not None:
        say(f"docker {version} is running")
        return
    if os.environ.get("DOCKER_HOST"):
        raise MissingError(
            f"DOCKER_HOST = {os.environ['DOCKER_HOST']}: no daemon answers there; start it, or "
            "unset DOCKER_HOST"
        )
    if "permission denied" in trouble.lower():
        raise MissingError(
            "Docker runs but you may not use it: 'sudo usermod -aG docker $USER', then log in anew"
        )
    if process.find("dockerd", path=_system_path()) is None:
        _apt_install(DOCKER_PACKAGES, "Docker", say)
    _start_docker(places, say)


def _system_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _apt_install(packages: tuple[str, ...], what: str, say: Say) -> None:
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if process.find("apt-get") is None:
        raise MissingError(f"{what} is missing and there is no apt-get: install {what} yourself")
    if os.geteuid() != 0:
        raise MissingError(f"{what} is missing: run 'sudo {command}', then this again")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    with _step(f"apt-get install {' '.join(packages)}", say):
        # A third-party source that fails must not stop us: Debian's own may be fresh.
        process.run(["apt-get", "update", "-q"], env=env, check=False, timeout=300)
        try:
            process.run([*command.split(), "-y", "-q"], env=env, timeout=900)
        except process.CommandFailedError as error:
            raise MissingError(f"cannot install {what}: {error}; run '{command}' to see") from None


def _start_docker(places: Places, say: Say) -> None:
    if os.geteuid() != 0:
        raise MissingError("Docker does not run: 'sudo systemctl start docker', then this again")
    with _step("starting docker", say):
        if Path("/run/systemd/system").is_dir():
            process.run(["systemctl", "start", "docker"], timeout=120)
            _await_docker(None, None)
            return
        places.private.mkdir(parents=True, exist_ok=True)
        log = places.private / "dockerd.log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                ["dockerd"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={**os.environ, "PATH": _system_path()},
                start_new_session=True,
            )
        write_private(places.dockerd_pid, f"{daemon.pid}\n")
        try:
            _await_docker(daemon, log)
        except MissingError:
            stop_docker(places, say=lambda _text: None)
            raise


def _await_docker(daemon: subprocess.Popen[bytes] | None, log: Path | None) -> None:
    deadline = time.monotonic() + 90
    while docker_server()[0] is None:
        ended = daemon is not None and daemon.poll() is not None
        if ended or time.monotonic() > deadline:
            told = process.printable(log.read_text(errors="replace")) if log else ""
            lines = [line for line in told.splitlines() if "level=debug" not in line][-1:]
            raise MissingError(
                f"dockerd {'ended' if ended else 'does not answer'}: {' '.join(lines)[:300]}"
                + (f"; the whole log is {log}" if log else "; see 'journalctl -u docker'")
            )
        time.sleep(0.2)


def stop_docker(places: Places, say: Say) -> None:
    """Stop the daemon that setup started; one that was running before is left alone."""
    try:
        pid = int(places.dockerd_pid.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        say("setup did not start a Docker daemon here; nothing to stop")
        return
    for number, patience in ((signal.SIGTERM, 60.0), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + patience
        if _is_dockerd(pid):
            os.kill(pid, number)
        while _is_dockerd(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    places.dockerd_pid.unlink(missing_ok=True)
    say(f"docker (pid {pid}) is stopped")


def _is_dockerd(pid: int) -> bool:
    # The number may have been given to another process since.
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass
    try:
        return b"dockerd" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def _stamp(places: Places) -> str:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        with contextlib.suppress(FileNotFoundError):
            digest.update((places.tools / name).read_bytes())
    return digest.hexdigest()


def _stamped(places: Places, tool: GoTool) -> bool:
    """Whether the built tool is the one that tools/go.mod pins now."""
    path = places.bin / f".{tool.name}.stamp"
    if not path.exists():
        # Put there by hand (a CI cache, say): taken as it is, until the pins change.
        write_private(path, _stamp(places))
    return path.read_text(encoding="utf-8") == _stamp(places)


def build(places: Places, tool: GoTool, say: Say) -> None:
    """Build `tool` into .elsapg/bin, unless it is there and its pins have not changed."""
    binary = places.bin / tool.name
    version = tool.version(places)
    if binary.is_file() and _stamped(places, tool):
        say(f"{tool.name} {version} is built")
        return
    go = _go()
    if not go.ok:
        raise MissingError(f"building {tool.name} needs Go: {go.found}; {go.way_out}")
    temporary = places.bin / f".{tool.name}.new"
    places.bin.mkdir(parents=True, exist_ok=True)
    env = {"CGO_ENABLED": "0"} if tool.static else {}
    with _step(f"building {tool.name} {version} (minutes, the first time)", say):
        try:
            process.run(tool.command(places, temporary), cwd=places.tools, env=env, timeout=3600)
        except process.CommandFailedError as error:
            raise MissingError(
                f"cannot build {tool.name}: {error}; it needs a Go module proxy "
                "(see 'go env GOPROXY')"
            ) from None
        temporary.replace(binary)
        write_private(places.bin / f".{tool.name}.stamp", _stamp(places))


def install_base_image(places: Places, say: Say) -> None:
    """The base image: the one here, else pulled, else made from Debian's packages."""
    if has_base_image():
        say(f"{BASE_IMAGE} is here")
        return
    with contextlib.suppress(process.CommandFailedError), _step(f"pulling {BASE_IMAGE}", say):
        process.run(["docker", "pull", "-q", BASE_IMAGE], timeout=90)
        return
    if process.find("mmdebstrap") is None:
        _apt_install(("mmdebstrap",), "mmdebstrap", say)
    places.private.mkdir(parents=True, exist_ok=True)
    archive = places.private / "base-image.tar"
    with _step(f"making {BASE_IMAGE} with mmdebstrap", say):
        try:
            process.run(
                [
                    "mmdebstrap",
                    "--variant=minbase",
                    "--include=ca-certificates",
                    *_SLIM,
                    "--quiet",
                    SUITE,
                    archive,
                ],
                timeout=900,
            )
            process.run(
                ["docker", "import", "--change", 'CMD ["bash"]', archive, BASE_IMAGE], timeout=300
            )
        except process.CommandFailedError as error:
            raise MissingError(
                f"cannot get {BASE_IMAGE}: neither a pull nor mmdebstrap works ({error}); "
                f"load it with 'docker load', or let this machine reach a Debian mirror"
            ) from None
        finally:
            archive.unlink(missing_ok=True)


@contextlib.contextmanager
def _step(title: str, say: Say) -> Iterator[None]:
    say(f"{title} ...")
    started = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"{title}: did not work ({time.monotonic() - started:.1f} s)")
        raise
    say(f"{title}: done ({time.monotonic() - started:.1f} s)")
