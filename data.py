"""Images as one uint8 tensor (N, 3, H, W), and who is a member: the index split into A, B and non-members."""

import colorsys
import hashlib
import math
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from files import BadInput, atomic_write, digest_of, download

DATASETS = ("cifar10", "toy")


def load(name: str, data_dir: str | None, size: int, seed: int) -> Tensor:
    """All training images of a dataset, uint8 (N, 3, size, size). `data_dir` is for cifar10, `seed` for toy."""
    return toy(size, seed) if name == "toy" else cifar10(data_dir, size)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], the range that diffusion models work in."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """The inverse of `to_float`; values outside [-1, 1] are clipped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 3, size, size): each pixel the mean of the area that it covers."""
    if images.shape[-1] == size:
        return images
    # in chunks: 50,000 CIFAR-10 images in float32 would take 600 MB
    chunks = [F.interpolate(chunk.float(), (size, size), mode="area") for chunk in images.split(4096)]
    return torch.cat([chunk.round().to(torch.uint8) for chunk in chunks])


def fingerprint(images: Tensor) -> str:
    """SHA-256 of the pixels: two runs whose fingerprints agree number the same images alike."""
    return hashlib.sha256(images.contiguous().numpy()).hexdigest()


# --- the index split ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Who was trained on what: disjoint int64 index tensors into the dataset."""

    a: Tensor  # model A's half of the members
    b: Tensor  # model B's half
    nonmembers: Tensor  # as many as there are members, of the same distribution; no model sees them
    # what an attacker trains a reference model on: as many more, as far as there are, that nobody is asked about
    reference: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def members(self) -> Tensor:
        return torch.cat([self.a, self.b])


def index_split(n: int, members: int | None = None, seed: int = 0, published: Path | None = None) -> Split:
    """Split the indices 0..n-1 by a permutation that depends on `seed` alone.

    The first half of the permutation is the members' pool, the second the non-members'; `members`
    (even; default: all that there are) of each are taken, and as many of what is left of the non-members'
    pool for a reference model. For CIFAR-10's 50,000 that is the field's convention: 25,000 members, 12,500
    in A and in B, and 25,000 non-members; nothing is left then. `published` names an .npz file with other
    pools: `mia_train_idxs` and `mia_eval_idxs`, as SecMI and PIA publish them.
    """
    # RandomState: of numpy's and torch's generators the only one whose stream is promised never to change
    random = np.random.RandomState(seed)
    if published is None:
        permutation = random.permutation(n)
        pool, nonmembers = permutation[: n // 2], permutation[n // 2 :]
    else:
        pool, nonmembers = (random.permutation(indices) for indices in _read_published_split(published, n))
    most = min(len(pool), len(nonmembers)) // 2 * 2
    count = most if members is None else members
    if not (0 < count <= most) or count % 2:
        raise BadInput(f"--members {count}: must be even, and from 2 to {most} with these {n:,} images")
    parts = pool[: count // 2], pool[count // 2 : count], nonmembers[:count], nonmembers[count : 2 * count]
    return Split(*(torch.from_numpy(indices.astype(np.int64)) for indices in parts))


def _read_published_split(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            members, nonmembers = file["mia_train_idxs"], file["mia_eval_idxs"]
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"--member-split {path}: not an .npz file with mia_train_idxs and mia_eval_idxs ({error})"
        ) from error
    both = np.concatenate([members.ravel(), nonmembers.ravel()])
    if both.dtype.kind not in "iu" or len(np.unique(both)) != len(both):
        raise BadInput(f"--member-split {path}: members and non-members must be distinct whole numbers")
    if both.size and (both.min() < 0 or both.max() >= n):
        raise BadInput(
            f"--member-split {path}: has indices up to {both.max():,}, but the dataset has {n:,} images; "
            "the published splits need the whole of CIFAR-10"
        )
    return members.ravel(), nonmembers.ravel()


# --- CIFAR-10 ----------------------------------------------------------------------------------

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
DEFAULT_DATA_DIR = "data"


def cifar10(data_dir: str | None = None, size: int = 32) -> Tensor:
    """CIFAR-10's training images in the official order, from the official binary files.

    They are looked for in `data_dir`/cifar-10-batches-bin (or `data_dir` itself) and downloaded into
    the default data/, or into a directory that is empty. Files with fewer records than the official
    10,000 are valid. Raises BadInput for anything else that is found there.
    """
    root = Path(data_dir or DEFAULT_DATA_DIR)
    folder = root if (root / CIFAR10_FILES[0]).is_file() else root / CIFAR10_FOLDER
    if not (folder / CIFAR10_FILES[0]).is_file():
        archive = root / CIFAR10_URL.rpartition("/")[2]
        if data_dir is not None:
            if not root.is_dir():
                raise BadInput(f"--data-dir {root}: no such directory; make it, and CIFAR-10 is downloaded into it")
            if any(root.iterdir()) and not any(root.glob(archive.name + "*")):
                raise BadInput(
                    f"--data-dir {root}: no {CIFAR10_FOLDER}/{CIFAR10_FILES[0]} in it; name the directory that "
                    f"holds {CIFAR10_FOLDER}, or an empty one to download CIFAR-10 into"
                )
        _fetch_cifar10(archive, folder)
    return resize(torch.cat([_read_cifar10_batch(folder / name) for name in CIFAR10_FILES]), size)


def _fetch_cifar10(archive: Path, folder: Path) -> None:
    by_hand = archive.exists()
    if not by_hand:
        download(CIFAR10_URL, archive, CIFAR10_MD5, "md5")
    elif digest_of(archive, "md5") != CIFAR10_MD5:
        raise BadInput(f"{archive} is not the official archive (MD5 is not {CIFAR10_MD5}): delete it and start again")
    with tarfile.open(archive) as tar:
        # the first file is written last: where it stands, all of them do
        for name in reversed(CIFAR10_FILES):
            with atomic_write(folder / name) as path:
                path.write_bytes(tar.extractfile(f"{CIFAR10_FOLDER}/{name}").read())
    if not by_hand:
        archive.unlink()


def _read_cifar10_batch(path: Path) -> Tensor:
    record = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; all five of CIFAR-10's data_batch_*.bin are needed") from error
    if raw.size == 0 or raw.size % record:
        raise BadInput(
            f"{path}: {raw.size:,} bytes is no whole number of {record}-byte records; truncated? fetch it again"
        )
    raw = raw.reshape(-1, record)
    if raw[:, 0].max() > 9:
        raise BadInput(f"{path}: holds labels above 9, so it is no CIFAR-10 batch; fetch it again")
    return torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32))


