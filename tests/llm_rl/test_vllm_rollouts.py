"""Completions by vLLM: with a stand-in for the package, and, where it is installed, with the package itself."""

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.llm_rl.conftest import CONFIG, Policy
from tests.llm_rl.test_fine_tuner import Watch, adam, fit, tuner
from zoo.language import LanguageModel, Lora
from zoo.language.configs import position_limit
from zoo.llm_rl import PolicyFineTuner, VllmGeneration
from zoo.llm_rl import vllm_rollouts as module
from zoo.llm_rl.batches import Rollout
from zoo.llm_rl.objectives import ClippedSurrogate, Correction
from zoo.llm_rl.rollouts import Generation, greedy_keys, sample_keys

PROMPTS = [[3, 11, 4, 12], [5, 11, 6], [2, 12]]
KEYS = torch.tensor([4, 9, -2])


class Engine:
    """Writes as many tokens as the seed says, at most ``max_tokens``; those that fit are ended by EOS."""

    made: list["Engine"] = []
    end = 0

    def __init__(self, **settings: Any) -> None:
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert (torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == (torch.float32, False)
        torch.manual_seed(0)  # as vLLM does
        self.settings, self.files = settings, sorted(os.listdir(settings["model"]))
        self.sent: list[dict[str, Tensor]] = []
        self.resets = 0
        self.asked: list[tuple[list[int], Any]] = []
        Engine.made.append(self)

    def collective_rpc(self, method: str, kwargs: dict[str, Iterable[tuple[str, Tensor]]]) -> None:
        assert method == "reload_weights"
        self.sent.append({name: value.clone() for name, value in kwargs["weights_iterator"]})

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, prompts: list[dict[str, list[int]]], each: list[Any], use_tqdm: bool) -> list[Any]:
        outputs = []
        for prompt, params in zip(prompts, each, strict=True):
            self.asked.append((prompt["prompt_token_ids"], params))
            wanted = 1 + params.seed % 9
            tokens = [3 + params.seed % 5] * (wanted - 1) + [Engine.end]
            tokens = tokens[: params.max_tokens]
            known = [{token: SimpleNamespace(logprob=-0.5 - place)} for place, token in enumerate(tokens)]
            output = SimpleNamespace(token_ids=tuple(tokens), logprobs=None if params.logprobs is None else known)
            outputs.append(SimpleNamespace(outputs=[output]))
        return outputs


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """A package vllm that is not there."""
    package = ModuleType("vllm")
    package.LLM = Engine  # type: ignore[attr-defined]
    package.SamplingParams = lambda **settings: SimpleNamespace(**settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(Engine, "made", [])
    return Engine


@pytest.fixture
def model(policy: Policy, engine: type[Engine], monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    built = policy().build().eval()
    monkeypatch.setattr(Engine, "end", built.end_tokens[0])
    return built


def test_rows_are_those_of_vllm_with_eos_in_the_mask(model: LanguageModel) -> None:
    source = VllmGeneration(group_size=2, max_new_tokens=6)
    found = source(model, PROMPTS, KEYS, together=False)
    seeds = [key % 2**63 for key in sample_keys(KEYS, 2).flatten().tolist()]
    wanted = [1 + seed % 9 for seed in seeds]
    assert found.truncated.tolist() == [length > 6 for length in wanted]
    assert 0 < found.truncated.sum() < 6
    assert found.mask.sum(1).tolist() == [min(length, 6) for length in wanted]
    ends = found.response_ids[torch.arange(6), found.mask.sum(1) - 1]
    assert (ends == Engine.end).tolist() == [length <= 6 for length in wanted]
    assert (found.response_ids[~found.mask] == model.tokenizer.pad_token_id).all()
    assert found.sampled is not None
    place = torch.arange(found.mask.shape[1]).float()
    torch.testing.assert_close(found.sampled, torch.where(found.mask, -0.5 - place, 0.0))
    assert found.group.tolist() == [4, 4, 9, 9, -2, -2]
    assert torch.equal(found.key, sample_keys(KEYS, 2).flatten())
    assert found.prompt_ids[2][found.prompt_mask[2]].tolist() == PROMPTS[1]
    assert [prompt for prompt, _ in Engine.made[0].asked] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [params.seed for _, params in Engine.made[0].asked] == seeds
    assert len(set(seeds)) == 6
    assert min(seeds) >= 0  # -1 would be none


def test_it_is_laid_out_as_by_generation(model: LanguageModel) -> None:
    given: dict[str, Any] = {"group_size": 2, "max_new_tokens": 6}
    ours, own = (source(model, PROMPTS, KEYS, False) for source in (VllmGeneration(**given), Generation(**given)))
    for name in ("prompt_ids", "prompt_mask", "group", "key"):
        assert torch.equal(getattr(ours, name), getattr(own, name)), name
    for name, value in ours._asdict().items():
        if name != "sampled" and value is not None:
            assert value.dtype == getattr(own, name).dtype, name


def test_the_engine_gets_the_network_and_its_settings(model: LanguageModel) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    source = VllmGeneration(2, 6, 0.7, dtype="bfloat16", max_model_length=40, engine={"seed": 3, "dtype": "float16"})
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            source(model, PROMPTS, KEYS, False)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(torch.rand(3), wanted)  # the engine's seed is not the trainer's
    (made,) = Engine.made
    found = dict(made.settings)
    assert not os.path.exists(found.pop("model"))
    assert "config.json" in made.files
    assert found == {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "float16",
        "gpu_memory_utilization": 0.3,
        "max_model_len": 40,
        "logprobs_mode": "processed_logprobs",
        "seed": 3,
    }
    params = vars(made.asked[0][1])
    params.pop("seed")
    assert params == {
        "max_tokens": 6,
        "temperature": 0.7,
        "top_k": 0,
        "top_p": 1.0,
        "logprobs": 0,
        "stop_token_ids": model.end_tokens,
        "ignore_eos": True,
        "detokenize": False,
    }


@pytest.mark.parametrize(
    ("settings", "mode", "asked"),
    [
        ({"top_k": 5}, "raw_logprobs", 0),
        ({"temperature": 0.5}, "processed_logprobs", 0),
        ({"temperature": 0.5, "top_p": 0.9, "keep_log_probs": False}, "processed_logprobs", None),
    ],
)
def test_log_probs_are_those_of_all_tokens(
    model: LanguageModel, settings: dict[str, Any], mode: str, asked: int | None
) -> None:
    found = VllmGeneration(2, 6, **settings)(model, PROMPTS, KEYS, False)
    assert Engine.made[0].settings["logprobs_mode"] == mode
    assert Engine.made[0].asked[0][1].logprobs == asked
    assert (found.sampled is None) == (asked is None)


def test_weights_are_sent_once_a_change(model: LanguageModel) -> None:
    source = VllmGeneration(2, 6)
    source(model, PROMPTS, KEYS, False)
    source(model, PROMPTS[:1], KEYS[:1], False)
    source.greedy(model, PROMPTS, KEYS, False)
    (made,) = Engine.made
    assert (len(made.sent), made.resets) == (1, 1)
    assert made.sent[0].keys() == model.merged_state().keys()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    source(model, PROMPTS, KEYS, False)
    source(model, PROMPTS, KEYS, False)
    assert (len(made.sent), made.resets) == (2, 2)
    for name, value in model.merged_state().items():
        assert torch.equal(made.sent[1][name], value)
    assert any(not torch.equal(made.sent[0][name], made.sent[1][name]) for name in made.sent[0])
    source.number += 1
    source(model, PROMPTS, KEYS, False)
    assert len(made.sent) == 3


def test_a_process_has_one_engine(model: LanguageModel) -> None:
    first, second = VllmGeneration(2, 6), VllmGeneration(2, 6)
    for source in (first, second, second, first):
        source(model, PROMPTS, KEYS, False)
    assert [len(made.sent) for made in Engine.made] == [1, 1, 1]
    assert (first._llm, second._llm) == (Engine.made[2], None)


def test_adapters_are_added_in(policy: Policy, engine: type[Engine]) -> None:
    model = policy(Lora(r=2, alpha=8, dropout=0.0)).build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    VllmGeneration(1, 4)(model, PROMPTS, KEYS, False)
    sent, plain = engine.made[0].sent[0], policy().build().merged_state()
    assert sent.keys() == plain.keys()
    changed = {name for name in sent if not torch.equal(sent[name], plain[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert "model.norm.weight" not in changed


def test_the_likeliest_completions(model: LanguageModel) -> None:
    found = VllmGeneration(2, 6, top_k=5).greedy(model, PROMPTS, KEYS, False)
    params = [params for _, params in Engine.made[0].asked]
    assert {(p.temperature, p.top_k, p.top_p) for p in params} == {(0.0, 0, 1.0)}
    assert torch.equal(found.key, greedy_keys(KEYS, 2)[:, 0])
    assert len(found.mask) == 3
    assert found.sampled is None


def test_a_fit(policy: Policy, model: LanguageModel) -> None:
    watch = Watch()
    objective = ClippedSurrogate(correction=Correction())
    source = VllmGeneration(group_size=4, max_new_tokens=8)
    fit(tuner(policy, rollout=source, objective=objective, max_prompt_length=12), 3, callbacks=[watch])
    (made,) = Engine.made
    assert made.settings["max_model_len"] == 20
    assert len(made.sent) == 3
    assert len(made.asked) == 3 * 24
    assert watch.metrics[0]["train/sampling/logp_difference"] > 0.1  # the stand-in's are invented


def test_a_second_fit_has_room_of_its_own_and_asks_for_it_at_its_start(policy: Policy, model: LanguageModel) -> None:
    source = VllmGeneration(group_size=4, max_new_tokens=8)
    for most in (6, 12):
        fit(tuner(policy, rollout=source, max_prompt_length=most), 1)
    assert [made.settings["max_model_len"] for made in Engine.made] == [14, 20]
    source, watch = VllmGeneration(group_size=4, max_new_tokens=8, max_model_length=9), Watch()
    with pytest.raises(ValueError, match="the engine has room for 9"):
        fit(tuner(policy, rollout=source), 1, callbacks=[watch])
    assert len(Engine.made) == 2


def test_room(model: LanguageModel) -> None:
    assert position_limit(model.network.config) == CONFIG["max_position_embeddings"] == 64
    VllmGeneration(1, 60)(model, PROMPTS, KEYS, False)
    assert Engine.made[0].settings["max_model_len"] == 64
    with pytest.raises(ValueError, match="a prompt of 4 tokens with max_new_tokens=61: the network has 64 positions"):
        VllmGeneration(1, 61)(model, PROMPTS, KEYS, False)
    with pytest.raises(ValueError, match="a prompt of 4 tokens with max_new_tokens=6: the engine has room for 9"):
        VllmGeneration(1, 6, max_model_length=9)(model, PROMPTS, KEYS, False)
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        VllmGeneration(1, 6)(model, [[1], []], KEYS[:2], False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0}, "temperature=0"),
        ({"group_size": 0}, "group_size=0"),
        ({"temperature": 0.5, "top_k": 3}, "keep_log_probs=true with temperature=0.5, top_k=3"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization=0.0"),
        ({"max_new_tokens": 8, "max_model_length": 8}, "max_model_length=8"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VllmGeneration(**wrong)


def test_without_the_package_a_fit_says_how_to_get_it(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    learner = tuner(policy, rollout=VllmGeneration(2, 6))  # a test needs none
    with pytest.raises(ImportError, match=r"pip install 'zoo-of-papers\[vllm\]'"):
        fit(learner, 1)


def test_split_weights_are_refused(policy: Policy, engine: type[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    learner = tuner(policy, rollout=VllmGeneration(2, 6))
    monkeypatch.setattr(type(learner), "together", True)
    with pytest.raises(ValueError, match=r"split over ranks \(FSDP\): not supported"):
        learner.rollout.setup(learner)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="the package vllm is not installed")
def test_vllm_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-probabilities are the policy's, before and after a change of weights; one engine is all a process has."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")

    def bundled(lora: Lora | None) -> LanguageModel:  # the other one's heads are too small for vLLM
        return LanguageModel(pretrained="package:zoo/llm_rl/weights/tiny_arithmetic", lora=lora)

    rollout = VllmGeneration(4, 20, 0.7, dtype="float32", engine={"enforce_eager": True})
    learner = tuner(bundled, Lora(r=2, alpha=8, dropout=0.0), rollout=rollout, optimizer=adam)
    model = learner.policy.build().eval()
    first = rollout(model, PROMPTS, KEYS, False)
    again = rollout(model, PROMPTS, KEYS, False)
    assert torch.equal(first.response_ids, again.response_ids)
    assert gap(learner, first) < 1e-4
    assert set(first.truncated.tolist()) == {True, False}
    own = Generation(4, 20).greedy(model, PROMPTS, KEYS, False)
    assert torch.equal(rollout.greedy(model, PROMPTS, KEYS, False).response_ids, own.response_ids)
    watch = Watch()
    fit(learner, 3, callbacks=[watch])
    assert all(metrics["train/sampling/sampling_logp_difference/mean"] < 1e-5 for metrics in watch.metrics)
    assert gap(learner, first) > 1e-2
    assert gap(learner, rollout(model, PROMPTS, KEYS, False)) < 1e-4


def gap(learner: PolicyFineTuner, rollout: Rollout) -> float:
    """The largest difference of vLLM's log-probabilities and the policy's, as it is now."""
    assert rollout.sampled is not None
    with torch.no_grad():
        states = learner.states(learner.policy, rollout)
        own = learner.policy.token_log_probs(states, rollout.response_ids[rollout.mask], 0.7)
    return float((own - rollout.sampled[rollout.mask]).abs().max())
