import numpy as np
import pytest
import torch

from metrics import roc


def test_by_hand():
    """members 4 2, non-members 3 1: of four pairs the member wins three."""
    curve = roc([4, 2], [3, 1])
    assert curve.auc == 0.75
    assert curve.fpr.tolist() == [0, 0, 0.5, 0.5, 1] and curve.tpr.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.asr == 0.75  # at threshold 4 (one member found, no false alarm), or 2
    assert curve.tpr_at_1 == curve.tpr_at_01 == 0.5


def test_ties_count_half():
    curve = roc([2, 1], [1, 0])  # pairs: 2>1, 2>0, 1=1, 1>0
    assert curve.auc == 3.5 / 4
    assert curve.fpr.tolist() == [0, 0, 0.5, 1] and curve.tpr.tolist() == [0, 0.5, 1, 1]
    everywhere = roc([5, 5, 5], [5, 5])
    assert everywhere.auc == 0.5 and everywhere.tpr_at_1 == 0
    assert everywhere.asr == 3 / 5  # calling everybody a member


def test_perfect_and_reversed():
    assert roc([3, 4], [1, 2]).auc == roc([3, 4], [1, 2]).asr == roc([3, 4], [1, 2]).tpr_at_01 == 1
    worst = roc([1, 2], [3, 4])
    assert worst.auc == 0 and worst.asr == 0.5 and worst.tpr_at_1 == 0


@pytest.mark.parametrize("seed", range(5))
def test_against_every_pair_and_every_threshold(seed):
    random = np.random.RandomState(seed)
    members, nonmembers = random.randint(2, 14, 37) / 4, random.randint(0, 12, 230) / 4  # many ties
    curve = roc(members, nonmembers)
    pairs = [(m > n) + (m == n) / 2 for m in members for n in nonmembers]
    assert curve.auc == pytest.approx(np.mean(pairs), abs=1e-12)
    assert roc(nonmembers, members).auc == pytest.approx(1 - curve.auc, abs=1e-12)
    thresholds = [*members, *nonmembers, 100]
    points = [((members >= c).mean(), (nonmembers >= c).mean()) for c in thresholds]
    assert curve.asr == pytest.approx(max((37 * tpr + 230 * (1 - fpr)) / 267 for tpr, fpr in points))
    assert curve.tpr_at_1 == max(tpr for tpr, fpr in points if fpr <= 0.01)
    assert curve.tpr_at_01 == max(tpr for tpr, fpr in points if fpr <= 0.001)


def test_low_fpr_ends_are_two():
    """1,000 non-members, of which 5 score above half of the members: 0.5 % FPR."""
    members, nonmembers = [3.0] * 5 + [1.0] * 5, [2.0] * 5 + [0.0] * 995
    curve = roc(members, nonmembers)
    assert (curve.tpr_at_1, curve.tpr_at_01) == (1, 0.5)
    one_in_a_hundred = roc([1.0, 1.0], [2.0] + [0.0] * 99)
    assert one_in_a_hundred.tpr_at_1 == 1, "1 % FPR includes 1 %"


def test_takes_tensors():
    assert roc(torch.tensor([4.0, 2.0]), torch.tensor([3.0, 1.0])).auc == 0.75


def test_infinite_scores_are_ordered_and_nan_is_refused():
    assert roc([float("inf"), 0], [-float("inf"), 0]).auc == 3.5 / 4
    with pytest.raises(ValueError, match="NaN"):
        roc([1, float("nan")], [0])
    with pytest.raises(ValueError, match="at least one"):
        roc([], [0])
