"""A trained retriever with its corpus, ready to answer queries."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from datamodules.batches import Document
from datamodules.search import Search
from zoo import pretrained
from zoo.checkpoint_io import EXPERIMENT
from zoo.dense_retrieval.evaluation import PassageRetriever
from zoo.dense_retrieval.index import Corpus, CorpusIndex, encode_corpus, weight_norms
from zoo.experiments import data_of
from zoo.language.loading import choose_device


class Hit(NamedTuple):
    """A passage that was found."""

    rank: int
    id: str
    score: float
    document: Document


class Searcher:
    """Answers queries with passages of a corpus.

    Args:
        model: embeds queries.
        corpus: what the index's rows are of.
        index: the corpus's vectors, made by the same model.
        search: how vectors are searched.
        batch_size: queries a forward.
    """

    def __init__(
        self,
        model: PassageRetriever,
        corpus: Corpus,
        index: CorpusIndex,
        search: Search | None = None,
        batch_size: int = 64,
    ) -> None:
        self.model, self.corpus, self.index = model.eval(), corpus, index
        self.how, self.batch_size = search or Search(), batch_size

    @torch.inference_mode()
    def rows(self, queries: Sequence[str], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and corpus rows [Q, k], best first; -inf and -1 beyond the corpus.

        Raises:
            ValueError: for no queries, and one without text.
        """
        if not queries:
            raise ValueError("there are no queries")
        documents = [{"text": text} for text in queries]
        parts = [documents[start : start + self.batch_size] for start in range(0, len(queries), self.batch_size)]
        vectors = torch.cat([self.model.embed(part, "query").float().cpu() for part in parts])
        return self.index.search(vectors, k, self.how)

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The k best passages of each query, best first."""
        found = zip(*(part.tolist() for part in self.rows(queries, k)), strict=True)
        return [
            [
                Hit(rank, self.corpus.ids[row], score, self.corpus[row])
                for rank, (score, row) in enumerate(zip(*both, strict=True), 1)
                if row >= 0
            ]
            for both in found
        ]


def load_retriever(
    checkpoint: str,
    config: str | None = None,
    index: str | None = None,
    device: str = "auto",
    search: Search | None = None,
    batch_size: int = 64,
) -> Searcher:
    """A trained model with its corpus, which is encoded unless the index is there already.

    Args:
        checkpoint: anything that :func:`zoo.pretrained.load` takes.
        config: experiment whose data hold the corpus; null for the run's own.
        index: folder of the corpus's vectors; null for ``index`` in the run folder.
        device: where the model runs; ``auto`` takes an accelerator where there is one.
        search: how vectors are searched; default: exactly.
        batch_size: texts a forward.

    Raises:
        FileNotFoundError: if there is no such checkpoint or config.
        ValueError: if the checkpoint holds no retriever, the config no corpus, or the index is another model's.
    """
    file = pretrained.locate(checkpoint)
    run, exported = file.parents[1], file.is_dir()
    own = file / EXPERIMENT if exported else run / "config.yaml"
    if config is None and not own.is_file():
        raise FileNotFoundError(f"{own.parent} has no {own.name} that names a corpus: give config")
    if index is None and (exported or not own.is_file()):
        raise ValueError(f"{file} is not in a run folder: give index, a folder for the corpus's vectors")
    corpus = data_of(config or str(own), "Retrieval").data.corpus
    model = load_model(file, device)
    rows = torch.arange(len(corpus.ids)).numpy()
    embed = partial(model.embed, kind="passage")
    folder, weights = index or run / "index", weight_norms(model)
    vectors = encode_corpus(embed, corpus, rows, folder, batch_size, weights=weights)
    return Searcher(model, corpus, vectors, search, batch_size)


def load_model(file: Path, device: str = "auto") -> PassageRetriever:
    """The retriever of a ``.ckpt`` file or an exported folder, ready to embed."""
    model = pretrained.load(str(file))
    if not isinstance(model, PassageRetriever):
        raise ValueError(f"{file} holds a {type(model).__name__}, which does not retrieve passages")
    return model.to(choose_device(device))
