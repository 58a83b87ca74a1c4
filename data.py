"""The images as one uint8 tensor (N, 3, H, W), and the index split: members in A, members in B, non-members."""

import colorsys
import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from lab import datasets
from lab.files import BadInput


def load(name: str, data_dir: str | None, size: int, seed: int) -> Tensor:
    """All training images of one of `datasets.DATASETS`, uint8 (N, 3, size, size), in their published order.

    `toy` is drawn from `seed`. Of the others `lab/datasets.py` says where they are found or downloaded, and what raises
    BadInput.
    """
    if name == "toy":
        return toy(size, seed)
    return datasets.load(name, data_dir, size, resize)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], the range of a diffusion model's images."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """The inverse of `to_float`; values outside [-1, 1] are clipped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 3, size, size): each new pixel is the mean of the area that it covers."""
    if images.shape[-1] == size:
        return images
    small = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    planes = max(1, 2**24 // images[0, 0].numel())  # at a time: all planes in float32 can take 11 GB, one image 1 GB
    for chunk, part in zip(images.flatten(0, 1).split(planes), small.view(-1, size, size).split(planes), strict=True):
        part.copy_(F.interpolate(chunk[:, None].float(), (size, size), mode="area")[:, 0].round())
    return small


def fingerprint(images: Tensor) -> str:
    """SHA-256 of the pixels: runs with the same fingerprint have the same images under the same indices."""
    return hashlib.sha256(images.contiguous().numpy()).hexdigest()


# --- the index split ---


@dataclass(frozen=True)
class Split:
    """The images of each model, as disjoint int64 index tensors into the dataset."""

    a: Tensor  # model A's half of the members
    b: Tensor  # model B's half of the members
    nonmembers: Tensor  # as many as the members, of the same distribution; no model is trained on them
    # for an attacker's reference model: at most as many again; no attack scores them
    reference: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def members(self) -> Tensor:
        return torch.cat([self.a, self.b])


def index_split(
    n: int, members: int | None = None, seed: int = 0, pools: tuple[np.ndarray, np.ndarray] | None = None
) -> Split:
    """Split the indices 0..n-1 into A, B, non-members and reference, by a permutation that depends on `seed` alone.

    The first half of a permutation is the members' pool, the second half the non-members'. `pools` gives two other
    arrays of indices instead, such as a published split; each is permuted. From each pool the first `members` indices
    are taken (an even number; default: as many as possible). The next ones of the non-members' pool, at most as many
    again, are the reference model's. CIFAR-10's 50,000 give the field's convention: 25,000 members, 12,500 of them in
    A and in B, 25,000 non-members, and no reference. Raises BadInput for an impossible number of members.
    """
    # RandomState: numpy promises that its stream never changes; torch and numpy's new generators do not promise that
    random = np.random.RandomState(seed)
    if pools is None:
        permutation = random.permutation(n)
        pool, nonmembers = permutation[: n // 2], permutation[n // 2 :]
    else:
        pool, nonmembers = (random.permutation(indices) for indices in pools)
    most = min(len(pool), len(nonmembers)) // 2 * 2
    count = most if members is None else members
    if not (0 < count <= most) or count % 2:
        raise BadInput(f"--members {count}: must be even, and from 2 to {most} with these {n:,} images")
    parts = pool[: count // 2], pool[count // 2 : count], nonmembers[:count], nonmembers[count : 2 * count]
    return Split(*(torch.from_numpy(indices.astype(np.int64)) for indices in parts))


# --- the toy dataset ---

TOY_IMAGES = 1024


def toy(size: int = 16, seed: int = 0, n: int = TOY_IMAGES) -> Tensor:
    """n drawn images, uint8 (n, 3, size, size): a sky of two colours and confetti in front of it, no two alike.

    They have many shapes, because a network memorises only details that it cannot predict: with four shapes per image
    it memorises nothing in the few minutes of a demonstration. The number of shapes varies, because photographs also
    differ in how hard they are, and an attack must tell a hard member from an easy non-member.
    """
    return torch.from_numpy(np.stack([_draw(i, size, seed) for i in range(n)])).permute(0, 3, 1, 2).contiguous()


def _draw(i: int, size: int, seed: int) -> np.ndarray:
    """Image i, uint8 (size, size, 3): a function of these three numbers only."""
    random = np.random.RandomState([seed, i])
    canvas = 8 * size  # drawn large, then averaged for soft edges
    hue = random.uniform()

    def colour(dh: float, saturation: float, value: float) -> tuple[int, ...]:
        return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb((hue + dh) % 1, saturation, value))

    sky = Image.linear_gradient("L").resize((1, canvas))
    sky = ImageOps.colorize(sky, colour(0, 0.6, random.uniform(0.3, 0.6)), colour(0.1, 0.35, random.uniform(0.8, 1)))
    image = sky.resize((canvas, canvas), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for _ in range(random.randint(4, 29)):
        corners = random.choice([3, 4, 6, 48])  # 48: nearly a circle
        x, y = random.uniform(size=2) * canvas
        radius, turn = random.uniform(0.06, 0.2) * canvas, random.uniform(0, 2 * math.pi)
        reach = [1, 0.5] if random.uniform() < 0.3 else [1]  # a star: every other corner is nearer to the centre
        angle = turn + 2 * math.pi * np.arange(corners * len(reach)) / (corners * len(reach))
        r = radius * np.tile(reach, corners)
        points = np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], axis=1).ravel().tolist()
        draw.polygon(points, fill=colour(random.uniform(0.25, 0.75), random.uniform(0.5, 0.9), random.uniform(0.6, 1)))
    return np.asarray(image.reduce(8))
