"""The classifier: its scores against scikit-learn's, rows that come twice, and what it starts from."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from sklearn import metrics
from torch import Tensor

from datamodules.batches import IndexedImages
from zoo.nn import Conv64F
from zoo.noise_mask import ImageClassifier
from zoo.noise_mask.scores import classification_scores


def classifier(classes: int = 3, seed: int = 0, **options: Any) -> ImageClassifier:
    torch.manual_seed(seed)
    return ImageClassifier(Conv64F(1, width=8, pools=2), classes, **options)


def noisy(classes: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), label] += 1
    return logits, label


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    logits, label = noisy(classes, 200)
    scores = classification_scores(logits, label)
    guess, probability = logits.argmax(1).numpy(), logits.double().softmax(1).numpy()
    truth = label.numpy()
    area = probability[:, 1] if classes == 2 else probability
    expected = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
        "precision": metrics.precision_score(truth, guess, average="macro"),
        "recall": metrics.recall_score(truth, guess, average="macro"),
        "f1": metrics.f1_score(truth, guess, average="macro"),
        "auc": metrics.roc_auc_score(truth, area, multi_class="ovr"),
    }
    assert scores == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-4)
    assert scores["balanced_accuracy"] == pytest.approx(scores["recall"])


def test_classes_without_images_do_not_count_in_balanced_accuracy_and_auc() -> None:
    logits, label = noisy(4, 200)
    kept = label < 2
    scores = classification_scores(logits[kept], label[kept])
    truth, probability = label[kept].numpy(), logits[kept].double().softmax(1).numpy()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = metrics.balanced_accuracy_score(truth, probability.argmax(1))
    assert scores["balanced_accuracy"] == pytest.approx(100 * balanced, abs=1e-4)
    areas = [metrics.roc_auc_score(truth == c, probability[:, c]) for c in range(2)]
    assert scores["auc"] == pytest.approx(50 * sum(areas), abs=1e-4)


def test_confident_images_are_still_ranked() -> None:
    logits = torch.tensor([[20.0, 0.0], [21.0, 0.0], [22.0, 0.0], [23.0, 0.0]])
    assert classification_scores(logits, torch.tensor([1, 1, 0, 0]))["auc"] == 100


def test_a_row_that_comes_twice_counts_once() -> None:
    module = classifier().eval()
    shown: dict[str, float] = {}
    module.log = lambda name, value, **_: shown.update({name: value})  # type: ignore[method-assign]
    image = torch.randn(4, 1, 12, 12)
    label = module(image).argmax(1)
    label[0] = (label[0] + 1) % 3
    module.on_test_epoch_start()
    module.test_step(IndexedImages(image[:3], label[:3], torch.tensor([0, 1, 2])), 0)
    module.test_step(IndexedImages(image[[3, 0, 0]], label[[3, 0, 0]], torch.tensor([3, 0, 0])), 1)
    module.on_test_epoch_end()
    assert shown["test/accuracy"] == pytest.approx(75)
    # 1.96 sqrt(0.75 * 0.25 / 4)
    assert shown["test/accuracy_ci95"] == pytest.approx(100 * 1.96 * (0.75 * 0.25 / 4) ** 0.5)
    (row,) = module.results()
    assert row["images"] == 4
    assert row["mask"] == "none"


def save(module: ImageClassifier, file: Path, prefix: str = "", **more: Tensor) -> str:
    torch.save({"state_dict": {prefix + k: v for k, v in {**module.state_dict(), **more}.items()}}, file)
    return str(file)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_start_strips_prefixes_and_the_policy_and_says_so(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = classifier(seed=1)
    extra = {
        "policy.head_a.0.weight": torch.zeros(2),
        "mask.base_a": torch.zeros(4),
        "objective.average": torch.zeros(2),
    }
    name = save(source, tmp_path / "heated.ckpt", prefix, **extra)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        module = classifier(init_from=name)
    for key, value in source.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    assert "left out 3 tensors of the mask policy" in caplog.text
    assert ("took the prefixes" in caplog.text) == bool(prefix)


def test_a_compiled_part_inside_the_names_is_found(tmp_path: Path) -> None:
    source = classifier(seed=1)
    state = {key.replace("backbone.", "backbone._orig_mod."): value for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "compiled.pt")
    module = classifier(init_from=str(tmp_path / "compiled.pt"))
    assert torch.equal(module.backbone.blocks[0][0].weight, source.backbone.blocks[0][0].weight)


def test_a_head_of_other_classes_is_refused_or_made_anew(tmp_path: Path) -> None:
    source = classifier(classes=5, seed=1)
    name = save(source, tmp_path / "five.ckpt")
    with pytest.raises(ValueError, match="its head has 5 classes, this model has 3: set reset_head=true"):
        classifier(init_from=name)
    module = classifier(init_from=name, reset_head=True)
    assert module.head.weight.shape == (3, 8)
    assert torch.equal(module.backbone.blocks[0][0].weight, source.backbone.blocks[0][0].weight)
    other = ImageClassifier(Conv64F(1, width=4, pools=2), 5)
    with pytest.raises(ValueError, match="tensors find no match in it, such as backbone"):
        classifier(classes=5, init_from=save(other, tmp_path / "narrow.ckpt"))


def test_fine_tuning_from_nothing_warns(data: Any, quiet_trainer: Callable[..., Trainer]) -> None:
    with pytest.warns(UserWarning, match="this run is a plain baseline"):
        quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(classifier(fine_tune=True), data())


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes=1: must be at least 2"):
        classifier(classes=1)


def test_weights_that_match_no_key_are_refused(tmp_path: Path) -> None:
    source = classifier(seed=1)
    name = save(source, tmp_path / "deeper.ckpt", **{"backbone.blocks.4.0.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"1 of its tensors have no place in this model, such as backbone.blocks.4"):
        classifier(init_from=name)
