"""CRLNet beside the official code on the same weights and images: maps, scores, loss and gradients.

Needs a checkout of github.com/guoqianyu-alberta/Conditional-Representation-Learning (measured at 31d2d85):

    python benchmarks/crlnet_parity.py --official PATH_OF_THE_CHECKOUT

The official modules are imported from there with their command-line parsing, GPU query and weight file stubbed.
"""

import argparse
import sys
import tempfile
import types
from pathlib import Path

import torch

from zoo.few_shot.crlnet_network import CRLNetHead, pair_cosine, pair_loss
from zoo.few_shot.crlnet_official import load_official_state
from zoo.nn import ResNet12


def official_model(path: str, image_size: int) -> torch.nn.Module:
    """The official CRLNet on its ResNet12, all weights at their random start."""
    sys.path.insert(0, path)
    config = types.ModuleType("config")
    config.parse_args = lambda: argparse.Namespace(n_shot=1)  # type: ignore[attr-defined]
    unused = {name: types.ModuleType(name) for name in ("pynvml", "fvcore", "fvcore.nn", "fvcore.nn.weight_init")}
    sys.modules.update(config=config, **unused)
    from networks.CRLNet import CRLNet  # type: ignore[import-not-found]

    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        torch.save({"state_dict": {}}, file.name)
        return CRLNet("Resnet12", file.name, image_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=4)
    args = parser.parse_args()
    if not (Path(args.official) / "networks" / "CRLNet.py").is_file():
        parser.error(f"--official {args.official!r} has no networks/CRLNet.py: give a checkout of the official code")
    torch.manual_seed(0)
    theirs = official_model(args.official, args.image_size).eval()
    backbone, head = ResNet12().eval(), CRLNetHead(640, args.image_size // 16).eval()
    left = load_official_state(head, theirs.state_dict())
    missing, unexpected = backbone.load_state_dict(left, strict=False)
    print("backbone keys without a partner:", [k for k in missing if not k.endswith("drop.calls")], unexpected)

    support, query = torch.randn(2, args.pairs, 3, args.image_size, args.image_size)
    label = torch.arange(args.pairs) % 2
    with torch.no_grad():
        s_map, q_map = theirs.extract_features(support, query, "test")
        ours_s, ours_q = backbone(support), backbone(query)
    print(f"backbone maps, largest difference: {max((ours_s - s_map).abs().max(), (ours_q - q_map).abs().max()):.2e}")

    with torch.no_grad():
        score = theirs(support, query, split="test")
        e_s, e_q = head(ours_s, ours_q)
    ours = pair_cosine(e_q, e_s)
    print(f"scores, largest difference: {(ours - score.flatten()).abs().max():.2e} (scores {score.flatten().tolist()})")

    losses = []
    for loss in (
        lambda: theirs(support, query, label.float(), "train"),
        lambda: pair_loss(pair_cosine(*reversed(head(ours_s, ours_q))), label),
    ):
        value = loss()
        value.backward()
        losses.append(value.item())
    print(f"losses: {losses[0]:.7f} and {losses[1]:.7f}")
    gradients = {n: p.grad for n, p in theirs.named_parameters() if not n.startswith("feature_extractor")}
    for name, buffer in theirs.named_buffers():
        gradients.setdefault(name, buffer)
    holder = CRLNetHead(640, args.image_size // 16)
    load_official_state(holder, gradients)
    pairs = list(zip(holder.parameters(), head.parameters(), strict=True))
    worst = max((a - b.grad).abs().max().item() for a, b in pairs if b.grad is not None)
    largest = max(a.abs().max().item() for a, _ in pairs)
    print(f"gradients of the head, largest difference: {worst:.2e} (largest gradient {largest:.2e})")


if __name__ == "__main__":
    main()
