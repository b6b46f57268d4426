"""Few-shot episodes drawn as pure functions of (seed, epoch, index), and the table of images they need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import EpisodeBatch, EpisodeRows, PoolBatch
from datamodules.degrade import Degrade
from datamodules.images import ImageStore, Pools
from datamodules.loaders import Keys
from datamodules.streams import key, uniform

_GAMMA_TRIES = 16  # each fails with probability < 0.05, so all do with probability < 1e-20


@dataclass(frozen=True)
class EpisodeSpec:
    """A kind of episode.

    way: classes of an episode.
    shot: supports of each class.
    query: queries of each class (on average, with ``dirichlet``).
    episodes: how many episodes make an evaluation, or a training epoch.
    seed: episodes with the same seed share their classes, and their supports up to the smaller shot.
    dirichlet: concentration of the query classes' proportions (2 is usual); None means balanced.
    hard: queries are hard images: those of the query pool, or degraded versions of the support pool's.
    """

    way: int = 5
    shot: int = 1
    query: int = 15
    episodes: int = 600
    seed: int = 0
    dirichlet: float | None = None
    hard: bool = False

    def __post_init__(self) -> None:
        for name, least in (("way", 2), ("shot", 1), ("query", 1), ("episodes", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"EpisodeSpec.{name}={value}: must be at least {least}")
        if self.dirichlet is not None and not self.dirichlet > 0:
            raise ValueError(f"EpisodeSpec.dirichlet={self.dirichlet}: must be positive or null")

    @property
    def name(self) -> str:
        dirichlet = "" if self.dirichlet is None else f"-dirichlet{self.dirichlet:g}"
        return f"{self.way}w{self.shot}s" + "-hard" * self.hard + dirichlet


def check_episodes(pools: Pools, spec: EpisodeSpec, split: str = "") -> None:
    """Raises ``ValueError`` where the pools cannot serve ``spec``; ``split`` is a word for the message."""
    where = f"{split}: " * bool(split) + f"episodes {spec.name}"
    classes = pools.support.classes
    if spec.way > len(classes):
        raise ValueError(f"{where}: way={spec.way}, but there are {len(classes)} classes; lower way")
    if pools.query is None:
        both = f"{where}: shot={spec.shot} + query={spec.query}"
        _check_counts(pools.support, spec.shot + spec.query, both, "")
    else:
        if pools.query.classes != classes:
            raise ValueError(f"{where}: the support and the query pool have different classes")
        _check_counts(pools.support, spec.shot, f"{where}: shot={spec.shot}", "support ")
        _check_counts(pools.query, spec.query, f"{where}: query={spec.query}", "query ")


def _check_counts(store: ImageStore, need: int, where: str, pool: str) -> None:
    least = int(store.count.argmin())
    if (have := int(store.count[least])) < need:
        short = int((store.count < need).sum())
        raise ValueError(
            f"{where} needs {need} images of every class in the {pool}pool, but class "
            f"{store.classes[least]!r} has {have} ({short} of {len(store.classes)} classes have too few); "
            "lower it or drop these classes"
        )


def distinct(keys: np.ndarray, size: np.ndarray | int, n: int) -> np.ndarray:
    """The first ``n`` places of a random permutation of ``range(size)`` for each key.

    ``keys`` [...] uint64, ``size`` broadcastable to it; int64 [..., n]. Places past ``size`` hold no meaning.
    The first m places do not depend on n >= m. (Fisher and Yates' shuffle: step i swaps i with a place j_i in
    [i, size). Only what lies in the places 0..n-1 and j_0..j_{n-1} is kept, not the whole array, so the cost does
    not grow with ``size``.)
    """
    step = np.arange(n)
    left = np.maximum(np.asarray(size)[..., None] - step, 1)
    swap = np.floor(uniform(keys, n) * left).astype(np.int64) + step
    place = np.concatenate([np.broadcast_to(step, swap.shape), swap], -1)
    content, drawn = place, np.empty_like(swap)
    for i in range(n):
        drawn[..., i] = content[..., n + i]
        content = np.where(place == swap[..., i, None], content[..., i, None], content)
    return drawn


def gamma(keys: np.ndarray, alpha: float) -> np.ndarray:
    """A Gamma(alpha, 1) number for each key [...] (Marsaglia and Tsang 2000), float64 [...]."""
    d = alpha + (alpha < 1) - 1 / 3
    u = 1 - uniform(keys, 3 * _GAMMA_TRIES + 1)  # in (0, 1]: logarithms follow
    radius, angle, accept = np.moveaxis(u[..., 1:].reshape(*u.shape[:-1], 3, _GAMMA_TRIES), -2, 0)
    normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    root = np.maximum(1 + normal / np.sqrt(9 * d), 1e-300)
    good = np.log(accept) < normal**2 / 2 + d - d * root**3 + 3 * d * np.log(root)
    first = good.argmax(-1)[..., None]
    drawn = d * np.take_along_axis(root, first, -1)[..., 0] ** 3
    return drawn if alpha >= 1 else drawn * u[..., 0] ** (1 / alpha)


def apportion(share: np.ndarray, total: int, room: np.ndarray) -> np.ndarray:
    """Whole numbers [E, N], near ``share * total`` and at most ``room`` [E, N]; each row sums to ``total``.

    Each starts from its share rounded down, cut to its room; what is missing goes one by one to the place
    that lacks most and has room. ``share`` [E, N] sums to 1 in each row; a row's room must reach ``total``.
    """
    wanted = share * total
    count = np.minimum(np.floor(wanted).astype(np.int64), room)
    row = np.arange(len(count))
    while (missing := count.sum(1) < total).any():
        most = np.where(count < room, wanted - count, -np.inf).argmax(1)
        count[row[missing], most[missing]] += 1
    return count


def sample_episodes(
    pools: Pools, spec: EpisodeSpec, epoch: int, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Support rows [E, S], their labels [E, S], query rows [E, U] and their labels [E, U], all int64.

    Episode ``indices[e]`` depends on (spec.seed, epoch, indices[e]) alone. N classes are drawn without
    replacement and numbered 0..N-1 in the order drawn; S = N * shot and U = N * query rows come class by
    class, without replacement. Rows count within their pool: with one pool, no image is both support and
    query; with two, the draws are independent.

    With ``spec.dirichlet`` the queries' class proportions follow Dirichlet(alpha) at the same U (Veilleux et
    al. 2021). A class gives no more queries than its pool holds (less the supports, with one pool); what is
    cut goes to the classes that are furthest below their proportion. A class may have no query.

    Raises ``ValueError`` as ``check_episodes`` does.
    """
    check_episodes(pools, spec)
    index, slot = np.asarray(indices)[:, None], np.arange(spec.way)
    classes = distinct(key(spec.seed, epoch, index[:, 0], 0), len(pools.support.classes), spec.way)
    held = pools.support.count.numpy()[classes]
    room = held - spec.shot if pools.query is None else pools.query.count.numpy()[classes]

    queries = np.full_like(classes, spec.query)
    if spec.dirichlet is not None:
        share = gamma(key(spec.seed, epoch, index, 3, slot), spec.dirichlet)
        queries = apportion(share / share.sum(1, keepdims=True), spec.way * spec.query, room)
    ends = queries.cumsum(1)
    place = np.arange(spec.way * spec.query)
    query_label = (place[:, None] >= ends[:, None, :]).sum(-1)
    nth = place - np.take_along_axis(ends - queries, query_label, 1)

    support_keys = key(spec.seed, epoch, index, 1, slot)
    if pools.query is None:
        drawn = distinct(support_keys, held, spec.shot + int(queries.max()))
        supports, rest = drawn[..., : spec.shot], drawn[..., spec.shot :]
        query_start = pools.support.start.numpy()[classes]
    else:
        supports = distinct(support_keys, held, spec.shot)
        rest = distinct(key(spec.seed, epoch, index, 2, slot), room, int(queries.max()))
        query_start = pools.query.start.numpy()[classes]
    episode = np.arange(len(classes))[:, None]
    support_rows = (pools.support.start.numpy()[classes][..., None] + supports).reshape(len(classes), -1)
    query_rows = query_start[episode, query_label] + rest[episode, query_label, nth]
    support_label = np.tile(np.repeat(slot, spec.shot), (len(classes), 1))
    return support_rows, support_label, query_rows, query_label


