"""Two gloo processes that run a function each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch import multiprocessing as mp

Work = Callable[[int], object]


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[[Work], list[object]]:
    """Runs ``work(rank)`` in both processes; what it returns, by rank."""

    def start(work: Work) -> list[object]:
        mp.start_processes(_run, (work, tmp_path), nprocs=2, start_method="fork")
        return [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    return start


def _run(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()
