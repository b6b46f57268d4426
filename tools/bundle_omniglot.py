"""Make the bundled Omniglot subset from the authors' zips.

python tools/bundle_omniglot.py images_background_small1.zip images_background_small2.zip
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

TARGET = Path(__file__).parents[1] / "datamodules" / "data" / "omniglot_small.npz"
DRAWERS, SIZE = 20, 28


def drawings(zips: list[Path]) -> dict[str, list[bytes]]:
    """The PNG files of each ``alphabet/character``; an alphabet that is in several zips comes once."""
    found: dict[str, dict[str, bytes]] = {}
    for path in zips:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".png"):
                    _, alphabet, character, name = member.split("/")
                    found.setdefault(f"{alphabet}/{character}", {})[name] = archive.read(member)
    return {key: [found[key][name] for name in sorted(found[key])] for key in sorted(found)}


def shrink(png: bytes) -> np.ndarray:
    """A drawing as [28, 28] uint8 with ink 255: the mean over each target pixel's area."""
    with Image.open(io.BytesIO(png)) as image:
        return 255 - np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX))


def main() -> None:
    """Write the bundle: ``image`` [characters, 20, 28, 28] uint8 and ``classes`` [characters] names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zips", nargs="+", type=Path)
    found = drawings(parser.parse_args().zips)
    for name, files in found.items():
        if len(files) != DRAWERS:
            raise SystemExit(f"{name} has {len(files)} drawings, expected {DRAWERS}")
    image = np.stack([[shrink(png) for png in files] for files in found.values()])
    np.savez_compressed(TARGET, image=image, classes=np.array(list(found)))
    print(f"{TARGET}: {len(found)} characters, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