def take(table: Tensor, rows: np.ndarray) -> Tensor:
    """``table[rows]`` for rows [B] int64: an index in brackets copies number by number, ten times slower on a CPU."""
    return table.index_select(0, torch.from_numpy(rows))


def gather(pools: Pools, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] uint8 and labels [B]; rows count through the support pool, then the query pool."""
    if pools.query is None:
        return take(pools.support.image, rows), take(pools.support.label, rows)
    held = len(pools.support.label)
    from_query = torch.from_numpy(rows >= held)
    image = pools.support.image.new_empty((len(rows), *pools.support.image.shape[1:]))
    label = pools.support.label.new_empty(len(rows))
    for store, here, first in ((pools.support, ~from_query, 0), (pools.query, from_query, held)):
        chosen = rows[here.numpy()] - first
        image[here], label[here] = take(store.image, chosen), take(store.label, chosen)
    return image, label


def images(pools: Pools) -> int:
    """The number of images in both pools."""
    return len(pools.support.label) + (0 if pools.query is None else len(pools.query.label))


class EpisodeSet:
    """Episodes as rows of a feature table: a keyed data set of ``EpisodeRows``; keys' epochs play no part.

    ``support`` [E, S] and ``query`` [E, U] are rows, ``support_label`` and ``query_label`` their labels.
    """

    def __init__(
        self,
        name: str,
        way: int,
        support: np.ndarray,
        support_label: np.ndarray,
        query: np.ndarray,
        query_label: np.ndarray,
    ) -> None:
        self.name, self.way = name, way
        self.columns = [torch.from_numpy(x) for x in (support, support_label, query, query_label)]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitems__(self, keys: Keys) -> EpisodeRows:
        index = torch.tensor([i for _, i in keys])
        support, support_label, query, query_label = (x[index] for x in self.columns)
        return EpisodeRows(support, support_label, query, query_label, index, self.way, self.name)


class PoolImages:
    """The images of a feature table: a keyed data set of ``PoolBatch``; keys' epochs play no part.

    ``ids`` [R] names the image of each row: below M = ``images(pools)`` a row of ``gather``, from M on the
    degraded version of row id - M, which depends on id - M alone.
    """

    def __init__(
        self,
        pools: Pools,
        ids: np.ndarray,
        degrade: Degrade | None = None,
        bank: Tensor | None = None,
    ) -> None:
        self.pools, self.ids, self.degrade, self.bank = pools, ids, degrade, bank

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, keys: Keys) -> PoolBatch:
        row = np.array([i for _, i in keys])
        ids, held = self.ids[row], images(self.pools)
        image = gather(self.pools, ids % held)[0]
        if (hard := ids >= held).any():
            assert self.degrade is not None
            at = torch.from_numpy(hard)
            image[at] = self.degrade(image[at], key(0, ids[hard] - held), self.bank)
        return PoolBatch(image, torch.from_numpy(row), len(self.ids))


class ExampleEpisode:
    """The first of some episodes with its images, to look at: a keyed data set of one ``EpisodeBatch``."""

    def __init__(self, pool: PoolImages, episodes: EpisodeSet) -> None:
        self.pool, self.episodes = pool, episodes

    def __len__(self) -> int:
        return 1

    def __getitems__(self, keys: Keys) -> EpisodeBatch:
        rows = self.episodes.__getitems__([(0, 0)])
        support, query = (
            self.pool.__getitems__([(0, row) for row in side[0].tolist()]).image[None]
            for side in (rows.support, rows.query)
        )
        return EpisodeBatch(support, rows.support_label, query, rows.query_label, rows.way)


def tabulate(pools: Pools, specs: Sequence[EpisodeSpec]) -> tuple[np.ndarray, list[EpisodeSet]]:
    """The ids (see ``PoolImages``) of all images that the episodes of ``specs`` need, and the episodes.

    Each image comes once. Hard specs take queries from the query pool where there is one, else the degraded
    versions of the support pool's; the other specs know the support pool only.
    """
    held, supports = images(pools), len(pools.support.label)
    drawn = []
    for spec in specs:
        used = pools if spec.hard else Pools(pools.support)
        support, support_label, query, query_label = sample_episodes(used, spec, 0, np.arange(spec.episodes))
        if spec.hard:
            query = query + (held if pools.query is None else supports)
        drawn.append((spec, support, support_label, query, query_label))
    ids = np.unique(np.concatenate([rows.ravel() for _, s, _, q, _ in drawn for rows in (s, q)]))
    return ids, [
        EpisodeSet(spec.name, spec.way, np.searchsorted(ids, s), s_label, np.searchsorted(ids, q), q_label)
        for spec, s, s_label, q, q_label in drawn
    ]
