"""The images as one uint8 tensor (N, 3, H, W), and the index split: members in A, members in B, non-members."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from lab import datasets
from lab.files import BadInput, exclusive, kept_rows


def load(name: str, data_dir: str | None, size: int, seed: int) -> Tensor:
    """All training images of one of `datasets.DATASETS`, uint8 (N, 3, size, size), in their published order.

    `toy` is drawn from `seed`, once: `data_dir` (default: data/) keeps it. `lab/datasets.py` tells about the others.
    """
    if name != "toy":
        return datasets.load(name, data_dir, size, FILTERS.get(name, resize))
    path = Path(data_dir or "data") / f"toy-{size}-{seed}.npz"

    def batches(done: int) -> Iterator[tuple[Tensor]]:
        return ((toy(size, seed, min(k + 256, TOY_IMAGES), k),) for k in range(done, TOY_IMAGES, 256))

    with exclusive(path, wait=True):  # of several processes one draws, and the others wait
        return kept_rows(path, str((size, seed)), TOY_IMAGES, batches)[0]


def count(name: str, data_dir: str | None) -> int:
    """How many images `load` gives, known before it reads any. Raises BadInput as `load` does."""
    return TOY_IMAGES if name == "toy" else datasets.count(name, data_dir)


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


def resize_by_pillow(images: Tensor, size: int) -> Tensor:
    """The same by Pillow's bilinear filter, as torchvision's `Resize` of a Pillow image."""
    if images.shape[-1] == size:
        return images
    small = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    small = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in small]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()


# SecMI's and PIA's code resizes these two so. An attack on a model of theirs needs the same pixels: on others, PIA's
# AUC falls from 0.89 to 0.62. Nobody resizes CIFAR, and for one's own images the mean of an area loses the least.
FILTERS = {"stl10": resize_by_pillow, "tiny-imagenet": resize_by_pillow}


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
    n: int, members: int | None = None, seed: int = 0, pools: Sequence[np.ndarray] | None = None, block: int = 1
) -> Split:
    """Split the indices 0..n-1 into A, B, non-members and reference, by a permutation that depends on `seed` alone.

    The first half of a permutation is the members' pool, the second half the non-members'. `pools` gives two other
    arrays of indices instead, such as a published split; each is permuted. From each pool the first `members` indices
    are taken (an even number; default: as many as possible). The next ones of the non-members' pool, at most as many
    again, are the reference model's; `block` 2 gives those after them. CIFAR-10's 50,000 give the field's convention:
    25,000 members, half of them in A, 25,000 non-members, no reference. Raises BadInput for impossible numbers.
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
    others = nonmembers[block * count : (block + 1) * count]
    parts = pool[: count // 2], pool[count // 2 : count], nonmembers[:count], others
    return Split(*(torch.from_numpy(indices.astype(np.int64)) for indices in parts))


# --- the toy dataset ---

TOY_IMAGES = 4096
SKIES = [  # the colours above, and at the horizon
    ((70, 120, 190), (190, 215, 235)), ((40, 60, 120), (235, 150, 100)), ((120, 130, 140), (200, 205, 205)),
    ((20, 30, 60), (90, 100, 130)), ((90, 150, 210), (225, 225, 200)),
]  # fmt: skip
TEXTURE, CHROMA = 0.2, 0.4  # how strong the texture is, and how strong its colours are beside its light
HILLS = [(70, 105, 50), (110, 120, 60), (150, 130, 90), (95, 80, 60), (185, 170, 130), (60, 85, 70), (200, 205, 210)]


def toy(size: int = 16, seed: int = 0, n: int | None = None, first: int = 0) -> Tensor:
    """Drawn landscapes number `first` to n - 1 (default: all), uint8 (n - first, 3, size, size), with texture all over.

    The texture has the spectrum of photographs: the amplitude falls as 1 / frequency. A network memorises only what it
    cannot predict, and SecMI needs images without empty areas: its walk begins with the noise that a model sees there.
    """
    images = np.stack([_draw(i, size, seed) for i in range(first, n or TOY_IMAGES)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _draw(i: int, size: int, seed: int) -> np.ndarray:
    """Image i, uint8 (size, size, 3): a function of these three numbers only."""
    random = np.random.RandomState([seed, i])
    n = 4 * size  # drawn large, then averaged for soft edges
    high, low = SKIES[random.randint(len(SKIES))]
    horizon = random.uniform(0.3, 0.75)
    height = np.minimum(np.linspace(0, 1 / horizon, n), 1)[:, None, None]
    sky = high + (np.array(low) - high) * height
    clouds = np.clip(_noise(random, n, 1.6) - random.uniform(0, 1.5), 0, 1.5) / 1.5
    sky = sky + 0.9 * clouds * (235 - sky)
    image = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    if random.uniform() < 0.4:
        x, y, r = random.uniform(0, n), random.uniform(0, horizon) * n, random.uniform(0.05, 0.12) * n
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_between(random, (255, 240, 200), (250, 190, 110)))
    hills = random.randint(1, 4)
    for hill in range(1, hills + 1):  # from the farthest, which is paler, to the nearest
        waves = [(random.uniform(-0.06, 0.06), random.uniform(0.7, 1.3), random.uniform(0, 1)) for _ in range(3)]
        x = np.arange(n + 1)
        wave = sum(a / (k + 1) * np.sin(2 * math.pi * (2**k * f * x / n + p)) for k, (a, f, p) in enumerate(waves))
        edge = n * (wave + horizon + 0.8 * (1 - horizon) * (hill - 1) / hills)
        ground = np.array(HILLS[random.randint(len(HILLS))])
        ground = random.uniform(0.8, 1.15) * (ground + (np.array(low) - ground) * 0.45 * (1 - hill / hills))
        fill = tuple(np.clip(ground, 0, 255).astype(int).tolist())
        draw.polygon([(0, n), *zip(x.tolist(), edge.tolist(), strict=True), (n, n)], fill=fill)
        for _ in range(random.randint(4)):
            x = random.uniform(0, n)
            y, h = edge[int(x)] + random.uniform(0, 0.08) * n, random.uniform(0.08, 0.3) * n
            _object(random, draw, x, y, h * (0.6 + 0.4 * hill / hills))
    light = TEXTURE * (_noise(random, size, 1) + CHROMA * _noise(random, size, 1, 3))
    return np.clip(np.asarray(image.reduce(4)) * np.exp(light), 0, 255).round().astype(np.uint8)


def _object(random: np.random.RandomState, draw: ImageDraw.ImageDraw, x: float, y: float, h: float) -> None:
    """A fir, a leafy tree or a house of height h that stands at (x, y)."""
    kind = random.randint(3)
    if kind == 0:
        draw.polygon(
            [(x - 0.3 * h, y), (x + 0.3 * h, y), (x, y - h)], fill=_between(random, (25, 60, 35), (70, 110, 50))
        )
    elif kind == 1:
        draw.rectangle((x - 0.05 * h, y - 0.5 * h, x + 0.05 * h, y), fill=(70, 50, 35))
        crown = (x - 0.32 * h, y - h, x + 0.32 * h, y - 0.35 * h)
        draw.ellipse(crown, fill=_between(random, (50, 90, 40), (170, 110, 50)))
    else:
        w = random.uniform(0.25, 0.45) * h
        draw.rectangle((x - w, y - 0.6 * h, x + w, y), fill=_between(random, (230, 220, 200), (170, 110, 90)))
        roof = [(x - 1.2 * w, y - 0.6 * h), (x + 1.2 * w, y - 0.6 * h), (x, y - h)]
        draw.polygon(roof, fill=_between(random, (150, 60, 50), (80, 70, 70)))


def _between(random: np.random.RandomState, one: tuple, other: tuple) -> tuple[int, ...]:
    share = random.uniform()
    return tuple(int(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def _noise(random: np.random.RandomState, size: int, slope: float, channels: int = 1) -> np.ndarray:
    """(size, size, channels), with mean 0 and standard deviation 1: its amplitude falls as 1 / frequency^slope."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    wave = random.normal(size=(2, channels, *frequency.shape))
    noise = np.fft.irfft2((wave[0] + 1j * wave[1]) / frequency**slope, (size, size))
    return (noise / noise.std(axis=(1, 2), keepdims=True)).transpose(1, 2, 0)
