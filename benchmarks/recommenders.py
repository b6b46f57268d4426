"""Times the recommenders against RecBole 1.2, bare PyTorch and bare faiss, as Markdown.

    pip install recbole 'pandas<3'  # RecBole 1.2 also needs numpy<2; without it, its lines are left out
    python benchmarks/recommenders.py [--only training]

Both sides of a line run in turn in one process, neighbours in fresh processes. Times are processor seconds of all
threads, as the time on the clock tells of other work on a busy machine.
"""

import argparse
import contextlib
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from time import process_time
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from timing import Row, begin, in_turn, report, seconds
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.startup import light_imports

with light_imports():
    from datamodules.neighbors import nearest
    from datamodules.search import Search
    from datamodules.semantics import SemanticTables
    from datamodules.sequence_sets import MovieLens100k
    from datamodules.sequence_store import Prefixes, SequenceStore
    from datamodules.sequence_views import Neighbors, SemanticSource, Substitute
    from datamodules.sequences import SequentialRecommendation
    from zoo.cli import ZooCLI, run
    from zoo.recommenders import InterUser, IntraUser, Recommender, SASRec

BATCH, LENGTH, K, TEXT = 256, 20, 10, 384
METRICS = ("hr@10", "hr@20", "ndcg@10", "ndcg@20", "mrr@10", "mrr@20")


