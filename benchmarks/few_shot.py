"""Times few-shot data loading, CRLNet's evaluation and the training loop against reference schemes, as Markdown.

Every comparison alternates the two sides in one process, so that a busy machine slows both alike.
"""

import argparse
import contextlib
import copy
import csv
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from timing import Row, begin, head, in_turn
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from zoo.startup import light_imports

with light_imports():
    from datamodules.batches import EpisodeRows
    from datamodules.episodes import EpisodeSpec, sample_episodes
    from datamodules.few_shot import FewShot
    from datamodules.few_shot_sets import CsvSplit
    from datamodules.images import Pools, from_classes
    from datamodules.omniglot import BundledOmniglot
    from datamodules.training import Episodes
    from zoo.cli import ZooCLI, run
    from zoo.few_shot import CRLNet, CRLNetHead
    from zoo.few_shot.crlnet_layers import CorrelationFilter
    from zoo.few_shot.crlnet_network import CRLNetLayer, pair_cosine
    from zoo.nn import Conv64F, ResNet12

WAY, SHOT, QUERY = 5, 1, 15
Scores = Callable[[CRLNet, Tensor, Tensor, Tensor], Tensor]


def compare(
    what: str,
    unit: str,
    ours: Callable[[], float],
    references: Mapping[str, Callable[[], float]],
    repeats: int,
    time: bool = False,
) -> Iterator[Row]:
    """All sides once to warm up, then ``repeats`` times in turn; ``time``: figures are times, else rates."""
    sides = [ours, *references.values()]
    a, *others = in_turn(repeats, *sides)
    for against, b in zip(references, others, strict=True):
        quotient = statistics.median(a) / statistics.median(b)
        words = f"{1 / quotient if time else quotient:.3g} times as fast"
        yield Row(f"{what}; against {against}", unit, a, b, words)


# --- data -------------------------------------------------------------------------------------------------------


class ImageFiles(Dataset):
    """The per-image scheme of few-shot libraries: open, convert and transform one image at a time.

    ``decoded`` keeps the decoded pictures in memory, so that only the transforms are left.
    """

    def __init__(self, root: Path, mode: str, size: int, mean: Sequence[float], std: Sequence[float], decoded: bool):
        with (root / "train.csv").open(newline="") as table:
            rows = list(csv.DictReader(table))
        names = sorted({row["label"] for row in rows})
        self.label = [names.index(row["label"]) for row in rows]
        self.paths, self.mode = [root / "images" / row["filename"] for row in rows], mode
        steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(mean, std)]
        self.transform = transforms.Compose(steps)
        self.images = [self.read(path) for path in self.paths] if decoded else None

    def read(self, path: Path) -> Image.Image:
        with Image.open(path) as file:
            return file.convert(self.mode)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.read(self.paths[index]) if self.images is None else self.images[index]
        return self.transform(image), self.label[index]


class CategorySampler:
    """Episodes as lists of image indices: random classes, then random images of each."""

    def __init__(self, label: Sequence[int], episodes: int) -> None:
        labels = torch.tensor(label)
        self.members = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
        self.episodes = episodes

    def __len__(self) -> int:
        return self.episodes

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.episodes):
            chosen = [self.members[int(c)] for c in torch.randperm(len(self.members))[:WAY]]
            yield torch.cat([rows[torch.randperm(len(rows))[: SHOT + QUERY]] for rows in chosen]).tolist()


def measure_data(repeats: int) -> Iterator[Row | str]:
    """Episodes per second from image files; neither side uses worker processes."""
    omniglot = BundledOmniglot(rotations=False).load("train").support
    sets = [
        ("Omniglot, PNG 28x28 grey", ".png", omniglot.image.view(-1, 20, 1, 28, 28), "L"),
        ("generated JPEG 84x84 RGB", ".jpg", smooth_images(64, 20, 84), "RGB"),
    ]
    for name, suffix, images, mode in sets:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_files(root, suffix, images)
            with mock.patch.dict(os.environ, ZOO_CACHE=str(root / "cache")):
                yield from compare_data(name, root, mode, images.shape[-1], repeats)


