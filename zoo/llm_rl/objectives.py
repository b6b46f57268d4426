"""The clipped policy loss in all its variants (PPO, GRPO, DAPO, Dr. GRPO, GSPO, RLOO) as settings of one class."""

from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.llm_rl.aggregation import Aggregation, check_aggregation
from zoo.llm_rl.batches import Minibatch
from zoo.llm_rl.kl import LIMIT, Kl, kl_estimate

Level = Literal["token", "sequence", "sequence_sum"]
CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Metrics = dict[str, tuple[Tensor, Tensor]]


def log_ratio(log_probs: Tensor, old: Tensor, mask: Tensor, level: Level) -> Tensor:
    """Log importance ratios, cut to +-20: [b, T] for ``token``, else [b, 1], with gradient to ``log_probs`` [b, T].

    ``sequence`` is the mean over a row's valid tokens (GSPO, arXiv 2507.18071), ``sequence_sum`` their sum (RLOO).
    """
    difference = (log_probs - old).clamp(-LIMIT, LIMIT).masked_fill(~mask, 0.0)
    if level == "token":
        return difference
    total = difference.sum(1, keepdim=True)
    return total.clamp(-LIMIT, LIMIT) if level == "sequence_sum" else total / mask.sum(1, keepdim=True).clamp(min=1)


def clipped_loss(
    ratio: Tensor,
    advantage: Tensor,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """``-min(ratio * A, clip(ratio, 1 - eps_low, 1 + eps_high) * A)`` elementwise (PPO, arXiv 1707.06347, eq. 7).

    ``delta``, above 1 + ``eps_high``, caps the ratio where that clip does not (INTELLECT-2, arXiv 2505.07291);
    ``dual_clip`` c caps the loss at ``-c * A`` where A < 0 (arXiv 1912.09729).
    """
    # not the minimum of both products, whose gradient where they are equal depends on the release of torch
    cut = torch.where(advantage > 0, ratio > 1 + eps_high, ratio < 1 - eps_low)
    free = ratio if delta is None else ratio.clamp(max=delta)
    loss = -torch.where(cut, ratio.clamp(1 - eps_low, 1 + eps_high), free) * advantage
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)


