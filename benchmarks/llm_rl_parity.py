"""The policy loss beside TRL's: loss, gradient and metrics on the same numbers; and CANON beside its official code.

TRL stays out of this project's environment. Give it one of its own and run from the folder of this checkout (measured
with trl 1.16.0, torch 2.15.0, on the CPU):

    uv venv VENV --python 3.12
    uv pip install --python VENV/bin/python trl torch transformers lightning "jsonargparse[signatures]" peft
    PYTHONPATH=. VENV/bin/python benchmarks/llm_rl_parity.py

With ``--canon CHECKOUT`` it also needs a checkout of github.com/biuboomc/CANON (measured at 7d6f814), whose advantage
functions run without the rest of it.
"""

import argparse
import importlib.util
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from zoo.llm_rl.aggregation import Aggregation, coefficients
from zoo.llm_rl.batches import Minibatch, Rollout, Scores
from zoo.llm_rl.canon import AccuracyMu, Canon, CosineMu
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate

ROWS, WIDTH, MINIBATCHES, LONGEST, BETA, SAMPLES = 16, 40, 2, 64, 0.04, 20
AGGREGATIONS: dict[str, Aggregation] = {
    "grpo": "seq_mean_token_mean", "dapo": "token_mean", "dr_grpo": "dr_grpo", "bnpo": "token_mean_local",
}  # fmt: skip
Result = tuple[Tensor, Tensor, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canon", type=Path)
    path = parser.parse_args().canon
    print(f"largest difference over {SAMPLES} random batches, each of {MINIBATCHES} minibatches")
    print(f"{'':34}{'float32':^32}{'float64':^32}")
    print(f"{'':34}{'loss':>10}{'gradient':>10}{'metrics':>10}  {'loss':>10}{'gradient':>10}{'metrics':>10}")
    for name, (ours, theirs) in cases().items():
        found = [f"{x:10.1e}" for dtype in (torch.float32, torch.float64) for x in differences(ours, theirs, dtype)]
        print(f"{name:34}{''.join(found[:3])}  {''.join(found[3:])}")
    if path is not None:
        compare_canon(path)


def cases() -> dict[str, tuple[ClippedSurrogate, dict[str, Any]]]:
    """Our settings and TRL's, by name."""
    result: dict[str, tuple[ClippedSurrogate, dict[str, Any]]] = {}
    for name, aggregation in AGGREGATIONS.items():
        for beta in (0.0, BETA):
            ours = ClippedSurrogate(eps_high=0.28, aggregation=aggregation, max_length=LONGEST, kl=Kl(beta))
            result[f"{name}, beta {beta}"] = ours, {"loss_type": name, "beta": beta}
    grpo = AGGREGATIONS["grpo"]
    for beta in (0.0, BETA):
        ours = ClippedSurrogate("sequence", eps_high=0.28, aggregation=grpo, kl=Kl(beta))
        result[f"gspo, beta {beta}"] = ours, {"importance_sampling_level": "sequence", "beta": beta}
    ours = ClippedSurrogate(eps_high=0.28, aggregation=grpo, kl=Kl(BETA, importance=True))
    result[f"grpo, beta {BETA} with ratio"] = ours, {"beta": BETA, "use_bias_correction_kl": True}
    ours = ClippedSurrogate(eps_high=0.28, delta=1.5, aggregation=grpo)
    result["grpo, delta 1.5"] = ours, {"delta": 1.5}
    ours = ClippedSurrogate(eps_high=0.28, aggregation="token_mean_local", entropy=0.01)
    result["bnpo, entropy bonus 0.01"] = ours, {"loss_type": "bnpo", "entropy_coef": 0.01}
    ours = ClippedSurrogate(eps_high=0.28, aggregation=grpo)
    result["grpo, no old log-probabilities"] = ours, {"old": False}
    ours = ClippedSurrogate("sequence_sum", eps_high=0.28, aggregation=grpo)
    result["rloo"] = ours, {"trainer": RLOOTrainer}
    return result


def differences(ours: ClippedSurrogate, theirs: dict[str, Any], dtype: torch.dtype) -> list[float]:
    """Of loss, gradient (relative to its largest entry) and metrics, the largest over the random batches."""
    settings = {"trainer": GRPOTrainer, "old": True, **theirs}
    trainer, with_old = settings.pop("trainer"), settings.pop("old")
    worst = [0.0, 0.0, 0.0]
    for seed in range(SAMPLES):
        data = draw(seed, dtype, with_old, scale=0.04 if trainer is RLOOTrainer else 0.3)
        loss, grad, metrics = by_us(ours, data)
        other, other_grad, other_metrics = by_trl(trainer, settings, data)
        found = [
            (loss - other).abs().item(),
            ((grad - other_grad).abs().max() / other_grad.abs().max()).item(),
            max(abs(a[name] - b[name]) for a, b in zip(metrics, other_metrics, strict=True) for name in a),
        ]
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    return worst


def draw(seed: int, dtype: torch.dtype, with_old: bool, scale: float) -> dict[str, Tensor]:
    """A random batch, in which about a third of the tokens is clipped."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    length = torch.randint(1, WIDTH + 1, (ROWS,), generator=generator)
    log_probs = -normal(ROWS, WIDTH).abs() - 0.5
    data = {
        "log_probs": log_probs,
        "reference": log_probs + 0.3 * normal(ROWS, WIDTH),
        "advantage": normal(ROWS),
        "entropy": normal(ROWS, WIDTH).abs(),
        "old": log_probs + scale * (normal(ROWS, WIDTH) + normal(ROWS, 1)),
    }
    if not with_old:
        del data["old"]
    return {name: x.to(dtype) for name, x in data.items()} | {"mask": torch.arange(WIDTH) < length[:, None]}


def minibatches(data: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """The batch in parts, and the leaves that gradient is taken to."""
    leaves = [data[name].clone().requires_grad_() for name in ("log_probs", "entropy")]
    whole = {**data, "log_probs": leaves[0], "entropy": leaves[1]}
    parts = [{name: x.chunk(MINIBATCHES)[i] for name, x in whole.items()} for i in range(MINIBATCHES)]
    return parts, *leaves


def gradients(losses: list[Tensor], log_probs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    loss = torch.stack(losses).sum()
    grads = torch.autograd.grad(loss, (log_probs, entropy), allow_unused=True)
    return loss.detach(), torch.stack([torch.zeros_like(log_probs) if grad is None else grad for grad in grads])


def by_us(objective: ClippedSurrogate, data: dict[str, Tensor]) -> Result:
    parts, *leaves = minibatches(data)
    losses, metrics = [], []
    for part in parts:
        mask, rows = part["mask"], len(part["mask"])
        ids, index = torch.zeros(mask.shape, dtype=torch.long), torch.arange(rows)
        rollout = Rollout(ids, mask, ids, mask, index, index < 0, index)
        weight = torch.ones_like(part["log_probs"])
        mode, longest = objective.aggregation, objective.max_length
        share = coefficients(mode, mask, weight, ROWS, data["mask"].sum(), longest)
        advantage = part["advantage"][:, None].expand(mask.shape)
        minibatch = Minibatch(rollout, advantage, share, part.get("old"), part["reference"])
        loss, found = objective(part["log_probs"], minibatch, part["entropy"])
        losses.append(loss)
        metrics.append({name: (total / count).item() for name, (total, count) in found.items()})
    return *gradients(losses, *leaves), metrics


def by_trl(trainer: Any, settings: dict[str, Any], data: dict[str, Tensor]) -> Result:
    """TRL's own loss, with what it reads of a trainer in place of one."""
    parts, *leaves = minibatches(data)
    losses, metrics = [], []
    for part in parts:
        stub = trainer_stub(part, settings)
        mask = part["mask"].to(part["log_probs"].dtype)
        inputs = {
            "prompt_ids": torch.zeros(len(mask), 1), "prompt_mask": torch.ones(len(mask), 1),
            "completion_ids": torch.zeros(mask.shape), "completion_mask": mask,
            "advantages": part["advantage"], "ref_per_token_logps": part["reference"],
            "num_items_in_batch": data["mask"].sum(),
        }  # fmt: skip
        if "old" in part:
            inputs |= {"old_per_token_logps": part["old"], "old_logps": (part["old"] * mask).sum(1)}
        loss = trainer._compute_loss(stub, None, inputs)
        losses.append(loss / MINIBATCHES if trainer is RLOOTrainer else loss)  # its Trainer divides later
        metrics.append({name: values[0] for name, values in stub._metrics["train"].items()})
    return *gradients(losses, *leaves), metrics


def trainer_stub(part: dict[str, Tensor], settings: dict[str, Any]) -> SimpleNamespace:
    defaults = {
        "loss_type": "grpo", "beta": 0.0, "importance_sampling_level": "token", "epsilon_low": 0.2,
        "epsilon_high": 0.28, "entropy_coef": 0.0, "delta": None, "use_bias_correction_kl": False,
    }  # fmt: skip
    values = defaults | settings
    arguments = {name: values.pop(name) for name in ("delta", "use_bias_correction_kl")}
    return SimpleNamespace(
        **values,
        args=SimpleNamespace(**arguments, steps_per_generation=MINIBATCHES),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        current_gradient_accumulation_steps=MINIBATCHES,
        max_completion_length=LONGEST,
        _entropy_bonus_enabled=values["entropy_coef"] > 0,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        use_vllm=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (part["log_probs"], part["entropy"], None),
    )


# --- CANON -----------------------------------------------------------------------------------------------------------


def compare_canon(path: Path) -> None:
    official = canon_functions(path)
    by = {"length": official.compute_dr_length_on_mean_group_outcome_advantage}
    by["entropy"] = official.compute_dr_entropy_per_token_group_outcome_advantage
    print("\nCANON, advantages: largest difference")
    for metric, function in by.items():
        for mu in (0.0, 0.3, 1.0):
            for alpha, beta in ((1.0, 0.0), (0.9, 0.0), (0.9, 0.05)):
                ours = Canon(metric, mu, alpha, beta)  # type: ignore[arg-type]
                worst = canon_difference(ours, function, _lambda=mu, alpha=alpha, beta=beta)
                print(f"{metric:8} mu {mu} alpha {alpha} beta {beta:<5} {worst:.1e}")
    dr_grpo = canon_difference(Canon("length", 0.5), official.compute_dr_grpo_outcome_advantage)
    print(f"Dr. GRPO as mu 0.5: {dr_grpo:.1e}")
    accuracy = official.compute_dr_entropy_per_token_annel_group_outcome_advantage
    print(f"mu by accuracy: {canon_difference(Canon('entropy', AccuracyMu('up')), accuracy):.1e}")
    prefix = "compute_dr_entropy_per_token_cosine_with_restart"
    inter, intra = CosineMu(), CosineMu(high=0.6, low=0.0, of="intra")
    for name, schedule, suffix in (("intra", intra, ""), ("inter", inter, "_r")):
        function = getattr(official, f"{prefix}{suffix}_group_outcome_advantage")
        steps = [canon_difference(Canon("entropy", schedule), function, step=step) for step in range(0, 160, 13)]
        print(f"cosine, first {name}: {max(steps):.1e}")


def canon_functions(path: Path) -> Any:
    """The official module, with stand-ins for the two that it imports and of which only one function is called."""

    def masked_mean(x: Tensor, mask: Tensor, axis: int) -> Tensor:
        return (x * mask).sum(axis) / mask.sum(axis)

    functional, pattern = ModuleType("verl.utils.torch_functional"), ModuleType("verl.utils.pattern")
    functional.masked_mean, pattern.catch_rethink_patterns = masked_mean, None  # type: ignore[attr-defined]
    utils = ModuleType("verl.utils")
    utils.torch_functional, utils.pattern = functional, pattern  # type: ignore[attr-defined]
    modules = {"verl": ModuleType("verl"), "verl.utils": utils, functional.__name__: functional}
    sys.modules |= modules | {pattern.__name__: pattern}
    spec = importlib.util.spec_from_file_location("canon_core", path / "verl" / "trainer" / "ppo" / "core_algos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def canon_difference(ours: Canon, official: Callable[..., tuple[Tensor, Tensor]], **options: float) -> float:
    """Largest over random batches of 8 prompts in random order, 6 completions each, many of the same length."""
    worst = 0.0
    for seed in range(SAMPLES):
        generator = torch.Generator().manual_seed(seed)
        group = torch.arange(8).repeat(6)[torch.randperm(48, generator=generator)]
        length = torch.randint(1, 13, (48,), generator=generator)
        mask = (torch.arange(12) < length[:, None]).float()
        entropy, reward = torch.rand(48, 12, generator=generator), torch.rand(48, generator=generator).round(decimals=1)
        tokens = torch.zeros(48, 12).scatter(1, length[:, None] - 1, reward[:, None])
        scores = Scores(
            reward, group, length, length < 0, torch.arange(48), reward[:, None], torch.ones(1),
            entropy=(entropy * mask).sum(1) / mask.sum(1), step=int(options.get("step", 0)),
        )  # fmt: skip
        more: dict[str, Any] = {**options, "max_length": 1}
        if "entropy" in official.__code__.co_varnames[: official.__code__.co_argcount]:
            more["entropy"] = entropy
        theirs, _ = official(tokens, mask, index=group.numpy(), **more)
        found = ours(scores)[:, None] * mask
        worst = max(worst, (found - theirs).abs().max().item())
        assert math.isfinite(worst)
    return worst


if __name__ == "__main__":
    main()
