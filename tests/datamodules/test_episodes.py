import numpy as np
import pytest
import torch

from datamodules.episodes import EpisodeSpec, apportion, distinct, gamma, sample_episodes, tabulate
from datamodules.images import ImageStore, Pools
from datamodules.streams import key


def store(counts: list[int], kind: str = "image") -> ImageStore:
    label = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    image = torch.arange(len(label), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageStore(image, label, tuple(f"c{i}" for i in range(len(counts))), kind=kind)


ONE = Pools(store([20, 17, 30, 16, 25, 40, 18]))
TWO = Pools(store([20, 17, 30, 16, 25, 40, 18]), store([15, 60, 22, 19, 31, 15, 44]))
SPEC = EpisodeSpec(seed=4)
MANY = np.arange(4000)


def test_distinct_is_uniform_over_permutations() -> None:
    drawn = distinct(key(0, np.arange(24_000)), 4, 3)
    assert drawn.min() == 0
    assert drawn.max() == 3
    counts = np.bincount(drawn @ [16, 4, 1], minlength=64)
    assert (counts > 0).sum() == 24  # 4 * 3 * 2 ordered draws without repeats
    assert ((counts[counts > 0] - 1000) ** 2 / 1000).sum() < 60  # chi-square, 23 degrees of freedom
    np.testing.assert_array_equal(distinct(key(0, np.arange(9)), 50, 20)[:, :6], distinct(key(0, np.arange(9)), 50, 6))
    assert sorted(distinct(key(1, np.array([7])), 30, 30)[0].tolist()) == list(range(30))


@pytest.mark.parametrize("pools", [ONE, TWO], ids=["one pool", "two pools"])
@pytest.mark.parametrize("dirichlet", [None, 2.0])
def test_episodes_are_well_formed(pools: Pools, dirichlet: float | None) -> None:
    spec = EpisodeSpec(shot=1, query=15, dirichlet=dirichlet, seed=2)
    rows, labels, query_rows, query_labels = sample_episodes(pools, spec, 0, MANY)
    assert rows.shape == labels.shape == (4000, 5)
    assert query_rows.shape == query_labels.shape == (4000, 75)
    np.testing.assert_array_equal(labels, np.tile(np.arange(5), (4000, 1)))
    assert (np.diff(query_labels) >= 0).all()
    support_class = pools.support.label.numpy()[rows]
    assert (np.diff(np.sort(support_class)) > 0).all()
    query_class = (pools.query or pools.support).label.numpy()[query_rows]
    np.testing.assert_array_equal(query_class, np.take_along_axis(support_class, query_labels, 1))
    assert (np.diff(np.sort(query_rows)) > 0).all()
    if pools.query is None:
        assert not (rows[:, :, None] == query_rows[:, None, :]).any()
    counts = (query_labels[:, :, None] == np.arange(5)).sum(1)
    if dirichlet is None:
        assert (counts == 15).all()
    else:
        assert counts.std() > 3


def test_every_class_and_image_is_as_likely_in_every_place() -> None:
    rows, _, query_rows, _ = sample_episodes(ONE, SPEC, 0, MANY)
    classes = ONE.support.label.numpy()[rows]
    for slot in range(5):
        expected = 4000 / 7
        assert ((np.bincount(classes[:, slot], minlength=7) - expected) ** 2 / expected).sum() < 28
    for drawn, per_class in ((rows, 1), (query_rows, 15)):
        hits = np.bincount(drawn.ravel(), minlength=len(ONE.support.label))
        expected = (4000 * 5 / 7 * per_class / ONE.support.count.numpy())[ONE.support.label.numpy()]
        assert (abs(hits - expected) < 5 * np.sqrt(expected)).all()


def test_an_episode_depends_on_seed_epoch_and_index_alone() -> None:
    spec = EpisodeSpec(dirichlet=1.5)
    together = sample_episodes(TWO, spec, 3, np.arange(64))
    for indices in (np.array([17]), np.array([40, 17, 2]), np.arange(17, 64, 23)):
        for part, whole in zip(sample_episodes(TWO, spec, 3, indices), together, strict=True):
            np.testing.assert_array_equal(part, whole[indices])
    assert (sample_episodes(TWO, spec, 4, np.arange(64))[0] != together[0]).mean() > 0.8
    assert (sample_episodes(TWO, EpisodeSpec(seed=1), 3, np.arange(64))[0] != together[0]).mean() > 0.8


def test_more_shots_keep_classes_and_first_supports() -> None:
    one = sample_episodes(TWO, EpisodeSpec(shot=1), 0, MANY[:20])
    five = sample_episodes(TWO, EpisodeSpec(shot=5), 0, MANY[:20])
    np.testing.assert_array_equal(five[0][:, ::5], one[0])
    np.testing.assert_array_equal(five[2], one[2])  # two pools: queries do not depend on the supports


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 7.5])
def test_gamma_moments(alpha: float) -> None:
    drawn = gamma(key(3, np.arange(100_000)), alpha)
    assert drawn.min() > 0
    assert drawn.mean() == pytest.approx(alpha, abs=4 * np.sqrt(alpha / 1e5))
    assert drawn.var() == pytest.approx(alpha, rel=0.05)
    if alpha == 1:
        assert np.mean(drawn > 2) == pytest.approx(np.exp(-2), abs=0.005)


