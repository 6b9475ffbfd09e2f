"""SCRAM-SHA-256 verifiers, computed here so that no clear-text password reaches a server.

PostgreSQL stores `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (RFC 5803) and takes
such a string as it is in `ALTER ROLE … PASSWORD`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import string

# PostgreSQL's default. The passwords are generated (far more than 100 bits), so a higher count
# would only slow every login.
ITERATIONS = 4096
_SALT_BYTES = 16
_VERIFIER = re.compile(
    r"SCRAM-SHA-256\$(?P<iterations>[1-9][0-9]{0,8}):(?P<salt>[A-Za-z0-9+/=]+)"
    r"\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+"
)
_PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")


def is_supported(password: str) -> bool:
    """Whether SASLprep leaves the password as it is: printable ASCII, and not empty."""
    return bool(password) and set(password) <= _PRINTABLE


def verifier(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The string that PostgreSQL stores for `password`; a fresh random salt unless one is given."""
    if not is_supported(password):
        raise ValueError("a password must be printable ASCII and not empty")
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")

    def encode(value: bytes) -> str:
        return base64.b64encode(value).decode("ascii")

    return f"SCRAM-SHA-256${iterations}:{encode(salt)}${encode(stored_key)}:{encode(server_key)}"


def matches(password: str, stored: str | None) -> bool:
    """Whether `stored` (a `rolpassword`) is this password's verifier, under its own salt."""
    found = _VERIFIER.fullmatch(stored or "")
    if found is None or stored is None:
        return False
    try:
        salt = base64.b64decode(found["salt"], validate=True)
    except ValueError:
        return False
    again = verifier(password, salt=salt, iterations=int(found["iterations"]))
    return hmac.compare_digest(again, stored)
