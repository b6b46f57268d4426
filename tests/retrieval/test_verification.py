"""Verification: a worked example, scikit-learn's ROC curve, ties, and thresholds learned on other folds."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from zoo.retrieval import embedding_table
from zoo.retrieval.verification import equal_error_rate, kfold_accuracy, pair_scores, roc_auc, tar_at_far

POSITIVE, NEGATIVE = torch.tensor([0.9, 0.8, 0.4]), torch.tensor([0.7, 0.3, 0.2, 0.1])


@pytest.mark.filterwarnings("ignore:TAR@FAR")
def test_worked_example() -> None:
    assert tar_at_far(POSITIVE, NEGATIVE, 0.25) == pytest.approx(2 / 3)  # at or above 0.7
    assert tar_at_far(POSITIVE, NEGATIVE, 0.24) == pytest.approx(2 / 3)  # above 0.7
    assert tar_at_far(POSITIVE, NEGATIVE, 0.5) == 1  # at or above 0.3
    assert roc_auc(POSITIVE, NEGATIVE) == pytest.approx(11 / 12)
    assert equal_error_rate(POSITIVE, NEGATIVE) == pytest.approx(0.25)


@pytest.mark.filterwarnings("ignore:TAR@FAR")
def test_equal_negative_scores_are_accepted_together_or_not_at_all() -> None:
    negative = torch.tensor([0.8, 0.8, 0.3, 0.2])
    assert tar_at_far(POSITIVE, negative, 0.25) == pytest.approx(1 / 3)  # only above 0.8
    assert tar_at_far(POSITIVE, negative, 0.5) == pytest.approx(2 / 3)


def test_few_negative_pairs_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="TAR@FAR=0.01 wants 1000 negative pairs or more, got 4"):
        tar_at_far(POSITIVE, NEGATIVE, 0.01)


def test_area_with_ties_and_the_limits() -> None:
    g = torch.Generator().manual_seed(0)
    positive = torch.randint(3, 12, (400,), generator=g).float()
    negative = torch.randint(0, 9, (300,), generator=g).float()
    label = torch.cat([torch.ones(400), torch.zeros(300)])
    assert roc_auc(positive, negative) == pytest.approx(roc_auc_score(label, torch.cat([positive, negative])))
    assert roc_auc(positive, positive) == pytest.approx(0.5)
    assert equal_error_rate(positive, positive) == pytest.approx(0.5)
    assert roc_auc(positive + 20, negative) == 1
    assert equal_error_rate(positive + 20, negative) == 0
    assert equal_error_rate(negative, positive + 20) == 1


def test_equal_error_rate_of_two_normal_distributions() -> None:
    g = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(20000, generator=g) + shift for shift in (2, 0))
    crossing = torch.special.ndtr(torch.tensor(-1.0)).item()  # 0.1587 at the threshold 1
    assert equal_error_rate(positive, negative) == pytest.approx(crossing, abs=0.005)
    assert kfold_accuracy(positive, negative).mean().item() == pytest.approx(1 - crossing, abs=0.005)


def test_each_fold_is_judged_by_the_threshold_of_the_others() -> None:
    # the first pair of each kind lies on the wrong side of what the other fold teaches
    positive, negative = torch.tensor([0.1, 0.9, 0.1, 0.9]), torch.tensor([0.0, 0.5, 0.0, 0.5])
    # fold 0: positives .1, negatives 0, judged at (.5 + .9) / 2; fold 1: positives .9, negatives .5, judged at .05
    assert kfold_accuracy(positive, negative, 2).tolist() == [0.5, 0.5]
    assert kfold_accuracy(positive, torch.zeros(4), 4).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_pair_comes_once(chunk: int) -> None:
    g = torch.Generator().manual_seed(0)
    a = embedding_table(torch.randn(10, 4, generator=g), torch.randint(3, (10,), generator=g))
    b = embedding_table(torch.randn(7, 4, generator=g), torch.randint(3, (7,), generator=g))
    full, same = a.embedding @ a.embedding.T, a.label[:, None] == a.label
    upper = torch.ones(10, 10).triu(1).bool()
    positive, negative = pair_scores(a, chunk=chunk)
    torch.testing.assert_close(positive.sort().values, full[same & upper].sort().values)
    torch.testing.assert_close(negative.sort().values, full[~same & upper].sort().values)
    assert len(positive) + len(negative) == 45
    positive, negative = pair_scores(a, b, chunk)
    cross = (a.embedding @ b.embedding.T)[a.label[:, None] == b.label]
    torch.testing.assert_close(positive.sort().values, cross.sort().values)
    assert len(positive) + len(negative) == 70


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no negative pairs"):
        roc_auc(POSITIVE, NEGATIVE[:0])
    with pytest.raises(ValueError, match="1 scores of positive pairs are not finite"):
        equal_error_rate(torch.tensor([1.0, float("nan")]), NEGATIVE)
    with pytest.raises(ValueError, match="far=0: must be above 0"):
        tar_at_far(POSITIVE, NEGATIVE, 0)
    with pytest.raises(ValueError, match="folds=10 with 3 positive and 4 negative pairs"):
        kfold_accuracy(POSITIVE, NEGATIVE)
    label = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="query vectors have 4 dimensions, the gallery's have 3"):
        pair_scores(embedding_table(torch.ones(2, 4), label), embedding_table(torch.ones(2, 3), label))
