"""Secrets that are always the same, and say what they are."""

from __future__ import annotations

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
