"""SRA-CL beside the official code: samples, vectors, losses, gradients, Adam, dropout, initial values and metrics.

Needs a checkout of github.com/ziqiangcui/SRA-CL (measured at 301353d) and the encoder that it imports from RecBole
1.2.0, none of whose own requirements are needed:

    pip install --no-deps --target RECBOLE recbole==1.2.0
    PYTHONPATH=RECBOLE python benchmarks/recommenders_parity.py --official PATH_OF_THE_CHECKOUT

Data are the checkout's own; models are compared on Office, with random vectors and neighbours in place of texts.
"""

import argparse
import contextlib
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import SequenceBatch
from datamodules.semantics import SemanticTables
from datamodules.sequence_files import PairLines
from datamodules.sequence_store import Prefixes, SequenceStore
from datamodules.sequence_views import Neighbors, SemanticSource, Substitute
from datamodules.sequences import SequentialRecommendation, TrainingSequences
from zoo.metrics import RankingMetrics, target_ranks
from zoo.recommenders import InterUser, IntraUser, Recommender, SASRec

L, K, D = 20, 10, 1024  # the official W has 1,024 rows
RENAMED = {
    "trm_encoder.layer": "blocks", "multi_head_attention.": "attention_", "feed_forward.": "", "LayerNorm": "norm",
    "attention_dense": "output", "dense_1": "widen", "dense_2": "narrow",
    **{f"attention_{part}": "query_key_value" for part in ("query", "key", "value")},
}  # fmt: skip
SYNTHESIZER = {"W": "contrastive.inter.synthesizer.weight", "a": "contrastive.inter.synthesizer.attention"}
CONFIG = {
    "n_layers": 2, "n_heads": 2, "hidden_size": 64, "inner_size": 256, "hidden_dropout_prob": 0.5, "loss_type": "CE",
    "attn_dropout_prob": 0.5, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02, "maxlen": L,
    "temperature": 1.0, "train_batch_size": 256, "sorted_indices": None, "item_semantic_emb": None,
}  # fmt: skip


class RandomTables(SemanticSource):
    """Random vectors and neighbours for the official pool."""

    pool_scope = "official"

    def tables(self, store: SequenceStore, pool: Prefixes) -> SemanticTables:
        draw, items, rows = np.random.default_rng(0), store.num_items + 1, len(pool)
        items_of, pool_of = (draw.standard_normal((n, D), np.float32) for n in (items, rows))
        found = draw.integers(1, items, (items, K)), draw.integers(0, rows, (rows, K))
        return SemanticTables(items_of, pool_of, *found, same_user=0.0)