def forever(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def train(batches: Iterator[Any], steps: int, loss: Callable[[Any], Tensor], optimizer: Any) -> tuple[float, float]:
    """Milliseconds a step of making batches and of forward, backward and optimiser: the same loop for all sides."""
    loading = total = 0.0
    for _ in range(steps):
        start = process_time()
        batch = next(batches)
        loading += process_time() - start
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        total += process_time() - start
    return 1000 * loading / steps, 1000 * (total - loading) / steps


# --- our side ---------------------------------------------------------------------------------------------------


class RandomTables(SemanticSource):
    """Random texts' vectors and neighbours, which take a step as long as real ones."""

    pool_scope = "train"

    def tables(self, store: SequenceStore, pool: Prefixes) -> SemanticTables:
        draw = np.random.default_rng(0)
        vectors = [draw.standard_normal((n, TEXT), np.float32) for n in (store.num_items + 1, len(pool))]
        items = draw.integers(1, store.num_items + 1, (store.num_items + 1, K))
        return SemanticTables(vectors[0], vectors[1], items, draw.integers(len(pool), size=(len(pool), K)), 0.0)


def movielens(contrastive: bool = False) -> SequentialRecommendation:
    semantics, views = (RandomTables(), [Substitute(), Neighbors(K)]) if contrastive else (None, None)
    data = SequentialRecommendation(MovieLens100k(), LENGTH, BATCH, semantics=semantics, views=views)
    data.setup("fit")
    return data


def sasrec(data: SequentialRecommendation, contrastive: bool = False) -> Recommender:
    """SASRec with its default sizes, or SRA-CL with both losses; without a Trainer, so nothing is logged."""
    torch.manual_seed(0)
    parts = {"inter": InterUser(), "intra": IntraUser()} if contrastive else None
    model = Recommender(SASRec(), contrastive=parts, num_items=data.num_items, metrics=METRICS)
    for part in (parts or {}).values():
        part.build(model.encoder.dim, TEXT)
        part.prepare(data.tables)
    for name in ("log", "log_dict"):
        setattr(model, name, lambda *_, **__: None)
    return model.train()


def stepper(model: Recommender) -> tuple[Callable[[Any], Tensor], Any]:
    index = cycle([0] + [1] * 378)  # the ids of one batch an epoch are checked
    return lambda batch: model.training_step(batch, next(index)), model.configure_optimizers()


# --- RecBole ----------------------------------------------------------------------------------------------------


class RecBole:
    """RecBole's SASRec on its own copy of MovieLens-100k, with RecBole's defaults but for length, batch and metrics."""

    def __init__(self, data: SequentialRecommendation) -> None:
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.model.sequential_recommender import SASRec as Model
        from recbole.trainer import Trainer as Runner

        chosen: dict[str, Any] = {"MAX_ITEM_LIST_LENGTH": LENGTH, "train_batch_size": BATCH, "gpu_id": ""}
        chosen |= {"train_neg_sample_args": None, "metrics": ["Hit", "NDCG", "MRR"], "topk": [10, 20]}
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),  # it writes logs
            mock.patch.object(sys, "argv", sys.argv[:1]),  # and reads arguments
        ):
            config = Config(model="SASRec", dataset="ml-100k", config_dict=chosen)
            dataset = create_dataset(config)
            self.training, _, self.test = data_preparation(config, dataset)
            self.model = Model(config, self.training._dataset).train()
            self.trainer = Runner(config, self.model)
        # to import RecBole's sequential models turns this on for the whole process, our side too
        torch.autograd.set_detect_anomaly(False)
        sizes = dataset.item_num - 1, len(self.training._dataset), len(self.test._dataset)
        if sizes != (data.num_items, len(data.trained), len(data.split.test)):
            raise RuntimeError(f"both sides must have the same data; RecBole has {sizes} items, samples and tests")

    @torch.inference_mode()
    def check(self, ours: Recommender) -> None:
        """Raises unless our encoder with RecBole's weights gives RecBole's scores, of histories without padding."""
        sequence = torch.randint(1, ours.num_items + 1, (64, LENGTH))
        given = {"item_id_list": sequence, "item_length": torch.full((64,), LENGTH)}
        theirs = self.model.eval().full_sort_predict(given)[:, 1:]
        self.model.train()
        ours = copy.deepcopy(ours).eval()
        ours.encoder.load_state_dict(self.weights())
        torch.testing.assert_close(ours(sequence), theirs, atol=1e-5, rtol=1e-4)

    def weights(self) -> dict[str, Tensor]:
        """RecBole's parameters by our names."""
        names = {"LayerNorm": "norm", "trm_encoder.layer": "blocks", "multi_head_attention.norm": "attention_norm"}
        names |= {"multi_head_attention.dense": "output", "multi_head_attention.": "", "feed_forward.norm": "norm"}
        names |= {"feed_forward.dense_1": "widen", "feed_forward.dense_2": "narrow"}
        found = {}
        for name, value in self.model.state_dict().items():
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            found[name] = value
        for name in [name for name in found if ".query." in name]:
            parts = [found.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            found[name.replace("query", "query_key_value")] = torch.cat(parts)
        return found


# --- measurements -----------------------------------------------------------------------------------------------


def measure_training(args: argparse.Namespace) -> Iterator[Row]:
    """Sequences per processor second, their loading included, and the two shares of a step."""
    data = movielens()
    model, other = sasrec(data), RecBole(data)
    other.check(model)
    ours, batches = forever(data.train_dataloader()), forever(other.training)
    loss, optimizer = stepper(model)

    def theirs(anomalies: bool) -> tuple[float, float]:
        with torch.autograd.set_detect_anomaly(anomalies):
            return train(batches, args.steps, other.model.calculate_loss, other.trainer.optimizer)

    sides = [lambda: train(ours, args.steps, loss, optimizer), lambda: theirs(True), lambda: theirs(False)]
    figures = in_turn(args.repeats, *sides)
    rates = [[1000 * BATCH / sum(step) for step in side] for side in figures]
    loading, model_only = ([[step[share] for step in side] for side in figures] for share in (0, 1))
    yield Row(f"of a training step loading {BATCH}; RecBole", "ms", loading[0], loading[1])
    for side, name in enumerate(("RecBole as it is", "RecBole with anomaly detection off"), 1):
        yield Row(f"of a training step the model and Adam; {name}", "ms", model_only[0], model_only[side])
        yield Row(f"training: SASRec; {name}", "sequences/s", rates[0], rates[side], "{:.2f} times as fast")


class Alternate(Callback):
    """Runs a bare loop's step after each of the Trainer's; keeps the milliseconds of both, [steps, 2]."""

    def __init__(self, bare: Callable[[], None]) -> None:
        self.bare, self.since = bare, process_time()
        self.steps: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        start = process_time()
        self.bare()
        self.steps.append((1000 * (start - self.since), 1000 * (process_time() - start)))
        self.since = process_time()


def measure_trainer(args: argparse.Namespace) -> Iterator[Row]:
    """A step of the run that ``python -m zoo fit`` sets up and of a bare loop, on batches that are ready."""
    words = ["fit", "--config", "recommenders/sasrec_ml100k", "--monitor", "null", "--trainer.accelerator", "cpu"]
    words += ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--run_dir"]
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        with mock.patch.object(ZooCLI, "_run_subcommand"):  # all is built as for a fit, then left to us
            cli = run([*words, folder])
        data = cli.datamodule
        data.setup("fit")
        batches = list(islice(data.train_dataloader(), 10))
        loss, optimizer = stepper(sasrec(data))
        turn = cycle(batches)
        timing = Alternate(lambda: train(turn, 1, loss, optimizer) and None)
        cli.trainer.callbacks += [timing]  # type: ignore[attr-defined]
        count = args.steps * (args.repeats + 1)
        ready: DataLoader = DataLoader([*islice(turn, count)], batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
        with mock.patch.object(data, "train_dataloader", return_value=ready):  # the model asks the data for V
            cli.trainer.fit(cli.model, datamodule=data)
    figures = np.array(timing.steps).reshape(-1, args.steps, 2)[1:].mean(1)
    yield Row("trainer: SASRec; a bare loop", "ms a step", *figures.T.tolist())


def measure_sra_cl(args: argparse.Namespace) -> Iterator[Row]:
    """A step of SRA-CL, which encodes 14 sequences a sample, and as many bare passes of the encoder."""
    data = movielens(contrastive=True)
    model = sasrec(data, contrastive=True)
    loss, optimizer = stepper(model)
    batches, encoder = forever(data.train_dataloader()), copy.deepcopy(model.encoder)
    sequences, steps = next(batches).item_seq, max(1, args.steps // 10)

    def passes() -> None:
        for _ in range(steps * (4 + K)):
            encoder(sequences).sum().backward()

    ours, bare = in_turn(
        args.repeats, lambda: train(batches, steps, loss, optimizer), lambda: 1000 * seconds(passes) / steps
    )
    name, reference = f"sra_cl: a step, k={K}", f"{4 + K} bare passes of the encoder, forward and backward"
    yield Row(f"{name}, with loading; {reference}", "ms", [sum(step) for step in ours], bare)
    yield Row(f"{name}, batch ready; {reference}", "ms", [step[1] for step in ours], bare)


def measure_evaluation(args: argparse.Namespace) -> Iterator[Row]:
    """All test users ranked among all items, with all that a Trainer does around it."""
    data = movielens()
    model, other = sasrec(data), RecBole(data)
    other.check(model)
    users = len(data.split.test)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", logger=False, **quiet)  # type: ignore[arg-type]
    ours, reference = in_turn(
        args.repeats,
        lambda: users / seconds(lambda: trainer.test(model, data, verbose=False)),
        lambda: users / seconds(lambda: other.trainer.evaluate(other.test, load_best_model=False)),
    )
    what = f"evaluation: {users} users, {data.num_items} items, Trainer.test; RecBole's evaluate"
    yield Row(what, "users/s", ours, reference, "{:.2f} times as fast")


# --- neighbours, each side in a fresh process -------------------------------------------------------------------


def clustered(size: int) -> np.ndarray:
    """Vectors [size, TEXT] around 2,000 centres, the noise twice as long as a centre."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(2000, TEXT, generator=draw) / 2
    x = torch.randn(size, TEXT, generator=draw)
    for part in x.split(65536):
        part += centre[torch.randint(2000, (len(part),), generator=draw)]
    return x.numpy()


def bare_faiss(x: np.ndarray, index: str, nprobe: int) -> np.ndarray:
    """Rows found of each row, among them mostly itself, from vectors that are made unit in place."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    faiss.normalize_L2(x)
    made = faiss.index_factory(TEXT, index, faiss.METRIC_INNER_PRODUCT)
    made.train(x)
    made.add(x)
    faiss.extract_index_ivf(made).nprobe = nprobe
    return cast(np.ndarray, made.search(x, K + 1)[1])


def print_neighbours(args: argparse.Namespace) -> None:
    """Of one search in this process: seconds, MiB beyond the vectors, recall, seconds of an exact search."""
    sides = {"ours": lambda x: nearest(x, K, index=args.index, nprobe=args.nprobe)}
    sides["faiss"] = lambda x: bare_faiss(x, args.index, args.nprobe)
    x = clustered(args.vectors)
    found: list[np.ndarray] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = seconds(lambda: found.append(sides[args.neighbours_of](x)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    unit = torch.from_numpy(x)
    unit /= unit.norm(dim=1, keepdim=True)
    rows = np.linspace(0, len(x) - 1, min(1000, len(x))).astype(np.int64)
    hits: list[Tensor] = []
    exact = seconds(lambda: hits.append(Search()(unit[rows], unit, K + 1)[1])) * len(x) / len(rows)
    near = zip(hits[0].tolist(), found[0][rows].tolist(), rows.tolist(), strict=True)
    recall = statistics.mean(len({*a} & {*b} - {row}) / K for a, b, row in near)
    print(json.dumps([taken, memory / (2**20 if sys.platform == "darwin" else 2**10), recall, exact]))


def measure_neighbours(args: argparse.Namespace) -> Iterator[Row]:
    shared = ["--vectors", args.vectors, "--index", args.index, "--nprobe", args.nprobe, "--threads", args.threads]

    def side(name: str) -> list[float]:
        words = [sys.executable, __file__, "--neighbours-of", name, *map(str, shared)]
        return cast(list[float], json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout))

    figures = np.array([[side("ours"), side("faiss")] for _ in range(args.neighbour_repeats)])
    (ours, memory, recall, exact), (faiss, memory_faiss, recall_faiss, _) = figures.transpose(1, 2, 0).tolist()
    what = f"neighbours: {args.vectors:,} x {TEXT}, k={K}, {args.index}, nprobe {args.nprobe}"
    yield Row(f"{what}; bare faiss", "s", ours, faiss)
    yield Row(f"{what}; exact search, scaled from 1,000 rows", "s", ours, exact)
    yield Row("neighbours, memory beyond the vectors; bare faiss", "MiB", memory, memory_faiss)
    yield Row(f"neighbours, recall@{K} of 1,000 rows; bare faiss", "share", recall, recall_faiss, "{:.4f} times")


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "neighbours": measure_neighbours,  # first: a child's peak of memory begins at what its parent holds
    "training": measure_training,
    "trainer": measure_trainer,
    "sra_cl": measure_sra_cl,
    "evaluation": measure_evaluation,
}
NEED_RECBOLE = ("training", "evaluation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="figures of each side")
    parser.add_argument("--steps", type=int, default=30, help="training steps of a figure; a tenth of it for SRA-CL")
    parser.add_argument("--vectors", type=int, default=100_000, help="vectors whose neighbours are searched")
    parser.add_argument("--index", default="IVF1024,Flat", help="faiss factory string")
    parser.add_argument("--nprobe", type=int, default=16, help="lists that are visited")
    parser.add_argument("--neighbour-repeats", type=int, default=3, help="figures of each side of the neighbours")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and faiss")
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), help="one measurement instead of all")
    parser.add_argument("--neighbours-of", choices=("ours", "faiss"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    begin(args.threads)
    if args.neighbours_of:
        print_neighbours(args)
    else:
        report(args, MEASUREMENTS, "recbole", NEED_RECBOLE)


if __name__ == "__main__":
    main()
