"""All heads on one backbone: the table that compares them on identical episodes."""

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.catalogue import register
from zoo.few_shot.evaluation import FewShotModule


@register(
    "head_comparison",
    papers=["SimpleShot 1911.04623", "RFS 2003.11539", "Baseline++ 1904.04232", "SLK 2106.09516"],
    task="few-shot classification",
    config="few_shot/heads_omniglot",
)
class HeadComparison(FewShotModule):
    """Heads on a pretrained backbone; there is nothing to train: use ``validate``, ``test`` or ``predict``."""

    def on_fit_start(self) -> None:
        raise MisconfigurationException("HeadComparison has nothing to fit: use `python -m zoo test --config ...`")
