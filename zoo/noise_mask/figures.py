"""Pictures of masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6  # epochs shown
MOST_CLASSES = 24


class Snapshot(NamedTuple):
    """An image of an epoch's first batch: ``image`` and ``masked`` [C, H, W], ``mask`` [1, H, W]."""

    epoch: int
    image: Tensor
    mask: Tensor
    masked: Tensor


def wanted(epoch: int, epochs: int | None) -> bool:
    """Whether to keep a snapshot of ``epoch``: at most six, evenly over the ``epochs``, with the first and the last."""
    if epochs is None or epochs <= COLUMNS:
        return epoch < COLUMNS
    return epoch in {round(i * (epochs - 1) / (COLUMNS - 1)) for i in range(COLUMNS)}


def masks(snapshots: Sequence[Snapshot]) -> "Figure":
    """A column an epoch: image, mask and masked image. Images share their own range, masks run from 0 to 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * len(snapshots) + 0.5, 5.2), layout="constrained")
    axes = figure.subplots(3, len(snapshots), squeeze=False)
    for column, shot in zip(axes.T, snapshots, strict=True):
        low, high = min(shot.image.min(), shot.masked.min()), max(shot.image.max(), shot.masked.max())
        for ax, picture in zip(column, (shot.image, shot.mask, shot.masked), strict=True):
            if picture is not shot.mask:
                picture = (picture - low) / (high - low).clamp(min=1e-6)
            pixels = picture.float().permute(1, 2, 0)
            ax.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        column[0].set_title(f"epoch {shot.epoch}", fontsize=9)
    for ax, name in zip(axes[:, 0], ("image", "mask", "masked image"), strict=True):
        ax.set_ylabel(name)
    return figure


def class_masks(mean: Tensor, names: Sequence[str]) -> "Figure":
    """The mean of the cells' distributions [K, G, G] of each class, all on one scale; at most 24 classes."""
    from matplotlib.figure import Figure

    mean, names = mean[:MOST_CLASSES], names[:MOST_CLASSES]
    columns = min(len(names), 6)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.6 * columns + 1.2, 1.8 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, cells, name in zip(axes.flat, mean.numpy(), names, strict=False):
        shown = ax.imshow(cells, vmin=float(mean.min()), vmax=float(mean.max()))
        ax.set_title(name, fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="mean of the cell")
    return figure
