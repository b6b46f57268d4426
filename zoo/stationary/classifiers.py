"""What turns a backbone's features into embeddings and logits: fixed simplex prototypes, or a head that learns."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.stationary.simplex import LABEL_ORDERS, LabelOrder, prototype_row, simplex, simplex_hash


class Classifier(nn.Module, ABC):
    """Features h [B, in] to embeddings z [B, ``width``], which a gallery holds, and z to logits.

    First ``build``. Then for each task ``grow(0, known)``, ``adopt`` and load the entries of the checkpoint that the
    task starts from, and ``grow(known, classes)``.
    """

    width: int

    @abstractmethod
    def build(self, in_features: int) -> None:
        """Make the parts that depend on the backbone's width."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes known."""

    @abstractmethod
    def grow(self, known: int, classes: int) -> None:
        """Go from ``known`` classes to ``classes``; from 0 means anew. A ValueError where these do not fit."""

    @abstractmethod
    def embed(self, h: Tensor) -> Tensor:
        """[B, in] to [B, width], not normalised."""

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Embeddings [B, width] to logits [B, outputs]."""

    @property
    @abstractmethod
    def space(self) -> dict[str, int | str] | None:
        """What two models must share for their embeddings to compare; None: a model compares with itself alone."""

    @abstractmethod
    def adopt(self, state: dict[str, Tensor], prefix: str, own: bool) -> dict[str, Tensor]:
        """Of a whole checkpoint's ``state`` the entries for this module's ``load_state_dict``, without the ``prefix``.

        They are complete: loading is strict. ``own``: the checkpoint is of an earlier task of this run, else of an
        independently pretrained model. A ValueError says what makes the checkpoint's model incomparable.
        """

    def target(self, label: Tensor) -> Tensor:
        """Labels [B] to the outputs that stand for them.

        Labels on the CPU are checked (ValueError); on a device the check would make every step wait.
        """
        if label.device.type == "cpu" and label.numel():
            low, high = int(label.min()), int(label.max())
            if low < 0 or high >= self.classes:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"label {wrong} is outside the {self.classes} known classes (0 to {self.classes - 1}): "
                    "grow the classifier by the task's classes first, or mend the labels"
                )
        return label


def _check_growth(known: int, classes: int) -> None:
    if not 0 <= known <= classes:
        raise ValueError(f"cannot grow from known={known} to classes={classes}: need 0 <= known <= classes")


def _stored(state: dict[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise ValueError(
            f"the checkpoint has no entry {key!r}, so nothing tells whether its features compare with this model's; "
            "take a checkpoint that was saved by a model with this kind of classifier"
        )
    return state[key]


class SimplexClassifier(Classifier):
    """Prototypes fixed at the vertices of a regular simplex, the same in every model (arXiv 2405.02581).

    Logits are z W^T without bias over all K prototypes, so those of classes yet to come act as negatives from the first
    step. They are computed in float32 or more, where the prototypes are exact enough to stay a regular simplex.

    Args:
        num_prototypes: K; all server and local classes must fit.
        label_order: local classes take prototypes from the last one down, a server's models from the first one up.
        junction: a linear map without bias to K - 1 dimensions where the backbone's width is another.
        normalize: take logits of unit-length embeddings.
        scale: factor of the logits.
    """

    identity: Tensor
    prototypes: Tensor

    def __init__(
        self,
        num_prototypes: int = 1024,
        label_order: LabelOrder = "from_end",
        junction: bool = True,
        normalize: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if label_order not in LABEL_ORDERS:
            raise ValueError(f"label_order={label_order!r}: choose one of {', '.join(LABEL_ORDERS)}")
        if not scale > 0:
            raise ValueError(f"scale={scale}: must be above 0")
        self.num_prototypes, self.label_order = num_prototypes, label_order
        self.with_junction, self.normalize, self.scale = junction, normalize, scale
        self.width = num_prototypes - 1
        self.junction: nn.Module = nn.Identity()
        self.register_buffer("prototypes", simplex(num_prototypes), persistent=False)
        # K, hash, order, number of classes, number of a pretrained model's classes at the other end of the prototypes
        identity = [num_prototypes, simplex_hash(num_prototypes), LABEL_ORDERS.index(label_order), 0, 0]
        self.register_buffer("identity", torch.tensor(identity, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_refuse_another_space)

    def build(self, in_features: int) -> None:
        if in_features == self.width:
            self.junction = nn.Identity()
        elif self.with_junction:
            self.junction = nn.Linear(in_features, self.width, bias=False)
        else:
            raise ValueError(
                f"the backbone gives {in_features} features, but num_prototypes={self.num_prototypes} needs "
                f"{self.width}: set junction=true for a linear map between them, or take a backbone of that width"
            )

    @property
    def classes(self) -> int:
        return int(self.identity[3])

    @property
    def space(self) -> dict[str, int | str]:
        return {"num_prototypes": self.num_prototypes, "hash": simplex_hash(self.num_prototypes)}

    def grow(self, known: int, classes: int) -> None:
        _check_growth(known, classes)
        self._check_room(int(self.identity[4]), classes)
        self.identity[3] = classes

    def embed(self, h: Tensor) -> Tensor:
        z: Tensor = self.junction(h)
        return z

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            if self.normalize:
                z = F.normalize(z, dim=1)
            return self.scale * F.linear(z, self.prototypes.to(z.dtype))

    def target(self, label: Tensor) -> Tensor:
        return prototype_row(super().target(label), self.num_prototypes, self.label_order)

    def adopt(self, state: dict[str, Tensor], prefix: str, own: bool) -> dict[str, Tensor]:
        identity = _stored(state, prefix + "identity")
        self._check_space(identity, same_order=own)
        entries = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not own:
            entries["identity"] = self.identity.clone()
            entries["identity"][4] = self._rows_taken(identity)
        return entries

    def _check_space(self, identity: Tensor, same_order: bool) -> None:
        if identity.shape != self.identity.shape:
            raise ValueError(
                f"the identity of the embedding space has shape {list(identity.shape)} in the checkpoint and "
                f"{list(self.identity.shape)} here: features would not be comparable. Take a checkpoint of this version"
            )
        count, digest, order = identity.tolist()[:3]
        if count != self.num_prototypes:
            raise ValueError(
                f"num_prototypes is {count} in the checkpoint and {self.num_prototypes} here: features would not be "
                f"comparable. Set num_prototypes={count} or take another checkpoint"
            )
        if digest != simplex_hash(count):
            raise ValueError(
                f"the hash of the prototypes is {digest} in the checkpoint and {simplex_hash(count)} here: features "
                "would not be comparable. Train the checkpoint's model again with this version"
            )
        if same_order and order != LABEL_ORDERS.index(self.label_order):
            stored = LABEL_ORDERS[order]
            raise ValueError(
                f"label_order is {stored} in the checkpoint and {self.label_order} here: features would not be "
                f"comparable. Set label_order={stored} or take another checkpoint"
            )

    def _rows_taken(self, identity: Tensor) -> int:
        """How many prototypes from the other end a pretrained model's classes use; none may be at this one's end."""
        order, classes, opposite = identity.tolist()[2:]
        if order == LABEL_ORDERS.index(self.label_order):
            classes, opposite = opposite, classes
        if opposite:
            other = next(name for name in LABEL_ORDERS if name != self.label_order)
            raise ValueError(
                f"server and local classes would share prototypes: {opposite} classes of the checkpoint also take them "
                f"{self.label_order}, so features would not be comparable. Pretrain with label_order={other}"
            )
        self._check_room(classes, self.classes)
        return int(classes)

    def _check_room(self, server: int, local: int) -> None:
        if server + local > self.num_prototypes:
            raise ValueError(
                f"num_prototypes={self.num_prototypes} is less than {server} server + {local} local classes: server "
                "and local classes would share prototypes, so features would not be comparable. "
                f"Set num_prototypes={server + local} or more in all models"
                if server
                else f"num_prototypes={self.num_prototypes} is less than {local} classes: set it to {local} or more"
            )


def _refuse_another_space(module: SimplexClassifier, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if prefix + "identity" in state:
        module._check_space(state[prefix + "identity"], same_order=True)


class LearnableClassifier(Classifier):
    """A learned weight [C, in] without bias, which grows by the classes of each task; embeddings are the features.

    The head of experience replay (ER). Nothing fixes the space: another model's embeddings are not comparable.
    """

    weight: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.register_load_state_dict_pre_hook(_take_the_stored_rows)

    def build(self, in_features: int) -> None:
        self.width = in_features
        self.weight = nn.Parameter(torch.empty(0, in_features))

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def space(self) -> None:
        return None

    def grow(self, known: int, classes: int) -> None:
        """Keep the rows of the ``known`` classes and draw the others as ``nn.Linear`` does."""
        _check_growth(known, classes)
        if known and self.classes != known:
            raise ValueError(
                f"the classifier has rows for {self.classes} classes, but {known} are known before the task: "
                "load the checkpoint of the task before"
            )
        bound = 1 / math.sqrt(self.width)
        weight = self.weight.detach()
        new = weight.new_empty(classes - known, self.width).uniform_(-bound, bound)
        self.weight = nn.Parameter(torch.cat([weight[:known], new]))

    def embed(self, h: Tensor) -> Tensor:
        return h

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight)

    def adopt(self, state: dict[str, Tensor], prefix: str, own: bool) -> dict[str, Tensor]:
        """Own: the checkpoint's weight. Else ours as it is: a pretrained head knows none of this run's classes."""
        if not own:
            return {"weight": self.weight.detach().clone()}
        weight = _stored(state, prefix + "weight")
        if weight.shape != self.weight.shape:
            raise ValueError(
                f"the classifier's weight is {list(weight.shape)} in the checkpoint, but {self.classes} classes are "
                f"known and the backbone gives {self.width} features: take the checkpoint of the task before"
            )
        return {"weight": weight}


def _take_the_stored_rows(module: LearnableClassifier, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    stored = state.get(prefix + "weight")
    if stored is not None and stored.ndim == 2 and len(stored) != len(module.weight):
        module.weight = nn.Parameter(module.weight.new_empty(len(stored), module.width))
