"""Retrieval: tables of embeddings, exact and indexed search, metrics of rankings and of pairs, and galleries."""

from datamodules.search import Search, build_index, recall_against_flat
from zoo.retrieval.embeddings import (
    Embedded,
    EmbeddingStore,
    EmbeddingTable,
    class_templates,
    embedding_table,
    load_table,
    save_table,
)
from zoo.retrieval.evaluation import RetrievalEvaluator, RetrievalResult

__all__ = [
    "Embedded",
    "EmbeddingStore",
    "EmbeddingTable",
    "RetrievalEvaluator",
    "RetrievalResult",
    "Search",
    "build_index",
    "class_templates",
    "embedding_table",
    "load_table",
    "recall_against_flat",
    "save_table",
]
