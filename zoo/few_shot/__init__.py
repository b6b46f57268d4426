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
        sha256="f29462ffac1c4a9bd08276311770ae8a38b3c7d25fa39f1d11c628fc2bd7ed9b",
        config="few_shot/pretrain_omniglot",
        metrics="cosine, 5-way 1-shot: 89.70 ± 0.47 clean, 77.16 ± 0.55 hard queries",
        licence="Apache-2.0",
    )
)

__all__ = ["BasePretraining", "CRLNet", "CRLNetHead", "HeadComparison", "ProtoNet"]