def test_apportion_worked() -> None:
    share = np.array([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04]])
    room = np.array([[10, 10, 10], [6, 10, 10]])
    assert apportion(share, 10, room).tolist() == [[5, 3, 2], [6, 2, 2]]
    assert apportion(np.array([[0.55, 0.45]]), 10, np.array([[9, 9]])).tolist() == [[6, 4]]


def test_dirichlet_proportions() -> None:
    # Var of a share of Dirichlet(2 x 5) is (1/5)(4/5)/11; rounding to 1/75 adds next to nothing.
    pools = Pools(store([200] * 5))
    labels = sample_episodes(pools, EpisodeSpec(dirichlet=2.0), 0, MANY)[3]
    share = (labels[:, :, None] == np.arange(5)).mean(1)
    assert share.sum(1) == pytest.approx(1)
    assert share.mean(0) == pytest.approx(0.2, abs=0.01)
    assert share.var() == pytest.approx(0.16 / 11, rel=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"way": 1}, "way=1: must be at least 2"),
        ({"shot": 0}, "shot=0"),
        ({"query": 0}, "query=0"),
        ({"episodes": 0}, "episodes=0"),
        ({"dirichlet": 0.0}, "dirichlet=0.0: must be positive"),
    ],
)
def test_bad_specs(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeSpec(**values)


@pytest.mark.parametrize(
    ("pools", "spec", "message"),
    [
        (ONE, EpisodeSpec(way=8), "8w1s: way=8, but there are 7 classes"),
        (ONE, EpisodeSpec(shot=5), r"shot=5 \+ query=15 needs 20 images.*class 'c3' has 16 \(3 of 7 classes"),
        (
            TWO,
            EpisodeSpec(shot=17),
            "shot=17 needs 17 images of every class in the support pool.*'c3' has 16",
        ),
        (
            TWO,
            EpisodeSpec(query=16),
            "query=16 needs 16 images of every class in the query pool.*'c0' has 15",
        ),
        (Pools(store([20, 20]), store([20, 20, 20])), EpisodeSpec(way=2), "different classes"),
    ],
)
def test_pools_that_cannot_serve(pools: Pools, spec: EpisodeSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_episodes(pools, spec, 0, MANY[:1])


def test_names() -> None:
    assert EpisodeSpec().name == "5w1s"
    assert EpisodeSpec(way=20, shot=5, hard=True).name == "20w5s-hard"
    assert EpisodeSpec(dirichlet=2.0).name == "5w1s-dirichlet2"
    assert EpisodeSpec(dirichlet=0.5, hard=True).name == "5w1s-hard-dirichlet0.5"


def test_a_table_holds_each_needed_image_once() -> None:
    few = {"episodes": 3, "query": 5}
    specs = [EpisodeSpec(**few), EpisodeSpec(**few, shot=5), EpisodeSpec(**few, hard=True)]
    ids, episodes = tabulate(ONE, specs)
    assert (np.diff(ids) > 0).all()
    used = np.unique(np.concatenate([x.numpy().ravel() for e in episodes for x in (e.columns[0], e.columns[2])]))
    np.testing.assert_array_equal(used, np.arange(len(ids)))
    clean, hard = episodes[0], episodes[2]
    for c, h in zip(clean.columns, hard.columns, strict=True):  # the same images, degraded
        np.testing.assert_array_equal(ids[c], ids[h] % 166)
    assert (ids[hard.columns[2]] >= 166).all()
    assert (ids[hard.columns[0]] < 166).all()

    ids, (clean, hard) = tabulate(TWO, [specs[0], specs[2]])
    assert (ids[clean.columns[2]] < 166).all()
    assert (ids[hard.columns[2]] >= 166).all()  # rows of the query pool, none degraded
    assert ids.max() < 166 + 206
    assert (ids[hard.columns[0]] < 166).all()
