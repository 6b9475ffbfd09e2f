"""Secrets that are always the same, and say what they are; what pgBackRest tells of a backup."""

from __future__ import annotations

from typing import Any

from elsapg.definition.secrets import PASSWORD_ROLES, KeyPair, Secrets, certificate_names
from elsapg.settings import Settings


def fake_secrets(settings: Settings) -> Secrets:
    """One distinct marker per secret, so that a test can say which one stands where."""
    return Secrets(
        ca="CA-CERTIFICATE\n",
        key_pairs={
            name: KeyPair(f"CERTIFICATE-{name}\n", f"PRIVATE-KEY-{name}\n")
            for name in certificate_names(settings)
        },
        passwords={role: f"PASSWORD-{role}" for role in PASSWORD_ROLES},
        s3_access_key="S3-ACCESS-KEY",
        s3_secret_key="S3-SECRET-KEY",
        repository_cipher="REPOSITORY-CIPHER",
    )


def backup_told(
    label: str, segment: int = 3, *, timeline: int = 1, repository: int = 1
) -> dict[str, Any]:
    """A backup as pgBackRest's `info` has it; it began and ended within a segment."""
    name = f"{timeline:08X}{0:08X}{segment:08X}"
    return {
        "label": label,
        "type": "full",
        "archive": {"start": name, "stop": name},
        "database": {"id": 1, "repo-key": repository},
        "lsn": {"start": f"0/{segment:X}000028", "stop": f"0/{segment:X}000100"},
        "timestamp": {"start": 1, "stop": 2},
    }
