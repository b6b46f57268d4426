"""Times reinforcement learning of a tiny language model beside TRL's GRPOTrainer, as Markdown.

TRL stays out of this project's environment. Give it one of its own and run from the folder of this checkout; without
TRL, only ``memory`` and ``loop`` run:

    uv venv VENV --python 3.12
    uv pip install --python VENV/bin/python trl==1.16.0 torch transformers lightning "jsonargparse[signatures]" peft
    PYTHONPATH=. VENV/bin/python benchmarks/llm_rl.py [--only steps]

Both sides run in turn in one process: the same weights, prompts, rewards, lengths, AdamW and clipping, one optimiser
step a generation, no reference model, none of TRL's gradient checkpointing and logs. TRL computes entropies in every
step, which cannot be turned off. The last token of the vocabulary ends a completion, and one weight of the output
embedding, on a channel that is the same everywhere, sets how likely it is.

Figures are per processor second of all threads, as the time on the clock tells of other work on a busy machine.
Trainers are timed from the end of one step to that of another, without set-up. Memory is taken in a fresh process for
each side.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from timing import Row, begin, in_turn, report, seconds

from zoo.startup import light_imports

with light_imports():
    from datamodules.batches import Prompt
    from datamodules.prompt_sets import PromptSet
    from datamodules.prompts import Prompts
    from zoo.language import LanguageModel, Words
    from zoo.language.generation import Sampling, generate, left_padded
    from zoo.language.log_probs import token_log_probs
    from zoo.llm_rl import PolicyFineTuner
    from zoo.llm_rl.advantages import GroupAdvantage
    from zoo.llm_rl.aggregation import coefficients
    from zoo.llm_rl.batches import Minibatch, Sample, Scores
    from zoo.llm_rl.objectives import ClippedSurrogate
    from zoo.llm_rl.rewards import Reward
    from zoo.llm_rl.rollouts import Generation, sample_keys

PROMPTS, GROUP, TOKENS, VOCABULARY = 8, 4, 32, 600
RATE, CLIP, WARM_UP = 1e-6, 1.0, 3
CONFIG = {
    "model_type": "qwen2", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 512, "max_position_embeddings": 256, "initializer_range": 0.1,
    "tie_word_embeddings": False,
}  # fmt: skip
HALF = 0.05  # the probability of the end at which 32 tokens become 16.1 on average: (1 - 0.95 ** 32) / 0.05
STEPS = "{:.2f} times as fast (aim 2)"
FASTER = "{:.2f} times as fast"


# --- what both sides have in common -----------------------------------------------------------------------------------


class Setting:
    """A model on disk whose completions end with probability ``end`` after each token, and the prompts."""

    def __init__(self, folder: Path, end: float, spread: bool) -> None:
        self.end, self.spread = end, spread
        rng = np.random.default_rng(0)
        lengths = rng.integers(6, 13, 800)
        self.prompts = [" ".join(f"w{word}" for word in rng.integers(0, VOCABULARY, length)) for length in lengths]
        # apart from the model, as transformers would read it as a tokenizer of Qwen2
        self.folder, self.words = str(folder / f"model{end}"), str(folder / f"tokenizer{end}")
        torch.manual_seed(0)
        words = " ".join(f"w{number}" for number in range(VOCABULARY))
        model = LanguageModel(config=CONFIG, tokenizer=Words(VOCABULARY)).build([words])
        self._set_end(model)
        model.network.save_pretrained(self.folder)
        model.tokenizer.save_pretrained(self.words)

    @torch.no_grad()
    def _set_end(self, model: LanguageModel) -> None:
        """Channel 0 has the same value in all places, so that a weight on it is a bias of the logit."""
        network = model.network
        network.model.embed_tokens.weight[:, 0] = 1.0
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        ids, mask = left_padded(model.tokenizer(self.prompts[:32])["input_ids"], 0, torch.device("cpu"))
        state = model.eval().hidden(ids, mask)[:, -1]
        network.lm_head.weight[model.tokenizer.eos_token_id] = 0.0
        others = model.logits(state).logsumexp(1).mean()
        logit = others + math.log(self.end / (1 - self.end)) if self.end else -100.0
        network.lm_head.weight[model.tokenizer.eos_token_id, 0] = logit / state[:, 0].mean()

    def reward(self, texts: Sequence[str]) -> list[float]:
        """Of one batch: how often the digit 1 is there; without ``spread``, nothing for every other prompt."""
        return [
            float(text.count("1")) if self.spread or (number // GROUP) % 2 else 0.0 for number, text in enumerate(texts)
        ]

    def policy(self) -> LanguageModel:
        return LanguageModel(pretrained=self.folder, tokenizer=self.words)


class Counted(Reward):
    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return list(self.setting.reward([sample.text for sample in samples]))


class Sentences(PromptSet):
    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def load(self) -> dict[str, list[Prompt]]:
        return {"train": [Prompt(str(number), text) for number, text in enumerate(self.setting.prompts)]}


class Clock:
    """Processor seconds of steps after the first few."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.start, self.stop = steps, 0, 0.0, 0.0

    def tick(self) -> None:
        self.done += 1
        if self.done == WARM_UP:
            self.start = process_time()
        if self.done == WARM_UP + self.steps:
            self.stop = process_time()

    @property
    def rate(self) -> float:
        return self.steps / (self.stop - self.start)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """That of transformers' Trainer."""
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)


