"""Images as one uint8 tensor (N, 3, H, W), and who is a member: the index split into A, B and non-members."""

import colorsys
import hashlib
import io
import math
import pickle
import re
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from lab.files import BadInput, atomic_write, digest_of, download, exclusive, in_a_line

LARGEST_SIZE = 1024  # pixels a side
LARGEST_FILE = 2**28  # bytes of an image, or of a split


def load(name: str, data_dir: str | None, size: int, seed: int) -> Tensor:
    """All training images of one of DATASETS, uint8 (N, 3, size, size), in the order in which they are published.

    The published ones are looked for in `data_dir`, also as torchvision leaves them, or downloaded: into the default
    data/, or into a directory that holds nothing else. Files with fewer images than the official ones are valid.
    `folder` is `data_dir` itself; `toy` depends on `seed`. Raises BadInput for whatever else is found there.
    """
    if name == "toy":
        return toy(size, seed)
    if name == "folder":
        return folder(data_dir, size)
    return tiny_imagenet(data_dir, size) if name == "tiny-imagenet" else unpacked(name, data_dir, size)


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
    small = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    planes = max(1, 2**24 // images[0, 0].numel())  # at a time: all in float32 may be 11 GB, a single image 1 GB
    for chunk, part in zip(images.flatten(0, 1).split(planes), small.view(-1, size, size).split(planes), strict=True):
        part.copy_(F.interpolate(chunk[:, None].float(), (size, size), mode="area")[:, 0].round())
    return small


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
            if any(array.file_size > LARGEST_FILE for array in file.zip.infolist()):  # unpacked
                raise ValueError(f"an array of more than {LARGEST_FILE:,} bytes")
            members, nonmembers = (file[key].ravel() for key in ("mia_train_idxs", "mia_eval_idxs"))
        both = np.concatenate([members, nonmembers])
    except Exception as error:  # on bytes that it did not write, numpy raises almost anything
        raise BadInput(
            f"--member-split {path}: not an .npz file with mia_train_idxs and mia_eval_idxs ({in_a_line(error)})"
        ) from error
    if both.dtype.kind not in "iu" or len(np.unique(both)) != len(both):
        raise BadInput(f"--member-split {path}: members and non-members must be distinct whole numbers")
    if both.size and (both.min() < 0 or both.max() >= n):
        raise BadInput(
            f"--member-split {path}: has indices up to {both.max():,}, but the dataset has {n:,} images; "
            "the published splits need the whole of CIFAR-10"
        )
    return members, nonmembers


# --- published datasets ------------------------------------------------------------------------

DEFAULT_DATA_DIR = "data"


@dataclass(frozen=True)
class Source:
    """A dataset as it is published: an archive, and the files in it that hold the training images."""

    archive: str
    md5: str
    folder: str  # in the archive, and where it is unpacked
    files: Sequence[str] = ()
    read: Callable[[Path], Tensor] | None = None  # the images of one file, uint8 (N, 3, H, W)
    site: str = "https://www.cs.toronto.edu/~kriz/"


def unpacked(name: str, data_dir: str | None, size: int) -> Tensor:
    """Images that are published as an archive of a few large files, which are unpacked."""
    root = Path(data_dir or DEFAULT_DATA_DIR)
    places = [(source, folder) for source in SOURCES[name] for folder in (root, root / source.folder)]

    def found() -> list[tuple[Source, Path]]:
        return [(source, folder) for source, folder in places if (folder / source.files[0]).is_file()]

    if not found():
        _require_place(name, data_dir)
        with exclusive(root / name, wait=True):
            if not found():  # another process may have fetched them meanwhile
                source, archive, downloaded = _archive(name, data_dir)
                _unpack(source, archive)
                if downloaded:
                    archive.unlink()
    source, folder = found()[0]
    for file in source.files:
        if not (folder / file).is_file():
            raise BadInput(f"{folder / file} is missing; {name} needs all of {', '.join(source.files)}")
    try:
        return torch.cat([resize(source.read(folder / file), size) for file in source.files])
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error})") from error


def _require_place(name: str, data_dir: str | None) -> None:
    """Raise BadInput where --data-dir is a directory of something else, into which nothing should be downloaded."""
    if data_dir is None or any((Path(data_dir) / source.archive).is_file() for source in SOURCES[name]):
        return
    root, source = Path(data_dir), SOURCES[name][0]
    if not root.is_dir():
        raise BadInput(f"--data-dir {root}: no such directory; make it, and {name} is downloaded into it")
    known = {name for sources in SOURCES.values() for one in sources for name in (one.folder, one.archive)}
    there = [path.name.removesuffix(".part") for path in root.iterdir() if not path.name.startswith(".")]
    if not known.issuperset(there):
        raise BadInput(
            f"--data-dir {root}: no {'/'.join([source.folder, *source.files[:1]])} in it; name the directory that "
            f"holds {source.folder}, or an empty one to download {name} into"
        )


