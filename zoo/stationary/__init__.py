"""Representations for compatible model updates: d-Simplex and d-Simplex-HOC (2405.02581), and ER beside them."""

from zoo.catalogue import Checkpoint, register_checkpoint
from zoo.stationary.classifiers import LearnableClassifier, SimplexClassifier
from zoo.stationary.losses import HigherOrderCompatibility
from zoo.stationary.representation import CompatibleRepresentation

_SERVERS = {  # 1:N accuracy on the 64 novel characters in percent, sha256
    "simplex_omniglot_114": (75.47, "a3727435b859f8e9ae313d6b0a0b6eaa4e59084d91334311402e5b94dce88ef4"),
    "simplex_omniglot_228": (81.09, "4151bd32c60404521e4203dbc0e906b7c9b258567b1310deab2551ee0815a01b"),
    "simplex_omniglot_456": (84.38, "f79478dd110ad979e8e38c3a59dbf384f620c671cbc2cec111bcdbc786a37247"),
    "learnable_omniglot_114": (85.31, "e7cf5c12e186a187fa109b857bf147edee93acfc7847aa907e293120477e3771"),
    "learnable_omniglot_228": (85.16, "b3428c7957f359aec67b76079a5ee1decc836aa5febf1a81a36083e86361cf4c"),
    "learnable_omniglot_456": (87.97, "04100750a44ec54174a86eef7a517db08d0444baffb0a4e4ffae10ffe0b43f4f"),
}
for _name, (_accuracy, _sha256) in _SERVERS.items():
    register_checkpoint(
        Checkpoint(
            name=f"stationary/{_name}",
            file=f"stationary/weights/{_name}.safetensors",
            sha256=_sha256,
            config="stationary/server_omniglot (see its head comment)",
            metrics=f"1:N accuracy on 64 novel characters: {_accuracy}",
            licence="Apache-2.0",
        )
    )

__all__ = ["CompatibleRepresentation", "HigherOrderCompatibility", "LearnableClassifier", "SimplexClassifier"]
