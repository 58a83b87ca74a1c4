"""How well an attacker did: the ROC of members' against non-members' scores, under two protocols.

*published*: one timestep and one sign, fixed beforehand, all images; the threshold is the best one for the very
images that are judged. It is how SecMI, PIA and others report, and here for comparison with them.
*adaptive*: the attacker chooses timestep, sign and threshold on one half of the images and is judged on the other.
An AUC below 0.5 under the first is no privacy: the second shows what an attacker who flips the sign gets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

RESAMPLES = 1000  # of a bootstrap: the ends of a 95 % interval then stand on 25 resamples each


@dataclass(frozen=True)
class ROC:
    """One point a threshold, from "nobody is a member" (0, 0) to "everybody is" (1, 1)."""

    fpr: np.ndarray  # share of non-members called members, increasing
    tpr: np.ndarray  # share of members called members
    auc: float  # P(member's score > non-member's) + P(equal) / 2
    asr: float  # attack success rate: the accuracy at the best threshold
    threshold: float  # that threshold: a member is whoever scores at least as much
    members: int
    nonmembers: int

    @property
    def tpr_at_1(self) -> float | None:
        """TPR at 1 % FPR; None where there are fewer than 100 non-members, of whom 1 % is less than one."""
        return self._tpr_at(0.01) if self.nonmembers >= 100 else None

    @property
    def tpr_at_01(self) -> float | None:
        """TPR at 0.1 % FPR; None where there are fewer than 1,000 non-members."""
        return self._tpr_at(0.001) if self.nonmembers >= 1000 else None

    def _tpr_at(self, fpr: float) -> float:
        # a threshold that exists, never one interpolated: the FPR is kept
        return float(self.tpr[self.fpr <= fpr].max())


@dataclass(frozen=True)
class Result:
    """What an attacker got under one protocol."""

    curve: ROC
    interval: tuple[float, float]  # 95 % bootstrap interval of the AUC, over images
    asr: float  # the accuracy; under the adaptive protocol at thresholds chosen on other images
    choices: list[tuple[int, int]]  # (row of the scores, sign +1 or -1), one for each half that chose


Scores = Tensor | np.ndarray | Sequence


def published(members: Scores, nonmembers: Scores, seed: int = 0) -> Result:
    """Judge scores (N,) and (M,), higher = member, as they are."""
    members, nonmembers = _as_arrays(members, nonmembers)

    def resample(random: np.random.RandomState) -> float:
        return auc(random.choice(members, len(members)), random.choice(nonmembers, len(nonmembers)))

    curve = roc(members, nonmembers)
    return Result(curve, _interval(resample, seed), curve.asr, [(0, 1)])


def adaptive(members: Scores, nonmembers: Scores, seed: int = 0) -> Result:
    """Judge scores (T, N) and (T, M), higher = member, with a row for each timestep that the attacker may choose.

    Members and non-members are cut in two at random. On one half the attacker picks the row and the sign of the
    best AUC, and the threshold of the best accuracy; with them he judges the other half. Then the halves swap,
    and the two are pooled. Resamples for the interval are drawn within each half and pick anew: it covers the
    luck of the pick too. Raises ValueError for fewer than two members or non-members.
    """
    both = _as_arrays(members, nonmembers)
    cut = halves(*(scores.shape[1] for scores in both), seed)
    first, second = ([scores[:, rows] for scores, rows in zip(both, half, strict=True)] for half in cut)

    def resample(random: np.random.RandomState) -> float:
        return auc(*_judge_each_other(*([_redraw(scores, random) for scores in half] for half in (first, second))))

    right, choices = 0, []
    for mine, other in ((first, second), (second, first)):
        choice, scored = _attacker(*mine)
        threshold = roc(*map(scored, mine)).threshold
        right += (scored(other[0]) >= threshold).sum() + (scored(other[1]) < threshold).sum()
        choices.append(choice)
    curve = roc(*_judge_each_other(first, second))
    return Result(curve, _interval(resample, seed), float(right / sum(scores.shape[1] for scores in both)), choices)


def halves(members: int, nonmembers: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two halves, each as rows of the members and of the non-members: an attacker learns on one, and judges the other.

    Raises ValueError for fewer than two members or non-members.
    """
    if min(members, nonmembers) < 2:
        raise ValueError("to pick on one half and to judge the other takes two members and two non-members")
    random = np.random.RandomState(seed)
    parts = (np.array_split(random.permutation(count), 2) for count in (members, nonmembers))
    return list(zip(*parts, strict=True))


