"""A procedural corpus of topics, to compare retrievers on a CPU: words that stand for nothing, and their synonyms."""

import numpy as np

from datamodules.retrieval_store import ListCorpus, Queries, RetrievalData, RetrievalSet, RowExamples
from datamodules.streams import generator

# Part of a key that tells the uses of one seed apart.
_TOPICS, _DOCUMENTS, _QUERIES = range(3)


class TopicWords(RetrievalSet):
    """Documents of topics' words among background words, and queries of a document's words, some as synonyms.

    A topic is ``topic_words`` of the ``topical`` words, the r-th with a chance in proportion to r ** -``zipf``. Each
    word of a document is a background word (with the chance ``background_share``) or one of the document's topics'.
    A query's words are distinct topical words of its document; each is replaced, with the chance ``synonym_share``,
    by its synonym, a word of its own that no document has: only training tells what it means. The vocabulary is
    topical words, as many synonyms, and background words.

    A query's one relevant document is the one it was made from. Its negatives are the other documents that share a
    topic with it.

    Args:
        documents: how many there are.
        length: fewest and most words of a document.
        topics: how many there are.
        topics_per_document: distinct topics that a document mixes.
        topic_words: words of a topic.
        topical: words that topics are made of.
        background: background words, with Zipf chances too.
        background_share: of a document's words.
        zipf: exponent of the chances of words.
        query_length: fewest and most words of a query.
        synonym_share: chance that a query's word is replaced.
        queries: training, dev and test queries.
        seed: of all draws.
    """

    def __init__(
        self,
        documents: int = 5000,
        length: tuple[int, int] = (40, 60),
        topics: int = 200,
        topics_per_document: int = 1,
        topic_words: int = 30,
        topical: int = 750,
        background: int = 480,
        background_share: float = 0.5,
        zipf: float = 1.0,
        query_length: tuple[int, int] = (3, 5),
        synonym_share: float = 0.2,
        queries: tuple[int, int, int] = (20000, 500, 1000),
        seed: int = 0,
    ) -> None:
        for name, (least, most) in {"length": length, "query_length": query_length}.items():
            if not 1 <= least <= most:
                raise ValueError(f"TopicWords.{name}={least, most}: fewest words, at least 1, then most")
        for name, share in {"background_share": background_share, "synonym_share": synonym_share}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"TopicWords.{name}={share}: must lie in [0, 1]")
        if min(documents, *queries, background) < 1:
            raise ValueError(
                f"TopicWords: documents={documents}, queries={queries}, background={background}: 1 or more"
            )
        if not 1 <= topic_words <= topical or not 1 <= topics_per_document <= topics:
            raise ValueError(
                f"TopicWords: topic_words={topic_words} must lie in [1, topical={topical}], topics_per_document="
                f"{topics_per_document} in [1, topics={topics}]"
            )
        self.documents, self.length, self.topics, self.mixed = documents, length, topics, topics_per_document
        self.topic_words, self.topical, self.background, self.zipf = topic_words, topical, background, zipf
        self.background_share, self.query_length, self.synonym_share = background_share, query_length, synonym_share
        self.counts, self.seed = queries, seed

    def load(self) -> RetrievalData:
        """As in ``RetrievalSet``; ids are ``d0``, ``d1``, ... and ``train0``, ``dev0``, ``test0``, ..."""
        topic, words = self._written()
        corpus = ListCorpus(
            [f"d{row}" for row in range(self.documents)],
            [{"title": "", "text": " ".join(map(self._word, found.tolist()))} for found in words],
        )
        rng = generator(self.seed, _QUERIES)
        queries, asked = {}, {}
        for split, count in zip(("train", "dev", "test"), self.counts, strict=True):
            asked[split] = rng.integers(self.documents, size=count)
            texts = [self._query(rng, words[row]) for row in asked[split]]
            queries[split] = Queries([f"{split}{at}" for at in range(count)], texts)
        qrels = {
            split: {id: {f"d{row}": 1} for id, row in zip(found.ids, asked[split].tolist(), strict=True)}
            for split, found in queries.items()
        }
        return RetrievalData(corpus, queries, qrels, self._examples(queries["train"], asked["train"], topic))

    def _written(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The documents' topics [documents, topics_per_document] int64 and the numbers of their words."""
        rng = generator(self.seed, _TOPICS)
        word = rng.permuted(np.tile(np.arange(self.topical), (self.topics, 1)), axis=1)[:, : self.topic_words]
        rng = generator(self.seed, _DOCUMENTS)
        topic = rng.permuted(np.tile(np.arange(self.topics), (self.documents, 1)), axis=1)[:, : self.mixed]
        words = []
        for own in topic:
            count = int(rng.integers(self.length[0], self.length[1] + 1))
            topical = word[
                rng.choice(own, count), rng.choice(self.topic_words, count, p=_zipf(self.topic_words, self.zipf))
            ]
            common = rng.choice(self.background, count, p=_zipf(self.background, self.zipf)) + 2 * self.topical
            drawn = np.where(rng.random(count) < self.background_share, common, topical)
            if drawn.min() >= 2 * self.topical:  # a document needs a word to be asked for
                drawn[0] = topical[0]
            words.append(drawn)
        return topic, words

    def _query(self, rng: np.random.Generator, words: np.ndarray) -> str:
        known = np.unique(words[words < self.topical])
        count = min(int(rng.integers(self.query_length[0], self.query_length[1] + 1)), len(known))
        drawn = rng.choice(known, count, replace=False)
        drawn = np.where(rng.random(count) < self.synonym_share, drawn + self.topical, drawn)
        return " ".join(map(self._word, drawn.tolist()))

    def _word(self, number: int) -> str:
        """Topical words are t0, t1, ..., their synonyms s0, s1, ..., background words b0, b1, ..."""
        kind, at = divmod(number, self.topical) if number < 2 * self.topical else (2, number - 2 * self.topical)
        return f"{'tsb'[kind]}{at}"

    def _examples(self, queries: Queries, asked: np.ndarray, topic: np.ndarray) -> RowExamples:
        member = [np.flatnonzero((topic == number).any(1)) for number in range(self.topics)]
        near = [np.setdiff1d(np.concatenate([member[at] for at in own]), [row]) for row, own in enumerate(topic)]
        return RowExamples(queries, [np.array([row]) for row in asked], [near[row] for row in asked])


def _zipf(count: int, exponent: float) -> np.ndarray:
    chance = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return chance / chance.sum()
