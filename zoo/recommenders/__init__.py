"""Next items from short sequences of ids: SRA-CL (2503.04162), CL4SRec (2010.14395) and DuoRec (2110.05730) as parts
beside any encoder, here SASRec (1808.09781) and GRU4Rec (1511.06939), with popularity and Markov chains as baselines.
"""

from zoo.recommenders.baselines import Markov, Popularity
from zoo.recommenders.collaborative import CollaborativeNeighbors
from zoo.recommenders.contrastive import Contrastive, DuoRec, InterUser, IntraUser
from zoo.recommenders.encoders import GRU4Rec, SASRec, SequenceEncoder
from zoo.recommenders.objectives import BPR, FullSoftmax, Objective, SampledSoftmax
from zoo.recommenders.recommender import Recommender
from zoo.recommenders.stopping import RoundedStopping
from zoo.recommenders.synthesis import Attention, Mean, Synthesizer, UniformSample
from zoo.recommenders.vectors import ExportVectors, export_vectors

__all__ = [
    "BPR",
    "Attention",
    "CollaborativeNeighbors",
    "Contrastive",
    "DuoRec",
    "ExportVectors",
    "FullSoftmax",
    "GRU4Rec",
    "InterUser",
    "IntraUser",
    "Markov",
    "Mean",
    "Objective",
    "Popularity",
    "Recommender",
    "RoundedStopping",
    "SASRec",
    "SampledSoftmax",
    "SequenceEncoder",
    "Synthesizer",
    "UniformSample",
    "export_vectors",
]
