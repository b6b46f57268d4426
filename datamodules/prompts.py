"""Prompts for a language model that learns from what it writes, and prompts to test it with."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from datamodules.batches import Prompt, PromptBatch
from datamodules.interactions import text_lines
from datamodules.loaders import KeyedBatchSampler, Keys, ResumableLoader
from datamodules.prompt_sets import PromptLines, PromptSet
from datamodules.streams import key, uniform

Stage = Literal["train", "val", "test", "predict"]

# Part of a key that tells the uses of one seed apart.
_ORDER, _DRAWN = range(2)
# In the place of an epoch, which a stage other than training has none of: it tries the same each time.
_EPOCH = {"val": -1, "test": -2, "predict": -3}


class KeyedPrompts:
    """Prompts by (epoch, index), as ``PromptBatch``; ``epoch`` takes the place of the keys' own if it is given."""

    def __init__(self, prompts: list[Prompt], seed: int, epoch: int | None = None) -> None:
        self.prompts, self.seed, self.epoch = prompts, seed, epoch

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitems__(self, keys: Keys) -> PromptBatch:
        epoch, row = np.array(keys, np.int64).T
        streams = key(self.seed, epoch if self.epoch is None else self.epoch, row)
        chosen = [self.prompts[index] for _, index in keys]
        return PromptBatch(chosen, torch.from_numpy(row.copy()), torch.from_numpy(streams.view(np.int64)))


class Prompts(LightningDataModule):
    """Prompts of a set, in batches of ``PromptBatch``.

    A method that learns from its own samples wraps the training loader by its ``experience(loader)``, and is trained on
    what comes out of that. The streams of validation and test are the same each time.

    Args:
        dataset: where the prompts come from.
        batch_size: prompts of a rank's rollout.
        eval_batch_size: prompts of a rank's evaluation batch.
        template: what is put round each prompt: a text in which ``{text}`` stands for it.
        max_eval: prompts to validate and to test with at most, drawn by ``seed``; null for all.
        seed: of the order and of each prompt's own random streams.
        predict_prompts: ``train``, ``val`` or ``test``, which null stands for; or a file: text with a prompt a line, or
            ``.jsonl`` as for ``PromptLines``.
    """

    def __init__(
        self,
        dataset: PromptSet,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        template: str = "{text}",
        max_eval: int | None = None,
        seed: int = 0,
        predict_prompts: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_eval": max_eval}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if "{text}" not in template:
            raise ValueError(f"template={template!r}: must have {{text}} where the prompt belongs")
        self.dataset, self.batch_size, self.eval_batch_size = dataset, batch_size, eval_batch_size
        self.template, self.max_eval, self.seed, self.predict_prompts = template, max_eval, seed, predict_prompts

    @cached_property
    def splits(self) -> dict[str, list[Prompt]]:
        """All prompts by split, as the set has them, without the template."""
        found = self.dataset.load()
        seen: set[str] = set()
        for split, prompts in found.items():
            if not prompts:
                raise ValueError(f"{self.dataset.name}: the split {split} has no prompts")
            for prompt in prompts:
                if prompt.id in seen:
                    raise ValueError(f"{self.dataset.name}, split {split}: the id {prompt.id!r} comes a second time")
                seen.add(prompt.id)
        return found

    def prepare_data(self) -> None:
        _ = self.splits  # one process a machine downloads

    def setup(self, stage: str) -> None:
        """Reads the prompts, says once how many there are, and checks what ``stage`` needs."""
        _ = self._shown
        if stage == "fit":
            self.prompts("train")
        elif stage == "validate":
            self.prompts("val")
        else:
            self.prompts(cast(Stage, stage))

    @cached_property
    def _shown(self) -> None:
        counts = ", ".join(f"{len(prompts):,} {split}" for split, prompts in self.splits.items())
        rank_zero_info(f"{self.dataset.name}: {counts} prompts")

    def prompts(self, stage: Stage) -> list[Prompt]:
        """The prompts of ``stage`` in their template; ``PromptBatch.row`` is a prompt's place in them."""
        split = (self.predict_prompts or "test") if stage == "predict" else stage
        if split not in ("train", "val", "test"):
            found = self._predicted
        else:
            if split not in self.splits:
                have = ", ".join(self.splits)
                raise ValueError(f"{self.dataset.name} has no {split} prompts, only {have}; give it some")
            found = self.splits[split]
            if stage in ("val", "test") and self.max_eval is not None:
                chance = uniform(key(self.seed, _DRAWN), len(found))
                found = [found[at] for at in np.sort(np.argsort(chance, kind="stable")[: self.max_eval])]
        return [prompt._replace(text=self.template.replace("{text}", prompt.text)) for prompt in found]

    @cached_property
    def _predicted(self) -> list[Prompt]:
        path = Path(cast(str, self.predict_prompts)).expanduser()
        if path.suffix == ".jsonl":
            return PromptLines(test=str(path)).load()["test"]
        found = [Prompt(str(number), text.strip()) for number, text in text_lines(path)]
        if not found:
            raise ValueError(f"predict_prompts={path}: the file holds no prompts")
        return found

    def train_texts(self, limit: int | None = None) -> Iterator[str]:
        """Training prompts with completions or answers to make a tokenizer from: at most ``limit``, evenly spaced."""
        prompts = self.prompts("train")
        for prompt in prompts[:: 1 if limit is None else -(-len(prompts) // limit)]:
            yield f"{prompt.text}{prompt.completion or prompt.answer or ''}"

    def train_dataloader(self) -> Any:
        """What the method makes of the prompts, where it learns from its own samples, else the prompts."""
        data = KeyedPrompts(self.prompts("train"), self.seed)
        order = int(key(self.seed, _ORDER))
        loader = ResumableLoader(
            data, KeyedBatchSampler(len(data), self.batch_size, shuffle=True, seed=order, drop_last=True)
        )
        experience = getattr(getattr(self.trainer, "lightning_module", None), "experience", None)
        return loader if experience is None else experience(loader)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        return self._tried("val") if "val" in self.splits else []

    def test_dataloader(self) -> ResumableLoader:
        return self._tried("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self._tried("predict")

    def _tried(self, stage: Stage) -> ResumableLoader:
        data = KeyedPrompts(self.prompts(stage), self.seed, _EPOCH[stage])
        return ResumableLoader(data, KeyedBatchSampler(len(data), self.eval_batch_size))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Of prompts, moves the tensors alone: Lightning's own way looks into every text."""
        if isinstance(batch, PromptBatch):
            return batch._replace(row=batch.row.to(device), key=batch.key.to(device))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
