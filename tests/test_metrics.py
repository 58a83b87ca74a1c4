import numpy as np
import pytest
import torch

import metrics
from metrics import adaptive, auc, published, roc


def test_by_hand():
    """members 4 2, non-members 3 1: of four pairs the member wins three."""
    curve = roc([4, 2], [3, 1])
    assert curve.auc == 0.75
    assert curve.fpr.tolist() == [0, 0, 0.5, 0.5, 1] and curve.tpr.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.asr == 0.75 and curve.threshold == 4  # one member found, no false alarm; 2 does as well
    assert (curve.members, curve.nonmembers) == (2, 2)


def test_ties_count_half():
    curve = roc([2, 1], [1, 0])  # pairs: 2>1, 2>0, 1=1, 1>0
    assert curve.auc == 3.5 / 4
    assert curve.fpr.tolist() == [0, 0, 0.5, 1] and curve.tpr.tolist() == [0, 0.5, 1, 1]
    everywhere = roc([5, 5, 5], [5, 5])
    assert everywhere.auc == 0.5 and everywhere.threshold == 5
    assert everywhere.asr == 3 / 5  # calling everybody a member


def test_perfect_and_reversed():
    assert roc([3, 4], [1, 2]).auc == roc([3, 4], [1, 2]).asr == 1 and roc([3, 4], [1, 2]).threshold == 3
    worst = roc([1, 2], [3, 4])
    assert worst.auc == 0 and worst.asr == 0.5
    assert roc([1] * 100, [2] * 100).tpr_at_1 == 0 and roc([2] * 9, [1] * 1000).tpr_at_01 == 1


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


def test_low_fpr_ends_are_two():
    """1,000 non-members, of which 5 score above half of the members: 0.5 % FPR."""
    members, nonmembers = [3.0] * 5 + [1.0] * 5, [2.0] * 5 + [0.0] * 995
    curve = roc(members, nonmembers)
    assert (curve.tpr_at_1, curve.tpr_at_01) == (1, 0.5)
    one_in_a_hundred = roc([1.0, 1.0], [2.0] + [0.0] * 99)
    assert one_in_a_hundred.tpr_at_1 == 1, "1 % FPR includes 1 %"
    assert roc([3.0, 1.0], [2.0] * 2 + [0.0] * 98).tpr_at_1 == 0.5, "and not 2 %"
    assert roc([3.0, 1.0], [2.0] * 2 + [0.0] * 998).tpr_at_01 == 0.5


def test_a_rate_finer_than_one_non_member_is_no_number():
    assert roc([1], [0] * 99).tpr_at_1 is None and roc([1], [0] * 100).tpr_at_1 == 1
    assert roc([1], [0] * 999).tpr_at_01 is None and roc([1], [0] * 1000).tpr_at_01 == 1


def test_takes_tensors():
    assert roc(torch.tensor([4.0, 2.0]), torch.tensor([3.0, 1.0])).auc == 0.75


def test_infinite_scores_are_ordered_and_nan_is_refused():
    assert roc([float("inf"), 0], [-float("inf"), 0]).auc == 3.5 / 4
    curve = roc([float("inf")], [float("inf")])
    assert curve.tpr[0] == curve.fpr[0] == 0, "a curve begins where nobody is a member"
    with pytest.raises(ValueError, match="NaN"):
        roc([1, float("nan")], [0])
    with pytest.raises(ValueError, match="at least one"):
        roc([], [0])


# --- the two protocols ---


def normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape)


def test_published_judges_the_scores_as_they_are():
    members, nonmembers = normal(0, 80) - 1, normal(1, 120)  # the wrong way round: the sign is not flipped
    result = published(members, nonmembers)
    assert result.curve.auc == auc(members, nonmembers) < 0.35
    assert result.asr == roc(members, nonmembers).asr and result.choices == [(0, 1)]
    assert 0.1 < result.interval[0] < result.curve.auc < result.interval[1] < 0.4


def test_adaptive_finds_a_flipped_sign_and_the_right_timestep(monkeypatch):
    """Of 30 timesteps one tells members apart, and there members score lower."""
    monkeypatch.setattr(metrics, "RESAMPLES", 50)
    for seed in range(10):
        members, nonmembers = normal(seed, 30, 200), normal(seed + 100, 30, 200)
        members[17] -= 2
        result = adaptive(members, nonmembers, seed)
        assert result.choices == [(17, -1), (17, -1)]
        # scores of N(-2, 1) and N(0, 1): P(a member's is lower) = Phi(2 / sqrt(2)) = 0.921; best accuracy Phi(1)
        assert result.curve.auc == pytest.approx(0.921, abs=0.045) and result.asr == pytest.approx(0.841, abs=0.06)
        assert result.interval[0] < result.curve.auc < result.interval[1]


