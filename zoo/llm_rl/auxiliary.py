"""Further terms of the loss, beside the policy's and the critic's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from zoo.llm_rl.batches import Minibatch, Rollout, Sample
from zoo.llm_rl.objectives import Metrics

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner


class Auxiliary(ABC):
    """A term that needs more of a rollout than its tokens, such as worked solutions."""

    def check(self, learner: "PolicyFineTuner") -> None:  # noqa: B027  most have nothing to ask
        """ValueError if the module's other parts do not go with it; called when the module is made."""

    @abstractmethod
    def prepare(
        self, learner: "PolicyFineTuner", samples: Sequence[Sample], rollout: Rollout, reward: Tensor, parts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Once a rollout, without gradient, on each rank.

        Returns:
            The reward [b], which may be changed, and tensors with a row for each sample, which come back as
            ``Minibatch.extra``; ``weight`` [b] or, of several terms, [b, K] float32 is one of them, how much a row
            counts.
        """

    @abstractmethod
    def loss(self, learner: "PolicyFineTuner", states: Tensor, minibatch: Minibatch) -> tuple[Tensor, Metrics]:
        """The weighted term and metrics as (sum, count).

        Args:
            learner: the module.
            states: hidden states [N, H] from which the N tokens of ``minibatch.rollout.mask`` are predicted.
            minibatch: ``row_coefficient``, [b] or [b, K], is each row's ``weight`` over their sum in the optimiser
                step and all ranks, so that the sum of coefficient times loss is their mean.
        """
