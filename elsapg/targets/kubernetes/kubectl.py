"""The one place that runs `kubectl`: whose cluster, which namespace, and errors a person can use.

Which cluster is kubectl's own affair (KUBECONFIG, ~/.kube/config, or the pod that it runs in); the
stack's file may name a context of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from elsapg import process
from elsapg.errors import (
    DeploymentError,
    ElsapgError,
    MissingError,
    NotDeployedError,
    UnhealthyError,
)
from elsapg.targets.hosts import NEVER_STARTED, started

ANSWERS_WITHIN_S = 20
# kubectl's last words when the command inside a pod ended with another code than 0.
_ENDED = re.compile(r"^command terminated with exit code \d+\s*\Z", re.MULTILINE)
# And what it says of its own connection, in the form of its log, whatever becomes of the command.
_ASIDE = re.compile(r"^[EWI]\d{4} \d\d:\d\d:\d\d\.\d+ .*\n?", re.MULTILINE)
# A connection that breaks while a command runs ends kubectl with 0 and what came until then
# (kubectl 1208, kubernetes 124571): the last word has to come from inside.
TO_ITS_END = ("sh", "-c", '"$@"; code=$?; printf "\\036%d" "$code"; exit "$code"', "sh")
_LAST = re.compile(r"\x1e(\d+)\Z")

# Ends the command when our end of the pipe is closed: also when we are killed.
_TIED = """
"$@" </dev/null &
child=$!
exec >/dev/null 2>&1
cat
kill "$child"
"""


class Follower:
    """What a `kubectl` that goes on prints."""

    def __init__(self, process_: subprocess.Popen[str]) -> None:
        self._process = process_
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._over = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
        self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        return self._over.wait(seconds)

    def line(self, patience: float | None) -> str | None:
        """The next line; None at the end. Raises TimeoutError after `patience` seconds."""
        try:
            return self._lines.get(timeout=None if patience is None else max(0.0, patience))
        except queue.Empty:
            raise TimeoutError from None

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# By websockets kubectl (seen with 1.32) drops what a command says before it is ready to hear it
# ("Unknown stream id 1, discarding message"): a whole answer may be lost. The older way loses none.
ENVIRONMENT = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"}


class Kubectl:
    """`kubectl` for one stack's namespace."""

    def __init__(self, stack: str, namespace: str, context: str | None = None) -> None:
        self.stack = stack
        self.namespace = namespace
        self.context = context

    def words(self, *words: str) -> list[str]:
        """A whole command line. Raises MissingError without kubectl."""
        found = process.find("kubectl")
        if found is None:
            raise MissingError(
                "kubectl is not on PATH: install it (it may be one minor version older or newer "
                "than the cluster)"
            )
        return [str(found), *self._where(), *words]

    def _where(self) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return [*context, f"--namespace={self.namespace}"]

    def line(self, *words: str) -> str:
        """What a person types."""
        context = ["--context", self.context] if self.context else []
        return shlex.join(["kubectl", *context, "-n", self.namespace, *words])

    def run(self, *words: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run it and return its standard output. Raises an ElsapgError that says the way out."""
        limit = f"--request-timeout={ANSWERS_WITHIN_S}s"
        return self._run([limit, *words], stdin, timeout).stdout

    def ask(self, *words: str) -> process.Completed:
        """As `run`, where a failure is an answer as well."""
        return self._run([f"--request-timeout={ANSWERS_WITHIN_S}s", *words], None, 60, check=False)

    def json(self, *words: str) -> Any:
        """What `get` and the like answer, parsed."""
        return json.loads(self.run(*words, "--output=json"))

    def inside(
        self, pod: str, container: str, command: tuple[str, ...], timeout: float
    ) -> process.Completed:
        """Run a command in a container; its exit code is its own.

        Raises NotDeployedError when there is no such container, or it does not run;
        UnhealthyError when its output does not come to its end.
        """
        words = ["exec", pod, f"--container={container}", "--", *TO_ITS_END, *command]
        done = started(
            lambda: self._run(words, None, timeout, check=False),
            lambda done: not done.stdout and bool(NEVER_STARTED.search(done.stderr)),
        )
        stderr = _ASIDE.sub("", done.stderr)
        ended = _ENDED.search(stderr)
        told = stderr[: ended.start()] if ended else stderr
        if whole := _LAST.search(done.stdout):
            stdout = done.stdout[: whole.start()]
            return process.Completed(done.command, int(whole[1]), stdout, told)
        if done.code == 0:
            raise UnhealthyError(
                f"{pod}: the connection to `{shlex.join(command)[:200]}` broke off, and it may "
                "have done its work: run the same command again"
            )
        if ended is None:
            # Not the command failed, but kubectl.
            raise self.explain(done.stderr)
        return process.Completed(done.command, done.code, done.stdout, told)

    def start(self, *words: str, **pipes: Any) -> subprocess.Popen[str]:
        """Start it, for what goes on: a conversation, a watch, a forwarded port."""
        env = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen(self.words(*words), env=env, text=True, bufsize=1, **pipes)

    @contextlib.contextmanager
    def follow(self, *words: str, complaints: bool = False) -> Iterator[Follower]:
        """Start it and read what it prints (with its `complaints`, or without), line by line.

        It ends with this block, and with this process, however that ends. Ctrl-C is not for it: in
        a session of psql, say, it only ends a query.
        """
        process_ = subprocess.Popen(
            ["sh", "-c", _TIED, "sh", *self.words(*words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if complaints else subprocess.DEVNULL,
            process_group=0,
            env={**os.environ, **ENVIRONMENT},
            text=True,
            bufsize=1,
        )
        follower = Follower(process_)
        try:
            yield follower
        finally:
            follower.end()

    def _run(
        self, words: list[str], stdin: str | None, timeout: float, check: bool = True
    ) -> process.Completed:
        doing = next(word for word in words if not word.startswith("-"))
        try:
            done = process.run(
                self.words(*words), env=ENVIRONMENT, stdin=stdin, timeout=timeout, check=False
            )
        except process.CommandFailedError:
            # All other ends are for us to judge: it was not in time.
            raise UnhealthyError(
                f"kubectl {doing} did not end within {timeout:g} s: "
                f"`elsapg doctor --stack {self.stack}` looks at the cluster"
            ) from None
        if check and done.code != 0:
            raise self.explain(done.stderr or done.stdout)
        return done

    def explain(self, stderr: str) -> ElsapgError:
        """kubectl's complaint as one sentence, with the way out."""
        printable = process.printable(stderr)
        # Its libraries' log says the same several times over before kubectl says it in words.
        text = " ".join((_ASIDE.sub("", printable) or printable).split())
        where = f"the cluster of context {self.context!r}" if self.context else "the cluster"
        told = text.removeprefix("error: ").removeprefix("Error from server ")[:300]
        for pattern, error, way_out in _KNOWN:
            if re.search(pattern, text, re.IGNORECASE):
                return error(
                    way_out.format(
                        told=told, where=where, namespace=self.namespace, stack=self.stack
                    )
                )
        return DeploymentError(f"kubectl: {told or 'it ended without a message'}")


_REACH = "set KUBECONFIG, or elsapg:kubernetes.context in the stack's file"
_KNOWN: tuple[tuple[str, type[ElsapgError], str], ...] = (
    (
        r"error dialing backend",
        NotDeployedError,
        "the machine that the pod is on does not answer ({told}): `kubectl get nodes` says which",
    ),
    (
        r"context .*does not exist|no context exists",
        MissingError,
        "{told}: `kubectl config get-contexts` lists what there is; " + _REACH,
    ),
    (
        r"localhost:8080|no configuration has been provided|invalid configuration"
        r"|error loading config file",
        MissingError,
        "kubectl knows no cluster ({told}): " + _REACH,
    ),
    (
        r"unauthorized|must be logged in|provide credentials|getting credentials",
        MissingError,
        "{where} does not know who you are ({told}): log in to it again, or " + _REACH,
    ),
    (
        r"\(forbidden\)|\bforbidden\b",
        MissingError,
        "{where} does not allow it: {told}; ask its administrator for that right in namespace "
        "{namespace}",
    ),
    (
        r"namespaces? .*not found",
        NotDeployedError,
        "namespace {namespace!r} does not exist in {where}: stack {stack!r} is not deployed there; "
        "`elsapg up --stack {stack}`, or apply its manifests",
    ),
    (
        r"unable to connect to the server|connection refused|was refused|i/o timeout"
        r"|no such host|tls handshake timeout|no route to host|deadline exceeded|x509:",
        MissingError,
        "{where} does not answer ({told}): `elsapg doctor --stack {stack}` looks closer",
    ),
    (
        r"\(notfound\)|container not found|is not valid for pod|does not have a host assigned"
        r"|container .*(not running|is waiting|not created)|cannot exec .*(completed|stopped)"
        r"|unable to upgrade connection",
        NotDeployedError,
        "{told}: `elsapg status --stack {stack}` says what runs",
    ),
)
