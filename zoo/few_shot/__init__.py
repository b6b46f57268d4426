"""Few-shot image classification: CRLNet (2502.01183), ProtoNet (1703.05175), SimpleShot (1911.04623), RFS
(2003.11539), Baseline++ (1904.04232), transductive clustering (2106.09516).
"""

from zoo.few_shot.comparison import HeadComparison
from zoo.few_shot.crlnet import CRLNet
from zoo.few_shot.crlnet_network import CRLNetHead
from zoo.few_shot.pretraining import BasePretraining
from zoo.few_shot.protonet import ProtoNet

__all__ = ["BasePretraining", "CRLNet", "CRLNetHead", "HeadComparison", "ProtoNet"]
