"""The typed batches: the contract between data and methods.

Images leave a dataset as uint8 and reach a method as float32: the DataModule's ``on_after_batch_transfer``
scales and normalises them on the device. Shapes below use B images, C channels, H x W pixels, E episodes,
N classes ("way"), S supports and U queries of an episode.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

Document = Mapping[str, str]
"""A text by its fields, such as ``title`` and ``text``; a query has ``text`` alone."""


class ImageBatch(NamedTuple):
    """Labelled images: ``image`` [B, C, H, W] float32 normalised, ``label`` [B] int64 in [0, classes)."""

    image: Tensor
    label: Tensor


class IndexedImages(NamedTuple):
    """Images to evaluate: ``image`` [B, C, H, W] float32, ``label`` [B] int64 (-1 where unknown), ``row`` [B] int64.

    ``row`` is the image's place in its set; one that comes twice, to fill a rank's last batch, counts once.
    """

    image: Tensor
    label: Tensor
    row: Tensor


class PairBatch(NamedTuple):
    """Aligned pairs: ``support`` and ``query`` [B, C, H, W] float32, ``label`` [B] int64, 1 for the same class."""

    support: Tensor
    query: Tensor
    label: Tensor


class EpisodeBatch(NamedTuple):
    """Whole episodes with their images, to train on or to look at.

    ``support`` [E, S, C, H, W], ``support_label`` [E, S] int64 in [0, N), ``query`` [E, U, C, H, W],
    ``query_label`` [E, U] int64, ``way`` the number of classes N.
    """

    support: Tensor
    support_label: Tensor
    query: Tensor
    query_label: Tensor
    way: int


class PoolBatch(NamedTuple):
    """A slice of the images that a set of episodes draws from; each image comes once.

    ``image`` [B, C, H, W] float32, ``row`` [B] int64 (its row in the feature table that the method keeps),
    ``size`` the number of rows of the whole table.
    """

    image: Tensor
    row: Tensor
    size: int


class BaseBatch(NamedTuple):
    """Base-class training images under the test transform, for statistics such as the feature mean.

    ``image`` [B, C, H, W] float32; ``valid`` [B] bool is False for rows that only fill a rank's last batch.
    """

    image: Tensor
    valid: Tensor


class EpisodeRows(NamedTuple):
    """Episodes as rows of the feature table filled from the ``PoolBatch``es that came before.

    ``support`` [E, S] and ``query`` [E, U] int64 rows, ``support_label`` [E, S] and ``query_label`` [E, U]
    int64 in [0, N) (-1 where unknown, in prediction), ``number`` [E] int64 (the episode's: a number
    that comes twice counts once), ``way`` the number of classes N, ``spec`` the name of this kind of episode.
    """

    support: Tensor
    support_label: Tensor
    query: Tensor
    query_label: Tensor
    number: Tensor
    way: int
    spec: str


class SequenceBatch(NamedTuple):
    """Beginnings of users' sequences ("prefixes") and the item that follows each, to train a recommender on.

    Items are 1 to V, 0 is padding. B prefixes of the last L items, k neighbours of each.
    ``item_seq`` [B, L] int64, padded on the left: the last column is the most recent item; ``target`` [B] int64, the
    item that follows; ``prefix`` [B] int64, the prefix's number among all that are trained on.
    ``views`` [B, 2, L] int64, two changed copies of ``item_seq``; ``neighbors`` [B, k, L] int64, similar prefixes;
    ``same_target`` [B, L] int64, another prefix with the same target. These three are None unless asked for.

    Where a sample is a whole user, ``target`` is [B, L] int64: the item after each column, 0 where there is none.
    """

    item_seq: Tensor
    target: Tensor
    prefix: Tensor
    views: Tensor | None = None
    neighbors: Tensor | None = None
    same_target: Tensor | None = None


class SequenceEvalBatch(NamedTuple):
    """Histories to rank all items for: ``item_seq`` [B, L] int64, ``target`` [B] int64, ``user`` [B] int64.

    ``item_seq`` is padded on the left with 0. ``target`` is the item that followed, 0 where unknown, in prediction.
    A ``user`` number that comes twice, to fill a rank's last batch, counts once.
    """

    item_seq: Tensor
    target: Tensor
    user: Tensor


class RetrievalBatch(NamedTuple):
    """Queries and passages to train a retriever on: B queries with G passages each, as texts.

    ``query`` has B documents, ``passage`` B * G, those of query i from i * G on: first one that answers it, then G - 1
    that do not. ``row`` [B * G] int64 is a passage's place in the corpus, -1 where it has none; ``key`` [B] int64
    starts each sample's own random stream.
    """

    query: list[Document]
    passage: list[Document]
    row: Tensor
    key: Tensor


class QueryBatch(NamedTuple):
    """Queries to rank a corpus for: ``query`` B documents, ``row`` [B] int64 (place in its set; twice counts once)."""

    query: list[Document]
    row: Tensor


class Prompt(NamedTuple):
    """A task for a language model.

    ``id`` is unique in its set and ``text`` is what the model is given; ``answer`` is the reference that rewards
    compare with, ``completion`` a worked solution to imitate. ``info`` is what else rewards and tables want, as JSON.
    """

    id: str
    text: str
    answer: str | None = None
    completion: str | None = None
    info: Mapping[str, Any] = {}


class PromptBatch(NamedTuple):
    """Tasks to try: P prompts, ``row`` [P] int64 (place in its set; twice counts once), ``key`` [P] int64.

    A ``key`` starts all random streams of its prompt: a function of seed, epoch and place.
    """

    prompt: list[Prompt]
    row: Tensor
    key: Tensor
