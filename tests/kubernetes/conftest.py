"""One cluster and one stack for all tests here; healthy before each, healed after each."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

from tests import said
from tests.chaos import proof
from tests.chaos.faults import Healthy
from tests.chaos.writes import Access, Report
from tests.kubernetes import binaries
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack, running_stack
from tests.stacks import ROOT

pytest_runtest_makereport = said.pytest_runtest_makereport


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    with mock.patch.dict(os.environ):  # what comes after in this process has its own again
        # Whoever has a kubectl keeps it; the one that was built with the cluster comes last.
        os.environ["PATH"] += os.pathsep + str(binaries.folder(ROOT) / "bin")
        with running_cluster(ROOT, print) as found:
            yield found


@pytest.fixture(scope="package")
def stack(cluster: Cluster) -> Iterator[Stack]:
    with running_stack(cluster, ROOT) as running:
        yield running


@pytest.fixture(scope="package")
def doors(stack: Stack) -> Iterator[Access]:
    with stack.doors() as found:
        yield found


@pytest.fixture
def faults(stack: Stack) -> KubernetesFaults:
    """Starts from a whole cluster, whatever the test before left."""
    found = KubernetesFaults(stack)
    found.wait_ready()
    return found


@pytest.fixture
def under_writes(doors: Access, faults: KubernetesFaults) -> Callable[..., tuple[Report, Healthy]]:
    """`proof.under_writes` on this stack."""

    return functools.partial(proof.under_writes, faults, doors)
