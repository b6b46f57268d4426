"""What noise masks cost: milliseconds of a training step under masks and of plain training, as Markdown.

    python benchmarks/noise_mask.py     # resnet18 at 64 px on the CPU, and ResNet-50 at 224 px where there is a GPU

The classifier is the same on all sides. Steps of all sides take turns, so that a busy machine slows them alike; a
step is forward, backward and optimiser, without loading data. Each ratio is of medians.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch

from zoo.startup import light_imports

with light_imports():
    from datamodules.batches import ImageBatch
    from zoo.nn import TimmBackbone, TorchvisionResNet
    from zoo.noise_mask import ImageClassifier, MaskPolicy, NoiseMask, NoiseMaskHeating


def sides(name: str, size: int, classes: int, mask: Callable[[], NoiseMask]) -> dict[str, ImageClassifier]:
    """The same classifier under plain training, random masks, the official policy and one on smaller images."""
    heating = partial(NoiseMaskHeating, num_classes=classes)

    def policy(cells: int, input_size: int | None) -> MaskPolicy:
        return MaskPolicy(cells, TimmBackbone("resnet10t"), input_size)

    def backbone() -> TorchvisionResNet:
        return TorchvisionResNet(name)  # type: ignore[arg-type]

    return {
        "plain training": ImageClassifier(backbone(), classes),
        "random masks": heating(backbone(), mask=mask(), policy=None),
        f"policy on {size // 2} px": heating(backbone(), mask=mask(), policy=partial(policy, input_size=size // 2)),
        f"policy on {size} px": heating(backbone(), mask=mask(), policy=partial(policy, input_size=None)),
    }


def stepper(module: Any, batch: ImageBatch, device: str, precision: str) -> Callable[[], float]:
    """One training step, timed in milliseconds."""
    module = module.to(device).train()
    module.log = lambda *_, **__: None
    (optimizer,), _ = module.configure_optimizers()

    def step() -> float:
        start = perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = module.training_step(batch, 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (perf_counter() - start)

    return step


def measure(
    name: str, size: int, batch_size: int, mask: Callable[[], NoiseMask], device: str, precision: str, steps: int
) -> None:
    classes = 10
    torch.manual_seed(0)
    image = torch.randn(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    batch = ImageBatch(image, torch.randint(classes, (batch_size,), device=device))
    timed = {side: stepper(m, batch, device, precision) for side, m in sides(name, size, classes, mask).items()}
    figures: dict[str, list[float]] = {side: [] for side in timed}
    for index in range(steps + 3):
        for side, step in timed.items():
            milliseconds = step()
            if index >= 3:  # the first ones warm up
                figures[side].append(milliseconds)
    plain = statistics.median(figures["plain training"])
    for side, values in figures.items():
        median = statistics.median(values)
        what = f"{name}, {size} px, {batch_size} images, {device}, {precision}"
        print(f"| {what} | {side} | {median:.4g} ({min(values):.4g}-{max(values):.4g}) | {median / plain:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each side on the CPU (GPU: four times)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"`python benchmarks/noise_mask.py {' '.join(sys.argv[1:])}`: {os.cpu_count()} CPUs ({platform.machine()}),")
    print(f"{args.threads} thread(s), torch {torch.__version__}; medians (min-max).\n")
    print("| what | side | ms per step | ratio to plain |\n| --- | --- | --- | --- |")
    measure("resnet18", 64, 32, lambda: NoiseMask(16, 5, 2.0), "cpu", "float32", args.steps)
    if torch.cuda.is_available():
        for precision in ("float32", "bf16"):
            measure("resnet50", 224, 64, NoiseMask, "cuda", precision, 4 * args.steps)


if __name__ == "__main__":
    main()
