"""What scores completions: right answers, their corruptions (RandomCalculation, 2507.10532), form and length."""

from zoo.llm_rl.rewards.base import Reward, SampleReward
from zoo.llm_rl.rewards.corruptions import Inverted, MajorityIncorrect, RandomReward
from zoo.llm_rl.rewards.function import FunctionReward
from zoo.llm_rl.rewards.numeric import ContinuousAnswer, NumericAnswer
from zoo.llm_rl.rewards.scoring import score
from zoo.llm_rl.rewards.shape import FormatReward, LengthReward, SoftOverlong

__all__ = [
    "ContinuousAnswer",
    "FormatReward",
    "FunctionReward",
    "Inverted",
    "LengthReward",
    "MajorityIncorrect",
    "NumericAnswer",
    "RandomReward",
    "Reward",
    "SampleReward",
    "SoftOverlong",
    "score",
]
