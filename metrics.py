"""How well an attacker did: the ROC of members' scores against non-members', under two protocols. And copies.

*published*: timestep and sign are fixed beforehand, and all images are judged. The threshold is the best one for these
same images. SecMI, PIA and others report in this way; it is here for comparison with them.
*adaptive*: the attacker chooses timestep, sign and threshold on one half of the images, and is judged on the other.
An AUC below 0.5 under the first protocol is no privacy. The second shows the AUC of an attacker who flips the sign.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000  # of a bootstrap: 25 of them lie beyond each end of a 95 % interval


@dataclass(frozen=True)
class ROC:
    """A point for each threshold, from "no image is a member" (0, 0) to "every image is" (1, 1)."""

    fpr: np.ndarray  # share of non-members called members, increasing
    tpr: np.ndarray  # share of members called members
    auc: float  # P(member's score > non-member's) + P(equal) / 2
    asr: float  # attack success rate: the accuracy at the best threshold
    threshold: float  # that threshold: an image is called a member if its score is at least this
    members: int
    nonmembers: int

    @property
    def tpr_at_1(self) -> float | None:
        """TPR at 1 % FPR; None for fewer than 100 non-members, because 1 % of them is less than one."""
        return self._tpr_at(0.01) if self.nonmembers >= 100 else None

    @property
    def tpr_at_01(self) -> float | None:
        """TPR at 0.1 % FPR; None for fewer than 1,000 non-members."""
        return self._tpr_at(0.001) if self.nonmembers >= 1000 else None

    def _tpr_at(self, fpr: float) -> float:
        # at a threshold that exists: interpolation could exceed the FPR
        return float(self.tpr[self.fpr <= fpr].max())


@dataclass(frozen=True)
class Result:
    """An attacker's result under one protocol."""

    curve: ROC
    interval: tuple[float, float]  # 95 % bootstrap interval of the AUC, over images
    asr: float  # the accuracy; under the adaptive protocol, with thresholds chosen on other images
    choices: list[tuple[int, int]]  # (row of the scores, sign +1 or -1), one for each half that chose


Scores = Tensor | np.ndarray | Sequence


def published(members: Scores, nonmembers: Scores, seed: int = 0) -> Result:
    """Judge the scores of members (N,) and non-members (M,) as they are. Higher means member."""
    members, nonmembers = _as_arrays(members, nonmembers)

    def resample(random: np.random.RandomState) -> float:
        return auc(random.choice(members, len(members)), random.choice(nonmembers, len(nonmembers)))

    curve = roc(members, nonmembers)
    return Result(curve, _interval(resample, seed), curve.asr, [(0, 1)])


def adaptive(members: Scores, nonmembers: Scores, seed: int = 0, flips: bool = True) -> Result:
    """Judge scores (T, N) and (T, M), higher = member, with a row for each timestep that the attacker may choose.

    Members and non-members are cut into two random halves. On one half the attacker picks the row and the sign with
    the best AUC, and the threshold with the best accuracy. With these they judge the other half. Then the halves swap,
    and both results are pooled. The resamples for the interval are drawn within each half and pick anew, so the
    interval includes the luck of the pick. Without `flips` the sign stays. Raises ValueError for less than two of each.
    """
    both = _as_arrays(members, nonmembers)
    cut = halves(*(scores.shape[1] for scores in both), seed)
    first, second = ([scores[:, rows] for scores, rows in zip(both, half, strict=True)] for half in cut)

    def resample(random: np.random.RandomState) -> float:
        drawn = ([_redraw(scores, random) for scores in half] for half in (first, second))
        return auc(*_judge_each_other(*drawn, flips))

    right, choices = 0, []
    for mine, other in ((first, second), (second, first)):
        choice, scored = _attacker(*mine, flips)
        threshold = roc(*map(scored, mine)).threshold
        right += (scored(other[0]) >= threshold).sum() + (scored(other[1]) < threshold).sum()
        choices.append(choice)
    curve = roc(*_judge_each_other(first, second, flips))
    return Result(curve, _interval(resample, seed), float(right / sum(scores.shape[1] for scores in both)), choices)