# --- our side ---------------------------------------------------------------------------------------------------------


class Ticking(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.tick()


def tuner(setting: Setting) -> PolicyFineTuner:
    return PolicyFineTuner(
        setting.policy(),
        {"counted": Counted(setting)},
        Generation(group_size=GROUP, max_new_tokens=TOKENS),
        optimizer=adamw,
    )


def our_steps(setting: Setting, steps: int) -> float:
    clock = Clock(steps)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, gradient_clip_val=CLIP, callbacks=[Ticking(clock)],
        max_steps=WARM_UP + steps,
    )  # fmt: skip
    trainer.fit(tuner(setting), datamodule=Prompts(Sentences(setting), PROMPTS))
    return clock.rate


def bare_steps(setting: Setting, steps: int) -> float:
    """The same functions one after the other, without Trainer, loader and metrics."""
    clock, learner = Clock(steps), tuner(setting)
    policy = learner.policy.build().train()
    optimizer, advantages, objective = adamw(policy.parameters()), GroupAdvantage(), ClippedSurrogate()
    prompts = Sentences(setting).load()["train"]
    for step in range(WARM_UP + steps):
        some = [prompts[(step * PROMPTS + number) % len(prompts)] for number in range(PROMPTS)]
        keys = torch.arange(step * PROMPTS, (step + 1) * PROMPTS)
        with torch.no_grad():
            rollout = learner.rollout(policy, learner.encode(some), keys, False)
            each = [prompt for prompt in some for _ in range(GROUP)]
            samples = learner.read(each, rollout.response_ids, rollout.mask, rollout.truncated, rollout.key)
            reward, parts = learner.score(samples)
            length = rollout.mask.sum(1)
            weights = torch.ones(1)
            scores = Scores(reward, rollout.group, length, rollout.truncated, rollout.key, parts, weights)
            advantage = advantages(scores)
            total = rollout.mask.sum()
            rows = advantage.nonzero()[:, 0]
            rows = rows[(length + rollout.prompt_mask.sum(1))[rows].argsort(descending=True)]
            rollout = rollout.take(rows)
            weight = rollout.mask.float()
            share = coefficients("token_mean", rollout.mask, weight, len(advantage), total)
            batch = Minibatch(rollout, advantage[rows, None] * weight, share)
        states = learner.states(policy, rollout)
        log_probs = policy.token_log_probs(states, rollout.response_ids[rollout.mask])
        spread = weight.masked_scatter(rollout.mask, log_probs)
        loss, _ = objective(spread, batch, None)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        clock.tick()
    return clock.rate


# --- TRL --------------------------------------------------------------------------------------------------------------


