"""Supervised fine-tuning and continued pretraining of a language model: the mean over tokens of -log P."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules.batches import Prompt, PromptBatch
from zoo.catalogue import register
from zoo.distributed import gather
from zoo.language.configs import position_limit
from zoo.language.log_probs import chunk_of
from zoo.language.models import LanguageModel
from zoo.language.packing import block_mask, lay_out, pack
from zoo.language.tokenizers import require_eos
from zoo.optimization import optimization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Learn = Literal["completion", "all"]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with learning rate 1e-5, no weight decay."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)


class Example(NamedTuple):
    """A row to learn from: ``tokens`` from ``start`` on are learned, ``prompt`` is the place of its prompt."""

    tokens: list[int]
    start: int
    prompt: int


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Tokens of prompts; where the tokenizer begins texts with BOS, one is first, once."""
    begin = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    return [row if row[:1] == begin else begin + row for row in _plain(tokenizer, texts)]


def encode(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt], learn: Learn, max_length: int
) -> list[Example]:
    """``prompt | completion | EOS`` as tokens, of each prompt.

    Prompt and completion are tokenised apart, as they are when the model writes the completion: no token spans both.
    With ``learn`` ``completion``, a prompt that is too long loses its beginning (but not BOS), a completion that is too
    long beside one token of prompt its end and EOS. With ``all`` nothing is lost: what is too long goes on in further
    rows, each of which begins with the last token of the one before, and each token but the first is learned once.

    Raises:
        ValueError: for a prompt without completion, and an empty text.
    """
    if lacking := [prompt.id for prompt in prompts if prompt.completion is None]:
        raise ValueError(f"prompt {lacking[0]!r} has no completion to learn")
    eos = require_eos(tokenizer)
    before = prompt_tokens(tokenizer, [prompt.text for prompt in prompts])
    behind = [[*row, eos] for row in _plain(tokenizer, [str(prompt.completion) for prompt in prompts])]
    found: list[Example] = []
    for at, (first, rest) in enumerate(zip(before, behind, strict=True)):
        if learn == "all":
            row, step = first + rest, max_length - 1
            starts = range(0, max(len(row) - 1, 1), step)
            found += [Example(row[start : start + max_length], 1, at) for start in starts]
        else:
            rest = rest[: max_length - min(len(first), 1)]
            first = _cut_left(first, max_length - len(rest), tokenizer.bos_token_id)
            found.append(Example(first + rest, max(len(first), 1), at))
    return found


