"""Certificates are renewed on the running stack, and no client notices.

The window itself is judged in tests/unit/test_pki.py. Here the CA's validity changes, which
renews the CA, and with it every certificate that it has signed: all that a renewal can touch.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from cryptography import x509

from elsapg.definition import topology as t
from elsapg.services import connect
from tests.integration.target_stack import Target

pytestmark = pytest.mark.docker

# Run in the runner's container: it reaches every door.
SERVED = """
import json, socket, ssl, struct, sys
context = ssl.create_default_context(cafile="/etc/elsapg/tls/ca.crt")
context.load_cert_chain("/etc/elsapg/tls/backup.crt", "/etc/elsapg/tls/backup.key")
found = {}
for door in sys.argv[1:]:
    host, port = door.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        if port in ("5432", "6432"):
            plain.sendall(struct.pack("!II", 8, 80877103))
            assert plain.recv(1) == b"S", door
        with context.wrap_socket(plain, server_hostname=host) as tls:
            found[door] = ssl.DER_cert_to_PEM_cert(tls.getpeercert(True))
print(json.dumps(found))
"""


def served(target: Target) -> dict[str, x509.Certificate]:
    """The certificate that each door really serves, verified against the CA that peers have."""
    deployment = target.deployment
    nodes, poolers = deployment.nodes, deployment.poolers
    doors = [f"{node}:{port}" for node in nodes for port in (t.PG_PORT, t.PATRONI_PORT)]
    doors += [f"{t.agent_name(node)}:{t.AGENT_PORT}" for node in nodes]
    doors += [f"{pooler}:{t.POOL_PORT}" for pooler in poolers]
    doors += [f"etcd-1:{t.ETCD_PORT}", f"{t.S3_HOST}:{t.S3_PORT}"]
    done = deployment.hosts.run("runner", "python3", "-c", SERVED, *doors)
    assert done.code == 0, done.output
    pems = json.loads(done.output)
    return {door: x509.load_pem_x509_certificate(pem.encode()) for door, pem in pems.items()}


@contextmanager
def clients(uri: str) -> Iterator[tuple[list[str], Callable[[], int]]]:
    """Asks each 50 ms on a connection kept, and on a new one each half second."""
    failures: list[str] = []
    answers: list[int] = []
    stop = threading.Event()

    def attempt(work: Callable[[], None]) -> None:
        while not stop.is_set():
            try:
                work()
            except psycopg.Error as error:
                failures.append(f"{time.strftime('%H:%M:%S')} {' '.join(str(error).split())}")

    def kept() -> None:
        with psycopg.connect(uri, autocommit=True, connect_timeout=10) as db:
            while not stop.wait(0.05):
                db.execute("SELECT 1")
                answers.append(1)

    def fresh() -> None:
        with psycopg.connect(uri, autocommit=True, connect_timeout=10) as db:
            db.execute("SELECT 1")
        answers.append(1)
        stop.wait(0.5)

    threads = [threading.Thread(target=attempt, args=(work,)) for work in (kept, fresh)]
    for thread in threads:
        thread.start()
    try:
        yield failures, lambda: len(answers)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_all_are_renewed_while_a_verifying_client_works(target: Target, tmp_path: Path) -> None:
    target.wait_healthy()
    before, postmasters, ids = served(target), target.postmasters(), target.ids()
    # The client has the CA certificate of before, and is told nothing.
    old_ca = tmp_path / "old-ca.crt"
    old_ca.write_text(target.deployment.outputs["ca"])
    uri = f"{target.uri().partition('?')[0]}?sslmode=verify-full&sslrootcert={old_ca}"
    target.change("tls", ca_valid_days=3649)
    with clients(uri) as (failures, answered):
        output = target.up()
        # Poolers log in anew, with their new certificate, to a node that has one too.
        target.wait_healthy()
        time.sleep(2)
        assert answered() > 100
    assert not failures
    assert " replaced" not in output

    after = served(target)
    assert set(after) == set(before)
    renewed = {d for d in before if before[d].serial_number != after[d].serial_number}
    assert renewed == set(before)
    assert target.postmasters() == postmasters
    assert target.ids() == ids
    assert target.deployment.outputs["ca"] != old_ca.read_text()
    with psycopg.connect(connect.libpq(connect.connection(target.deployment, "elsa_app"))) as db:
        assert db.execute("SELECT 1").fetchone() == (1,)
    # Archiving goes on over the renewed connection to S3.
    leader = target.deployment.primary()
    target.deployment.query(leader, "SELECT pg_switch_wal()")
    target.deployment.runner("backup-info")
