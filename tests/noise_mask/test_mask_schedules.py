"""Schedules against torch's own schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from zoo.noise_mask import Cosine, Schedule, StepDecay, Warmup


def rates(make: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    seen = []
    for _ in range(90):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def warm(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.LinearLR(optimizer, 0.01, total_iters=7), lr_scheduler.StepLR(optimizer, 30)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[7])


@pytest.mark.filterwarnings("ignore:.*epoch parameter.*")
@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (StepDecay(30, 0.1), lambda o: lr_scheduler.StepLR(o, 30, 0.1)),
        (Cosine(90), lambda o: lr_scheduler.CosineAnnealingLR(o, 90)),
        (Warmup(7, 0.01, StepDecay(30)), warm),
    ],
)
def test_factors_are_those_of_the_official_schedules(schedule: Schedule, reference: object) -> None:
    assert [schedule(epoch) for epoch in range(90)] == pytest.approx(rates(reference), abs=1e-9)


def test_cosine_stays_at_zero() -> None:
    assert Cosine(10)(10) == Cosine(10)(25) == 0


@pytest.mark.parametrize("make", [lambda: StepDecay(0), lambda: Cosine(0), lambda: Warmup(0)])
def test_no_epochs_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="=0: must be at least 1"):
        make()  # type: ignore[operator]
