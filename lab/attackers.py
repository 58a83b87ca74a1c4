"""Attackers stronger than those of attacks.py: they hold several reference models, or learn from many scores at once.

Scores (..., N) are those of attacks.py: minus an error of each image. `evidence` is minus the error's logarithm.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attacks
import metrics


def evidence(scores: Tensor) -> Tensor:
    return attacks.calibrated(scores, scores.new_tensor(-1.0))  # log 1 - log(-scores)


def lira(scores: Tensor, references: Tensor) -> Tensor:
    """Offline LiRA (Carlini et al. 2022, arXiv 2112.03570, eq. 4): (phi - mu_out) / sigma_out for each image.

    `references` (K, ..., N) are the scores under K >= 2 models that never saw these images. phi is the evidence, and
    mu_out and sigma_out its mean and standard deviation under these models. It ranks images as the paper's
    probability. K is small here, so an image's variance is averaged with the mean variance of all images.
    """
    out = evidence(references)
    variance = (out.var(0) + out.var(0).mean(-1, keepdim=True)) / 2
    return (evidence(scores) - out.mean(0)) / variance.sqrt()


def by_quantiles(
    known: Tensor, scores: Tensor, images: Tensor, its_scores: Tensor, *, steps: int = 500, seed: int = 0
) -> Tensor:
    """Quantile regression (Tang et al. 2024, arXiv 2312.05140): how far is a score above what such an image gets?

    A small network sees an image, and predicts the 0.5 and the 0.9 quantile of the evidence for it. It learns from
    `known` non-members (N, 3, H, W) in [-1, 1] with R scores each, (R, N). The result (R, M) is, for the `images` (M,
    3, H, W) with `its_scores` (R, M), the evidence above the median, in units of the quantiles' distance.
    """
    phi, device, levels = evidence(scores), known.device, torch.tensor([0.5, 0.9])[:, None, None].to(known.device)
    centre, spread = phi.mean(1, keepdim=True), phi.std(1, keepdim=True).clamp(min=1e-6)
    y = ((phi - centre) / spread).T.to(device)  # (N, R)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 2 * y.shape[1]),
        ).to(device)  # fmt: skip
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
        for _ in range(steps):
            rows = torch.randint(len(known), (64,)).to(device)
            median, above = network(known[rows]).chunk(2, 1)
            error = y[rows] - torch.stack([median, median + F.softplus(above)])
            optimizer.zero_grad()
            torch.maximum(levels * error, (levels - 1) * error).mean().backward()  # the pinball loss
            optimizer.step()
    with torch.no_grad():
        median, above = network(images).cpu().T.chunk(2)
    return ((evidence(its_scores) - centre) / spread - median) / F.softplus(above)


def learned(
    attack: str, members: Tensor, nonmembers: Tensor, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Scores by features (R, N, ...) and (R, M, ...): each half gets them from an attacker who learned on the other.

    By error images if `attack` is secmi_nn; else a logistic regression, as gsa's, learns from R numbers or vectors.
    """
    learn = functools.partial(attacks.secmi_nn, seed=seed) if attack == "secmi_nn" else attacks.gsa
    both = [features.transpose(0, 1).flatten(1, 2).float() for features in (members, nonmembers)]
    scores = np.empty(len(both[0])), np.empty(len(both[1]))
    cut = metrics.halves(*map(len, both), seed)
    for mine, other in (cut, cut[::-1]):
        known, others = (torch.cat([both[0][half[0]], both[1][half[1]]]).to(device) for half in (mine, other))
        is_member = torch.arange(len(known), device=device) < len(mine[0])
        found = learn(known, is_member, others).cpu().numpy()
        scores[0][other[0]], scores[1][other[1]] = np.split(found, [len(other[0])])
    return scores


def learned_by_each(attack: str, members: Tensor, nonmembers: Tensor, seed: int, device: torch.device) -> Tensor:
    """Scores (2, 1, N + M) of two attackers who know one half each. Who knows half k learns on all of it and scores the
    other half. Half k itself they score by two folds, to choose among attacks.
    """
    found = np.concatenate(learned(attack, members, nonmembers, seed, device))[None].repeat(2, 0)
    for k, (mine, others) in enumerate(metrics.halves(members.shape[1], nonmembers.shape[1], seed)):
        pair = learned(attack, members[:, mine], nonmembers[:, others], seed, device)
        found[k, mine], found[k, members.shape[1] + others] = pair
    return torch.from_numpy(found)[:, None]


def set_test(
    generated: Tensor, candidates: Tensor, held_out: Tensor, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Is a *set* of candidates nearer to generated images than held-out ones? Returns a statistic and its p-value.

    After Li et al. (arXiv 2502.02970), who find that a student's images stay near its teacher's members. Images are (G
    or N, 3, H, W) in [-1, 1]. The statistic is MMD^2(generated, held-out) - MMD^2(generated, candidates), unbiased
    (Gretton et al. 2012, eq. 3); the kernel is a mean of four Gaussians of pixels, with 1/8 to 1 of the median distance
    as width. The p-value, one-sided, is the share of permutations of the real images with at least this statistic.
    """
    real, n = torch.cat([candidates, held_out]).flatten(1).double(), len(candidates)
    squared = torch.cdist(real, real).square()
    median = squared[squared > 0].median()

    def kernel(squared: Tensor) -> Tensor:
        return torch.stack([(-squared / (2 * median * share**2)).exp() for share in (1, 1 / 2, 1 / 4, 1 / 8)]).mean(0)

    near = kernel(torch.cdist(real, generated.flatten(1).double()).square()).mean(1)
    among = kernel(squared).fill_diagonal_(0)
    generator, same = torch.Generator().manual_seed(seed), torch.arange(len(real))
    orders = [same, *(torch.randperm(len(real), generator=generator) for _ in range(draws))]
    labels = (torch.stack(orders) >= n).double()  # 0 is a candidate, 1 is held out

    def to_generated(mine: Tensor) -> Tensor:  # MMD^2 without its term of generated images alone, which cancels
        count = mine.sum(1)
        return ((mine @ among) * mine).sum(1) / (count * (count - 1)) - 2 * (mine @ near) / count

    statistic = to_generated(labels) - to_generated(1 - labels)
    return statistic[0].item(), (statistic >= statistic[0] - 1e-12).double().mean().item()