def compare_data(name: str, root: Path, mode: str, size: int, repeats: int) -> Iterator[Row | str]:
    ours, theirs = 200, 20
    channels = 1 if mode == "L" else 3
    files = CsvSplit(str(root), size, channels)
    data = FewShot(files, Episodes(EpisodeSpec(WAY, SHOT, QUERY, episodes=ours)), val=[], test=[])
    start = perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # the bar of the reading
        data.setup("fit")
    yield f"{name}: our path first reads all {len(data.pools['train'].support.label)} files once, in "
    yield f"{perf_counter() - start:.2f} s (later runs map the kept pixels).\n"
    loader = data.train_dataloader()

    def our_rate() -> float:
        start = perf_counter()
        for batch in loader:
            data.on_after_batch_transfer(batch, 0)
        return ours / (perf_counter() - start)

    def rate(reference: DataLoader) -> float:
        start = perf_counter()
        for _ in reference:
            pass
        return theirs / (perf_counter() - start)

    references = {}
    for decoded in (False, True):
        dataset = ImageFiles(root, mode, size, files.mean, files.std, decoded)
        check_same_images(data, dataset)
        sampler = CategorySampler(dataset.label, theirs)
        reference = DataLoader(dataset, batch_sampler=sampler, num_workers=0)  # type: ignore[arg-type]
        against = "decoded images in memory, transforms one by one" if decoded else "files opened one by one"
        references[against] = partial(rate, reference)
    yield from compare(f"data: {name}", "episodes/s", our_rate, references, repeats)


def check_same_images(data: FewShot, dataset: ImageFiles) -> None:
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    spec = EpisodeSpec(WAY, SHOT, QUERY)
    epoch, index = next(iter(data.train_dataloader().sampler))[0]
    support, _, query, _ = sample_episodes(data.pools["train"], spec, epoch, np.array([index]))
    for rows, images in ((support, batch.support), (query, batch.query)):
        torch.testing.assert_close(images[0], torch.stack([dataset[i][0] for i in rows[0].tolist()]))


