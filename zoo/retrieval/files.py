"""Which images a user means by files and folders, and their labels."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datamodules.files import image_tree

Images = str | Path | Sequence[str | Path]


def labelled_files(images: Images) -> list[tuple[str, str]]:
    """Absolute file names and labels; a folder stands for all images below it, sorted, hidden ones left out.

    The label is the name of the folder that an image lies in, "" for those directly in a given folder.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if there is no image in a folder, or a file comes twice.
    """
    found = []
    for path in absolute(images):
        for file in image_tree(Path(path), "images"):
            folder = os.path.dirname(file)
            found.append((file, "" if folder == path else os.path.basename(folder)))
    if not found:
        raise ValueError("no image files given")
    if twice := [file for file, times in Counter(file for file, _ in found).items() if times > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    return found


def absolute(images: Images) -> list[str]:
    """The given files and folders as absolute paths, which need not exist."""
    # symbolic links stay, as the names of the folders they lie in are labels
    given = [images] if isinstance(images, str | Path) else images
    return [os.path.abspath(os.path.expanduser(path)) for path in given]
