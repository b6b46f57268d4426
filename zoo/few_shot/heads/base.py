"""What every few-shot head shares: the episode of features, its checks, feature transforms, class means."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FeatureKind = Literal["UN", "L2N", "CL2N"]


class Episode(NamedTuple):
    """Features of E episodes with S supports, U queries, D dimensions and ``way`` classes N.

    ``support`` [E, S, D], ``label`` [E, S] int64 in [0, N), ``query`` [E, U, D] floating point.
    ``base_mean`` [D] is the mean feature of the base training images (only CL2N reads it).
    ``query_mask`` [E, U] bool is True for real queries; what stands in the other rows influences nothing.
    """

    support: Tensor
    label: Tensor
    query: Tensor
    way: int
    base_mean: Tensor | None = None
    query_mask: Tensor | None = None


class Head(nn.Module):
    """Classifies the queries of episodes from frozen features.

    ``forward`` returns scores [E, U, N]: larger is better, argmax predicts, softmax gives probabilities.
    Scores of padded queries are finite and mean nothing. Features are brought to at least float32 and mixed
    precision is off inside, because differences of squared distances do not survive bfloat16.

    Args:
        features: UN (as they come), L2N (unit norm) or CL2N (base mean subtracted, then unit norm).
    """

    transductive: bool = False

    def __init__(self, features: FeatureKind = "L2N") -> None:
        super().__init__()
        _check_kind(features)
        self.features = features

    @property
    def needs_base_mean(self) -> bool:
        return self.features == "CL2N"

    def forward(self, episode: Episode) -> Tensor:
        device = episode.query.device
        if device.type == "mps":  # has no float64, which energies and logistic regressions need
            parts = (part.cpu() if isinstance(part, Tensor) else part for part in episode)
            return self(Episode(*parts)).to(device)  # type: ignore[arg-type]
        check_episode(episode)
        with torch.autocast(episode.query.device.type, enabled=False):
            return self.score(self.prepare(episode))

    def prepare(self, episode: Episode) -> Episode:
        """The episode with transformed features; padded query rows become zero."""
        return episode._replace(
            support=transform_features(episode.support, self.features, episode.base_mean),
            query=transform_features(episode.query, self.features, episode.base_mean, episode.query_mask),
        )

    def score(self, episode: Episode) -> Tensor:
        """Scores [E, U, N] of an episode that is checked and whose features are already transformed."""
        raise NotImplementedError


def transform_features(
    x: Tensor, kind: FeatureKind, base_mean: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """UN, L2N or CL2N features (SimpleShot, arXiv 1911.04623).

    Args:
        x: [..., D] features.
        kind: UN leaves them, L2N divides by the L2 norm, CL2N subtracts ``base_mean`` first.
        base_mean: [D], needed by CL2N only.
        valid: [...] bool; rows that are False are neither checked nor read and come back as zero.

    Raises:
        ValueError: CL2N without ``base_mean`` or with one of another dimension; a row with NaN or Inf; a row
            of norm zero that would have to be normalised.
    """
    _check_kind(kind)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if valid is not None:
        x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
    _refuse_rows(~torch.isfinite(x).all(-1), "holds NaN or Inf; check the backbone or its input")
    if kind == "UN":
        return x
    if kind == "CL2N":
        if base_mean is None:
            raise ValueError(
                "features=CL2N needs base_mean, the mean feature of the base training images under the test "
                "transform: set Episode.base_mean or choose L2N"
            )
        if base_mean.shape != x.shape[-1:]:
            raise ValueError(
                f"base_mean has shape {tuple(base_mean.shape)}, the features have dimension {x.shape[-1]}: "
                "compute the mean with the same backbone"
            )
        x = x - base_mean.to(x)
    norm = x.norm(dim=-1, keepdim=True)
    zero = norm.squeeze(-1) == 0
    _refuse_rows(zero if valid is None else zero & valid, "has norm 0 and cannot be L2-normalised; use UN")
    x = x / norm.clamp_min(torch.finfo(x.dtype).tiny)
    # Centring has moved the padded rows away from zero.
    return x if valid is None else x.masked_fill(~valid.unsqueeze(-1), 0.0)


def class_means(support: Tensor, label: Tensor, way: int) -> Tensor:
    """Mean support feature of each class: [E, S, D], [E, S] -> [E, N, D]. Classes may differ in size."""
    member = F.one_hot(label, way).to(support)
    return member.mT @ support / member.sum(1).unsqueeze(-1)


def squared_distances(x: Tensor, centre: Tensor) -> Tensor:
    """Squared Euclidean distances [..., P, N] of x [..., P, D] to centre [..., N, D].

    Both are taken relative to the first centre before |x|^2 - 2 x.m + |m|^2 is formed, so that a common
    offset (features after a ReLU have a large one) does not eat the digits of the difference.
    """
    origin = centre[..., :1, :].detach()
    x, centre = x - origin, centre - origin
    norms = x.square().sum(-1, keepdim=True) + centre.square().sum(-1).unsqueeze(-2)
    return (norms - 2 * x @ centre.mT).clamp_min(0)


def check_labels(label: Tensor, way: int) -> None:
    """Raises ValueError unless every row of label [E, S] holds all classes 0..way-1 and nothing else."""
    if way < 1:
        raise ValueError(f"way={way}: an episode needs at least one class")
    if label.dtype != torch.int64:
        raise ValueError(f"support labels are {label.dtype}: expected int64")
    outside = (label < 0) | (label >= way)
    if outside.any():
        episode, row = outside.nonzero()[0].tolist()
        raise ValueError(
            f"support label {int(label[episode, row])} (episode {episode}, row {row}) lies outside "
            f"0..{way - 1}: number the classes of each episode with index_labels"
        )
    absent = F.one_hot(label, way).sum(1) == 0
    if absent.any():
        episode, k = absent.nonzero()[0].tolist()
        raise ValueError(f"class {k} has no support example (episode {episode})")


def check_episode(episode: Episode) -> None:
    """Raises ValueError naming the field when shapes, labels or the mask of an episode do not fit."""
    support, label, query, way, _, mask = episode
    if support.ndim != 3 or query.ndim != 3 or support.shape[::2] != query.shape[::2]:
        raise ValueError(
            f"support {tuple(support.shape)} and query {tuple(query.shape)} must be [E, S, D] and [E, U, D] "
            "with the same E and D"
        )
    if label.shape != support.shape[:2]:
        raise ValueError(f"label has shape {tuple(label.shape)}, expected {tuple(support.shape[:2])} = [E, S]")
    check_labels(label, way)
    if mask is not None and (mask.shape != query.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"query_mask is {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(query.shape[:2])} = [E, U]"
        )
    if query.shape[1] == 0 or (mask is not None and not mask.any(1).all()):
        raise ValueError("an episode has no query: every episode needs at least one row that is not padding")


def index_labels(label: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Numbers each episode's classes 0..N-1 in ascending order of their ids.

    Returns the numbers [E, S] and the ids [E, N], so that ``ids.gather(1, prediction)`` gives ids back.

    Raises:
        ValueError: an episode does not hold exactly ``way`` different labels.
    """
    ordered = label.sort(1).values
    first = torch.cat([torch.ones_like(ordered[:, :1], dtype=torch.bool), ordered.diff(dim=1) != 0], 1)
    count = first.sum(1)
    if (count != way).any():
        episode = int((count != way).nonzero()[0])
        raise ValueError(f"episode {episode} has support for {int(count[episode])} classes, way is {way}")
    ids = ordered[first].view(len(label), way)
    return torch.searchsorted(ids, label.contiguous()), ids


def _check_kind(kind: str) -> None:
    if kind not in get_args(FeatureKind):
        raise ValueError(f"features={kind!r}: choose one of {', '.join(get_args(FeatureKind))}")


def _refuse_rows(bad: Tensor, reason: str) -> None:
    if bad.any():
        raise ValueError(f"feature row {tuple(bad.nonzero()[0].tolist())} {reason}")
