"""Shared by all tests: one thread a process, and the real data where they are at hand."""

import os
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


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Lets this process pass for one rank of several, to all that ask ``torch.distributed`` for rank and world size."""

    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)

    return become
