"""Language models that learn from their own completions: GRPO (2402.03300), Dr.GRPO (2503.20783), DAPO (2503.14476),
RLOO (2402.14740), ReMax (2310.10505), REINFORCE++ (2501.03262), GSPO (2507.18071), Lite PPO (2508.08221), D3S
(2509.22115), CANON (2509.23962), RandomCalculation (2507.10532), CARFT (2508.15868), RLGF (2306.11816), and supervised
fine-tuning before.
"""

from zoo.llm_rl.advantages import Advantage, Gae, Gdpo, GroupAdvantage, ReinforcePlusPlus, ReMax, TokenAdvantage
from zoo.llm_rl.auxiliary import Auxiliary
from zoo.llm_rl.canon import AccuracyMu, Canon, CosineMu
from zoo.llm_rl.carft import AnnotatedContrast
from zoo.llm_rl.critic import Critic
from zoo.llm_rl.d3s import D3S
from zoo.llm_rl.execution import ExecutionReward
from zoo.llm_rl.fine_tuner import PolicyFineTuner
from zoo.llm_rl.guided import Guided
from zoo.llm_rl.imitation import Imitation
from zoo.llm_rl.kl import Kl
from zoo.llm_rl.objectives import ClippedSurrogate, Correction
from zoo.llm_rl.rollouts import Generation, RolloutSource
from zoo.llm_rl.samples import SampleTable
from zoo.llm_rl.selection import Difficulty, DynamicSampling, OverlongFilter, Selection, TopEntropy
from zoo.llm_rl.solver import Solver
from zoo.llm_rl.supervised import SupervisedFineTuner
from zoo.llm_rl.vllm_rollouts import VllmGeneration

__all__ = [
    "D3S",
    "AccuracyMu",
    "Advantage",
    "AnnotatedContrast",
    "Auxiliary",
    "Canon",
    "ClippedSurrogate",
    "Correction",
    "CosineMu",
    "Critic",
    "Difficulty",
    "DynamicSampling",
    "ExecutionReward",
    "Gae",
    "Gdpo",
    "Generation",
    "GroupAdvantage",
    "Guided",
    "Imitation",
    "Kl",
    "OverlongFilter",
    "PolicyFineTuner",
    "ReMax",
    "ReinforcePlusPlus",
    "RolloutSource",
    "SampleTable",
    "Selection",
    "Solver",
    "SupervisedFineTuner",
    "TokenAdvantage",
    "TopEntropy",
    "VllmGeneration",
]
