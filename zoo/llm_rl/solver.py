"""What every method on prompts shares: completions of the validation, test and prediction prompts, and their scores."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from datamodules.batches import Prompt, PromptBatch
from zoo.distributed import gather_objects
from zoo.language.generation import Sampling, check_prompts, generate
from zoo.language.models import LanguageModel
from zoo.llm_rl.batches import Sample
from zoo.llm_rl.rewards import Reward, score
from zoo.llm_rl.rollouts import sample_keys
from zoo.llm_rl.supervised import prompt_tokens

Stage = Literal["val", "test"]


@runtime_checkable
class HasPrompts(Protocol):
    """Data with prompts of stages, which can be looked at before a run."""

    splits: dict[str, list[Prompt]]

    def prompts(self, stage: Any) -> list[Prompt]:
        """The prompts of ``train`` or ``val``, as batches will have them."""
        ...


class Solver(LightningModule):
    """Solves prompts by a language model and scores the solutions.

    Logged, over all ranks, each prompt once: ``<stage>/reward``, the weighted sum; ``<stage>/rewards/<name>``, each
    alone; ``<stage>/length`` in tokens; ``<stage>/truncated``, the share without end. With several samples of a
    prompt these are means over all (Avg@k), and ``<stage>/max`` is the mean of each prompt's best reward (Max@k).

    Args:
        policy: the language model.
        rewards: what scores completions, by name.
        weights: of the rewards by name; 1 for those that are left out.
        evaluation: how evaluation and prediction sample; default: the likeliest tokens, at most 64.
        samples: of each prompt in evaluation; more than one needs a temperature.
        chat: give prompts in the chat template of the tokenizer.
        system: with ``chat``, what the template gets as the system's message.
        max_prompt_length: tokens; a longer prompt is an error.
    """

    def __init__(
        self,
        policy: LanguageModel,
        rewards: dict[str, Reward],
        weights: dict[str, float] | None = None,
        evaluation: Sampling | None = None,
        samples: int = 1,
        chat: bool = False,
        system: str | None = None,
        max_prompt_length: int | None = None,
    ) -> None:
        super().__init__()
        if policy.kind != "causal":
            raise ValueError(f"policy.kind is {policy.kind!r}: only a causal one writes completions")
        if not rewards:
            raise ValueError("rewards: give at least one")
        if unknown := sorted(set(weights or {}) - set(rewards)):
            raise ValueError(f"weights: {unknown[0]!r} is none of the rewards {', '.join(rewards)}")
        self.policy, self.rewards = policy, rewards
        self.weights = {name: (weights or {}).get(name, 1.0) for name in rewards}
        self.evaluation = evaluation or Sampling(temperature=0.0)
        if samples < 1 or (samples > 1 and self.evaluation.temperature == 0):
            raise ValueError(f"samples={samples}: must be at least 1, and of more evaluation.temperature above 0")
        if system is not None and not chat:
            raise ValueError(f"system={system!r}: set chat to true, without it there is no template to put it in")
        self.samples, self.chat, self.system, self.max_prompt_length = samples, chat, system, max_prompt_length
        self._rows: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    @property
    def network(self) -> LanguageModel:
        """The language model."""
        return self.policy

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokens of prompts: in the chat template, or with the tokenizer's BOS, if it has one, in front.

        Raises:
            ValueError: for a prompt beyond ``max_prompt_length``, and ``chat`` without a template.
        """
        tokenizer = self.policy.tokenizer
        if self.chat:
            if not tokenizer.chat_template:
                raise ValueError("chat=true: the tokenizer has no chat template; set chat to false")
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
            turns = [[*system, {"role": "user", "content": prompt.text}] for prompt in prompts]
            texts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
            rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        else:
            rows = prompt_tokens(tokenizer, [prompt.text for prompt in prompts])
        for prompt, row in zip(prompts, rows, strict=True):
            if self.max_prompt_length is not None and len(row) > self.max_prompt_length:
                raise ValueError(
                    f"prompt {prompt.id!r} has {len(row)} tokens, max_prompt_length is {self.max_prompt_length}: "
                    "raise it, or leave long prompts out of the data"
                )
        return rows

    def check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling, room: int | None = None) -> None:
        """Raises ``ValueError`` for a prompt that would end the run at its turn: too long, or without tokens."""
        for start in range(0, len(prompts), 1024):
            check_prompts(self.policy, self.encode(prompts[start : start + 1024]), sampling, room)

    def read(
        self, prompts: Sequence[Prompt], ids: Tensor, mask: Tensor, truncated: Tensor, keys: Tensor
    ) -> list[Sample]:
        """Completions [N, T] as rewards see them; ``prompts`` has the one of each."""
        rows = [row[:length] for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        texts = self.policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        known = zip(prompts, texts, rows, truncated.tolist(), keys.tolist(), strict=True)
        return [Sample(prompt, text, len(row), cut, key) for prompt, text, row, cut, key in known]

    @property
    def together(self) -> bool:
        """Whether all ranks must run the network equally often, as sharded weights need it."""
        return self.device_mesh is not None

    @torch.no_grad()
    def solve(self, batch: PromptBatch) -> list[list[Sample]]:
        """``samples`` completions of each prompt."""
        keys = sample_keys(batch.key, self.samples)
        made = generate(
            self.policy, self.encode(batch.prompt), keys.numpy().astype("uint64"), self.evaluation, self.together
        )
        prompts = [prompt for prompt in batch.prompt for _ in range(self.samples)]
        found = self.read(prompts, made.ids, made.mask, made.truncated, keys.flatten())
        return [found[start : start + self.samples] for start in range(0, len(found), self.samples)]

    def score(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """The weighted sum [N] and each reward [N, F], NaN where nothing scored; float32 on the CPU."""
        return score(self.rewards, self.weights, samples)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: PromptBatch) -> None:
        solved = self.solve(batch)
        total, parts = self.score([sample for group in solved for sample in group])
        total, parts = total.unflatten(0, (-1, self.samples)), parts.unflatten(0, (-1, self.samples))
        for row, group, reward, each in zip(batch.row.tolist(), solved, total, parts, strict=True):
            if reward.isnan().all():
                continue
            means = {
                f"rewards/{name}": value for name, value in zip(self.rewards, each.nanmean(0).tolist(), strict=True)
            }
            best = {} if self.samples == 1 else {"max": reward.nan_to_num(-torch.inf).max().item()}
            self._rows.append(
                {
                    "row": row,
                    "reward": reward.nanmean().item(),
                    **best,
                    **means,
                    "length": sum(sample.tokens for sample in group) / len(group),
                    "truncated": sum(sample.truncated for sample in group) / len(group),
                }
            )

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, stage: Stage) -> None:
        rows: dict[int, Mapping[str, float]] = {}
        for part in gather_objects(self._rows):
            rows |= {row["row"]: row for row in part}
        self._rows = []
        if not rows:
            raise ValueError(f"{stage}: no prompt could be scored; check that prompts have what rewards ask for")
        names = [name for name in next(iter(rows.values())) if name != "row"]
        values = {name: torch.tensor([row[name] for row in rows.values()]).nanmean().item() for name in names}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "reward", sync_dist=True)
        self._results = [{"prompts": len(rows), **values}]

    def results(self) -> list[dict[str, Any]]:
        """The means of the last evaluation."""
        return self._results

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Rows of prompt, completion and, for prompts with an answer, reward."""
        solved = self.solve(batch)
        rows = []
        for prompt, group in zip(batch.prompt, solved, strict=True):
            values = [None] * len(group) if prompt.answer is None else self.score(group)[0].tolist()
            for number, (sample, value) in enumerate(zip(group, values, strict=True)):
                known = {"id": prompt.id, "sample": number, "prompt": prompt.text, "completion": sample.text}
                rows.append({**known, "answer": prompt.answer, "reward": value})
        return rows
