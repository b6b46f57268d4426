"""Times exact search and the evaluation of a sequence of models against the usual ways, as Markdown.

Search stands beside bare faiss and the full matrix of scores, with the memory each takes; the matrix of T models beside
the official scheme, which extracts features anew for every cell.

Both sides of a line run in turn in one process, so that a busy machine slows both alike; memory is that of a fresh
process each.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from timing import Row, begin, head, in_turn, seconds
from torch import Tensor

from zoo.startup import light_imports

with light_imports():
    from datamodules.image_sets import OmniglotClasses
    from datamodules.images import normalised
    from zoo.nn import Conv64F
    from zoo.retrieval import EmbeddingTable, RetrievalEvaluator, Search, class_templates, embedding_table

WIDTH, K = 128, 10


# --- search -----------------------------------------------------------------------------------------------------


def features(size: int) -> Tensor:
    """Random unit vectors [size, WIDTH], made in place: a copy would count as memory that the search may reuse."""
    x = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0))
    return x.div_(x.norm(dim=1, keepdim=True))


def ours(x: Tensor) -> tuple[Tensor, Tensor]:
    return Search()(x, x, K)


def bare_faiss(x: Tensor) -> tuple[Tensor, Tensor]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(WIDTH)
    index.add(x.numpy())
    score, row = index.search(x.numpy(), K)
    return torch.from_numpy(score), torch.from_numpy(row)


def full_matrix(x: Tensor) -> tuple[Tensor, Tensor]:
    score, row = (x @ x.T).topk(K)
    return score, row


WAYS = {"ours": ours, "faiss": bare_faiss, "matrix": full_matrix}


def measure_search(size: int, matrix_size: int, repeats: int, threads: int) -> list[Row]:
    """``size`` vectors against bare faiss and ``matrix_size`` against the full matrix."""
    pairs = [("faiss", size, "bare faiss IndexFlatIP"), ("matrix", matrix_size, "full matrix, then topk")]
    # before this process holds features, as a child's peak begins at what its parent held
    memory = [(peak("ours", n, threads), peak(way, n, threads)) for way, n, _ in pairs]
    rows = []
    for (way, n, name), mib in zip(pairs, memory, strict=True):
        x, reference = features(n), WAYS[way]
        check_same(x[:2000], reference)
        sides = [lambda x=x: seconds(lambda: ours(x)), lambda x=x, run=reference: seconds(lambda: run(x))]  # type: ignore[misc]
        what = f"search: {n} x {n}, d={WIDTH}, k={K}; {name}"
        rows.append(Row(what, "s", *in_turn(repeats, *sides, warm_up=False)))
        rows.append(Row(f"{what}, memory beyond the features", "MiB", *([each] for each in mib)))
    return rows


def check_same(x: Tensor, reference: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    (score, row), (other, other_row) = ours(x), reference(x)
    torch.testing.assert_close(score, other, rtol=0, atol=1e-5)
    if (row != other_row).double().mean() > 1e-3:  # two scores may differ by rounding alone
        raise RuntimeError("both sides must find the same rows")


def peak(way: str, size: int, threads: int) -> float:
    """MiB that one search adds to the peak memory of a fresh process that holds the features."""
    command = [sys.executable, __file__, "--peak-of", way, "--size", str(size), "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(way: str, size: int) -> None:
    x = features(size)
    WAYS[way](x[:100])  # libraries, threads and their buffers are there before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[way](x)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / (2**20 if sys.platform == "darwin" else 2**10))


# --- matrix of models --------------------------------------------------------------------------------------------


def measure_matrix(models: int, repeats: int) -> Row:
    """The compatibility matrix of so many backbones on the 64 novel characters of bundled Omniglot."""
    data = OmniglotClasses(["Japanese_(katakana)", "Tagalog"], held_out=10)
    sides = [data.load("train"), data.load("test")]
    images = [(normalised(side.image, data.mean, data.std), side.label) for side in sides]
    networks = [Conv64F(in_channels=1, pools=3).eval() for _ in range(models)]
    evaluator = RetrievalEvaluator(template="mean")

    @torch.inference_mode()
    def extract(network: Conv64F, side: int) -> EmbeddingTable:
        image, label = images[side]
        return embedding_table(torch.cat([network(part).mean((-2, -1)) for part in image.split(256)]), label)

    def once_a_model() -> list[float]:
        galleries: list[EmbeddingTable] = []
        cells = []
        for network in networks:
            query = extract(network, 0)
            galleries.append(class_templates(extract(network, 1)))
            cells += [evaluator(query, gallery).scores["accuracy"] for gallery in galleries]
        return cells

    def every_cell() -> list[float]:
        pairs = [(networks[t], networks[k]) for t in range(models) for k in range(t + 1)]
        return [evaluator(extract(new, 0), extract(old, 1)).scores["accuracy"] for new, old in pairs]

    if once_a_model() != every_cell():
        raise RuntimeError("both sides must give the same matrix")
    times = in_turn(repeats, lambda: seconds(once_a_model), lambda: seconds(every_cell), warm_up=False)
    return Row(f"matrix of {models} models; features anew for each cell", "s", *times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=100_000, help="vectors of our search and of bare faiss")
    parser.add_argument("--matrix-size", type=int, default=20_000, help="vectors of the full matrix")
    parser.add_argument("--repeats", type=int, default=3, help="searches of each side")
    parser.add_argument("--models", type=int, default=7, help="models of the sequence that is evaluated")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and faiss")
    parser.add_argument("--peak-of", choices=sorted(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    begin(args.threads)
    if args.peak_of:
        print_peak(args.peak_of, args.size)
        return
    head(args.threads, "| what; reference | unit | ours | reference | ours takes |")
    for row in measure_search(args.size, args.matrix_size, args.repeats, args.threads):
        print(row.markdown(), flush=True)
    print(measure_matrix(args.models, args.repeats).markdown(), flush=True)


if __name__ == "__main__":
    main()
