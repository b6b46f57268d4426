"""Weights of language models in checkpoints: found under any prefix, adapters added in, frozen weights recognised."""

import hashlib
import json
import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear

from zoo.pretrained import read_state

_NETWORK = re.compile(r"(?:^|.*\.)(?:language_model|policy)\.network\.")  # under the names that methods have for it


def encode(about: dict[str, Any]) -> Tensor:
    """JSON as uint8: a state dict of tensors alone can be loaded and exported like any other."""
    return torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)


def decode(state: Tensor) -> dict[str, Any]:
    """What ``encode`` was given."""
    about: dict[str, Any] = json.loads(bytes(state.cpu().tolist()))
    return about


def describe(state: dict[str, Tensor]) -> dict[str, Any]:
    """What the checkpoint of a language model says of its ``tokenizer``, ``lora`` settings and ``base`` weights."""
    extra = state.get(f"{_prefix(state).removesuffix('network.')}_extra_state")
    return {"tokenizer": None, "lora": None, "base": None} if extra is None else decode(extra)


def _prefix(state: dict[str, Tensor]) -> str:
    found = sorted({match.group() for key in state if (match := _NETWORK.match(key))})
    if len(found) > 1:
        raise ValueError(f"the checkpoint holds several networks: {', '.join(found)}; export the one that you mean")
    return found[0] if found else ""


def load_weights(network: Any, name: str, headless: bool) -> None:
    """``load_state`` of a run folder, checkpoint or exported weights, as for :func:`zoo.pretrained.read_state`."""
    load_state(network, read_state(name), name, headless)


def load_state(network: Any, state: dict[str, Tensor], name: str, headless: bool) -> None:
    """Load the weights of a checkpoint of ours into a network without adapters; adapters are added to its weights.

    Args:
        network: of transformers.
        state: the checkpoint's, or that of a file of transformers.
        name: of the checkpoint, for messages.
        headless: take the weights of a network with a head without it.

    Raises:
        ValueError: if the checkpoint holds several networks or another one, or adapters of other weights.
    """
    prefix = _prefix(state)
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if headless and (stem := f"{network.base_model_prefix}.") and any(key.startswith(stem) for key in weights):
        weights = {key.removeprefix(stem): value for key, value in weights.items() if key.startswith(stem)}
    about = describe(state)
    if about["lora"] is None:
        _load(network, weights, name)
        return
    check_base(about, digest(network), f"init_from {name!r}")
    add_lora(network, about["lora"])
    frozen = frozen_names(network) if about["base"] is not None else ()
    _load(network, {key: value for key, value in network.state_dict().items() if key in frozen} | weights, name)
    merge_lora(network)


def _load(network: Any, weights: dict[str, Tensor], name: str) -> None:
    own = network.state_dict()
    present = {own[key].data_ptr(): value for key, value in weights.items() if key in own}
    tied = [key for key in own if key not in weights and own[key].data_ptr() in present]  # transformers leaves them out
    weights = weights | {key: present[own[key].data_ptr()] for key in tied}
    wrong = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
    wrong += [key for key in weights if key not in own]
    if wrong:
        found = f"{tuple(weights[wrong[0]].shape)}" if wrong[0] in weights else "not in the checkpoint"
        wanted = f"{tuple(own[wrong[0]].shape)}" if wrong[0] in own else "not in the network"
        raise ValueError(
            f"init_from {name!r}: {len(wrong)} of {len(own)} weights do not fit, such as {wrong[0]}: {found} there, "
            f"{wanted} here; it must be of the same network and tokenizer"
        )
    network.load_state_dict(weights)


def digest(network: Any) -> str:
    """Tells the weights of a network, without its head and adapters, from any other's, by some values of each.

    In bfloat16, so that the type that weights were loaded in makes no difference.
    """
    total = hashlib.sha256()
    for name, parameter in network.base_model.named_parameters():
        values = parameter.detach().flatten()
        count = min(len(values), 16)
        # in whole numbers: float32 does not have all places of a large embedding
        some = values[torch.arange(count, device=values.device) * (len(values) - 1) // max(count - 1, 1)]
        total.update(f"{name} {tuple(parameter.shape)} {some.bfloat16().tolist()}\n".encode())
    return total.hexdigest()


def check_base(about: dict[str, Any], base: str, what: str) -> None:
    """Raises ``ValueError`` if adapters were trained on other weights than those with the digest ``base``."""
    if about["lora"] is not None and about["base"] not in (None, base):
        raise ValueError(
            f"{what} holds LoRA adapters that were trained on other weights than this network has: give pretrained "
            "and init_from as they were then; to start from such adapters, init_from: [what they started from, theirs]"
        )


def frozen_names(network: Any) -> frozenset[str]:
    """Names of the parameters without gradient; both names of one that is tied."""
    parameters = network.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in parameters if not parameter.requires_grad)


def add_lora(network: Any, lora: dict[str, Any]) -> None:
    """Put adapters with these settings (those of ``Lora``) into a network; all other weights are frozen.

    Adapters are float32 even where the weights are not: in bfloat16 the steps of a small learning rate would be lost.

    Raises:
        ValueError: for a target that names no layer, or the input or output embedding.
    """
    from peft import LoraConfig, inject_adapter_in_model

    embeddings = network.get_input_embeddings(), network.get_output_embeddings()
    for target in lora["targets"]:
        found = [module for name, module in network.named_modules() if f".{name}".endswith(f".{target}")]
        if not found:
            layers = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, Linear)}
            raise ValueError(f"lora.targets: no layer is named {target!r}; there are {', '.join(sorted(layers))}")
        if any(module in embeddings for module in found):
            raise ValueError(f"lora.targets: {target!r} is an embedding, which log_probs takes as it is: leave it out")
    config = LoraConfig(
        r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=list(lora["targets"])
    )
    inject_adapter_in_model(config, network)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge_lora(network: Any) -> None:
    """Add adapters to the weights that they adapt, and take them out; all weights can be trained again."""
    for _, layer in _adapted(network):
        layer.merge()
    remove_lora(network)


def remove_lora(network: Any) -> None:
    """Take adapters out as if they had never been there; all weights can be trained again."""
    for name, layer in _adapted(network):
        network.set_submodule(name, layer.get_base_layer())
    network.requires_grad_(True)
    del network.peft_config


def merged_state(network: Any) -> dict[str, Tensor]:
    """The plain weights of a network with adapters or without, under the names that it has without."""
    state = {name.replace(".base_layer.", "."): value for name, value in network.state_dict().items()}
    for name, layer in _adapted(network):
        weight = f"{name}.weight"
        state[weight] = (state[weight] + layer.get_delta_weight("default").detach()).to(state[weight].dtype)
    return {name: value for name, value in state.items() if ".lora_" not in name}


def _adapted(network: Any) -> list[tuple[str, Any]]:
    if not hasattr(network, "peft_config"):  # without, there is nothing to import for
        return []
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]
