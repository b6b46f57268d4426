"""Episode checks, feature transforms, nearest centroid, Baseline and Baseline++."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.few_shot.heads import (
    Baseline,
    BaselinePlusPlus,
    Episode,
    LogisticRegression,
    NearestCentroid,
    TransductiveClustering,
    class_means,
    index_labels,
    prototype_logits,
    transform_features,
)
from zoo.few_shot.heads.base import squared_distances


def random_episode(shot: int = 5, episodes: int = 3, way: int = 4, dim: int = 8, queries: int = 6) -> Episode:
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(way).repeat(shot).expand(episodes, -1)
    support = torch.randn(episodes, way * shot, dim, generator=generator, dtype=torch.float64)
    query = torch.randn(episodes, queries, dim, generator=generator, dtype=torch.float64)
    return Episode(support, label, query, way)


def test_prototype_logits_worked_example() -> None:
    query = torch.tensor([[[0.5, 1.0]]], requires_grad=True)
    logits = prototype_logits(query, torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]))
    assert logits.flatten().tolist() == pytest.approx([-1.25, -3.25])
    assert logits.softmax(-1)[0, 0, 0].item() == pytest.approx(0.880797, abs=1e-6)
    loss = F.cross_entropy(logits.flatten(0, 1), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.126928, abs=1e-6)
    loss.backward()
    assert query.grad is not None
    assert query.grad.flatten().tolist() == pytest.approx([0.476812, 0.0], abs=1e-6)


def test_prototype_logits_are_a_linear_classifier() -> None:
    episode = random_episode()
    prototypes = class_means(episode.support, episode.label, episode.way)
    linear = 2 * episode.query @ prototypes.mT - prototypes.square().sum(-1).unsqueeze(1)
    torch.testing.assert_close(
        prototype_logits(episode.query, prototypes).softmax(-1), linear.softmax(-1), rtol=1e-10, atol=1e-12
    )


def test_squared_distances_survive_a_large_common_offset() -> None:
    x, centre = torch.tensor([[1000.25], [1001.0]]), torch.tensor([[1000.0], [1000.5]])
    torch.testing.assert_close(squared_distances(x, centre), torch.tensor([[0.0625, 0.0625], [1.0, 0.25]]))


def test_class_means_with_unequal_shots() -> None:
    support = torch.tensor([[[1.0], [2.0], [6.0]]])
    assert class_means(support, torch.tensor([[1, 0, 1]]), 2).flatten().tolist() == [2.0, 3.5]


def test_nearest_centroid_averages_normalised_supports_and_does_not_renormalise() -> None:
    # Class 0: (3, 0) and (0, 5) become (1, 0) and (0, 1), mean (.5, .5); class 1: (0, -1). Query (1, 0).
    support = torch.tensor([[[3.0, 0.0], [0.0, 5.0], [0.0, -2.0]]])
    episode = Episode(support, torch.tensor([[0, 0, 1]]), torch.tensor([[[7.0, 0.0]]]), 2)
    scores = NearestCentroid("L2N", temperature=2.0)(episode)
    assert scores.flatten().tolist() == pytest.approx([-0.25, -1.0])
    cosines = NearestCentroid("L2N", metric="cosine")(episode)
    assert cosines.flatten().tolist() == pytest.approx([math.sqrt(0.5), 0.0], abs=1e-6)


def test_cosine_and_euclidean_agree_at_one_shot_on_unit_features() -> None:
    episode = random_episode(shot=1)
    cosine = NearestCentroid("L2N", metric="cosine")(episode)
    torch.testing.assert_close(NearestCentroid("L2N")(episode), 2 * cosine - 2)


def test_cl2n_centres_before_it_normalises() -> None:
    x = torch.tensor([[4.0, 5.0]])
    mean = torch.tensor([1.0, 1.0])
    assert transform_features(x, "CL2N", mean).flatten().tolist() == pytest.approx([0.6, 0.8])
    assert transform_features(x, "UN", mean).tolist() == x.tolist()
    assert transform_features(torch.tensor([[3.0, 4.0]]), "L2N").flatten().tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("kind", "mean", "row", "message"),
    [
        ("CL2N", None, [1.0, 2.0], "features=CL2N needs base_mean.*choose L2N"),
        ("CL2N", torch.zeros(3), [1.0, 2.0], r"base_mean has shape \(3,\).*dimension 2"),
        ("L2N", None, [0.0, 0.0], r"row \(0, 1\) has norm 0"),
        ("UN", None, [math.nan, 0.0], r"row \(0, 1\) holds NaN or Inf"),
        ("L2N", None, [math.inf, 0.0], r"row \(0, 1\) holds NaN or Inf"),
        ("CL2N", torch.ones(2), [1.0, 1.0], r"row \(0, 1\) has norm 0"),
        ("L3N", None, [1.0, 1.0], "features='L3N': choose one of UN, L2N, CL2N"),
    ],
)
def test_bad_features_are_refused(kind: str, mean: torch.Tensor | None, row: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transform_features(torch.tensor([[[2.0, 1.0], row]]), kind, mean)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": torch.tensor([[0, 0]])}, r"class 1 has no support example \(episode 0\)"),
        ({"label": torch.tensor([[0, 7]])}, "label 7 .*outside 0..1.*index_labels"),
        ({"label": torch.tensor([0, 1])}, r"expected \(1, 2\) = \[E, S\]"),
        ({"label": torch.tensor([[0.0, 1.0]])}, "expected int64"),
        ({"query": torch.ones(1, 3, 5)}, "same E and D"),
        ({"query": torch.ones(1, 0, 2)}, "no query"),
        ({"query_mask": torch.zeros(1, 3, dtype=torch.bool)}, "no query"),
        ({"query_mask": torch.ones(1, 2, dtype=torch.bool)}, r"query_mask is .*expected bool \(1, 3\)"),
    ],
)
def test_bad_episodes_are_refused(change: dict, message: str) -> None:
    episode = Episode(torch.eye(2).unsqueeze(0), torch.tensor([[0, 1]]), torch.ones(1, 3, 2), 2)
    with pytest.raises(ValueError, match=message):
        NearestCentroid()(episode._replace(**change))


def test_index_labels_gives_numbers_and_ids() -> None:
    number, ids = index_labels(torch.tensor([[7, 3, 7, 9], [0, 2, 1, 1]]), 3)
    assert number.tolist() == [[1, 0, 1, 2], [0, 2, 1, 1]]
    assert ids.tolist() == [[3, 7, 9], [0, 1, 2]]
    with pytest.raises(ValueError, match="episode 0 has support for 2 classes, way is 3"):
        index_labels(torch.tensor([[7, 7, 9]]), 3)


def torch_sgd_scores(layer: nn.Module, episode: Episode, e: int, orders: list[torch.Tensor]) -> torch.Tensor:
    optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9, dampening=0.9, weight_decay=1e-3)
    for order in orders:
        for batch in order.split(4):
            optimizer.zero_grad()
            F.cross_entropy(layer(episode.support[e, batch]), episode.label[e, batch]).backward()
            optimizer.step()
    return layer(episode.query[e]).detach()


class CosineLayer(nn.Module):
    def __init__(self, direction: torch.Tensor) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction)
        self.length = nn.Parameter(direction.float().norm(dim=-1).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.length * (F.normalize(x, dim=-1) @ F.normalize(self.direction, dim=-1).T)


@pytest.mark.parametrize("head", [Baseline(passes=7, seed=3), BaselinePlusPlus(passes=7, seed=3)])
def test_baselines_equal_torch_sgd_on_each_episode(head: Baseline) -> None:
    episode = random_episode()
    with torch.inference_mode():
        scores = head(episode)
    for e in range(3):
        generator = torch.Generator().manual_seed(3)
        weight = torch.empty(4, 8).uniform_(-(8**-0.5), 8**-0.5, generator=generator)
        bias = torch.empty(4).uniform_(-(8**-0.5), 8**-0.5, generator=generator)
        layer: nn.Module
        if isinstance(head, BaselinePlusPlus):
            layer = CosineLayer(weight.double())
        else:
            layer = nn.Linear(8, 4).double()
            layer.load_state_dict({"weight": weight, "bias": bias})
        orders = [torch.randperm(20, generator=generator) for _ in range(7)]
        torch.testing.assert_close(scores[e], torch_sgd_scores(layer, episode, e, orders), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "head",
    [
        NearestCentroid(),
        LogisticRegression(),
        Baseline(passes=3),
        BaselinePlusPlus(passes=3),
        TransductiveClustering("kmodes_ms", laplacian=True, features="L2N"),
    ],
    ids=lambda head: type(head).__name__,
)
def test_an_episode_depends_on_neither_its_batch_nor_padding(head: nn.Module) -> None:
    episode = random_episode()
    scores = head(episode)
    garbage = torch.full((3, 2, 8), math.nan, dtype=torch.float64)
    mask = torch.arange(8).expand(3, -1) < 6
    padded = episode._replace(query=torch.cat([episode.query, garbage], 1), query_mask=mask)
    padded_scores = head(padded)
    assert padded_scores.isfinite().all()
    torch.testing.assert_close(padded_scores[:, :6], scores, rtol=0, atol=1e-10)
    alone = head(Episode(episode.support[1:2], episode.label[1:2], episode.query[1:2], 4))
    torch.testing.assert_close(alone, scores[1:2], rtol=0, atol=1e-10)


def test_scores_do_not_lose_precision_under_autocast() -> None:
    episode = random_episode()
    episode = episode._replace(support=episode.support.float(), query=episode.query.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = NearestCentroid("UN")(episode)
    assert torch.equal(scores, NearestCentroid("UN")(episode))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NearestCentroid(temperature=0.0), "temperature=0.0"),
        (lambda: NearestCentroid(metric="manhattan"), "metric='manhattan'"),  # type: ignore[arg-type]
        (lambda: LogisticRegression(C=0.0), "C=0.0"),
        (lambda: Baseline(lr=0.0), "lr=0.0"),
        (lambda: BaselinePlusPlus(scale=-1.0), "scale=-1.0"),
    ],
)
def test_bad_options_are_refused(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        build()
