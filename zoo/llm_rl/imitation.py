"""Worked solutions beside a model's own: their tokens, and the loss of imitating them (RLGF, arXiv 2306.11816)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.batches import Prompt
from zoo.language.tokenizers import require_eos
from zoo.llm_rl.auxiliary import Auxiliary
from zoo.llm_rl.batches import Minibatch, Rollout, Sample
from zoo.llm_rl.objectives import Metrics

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner


def worked_solutions(learner: "PolicyFineTuner", prompts: Sequence[Prompt], rollout: Rollout) -> Rollout:
    """The rollout with the completion of each row's prompt, and EOS, instead of what was sampled.

    Prompt and completion are tokenised apart, as they are when the model writes the completion. A completion longer
    than the rollout's ``max_new_tokens`` loses its end; a warning counts those.

    Raises:
        ValueError: for a prompt without completion.
    """
    if lacking := [prompt.id for prompt in prompts if prompt.completion is None]:
        raise ValueError(f"prompt {lacking[0]!r} has no completion: the method needs a worked solution of each prompt")
    tokenizer, most = learner.policy.tokenizer, learner.rollout.sampling.max_new_tokens
    eos, texts = require_eos(tokenizer), [str(prompt.completion) for prompt in prompts]
    rows = [[*row, eos] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    long = [len(row) > most for row in rows]
    if any(long):
        rank_zero_warn(
            f"{sum(long)} of {len(long)} worked solutions are longer than max_new_tokens={most} and lose their end: "
            "raise rollout.max_new_tokens"
        )
    width, device = min(max(map(len, rows)), most), rollout.mask.device
    ids = [(row + [tokenizer.pad_token_id] * width)[:width] for row in rows]
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return Rollout(
        rollout.prompt_ids,
        rollout.prompt_mask,
        torch.tensor(ids, device=device),
        mask.to(device),
        rollout.group,
        torch.tensor(long, device=device),
        rollout.key,
    )


class Imitation(Auxiliary):
    """Supervised learning of worked solutions beside the policy loss: the mean over their tokens of -log P.

    Args:
        target_coef: weight of this mean; 0.1 in RLGF.
    """

    def __init__(self, target_coef: float = 0.1) -> None:
        if not 0 <= target_coef < math.inf:
            raise ValueError(f"target_coef={target_coef}: must be at least 0 and finite")
        self.target_coef = target_coef

    def prepare(
        self, learner: "PolicyFineTuner", samples: Sequence[Sample], rollout: Rollout, reward: Tensor, parts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        worked = worked_solutions(learner, [sample.prompt for sample in samples], rollout)
        weight = worked.mask.sum(1).float()
        return reward, {"weight": weight, "ids": worked.response_ids, "mask": worked.mask}

    def loss(self, learner: "PolicyFineTuner", states: Tensor, minibatch: Minibatch) -> tuple[Tensor, Metrics]:
        extra, coefficient = minibatch.extra, minibatch.row_coefficient
        assert extra is not None
        assert coefficient is not None
        worked = minibatch.rollout._replace(response_ids=extra["ids"], mask=extra["mask"])
        worked = worked.take(torch.arange(len(coefficient), device=coefficient.device))
        states = learner.states(learner.policy, worked)
        loss = -learner.policy.token_log_probs(states, worked.response_ids[worked.mask])
        length = worked.mask.sum(1)
        loss_of_row = torch.stack([part.mean() for part in loss.split(length.tolist())])
        counted = coefficient != 0
        total = (loss_of_row.detach() * length).where(counted, 0.0).sum()
        return self.target_coef * (coefficient * loss_of_row).sum(), {"loss/imitation": (total, length[counted].sum())}
