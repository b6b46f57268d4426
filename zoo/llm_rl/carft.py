"""CARFT (arXiv 2508.15868): contrast of completions with annotated chains of thought, and rewards graded by them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from zoo.distributed import gather
from zoo.llm_rl.auxiliary import Auxiliary
from zoo.llm_rl.batches import Minibatch, Rollout, Sample
from zoo.llm_rl.contrast import (
    MaskMode,
    common_masks,
    contrast_loss,
    cot_embedding,
    negative_losses,
    partial_reward,
    positive_losses,
)
from zoo.llm_rl.imitation import worked_solutions
from zoo.llm_rl.objectives import Metrics
from zoo.llm_rl.rewards.answers import ANYWHERE, Place, extract, to_number

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner

Signal = Literal["none", "pos", "neg", "both"]
PartialReward = Literal["none", "fixed", "embedding"]
EmbSource = Literal["head", "mean_hidden"]
EmbTokens = Literal["all", "numbers"]
FIXED = 0.1


class AnnotatedContrast(Auxiliary):
    """The contrastive term of CARFT and its partial rewards; ReFT (arXiv 2401.08967) is no signal and ``fixed``.

    A chain's embedding is the mean of its tokens' embeddings, weighted by the softmax of their values: both are the
    critic's, of the states that the tokens are predicted from. That of the annotated chain is taken once a rollout,
    that of the completion, with gradient, in each minibatch. The first of the rewards is that of the answer, 1 where
    it is right.

    Args:
        signal: draw right completions to the annotated chain (``pos``), part what wrong ones share with it from what
            they do not (``neg``), the mean of the two terms (``both``), or no term.
        c: weight of the term.
        tau: temperature.
        sim_cap: similarity beyond which nothing is drawn any closer.
        mask_mode: ``official_broadcast`` sums over all completions of a minibatch, right or not, as the official code
            does by a slip; c then has to be as many times smaller as a minibatch has completions.
        gather_grad: let gradient flow through the denominator, which the official code does not.
        emb_source: a chain's embedding is by the critic's ``head``, or the ``mean_hidden`` state of its tokens, with
            equal weights.
        emb_tokens: the chain is ``all`` tokens, or those with a digit, the ``numbers``.
        partial_reward: reward of a wrong answer that is a number: what the answer's reward says (``none``), 0.1
            (``fixed``), or 0.1 cos + 0.2 of the two chains (``embedding``). Evaluation does without.
    """

    def __init__(
        self,
        signal: Signal = "pos",
        c: float = 1e-3,
        tau: float = 0.2,
        sim_cap: float = 0.9,
        mask_mode: MaskMode = "intended",
        gather_grad: bool = True,
        emb_source: EmbSource = "head",
        emb_tokens: EmbTokens = "all",
        partial_reward: PartialReward = "fixed",
    ) -> None:
        for name, value, names in (
            ("signal", signal, Signal),
            ("mask_mode", mask_mode, MaskMode),
            ("emb_source", emb_source, EmbSource),
            ("emb_tokens", emb_tokens, EmbTokens),
            ("partial_reward", partial_reward, PartialReward),
        ):
            if value not in get_args(names):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(names))}")
        if signal == "none" and partial_reward == "none":
            raise ValueError("signal='none' with partial_reward='none' changes nothing: set one, or leave the part out")
        if not 0 <= c < math.inf:
            raise ValueError(f"c={c}: must be at least 0 and finite")
        if not 0 < tau < math.inf:
            raise ValueError(f"tau={tau}: must be positive and finite")
        if not -1 <= sim_cap <= 1:
            raise ValueError(f"sim_cap={sim_cap}: must be in [-1, 1], as similarities are cosines")
        self.terms = {"none": [], "pos": ["pos"], "neg": ["neg"], "both": ["pos", "neg"]}[signal]
        self.c, self.tau, self.sim_cap, self.mask_mode, self.gather_grad = c, tau, sim_cap, mask_mode, gather_grad
        self.emb_source, self.emb_tokens, self.partial_reward = emb_source, emb_tokens, partial_reward

    def check(self, learner: "PolicyFineTuner") -> None:
        by_head = self._compares and self.emb_source == "head"
        if by_head and (learner.critic is None or learner.critic.embedding is None):
            raise ValueError(
                f"critic={learner.critic}: chains are compared by the embeddings of its head; give a critic with "
                "embedding: 64, and an advantage that needs one (Gae); or set emb_source: mean_hidden"
            )

    @property
    def _compares(self) -> bool:
        return bool(self.terms) or self.partial_reward == "embedding"

    # --- once a rollout ----------------------------------------------------------------------------------------------

    def prepare(
        self, learner: "PolicyFineTuner", samples: Sequence[Sample], rollout: Rollout, reward: Tensor, parts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        answer = parts[:, 0]
        right, wrong = answer >= 1, answer < 1  # neither, where there is nothing to compare with
        extra: dict[str, Tensor] = {}
        chosen, graded = [], torch.full_like(answer, FIXED)
        if self._compares:
            annotated = worked_solutions(learner, [sample.prompt for sample in samples], rollout)
            chain, written = self._chain(learner, annotated), self._chain(learner, rollout)
            extra = {"chain": written, "annotated": self._embeddings(learner, annotated, chain)}
            if self.partial_reward == "embedding":
                graded = partial_reward(extra["annotated"], self._embeddings(learner, rollout, written))
            if "pos" in self.terms:
                chosen.append(right)
            if "neg" in self.terms:
                shared, common = common_masks(annotated.response_ids, chain, rollout.response_ids, written)
                extra |= {"common": common, "annotated_rest": self._embeddings(learner, annotated, chain & ~shared)}
                chosen.append(wrong & common.any(1))
        if self.partial_reward != "none":
            places: Sequence[Place] = getattr(next(iter(learner.rewards.values())), "places", ANYWHERE)
            number = torch.tensor([_is_number(sample.text, places) for sample in samples], device=reward.device)
            weight = next(iter(learner.weights.values()))
            reward = torch.where(wrong & number, reward + weight * (graded - answer), reward)
        return reward, extra | {"weight": torch.stack(chosen, 1).float() if chosen else torch.zeros_like(answer)}

    def _chain(self, learner: "PolicyFineTuner", rollout: Rollout) -> Tensor:
        """The tokens [b, T] bool that make up the chains."""
        if self.emb_tokens == "all":
            return rollout.mask
        ids = rollout.response_ids
        present = ids.unique().tolist()
        texts = learner.policy.tokenizer.convert_ids_to_tokens(present)
        digits = [token for token, text in zip(present, texts, strict=True) if any(map(str.isdigit, text))]
        return rollout.mask & torch.isin(ids, torch.tensor(digits, dtype=ids.dtype, device=ids.device))

    def _embeddings(self, learner: "PolicyFineTuner", rollout: Rollout, chain: Tensor) -> Tensor:
        """Embeddings [b, E] of the chains [b, T] of many rows, without gradient."""
        parts = []
        for rows in torch.arange(len(chain), device=chain.device).split(learner.rows_at_once or len(chain)):
            some = rollout.take(rows)
            value, embedding = self._valued(learner, learner.states(learner.policy, some), some.mask)
            parts.append(cot_embedding(value, embedding, chain[rows, : some.mask.shape[1]]))
        return torch.cat(parts)

    def _valued(self, learner: "PolicyFineTuner", states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What weighs tokens [b, T], and their embeddings [b, T, E], of the states [N, H] of a mask [b, T]."""
        if self.emb_source == "head":
            assert learner.heads is not None
            value, embedding = next(iter(learner.heads.values()))(states)
        else:
            value, embedding = states.new_zeros(len(states), dtype=torch.float32), states.float()
        values, embeddings = value.new_zeros(mask.shape), embedding.new_zeros(*mask.shape, embedding.shape[-1])
        return values.masked_scatter(mask, value), embeddings.masked_scatter(mask[..., None], embedding)

    # --- in each minibatch -------------------------------------------------------------------------------------------

    def loss(self, learner: "PolicyFineTuner", states: Tensor, minibatch: Minibatch) -> tuple[Tensor, Metrics]:
        extra, coefficients, learned = minibatch.extra, minibatch.row_coefficient, minibatch.value_coefficient
        if not self.terms:
            return states.new_zeros(()), {}
        assert extra is not None
        assert coefficients is not None
        mask = minibatch.rollout.mask
        value, embedding = self._valued(learner, states, mask)
        # a row that fills up a rank's last pass is nobody's negative
        learned = minibatch.coefficient if learned is None else learned
        chain = extra["chain"][:, : mask.shape[1]] & (learned != 0).any(1, keepdim=True)
        most = int(gather(torch.tensor([len(mask)], device=mask.device)).amax())

        def even(x: Tensor) -> Tensor:
            """With rows of zeros behind, as many on every rank."""
            return pad(x, (0, 0, 0, most - len(x)))

        total, metrics = states.new_zeros(()), {}
        settings = self.tau, self.sim_cap, self.gather_grad
        for term, coefficient in zip(self.terms, coefficients.unbind(1), strict=True):
            if term == "pos":
                written = cot_embedding(value, embedding, chain)
                losses = positive_losses(even(extra["annotated"]), even(written), *settings)
            else:
                common = chain & extra["common"][:, : mask.shape[1]]
                alike, rest = (even(cot_embedding(value, embedding, part)) for part in (common, chain & ~common))
                losses = negative_losses(even(extra["annotated_rest"]), alike, rest, *settings)
            losses, chosen = losses[: len(mask)], coefficient > 0
            if self.mask_mode == "intended":
                total = total + (coefficient * losses).sum()
            else:  # the mean over minibatches, which accumulation and data parallelism take
                total = total + contrast_loss(losses, chosen, 1, "official_broadcast")
            metrics[f"loss/contrast_{term}"] = losses.detach().where(chosen, 0.0).sum(), chosen.sum()
        return self.c / len(self.terms) * total, metrics


def _is_number(text: str, places: Sequence[Place]) -> bool:
    found = extract(text, places)
    return found is not None and to_number(found) is not None
