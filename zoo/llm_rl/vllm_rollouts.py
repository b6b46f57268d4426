"""Completions that vLLM writes, in the same process, on a copy of the policy's weights; an optional package."""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from unittest.mock import patch
from weakref import ref

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch import distributed as dist

from zoo.language.configs import position_limit
from zoo.language.generation import Completions, Sampling, check_prompts
from zoo.language.models import LanguageModel
from zoo.llm_rl.batches import Rollout
from zoo.llm_rl.rollouts import RolloutSource, check_group, greedy_keys, rows_of, sample_keys

if TYPE_CHECKING:
    from zoo.llm_rl.fine_tuner import PolicyFineTuner


class VllmGeneration(RolloutSource):
    """The policy's own samples, written by vLLM (``pip install zoo-of-papers[vllm]``).

    Each rank has an engine of its own, made at the first rollout, beside the policy on its device; before a rollout it
    gets the policy's weights, adapters added in, if they have changed. A completion has a seed of its own, from its
    prompt's key; its numbers still depend on what is computed with it, as far as rounding does. Not for weights that
    are split over ranks, nor for mixtures of experts, whose weights transformers and vLLM name differently.

    Log-probabilities are those of all tokens at the temperature, as of ``Generation``. vLLM knows them before the
    temperature or after ``top_k`` and ``top_p``, so these go with ``keep_log_probs`` at temperature 1 alone.

    Args:
        group_size, max_new_tokens, temperature, top_k, top_p: as for ``Generation``.
        keep_log_probs: keep vLLM's log-probabilities, to correct for what it computes differently
            (``objective.correction``); the gap is logged.
        gpu_memory_utilization: share of the device's memory for the engine: weights and cache.
        dtype: of the engine's weights; null for that of the policy's.
        max_model_length: tokens of prompt and completion that the engine has room for; null for
            ``max_prompt_length`` and ``max_new_tokens``, or, without the former, the network's positions.
        engine: further arguments of ``vllm.LLM``.
    """

    _owner: ClassVar["ref[VllmGeneration] | None"] = None

    def __init__(
        self,
        group_size: int = 8,
        max_new_tokens: int = 512,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        keep_log_probs: bool = True,
        gpu_memory_utilization: float = 0.3,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        max_model_length: int | None = None,
        engine: dict[str, Any] | None = None,
    ) -> None:
        check_group(group_size, temperature)
        if keep_log_probs and temperature != 1 and (top_k > 0 or top_p < 1):
            raise ValueError(
                f"keep_log_probs=true with temperature={temperature}, top_k={top_k} and top_p={top_p}: vLLM does not "
                "report log-probabilities of all tokens at a temperature; set temperature to 1, or top_k to 0 and "
                "top_p to 1, or keep_log_probs to false"
            )
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization={gpu_memory_utilization}: must be in (0, 1]")
        if max_model_length is not None and max_model_length <= max_new_tokens:
            raise ValueError(
                f"max_model_length={max_model_length}: must be above max_new_tokens={max_new_tokens}, for the prompt"
            )
        self.group_size, self.keep_log_probs = group_size, keep_log_probs
        self.sampling = Sampling(max_new_tokens, temperature, top_k, top_p)
        self.gpu_memory_utilization, self.dtype = gpu_memory_utilization, dtype
        self.max_model_length, self.engine = max_model_length, dict(engine or {})
        self.room = max_model_length
        self._llm: Any = None
        self._engine_room: int | None = None
        self._sent: tuple[Any, ...] = ()

    def setup(self, learner: "PolicyFineTuner") -> None:
        if find_spec("vllm") is None:
            raise ImportError(
                "rollout VllmGeneration needs the package vllm: pip install 'zoo-of-papers[vllm]', or use Generation"
            )
        if learner.together:
            raise ValueError(
                "rollout VllmGeneration with weights that are split over ranks (FSDP): not supported; use Generation, "
                "or a strategy that keeps the weights whole on each rank, such as ddp"
            )
        if self.max_model_length is None:
            most = learner.max_prompt_length
            self.room = None if most is None else most + self.sampling.max_new_tokens

    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool
    ) -> Rollout:
        streams = sample_keys(keys, self.group_size)
        made = self._generate(policy, prompts, streams, self.sampling)
        return rows_of(prompts, policy.tokenizer.pad_token_id, keys, streams, made, self.keep_log_probs)

    def greedy(self, policy: LanguageModel, prompts: Sequence[Sequence[int]], keys: Tensor, together: bool) -> Rollout:
        streams = greedy_keys(keys, self.group_size)
        made = self._generate(policy, prompts, streams, replace(self.sampling, temperature=0.0, top_k=0, top_p=1.0))
        return rows_of(prompts, policy.tokenizer.pad_token_id, keys, streams, made, keep_log_probs=False)

    def _generate(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], streams: Tensor, sampling: Sampling
    ) -> Completions:
        """Completions, with rows ``p * G + g``, of P prompts with the random ``streams`` [P, G]."""
        from vllm import SamplingParams

        device, ends = next(policy.parameters()).device, policy.end_tokens
        with _plain(device):
            check_prompts(policy, prompts, sampling, self.room)
            known = [size for size in (self.room, position_limit(policy.network.config)) if size is not None]
            room = min(known, default=None)
            if self._llm is None or self._engine_room != room:
                self._llm, self._engine_room = None, room
                self._llm = self._make(policy)
            self._send(policy)
            settings = {
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "logprobs": 0 if self.keep_log_probs else None,  # the sampled token's alone
                "stop_token_ids": ends,
                "ignore_eos": True,  # it is one of those
                "detokenize": False,
            }
            seeds = (streams.flatten() & (2**63 - 1)).tolist()
            asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts for _ in range(streams.shape[1])]
            each = [SamplingParams(seed=seed, **settings) for seed in seeds]
            outputs = self._llm.generate(asked, each, use_tqdm=False)
        return _completions([output.outputs[0] for output in outputs], ends, policy.tokenizer.pad_token_id, device)

    # --- the engine --------------------------------------------------------------------------------------------------

    def _make(self, policy: LanguageModel) -> Any:
        """An engine with weights by chance; that of another source, which a process has no room for, is given up."""
        if VllmGeneration._owner is not None and (before := VllmGeneration._owner()) is not None:
            before._llm = None
            gc.collect()
        VllmGeneration._owner, self._sent = ref(self), ()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in this process
        from vllm import LLM

        network = policy.network
        config = deepcopy(network.config)
        config.architectures = [type(network).__name__]
        settings: dict[str, Any] = {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": self.dtype or str(network.dtype).removeprefix("torch."),
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self._engine_room,
            "logprobs_mode": "raw_logprobs" if self.sampling.temperature == 1 else "processed_logprobs",
        }
        ranks: dict[str, str] = {}
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            device = next(policy.parameters()).device
            settings["distributed_executor_backend"] = "external_launcher"  # an engine a rank
            ranks = {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(device.index or 0)}
        with TemporaryDirectory() as folder, isolate_rng(), patch.dict(os.environ, ranks):
            config.save_pretrained(folder)
            return LLM(model=folder, **{**settings, **self.engine})

    def _send(self, policy: LanguageModel) -> None:
        """The policy's weights to the engine, unless it has them."""
        now = (self.number, *((p.data_ptr(), p._version) for p in policy.parameters()))
        if now == self._sent:
            return
        weights = list(policy.merged_state().items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()  # it was computed by the old weights
        self._sent = now


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """Without what a trainer's precision changes; the engine has a dtype of its own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


def _completions(outputs: Sequence[Any], ends: Sequence[int], pad: int, device: torch.device) -> Completions:
    """vLLM's ``outputs``, N of them, as tensors; log-probabilities 0 where it was not asked for any."""
    rows = [list(output.token_ids) for output in outputs]
    most = max(map(len, rows))
    ids = torch.full((len(rows), most), pad)
    log_prob = torch.zeros(len(rows), most)
    for number, (output, row) in enumerate(zip(outputs, rows, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        if output.logprobs is not None:
            found = [known[token].logprob for known, token in zip(output.logprobs, row, strict=True)]
            log_prob[number, : len(row)] = torch.tensor(found)
    length = torch.tensor([len(row) for row in rows])
    truncated = torch.tensor([row[-1] not in ends for row in rows])
    made = Completions(ids, torch.arange(most) < length[:, None], truncated, log_prob)
    return Completions(*(part.to(device) for part in made))
