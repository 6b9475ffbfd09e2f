"""What lies in the bucket beside pgBackRest's repository: encrypted, and signed as a whole.

Each object is a stream through `openssl enc` (AES-256, a key of its own derived from the
repository's passphrase), so that it can be read without this toolkit. The manifest names each
object's length and SHA-256 and carries an HMAC: who can write the bucket, but does not know the
passphrase, cannot make anybody run his SQL.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import IO, Any, BinaryIO

from elsapg.errors import UnhealthyError

OPENSSL = ("openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-md", "sha256")
_CHUNK = 1024 * 1024


class SealError(UnhealthyError):
    """Something is not what the manifest says, or the passphrase is another."""


def sign(manifest: Mapping[str, Any], passphrase: str) -> dict[str, Any]:
    """The manifest with its signature."""
    bare = {k: v for k, v in manifest.items() if k != "signature"}
    return {**bare, "signature": _signature(bare, passphrase)}


def check(manifest: Mapping[str, Any], passphrase: str, label: str) -> None:
    """Raise SealError unless the manifest was signed with this passphrase."""
    bare = {k: v for k, v in manifest.items() if k != "signature"}
    told = str(manifest.get("signature", ""))
    if not hmac.compare_digest(told, _signature(bare, passphrase)):
        raise SealError(
            f"the manifest of {label} was not signed with this stack's repository passphrase: "
            "it was changed, or is another stack's; nothing of it is used"
        )


def _signature(bare: Mapping[str, Any], passphrase: str) -> str:
    text = json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(b"elsapg manifest\0" + passphrase.encode(), text, hashlib.sha256).hexdigest()


class Counted:
    """A stream that counts and hashes what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def digest(stream: IO[bytes]) -> tuple[int, str]:
    """Length and SHA-256 of the rest of a stream."""
    counted = Counted(stream)
    while counted.read(_CHUNK):
        pass
    return counted.size, counted.sha256


@contextlib.contextmanager
def passphrase_pipe(passphrase: str) -> Iterator[int]:
    """A descriptor from which a child reads the passphrase: it stands in no argument, no file."""
    reading, writing = os.pipe()
    try:
        os.write(writing, passphrase.encode() + b"\n")
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


@contextlib.contextmanager
def encrypted(source: list[str], passphrase: str) -> Iterator[Counted]:
    """What the command `source` prints, encrypted. Raises SealError if either of the two fails."""
    with passphrase_pipe(passphrase) as secret:
        made = subprocess.Popen(source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        sealed = subprocess.Popen(
            [*OPENSSL, "-e", "-pass", f"fd:{secret}"],
            stdin=made.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(secret,),
        )
    assert made.stdout and sealed.stdout
    made.stdout.close()  # or `source` would not notice that openssl has gone
    try:
        yield Counted(sealed.stdout)
    except BaseException:
        sealed.kill()
        made.kill()
        raise
    finally:
        told = [_end(made), _end(sealed)]
    _judge((source[0], made, told[0]), ("openssl", sealed, told[1]))


def _end(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr
    text = process.stderr.read().decode(errors="replace")
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()
    return " ".join(text.split())[:300]


def decrypt(sealed: BinaryIO, passphrase: str, into: list[str]) -> None:
    """Feed the command `into` with what the file `sealed` holds. Raises SealError."""
    with passphrase_pipe(passphrase) as secret:
        opened = subprocess.Popen(
            [*OPENSSL, "-d", "-pass", f"fd:{secret}"],
            stdin=sealed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(secret,),
        )
    taken = subprocess.Popen(
        into, stdin=opened.stdout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert opened.stdout
    opened.stdout.close()
    told = [_end(opened), _end(taken)]
    _judge(("openssl", opened, told[0]), (into[0], taken, told[1]))


def _judge(*ended: tuple[str, subprocess.Popen[bytes], str]) -> None:
    for name, process, text in ended:
        if process.returncode:
            raise SealError(f"{name} failed ({process.returncode}): {text}")
