"""Make the bundled PneumoniaMNIST from two public copies that each lack some of its images.

python tools/bundle_pneumoniamnist.py pneumonia_mnist/data/pneumoniamnist.npz snn-medmnist/pneumoniamnist.npz

The first is https://github.com/varun19424/pneumonia_mnist at 9361a71, whose training part has 388 of 1,214 normal
images and all others; the second https://github.com/aksufatih/snn-medmnist at 5df79ab, whose training part has all
normal images. With the published file there is nothing to make: the same arrays are in it, in another order.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "datamodules" / "data" / "pneumoniamnist.npz"
COUNTS = {"train": (1_214, 3_494), "val": (135, 389), "test": (234, 390)}


def missing(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Those of ``image`` [M, 28, 28] that ``known`` lacks, in order; an image that comes twice counts twice."""
    lacking = Counter(one.tobytes() for one in image) - Counter(one.tobytes() for one in known)
    rows = []
    for row, one in enumerate(image):
        if lacking[one.tobytes()]:
            lacking[one.tobytes()] -= 1
            rows.append(row)
    return image[rows]


def main() -> None:
    """Write the bundle: MedMNIST's own six arrays, the normal images of the second copy last in the training part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("thinned", type=Path)
    parser.add_argument("balanced", type=Path)
    args = parser.parse_args()
    with np.load(args.thinned) as first, np.load(args.balanced) as second:
        whole = {name: first[name] for name in first.files}
        normal = [file["train_images"][file["train_labels"][:, 0] == 0] for file in (first, second)]
    added = missing(normal[1], normal[0])
    whole["train_images"] = np.concatenate([whole["train_images"], added])
    whole["train_labels"] = np.concatenate([whole["train_labels"], np.zeros((len(added), 1), np.uint8)])
    for part, count in COUNTS.items():
        if (found := tuple(np.bincount(whole[f"{part}_labels"][:, 0]).tolist())) != count:
            raise SystemExit(f"{part} has {found} normal and pneumonia images, expected {count}")
    names = [f"{part}_{what}" for what in ("images", "labels") for part in COUNTS]
    np.savez_compressed(TARGET, **{name: whole[name] for name in names})
    print(f"{TARGET}: {sum(map(sum, COUNTS.values())):,} images, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
