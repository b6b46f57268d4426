"""Several labelled image sets joined into one with the classes of all."""

from collections import Counter
from dataclasses import replace
from itertools import accumulate
from typing import Literal

import numpy as np
import torch

from datamodules.image_sets import ImageSet, Part
from datamodules.images import ImageForm, ImageStore


class JoinedSets(ImageSet):
    """Several sets as one, whose classes are those of all, named ``<set>/<class>``.

    It has the parts that all sets have, each in memory as a whole. Its mean and standard deviation are those of images
    that come from each set equally often.

    Args:
        sets: in the order that their classes shall have.
        channels: 3 repeats grey images as RGB; null for RGB where a set has it, else grey.
    """

    form: ImageForm

    def __init__(self, sets: list[ImageSet], channels: Literal[1, 3] | None = None) -> None:
        if not sets:
            raise ValueError("JoinedSets.sets is empty: give at least one set")
        if twice := [name for name, count in Counter(s.name for s in sets).items() if count > 1]:
            raise ValueError(f"JoinedSets.sets: {twice[0]} comes twice; a set cannot be joined with itself")
        forms = [s.form for s in sets if s.form is not None]
        if len(forms) < len(sets):
            name = next(s.name for s in sets if s.form is None)
            raise ValueError(f"JoinedSets.sets: {name} holds no pictures, so it cannot be joined")
        self.form = replace(forms[0], channels=channels or max(form.channels for form in forms))
        for one, form in zip(sets, forms, strict=True):
            if form.channels > self.form.channels:
                raise ValueError(f"JoinedSets.channels={channels}: {one.name} has {form.channels}; leave it out")
            if replace(form, channels=self.form.channels) != self.form:
                raise ValueError(
                    f"JoinedSets.sets: images of {sets[0].name} and {one.name} must have one size and be read in one "
                    f"way, got {forms[0]} and {form}"
                )
        self.sets = sets
        mean = np.array([s.mean * (self.form.channels // len(s.mean)) for s in sets])
        std = np.array([s.std * (self.form.channels // len(s.std)) for s in sets])
        middle = mean.mean(0)
        self.mean = tuple(middle.tolist())
        self.std = tuple(np.sqrt((mean**2 + std**2).mean(0) - middle**2).tolist())

    @property
    def name(self) -> str:
        return "+".join(s.name for s in self.sets)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in self.sets[0].parts if all(part in s.parts for s in self.sets))

    def load(self, split: Part) -> ImageStore:
        """The images of a part of all sets, as in ``ImageSet``."""
        self.check_part(split)
        stores = [s.load(split) for s in self.sets]
        first = accumulate([len(store.classes) for store in stores], initial=0)
        return ImageStore(
            torch.cat([store.image.expand(-1, self.form.channels, -1, -1) for store in stores]),
            torch.cat([store.label + offset for store, offset in zip(stores, first, strict=False)]),
            tuple(f"{s.name}/{name}" for s, store in zip(self.sets, stores, strict=True) for name in store.classes),
            kind=split,
        )
