"""Does a model copy? Generated images against those it was trained on: the nearest, and how much nearer than the next.

A generated image is a copy where its distance to the nearest training image is below a third of that to the second
nearest (Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize").
"""

import torch
from torch import Tensor

RATIO = 1 / 3


def nearest(generated: Tensor, images: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Of each generated image, the L2 distances (N, 2) to the nearest and the second nearest image, and which they are.

    Both are uint8, (N, 3, H, W) and (M, 3, H, W); distances are in grey levels, indices (N, 2) into `images`. Exact:
    |x|^2 - 2 x.y + |y|^2 is a whole number that float64 holds. `block` x `block` products are held at a time, on the
    CPU, so that memory does not grow with N and M, but for the result. Raises ValueError for fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("a nearest and a second nearest image take two images")
    distances, indices = [], []
    for x in generated.split(block):
        x = x.flatten(1).double()
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
    """Which of N images, whose two smallest distances (N, 2) are given, are copies: (N,) bool."""
    return distances[:, 0] < RATIO * distances[:, 1]
