"""Few-shot image classification: CRLNet (2502.01183), ProtoNet (1703.05175), SimpleShot (1911.04623), RFS
(2003.11539), Baseline++ (1904.04232), transductive clustering (2106.09516).
"""

from zoo.catalogue import Checkpoint, register_checkpoint
from zoo.few_shot.comparison import HeadComparison
from zoo.few_shot.crlnet import CRLNet
from zoo.few_shot.crlnet_network import CRLNetHead
from zoo.few_shot.pretraining import BasePretraining
from zoo.few_shot.protonet import ProtoNet

register_checkpoint(
    Checkpoint(
        name="few_shot/conv64f_omniglot",
        file="few_shot/weights/conv64f_omniglot.safetensors",
        sha256="183c97ae90ab3acb675baafde07155bff750f875a6db4ba15c2843e007d40bf5",
        config="few_shot/pretrain_omniglot",
        metrics="cosine, 5-way 1-shot: 92.79 ± 0.41 clean, 32.09 ± 0.56 hard queries",
        licence="Apache-2.0",
    )
)
register_checkpoint(
    Checkpoint(
        name="few_shot/conv64f_omniglot_degraded",
        file="few_shot/weights/conv64f_omniglot_degraded.safetensors",
        sha256="40120a9b23b0ace9d928db516591b62917a8c7dba46b0381cd2408edc0a9a0f2",
        config="few_shot/pretrain_omniglot, degraded=0.5",
        metrics="cosine, 5-way 1-shot: 88.79 ± 0.49 clean, 76.57 ± 0.56 hard queries",
        licence="Apache-2.0",
    )
)

__all__ = ["BasePretraining", "CRLNet", "CRLNetHead", "HeadComparison", "ProtoNet"]
