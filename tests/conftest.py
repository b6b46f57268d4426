"""Shared by all tests: one thread a process, and the real data where they are at hand."""

import os
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