def smooth_images(classes: int, each: int, size: int) -> Tensor:
    """Random coloured blotches [classes, each, 3, size, size] uint8, which compress about as photographs do."""
    coarse = torch.rand(classes * each, 3, size // 6, size // 6, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (255 * fine).to(torch.uint8).view(classes, each, 3, size, size)


def write_files(root: Path, suffix: str, images: Tensor) -> None:
    """``images`` [classes, n, C, H, W] as files with a table of their labels."""
    (root / "images").mkdir()
    with (root / "train.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["filename", "label"])
        for c, n in np.ndindex(*images.shape[:2]):
            name = f"{c:04d}_{n:02d}{suffix}"
            pixels = images[c, n].permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(pixels).save(root / "images" / name, quality=95)
            rows.writerow([name, f"class{c:04d}"])


# --- evaluation -------------------------------------------------------------------------------------------------


def measure_evaluation(repeats: int) -> Iterator[Row]:
    """CPU seconds, which waiting for a busy machine leaves out, per 1,000 episodes over 64 classes of 20 images."""
    torch.manual_seed(0)
    head = partial(CRLNetHead, heads=4, hidden=128, mlp_hidden=128)
    small = CRLNet(Conv64F(in_channels=1, pools=3), 28, head)
    yield from compare_evaluation("Conv64F, 28 px", small, BundledOmniglot().load("test"), (20, 150, 1280), repeats)
    images = smooth_images(64, 20, 84)
    pools = Pools(from_classes(list(images), [f"class{c:04d}" for c in range(64)]))
    large = CRLNet(ResNet12(), 84, CRLNetHead)
    yield from compare_evaluation("ResNet12, 84 px", large, pools, (1, 5, 32), min(repeats, 3))


def compare_evaluation(
    name: str, model: CRLNet, pools: Pools, timed: tuple[int, int, int], repeats: int
) -> Iterator[Row]:
    """``timed``: episodes of our side, queries of a reference and embedded images that are really timed."""
    ours, theirs, embedded = timed
    images = pools.support.image.float().div(127.5).sub(1)
    calibrate(model, images[::20])
    spec = EpisodeSpec(WAY, SHOT, QUERY, episodes=ours)
    s, s_label, q, q_label = (torch.from_numpy(x) for x in sample_episodes(pools, spec, 0, np.arange(ours)))
    rows = EpisodeRows(s, s_label, q, q_label, torch.arange(ours), WAY, spec.name)

    def embed(count: int) -> Tensor:
        return torch.cat([model.embed(part) for part in images[:count].split(256)])

    @torch.inference_mode()
    def cached() -> float:
        start = process_time()
        embed(embedded)
        middle = process_time()
        model.own_scores(table, rows)
        return (middle - start) * len(images) / embedded + (process_time() - middle) * 1000 / ours

    def repeated(scores: Scores) -> float:
        start = process_time()
        for support, queries in zip(rows.support, rows.query.flatten()[:theirs].split(WAY * QUERY), strict=False):
            scores(model, images, support, queries)
        return (process_time() - start) * 1000 * WAY * QUERY / theirs

    references: dict[str, Scores] = {
        "both images of each pair embedded, our head": scores_pair_by_pair,
        "official scheme: the same, a query at a time, T x T correlation and Conv3d": scores_officially,
    }
    with torch.inference_mode():
        queries = rows.query[0, :theirs]
        needed = torch.cat([rows.support[0], rows.query[0]])
        maps = model.embed(images[needed])
        table = maps.new_zeros(len(images), *maps.shape[1:])
        table[needed] = maps
        first = rows._replace(**{key: rows._asdict()[key][:1] for key in rows._fields[:5]})
        scores = model.own_scores(table, first)["crlnet"][0, : len(queries)]
        for reference in references.values():
            again = reference(model, images, rows.support[0], queries)
            torch.testing.assert_close(scores, again, atol=1e-4, rtol=0)
        if scores.std() < 1e-3:
            raise RuntimeError("all pairs score alike, so equal scores prove nothing; choose other images")
    scaled = f"timed on {ours} episodes and {embedded} images embedded, reference on {theirs} queries"
    sides = {against: partial(repeated, scores) for against, scores in references.items()}
    yield from compare(f"evaluation: {name}; {scaled}", "CPU s per 1,000 episodes", cached, sides, repeats, time=True)


@torch.no_grad()
def calibrate(model: CRLNet, images: Tensor) -> None:
    """Gives the untrained backbone's BatchNorm the images' statistics, without which all maps look alike."""
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.backbone.train()
    model.embed(images)
    model.eval()


@torch.inference_mode()
def scores_pair_by_pair(model: CRLNet, images: Tensor, support: Tensor, query: Tensor) -> Tensor:
    """Cosines [U, S] of one episode when both images of every pair go through the backbone anew."""
    pairs = torch.cartesian_prod(query, support).split(model.pairs_at_once)
    scores = []
    for pair in pairs:
        e_s, e_q = model.head(model.embed(images[pair[:, 1]]), model.embed(images[pair[:, 0]]))
        scores.append(pair_cosine(e_q, e_s))
    return torch.cat(scores).view(len(query), len(support))


@torch.inference_mode()
def scores_officially(model: CRLNet, images: Tensor, support: Tensor, query: Tensor) -> Tensor:
    """Cosines [U, S] by the official test loop's scheme: a batch is one query, repeated, with all supports."""
    scores = []
    with mock.patch.object(CRLNetLayer, "correlate", dense_correlation):
        for row in query:
            repeated = images[row].expand(len(support), -1, -1, -1)
            e_s, e_q = model.head(model.embed(images[support]), model.embed(repeated))
            scores.append(pair_cosine(e_q, e_s))
    return torch.stack(scores)


def dense_correlation(layer: CRLNetLayer, a_s: Tensor, a_q: Tensor) -> tuple[Tensor, Tensor]:
    """``CRLNetLayer.correlate`` in the official form: the whole correlation, then a 3D convolution over it."""
    assert layer.filters is not None
    both = []
    for own, other, module in ((a_s, a_q, layer.filters[0]), (a_q, a_s, layer.filters[-1])):
        conv = cast(CorrelationFilter, module)
        side = round(own.shape[1] ** 0.5)
        own, other = (x.transpose(1, 2).unflatten(2, (side, side)) for x in (own, other))
        correlation = torch.einsum("bcij,bcxy->bijxy", other, own)
        m = F.conv3d(correlation, conv.weight.unflatten(1, (side, side)), conv.bias, padding=(0, 1, 1))
        both.append(conv.norm(m[:, :, 0]).relu().flatten(2).transpose(1, 2))
    return both[0], both[1]


# --- trainer ----------------------------------------------------------------------------------------------------

STEPS = 50  # of each figure


class Prepared:
    """Batches that are ready on the device, handed out in turn."""

    def __init__(self, batches: list[Any], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return islice(cycle(self.batches), self.length)


class Alternate(Callback):
    """Runs a bare loop's step after each of the Trainer's, and keeps the mean milliseconds of ``STEPS`` of each.

    Blocks of one kind would take seconds, in which the load of a busy machine changes.
    """

    def __init__(self, bare: Callable[[int], None]) -> None:
        self.bare, self.steps, self.since = bare, 0, perf_counter()
        self.ours: list[float] = []
        self.reference: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        start = perf_counter()
        self.bare(self.steps)
        end = perf_counter()
        if self.steps >= STEPS:  # the steps before are to warm up
            if self.steps % STEPS == 0:
                self.ours.append(0.0)
                self.reference.append(0.0)
            self.ours[-1] += 1000 * (start - self.since) / STEPS
            self.reference[-1] += 1000 * (end - start) / STEPS
        self.steps, self.since = self.steps + 1, perf_counter()


class SaveTime(Callback):
    """Milliseconds of one ``last.ckpt``, written after the fit, when the steps have been timed."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = perf_counter()
        trainer.save_checkpoint(Path(str(trainer.log_dir)) / "timed.ckpt")
        self.milliseconds = (perf_counter() - start) * 1000


def measure_trainer(repeats: int) -> Iterator[Row | str]:
    """Milliseconds per training step, of a run that ``python -m zoo fit`` sets up and of a bare loop."""
    for name, terminal in ((n, t) for n in ("protonet", "crlnet") for t in (True, False)):
        environment = {"FORCE_COLOR": "1", "COLUMNS": "120"} if terminal else {}
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, environment),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            timing, save = train(name, folder, repeats)
        output = "terminal" if terminal else "file"
        yield Row(f"trainer: {name}, output to a {output}", "ms per step", timing.ours, timing.reference)
        yield f"trainer: {name}: one last.ckpt takes {save:.1f} ms (after each epoch and 500 steps), not included.\n"


def train(name: str, folder: str, repeats: int) -> tuple[Alternate, float]:
    words = ["--run_dir", folder, "--monitor", "null", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    words += ["--model.init_args.init_from", "null", "--trainer.limit_val_batches", "0"]
    with mock.patch.object(ZooCLI, "_run_subcommand"):  # all is built as for a fit, then left to us
        cli = run(["fit", "--config", f"few_shot/{name}_omniglot", *words])
    data, model = cli.datamodule, cli.model
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in islice(data.train_dataloader(), 10)]
    plain = copy.deepcopy(model).train()
    plain.log = lambda *_, **__: None
    optimizer = plain.optimizer([p for p in plain.parameters() if p.requires_grad])

    def bare(step: int) -> None:
        optimizer.zero_grad()
        plain.training_step(batches[step % len(batches)], step).backward()
        optimizer.step()

    timing, save = Alternate(bare), SaveTime()
    cli.trainer.callbacks += [timing, save]  # type: ignore[attr-defined]
    cli.trainer.fit(model, train_dataloaders=Prepared(batches, STEPS * (repeats + 1)))
    return timing, save.milliseconds


MEASUREMENTS = {"data": measure_data, "evaluation": measure_evaluation, "trainer": measure_trainer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="blocks of each side (ResNet12: at most 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), help="one measurement instead of all")
    args = parser.parse_args()
    begin(args.threads)
    head(args.threads, "| what | unit | ours | reference | ours is |")
    notes = []
    for name in [args.only] if args.only else MEASUREMENTS:
        for result in MEASUREMENTS[name](args.repeats):
            if isinstance(result, Row):
                print(result.markdown(), flush=True)
            else:
                notes.append(result)
    print("\n" + "".join(notes))


if __name__ == "__main__":
    main()
