"""Experience as a data loader: prompts become completions, scores, advantages and then minibatches to learn from."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.batches import Prompt, PromptBatch
from datamodules.loaders import ResumableLoader
from zoo.distributed import gather, gather_objects
from zoo.llm_rl.advantages import TokenAdvantage
from zoo.llm_rl.batches import Minibatch, Rollout, Sample, Scores, Tokens
from zoo.llm_rl.kl import sequence_kl, token_rewards
from zoo.llm_rl.minibatches import Collected, cut
from zoo.llm_rl.reporting import rollout_metrics, sample_rows
from zoo.llm_rl.rollouts import join

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner


class Round(NamedTuple):
    """Completions of one rank, N of them, and what they were scored: ``reward`` [N], ``parts`` [N, F], ``greedy`` [N].

    ``greedy`` is the reward of the likeliest completion of each one's prompt; None unless the advantage asks for it.
    """

    samples: list[Sample]
    rollout: Rollout
    reward: Tensor
    parts: Tensor
    greedy: Tensor | None

    def take(self, rows: Tensor) -> Self:
        return self._replace(
            samples=[self.samples[row] for row in rows.tolist()],
            rollout=self.rollout.take(rows),
            reward=self.reward[rows],
            parts=self.parts[rows],
            greedy=None if self.greedy is None else self.greedy[rows],
        )


class Experience:
    """Iterates over the minibatches of an epoch; a rollout is made when the one before is used up.

    Each batch of prompts is a rollout, which is learned from in ``num_iterations`` passes of ``minibatches`` optimiser
    steps, each of Lightning's ``accumulate_grad_batches`` forward passes; the coefficients of a step's tokens are
    normalised over all of them and over all ranks. Passes after the first take the rows in another order.

    It keeps its place: the prompts' by ``state_dict``, what is left of the rollout under way by ``buffer``.

    Args:
        prompts: gives ``PromptBatch``; used epoch after epoch.
        learner: the module that learns; its parts are called here.
    """

    batch_sampler = None  # Lightning asks whatever may have a sampler for this

    def __init__(self, prompts: ResumableLoader, learner: "PolicyFineTuner") -> None:
        self.prompts, self.learner = prompts, learner
        self.metrics: dict[str, float] = {}
        self._generated = 0
        self.table: list[dict[str, Any]] = []
        self._stream = self._endless()
        self._collected: Collected | None = None
        self._next = 0  # slot of the rollout under way
        self._place = 0  # minibatches handed out in this epoch
        self._resumed = False
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._since = perf_counter()

    @property
    def pieces(self) -> int:
        """Forward passes of an optimiser step."""
        return int(self.learner.trainer.accumulate_grad_batches)

    def __len__(self) -> int:
        learner = self.learner
        return len(self.prompts) * learner.num_iterations * learner.minibatches * self.pieces

    def _endless(self) -> Iterator[PromptBatch]:
        while True:
            yield from self.prompts
            self.prompts.sampler.set_epoch(self.prompts.sampler.epoch + 1)

    def __iter__(self) -> Iterator[Minibatch]:
        # a generator, so that nothing is decided before the first minibatch is asked for
        if not self._resumed:
            self._place = 0
        self._resumed = False
        while self._place < len(self):
            if self._collected is None or self._next == len(self._collected.slots):
                self._collected, self._next = None, 0
                self._collected = self._collect()
            slot = self._collected.slots[self._next]
            self._next += 1
            self._place += 1
            yield self._collected.minibatch(slot)

    @property
    def ends_step(self) -> bool:
        """Whether the minibatch handed out last is the last of its optimiser step."""
        return self._next % self.pieces == 0

    @property
    def idle(self) -> bool:
        """Whether the optimiser step of the minibatch handed out last has nothing to learn, on any rank."""
        assert self._collected is not None
        return self._collected.slots[self._next - 1].idle

    # --- one rollout -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _collect(self) -> Collected:
        learner = self.learner
        self.pause()
        was_training = learner.training
        learner.eval()
        collected = self._prepare(self._rounds())
        learner.train(was_training)
        self.go_on()
        return collected

    def _rounds(self) -> Round:
        """Completions of one batch of prompts, or of as many as dynamic sampling takes to fill it."""
        learner, dynamic = self.learner, self.learner.dynamic_sampling
        kept: list[Round] = []
        wanted = tried = 0
        while True:
            batch = next(self._stream)
            wanted = wanted or len(batch.prompt) * learner.rollout.group_size
            made = self._round(batch)
            tried += 1
            if dynamic is None:
                return made
            rows = dynamic.rows(self._scores(made, everywhere=False)).nonzero()[:, 0]
            if len(rows):
                kept.append(made.take(rows))
            found = sum(len(part.samples) for part in kept)
            if min(gather_objects(found)) >= wanted:
                break
            if 0 < dynamic.max_batches <= tried:
                groups = found // learner.rollout.group_size
                raise RuntimeError(
                    f"dynamic_sampling: after max_batches={tried} batches of prompts {groups} of "
                    f"{wanted // learner.rollout.group_size} prompts have rewards that differ: raise max_batches, or "
                    "take prompts that the model solves at times"
                )
        self.metrics["dynamic_sampling/batches"] = tried
        whole = Round(
            [sample for part in kept for sample in part.samples],
            join([part.rollout for part in kept]),
            torch.cat([part.reward for part in kept]),
            torch.cat([part.parts for part in kept]),
            None if made.greedy is None else torch.cat([part.greedy for part in kept if part.greedy is not None]),
        )
        return whole.take(torch.arange(wanted, device=whole.reward.device))

    def _round(self, batch: PromptBatch) -> Round:
        """Completions of one batch of prompts, scored."""
        learner, likeliest = self.learner, None
        # the network alone: bf16-true makes bfloat16 the type of whatever is made here
        with self._timed("generation"), learner.trainer.precision_plugin.forward_context():
            encoded = learner.encode(batch.prompt)
            steps = learner.num_iterations * learner.minibatches
            learner.rollout.number = learner.trainer.global_step // steps
            rollout = learner.rollout(learner.policy, encoded, batch.key, learner.together)
            if learner.advantage.needs_greedy:
                likeliest = learner.rollout.greedy(learner.policy, encoded, batch.key, learner.together)
        self._generated += int(rollout.mask.sum())
        count = learner.rollout.group_size
        with self._timed("rewards"):
            prompts = [prompt for prompt in batch.prompt for _ in range(count)]
            samples, reward, parts = self._judge(prompts, rollout)
            greedy = None
            if likeliest is not None:
                self._generated += int(likeliest.mask.sum())
                greedy = self._judge(batch.prompt, likeliest)[1].repeat_interleave(count)
        return Round(samples, rollout, reward, parts, greedy)

    def _judge(self, prompts: Sequence[Prompt], rollout: Rollout) -> tuple[list[Sample], Tensor, Tensor]:
        """Completions, as many as ``prompts``, as rewards see them, their rewards [N] and each alone [N, F]."""
        learner = self.learner
        samples = learner.read(prompts, rollout.response_ids, rollout.mask, rollout.truncated, rollout.key)
        reward, parts = (value.to(rollout.mask.device) for value in learner.score(samples))
        return samples, reward, parts

    def _scores(self, made: Round, entropy: Tensor | None = None, everywhere: bool = True) -> Scores:
        """What is known of the rows of all ranks, or of this one alone."""
        trainer, rollout = self.learner.trainer, made.rollout
        total = trainer.max_steps if trainer.max_steps > 0 else (trainer.max_epochs or -1) * len(self) // self.pieces
        over = gather if everywhere else (lambda x: x)
        return Scores(
            reward=over(made.reward),
            group=over(rollout.group),
            length=over(rollout.mask.sum(1)),
            truncated=over(rollout.truncated.to(torch.uint8)).bool(),
            key=over(rollout.key),
            parts=over(made.parts),
            weights=torch.tensor(list(self.learner.weights.values()), device=made.reward.device),
            entropy=None if entropy is None else over(entropy),
            greedy=None if made.greedy is None else over(made.greedy),
            step=trainer.global_step,
            progress=min(trainer.global_step / total, 1.0) if total > 0 else None,
        )

    def _prepare(self, made: Round) -> Collected:
        samples, rollout, reward, parts, _ = made
        learner, rank, rows, extra = self.learner, self.learner.global_rank, len(samples), None
        if learner.auxiliary is not None:
            reward, extra = learner.auxiliary.prepare(learner, samples, rollout, reward, parts)
            made = made._replace(reward=reward)
        mine = slice(rank * rows, (rank + 1) * rows)
        advantage, kl = learner.advantage, learner.objective.kl
        in_reward = kl is not None and kl.needs_reference and kl.placement == "reward"
        by_token = isinstance(advantage, TokenAdvantage)
        before = by_token or in_reward or advantage.needs_entropy
        tokens = self._evaluate(rollout) if before else Tokens(rollout.mask)
        entropy = None
        if tokens.entropy is not None:
            entropy = (tokens.entropy * rollout.mask).sum(1) / rollout.mask.sum(1).clamp(min=1)
        scores = every = self._scores(made, entropy)
        for part in learner.selection:
            scores = part.compared(scores)
        returns, reference = None, tokens.reference
        if in_reward and rollout.own is not None and reference is not None:
            assert tokens.old is not None
            reference = reference.where(rollout.own, tokens.old)  # tokens that another wrote cost the policy nothing
        if isinstance(advantage, TokenAdvantage):
            beta = kl.beta if kl is not None and in_reward else 0.0
            given = token_rewards(scores.reward[mine], rollout.mask, tokens.old, reference, beta)
            per_token, returns = advantage(given, tokens, scores)
            everyone = gather((per_token * rollout.mask).sum(1) / rollout.mask.sum(1).clamp(min=1))
        else:
            if in_reward:
                assert kl is not None
                assert tokens.old is not None
                assert reference is not None
                penalty = sequence_kl(rollout.mask, tokens.old, reference)
                scores = replace(scores, reward=scores.reward - kl.beta * gather(penalty))
            everyone = advantage(scores)
            per_token = everyone[mine, None] * rollout.mask
        kept = torch.ones_like(everyone, dtype=torch.bool)
        for part in learner.selection:
            kept &= part.sequences(scores, everyone)
        own = kept[mine].nonzero()[:, 0]
        if not before:
            tokens = self._evaluate(rollout, own)
        collected = Collected(rollout, per_token, tokens, returns, extra, [])
        weight = self._weights(collected, kept[mine], scores)
        collected = collected._replace(slots=cut(learner, collected, own, weight, ~scores.reward[mine].isnan()))
        learned = (weight > 0) & ((per_token != 0) | learner.learns_without_advantage)
        self._report(every, collected, weight, learned)
        self.table = sample_rows(list(learner.rewards), samples, reward, parts, everyone[mine], learned.sum(1))
        return collected

    def _evaluate(self, rollout: Rollout, rows: Tensor | None = None) -> Tokens:
        """What the method asks to know of each token; of other rows than ``rows``, zeros."""
        learner = self.learner
        want = learner.wants()
        if not want:
            return Tokens(rollout.mask)
        order = torch.arange(len(rollout.mask), device=rollout.mask.device) if rows is None else rows
        # longest first, so that passes have little padding and the largest one is the first
        order = order[(rollout.mask.sum(1) + rollout.prompt_mask.sum(1))[order].argsort(descending=True, stable=True)]
        found = {name: torch.zeros(rollout.mask.shape, device=rollout.mask.device) for name in want}
        passes = self._even(len(order), learner.rows_at_once)
        with self._timed("forward"), learner.trainer.precision_plugin.forward_context():
            for some in order.tensor_split(passes) if passes else []:
                if not len(some):  # sharded weights are gathered by all ranks together
                    learner.evaluate(rollout.take(order.new_zeros(1)), want)
                    continue
                part = rollout.take(some)
                for name, values in learner.evaluate(part, want).items():
                    found[name][some, : values.shape[1]] = values
        return Tokens(rollout.mask, **found)

    def _even(self, rows: int, at_once: int | None) -> int:
        """Forward passes for this rank's rows: with sharded weights as many as any rank needs."""
        passes = -(-rows // (at_once or max(rows, 1)))
        return max(gather_objects(passes)) if self.learner.together else passes

    def _weights(self, collected: Collected, kept: Tensor, scores: Scores) -> Tensor:
        """What the selection leaves of each token, [b, T] float32."""
        weight = collected.rollout.mask * kept[:, None].float()
        if collected.rollout.own is not None:
            weight = weight * collected.rollout.own
        for part in self.learner.selection:
            weight = part.tokens(collected.tokens, collected.advantage, collected.rollout.truncated, weight, scores)
        return weight

    def pause(self) -> None:
        """What comes from here on is no part of the update's time, until ``go_on``."""
        self._seconds["update"] += perf_counter() - self._since

    def go_on(self) -> None:
        self._since = perf_counter()

    # --- what is shown -----------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds[phase] += perf_counter() - start

    def _report(self, scores: Scores, collected: Collected, weight: Tensor, learned: Tensor) -> None:
        learner, device = self.learner, weight.device
        counts = torch.tensor([[self._generated, int(learned.sum())]], device=device)
        generated, trained = gather(counts).sum(0).tolist()
        self._generated = 0
        values = rollout_metrics(scores, list(learner.rewards))
        self.metrics |= {name: float(value) for name, value in values.items()}
        if scores.greedy is not None and len(known := scores.greedy[~scores.greedy.isnan()]):
            self.metrics["reward_greedy"] = float(known.mean())
        self.metrics |= {"tokens/generated": float(generated), "tokens/trained": float(trained)}
        old, sampled = collected.tokens.old, collected.rollout.sampled
        if old is not None and sampled is not None:
            gap = torch.stack([((old - sampled).abs() * weight).sum(), weight.sum()])
            total, count = gather(gap[None]).sum(0)
            self.metrics["sampling/logp_difference"] = float(total / count.clamp(min=1))
        for shown in (learner.advantage, *learner.selection):
            self.metrics |= shown.metrics()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        self.metrics |= {f"time/{phase}": value for phase, value in seconds.items()}
        if whole := sum(seconds.values()):
            self.metrics["time/share_of_generation"] = seconds.get("generation", 0.0) / whole
        if "reward" not in self.metrics:
            rank_zero_warn("no completion could be scored: nothing to learn from in this rollout")
        elif self.metrics.get("frac_reward_zero_std") == 1:
            rank_zero_warn("all completions of each prompt have the same reward: nothing to learn from in this rollout")

    def take_metrics(self) -> dict[str, float]:
        """What there is to log of a rollout that has just been made; it is given once."""
        given, self.metrics = self.metrics, {}
        return given

    def take_table(self) -> list[dict[str, Any]]:
        """The completions of a rollout that has just been made; they are given once."""
        given, self.table = self.table, []
        return given

    # --- keeping its place -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The same on all ranks."""
        return {"prompts": self.prompts.state_dict(), "place": self._place % max(len(self), 1), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        self._place, self._resumed = state["place"], True
        if self._collected is not None:
            self._next = state["next"]

    def buffer(self) -> dict[str, Any] | None:
        """What is left of this rank's rollout, as tensors on the CPU, numbers, dicts and lists."""
        if self._collected is None or self._next == len(self._collected.slots):
            return None
        return {"cut": self._cut_by, **self._collected.state()}

    @property
    def _cut_by(self) -> list[int]:
        return [self.learner.num_iterations, self.learner.minibatches, self.pieces]

    def load_buffer(self, state: dict[str, Any], device: torch.device) -> None:
        """Raises ``ValueError`` if the rollout was cut in another way than this run's."""
        if state["cut"] != self._cut_by:
            raise ValueError(
                "the checkpoint was saved in the middle of a rollout with num_iterations, minibatches and "
                f"accumulate_grad_batches {state['cut']}, now they are {self._cut_by}: set them back, or start anew "
                "from its weights by policy.init_from"
            )
        self._collected = Collected.of(state, device)