class Correction:
    """Weights for tokens that another engine generated with slightly different probabilities.

    Args:
        mode: the ratio ``exp(old - sampled)`` of a token, or of a whole sequence (its tokens' product); what exceeds
            the cap is cut down to it (``truncate``) or gets weight 0 (``mask``).
        cap: positive.
    """

    def __init__(self, mode: CorrectionMode = "sequence_mask", cap: float = 3.0) -> None:
        if mode not in get_args(CorrectionMode):
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(get_args(CorrectionMode))}")
        if cap <= 0:
            raise ValueError(f"cap={cap}: must be positive")
        self.mode, self.cap = mode, cap

    def __call__(self, old: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
        """Weights [b, T] or [b, 1], no gradient; all three arguments [b, T].

        A token whose probability the engine did not report (NaN) counts as equal.
        """
        difference = (old.detach() - sampled).nan_to_num(nan=0.0).masked_fill(~mask, 0.0)
        if self.mode.startswith("sequence"):
            difference = difference.sum(1, keepdim=True)
        ratio = difference.exp()
        return ratio.clamp(max=self.cap) if self.mode.endswith("truncate") else ratio.where(ratio <= self.cap, 0.0)


class ClippedSurrogate:
    """The clipped policy loss, with penalties added to each token before the aggregation.

    Args:
        ratio: the importance ratio of a ``token``, of a ``sequence`` (GSPO) or its ``sequence_sum`` (RLOO).
        eps_low: in [0, 1), how far the ratio may fall.
        eps_high: at least 0, how far it may rise; None is ``eps_low``.
        dual_clip: above 1; limits the loss where the advantage is negative.
        delta: above 1 + ``eps_high``; limits the ratio where the clip does not.
        aggregation: mode of ``aggregation.coefficients``.
        max_length: longest completion in tokens, for the aggregations that divide by it.
        kl: penalty for leaving the reference policy.
        entropy: weight of an entropy bonus.
        correction: for completions of another engine, which must report log-probabilities.
    """

    def __init__(
        self,
        ratio: Level = "token",
        eps_low: float = 0.2,
        eps_high: float | None = None,
        dual_clip: float | None = None,
        delta: float | None = None,
        aggregation: Aggregation = "token_mean",
        max_length: int | None = None,
        kl: Kl | None = None,
        entropy: float = 0.0,
        correction: Correction | None = None,
    ) -> None:
        eps_high = eps_low if eps_high is None else eps_high
        if ratio not in get_args(Level):
            raise ValueError(f"ratio={ratio!r}: choose one of {', '.join(get_args(Level))}")
        if not 0 <= eps_low < 1:
            raise ValueError(f"eps_low={eps_low}: must be in [0, 1)")
        if eps_high < 0:
            raise ValueError(f"eps_high={eps_high}: must be at least 0")
        if dual_clip is not None and dual_clip <= 1:
            raise ValueError(f"dual_clip={dual_clip}: must be above 1, or None")
        if delta is not None and delta <= 1 + eps_high:
            raise ValueError(f"delta={delta}: must be above 1 + eps_high = {1 + eps_high}, or None")
        if entropy < 0:
            raise ValueError(f"entropy={entropy}: must be at least 0; it is the weight of a bonus")
        check_aggregation(aggregation, max_length)
        self.ratio, self.eps_low, self.eps_high = ratio, eps_low, eps_high
        self.dual_clip, self.delta = dual_clip, delta
        self.aggregation, self.max_length = aggregation, max_length
        self.kl, self.entropy, self.correction = kl, entropy, correction

    def __call__(self, log_probs: Tensor, minibatch: Minibatch, entropy: Tensor | None) -> tuple[Tensor, Metrics]:
        """The loss, and detached metrics as (sum, count), to be added up over minibatches and ranks.

        Args:
            log_probs: [b, T] under the current policy, with gradient.
            minibatch: without ``old`` the policy is the one that sampled, and every ratio is 1.
            entropy: [b, T] in nats, with gradient if it has a weight; else for the metrics only.
        """
        mask, advantage, reference = minibatch.rollout.mask, minibatch.advantage, minibatch.reference
        old = log_probs.detach() if minibatch.old is None else minibatch.old
        sampled = minibatch.rollout.sampled
        ratio = log_ratio(log_probs, old, mask, self.ratio).exp()
        loss = clipped_loss(ratio, advantage, self.eps_low, self.eps_high, self.dual_clip, self.delta)
        metrics = self._clip_metrics(ratio.detach(), advantage, mask)
        if self.correction is not None:
            if sampled is None:
                raise ValueError("correction: the generation reports no log-probabilities; leave the correction out")
            loss = loss * self.correction(old, sampled, mask)
        if sampled is not None:
            difference = (old - sampled).abs()
            metrics["sampling/sampling_logp_difference/mean"] = _mean(difference, mask & difference.isfinite())
        if self.kl is not None and self.kl.in_loss:
            if reference is None:
                raise ValueError(f"kl: beta={self.kl.beta} needs log-probabilities of a reference policy; give one")
            divergence = kl_estimate(self.kl.estimator, log_probs, reference)
            divergence = divergence * ratio if self.kl.importance else divergence
            loss = loss + self.kl.beta * divergence
            metrics["kl"] = _mean(divergence, mask)
        if entropy is not None:
            loss = loss - self.entropy * entropy
            metrics["entropy"] = _mean(entropy, mask)
        elif self.entropy > 0:
            raise ValueError(f"entropy={self.entropy}: the bonus needs the entropies of the tokens")
        return (minibatch.coefficient * loss).sum(), metrics

    def _clip_metrics(self, ratio: Tensor, advantage: Tensor, mask: Tensor) -> Metrics:
        """Shares of tokens, or of rows where a row has one ratio, that the clip takes out of the gradient."""
        low = (ratio < 1 - self.eps_low) & (advantage < 0) & mask
        high = (ratio > 1 + self.eps_high) & (advantage > 0) & mask
        if self.ratio != "token":
            low, high, mask = (part.any(1) for part in (low, high, mask))
        shares = {"low_mean": low, "high_mean": high, "region_mean": low | high}
        return {f"clip_ratio/{name}": _mean(share.float(), mask) for name, share in shares.items()}


def _mean(x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    return x.detach().where(where, 0.0).sum(), where.sum()