def halves(members: int, nonmembers: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two random halves, as (rows of members, rows of non-members). Raises ValueError for fewer than two of either."""
    if min(members, nonmembers) < 2:
        raise ValueError("two halves need at least two members and two non-members")
    random = np.random.RandomState(seed)
    parts = (np.array_split(random.permutation(count), 2) for count in (members, nonmembers))
    return list(zip(*parts, strict=True))


def judged_by_others(members: Scores, nonmembers: Scores, seed: int = 0) -> Result:
    """The adaptive protocol for scores (N,) and (M,) that come from an attacker trained on the other half (`halves`).

    They have nothing left to pick: a positive score means member. The interval is over the images that are judged.
    """
    members, nonmembers = _as_arrays(members, nonmembers)
    right = (members > 0).sum() + (nonmembers <= 0).sum()
    return replace(published(members, nonmembers, seed), asr=float(right / (len(members) + len(nonmembers))))


def _attacker(members: np.ndarray, nonmembers: np.ndarray, flips: bool = True) -> tuple[tuple[int, int], Callable]:
    """What an attacker learns from scores (T, n), (T, m): a row, a sign, and a function that scores others (T, k)."""
    aucs = np.array([auc(*row) for row in zip(members, nonmembers, strict=True)])
    row = int((np.abs(aucs - 0.5) if flips else aucs).argmax())
    sign = -1 if flips and aucs[row] < 0.5 else 1
    # the halves may pick different rows: scores are pooled in units of the spread of non-members
    low, centre, high = np.quantile(sign * nonmembers[row], [0.25, 0.5, 0.75])
    return (row, sign), lambda scores: (sign * scores[row] - centre) / ((high - low) or 1)


def _judge_each_other(first: Sequence[np.ndarray], second: Sequence[np.ndarray], flips: bool) -> list[np.ndarray]:
    """The scores of all members and all non-members of two halves; the other half's attacker scores each."""
    by_first, by_second = _attacker(*first, flips)[1], _attacker(*second, flips)[1]
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
    """The exact ROC of scores (N,) and (M,), higher = member. Raises ValueError where one is empty, or has a NaN."""
    members, nonmembers = _as_arrays(members, nonmembers)
    # a score of at least the threshold means member
    thresholds = np.append(np.inf, np.unique(np.concatenate([members, nonmembers]))[::-1])
    hits = len(members) - np.searchsorted(np.sort(members), thresholds)
    false_alarms = len(nonmembers) - np.searchsorted(np.sort(nonmembers), thresholds)
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
    arrays = [array.clip(-1e300, 1e300) for array in arrays]  # the difference of two infinite scores is no number
    if not all(array.size for array in arrays):
        raise ValueError("scores of at least one member and one non-member are needed")
    if any(np.isnan(array).any() for array in arrays):
        raise ValueError("a score is NaN")
    return arrays


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share among n (Wilson 1927)."""
    z = 1.96
    centre, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


# --- copies ------------------------------------------------------------------------------------


def nearest(generated: Tensor, images: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """L2 distances (N, 2) from each generated image to the nearest and second nearest image; their indices (N, 2).

    Both are uint8, (N, 3, H, W) and (M, 3, H, W); distances are in grey levels. They are exact, because float64 holds
    the whole number |x|^2 - 2 x.y + |y|^2. Memory grows with `block`^2, not with N M. Raises ValueError for M < 2.
    """
    if len(images) < 2:
        raise ValueError("a nearest and a second nearest image need two images")
    distances, indices = [], []
    for x in (part.flatten(1).double() for part in generated.split(block)):
        best = torch.full((len(x), 2), torch.inf, dtype=torch.float64), torch.zeros((len(x), 2), dtype=torch.int64)
        for first in range(0, len(images), block):
            y = images[first : first + block].flatten(1).double()
            squared = x.square().sum(1, keepdim=True) - 2 * x @ y.T + y.square().sum(1)
            numbers = torch.arange(first, first + len(y)).expand_as(squared)
            squared, numbers = torch.cat([best[0], squared], 1), torch.cat([best[1], numbers], 1)
            squared, which = squared.topk(2, largest=False)
            best = squared, numbers.gather(1, which)
        distances.append(best[0].sqrt())
        indices.append(best[1])
    return torch.cat(distances), torch.cat(indices)


def is_copy(distances: Tensor) -> Tensor:
    """Which generated images are copies, (N,) bool, given the two smallest distances (N, 2) of each.

    An image is a copy if its nearest training image is less than a third as far away as the second nearest (Yoon et
    al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize").
    """
    return distances[:, 0] < distances[:, 1] / 3
