"""How well an attacker did: the ROC of members' against non-members' scores, and what is read off it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class ROC:
    """One point a threshold, from "nobody is a member" (0, 0) to "everybody is" (1, 1)."""

    fpr: np.ndarray  # share of non-members called members, increasing
    tpr: np.ndarray  # share of members called members
    auc: float  # P(member's score > non-member's) + P(equal) / 2
    asr: float  # attack success rate: the accuracy at the best threshold

    @property
    def tpr_at_1(self) -> float:
        """TPR at 1 % FPR."""
        return self._tpr_at(0.01)

    @property
    def tpr_at_01(self) -> float:
        """TPR at 0.1 % FPR."""
        return self._tpr_at(0.001)

    def _tpr_at(self, fpr: float) -> float:
        # a threshold that exists, never one interpolated: the FPR is kept
        return float(self.tpr[self.fpr <= fpr].max())


def roc(member_scores: Tensor | np.ndarray | Sequence, nonmember_scores: Tensor | np.ndarray | Sequence) -> ROC:
    """The ROC of scores where higher means member. Exact: equal scores share a threshold, and count half in the AUC.

    Raises ValueError where either has no scores, or one that is NaN.
    """
    members, nonmembers = (
        np.asarray(scores.cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64).ravel()
        for scores in (member_scores, nonmember_scores)
    )
    if not (len(members) and len(nonmembers)):
        raise ValueError("scores of at least one member and one non-member are needed")
    if np.isnan(members).any() or np.isnan(nonmembers).any():
        raise ValueError("a score is NaN")
    # a member is whoever scores at least the threshold
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
    hits = len(members) - np.searchsorted(np.sort(members), thresholds)
    false_alarms = len(nonmembers) - np.searchsorted(np.sort(nonmembers), thresholds)
    hits, false_alarms = np.append(0, hits), np.append(0, false_alarms)
    correct = hits + len(nonmembers) - false_alarms
    fpr, tpr = false_alarms / len(nonmembers), hits / len(members)
    return ROC(
        fpr=fpr,
        tpr=tpr,
        auc=float(np.trapezoid(tpr, fpr)),
        asr=float(correct.max() / (len(members) + len(nonmembers))),
    )