def test_an_attacker_who_keeps_the_sign(monkeypatch):
    """They pick the row in which members score higher, though another one would tell more if it were flipped."""
    monkeypatch.setattr(metrics, "RESAMPLES", 50)
    members, nonmembers = normal(0, 3, 200), normal(100, 3, 200)
    members[1] -= 2
    members[2] += 1
    result = adaptive(members, nonmembers, flips=False)
    assert result.choices == [(2, 1), (2, 1)] and adaptive(members, nonmembers).choices == [(1, -1), (1, -1)]
    assert result.curve.auc == pytest.approx(0.760, abs=0.05)  # Phi(1 / sqrt(2))
    assert result.interval[0] < result.curve.auc < result.interval[1] < 0.85
    inverted = adaptive(members[1:2], nonmembers[1:2], flips=False)
    assert inverted.curve.auc == pytest.approx(0.079, abs=0.045) and inverted.interval[1] < 0.2


def test_adaptive_sees_nothing_in_noise_but_the_best_of_a_grid_does(monkeypatch):
    """The best of 30 timesteps and two signs, judged on the very images it was picked on, is no coin toss."""
    monkeypatch.setattr(metrics, "RESAMPLES", 2)
    honest, best_of_grid = [], []
    for seed in range(100):
        members, nonmembers = normal(seed, 30, 100), normal(seed + 1000, 30, 100)
        honest.append(adaptive(members, nonmembers, seed))
        aucs = [published(*row).curve.auc for row in zip(members, nonmembers, strict=True)]
        best_of_grid.append(max(max(aucs), 1 - min(aucs)))
    # one AUC wanders by 0.04, the mean of a hundred by 0.005
    assert np.mean([result.curve.auc for result in honest]) == pytest.approx(0.5, abs=0.015)
    assert np.mean([result.asr for result in honest]) == pytest.approx(0.5, abs=0.015)
    assert np.mean(best_of_grid) > 0.57


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["published", "adaptive"])
def test_the_interval_covers_the_true_auc_in_95_of_100_repeats(protocol, monkeypatch):
    """Members N(-1, 1), non-members N(0, 1): the AUC is Phi(1 / sqrt(2)) = 0.760, after a flip of the sign."""
    monkeypatch.setattr(metrics, "RESAMPLES", 120)
    covered, below = 0, 0
    for seed in range(200):
        members, nonmembers = normal(seed, 3, 100), normal(seed + 1000, 3, 100)
        members[1] -= 1
        if protocol == "adaptive":
            low, high = adaptive(members, nonmembers, seed).interval
        else:
            low, high = published(-members[1], -nonmembers[1], seed).interval
        covered += low <= 0.760 <= high
        below += high < 0.760
    assert 181 <= covered <= 198  # 190 expected, with a standard deviation of 3
    assert below <= 15, "it errs to both sides alike"


def test_intervals_once_more_with_loops(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 30)
    members, nonmembers = normal(0, 3, 21) + 0.5, normal(1, 3, 34)
    random, aucs = np.random.RandomState(6), []
    for _ in range(30):
        ours, theirs = random.choice(members[0], 21), random.choice(nonmembers[0], 34)
        aucs.append(np.mean([(a > b) + (a == b) / 2 for a in ours for b in theirs]))
    found = published(members[0], nonmembers[0], seed=6).interval
    assert found == pytest.approx(np.percentile(aucs, [2.5, 97.5]), abs=1e-12)
    halves = [(members[:, m], nonmembers[:, n]) for m, n in metrics.halves(21, 34, seed=6)]
    random, aucs = np.random.RandomState(6), []
    for _ in range(30):
        drawn = [[scores[:, random.randint(0, scores.shape[1], scores.shape[1])] for scores in half] for half in halves]
        pooled = [[], []]
        for judge, other in ((drawn[1], drawn[0]), (drawn[0], drawn[1])):
            _, scored = metrics._attacker(*judge)
            for kind in (0, 1):
                pooled[kind].extend(scored(other[kind]))
        aucs.append(np.mean([(a > b) + (a == b) / 2 for a in pooled[0] for b in pooled[1]]))
    found = adaptive(members, nonmembers, seed=6).interval
    assert found == pytest.approx(np.percentile(aucs, [2.5, 97.5]), abs=1e-12)