def _plain(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    rows: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return rows


def _cut_left(row: list[int], room: int, bos: int | None) -> list[int]:
    """The end of a row, behind its BOS if it has one."""
    if len(row) <= room:
        return row
    begin = row[:1] if bos is not None and row[0] == bos else []
    return (begin + row[len(row) - room + len(begin) :])[:room]


class Scored(NamedTuple):
    """Learned tokens: ``log_prob`` [N] float32, the ``states`` [N, H] before them, the tokens, and their prompts."""

    log_prob: Tensor
    states: Tensor
    target: Tensor
    prompt: Tensor


@register("sft", papers=["Full-Stack Q 2508.06813"], task="language modelling", config="llm_rl/sft_arithmetic")
class SupervisedFineTuner(LightningModule):
    """Minimises ``-log P`` of the learned tokens, their mean over the batches of all ranks.

    A rank's loss is its sum divided by the tokens of all ranks and times the number of ranks, so that the gradient that
    DDP or FSDP averages is that of the mean over all tokens, however they are spread over ranks. With
    ``accumulate_grad_batches`` a step has the mean of its batches' means.

    Validation and test: ``nll`` (nats a token, over all learned tokens), ``token_accuracy`` (share of them that are the
    likeliest token) and, of completions, ``exact_match`` (share that greedy decoding would write out as they are).

    Args:
        language_model: a causal one.
        learn: tokens with a loss: those of the ``completion`` and EOS, or ``all``, as for continued pretraining.
        max_length: tokens of a row; see :func:`encode` for what is longer.
        packing: put several short sequences into a row of ``max_length``, where none sees another; the same loss for
            fewer columns of padding.
        tokenizer_texts: texts of the data to make the tokenizer from, where it is made and not loaded.
        optimizer: made from the parameters that need a gradient.
        scheduler: made from the optimiser; stepped once a step.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        learn: Learn = "completion",
        max_length: int = 1024,
        packing: bool = False,
        tokenizer_texts: int = 100_000,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if learn not in get_args(Learn):
            raise ValueError(f"learn={learn!r}: must be one of {', '.join(get_args(Learn))}")
        if max_length < 2:
            raise ValueError(f"max_length={max_length}: must be at least 2")
        if tokenizer_texts < 1:
            raise ValueError(f"tokenizer_texts={tokenizer_texts}: must be at least 1")
        if language_model.kind != "causal":
            raise ValueError(f"language_model.kind is {language_model.kind!r}: only a causal one predicts tokens")
        if packing and language_model.attention == "flash_attention_2":
            raise ValueError("attention flash_attention_2 takes no mask of packed rows: use sdpa, or packing: false")
        self.language_model = language_model
        self.learn, self.max_length, self.packing = learn, max_length, packing
        self.tokenizer_texts = tokenizer_texts
        self.optimizer, self.scheduler = optimizer, scheduler
        self._known: list[tuple[Tensor, Tensor]] = []
        self._results: list[dict[str, Any]] = []

    @property
    def network(self) -> LanguageModel:
        """The language model."""
        return self.language_model

    def configure_model(self) -> None:
        if self._trainer is None:
            return  # a checkpoint, which is being loaded, builds the network and knows its tokenizer
        data = getattr(self.trainer, "datamodule", None)
        self.language_model.build(None if data is None else data.train_texts(self.tokenizer_texts))
        require_eos(self.language_model.tokenizer)
        limit = position_limit(self.language_model.network.config)
        if limit is not None and self.max_length > limit:
            raise ValueError(f"max_length={self.max_length}: the network has {limit} positions; use a shorter length")
        if self.device_mesh is not None:
            self.language_model.shard(self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        return optimization(self, self.optimizer, self.scheduler)

    def score(self, prompts: Sequence[Prompt]) -> Scored:
        """The learned tokens of prompts with completions, each predicted from those before it in its own sequence."""
        tokenizer = self.language_model.tokenizer
        examples = encode(tokenizer, prompts, self.learn, self.max_length)
        sequences = [example.tokens for example in examples]
        alone = [[number] for number in range(len(sequences))]
        rows = pack([len(tokens) for tokens in sequences], self.max_length) if self.packing else alone
        layout = lay_out(sequences, rows, tokenizer.pad_token_id)
        start = torch.tensor([example.start for example in examples])[layout.segment]
        row, column = ((layout.segment >= 0) & (layout.position >= start)).nonzero(as_tuple=True)
        number = torch.tensor([example.prompt for example in examples])[layout.segment[row, column]]
        target = layout.input_ids[row, column].to(self.device)
        layout = layout.to(self.device)
        mask = block_mask(layout.segment) if self.packing else layout.segment >= 0
        hidden = self.language_model.hidden(layout.input_ids, mask, layout.position)
        states = hidden[row.to(self.device), column.to(self.device) - 1]
        return Scored(self.language_model.token_log_probs(states, target), states, target, number.to(self.device))

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        log_prob = self.score(batch.prompt).log_prob
        counts = gather(torch.tensor([len(log_prob)], device=self.device))
        loss = -log_prob.sum() * len(counts) / counts.sum().clamp(min=1)
        size = len(batch.prompt)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("train/tokens", counts.sum().float(), batch_size=size)
        return loss

    # --- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._known = []

    def on_test_epoch_start(self) -> None:
        self._known = []

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _evaluate(self, batch: PromptBatch) -> None:
        """Notes of each prompt the sums of -log P, of hits and of tokens."""
        scored = self.score(batch.prompt)
        model = self.language_model
        chunk = chunk_of(model.network.get_output_embeddings().weight)
        likeliest = [model.logits(states).argmax(-1) for states in scored.states.split(chunk)]
        hit = torch.cat(likeliest) == scored.target
        each = torch.stack([-scored.log_prob, hit.float(), torch.ones_like(scored.log_prob)], 1)
        sums = each.new_zeros(len(batch.prompt), 3).index_add(0, scored.prompt, each)
        self._known.append((batch.row, sums))

    def _finish(self, stage: str) -> None:
        row, sums = (gather(torch.cat(part)).cpu() for part in zip(*self._known, strict=True))
        self._known = []
        numbers, place = row.unique(return_inverse=True)
        once = torch.zeros(len(numbers), 3, dtype=torch.float64)
        once[place] = sums.double()  # a row that comes twice, to fill a rank's last batch, counts once
        nll, hits, tokens = once.sum(0)
        metrics = {"nll": nll / tokens.clamp(min=1), "token_accuracy": hits / tokens.clamp(min=1)}
        if self.learn == "completion":
            metrics["exact_match"] = (once[:, 1] == once[:, 2]).double().mean()
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == "nll", sync_dist=True)
        share = {f"{name} %": 100 * value.item() for name, value in metrics.items() if name != "nll"}
        self._results = [{"texts": len(numbers), "nll": metrics["nll"].item(), **share}]

    def results(self) -> list[dict[str, Any]]:
        """The row of the last evaluation."""
        return self._results