def _archive(name: str, data_dir: str | None) -> tuple[Source, Path, bool]:
    """An archive of this dataset with the right MD5, and whether it was downloaded just now."""
    root = Path(data_dir or DEFAULT_DATA_DIR)
    for source in SOURCES[name]:
        path = root / source.archive
        if path.is_file():
            if digest_of(path, "md5") != source.md5:
                raise BadInput(f"{path} is not the official archive (MD5 is not {source.md5}): delete it, start again")
            return source, path, False
    source = SOURCES[name][0]
    download(source.site + source.archive, root / source.archive, source.md5, "md5")
    return source, root / source.archive, True


def _unpack(source: Source, archive: Path) -> None:
    """Write the files of `source`, and nothing else that its archive may hold, to where they are looked for."""
    folder = archive.parent / source.folder
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, folder)
        # unwound from the end: where the first file stands, all of them do
        places = [stack.enter_context(atomic_write(folder / name)) for name in source.files]
        missing = dict(zip((f"{source.folder}/{name}" for name in source.files), places, strict=True))
        try:
            with (
                open(archive, "rb") as raw,
                tqdm.wrapattr(raw, "read", total=archive.stat().st_size, desc=archive.name, leave=False) as stream,
                tarfile.open(fileobj=stream, mode="r|gz") as tar,
            ):
                for member in tar:
                    if member.isfile() and member.name in missing:
                        with open(missing.pop(member.name), "wb") as file:
                            shutil.copyfileobj(tar.extractfile(member), file)
        except OSError:  # a full disk
            raise
        except Exception as error:  # on bytes that it did not write, tarfile raises almost anything
            raise BadInput(f"{archive} cannot be unpacked ({in_a_line(error)}): delete it, start again") from error
        if missing:
            raise BadInput(f"{archive}: there is no {next(iter(missing))} in it")
        for name, place in zip(source.files, places, strict=True):
            try:
                source.read(place)
            except BadInput as error:
                raise BadInput(f"{archive}: {str(error).replace(str(place), name)}") from error


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _records(path: Path, length: int) -> np.ndarray:
    """A file of records as (N, length), read as far as it is used."""
    size = path.stat().st_size
    if size == 0 or size % length:
        raise BadInput(
            f"{path}: {size:,} bytes is no whole number of {length:,}-byte records; truncated? fetch it again"
        )
    return np.memmap(path, mode="c").reshape(-1, length)


def _binary(path: Path, classes: tuple[int, ...]) -> Tensor:
    """CIFAR's binary records: a byte for each label, then the red, the green and the blue plane, row by row."""
    raw = _records(path, len(classes) + 3 * 32 * 32)
    if (raw[:, : len(classes)] >= classes).any():
        raise BadInput(f"{path}: holds labels above {max(classes) - 1}, so it is no CIFAR batch; fetch it again")
    return torch.from_numpy(raw[:, len(classes) :].reshape(-1, 3, 32, 32))


def _cifar10(path: Path) -> Tensor:
    return _binary(path, (10,))


def _cifar100(path: Path) -> Tensor:
    return _binary(path, (20, 100))


def _stl10(path: Path) -> Tensor:
    """STL-10's binary records: the red, the green and the blue plane, *column by column*."""
    return torch.from_numpy(_records(path, 3 * 96 * 96).reshape(-1, 3, 96, 96)).transpose(2, 3)


class _ArraysOnly(pickle._Unpickler):
    """Reads a pickle of numpy arrays, strings and numbers, which CIFAR's are, and refuses any that names more.

    It is the unpickler that is written in Python. That in C makes a table as large as a flipped byte says.
    """

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and such files hold arrays only")
        return self.ALLOWED[module, name]


def _pickled(path: Path) -> Tensor:
    """CIFAR's batches for Python: a pickled dict whose "data" has an image a row, laid out as in the binary ones."""
    try:
        with open(path, "rb") as file:
            pixels = _ArraysOnly(file, encoding="latin1").load()["data"]  # Python 2 has written it
        if pixels.dtype != np.uint8:
            raise ValueError(f"its data is {pixels.dtype}")
        return torch.from_numpy(pixels.reshape(-1, 3, 32, 32))
    except Exception as error:  # an unpickler raises almost anything
        raise BadInput(f"{path} is no CIFAR batch for Python ({in_a_line(error)}); fetch it again") from error


BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
BINARY = [f"{name}.bin" for name in BATCHES]
# of each dataset the first is downloaded; the others are what torchvision leaves
SOURCES = {
    "cifar10": [
        Source("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin", BINARY, _cifar10),
        Source("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py", BATCHES, _pickled),
    ],
    "cifar100": [
        Source(
            "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary", ["train.bin"], _cifar100
        ),
        Source("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python", ["train"], _pickled),
    ],
    "stl10": [
        Source(
            "stl10_binary.tar.gz",
            "91f7769df0f17e558f3565bffb0c7dfb",
            "stl10_binary",
            ["unlabeled_X.bin"],
            _stl10,
            "http://ai.stanford.edu/~acoates/stl10/",
        )
    ],
    "tiny-imagenet": [
        Source(
            "tiny-imagenet-200.zip",
            "90528d7ca1a48142e341f4ef8d21d0de",
            "tiny-imagenet-200",
            site="http://cs231n.stanford.edu/",
        )
    ],
}
DATASETS = (*SOURCES, "folder", "toy")


# --- folders of images -------------------------------------------------------------------------

SUFFIXES = ".bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp"  # pytorch-fid's
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow knows others, for which it starts other programs
LARGE = 2**24  # pixels; from there on one image at a time, or they would fill the memory
warnings.filterwarnings("ignore", module="PIL")  # it tells of what is odd in a file, and reads it


def image_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The images in a folder, by name; those in its folders, too, with pattern "**/*". Hidden files are none."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder")
    return sorted(
        p for p in folder.glob(pattern) if p.suffix.lower() in SUFFIXES.split() and not p.name.startswith(".")
    )


def image_bytes(path: Path) -> bytes:
    """An image file's content. Raises ValueError for what is no file, such as a pipe, which would never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
    return path.read_bytes()


def read_image(content: bytes, most: int | None = None) -> Tensor | None:
    """uint8 (3, H, W) of an image file's bytes, also of a grey one; None where it has more pixels than `most`.

    Raises whatever Pillow does on a bad one; such is, too, one with more than its MAX_IMAGE_PIXELS, 89 million.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("its format is unknown") from error
    with image:
        width, height = image.size
        if width * height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels, more than Pillow thinks safe")
        if most and width * height > most:
            return None
        if image.mode[0] in "IF":  # as RGB, all that is above 255 would be white
            raise ValueError("it has more than 8 bits a channel")
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, 256):  # all at once would take three times the memory
            pixels[top : top + 256] = rgb.crop((0, top, width, min(top + 256, height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def folder(data_dir: str | None, size: int) -> Tensor:
    """All images in a folder of one's own, and in the folders in it, of any size: the square in the middle of each."""
    if data_dir is None:
        raise BadInput("--dataset folder: which? name it with --data-dir")
    return _files_in(Path(data_dir), "**/*", size)


def tiny_imagenet(data_dir: str | None, size: int) -> Tensor:
    """Tiny ImageNet's 100,000 training images, in the order of torchvision's ImageFolder; its zip stays packed."""
    root = Path(data_dir or DEFAULT_DATA_DIR)
    for folder in (root, root / SOURCES["tiny-imagenet"][0].folder):
        if (folder / "train").is_dir():
            return _files_in(folder, "train/*/images/*.JPEG", size)
    _require_place("tiny-imagenet", data_dir)
    with exclusive(root / "tiny-imagenet", wait=True):
        source, path, _ = _archive("tiny-imagenet", data_dir)
    try:
        file = zipfile.ZipFile(path)
    except Exception as error:  # on bytes that it did not write, zipfile raises almost anything
        raise BadInput(f"{path} cannot be read ({in_a_line(error)}): delete it, start again") from error
    with file:
        names = [name for name in file.namelist() if re.fullmatch(rf"{source.folder}/train/\w+/images/\w+\.JPEG", name)]
        return _squares(path, sorted(names), file.read, size)


def _files_in(root: Path, pattern: str, size: int) -> Tensor:
    names = [str(path.relative_to(root)) for path in image_files(root, pattern)]
    return _squares(root, names, lambda name: image_bytes(root / name), size)


def _squares(where: Path, names: list[str], read: Callable[[str], bytes], size: int) -> Tensor:
    """uint8 (N, 3, size, size): the square in the middle of each image. Raises BadInput, naming those it can't read."""
    if not names:
        raise BadInput(f"{where} holds no images ({SUFFIXES})")
    images, bad, large = torch.empty((len(names), 3, size, size), dtype=torch.uint8), [], []

    def one(i: int, most: int | None = LARGE) -> None:
        try:
            image = read_image(read(names[i]), most)
        except Exception as error:  # Pillow's decoders raise almost anything
            bad.append(f"{names[i]} ({error})")
            return
        if image is None:
            large.append(i)
            return
        _, h, w = image.shape
        side = min(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        images[i] = resize(image[None, :, top : top + side, left : left + side], size)[0]

    with tqdm(total=len(names), desc=str(where), unit="img", leave=False, delay=1) as bar:
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(one, range(len(names))):
                bar.update()
        bar.update(-len(large))
        for i in large:  # not several in memory at a time
            one(i, None)
            bar.update()
    if bad:
        some = ", ".join(sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
        raise BadInput(f"{where}: {len(bad):,} of {len(names):,} images can't be read; take them away: {some}")
    return images


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