# --- the toy dataset ---------------------------------------------------------------------------

TOY_IMAGES = 1024


def toy(size: int = 16, seed: int = 0, n: int = TOY_IMAGES) -> Tensor:
    """n drawn images: a sky of two colours, and confetti in front of it. No two are alike.

    So much confetti because what can be guessed need not be memorised: of images with four shapes, a
    network learns nothing by heart in the minutes that a demonstration has. Not equally much in all,
    because photographs too differ in how hard they are: that is what an attacker has to see through.
    """
    return torch.from_numpy(np.stack([_draw(i, size, seed) for i in range(n)])).permute(0, 3, 1, 2).contiguous()


def _draw(i: int, size: int, seed: int) -> np.ndarray:
    """Image i, uint8 (size, size, 3): a function of these three numbers and nothing else."""
    random = np.random.RandomState([seed, i])
    canvas = 8 * size  # drawn large and averaged down, for soft edges
    hue = random.uniform()

    def colour(dh: float, saturation: float, value: float) -> tuple[int, ...]:
        return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb((hue + dh) % 1, saturation, value))

    sky = Image.linear_gradient("L").resize((canvas, canvas))
    image = ImageOps.colorize(sky, colour(0, 0.6, random.uniform(0.3, 0.6)), colour(0.1, 0.35, random.uniform(0.8, 1)))
    draw = ImageDraw.Draw(image)
    for _ in range(random.randint(4, 29)):
        corners = random.choice([3, 4, 6, 48])  # 48: as good as a circle
        x, y = random.uniform(size=2) * canvas
        radius, turn = random.uniform(0.06, 0.2) * canvas, random.uniform(0, 2 * math.pi)
        reach = [1, 0.5] if random.uniform() < 0.3 else [1]  # a star's every other corner is pulled in
        points = []
        for k in range(corners * len(reach)):
            r, angle = radius * reach[k % len(reach)], turn + 2 * math.pi * k / (corners * len(reach))
            points.append((x + r * math.cos(angle), y + r * math.sin(angle)))
        draw.polygon(points, fill=colour(random.uniform(0.25, 0.75), random.uniform(0.5, 0.9), random.uniform(0.6, 1)))
    return np.asarray(image.reduce(8))
