"""doctor and setup, against stand-ins for docker, go, apt-get and mmdebstrap."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from elsapg import process
from elsapg.errors import MissingError
from elsapg.services import machine
from elsapg.services.places import Places
from tests.unit.conftest import write_command

REPOSITORY = Path(__file__).resolve().parents[2]
MISSING_DOCKER = 'echo "Cannot connect to the Docker daemon" >&2; exit 1'


@pytest.fixture
def places(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A machine with nothing but a shell: stand-ins go into `tmp_path/path`."""
    (project / "tools").mkdir()
    shutil.copy(REPOSITORY / "tools" / "go.mod", project / "tools" / "go.mod")
    commands = tmp_path / "path"
    commands.mkdir()
    for name in ("sh", "cat", "touch", "sleep", "echo", "cp"):
        found = shutil.which(name)
        assert found is not None
        (commands / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.setattr(machine, "_system_path", lambda: str(commands))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return Places(project)


def command(tmp_path: Path, name: str, script: str) -> Path:
    return write_command(tmp_path / "path" / name, script)


def found(places: Places, name: str) -> machine.Check:
    return next(c for c in machine.examine(places.root, "local") if c.name == name)


# -- doctor --------------------------------------------------------------------------------


def test_a_bare_machine_lacks_everything_and_says_what_to_do(places: Places) -> None:
    lacking = {c.name: c for c in machine.examine(places.root, "local") if not c.ok}
    assert {"pulumi", "provider launcher", "docker", "versitygw", "go"} <= set(lacking)
    for check in lacking.values():
        assert check.way_out


def test_a_bad_stack_file_is_one_of_the_checks(places: Places) -> None:
    (places.root / "stacks/Pulumi.local.yaml").write_text("config: {elsapg:nope: 1}\n")
    assert "unknown key" in found(places, "stack").way_out


def test_go_is_asked_for_only_when_a_tool_is_missing(
    places: Places, fake_pulumi: Path, tmp_path: Path
) -> None:
    assert found(places, "go").ok is False
    write_command(places.bin / "versitygw", "true")
    assert "go" not in {c.name for c in machine.examine(places.root, "local")}


@pytest.mark.parametrize(("text", "ok"), [("go1.24.9", False), ("go1.25.0", True), ("go2.0", True)])
def test_the_version_of_go(places: Places, tmp_path: Path, text: str, ok: bool) -> None:
    command(tmp_path, "go", f"echo go version {text} linux/amd64")
    assert found(places, "go").ok is ok


def test_docker_without_the_right_says_which_group(places: Places, tmp_path: Path) -> None:
    command(tmp_path, "docker", "echo 'permission denied on the socket' >&2; exit 1")
    assert "group 'docker'" in found(places, "docker").way_out


def test_a_taken_port_names_the_key(places: Places) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stack = places.root / "stacks/Pulumi.local.yaml"
        stack.write_text(f"config:\n  elsapg:docker: {{pool_port: {port - 1}}}\n")
        check = found(places, f"port {port}")
    assert not check.ok
    assert "elsapg:docker.pool_port" in check.way_out


def test_a_port_of_this_stack_is_no_trouble(places: Places, tmp_path: Path) -> None:
    command(tmp_path, "docker", 'case "$*" in *label=elsapg.stack=local*) echo pgbouncer-1;; esac')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stack = places.root / "stacks/Pulumi.local.yaml"
        stack.write_text(f"config:\n  elsapg:docker: {{pool_port: {port}}}\n")
        assert found(places, f"port {port}").found == "this stack"


def test_a_kubernetes_stack_needs_no_docker(places: Places) -> None:
    (places.root / "stacks/Pulumi.local.yaml").write_text(
        "config:\n  elsapg:target: kubernetes\n"
        "  elsapg:kubernetes: {registry: registry.example.com}\n"
        "  elsapg:archive: {endpoint: s3.example.com}\n"
    )
    names = {c.name for c in machine.examine(places.root, "local")}
    assert not {"docker", "versitygw", "disk"} & names


def test_a_stack_of_another_database_needs_nothing(places: Places) -> None:
    stack = places.root / "stacks/Pulumi.local.yaml"
    stack.write_text("config:\n  elsapg:database: {provider: sqlite, file: elsa.db}\n")
    assert [c.name for c in machine.examine(places.root, "local")] == ["python", "stack"]
    assert "sqlite" in found(places, "stack").found


# -- setup ---------------------------------------------------------------------------------


def test_the_launcher_starts_our_provider_host(places: Places) -> None:
    machine.write_launcher(places)
    assert os.access(places.launcher, os.X_OK)
    assert "elsapg.services.provider_host" in places.launcher.read_text()


def test_versions_come_from_go_mod(places: Places) -> None:
    version = machine.PULUMI.version(places)
    assert version.startswith("v3.")
    line = machine.PULUMI.command(places, Path("out"))
    assert f"Version={version}" in " ".join(line)
    assert machine.VERSITYGW.version(places).startswith("v1.")


def fake_go(tmp_path: Path) -> Path:
    calls = tmp_path / "calls"
    command(
        tmp_path,
        "go",
        f'if [ "$1" = version ]; then echo go version go1.26 x; exit; fi\n'
        f'echo "$CGO_ENABLED $*" >> {calls}\n'
        'while [ "$1" != -o ]; do shift; done\necho built > "$2"',
    )
    return calls


def test_a_tool_is_built_once_and_again_when_its_pins_change(
    places: Places, tmp_path: Path
) -> None:
    calls = fake_go(tmp_path)
    for _ in range(2):
        machine.build(places, machine.VERSITYGW, lambda _text: None)
    assert calls.read_text().count("build") == 1
    assert calls.read_text().startswith("0 build -trimpath -ldflags -s -w -o")
    with (places.tools / "go.mod").open("a") as file:
        file.write("// changed\n")
    assert not found(places, "versitygw").ok
    machine.build(places, machine.VERSITYGW, lambda _text: None)
    assert calls.read_text().count("build") == 2


def test_a_failed_build_leaves_no_tool(places: Places, tmp_path: Path) -> None:
    command(
        tmp_path,
        "go",
        'if [ "$1" = version ]; then echo go version go1.26 x; exit; fi\n'
        "echo 'dial tcp: no route' >&2; exit 1",
    )
    with pytest.raises(MissingError, match=r"cannot build versitygw.*no route.*GOPROXY"):
        machine.build(places, machine.VERSITYGW, lambda _text: None)
    assert not (places.bin / "versitygw").exists()


def test_without_go_the_tool_is_named(places: Places) -> None:
    with pytest.raises(
        MissingError, match=r"building pulumi needs Go: not found; install Go 1\.25"
    ):
        machine.build(places, machine.PULUMI, lambda _text: None)


def test_a_pulumi_on_path_is_used(places: Places, tmp_path: Path) -> None:
    command(tmp_path, "docker", "echo 28.0")
    command(tmp_path, "pulumi", "echo v3.300.0")
    write_command(places.bin / "versitygw", "true")
    lines: list[str] = []
    machine.install(places, lines.append)
    assert f"pulumi is here: {tmp_path}/path/pulumi" in lines
    assert not (places.bin / "pulumi").exists()


def test_not_root_and_no_docker_names_the_command(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command(tmp_path, "apt-get", "exit 99")
    with pytest.raises(MissingError, match=r"sudo apt-get install .* docker\.io iptables"):
        machine.install_docker(places, lambda _text: None)
    command(tmp_path, "dockerd", "exit 99")
    with pytest.raises(MissingError, match="sudo systemctl start docker"):
        machine.install_docker(places, lambda _text: None)


def test_a_remote_daemon_is_not_replaced(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    with pytest.raises(MissingError, match="DOCKER_HOST = tcp"):
        machine.install_docker(places, lambda _text: None)


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd starts Docker there")
def test_docker_is_started_and_only_our_own_is_stopped(places: Places, tmp_path: Path) -> None:
    up = tmp_path / "up"
    command(tmp_path, "dockerd", f"touch {up}; sleep 60; :")
    command(tmp_path, "docker", f"[ -e {up} ] || {{ {MISSING_DOCKER}; }}; echo 20.10")
    lines: list[str] = []
    machine.stop_docker(places, lines.append)
    assert "nothing to stop" in lines[-1]
    machine.install_docker(places, lines.append)
    pid = int(places.dockerd_pid.read_text())
    os.kill(pid, 0)
    # The stand-in is a shell: its command line is not dockerd's, so it must not be killed.
    machine.stop_docker(places, lines.append)
    os.killpg(pid, 9)
    assert not places.dockerd_pid.exists()


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd starts Docker there")
def test_a_docker_that_ends_shows_its_last_words(places: Places, tmp_path: Path) -> None:
    command(tmp_path, "docker", MISSING_DOCKER)
    command(tmp_path, "dockerd", "echo iptables not found; exit 1")
    with pytest.raises(MissingError, match=r"dockerd ended: iptables not found.*dockerd\.log"):
        machine.install_docker(places, lambda _text: None)
    assert not places.dockerd_pid.exists()


def test_apt_tolerates_a_failing_source(places: Places, tmp_path: Path) -> None:
    calls = tmp_path / "apt"
    command(tmp_path, "apt-get", f'echo "$*" >> {calls}; [ "$1" != update ]')
    machine._apt_install(("x",), "X", lambda _text: None)
    assert calls.read_text().splitlines()[1].startswith("install --no-install-recommends x -y")


def test_the_base_image_is_pulled_where_that_works(places: Places, tmp_path: Path) -> None:
    command(tmp_path, "docker", '[ "$1" = pull ]')
    machine.install_base_image(places, lambda _text: None)


def test_else_it_is_made_from_packages(places: Places, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    command(tmp_path, "docker", f'echo "$*" >> {calls}; [ "$1" = import ]')
    command(tmp_path, "mmdebstrap", f'echo "$*" >> {calls}')
    machine.install_base_image(places, lambda _text: None)
    text = calls.read_text()
    assert "--variant=minbase --include=ca-certificates" in text
    assert "debian:trixie-slim" in text.splitlines()[-1]


def test_no_base_image_to_be_had(places: Places, tmp_path: Path) -> None:
    command(tmp_path, "docker", "exit 1")
    command(tmp_path, "mmdebstrap", "echo no mirror >&2; exit 1")
    with pytest.raises(MissingError, match=r"cannot get debian:trixie-slim.*no mirror"):
        machine.install_base_image(places, lambda _text: None)


# -- running programs ----------------------------------------------------------------------


def test_a_failing_program_is_named_with_its_last_lines() -> None:
    with pytest.raises(process.CommandFailedError, match=r"^sh failed \(exit 3\): b; c; d$"):
        process.run(["sh", "-c", "printf 'a\\nb\\n\\033[1mc\\nd\\n' >&2; exit 3"])


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(MissingError, match="cannot run nonesuch"):
        process.run(["nonesuch"])


def test_a_program_that_takes_too_long() -> None:
    started = time.monotonic()
    with pytest.raises(process.CommandFailedError, match=r"sleep did not end within 0\.2 s"):
        process.run(["sleep", "5"], timeout=0.2)
    assert time.monotonic() - started < 3


def test_output_never_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert process.run(["sh", "-c", "echo out; echo err >&2; cat"]).stdout == "out\n"
    assert capfd.readouterr() == ("", "")


def test_input_and_environment_are_given() -> None:
    done = process.run(["sh", "-c", "cat; echo $A"], stdin="in ", env={"A": "b"})
    assert done.stdout == "in b\n"


def test_shell_scripts_parse() -> None:
    for name in (".ci/run", "tools/venv"):
        subprocess.run(["bash", "-n", REPOSITORY / name], check=True)
