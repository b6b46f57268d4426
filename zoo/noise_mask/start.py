"""The weights that a classifier starts from: of another classifier, or of a heated one, whose policy is left out."""

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from zoo.pretrained import read_state

HEATING_PARTS = ("policy.", "mask.", "objective.")


def start_from(backbone: nn.Module, head: nn.Linear, name: str, reset_head: bool = False) -> None:
    """Load ``backbone.*`` and ``head.*`` of a checkpoint into a classifier; with ``reset_head`` the backbone alone.

    Prefixes that DDP (``module.``) and ``torch.compile`` (``_orig_mod.``) put before names are taken off, and the
    policy's part of a heated checkpoint is left out; both are told.

    Raises:
        ValueError: for a head of another number of classes, naming both, and for tensors without a match.
    """
    state, wrapped = {}, 0
    for key, value in read_state(name).items():
        plain = key.replace("_orig_mod.", "").removeprefix("module.")
        wrapped += plain != key
        state[plain] = value
    left_out = [key for key in state if key.startswith(HEATING_PARTS)]
    if wrapped:
        rank_zero_info(f"init_from {name!r}: took the prefixes of DDP or torch.compile off {wrapped} names")
    if left_out:
        rank_zero_info(f"init_from {name!r}: left out {len(left_out)} tensors of the mask policy")
    found = state.get("head.weight")
    if not reset_head and found is not None and len(found) != head.out_features:
        raise ValueError(
            f"init_from {name!r}: its head has {len(found)} classes, this model has {head.out_features}: "
            "set reset_head=true to start with a new head, or num_classes to the checkpoint's"
        )
    parts: dict[str, nn.Module] = {"backbone.": backbone} if reset_head else {"backbone.": backbone, "head.": head}
    own = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    missing = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    if missing:
        wanted = ", ".join(f"{key} {tuple(own[key].shape)}" for key in missing[:3])
        held = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:3])
        raise ValueError(
            f"init_from {name!r}: {len(missing)} of {len(own)} tensors find no match in it, such as {wanted}; it holds "
            f"{held} and so on. Choose the checkpoint of a classifier of the same architecture."
        )
    surplus = [key for key in state if key.startswith(tuple(parts)) and key not in own]
    if surplus:
        raise ValueError(
            f"init_from {name!r}: {len(surplus)} of its tensors have no place in this model, such as "
            f"{', '.join(surplus[:3])}. Choose the checkpoint of a classifier of the same architecture."
        )
    for prefix, part in parts.items():
        part.load_state_dict({key: state[prefix + key] for key in part.state_dict()})
