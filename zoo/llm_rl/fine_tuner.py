"""Reinforcement learning of a language model from its own completions."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from datamodules.loaders import ResumableLoader
from zoo.catalogue import register
from zoo.distributed import gather, gather_objects
from zoo.language.models import LanguageModel
from zoo.llm_rl.advantages import Advantage, Gdpo, GroupAdvantage, TokenAdvantage
from zoo.llm_rl.auxiliary import Auxiliary
from zoo.llm_rl.batches import Minibatch, Rollout
from zoo.llm_rl.critic import Critic
from zoo.llm_rl.experience import Experience
from zoo.llm_rl.objectives import ClippedSurrogate
from zoo.llm_rl.passes import predicting_states, spread
from zoo.llm_rl.rewards import Reward, SoftOverlong
from zoo.llm_rl.rollouts import Generation, RolloutSource
from zoo.llm_rl.selection import DynamicSampling, Selection
from zoo.llm_rl.solver import HasPrompts, Solver
from zoo.optimization import optimization


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with learning rate 1e-6, no weight decay."""
    return torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)


@register(
    "policy_fine_tuner",
    papers=[
        "GRPO 2402.03300",
        "DAPO 2503.14476",
        "Dr.GRPO 2503.20783",
        "RLOO 2402.14740",
        "ReMax 2310.10505",
        "GSPO 2507.18071",
    ],
    task="language model fine-tuning",
    config="llm_rl/grpo_arithmetic",
)
class PolicyFineTuner(Solver):
    """Rollout, reward, advantage, selection, objective: a paper is a choice of these five.

    A batch of prompts is a rollout. Its completions are scored, and learned from in ``num_iterations`` passes over all
    of them, of ``minibatches`` optimiser steps each; ``trainer.accumulate_grad_batches`` cuts a step into forward
    passes. Whatever an advantage or a selection compares, and what a loss is divided by, spans all ranks. A step whose
    completions teach nothing, as all advantages are 0, leaves weights and optimiser as they are.

    Logged under the names that TRL has, with ``train/`` in front; see the method card.

    Args:
        policy: the language model that learns, with pretrained weights; the network's own dropout is turned off,
            as the probabilities of a completion would differ from one pass to the next.
        rewards: what scores completions, by name.
        rollout: where completions come from; default: 8 of the policy's own.
        advantage: how rewards are compared; default: GRPO's.
        selection: what is learned from: completions that all parts keep and, of their tokens, what each part leaves of
            what those before it have left.
        dynamic_sampling: take further prompts for those whose completions all have the same reward.
        objective: the loss; default: clipped surrogate, mean over tokens.
        critic: heads on the policy's hidden states that learn the values of tokens, for advantages that need them.
        auxiliary: a further term of the loss.
        num_iterations: K, passes over a rollout.
        minibatches: M, optimiser steps of a pass.
        rows_at_once: completions of a pass without gradient; null for all.
        optimizer: made from the parameters that need a gradient.
        scheduler: made from the optimiser; stepped once a step.
        solving: see :class:`~zoo.llm_rl.solver.Solver`.
    """

    def __init__(
        self,
        policy: LanguageModel,
        rewards: dict[str, Reward],
        rollout: RolloutSource | None = None,
        advantage: Advantage | TokenAdvantage | None = None,
        selection: list[Selection] | None = None,
        dynamic_sampling: DynamicSampling | None = None,
        objective: ClippedSurrogate | None = None,
        critic: Critic | None = None,
        auxiliary: Auxiliary | None = None,
        num_iterations: int = 1,
        minibatches: int = 1,
        rows_at_once: int | None = 64,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
        **solving: Any,
    ) -> None:
        super().__init__(policy, rewards, **solving)
        for name, value in {"num_iterations": num_iterations, "minibatches": minibatches}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if rows_at_once is not None and rows_at_once < 1:
            raise ValueError(f"rows_at_once={rows_at_once}: must be at least 1, or null for all")
        if policy.pretrained is None and not policy.init_from:
            raise ValueError("policy has no pretrained weights to start from: give pretrained or init_from")
        if policy.lora is not None and policy.lora.dropout:
            raise ValueError(
                f"policy.lora.dropout={policy.lora.dropout}: log-probabilities of the same policy would differ from "
                "one pass to the next; set it to 0"
            )
        self.rollout: RolloutSource = rollout or Generation()
        self.advantage: Advantage | TokenAdvantage = advantage or GroupAdvantage()
        self.selection, self.dynamic_sampling = list(selection or []), dynamic_sampling
        self.objective, self.critic, self.auxiliary = objective or ClippedSurrogate(), critic, auxiliary
        if (critic is not None) != self.advantage.needs_value:
            raise ValueError(
                f"advantage {type(self.advantage).__name__} and critic={critic}: Gae needs a critic, for example "
                "critic: {class_path: Critic}, and no other advantage uses one"
            )
        self.heads: nn.ModuleDict | None = None
        if self.advantage.compares and self.rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size={self.rollout.group_size}: {type(self.advantage).__name__} compares completions "
                "of a prompt (num_generations), so there must be at least 2"
            )
        if self.dynamic_sampling is not None and self.rollout.group_size < 2:
            raise ValueError(
                f"dynamic_sampling with rollout.group_size={self.rollout.group_size}: it takes prompts whose "
                "completions have different rewards, so there must be at least 2"
            )
        if self.objective.correction is not None and not self.rollout.keep_log_probs:
            raise ValueError("objective.correction needs rollout.keep_log_probs: true, what it is to correct for")
        in_reward = self.needs_reference and self.objective.kl is not None and self.objective.kl.placement == "reward"
        if isinstance(self.advantage, Gdpo) and (in_reward or auxiliary is not None):
            raise ValueError(
                "advantage Gdpo standardises each reward alone, so a penalty in their sum, or an auxiliary's change of "
                "it, would be lost: put the penalty into the loss, or use GroupAdvantage"
            )
        for name, reward in rewards.items():
            if isinstance(reward, SoftOverlong) and reward.max_length != self.rollout.sampling.max_new_tokens:
                rank_zero_warn(
                    f"rewards.{name}.max_length is {reward.max_length}, but completions have at most "
                    f"{self.rollout.sampling.max_new_tokens} tokens (rollout.max_new_tokens)"
                )
        for part in (self.rollout, self.auxiliary):
            if part is not None:
                part.check(self)
        self.num_iterations, self.minibatches, self.rows_at_once = num_iterations, minibatches, rows_at_once
        self.optimizer, self.scheduler = optimizer, scheduler
        self._experience: Experience | None = None
        self._saved: list[dict[str, Any] | None] | None = None  # by rank, of the checkpoint that is resumed
        self._reference: list[LanguageModel] = []  # in a list, as it is no part of the module
        self._sums: dict[str, Tensor] = {}  # of an optimiser step's passes: totals and counts

    # --- setting up --------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self._trainer is None:
            return  # a checkpoint, which is being loaded, builds the network
        self.policy.build().without_dropout()
        fit, start = self.trainer.state.fn == "fit", self.needs_reference or self.rollout.needs_start
        if fit and start and self.policy.lora is None and not self._reference:
            self._reference.append(deepcopy(self.policy).requires_grad_(False).eval())
        if fit:
            self.rollout.setup(self)
        if self.critic is not None and self.heads is None:
            self.heads = self.critic.build(self.policy.hidden_size)
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for model in (self.policy, *self._reference, *self.rollout.models):
                model.shard(mesh)
            for head in (self.heads or {}).values():
                fully_shard(head, mesh=mesh)

    def configure_optimizers(self) -> Any:
        return optimization(self, self.optimizer, self.scheduler)

    def on_fit_start(self) -> None:
        for model in (*self._reference, *self.rollout.models):
            model.to(self.device)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, HasPrompts):
            self.check_prompts(data.prompts("train"), self.rollout.sampling, self.rollout.room)
            if "val" in data.splits and self.trainer.limit_val_batches:
                self.check_prompts(data.prompts("val"), self.evaluation)

    @property
    def start(self) -> LanguageModel | None:
        """The policy as it was at the start, of which there is a copy; None with LoRA, or if nothing asks for it."""
        return self._reference[0] if self._reference else None

    def experience(self, prompts: ResumableLoader) -> Experience:
        """The loader of minibatches over a loader of prompts; the data ask for it."""
        rows = prompts.sampler.size * self.rollout.group_size
        pieces = self.trainer.accumulate_grad_batches
        if rows < self.minibatches * pieces:
            raise ValueError(
                f"minibatches={self.minibatches} in accumulate_grad_batches={pieces} passes: more than the {rows} "
                "completions of a rank's rollout"
            )
        world, steps = self.trainer.world_size, self.num_iterations * self.minibatches
        rank_zero_info(
            f"rollout: {prompts.sampler.size} prompts x {self.rollout.group_size} completions x {world} rank(s) = "
            f"{rows * world}; {self.num_iterations} x {self.minibatches} = {steps} optimiser step(s) of "
            f"{rows * world // self.minibatches} completions, each in {pieces} forward pass(es) of "
            f"{-(-rows // (self.minibatches * pieces))} on each rank"
        )
        self._experience = Experience(prompts, self)
        if self._saved is not None:
            if len(self._saved) != world:
                raise ValueError(
                    f"the checkpoint was saved in the middle of a rollout of {len(self._saved)} rank(s), now there "
                    f"are {world}: use as many, or start anew from its weights by policy.init_from"
                )
            buffer = self._saved[self.global_rank]
            if buffer is not None:
                self._experience.load_buffer(buffer, self.device)
            self._saved = None
        return self._experience

    def sample_rows(self) -> list[dict[str, Any]]:
        """Prompts, completions, rewards and advantages of a rollout that has just been made; given once."""
        assert self._experience is not None
        return self._experience.take_table()

    def on_validation_start(self) -> None:
        if self._experience is not None:
            self._experience.pause()

    def on_validation_end(self) -> None:
        if self._experience is not None:
            self._experience.go_on()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._experience is not None:
            checkpoint["rollout"] = gather_objects(self._experience.buffer())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        first = ".output.weight" if self.critic is None or self.critic.embedding is None else ".embedding.weight"
        state = checkpoint.get("state_dict", {}).items()  # shards are loaded without it
        sizes = [x.shape[-1] for name, x in state if name.startswith("heads.") and name.endswith(first)]
        if self.critic is not None and self.heads is None and sizes:
            self.heads = self.critic.build(sizes[0])
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        self._saved = checkpoint.get("rollout") if fits else None

    # --- the policy on completions -----------------------------------------------------------------------------------

    @property
    def needs_reference(self) -> bool:
        """Whether a penalty compares with the policy as it was."""
        return self.objective.kl is not None and self.objective.kl.needs_reference

    @property
    def learns_without_advantage(self) -> bool:
        """Whether a term of the loss is there even where all advantages are 0."""
        terms = self.critic, self.auxiliary, self.objective.entropy or None
        return self.needs_reference or any(term is not None for term in terms)

    def wants(self) -> set[str]:
        """What the method needs to know of each token before it learns, by the names of ``Tokens``."""
        wanted = set()
        kl = self.objective.kl
        in_reward = kl is not None and kl.needs_reference and kl.placement == "reward"
        if self.num_iterations * self.minibatches > 1 or in_reward or self.objective.correction is not None:
            wanted.add("old")
        if self.needs_reference:
            wanted.add("reference")
        if any(part.needs_entropy for part in (self.advantage, *self.selection)):
            wanted.add("entropy")
        if self.critic is not None:
            wanted.add("value")
        return wanted

    def states(self, model: LanguageModel, rollout: Rollout) -> Tensor:
        """Hidden states [N, H] that each of the N tokens of ``rollout.mask`` is predicted from, row after row."""
        return predicting_states(model, rollout, self.together)

    def evaluate(self, rollout: Rollout, want: set[str]) -> dict[str, Tensor]:
        """What is wanted of each token, [b, T] float32, 0 beyond the mask."""
        target, temperature = rollout.response_ids[rollout.mask], self.rollout.sampling.temperature
        found = {}
        if want & {"old", "entropy", "value"}:
            states = self.states(self.policy, rollout)
            if "old" in want:
                found["old"] = self.policy.token_log_probs(states, target, temperature)
            if "entropy" in want:
                found["entropy"] = self.policy.entropy(states, temperature)
            if "value" in want:
                found["value"] = self.values(states, rollout)
        if "reference" in want:
            if self._reference:
                states = self.states(self._reference[0], rollout)
                found["reference"] = self._reference[0].token_log_probs(states, target, temperature)
            else:
                with self.policy.without_adapters():
                    states = self.states(self.policy, rollout)
                    found["reference"] = self.policy.token_log_probs(states, target, temperature)
        return {name: spread(values, rollout.mask) for name, values in found.items()}

    def values(self, states: Tensor, rollout: Rollout) -> Tensor:
        """The critic's values [N] of hidden states [N, H], by the head of each one's row."""
        assert self.heads is not None
        every = torch.stack([head(states).value for head in self.heads.values()])
        if rollout.head is None:
            return every[0]
        head = rollout.head[:, None].expand_as(rollout.mask)[rollout.mask]
        return every.gather(0, head[None])[0]

    # --- learning ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor:
        rollout, temperature = batch.rollout, self.rollout.sampling.temperature
        states = self.states(self.policy, rollout)
        log_probs = self.policy.token_log_probs(states, rollout.response_ids[rollout.mask], temperature)
        entropy = None
        if self.objective.entropy:
            entropy = spread(self.policy.entropy(states, temperature), rollout.mask)
        loss, metrics = self.objective(spread(log_probs, rollout.mask), batch, entropy)
        if self.critic is not None:
            more, found = self.critic.loss(spread(self.values(states, rollout), rollout.mask), batch)
            loss, metrics = loss + more, metrics | found
        if self.auxiliary is not None:
            more, found = self.auxiliary.loss(self, states, batch)
            loss, metrics = loss + more, metrics | found
        self._note(loss, metrics)
        return loss

    def _note(self, loss: Tensor, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Log what an optimiser step's passes, and the rollout that it is the first of, have to show."""
        assert self._experience is not None
        pairs = {"loss": (loss.detach(), torch.ones_like(loss)), **metrics}
        sums = {name: torch.stack([part.float() for part in pair]) for name, pair in pairs.items()}
        self._sums = {name: pair + self._sums.get(name, 0.0) for name, pair in sums.items()}
        if rollout := self._experience.take_metrics():
            self.log_dict({f"train/{name}": value for name, value in rollout.items()}, batch_size=1)
        if self._experience.ends_step:
            total, count = gather(torch.stack(list(self._sums.values()))[None]).sum(0).unbind(1)
            for name, value in zip(self._sums, (total / count.clamp(min=1)).tolist(), strict=True):
                self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=1)
            self._sums = {}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert self._experience is not None
        if self._experience.idle:
            assert optimizer_closure is not None
            optimizer_closure()  # ranks meet in the backward pass
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