@pytest.mark.parametrize("digits", [9, 0])  # with none there are ties, also with thresholds
def test_adaptive_once_more_with_loops(digits):
    """Halves, choice, pooling and thresholds, written out; the two halves pick different rows and signs here."""
    members, nonmembers = normal(3, 4, 30), normal(4, 4, 41)
    members[1] += 0.8
    members[3] -= 0.9
    nonmembers[3] *= 50  # every row has a unit of its own
    members, nonmembers = members.round(digits), nonmembers.round(digits)
    found = adaptive(members, nonmembers, seed=5)
    random = np.random.RandomState(5)
    m, n = members[:, random.permutation(30)], nonmembers[:, random.permutation(41)]
    halves = [(m[:, :15], n[:, :21]), (m[:, 15:], n[:, 21:])]
    pooled_m, pooled_n, right, choices = [None, None], [None, None], 0, []
    for judge in (0, 1):
        its_m, its_n = halves[judge]
        distance = {}
        for row in range(4):
            wins = np.mean([(a > b) + (a == b) / 2 for a in its_m[row] for b in its_n[row]])
            distance[row, 1], distance[row, -1] = wins, 1 - wins
        row, sign = max(distance, key=distance.get)
        choices.append((row, sign))
        other_m, other_n = (sign * scores[row] for scores in halves[1 - judge])
        quartiles = np.percentile(sign * its_n[row], [25, 50, 75])
        pooled_m[judge] = (other_m - quartiles[1]) / (quartiles[2] - quartiles[0])
        pooled_n[judge] = (other_n - quartiles[1]) / (quartiles[2] - quartiles[0])
        correct = {c: (sign * its_m[row] >= c).sum() + (sign * its_n[row] < c).sum() for c in sign * its_m[row]}
        best = max(sorted(correct, reverse=True), key=correct.get)
        right += (other_m >= best).sum() + (other_n < best).sum()
    assert choices == found.choices and len(set(choices)) == 2
    assert found.curve.auc == pytest.approx(auc(np.concatenate(pooled_m), np.concatenate(pooled_n)), abs=1e-12)
    assert found.asr == pytest.approx(right / 71) and (found.curve.members, found.curve.nonmembers) == (30, 41)


def test_protocols_are_a_function_of_the_seed():
    members, nonmembers = normal(0, 3, 50) + 0.5, normal(1, 3, 50)
    one, same, other = (adaptive(members, nonmembers, seed) for seed in (1, 1, 2))
    assert one.interval == same.interval != other.interval and one.asr == same.asr
    assert one.curve.auc == same.curve.auc != other.curve.auc
    one, same, other = (published(members[0], nonmembers[0], seed) for seed in (1, 1, 2))
    assert one.interval == same.interval != other.interval
    assert adaptive(members, nonmembers).choices == adaptive(members, nonmembers, 0).choices
    for protocol, its in ((adaptive, (members, nonmembers)), (published, (members[0], nonmembers[0]))):
        assert protocol(*its).interval == protocol(*its, 0).interval, "the seed is 0 by default"


def test_adaptive_needs_two_of_each_and_takes_constant_scores():
    with pytest.raises(ValueError, match="two members"):
        adaptive([[1.0]], [[0.0, 1.0]])
    with pytest.raises(ValueError, match="NaN"):
        adaptive([[1.0, float("nan")]], [[0.0, 1.0]])
    constant = adaptive(np.ones((2, 10)), np.ones((2, 10)))
    assert constant.curve.auc == 0.5 and constant.choices == [(0, 1), (0, 1)]
    assert adaptive([[1.0, 2.0]], [[0.0, 0.5]]).curve.members == 2, "two are enough"
    _, scored = metrics._attacker(np.array([[1.0, 2.0]]), np.array([[0.5, 0.5]]))
    assert scored(np.array([[0.5, 3.0]])).tolist() == [0, 2.5], "where others don't spread, the unit is 1"


def test_halves_are_disjoint_and_of_both_kinds():
    first, second = metrics.halves(7, 4, seed=3)
    for one, other, count in zip(first, second, (7, 4), strict=True):
        assert sorted([*one, *other]) == list(range(count)) and abs(len(one) - len(other)) <= 1
    assert [list(rows) for rows in metrics.halves(7, 4, seed=4)[0]] != [list(rows) for rows in first]
    assert [list(rows) for rows in metrics.halves(7, 4)[0]] == [list(rows) for rows in metrics.halves(7, 4, seed=0)[0]]
    with pytest.raises(ValueError, match="two members and two non-members"):
        metrics.halves(2, 1)


def test_scores_of_attackers_who_learnt_elsewhere_are_judged_as_they_are():
    """No pick, no flipped sign, and 0 is the threshold."""
    members, nonmembers = np.array([3.0, 2, 0.5, -1]), np.array([0.0, -2, -3, 1])
    result, plain = metrics.judged_by_others(members, nonmembers), metrics.published(members, nonmembers)
    assert result.asr == 6 / 8 and plain.asr == 6 / 8
    assert result.curve.auc == metrics.auc(members, nonmembers) and result.interval == plain.interval
    assert metrics.judged_by_others([3.0, 2, 0, 0.5], [0.0, 1, -1]).asr == 5 / 7
    turned = metrics.judged_by_others(-members, -nonmembers)
    assert turned.curve.auc == 1 - result.curve.auc < 0.5 and turned.asr == 3 / 8  # 0 itself is no member's
