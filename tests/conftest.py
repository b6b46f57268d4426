"""Shared by all tests: one thread a process, and the real data where they are at hand."""

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data sets that ``ZOO_TEST_DATA`` names."""
    folder = os.environ.get("ZOO_TEST_DATA")
    if folder is None:
        pytest.skip("ZOO_TEST_DATA is not set: tests on real data files beyond the bundled ones are skipped")
    return Path(folder)


@pytest.fixture(autouse=True)
def meeting_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's ranks meet at a port of its own.

    Lightning keeps the first that it finds for as long as a process lives. That one is from the range of outgoing
    connections, so that another worker's may sit on it by the time of a later test: "address already in use".
    """
    for port in random.SystemRandom().sample(range(10_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:  # nobody listens there
                monkeypatch.setenv("MASTER_PORT", str(port))
                return


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Lets this process pass for one rank of several, to all that ask ``torch.distributed`` for rank and world size."""

    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)

    return become