def renamed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official parameters, or their gradients, by our names."""
    result: dict[str, Tensor] = {}
    for name, value in values.items():
        new = SYNTHESIZER.get(name, f"encoder.{name}")
        for theirs, ours in RENAMED.items():
            new = new.replace(theirs, ours)
        result[new] = torch.cat([result[new], value]) if new in result else value.squeeze(-1)
    return result


def their_losses(model: Any, batch: Any) -> dict[str, Tensor]:
    return {
        "next_item": model.calculate_loss(batch.item_seq, batch.target),
        "inter": model.calculate_user_cl_loss(batch.item_seq, batch.neighbors, batch.prefix),
        "intra": model.calculate_item_cl_loss(*batch.views.unbind(1), (batch.item_seq > 0).sum(1)),
    }


def total(losses: dict[str, Tensor]) -> Tensor:
    return losses["next_item"] + 0.1 * losses["inter"] + 0.1 * losses["intra"]


def compare_data(path: Path, utils: Any) -> tuple[SequentialRecommendation, Any, Any]:
    """Samples of one file; our data, their training set and their test set."""
    data = SequentialRecommendation(PairLines(str(path)), semantics=RandomTables(), views=[Substitute(), Neighbors(K)])
    train, val, test, _, _ = utils.data_partition(str(path))
    keys = [":".join(map(str, [u, *seq[max(0, i - L) : i]])) for u, seq in test.items() for i in range(1, len(seq))]
    with contextlib.redirect_stdout(None):
        samples = utils.data_augmentation(train, L, {key: row for row, key in enumerate(keys)})
    found = {"sorted_indices_numpy": None, "user_sorted_indices_numpy": None}
    training = utils.SequenceDataset(SimpleNamespace(**found, seq_int_to_keys=keys), *samples, L)
    theirs = [np.column_stack([samples[0], [training.padding_and_truncation(seq) for seq in samples[1]], samples[2]])]
    for histories in (val, test):
        asked = utils.TestDataset(histories, L)
        theirs.append(np.column_stack([asked.uid_list, [asked[i][1] for i in range(len(asked))], asked.target_list]))
    own, ids = TrainingSequences(data.store, data.pool, data.trained, False, [], 0), np.array(data.store.user_ids, int)
    batch = own.__getitems__([(0, i) for i in range(len(own))])
    ours = [np.column_stack([ids[data.pool.user(batch.prefix.numpy())], batch.item_seq, batch.target])]
    for loader in (data.val_dataloader(), data.test_dataloader()):
        item_seq, target, user = map(torch.cat, zip(*loader, strict=True))
        ours.append(np.column_stack([ids[user], item_seq, target]))
    same = [np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True)]
    print(f"{path.stem}: {len(own)} training samples, {len(own) % 256} left by 256; with validation, test equal {same}")
    return data, training, asked


def compare_losses(theirs: Any, ours: Recommender, batch: SequenceBatch, what: str) -> None:
    """Vectors, losses and gradients without dropout, on their weights."""
    ours.load_state_dict(renamed(theirs.state_dict()))
    rows = torch.cat([p.flatten(0, -2) for p in (batch.item_seq, batch.views, batch.neighbors) if p is not None])
    vectors = theirs(rows).detach(), ours.encoder(rows).detach()
    print(f"{what}: vectors of {len(rows)} sequences: difference {(vectors[0] - vectors[1]).abs().max():.1e}")
    losses, gradients = (their_losses(theirs, batch), ours.losses(batch)), []
    for model, side in zip((theirs, ours), losses, strict=True):
        side["sum"] = total(side)
        named = dict(model.named_parameters())
        gradients.append(dict(zip(named, torch.autograd.grad(side["sum"], list(named.values())), strict=True)))
    values = [f"{name} {value.item():.7f} | {losses[1][name].item():.7f}" for name, value in losses[0].items()]
    print("  official | ours: " + ", ".join(values))
    other, own = renamed(gradients[0]), gradients[1]
    gap = {name: (own[name] - other[name]).abs().max().item() for name in own}
    share, worst = max((gap[name] / other[name].abs().max().item(), name) for name in own)
    print(f"  gradients: difference {max(gap.values()):.1e}; as a share of its tensor's largest {share:.1e} ({worst})")


def compare_training(theirs: Any, ours: Recommender, batch: SequenceBatch, steps: int = 5, draws: int = 20) -> None:
    """Steps of Adam without dropout, then losses with dropout, from the same weights."""
    sides = (lambda: their_losses(theirs, batch)), (lambda: ours.losses(batch))
    optimizers = torch.optim.Adam(theirs.parameters(), lr=1e-3, weight_decay=0), ours.configure_optimizers()
    for _ in range(steps):
        for side, optimizer in zip(sides, optimizers, strict=True):
            optimizer.zero_grad()
            total(side()).backward()
            optimizer.step()
    values = [total(side()).item() for side in sides]
    print(f"{steps} steps of Adam: loss {values[0]:.7f}, difference {abs(values[0] - values[1]):.1e}")
    theirs.train()
    ours.train()
    with torch.no_grad():
        drawn = [[side() for _ in range(draws)] for side in sides]
    for name in drawn[0][0]:
        found = [torch.stack([losses[name] for losses in side]) for side in drawn]
        print(f"  dropout, {name}:", " and ".join(f"{f.mean():.3f} +- {f.std() / draws**0.5:.3f}" for f in found))


def compare_metrics(utils: Any, asked: Any, num_items: int) -> None:
    """Random scores, those of the targets 2 higher."""
    scores, target = torch.randn(len(asked), num_items), torch.tensor(asked.target_list) - 1
    scores[torch.arange(len(asked)), target] += 2
    parts = iter(scores.split(1024))
    model = SimpleNamespace(eval=lambda: None, full_sort_predict=lambda item_seq: next(parts))
    result = utils.evaluate(SimpleNamespace(device="cpu"), model, torch.utils.data.DataLoader(asked, 1024), False)
    metrics = RankingMetrics([name.lower().replace("hit", "hr") for name in result])
    metrics.update(target_ranks(scores, target), torch.arange(len(asked)))
    for theirs, (name, value) in zip(result.values(), metrics.compute().items(), strict=True):
        print(f"{name}: official, rounded {theirs:.4f} | ours {value:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True)
    path = parser.parse_args().official
    stub = SimpleNamespace(FeatureType=None, FeatureSource=None)
    sys.modules["recbole.utils"] = cast(Any, stub)  # the real one imports all of RecBole's requirements
    sys.path.insert(0, str(path / "recommender_code"))
    official, utils = (importlib.import_module(name) for name in ("model", "utils"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for file in sorted(path.glob("data/*/*.txt"), key=lambda file: file.stat().st_size, reverse=True):
        data, training, asked = compare_data(file, utils)  # of the last and smallest, Office, from here on
    data.setup("fit")
    tables, batch = cast(SemanticTables, data.tables), next(iter(data.train_dataloader()))
    training.neighbor_matrix, training.user_neighbor_matrix = tables.item_neighbors, tables.pool_neighbors
    row = {key: i for i, key in enumerate(training.seq_unique_key_list)}
    fields = [torch.stack(part) for part in zip(*(training[row[key]] for key in batch.prefix.tolist()), strict=True)]
    equal = [torch.equal(fields[i], part) for i, part in ((1, batch.item_seq), (2, batch.target), (6, batch.neighbors))]
    print(f"batch: sequences, targets and neighbours equal {equal}")
    embedding, found = torch.from_numpy(tables.pool_embedding), torch.from_numpy(tables.pool_neighbors)
    sizes = {"item_num": data.num_items, "user_sorted_indices": found, "user_semantic_emb": embedding}
    theirs, inter = official.TransRec(SimpleNamespace(**CONFIG, **sizes)).eval(), InterUser(0.1)
    inter.build(64, D)
    ours = Recommender(SASRec(), contrastive={"inter": inter, "intra": IntraUser(0.1)}, num_items=data.num_items).eval()
    print("initial values, mean and standard deviation, official | ours:")
    other = renamed(theirs.state_dict())
    for name, value in ours.state_dict().items():
        print(f"  {name:<41}", " | ".join(f"{part.mean():+.4f} {part.std():.4f}" for part in (other[name], value)))
    for noise in (0, 0.1):
        for value in theirs.parameters():
            value.data += noise * torch.randn_like(value)
        for dtype in (torch.float32, torch.float64):
            theirs.to(dtype).user_semantic_emb = embedding.to(dtype)
            ours.to(dtype)
            inter.prepare(tables)
            compare_losses(theirs, ours, batch, f"initial weights + N(0, {noise}), {dtype}")
    compare_training(theirs, ours, batch)
    compare_metrics(utils, asked, data.num_items)


if __name__ == "__main__":
    main()
