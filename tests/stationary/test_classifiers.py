"""Fixed and learnable classifiers: what they compute, what they take from checkpoints and what they refuse."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from zoo.stationary.classifiers import Classifier, LearnableClassifier, SimplexClassifier
from zoo.stationary.simplex import simplex


def fixed(prototypes: int = 8, classes: int = 0, width: int = 5, **options: Any) -> SimplexClassifier:
    classifier = SimplexClassifier(prototypes, **options)
    classifier.build(width)
    classifier.grow(0, classes)
    return classifier


def learnable(classes: int = 0, width: int = 5) -> LearnableClassifier:
    classifier = LearnableClassifier()
    classifier.build(width)
    classifier.grow(0, classes)
    return classifier


def checkpoint(classifier: Classifier) -> dict[str, Tensor]:
    return {"backbone.weight": torch.zeros(2)} | classifier.state_dict(prefix="classifier.")


@pytest.mark.parametrize(
    ("count", "length", "expected", "tolerance"),
    [(10, 1, 1.376935, 1e-6), (10, 10, 1.345e-4, 1e-7), (1024, 1, 5.932174, 1e-6), (1024, 10, 0.044966, 1e-6)],
)
def test_cross_entropy_of_a_perfect_feature(count: int, length: float, expected: float, tolerance: float) -> None:
    classifier = fixed(count, classes=3, width=count - 1)
    label = torch.tensor([0, 2])
    z = classifier.embed(length * simplex(count)[[count - 1, count - 3]])
    loss = cross_entropy(classifier(z), classifier.target(label)).item()
    assert loss == pytest.approx(expected, abs=tolerance)
    assert loss == pytest.approx(math.log(1 + (count - 1) * math.exp(-length * count / (count - 1))), abs=2e-6)
    scaled = fixed(count, classes=3, width=count - 1, normalize=True, scale=length)
    assert cross_entropy(scaled(7 * z), scaled.target(label)).item() == pytest.approx(loss, abs=2e-6)


@pytest.mark.parametrize("order", ["from_end", "from_start"])
def test_collapsed_features_meet_the_compatibility_inequality(order: Any) -> None:
    label = torch.tensor([0, 0, 1, 2])
    models = [fixed(8, classes=3, label_order=order) for _ in range(2)]
    old, new = (scale * m.prototypes.double()[m.target(label)] for scale, m in zip((1.0, 9.0), models, strict=True))
    distance = 1 - normalize(new) @ normalize(old).T
    same = label[:, None] == label
    torch.testing.assert_close(distance, torch.where(same, 0.0, 1 + 1 / 7).double(), rtol=0, atol=1e-6)


def test_prototypes_stay_under_training_with_weight_decay() -> None:
    classifier = fixed(8, classes=3)
    assert [name for name, _ in classifier.named_parameters()] == ["junction.weight"]
    assert set(classifier.state_dict()) == {"junction.weight", "identity"}
    junction = classifier.junction.weight.detach().clone()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        logits = classifier(classifier.embed(torch.randn(4, 5)))
        optimizer.zero_grad()
        cross_entropy(logits, classifier.target(torch.tensor([0, 1, 2, 0]))).backward()
        optimizer.step()
    assert torch.equal(classifier.prototypes, simplex(8))
    assert not torch.equal(classifier.junction.weight, junction)


def test_logits_stay_float32_under_autocast() -> None:
    classifier = fixed(8, classes=3, width=7)
    z = torch.randn(4, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(z)
    assert torch.equal(logits, linear(z, simplex(8)))


def test_no_junction_where_the_width_is_right_and_an_explanation_where_it_is_not() -> None:
    assert isinstance(fixed(8, width=7).junction, nn.Identity)
    assert fixed(8, width=5).embed(torch.randn(2, 5)).shape == (2, 7)
    with pytest.raises(ValueError, match="gives 5 features, but num_prototypes=8 needs 7: set junction=true"):
        fixed(8, width=5, junction=False)


def test_classes_and_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="num_prototypes=8 is less than 9 classes"):
        fixed(8, classes=9)
    classifiers: list[Classifier] = [fixed(8, classes=3), learnable(3)]
    for classifier in classifiers:
        with pytest.raises(ValueError, match="known=4 to classes=3"):
            classifier.grow(4, 3)
        with pytest.raises(ValueError, match=r"label 3 is outside the 3 known classes \(0 to 2\)"):
            classifier.target(torch.tensor([0, 3]))
        with pytest.raises(ValueError, match="label -1 is outside"):
            classifier.target(torch.tensor([2, -1]))


def test_the_space_is_what_models_share() -> None:
    assert fixed(8, classes=2, width=7).space == fixed(8, classes=5, width=3).space
    assert fixed(8).space != fixed(9).space
    assert fixed(8).space == fixed(8, label_order="from_start").space  # the rows differ, not the prototypes
    assert learnable().space is None


@pytest.mark.parametrize("make", [fixed, learnable])
def test_the_model_of_the_task_before_is_taken_whole(make: Any) -> None:
    before, after = make(classes=2), make(classes=0)
    after.grow(0, 2)
    after.load_state_dict(after.adopt(checkpoint(before), "classifier.", own=True))
    after.grow(2, 5)
    assert after.classes == 5
    x = torch.randn(3, 5)
    torch.testing.assert_close(after.embed(x), before.embed(x), rtol=0, atol=0)
    torch.testing.assert_close(after(after.embed(x))[:, :2], before(before.embed(x))[:, :2])


def test_a_pretrained_simplex_gives_its_junction_and_leaves_our_classes() -> None:
    server, ours = fixed(classes=5, label_order="from_start"), fixed(classes=3)
    ours.load_state_dict(ours.adopt(checkpoint(server), "classifier.", own=False))
    assert torch.equal(ours.junction.weight, server.junction.weight)
    assert ours.classes == 3
    with pytest.raises(ValueError, match=r"num_prototypes=8 is less than 5 server \+ 4 local classes"):
        ours.grow(3, 4)


def test_a_later_task_still_knows_the_servers_rows() -> None:
    server, first, second = fixed(classes=5, label_order="from_start"), fixed(classes=2), fixed(classes=2)
    first.load_state_dict(first.adopt(checkpoint(server), "classifier.", own=False))
    second.load_state_dict(second.adopt(checkpoint(first), "classifier.", own=True))
    second.grow(2, 3)
    with pytest.raises(ValueError, match=r"5 server \+ 4 local"):
        second.grow(3, 4)
    # taken as a server itself, the model uses rows at both ends
    with pytest.raises(ValueError, match="5 classes of the checkpoint also take them from_start"):
        fixed(label_order="from_start").adopt(checkpoint(second), "classifier.", own=False)


@pytest.mark.parametrize("order", ["from_end", "from_start"])
def test_a_pretrained_model_of_the_same_order_shares_prototypes(order: Any) -> None:
    message = f"^server and local classes would share prototypes: 5 .* {order}, so features would not be comparable"
    with pytest.raises(ValueError, match=message):
        fixed(label_order=order).adopt(checkpoint(fixed(classes=5, label_order=order)), "classifier.", own=False)


def test_a_pretrained_model_with_too_many_classes_names_both_numbers() -> None:
    server = checkpoint(fixed(classes=6, label_order="from_start"))
    with pytest.raises(ValueError, match=r"=8 is less than 6 server \+ 3 local .*would share prototypes"):
        fixed(classes=3).adopt(server, "classifier.", own=False)


def other_hash() -> SimplexClassifier:
    classifier = fixed(classes=2)
    classifier.identity[1] += 1
    return classifier


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (fixed(9, classes=2), "^num_prototypes is 9 in the checkpoint and 8 here: .*Set num_prototypes=9"),
        (other_hash(), "^the hash of the prototypes is .*with this version"),
        (fixed(classes=2, label_order="from_start"), "^label_order is from_start .*Set label_order=from_start"),
    ],
)
def test_another_space_is_refused_by_adoption_and_by_loading(stored: SimplexClassifier, message: str) -> None:
    ours = fixed(classes=2)
    with pytest.raises(ValueError, match=message) as error:
        ours.adopt(checkpoint(stored), "classifier.", own=True)
    assert "features would not be comparable" in str(error.value)
    with pytest.raises(ValueError, match=message):
        nn.ModuleDict({"classifier": ours}).load_state_dict(
            {k: v for k, v in checkpoint(stored).items() if not k.startswith("backbone")}
        )


def test_state_without_the_needed_entry_names_it() -> None:
    with pytest.raises(ValueError, match=r"no entry 'classifier\.identity'"):
        fixed().adopt({"classifier.junction.weight": torch.zeros(7, 5)}, "classifier.", own=False)
    with pytest.raises(ValueError, match=r"no entry 'classifier\.weight'"):
        learnable(2).adopt({}, "classifier.", own=True)


def test_loading_takes_the_stored_classes() -> None:
    pairs: list[tuple[Classifier, Classifier]] = [(fixed(classes=5), fixed(classes=2)), (learnable(5), learnable(2))]
    for stored, original in pairs:
        ours = copy.deepcopy(original)
        nn.ModuleDict({"a": ours}).load_state_dict(nn.ModuleDict({"a": stored}).state_dict())
        assert (ours.classes, original.classes) == (5, 2)
        assert all(torch.equal(ours.state_dict()[k], v) for k, v in stored.state_dict().items())


def test_a_learned_head_keeps_old_rows_and_draws_new_ones_as_a_linear_layer_does() -> None:
    head = learnable(3, width=16)
    old = head.weight.detach().clone()
    head.grow(3, 400)
    assert torch.equal(head.weight[:3], old)
    assert head.weight.requires_grad
    new = head.weight.detach()[3:]
    assert new.abs().max() <= 1 / 4
    assert new.std().item() == pytest.approx(1 / (4 * math.sqrt(3)), rel=0.03)
    head.grow(0, 3)
    assert not torch.equal(head.weight, old)
    with pytest.raises(ValueError, match="rows for 3 classes, but 2 are known"):
        head.grow(2, 5)


def test_a_pretrained_head_is_dropped_and_an_own_one_must_fit() -> None:
    head = learnable(2)
    weight = head.weight.detach().clone()
    head.load_state_dict(head.adopt(checkpoint(learnable(9)), "classifier.", own=False))
    assert torch.equal(head.weight, weight)
    for other, shape in ((learnable(3), r"\[3, 5\]"), (learnable(2, width=4), r"\[2, 4\]")):
        with pytest.raises(ValueError, match=f"weight is {shape} in the checkpoint, but 2 classes .* 5 features"):
            head.adopt(checkpoint(other), "classifier.", own=True)
