"""LLM-QL, stage one: a language model learns to generate queries from what one ending token knows of a passage."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import normalize

from datamodules.batches import Document, RetrievalBatch
from datamodules.search import Hits
from zoo.catalogue import register
from zoo.dense_retrieval.corruption import MASK, corrupt_tokens, corrupt_words, sample_generator
from zoo.dense_retrieval.evaluation import Kind, PassageRetriever, Stage
from zoo.dense_retrieval.masks import LabelScope, attention_block, labelled, safe_mask
from zoo.dense_retrieval.prompts import Layout, Positions, fields, fill, layout, tokens_of
from zoo.dense_retrieval.reranking import Reranking
from zoo.language.configs import position_limit
from zoo.language.models import LanguageModel
from zoo.language.tokenizers import require_eos
from zoo.metrics.trec import deepest
from zoo.optimization import optimization

Direction = Literal["d2q", "both"]
MaskUnit = Literal["word", "token"]
Stream = np.random.Generator
PASSAGE = "Instruct: Given a retrieved passage, summarize the passage.\nPassage: {title} {text}\nSummarization: "
QUERY = (
    "Instruct: Given a web search query, retrieve the most relevant passage that answer the query.\n"
    "Query: {text}\nThe most relevant passage: "
)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The official optimiser: AdamW with learning rate 1e-5, no weight decay."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)


def unigram_entropy(counts: Tensor) -> Tensor:
    """The entropy in nats of drawing tokens as often as they were counted, ``counts`` [V]."""
    share = counts.float() / counts.sum()
    return torch.special.entr(share).sum()


@register("llm_ql", papers=["LLM-QL 2504.05216"], task="dense retrieval", config="dense_retrieval/llm_ql_topics")
class QueryLikelihood(PassageRetriever):
    """Minimises ``-log P(q | E(d), q_<t)``, the mean over the labelled tokens of the rank's batch, which DDP averages.

    A row is ``passage in its template | E | query | E`` with the tokenizer's end of sequence as E. Queries are ranked
    by E's output for passages and, in a template of their own, queries: zero-shot retrieval, as ``embed`` has it.

    Logged beside the loss: ``train/nll``, that of the generated tokens alone; ``train/unigram_entropy``, the entropy of
    all those generated so far on this rank, which ``nll`` must fall well below, or E carries nothing; ``train/tokens``.

    Args:
        language_model: a causal one.
        attention_block: generated tokens see the passage through E alone; False for ordinary query generation.
        mask_prob: how likely a word of a passage is to be masked; 0 for no corruption.
        mask_unit: what is masked, ``word`` or ``token``.
        label_scope: what is learned, the ``query`` or, as in the official code, ``all`` tokens.
        direction: ``d2q``, or ``both``: half of the samples generate the passage from the query, uncorrupted.
        position_ids: ``column`` gives E the position ``document_length`` in all rows; ``content`` counts from a row's
            first token. One and the same for rotary positions.
        document_length, query_length: tokens that texts are cut to, on the right: a long passage loses the end of its
            template. ``query_length`` counts the closing E.
        passage_template, query_template: texts around a document's ``{fields}``.
        tokenizer_texts: texts of the data to train the tokenizer on, where it is made and not loaded.
        optimizer: made from the parameters that need a gradient.
        scheduler: made from the optimiser; stepped once a step.
        rerank: a test also ranks this many first passages of each query by query likelihood: another row of results,
            metrics ``test/query_likelihood/...`` and a file ``run_query_likelihood.trec``. Null for none.
        rerank_run: file of a TREC run, of BM25 for one, whose passages are ranked in place of those nearest to E.
        dirichlet_mu: a test ranks the same passages by counted words too, smoothed by as many of the collection.
        ranking: see :class:`~zoo.dense_retrieval.evaluation.PassageRetriever`.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        attention_block: bool = True,
        mask_prob: float = 0.6,
        mask_unit: MaskUnit = "word",
        label_scope: LabelScope = "query",
        direction: Direction = "d2q",
        position_ids: Positions = "column",
        document_length: int = 200,
        query_length: int = 200,
        passage_template: str = PASSAGE,
        query_template: str = QUERY,
        tokenizer_texts: int = 100_000,
        optimizer: OptimizerCallable = adamw,
        scheduler: LRSchedulerCallable | None = None,
        rerank: int | None = None,
        rerank_run: str | None = None,
        dirichlet_mu: float | None = None,
        **ranking: Any,
    ) -> None:
        super().__init__(**ranking)
        if rerank is None and (rerank_run is not None or dirichlet_mu is not None):
            raise ValueError(f"rerank_run={rerank_run!r}, dirichlet_mu={dirichlet_mu}: set rerank, how many passages")
        if rerank is not None and not deepest(self.names) <= rerank <= self.depth:
            raise ValueError(
                f"rerank={rerank}: must be at least the {deepest(self.names)} hits that metrics ask for, and at most "
                f"depth={self.depth}"
            )
        if dirichlet_mu is not None and dirichlet_mu <= 0:
            raise ValueError(f"dirichlet_mu={dirichlet_mu}: must be above 0")
        if not 0 <= mask_prob <= 1:
            raise ValueError(f"mask_prob={mask_prob}: must be between 0 and 1")
        for name, value, allowed in (
            ("mask_unit", mask_unit, MaskUnit),
            ("label_scope", label_scope, LabelScope),
            ("direction", direction, Direction),
            ("position_ids", position_ids, Positions),
        ):
            if value not in get_args(allowed):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(allowed))}")
        for name, length in (("document_length", document_length), ("query_length", query_length)):
            if length < 2:
                raise ValueError(f"{name}={length}: must be at least 2")
        for name, template in (("passage_template", passage_template), ("query_template", query_template)):
            if not fields(template):
                raise ValueError(f"{name}={template!r}: has no field such as {{text}}")
        if language_model.kind != "causal":
            raise ValueError(f"language_model.kind is {language_model.kind!r}: only a causal one generates queries")
        if attention_block and language_model.attention == "flash_attention_2":
            raise ValueError(
                "attention flash_attention_2 takes no attention block: use sdpa, eager or flex_attention, or set "
                "attention_block to false"
            )
        self.language_model = language_model
        self.attention_block, self.mask_prob, self.mask_unit = attention_block, mask_prob, mask_unit
        self.label_scope, self.direction, self.position_ids = label_scope, direction, position_ids
        self.document_length, self.query_length = document_length, query_length
        self.templates: dict[Kind, str] = {"passage": passage_template, "query": query_template}
        self.tokenizer_texts = tokenizer_texts
        self.optimizer, self.scheduler = optimizer, scheduler
        # one more hit where the query's own document is left out
        self.reranking = None if rerank is None else Reranking(rerank + self.drop_self, rerank_run, dirichlet_mu)
        self._given: Hits | None = None
        self._counts: Tensor | None = None

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
        if limit is not None and (most := self.document_length + 1 + self.query_length) > limit:
            raise ValueError(
                f"document_length={self.document_length}, query_length={self.query_length}: with E they have {most} "
                f"positions, the network {limit}; use shorter lengths"
            )
        if self.device_mesh is not None:
            self.language_model.shard(self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        return optimization(self, self.optimizer, self.scheduler)

    # --- texts to tokens -------------------------------------------------------------------------------------------

    def prompts(
        self, documents: Sequence[Document], kinds: Sequence[Kind], streams: Sequence[Stream | None] | None = None
    ) -> list[list[int]]:
        """Tokens of documents in the templates of their kinds, at most ``document_length`` each.

        Those with a stream are corrupted by it.
        """
        tokenizer, rate = self.language_model.tokenizer, self.mask_prob
        if streams is None or rate == 0:
            streams = [None] * len(documents)
        if self.mask_unit == "word":
            documents = [
                document
                if stream is None
                else {field: corrupt_words(text, rate, stream) for field, text in document.items()}
                for document, stream in zip(documents, streams, strict=True)
            ]
        filled = [fill(self.templates[kind], document) for document, kind in zip(documents, kinds, strict=True)]
        by_token = self.mask_unit == "token" and any(streams)
        answer = tokens_of(tokenizer, [text for text, _ in filled], return_offsets_mapping=by_token)
        rows = answer["input_ids"]
        if by_token:
            mask = self._mask_token()
            for row, (stream, (_, spans)) in enumerate(zip(streams, filled, strict=True)):
                if stream is not None:
                    # a token may take in the space before its word, so it is the last character that counts
                    inside = [any(a < stop <= b for a, b in spans) for _, stop in answer["offset_mapping"][row]]
                    rows[row] = corrupt_tokens(rows[row], inside, mask, rate, stream)
        first = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
        return [(first + row)[: self.document_length] for row in rows]

    def targets(self, documents: Sequence[Document], kinds: Sequence[Kind]) -> list[list[int]]:
        """Tokens of documents to generate, their fields joined by spaces, at most ``query_length`` with E behind."""
        tokenizer = self.language_model.tokenizer
        texts = [self.plain(document, kind) for document, kind in zip(documents, kinds, strict=True)]
        rows = tokens_of(tokenizer, texts)["input_ids"]
        return [[*row[: self.query_length - 1], tokenizer.eos_token_id] for row in rows]

    def plain(self, document: Document, kind: Kind) -> str:
        """The fields that the template of a kind has, with spaces between."""
        template = " ".join(f"{{{field}}}" for field in fields(self.templates[kind]))
        return fill(template, document).text

    def _mask_token(self) -> int:
        found = tokens_of(self.language_model.tokenizer, [MASK])["input_ids"][0]
        if len(found) != 1:
            raise ValueError(f"mask_unit=token: {MASK!r} is {len(found)} tokens of this tokenizer; use mask_unit word")
        return int(found[0])

    def _layout(self, documents: Sequence[Sequence[int]], following: Sequence[Sequence[int]] | None = None) -> Layout:
        eos = self.language_model.tokenizer.eos_token_id
        return layout(documents, following, eos, self.document_length, self.position_ids)

    def document_layout(self, documents: Sequence[Document], kind: Kind) -> Layout:
        """Documents as they are, up to E, which is the last column."""
        return self._layout(self.prompts(documents, [kind] * len(documents)))

    def pairs(self, batch: RetrievalBatch) -> Layout:
        """What a step learns from: each query with its first passage, in the direction that its key draws."""
        group = len(batch.passage) // len(batch.query)
        streams = [sample_generator(key) for key in batch.key.tolist()]
        turned = [self.direction == "both" and stream.random() < 0.5 for stream in streams]
        both = [(query, passage) for query, passage in zip(batch.query, batch.passage[::group], strict=True)]
        source = [pair[0 if turn else 1] for pair, turn in zip(both, turned, strict=True)]
        target = [pair[1 if turn else 0] for pair, turn in zip(both, turned, strict=True)]
        kinds: list[tuple[Kind, Kind]] = [("query", "passage") if turn else ("passage", "query") for turn in turned]
        documents = self.prompts(
            source,
            [kind for kind, _ in kinds],
            [None if turn else stream for stream, turn in zip(streams, turned, strict=True)],
        )
        return self._layout(documents, self.targets(target, [kind for _, kind in kinds]))

    # --- the language model on them --------------------------------------------------------------------------------

    def hidden(self, rows: Layout) -> Tensor:
        """States [B, T, H], under the attention block where there is one."""
        rows = rows.to(self.device)
        mask = safe_mask(attention_block(rows.valid, rows.end)) if self.attention_block else rows.valid
        states: Tensor = self.language_model.hidden(rows.input_ids, mask, rows.position)
        return states

    def log_probs(self, rows: Layout, chosen: Tensor) -> Tensor:
        """The log-probabilities [N] of the tokens ``chosen`` [B, T] bool, row after row, each from the one before."""
        row, column = chosen.cpu().nonzero(as_tuple=True)
        target = rows.input_ids[row, column].to(self.device)
        states = self.hidden(rows)[row.to(self.device), column.to(self.device) - 1]
        return self.language_model.token_log_probs(states, target)

    def log_likelihood(self, queries: Sequence[Document], passages: Sequence[Document]) -> Tensor:
        """``log P(q | d)`` [B] of each query with its passage as it is, the closing E included."""
        kinds: tuple[list[Kind], list[Kind]] = (["passage"] * len(passages), ["query"] * len(queries))
        rows = self._layout(self.prompts(passages, kinds[0]), self.targets(queries, kinds[1]))
        chosen = labelled(rows.valid, rows.end, "query")
        total = torch.zeros(len(queries), device=self.device)
        return total.index_add(0, chosen.nonzero()[:, 0].to(self.device), self.log_probs(rows, chosen))

    def embed(self, documents: Sequence[Document], kind: Kind) -> Tensor:
        """E's output behind each document, [B, H] float32 of length 1."""
        rows = self.document_layout(documents, kind).to(self.device)
        states = self.language_model.hidden(rows.input_ids, rows.valid, rows.position)
        return normalize(states[:, rows.end].float(), dim=-1)

    # --- ranking by likelihood -------------------------------------------------------------------------------------

    def prepare(self, stage: Stage) -> None:
        if stage == "test" and self.reranking is not None:
            if self.device_mesh is not None:
                raise ValueError("rerank: ranks take their own time, which sharded weights cannot: test without shards")
            self._given = self.reranking.given(self._data.queries("test").ids, self._data.data.corpus)
        super().prepare(stage)

    def rankings(self, stage: Stage, row: Tensor, hits: Hits) -> dict[str, Hits]:
        """The own hits and, at a test with ``rerank``, what is made of them or of the given run."""
        if stage != "test" or self.reranking is None:
            return super().rankings(stage, row, hits)
        found, first = {"embedding": hits}, (hits[0][:, : self.reranking.first], hits[1][:, : self.reranking.first])
        if self._given is not None:
            found["given run"] = first = self._given[0][row], self._given[1][row]
        queries = [{"text": self._data.queries("test").text[at]} for at in row.tolist()]
        return found | self.reranking.rankings(self, queries, first, self._data.data.corpus, self.rows("test"))

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> Tensor:
        rows = self.pairs(batch)
        chosen = labelled(rows.valid, rows.end, self.label_scope)
        log_prob = self.log_probs(rows, chosen)
        loss = -log_prob.mean()
        generated = chosen.nonzero()[:, 1] > rows.end
        tokens = rows.input_ids[chosen][generated]
        nll = -log_prob.detach()[generated.to(self.device)].mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(rows.input_ids))
        self.log("train/nll", nll, batch_size=len(rows.input_ids))
        self.log("train/unigram_entropy", self._entropy(tokens), batch_size=len(rows.input_ids))
        self.log("train/tokens", float(rows.valid.sum()), batch_size=len(rows.input_ids))
        return loss

    def _entropy(self, tokens: Tensor) -> float:
        if self._counts is None:
            self._counts = torch.zeros(len(self.language_model.tokenizer), dtype=torch.int64)
        self._counts += torch.bincount(tokens, minlength=len(self._counts))
        return unigram_entropy(self._counts).item()
