"""The shell scripts of the images, run as they are: `psql` is a stand-in that writes down."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elsapg.runner.gates import Gate, GateError, Pair, tls_context
from tests.unit.conftest import write_command
from tests.unit.test_gates import CA, STRANGER, write_pair

BIN = Path(__file__).resolve().parents[2] / "images" / "bin"


def eventually(found: Callable[[], object], seconds: float = 5) -> object:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return value


# -- reload-on-change ----------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A projected volume: its files are behind a link that is exchanged."""
    folder = tmp_path / "etc"
    (folder / "..one").mkdir(parents=True)
    (folder / "..two").mkdir()
    (folder / "..data").symlink_to("..one")
    return folder


def exchange(folder: Path, to: str) -> None:
    (folder / "..new").symlink_to(to)
    (folder / "..new").replace(folder / "..data")


@contextlib.contextmanager
def reloading(config: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [BIN / "reload-on-change", "HUP", "--", "sh", "-c", script],
        env={**os.environ, "ELSAPG_CONFIG_DIR": str(config), "ELSAPG_LOOK_EVERY_S": "0.1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


SERVICE = "trap 'echo reloaded' HUP; echo up $$; while :; do sleep 0.05; done"


def test_a_change_of_files_reloads_and_nothing_else_does(config: Path) -> None:
    with reloading(config, SERVICE) as process:
        assert process.stdout is not None
        # The command has taken the place of what started it.
        assert process.stdout.readline() == f"up {process.pid}\n"
        time.sleep(0.5)
        exchange(config, "..two")
        # Twice: the first signal finds a command that still starts without a handler.
        assert process.stdout.readline() == "reloaded\n"
        assert process.stdout.readline() == "reloaded\n"
        time.sleep(0.5)
        process.terminate()
        process.wait(5)
        # The watcher holds the pipe as well: its end is the watcher's end.
        assert process.stdout.read() == ""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_reach_the_command_itself(config: Path, name: str) -> None:
    script = "trap 'exit 7' TERM INT; echo up; while :; do sleep 0.05; done"
    with reloading(config, script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.Signals[name])
        assert process.wait(5) == 7


def test_its_end_is_the_commands_and_the_watcher_goes_too(config: Path) -> None:
    with reloading(config, "echo up; exit 3") as process:
        assert process.wait(5) == 3
        assert process.stdout is not None
        assert process.stdout.read() == "up\n"


def test_wrong_words_are_refused() -> None:
    done = subprocess.run(
        [BIN / "reload-on-change", "HUP", "true"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr[:6]) == (64, "usage:")


# -- alone ---------------------------------------------------------------------------------


def _alone(file: Path, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BIN / "alone", file, "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def first(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Whoever has the file; it ends with the test at the latest."""
    process = _alone(tmp_path / "in-use", "echo up; exec sleep 60")
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_waits_for_the_end_of_the_first(
    tmp_path: Path, first: subprocess.Popen[str]
) -> None:
    """Whatever ends it: the lock is the command's own."""
    second = _alone(tmp_path / "in-use", "echo up $$")
    assert second.stdout is not None
    assert "still has" in second.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    first.kill()
    # It has taken the place of what started it.
    assert second.stdout.readline() == f"up {second.pid}\n"
    assert second.wait(5) == 0


@pytest.mark.usefixtures("first")
def test_who_waits_can_be_stopped(tmp_path: Path) -> None:
    second = _alone(tmp_path / "in-use", "echo never")
    assert second.stdout is not None
    second.stdout.readline()
    second.terminate()
    assert second.wait(5) == 143
    assert second.stdout.read() == ""


# -- no-orphans ----------------------------------------------------------------------------


def test_what_outlives_its_postmaster_is_killed() -> None:
    """A part of a server whose parent process 1 is; not the server itself, nor anything else."""
    script = (
        "bash -c 'exec -a \"postgres: elsa: launcher\" sleep 60' & orphan=$!;"
        "bash -c 'exec -a \"postgres -D data\" sleep 60' & server=$!;"
        "wait $orphan; echo ended $?; kill $server; wait $server; echo ended $?"
    )
    with _watched("bash", "-c", script) as process:
        assert process.stdout is not None
        process.wait(20)
        told, killed, stopped = process.stdout.read().splitlines()
    assert "postgres: elsa: launcher" in told and "outlived its postmaster" in told
    assert (killed, stopped) == ("ended 137", "ended 143")


def _watched(*command: str) -> subprocess.Popen[str]:
    env = {**os.environ, "ELSAPG_LOOK_EVERY_S": "0.2"}
    words = [BIN / "no-orphans", *command]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)


def test_the_command_has_its_place() -> None:
    with _watched("sh", "-c", "echo $$; exit 7") as process:
        assert process.wait(20) == 7
        assert process.stdout is not None
        assert process.stdout.read() == f"{process.pid}\n"


# -- pool-gate -----------------------------------------------------------------------------


@pytest.fixture
def psql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of what `psql` was asked; `wrong-primary` and `busy` beside it make it fail."""
    log = tmp_path / "asked"
    log.touch()
    write_command(
        tmp_path / "bin" / "psql",
        f"""
        for word; do last=$word; done
        case "$*" in
        *host=primary*)
          echo primary >>{log}
          [ ! -e {tmp_path}/wrong-primary ] || exit 2 ;;
        *)
          echo "$last" >>{log}
          if [ "$last" = "SHOW CLIENTS" ]; then cat {tmp_path}/clients || exit 2; fi
          if [ "$last" = PAUSE ] && [ -e {tmp_path}/busy ]; then echo "still busy"; exit 1; fi ;;
        esac""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{BIN}:{os.environ['PATH']}")
    monkeypatch.delenv("ELSAPG_AWAIT_PRIMARY", raising=False)
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("ELSAPG_RUN_DIR", str(tmp_path / "run"))
    return log


@contextlib.contextmanager
def pool_gate(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [BIN / "pool-gate", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(5)


def converse(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def asked(log: Path) -> list[str]:
    return log.read_text().split()


def test_a_pool_is_paused_and_resumed(psql: Path) -> None:
    with pool_gate() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert converse(process, "pause") == "paused"
        assert asked(psql) == ["PAUSE"]
        assert converse(process, "resume") == "resumed"
        assert process.wait(5) == 0
    assert asked(psql) == ["PAUSE", "RESUME"]


@pytest.mark.parametrize("how", ["the caller's end", "the deadline", "a signal"])
def test_a_pool_never_stays_paused(psql: Path, how: str) -> None:
    with pool_gate("1" if how == "the deadline" else "30") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        assert converse(process, "pause") == "paused"
        if how == "the caller's end":
            process.stdin.close()
        elif how == "a signal":
            process.terminate()
            process.stdin.close()
        eventually(lambda: asked(psql) == ["PAUSE", "RESUME"])


def test_a_pool_that_is_busy_is_not_held(psql: Path) -> None:
    (psql.parent / "busy").touch()
    with pool_gate() as process:
        process.stdout.readline()  # type: ignore[union-attr]
        assert converse(process, "pause") == "refused: still busy"
        assert process.wait(5) == 1
    assert asked(psql) == ["PAUSE", "RESUME"]


def test_a_pool_waits_for_its_own_way_to_the_primary(
    psql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSAPG_AWAIT_PRIMARY", "1")
    wrong = psql.parent / "wrong-primary"
    wrong.touch()
    with pool_gate("30") as process:
        process.stdout.readline()  # type: ignore[union-attr]
        converse(process, "pause")
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("resume\n")
        process.stdin.flush()
        eventually(lambda: asked(psql).count("primary") > 2)
        assert "RESUME" not in asked(psql)
        wrong.unlink()
        assert process.stdout.readline() == "resumed\n"
    assert asked(psql)[-2:] == ["primary", "RESUME"]


def test_a_primary_that_never_comes_is_not_waited_for_long(
    psql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSAPG_AWAIT_PRIMARY", "1")
    (psql.parent / "wrong-primary").touch()
    with pool_gate("30") as process:
        process.stdout.readline()  # type: ignore[union-attr]
        converse(process, "pause")
        start = time.monotonic()
        assert converse(process, "resume") == "resumed"
        assert 3 < time.monotonic() - start < 8
    assert asked(psql)[-1] == "RESUME"


# -- pool-leave ----------------------------------------------------------------------------

# A process 1 of its own, as a container has it, that says how it was told to end.
AS_PID_1 = (
    "unshare",
    "--user",
    "--map-root-user",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
POOL = "trap 'echo ended; exit 0' INT; {leave} & while :; do sleep 0.05; done"


@contextlib.contextmanager
def leaving(container: str, stay_s: int = 0) -> Iterator[subprocess.Popen[str]]:
    """`pool-leave` beside a process 1 that ends when it is asked to."""
    script = POOL.format(leave=f"{BIN / 'pool-leave'} {container} {stay_s}")
    process = subprocess.Popen(
        [*AS_PID_1, "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ELSAPG_KNOWN_AFTER_S": "0.2"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(5)


def test_a_pool_ends_when_it_leaves(psql: Path) -> None:
    with leaving("pgbouncer") as process:
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "ended\n"


def test_a_pool_that_is_held_does_not_leave(psql: Path) -> None:
    """Those who wait in it would be dropped."""
    run = psql.parent / "run"
    with pool_gate("30") as gate:
        gate.stdout.readline()  # type: ignore[union-attr]
        assert converse(gate, "pause") == "paused"
        assert list(run.iterdir())
        with leaving("pgbouncer") as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.5)
            assert converse(gate, "resume") == "resumed"
            assert process.wait(10) == 0
    assert not list(run.iterdir())


def test_a_pool_stays_for_the_clients_that_it_has(psql: Path) -> None:
    """The console's own user is none of them; they have gone, or the time has."""
    clients = psql.parent / "clients"
    clients.write_text("C|elsa_app|elsa_workflows|active\nC|pgbouncer|pgbouncer|active\n")
    with leaving("pgbouncer", 30) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
        clients.write_text("C|pgbouncer|pgbouncer|active\n")
        assert process.wait(10) == 0
    clients.unlink()  # it does not answer: there may be some
    with leaving("pgbouncer", 3) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "ended\n"


@pytest.mark.parametrize("container", ["gate", "readers"])
def test_what_is_beside_a_pool_stays_until_that_has_gone(psql: Path, container: str) -> None:
    where = psql.parent / "run" / ".s.PGSQL.6432"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(where))
    with subprocess.Popen([BIN / "pool-leave", container]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        where.unlink()
        assert process.wait(5) == 0


# -- readers -------------------------------------------------------------------------------


def test_readers_without_a_domain_say_what_is_missing(tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 10.96.0.10\n")
    done = subprocess.run(
        [BIN / "readers"],
        env={**os.environ, "ELSAPG_RESOLV_CONF": str(resolver)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert "no search domain" in done.stderr and "dnsPolicy ClusterFirst" in done.stderr


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`readers` as its container runs it; what stands in for HAProxy tells its number and its
    signals, and as HAProxy's master waits for all its children at its end."""
    write_command(
        tmp_path / "bin" / "haproxy",
        "trap 'echo reloaded' USR2\n"
        "trap 'echo ended; kill $child; wait; exit 143' TERM\n"
        "sleep 60 & child=$!\n"
        'echo "began $ELSAPG_DOMAIN $*"\n'
        "while kill -0 $child 2>/dev/null; do wait $child; done\n",
    )
    (tmp_path / "resolv.conf").write_text("search ns.svc.some.domain svc.some.domain\n")
    process = subprocess.Popen(
        [BIN / "reload-on-change", "USR2", "--", BIN / "readers"],
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "ELSAPG_CONFIG_DIR": str(tmp_path),
            "ELSAPG_RESOLV_CONF": str(tmp_path / "resolv.conf"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == (
        f"began ns.svc.some.domain -W -db -f {tmp_path}/readers.cfg\n"
    )
    # It waits for what it has started.
    eventually(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "S")
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _haproxy(process: subprocess.Popen[str]) -> int:
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "haproxy"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(listed.stdout)


def test_readers_reload_and_end(readers: subprocess.Popen[str]) -> None:
    assert readers.stdout
    readers.send_signal(signal.SIGUSR2)
    assert readers.stdout.readline() == "reloaded\n"
    readers.send_signal(signal.SIGTERM)
    assert readers.stdout.readline() == "ended\n"
    assert readers.wait(10) == 0


def test_readers_that_end_by_themselves_begin_again(readers: subprocess.Popen[str]) -> None:
    """The pool's pod is not to become unready for them."""
    assert readers.stdout
    os.kill(_haproxy(readers), signal.SIGKILL)
    assert readers.stdout.readline().startswith("began ns.svc.some.domain ")
    readers.send_signal(signal.SIGTERM)
    assert readers.stdout.readline() == "ended\n"
    assert readers.wait(10) == 0


# -- all-files -----------------------------------------------------------------------------


def test_a_pool_may_open_what_the_machine_allows() -> None:
    script = 'ulimit -Sn 300; exec "$0" sh -c "ulimit -Sn; ulimit -Hn"'
    done = subprocess.run(
        ["sh", "-c", script, BIN / "all-files"], capture_output=True, text=True, check=True
    )
    soft, hard = done.stdout.split()
    assert soft == hard != "300"


# -- gate ----------------------------------------------------------------------------------

needs_socat = pytest.mark.skipif(not shutil.which("socat"), reason="socat is not on this machine")


@contextlib.contextmanager
def gate(folder: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [BIN / "gate", str(port)],
        env={**os.environ, "ELSAPG_CONFIG_DIR": str(folder)},
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        eventually(lambda: listens(port))
        yield port, process
    finally:
        process.terminate()
        process.wait(5)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture
def pooler(tmp_path: Path) -> Path:
    write_pair(tmp_path / "pooler" / "tls", "pgbouncer", ["pgbouncer"])
    return tmp_path / "pooler"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    write_pair(tmp_path / "node", "pg", ["pg-1"], client=True)
    return tmp_path / "node"


@needs_socat
def test_a_node_holds_a_pool_through_the_gate(psql: Path, pooler: Path, node: Path) -> None:
    with gate(pooler) as (port, _):
        # What a killed predecessor had paused.
        assert asked(psql) == ["RESUME"]
        connection = Gate(("127.0.0.1", port), tls_context(Pair.of_node(node)))
        connection.expect("ready", 5)
        connection.ask("pause", "paused", 5)
        assert asked(psql) == ["RESUME", "PAUSE"]
        connection.ask("resume", "resumed", 5)
        connection.close()
    assert asked(psql) == ["RESUME", "PAUSE", "RESUME"]


@needs_socat
def test_a_gate_that_was_killed_does_not_keep_its_pool(psql: Path, pooler: Path) -> None:
    """SIGKILL runs no trap: pool-leave would wait for it, until the pod's grace is over."""
    (Path(os.environ["ELSAPG_RUN_DIR"]) / "held.17").touch()
    with gate(pooler):
        pass
    assert not (Path(os.environ["ELSAPG_RUN_DIR"]) / "held.17").exists()


@needs_socat
def test_a_node_that_is_gone_holds_nothing(psql: Path, pooler: Path, node: Path) -> None:
    with gate(pooler) as (port, _):
        connection = Gate(("127.0.0.1", port), tls_context(Pair.of_node(node)))
        connection.expect("ready", 5)
        connection.ask("pause", "paused", 5)
        connection.close()
        eventually(lambda: asked(psql) == ["RESUME", "PAUSE", "RESUME"])


@needs_socat
@pytest.mark.parametrize("who", ["nobody", "a stranger", "a server", "an old client"])
def test_nobody_else_gets_in(psql: Path, pooler: Path, tmp_path: Path, who: str) -> None:
    context = ssl.create_default_context(cadata=CA["certificate"])
    folder = tmp_path / "who"
    match who:
        case "a stranger":
            write_pair(folder, "pg", ["pg-1"], STRANGER, client=True)
        case "a server":
            write_pair(folder, "s3", ["s3"])
        case "an old client":
            write_pair(folder, "pg", ["pg-1"], client=True)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
    if folder.exists():
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
    # TLS 1.3 tells a client only with its first answer that it is refused.
    with gate(pooler) as (port, _), pytest.raises((OSError, GateError)):
        connection = Gate(("127.0.0.1", port), context)
        connection.expect("ready", 5)
    assert "PAUSE" not in asked(psql)


@needs_socat
def test_new_certificates_are_served_and_sessions_go_on(
    psql: Path, pooler: Path, node: Path
) -> None:
    def served(port: int) -> bytes:
        connection = Gate(("127.0.0.1", port), tls_context(Pair.of_node(node)))
        found = connection._connection.getpeercert(binary_form=True)
        connection.close()
        assert found
        return found

    with gate(pooler) as (port, process):
        before = served(port)
        held = Gate(("127.0.0.1", port), tls_context(Pair.of_node(node)))
        held.expect("ready", 5)
        held.ask("pause", "paused", 5)
        write_pair(pooler / "tls", "pgbouncer", ["pgbouncer"])
        process.send_signal(signal.SIGHUP)

        def renewed() -> bool:
            with contextlib.suppress(OSError):
                return served(port) != before
            return False

        eventually(renewed)
        held.ask("resume", "resumed", 5)
        held.close()
        assert process.poll() is None


@needs_socat
def test_a_gate_that_cannot_listen_ends(psql: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "gate", "6500"],
        env={**os.environ, "ELSAPG_CONFIG_DIR": str(tmp_path / "nothing")},
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.returncode != 0
