"""Passages for queries by vectors: LLM-QL (2504.05216), whose first stage makes a language model generate queries from
passages through one token and whose second is contrastive (RepLLaMA, 2310.08319), with BM25 as the baseline.
"""

from zoo.dense_retrieval.embedder import Embedder
from zoo.dense_retrieval.evaluation import PassageRetriever, Ranker
from zoo.dense_retrieval.index import CorpusIndex, encode_corpus
from zoo.dense_retrieval.lexical import BM25
from zoo.dense_retrieval.losses import contrastive_loss
from zoo.dense_retrieval.query_likelihood import QueryLikelihood
from zoo.dense_retrieval.retriever import DenseRetriever
from zoo.dense_retrieval.scoring import Reranker, dirichlet_score
from zoo.dense_retrieval.searching import Hit, Searcher, load_retriever

__all__ = [
    "BM25",
    "CorpusIndex",
    "DenseRetriever",
    "Embedder",
    "Hit",
    "PassageRetriever",
    "QueryLikelihood",
    "Ranker",
    "Reranker",
    "Searcher",
    "contrastive_loss",
    "dirichlet_score",
    "encode_corpus",
    "load_retriever",
]
