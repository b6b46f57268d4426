"""Retrieval metrics as trec_eval computes them: a thin layer over ir_measures, with values of each query."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Run = Mapping[str, Mapping[str, float]]
"""Scores: query id -> document id -> score. Ranks follow from the scores; equal ones go by document id, descending."""
Qrels = Mapping[str, Mapping[str, int]]
"""Grades: query id -> document id -> grade."""

_KINDS = {"ndcg": "nDCG", "mrr": "RR", "recall": "R", "precision": "P", "map": "AP"}


class _Metric(NamedTuple):
    kind: str
    k: int | None


def per_query(
    run: Run, qrels: Qrels, names: Sequence[str], relevant_from: int = 1, missing: Literal["zero", "skip"] = "zero"
) -> dict[str, dict[str, float]]:
    """Values by query id and metric name.

    ``ndcg@k`` has linear gain, discount log2(rank + 1) and the ideal of all judged documents (trec_eval's
    ``ndcg_cut``); ``mrr@k`` is 1 / rank of the first relevant document, 0 beyond k; ``recall@k``, ``precision@k`` and
    ``map`` are trec_eval's. Documents without judgement are not relevant, queries without judgements are left out.

    Args:
        run: any number of documents a query.
        qrels: no grade below 0.
        names: the metrics; all but ``map`` and ``mrr`` need ``@k``.
        relevant_from: lowest relevant grade, except for nDCG; 2 for TREC Deep Learning.
        missing: what judged queries that the run lacks are: 0 (``trec_eval -c``), or left out.

    Raises:
        TypeError: for ids that are no strings.
        ValueError: for unknown names, NaN scores, and a run without any judged query.
    """
    import ir_measures

    metrics = {name: _parsed(name) for name in names}
    for what, table in (("run", run), ("qrels", qrels)):
        if odd := [id for query, found in table.items() for id in (query, *found) if not isinstance(id, str)]:
            raise TypeError(f"{what}: id {odd[0]!r} is {type(odd[0]).__name__}: ids are strings everywhere")
    if not run.keys() & qrels.keys():
        raise ValueError(
            f"no query of the run has judgements: the run has {_some(run)}, the judgements {_some(qrels)}; "
            "are they of the same set and split?"
        )
    for query, found in run.items():
        if any(map(math.isnan, found.values())):
            raise ValueError(f"query {query!r}: a score is NaN; has training diverged?")
    asked = {name: _measure(ir_measures, metric, relevant_from) for name, metric in metrics.items()}
    judged = {query: dict(grades) for query, grades in qrels.items() if query in run or missing == "zero"}
    scored = {query: dict(run[query]) for query in judged if run.get(query)}
    values = {query: dict.fromkeys(names, 0.0) for query in judged}
    found_values: dict[tuple[str, Any], float] = {
        (value.query_id, value.measure): value.value
        for value in (ir_measures.pytrec_eval.iter_calc(list(set(asked.values())), judged, scored) if scored else ())
    }
    for query in scored:
        for name, metric in metrics.items():
            value = found_values[query, asked[name]]
            beyond = metric.kind == "mrr" and metric.k is not None and value * metric.k < 1 - 1e-9
            values[query][name] = 0.0 if beyond else value
    return values


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over queries of each metric of ``per_query``."""
    if not values:
        raise ValueError("there are no queries to average over")
    names = next(iter(values.values()))
    return {name: math.fsum(found[name] for found in values.values()) / len(values) for name in names}


def evaluate(
    run: Run, qrels: Qrels, names: Sequence[str], relevant_from: int = 1, missing: Literal["zero", "skip"] = "zero"
) -> dict[str, float]:
    """Means over queries; see :func:`per_query`."""
    return means(per_query(run, qrels, names, relevant_from, missing))


def without_self(run: Run) -> dict[str, dict[str, float]]:
    """The run without documents that have their query's id, as BEIR scores it."""
    return {
        query: {document: score for document, score in found.items() if document != query}
        for query, found in run.items()
    }


def deepest(names: Sequence[str]) -> int:
    """The largest k of metric names, 1 without any; names the unknown by ``ValueError``."""
    return max((metric.k or 1 for metric in map(_parsed, names)), default=1)


def _parsed(name: str) -> _Metric:
    found = re.fullmatch(f"({'|'.join(_KINDS)})(?:@([0-9]+))?", name)
    if found is None or found[2] == "0" or (found[2] is None and found[1] not in ("map", "mrr")):
        known = ", ".join(f"{kind}@k" for kind in _KINDS if kind != "map")
        raise ValueError(f"metric {name!r} is unknown: give {known} with k >= 1, map or mrr")
    return _Metric(found[1], None if found[2] is None else int(found[2]))


def _measure(library: Any, metric: _Metric, relevant_from: int) -> Any:
    measure = getattr(library, _KINDS[metric.kind])
    if metric.kind != "ndcg":
        measure = measure(rel=relevant_from)
    return measure if metric.k is None or metric.kind == "mrr" else measure @ metric.k


def _some(table: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(table)[:3])) or "none"