def trl_steps(setting: Setting, steps: int) -> float:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock(steps)

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    def reward(completions: list[str], **_: Any) -> list[float]:
        return setting.reward(completions)

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_completion_length=TOKENS,
            max_steps=WARM_UP + steps, learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=CLIP,
            optim="adamw_torch_fused", use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.0,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32),
            reward,
            settings,
            Dataset.from_dict({"prompt": setting.prompts}),
            processing_class=AutoTokenizer.from_pretrained(setting.words),
            callbacks=[Ticks()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.rate


def trl_generate(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens made by ``model.generate`` with what TRL gives it."""
    from transformers import GenerationConfig

    pad = model.tokenizer.pad_token_id
    ids, mask = left_padded([row for row in prompts for _ in range(GROUP)], pad, torch.device("cpu"))
    settings = GenerationConfig(
        max_new_tokens=TOKENS, do_sample=True, pad_token_id=pad, eos_token_id=model.end_tokens, temperature=1.0,
        top_p=1.0, top_k=0, repetition_penalty=1.0, disable_compile=True,
    )  # fmt: skip
    with torch.no_grad():
        made = model.network.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    made = made[:, ids.shape[1] :]
    end = torch.isin(made, torch.tensor(model.end_tokens))
    return int((end.cumsum(1) - end.int() == 0).sum())


# --- measurements -----------------------------------------------------------------------------------------------------


def settings(folder: Path) -> dict[str, Setting]:
    full, half = f"all of {TOKENS} tokens", "ends after about half of them"
    return {full: Setting(folder, 0.0, True), half: Setting(folder, HALF, False)}


def tokens_a_second(work: Callable[[int], int], calls: int) -> Callable[[], float]:
    """Of ``calls`` generations, in each turn for other prompts."""
    numbers = iter(range(10**9))

    def rate() -> float:
        made = 0

        def all_of_them() -> None:
            nonlocal made
            made = sum(work(next(numbers)) for _ in range(calls))

        took = seconds(all_of_them)
        return made / took

    return rate


def measure_generation(args: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in settings(Path(folder)).items():
            model = setting.policy().build().eval()
            rows = model.tokenizer(setting.prompts)["input_ids"]

            def prompts(number: int, rows: Any = rows) -> Any:
                start = number * PROMPTS % len(rows)
                return rows[start : start + PROMPTS]

            def ours(number: int, model: LanguageModel = model, prompts: Any = prompts) -> int:
                keys = sample_keys(torch.arange(number * PROMPTS, (number + 1) * PROMPTS), GROUP)
                made = generate(model, prompts(number), keys.numpy().astype("uint64"), Sampling(TOKENS))
                return int(made.mask.sum())

            def theirs(number: int, model: LanguageModel = model, prompts: Any = prompts) -> int:
                return trl_generate(model, prompts(number))

            sides = (tokens_a_second(side, args.steps) for side in (ours, theirs))
            yield Row(f"generation: {name}; `model.generate`", "tokens/s", *in_turn(args.repeats, *sides), FASTER)


def measure_steps(args: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in settings(Path(folder)).items():
            sides = [lambda s=setting, side=side: side(s, args.steps) for side in (our_steps, trl_steps)]
            zero = "" if setting.spread else ", half of the groups without advantage"
            what = f"trainer: {name}{zero}; GRPOTrainer"
            yield Row(what, "steps/s", *in_turn(args.repeats, *sides, warm_up=False), STEPS)


def measure_loop(args: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in settings(Path(folder)).items():
            sides = [lambda s=setting, side=side: side(s, args.steps) for side in (our_steps, bare_steps)]
            figures = in_turn(args.repeats, *sides, warm_up=False)
            yield Row(f"trainer: {name}; a loop over the same functions", "steps/s", *figures, "{:.3f} times as fast")


def print_memory(args: argparse.Namespace) -> None:
    """MiB that log-probabilities and their gradient add to the peak of this process."""
    hidden = torch.randn(args.memory_tokens, 64, requires_grad=True)
    weight = torch.randn(args.memory_vocabulary, 64, requires_grad=True)
    target = torch.randint(args.memory_vocabulary, (args.memory_tokens,))

    def plain(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (hidden @ weight.T).log_softmax(1).gather(1, target[:, None])[:, 0]

    def ours(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return token_log_probs(hidden, weight, target)

    side = ours if args.memory_of == "ours" else plain
    side(hidden[:2], target[:2]).sum().backward()  # gradients
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    side(hidden, target).sum().backward()
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps(added / (2**20 if sys.platform == "darwin" else 2**10)))


def measure_memory(args: argparse.Namespace) -> Iterator[Row]:
    sizes = "tokens", "vocabulary"
    shared = [word for name in sizes for word in (f"--memory-{name}", str(getattr(args, f"memory_{name}")))]

    def side(name: str) -> float:
        words = [sys.executable, __file__, "--memory-of", name, "--threads", str(args.threads), *shared]
        return float(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])

    ours, plain = in_turn(args.repeats, lambda: side("ours"), lambda: side("plain"), warm_up=False)
    what = (
        f"memory of the loss: {args.memory_tokens:,} tokens, vocabulary "
        f"{args.memory_vocabulary:,}; log_softmax and gather"
    )
    yield Row(what, "MiB", ours, plain, "{:.3f} of the memory")


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "memory": measure_memory,  # first: a child's peak of memory begins at what its parent holds
    "generation": measure_generation,
    "steps": measure_steps,
    "loop": measure_loop,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="figures of each side")
    parser.add_argument("--steps", type=int, default=20, help="training steps or generations of a figure")
    parser.add_argument("--memory-tokens", type=int, default=2048, help="tokens whose log-probabilities are taken")
    parser.add_argument("--memory-vocabulary", type=int, default=151_936, help="that of Qwen2.5")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), help="one measurement instead of all")
    parser.add_argument("--memory-of", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    begin(args.threads)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if args.memory_of:
        print_memory(args)
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ZOO_CACHE"] = cache
        report(args, MEASUREMENTS, "trl", ("generation", "steps"))


if __name__ == "__main__":
    main()