def judged_by_others(members: Scores, nonmembers: Scores, seed: int = 0) -> Result:
    """The adaptive protocol for scores (N,), (M,) that come from attackers who learnt on the other half (`halves`).

    They pick nothing more: positive scores are of members. The interval is over the images that are judged.
    """
    members, nonmembers = _as_arrays(members, nonmembers)
    right = (members > 0).sum() + (nonmembers <= 0).sum()
    return replace(published(members, nonmembers, seed), asr=float(right / (len(members) + len(nonmembers))))


def _attacker(members: np.ndarray, nonmembers: np.ndarray) -> tuple[tuple[int, int], Callable]:
    """What an attacker learns from scores (T, n), (T, m): which row and sign; and how he scores others (T, k)."""
    aucs = np.array([auc(*row) for row in zip(members, nonmembers, strict=True)])
    row = int(np.abs(aucs - 0.5).argmax())
    sign = 1 if aucs[row] >= 0.5 else -1
    # the two halves may pick different rows; to pool them, each measures in what non-members spread over
    low, centre, high = np.quantile(sign * nonmembers[row], [0.25, 0.5, 0.75])
    return (row, sign), lambda scores: (sign * scores[row] - centre) / ((high - low) or 1)


def _judge_each_other(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of two halves (members, nonmembers), the scores of all members and all non-members, each by the other half."""
    by_first, by_second = _attacker(*first)[1], _attacker(*second)[1]
    return [np.concatenate([by_second(one), by_first(two)]) for one, two in zip(first, second, strict=True)]


def _redraw(scores: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    return scores[:, random.randint(0, scores.shape[1], scores.shape[1])]


def _interval(resample: Callable[[np.random.RandomState], float], seed: int) -> tuple[float, float]:
    random = np.random.RandomState(seed)
    low, high = np.quantile([resample(random) for _ in range(RESAMPLES)], [0.025, 0.975])
    return float(low), float(high)


def auc(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """P(a member's score > a non-member's) + P(equal) / 2."""
    ordered = np.sort(nonmembers)
    wins = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
    return float(wins.sum() / (2 * len(members) * len(nonmembers)))


def roc(members: Scores, nonmembers: Scores) -> ROC:
    """The ROC of scores (N,) and (M,), higher = member. Exact: equal scores share a threshold.

    Raises ValueError where either has no scores, or one that is NaN.
    """
    members, nonmembers = _as_arrays(members, nonmembers)
    # a member is whoever scores at least the threshold
    thresholds = np.append(np.inf, np.unique(np.concatenate([members, nonmembers]))[::-1])
    hits = len(members) - np.searchsorted(np.sort(members), thresholds)
    false_alarms = len(nonmembers) - np.searchsorted(np.sort(nonmembers), thresholds)
    hits[0] = false_alarms[0] = 0  # even of scores that are infinite
    correct = hits + len(nonmembers) - false_alarms
    return ROC(
        fpr=false_alarms / len(nonmembers),
        tpr=hits / len(members),
        auc=auc(members, nonmembers),
        asr=float(correct.max() / (len(members) + len(nonmembers))),
        threshold=float(thresholds[correct.argmax()]),
        members=len(members),
        nonmembers=len(nonmembers),
    )


def _as_arrays(*scores: Scores) -> list[np.ndarray]:
    arrays = [np.asarray(each.cpu() if isinstance(each, Tensor) else each, dtype=np.float64) for each in scores]
    if not all(array.size for array in arrays):
        raise ValueError("scores of at least one member and one non-member are needed")
    if any(np.isnan(array).any() for array in arrays):
        raise ValueError("a score is NaN")
    return arrays
