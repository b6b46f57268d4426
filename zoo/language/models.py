"""Language models of transformers as a part of a method: built late, adapted by LoRA, saved without frozen weights."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from zoo.language import checkpoints, log_probs, networks
from zoo.language.configs import position_limit
from zoo.language.loading import load
from zoo.language.masks import mask_for
from zoo.language.tokenizers import TokenizerMaker, from_json, require_eos, to_json
from zoo.pretrained import read_state

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA, arXiv 2106.09685): ``W x + alpha / r * B A x`` with W frozen.

    Args:
        r: rank of A and B.
        alpha: scale.
        dropout: on x, before A.
        targets: ends of the names of the linear layers that are adapted.
    """

    r: int = 32
    alpha: int = 64
    dropout: float = 0.1
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LanguageModel(nn.Module):
    """A transformers network with its tokenizer.

    ``network`` is None until ``build()``, so that a sharded strategy can have it built in ``configure_model``; loading
    a checkpoint builds it too. With LoRA, checkpoints leave out the frozen weights, which ``pretrained`` and
    ``init_from`` bring back; that they are the same is checked.

    Args:
        pretrained: hub name, local folder, or ``package:name/folder``; its own code is never run.
        config: instead of ``pretrained``, a network from scratch: ``model_type`` and the fields of its config class.
            ``vocab_size`` is the tokenizer's if it is left out.
        tokenizer: name or folder of another tokenizer than that of ``pretrained``; with ``config`` also a maker.
        gguf_file: GGUF file in the folder of ``pretrained``; needs the package gguf.
        revision: of a model of the hub: branch, tag or commit.
        kind: ``encoder`` leaves out the head that predicts tokens, which would be without gradient where a loss is on
            hidden states alone; of decoders, attention stays causal.
        dtype: of the weights; ``auto`` is that of the files.
        attention: implementation; ``flash_attention_2`` takes no masks [B, 1, T, T].
        lora: train adapters only.
        gradient_checkpointing: compute each layer again in the backward pass instead of keeping what it computed.
        init_from: run folder, checkpoint or exported weights of the same network, loaded before LoRA is added; of
            adapters, the sum with the weights that they were trained on. Several are loaded one after the other.
    """

    network: Any

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | TokenizerMaker | None = None,
        gguf_file: str | None = None,
        revision: str | None = None,
        kind: Literal["causal", "encoder"] = "causal",
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = "sdpa",
        lora: Lora | None = None,
        gradient_checkpointing: bool = False,
        init_from: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (config is None):
            raise ValueError("give either pretrained, the name of a model, or config, the sizes of one from scratch")
        if config is not None and tokenizer is None:
            raise ValueError("config needs a tokenizer: the name of one, or a maker such as zoo.language.BytePairs")
        if pretrained is not None and isinstance(tokenizer, TokenizerMaker):
            raise ValueError(f"pretrained={pretrained!r} has a vocabulary: tokenizer must be a name, or left out")
        if gguf_file is not None and pretrained is None:
            raise ValueError(f"gguf_file={gguf_file!r}: pretrained must name the folder that it is in")
        if lora is not None and (lora.r < 1 or not 0 <= lora.dropout < 1):
            raise ValueError(f"lora: r={lora.r} must be at least 1 and dropout={lora.dropout} in [0, 1)")
        self.pretrained, self.config, self.revision = pretrained, config, revision
        self._file = {} if gguf_file is None else {"gguf_file": gguf_file}
        self.kind, self.dtype, self.attention, self.lora = kind, dtype, attention, lora
        self.gradient_checkpointing = gradient_checkpointing
        self.init_from = [init_from] if isinstance(init_from, str) else list(init_from or [])
        self._source = tokenizer
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._frozen: frozenset[str] = frozenset()
        self._base: str | None = None
        self.register_module("network", None)
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_pre_hook(_before_loading)

    # --- building ------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Loaded on first use; of a maker, there after ``build()``. One without padding token pads with EOS."""
        if self._tokenizer is None:
            if isinstance(self._source, TokenizerMaker):
                raise RuntimeError("the tokenizer is not made: call build(texts), or load a checkpoint")
            from transformers import AutoTokenizer

            if self._source is not None:
                self._tokenizer = load(AutoTokenizer, self._source)
            else:
                self._tokenizer = load(AutoTokenizer, str(self.pretrained), self.revision, **self._file)
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
        return self._tokenizer

    def build(self, texts: Iterable[str] | None = None) -> Self:
        """Make the network on the CPU, unless it is there.

        Args:
            texts: to make a tokenizer from, where it is a maker's and ``init_from`` brings none; looked at only then.

        Raises:
            FileNotFoundError: if there is no such model or checkpoint.
            ValueError: for a config with unknown fields or sizes that do not fit, a tokenizer with more tokens than
                the network has, and weights that do not fit.
        """
        if self.network is not None:
            return self
        if self._tokenizer is None and isinstance(self._source, TokenizerMaker):
            self._tokenizer = self._make_tokenizer(self._source, texts)
        with torch.device("cpu"):
            if self.config is None:
                more = {"revision": self.revision, "dtype": self.dtype, **self._file}
                network = networks.pretrained(self.kind, str(self.pretrained), self.attention, **more)
            else:
                network = networks.from_scratch(self.kind, self.config, self.tokenizer, self.attention, self.dtype)
            for name in self.init_from:
                checkpoints.load_weights(network, name, self.kind == "encoder")
            if self.lora is not None:
                self._base = checkpoints.digest(network) if self.pretrained or self.init_from else None
                checkpoints.add_lora(network, asdict(self.lora))
                self._frozen = checkpoints.frozen_names(network)
        if len(self.tokenizer) > network.get_input_embeddings().num_embeddings:
            raise ValueError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the network "
                f"{network.get_input_embeddings().num_embeddings} embeddings: use the tokenizer of the same model, or "
                "leave out vocab_size"
            )
        network.config.use_cache = False
        network.get_input_embeddings().padding_idx = None  # it may be E's too, and would be without gradient
        if self.gradient_checkpointing:
            # older releases of transformers know the second name alone
            enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.network = network.train(self.training)  # transformers hands it out in eval mode
        return self

    def _make_tokenizer(self, maker: TokenizerMaker, texts: Iterable[str] | None) -> "PreTrainedTokenizerBase | None":
        """That of the weights to start from, else a new one: another order of tokens would make nonsense of weights."""
        for name in self.init_from:
            text = checkpoints.describe(read_state(name))["tokenizer"]
            if text is not None:
                return from_json(text)
        if self.init_from:
            raise ValueError(
                f"init_from {', '.join(self.init_from)} holds no tokenizer, and a new one would number tokens "
                "otherwise: give tokenizer, a folder that the right one was saved in by save_pretrained"
            )
        return None if texts is None else maker.make(texts)

    def _has_vocabulary(self) -> bool:
        embeddings: int = self._built().get_input_embeddings().num_embeddings
        return embeddings == (self.config or {}).get("vocab_size", len(self.tokenizer))

    def shard(self, mesh: "DeviceMesh") -> Self:
        """Split the weights over the ranks of a mesh (FSDP2), layer by layer; after ``build()``, with LoRA or without.

        To be called in ``configure_model`` under ``zoo.strategies.FSDP2Strategy``.
        """
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        if torch.distributed.is_initialized() and mesh.size() != torch.distributed.get_world_size():
            raise ValueError(
                f"the weights would be split over {mesh.size()} of {torch.distributed.get_world_size()} ranks: use "
                "the strategy zoo.strategies.FSDP2Strategy, or set data_parallel_size and tensor_parallel_size (1)"
            )
        layers = set(self._built()._no_split_modules or ())
        for module in self.network.modules():
            if type(module).__name__ in layers:
                fully_shard(module, mesh=mesh)
        fully_shard(self, mesh=mesh)
        self._frozen = frozenset()  # Lightning loads shards by name, without the hook that fills frozen weights in
        for method in ("hidden", "logits", "token_log_probs", "entropy"):
            register_fsdp_forward_method(self, method)
        return self

    # --- what it computes ----------------------------------------------------------------------------------------

    @property
    def hidden_size(self) -> int:
        """H, the width of hidden states."""
        return int(self._built().config.hidden_size)

    @property
    def decoder(self) -> Any:
        """The network without its head."""
        return self._built().base_model

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, past_key_values: Any = None
    ) -> Tensor:
        """Hidden states [B, T, H] after the last norm.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, S], nonzero where there is a token, in addition to which decoders are causal; or bool
                [B, 1, T, S], True where a row may attend to a column, which is all that counts then. S is T plus the
                length of the cache.
            position_ids: [B, T] int64; default: 0 to T - 1 by column.
            past_key_values: a cache of transformers, which is read and extended.

        Raises:
            ValueError: for more tokens than the network has positions, and masks that the attention cannot use.
        """
        network = self._built()
        limit = position_limit(network.config)
        if limit is not None and (length := attention_mask.shape[-1]) > limit:
            raise ValueError(f"{length} tokens, but the network has {limit} positions: use shorter lengths")
        more = {"position_ids": position_ids, "past_key_values": past_key_values}
        output = self.decoder(
            input_ids=input_ids,
            attention_mask=mask_for(self.attention, attention_mask, network.dtype),
            **{name: value for name, value in more.items() if value is not None},
        )
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of the next token after hidden states [..., H]."""
        logits: Tensor = self._built().get_output_embeddings()(hidden)
        return logits

    def without_dropout(self) -> Self:
        """Turns dropout off, adapters' and attention's too, for methods that compare log-probabilities of passes."""
        for module in self._built().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
        return self

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The network as it was before LoRA, for as long as the context lasts."""
        from peft.tuners.lora import LoraLayer

        layers = [module for module in self._built().modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a completion: EOS, and what the model's own generation settings name beside it."""
        named = getattr(getattr(self._built(), "generation_config", None), "eos_token_id", None)
        more = named if isinstance(named, list) else [] if named is None else [named]
        return sorted({require_eos(self.tokenizer), *more})

    def token_log_probs(self, hidden: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """log P of targets [...] from the hidden states [..., H] before them: [...] float32, in chunks."""
        return log_probs.token_log_probs(hidden, self._head(), target, temperature=temperature)

    def entropy(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Entropy in nats of the next token after hidden states [..., H]: [...] float32, in chunks."""
        return log_probs.entropy(hidden, self._head(), temperature=temperature)

    def _head(self) -> Tensor:
        head = self._built().get_output_embeddings()
        if head is None:
            raise ValueError(f"kind={self.kind!r} has no head that predicts tokens: use kind causal")
        scaled = [name for name in _LOGIT_CHANGES if getattr(self.network.config, name, None) not in (None, 1.0)]
        if scaled or getattr(head, "bias", None) is not None:
            raise ValueError(
                f"{type(self.network).__name__}: logits are changed by {', '.join(scaled) or 'a bias'}, which "
                "token_log_probs leaves out: use a model whose logits are a product with the output embedding"
            )
        weight: Tensor = head.weight
        return weight

    def _built(self) -> Any:
        if self.network is None:
            raise RuntimeError("the language model is not built: call build(), or load a checkpoint")
        return self.network

    # --- saving --------------------------------------------------------------------------------------------------

    def merged_state(self) -> dict[str, Tensor]:
        """The plain weights of the whole network, adapters added in: for export, and for ``init_from``."""
        return checkpoints.merged_state(self._built())

    def get_extra_state(self) -> Tensor:
        """A made tokenizer, the LoRA settings and a digest of the frozen weights, as JSON in uint8."""
        made = self._tokenizer is not None and isinstance(self._source, TokenizerMaker)
        about = {
            "tokenizer": to_json(self._tokenizer) if made else None,
            "lora": None if self.lora is None else asdict(self.lora),
            "base": self._base,
        }
        return checkpoints.encode(about)

    def set_extra_state(self, state: Tensor) -> None:
        """A checkpoint's tokenizer takes the place of a made one."""
        text = checkpoints.decode(state)["tokenizer"]
        if text is not None and isinstance(self._source, TokenizerMaker):
            self._tokenizer = from_json(text)


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(module, LanguageModel)
    if module._base is not None:
        for name in module._frozen:
            state.pop(f"{prefix}network.{name}", None)


def _before_loading(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Build for a checkpoint, and fill in the frozen weights that it leaves out."""
    assert isinstance(module, LanguageModel)
    extra = state.get(f"{prefix}_extra_state")
    if extra is not None:
        module.set_extra_state(extra)
    if module.network is not None and isinstance(module._source, TokenizerMaker) and not module._has_vocabulary():
        module.network = None  # it was made for the tokenizer of other texts than the checkpoint's
    if module.network is None and any(key.startswith(f"{prefix}network.") for key in state):
        module.build()
    if module._base is not None:
        if extra is not None:
            checkpoints.check_base(checkpoints.decode(extra), module._base, "the checkpoint")
        own = module.network.state_dict()
        for name in module._frozen:
            state.setdefault(f"{prefix}network.{name}", own[name])
