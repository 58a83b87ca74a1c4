"""Datasets and image files: downloaded, unpacked, and read without trust. Images are uint8, (N, 3, H, W)."""

import functools
import hashlib
import io
import os
import pickletools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from lab.files import BadInput, exclusive, in_a_line, require_writable

DEFAULT = Path("data")
LARGEST_SIZE = 1024  # pixels a side
LARGEST_FILE = 2**28  # bytes of an image file, or of an array in a published split
Resize = Callable[[Tensor, int], Tensor]  # data.resize: (N, 3, H, W) and a size -> (N, 3, size, size)


@dataclass(frozen=True)
class Source:
    """A dataset as it is published: an archive, and the files in it that hold the training images."""

    archive: str
    md5: str
    folder: str  # in the archive, and where it is unpacked
    files: Sequence[str]
    read: Callable[[Path], Tensor] | None  # the images of one file; None if `files` are folders of image files
    count: int = 50_000  # all images that it has
    site: str = "https://www.cs.toronto.edu/~kriz/"


def count(name: str, data_dir: str | None) -> int:
    """How many images `load` gives, before anything is downloaded, unpacked or resized. Raises BadInput as `load`."""
    found = _parts(name, data_dir, fetch=False)
    return found if isinstance(found, int) else sum(1 if isinstance(part, Path) else len(part) for part in found)


def load(name: str, data_dir: str | None, size: int, resize: Resize) -> Tensor:
    """All training images of one of DATASETS except `toy`, (N, 3, size, size), in their published order.

    The dataset `folder` is `data_dir` and its subfolders: the square in the middle of each image. The others are read
    from `data_dir` (default: data/), also as torchvision leaves them there, or downloaded into it if it holds nothing
    but datasets. A file may hold fewer images than the official one. Raises BadInput for missing and damaged files.
    """
    parts = _parts(name, data_dir, fetch=True)
    if isinstance(parts[0], Path):
        return _squares(parts, size, resize)
    return torch.cat([resize(images, size) for images in parts])


def _parts(name: str, data_dir: str | None, fetch: bool) -> list[Path] | list[Tensor] | int:
    """The image files of a dataset, or the images of each of its files; without `fetch`, of an archive their number."""
    if name == "folder":
        if data_dir is None:
            raise BadInput("--dataset folder: which? name it with --data-dir")
        return image_files(Path(data_dir), deep=True)
    root = Path(data_dir or DEFAULT)
    source, folder = _find(name, root) or _fetch(name, root, fetch)
    if folder is None:
        return source.count
    if source.read is None:
        return image_files(folder / source.files[0], deep=True)  # in the order of torchvision's ImageFolder
    try:
        return [source.read(folder / file) for file in source.files]
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error})") from error


def published_split(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of members and non-members among n images, as SecMI publishes them. Raises BadInput for wrong ones."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if any(array.file_size > LARGEST_FILE for array in file.zip.infolist()):  # unpacked
                raise ValueError(f"an array of more than {LARGEST_FILE:,} bytes")
            members, nonmembers = (file[key].ravel() for key in ("mia_train_idxs", "mia_eval_idxs"))
        both = np.concatenate([members, nonmembers])
        if both.dtype.kind not in "iu" or len(np.unique(both)) != len(both):
            raise ValueError("members and non-members must be distinct whole numbers")
        if both.size and (both.min() < 0 or both.max() >= n):
            raise ValueError(f"its indices are {both.min():,} to {both.max():,}; published splits need all of CIFAR-10")
    except Exception as error:  # numpy raises almost anything on damaged bytes
        kind = f"an .npz file with mia_train_idxs and mia_eval_idxs, indices of {n:,} images"
        raise BadInput(f"--member-split {path}: not {kind} ({in_a_line(error)})") from error
    return members, nonmembers


# --- archives ---


def _find(name: str, root: Path) -> tuple[Source, Path] | None:
    """The source of a dataset that is unpacked in or below `root`, and the folder of its files."""
    for source in SOURCES[name]:
        for folder in (root, root / source.folder):
            if (folder / source.files[0]).exists():
                return source, folder
    return None


def _fetch(name: str, root: Path, fetch: bool) -> tuple[Source, Path | None]:
    """Unpack an archive of a dataset, downloaded unless it is there, and return what `_find` would.

    Without `fetch` nothing is done, and the folder is None. Raises BadInput where it is impossible.
    """
    there = [source for source in SOURCES[name] if (root / source.archive).is_file()]
    source = (there or SOURCES[name])[0]
    if root != DEFAULT and not there:
        if not root.is_dir():
            raise BadInput(f"--data-dir {root}: no such directory; make it, and {name} is downloaded into it")
        known = {word for sources in SOURCES.values() for one in sources for word in (one.folder, one.archive)}
        if not known.issuperset(path.name for path in root.iterdir() if not path.name.startswith(".")):
            missing = f"no {source.folder}/{source.files[0]} in it; name the directory that holds {source.folder}"
            raise BadInput(f"--data-dir {root}: {missing}, or an empty one to download {name} into")
    require_writable(root, directory=True)
    if not fetch:
        return source, None
    with exclusive(root / name, wait=True):
        if found := _find(name, root):  # another process has been faster
            return found
        archive = root / source.archive
        if not there:
            download(source.site + source.archive, archive, f"md5:{source.md5}")
        with open(archive, "rb") as file:
            if there and hashlib.file_digest(file, "md5").hexdigest() != source.md5:
                raise BadInput(f"{archive} is not the official archive (its MD5 is not {source.md5}): delete it")
        try:
            with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking") as temporary:
                tar = {"filter": "data"} if archive.suffix == ".gz" else {}
                shutil.unpack_archive(archive, temporary, **tar)
                os.replace(Path(temporary) / source.folder, root / source.folder)
        except OSError as error:
            raise BadInput(f"{archive} cannot be unpacked ({in_a_line(error)})") from error
        if not there:
            archive.unlink()
    return source, root / source.folder


def download(url: str, path: Path, known_hash: str | None) -> None:
    """Fetch `url` to `path`, with a progress bar. `known_hash` is "md5:...", or None for any.

    Raises BadInput where the server or the disk fails, or other bytes come, each time. Then nothing is left.
    """
    import pooch  # here, because most commands download nothing

    pooch.get_logger().setLevel("ERROR")
    urls, registry = {path.name: url}, {path.name: known_hash}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download") as temporary:
            files = pooch.create(temporary, "", registry=registry, urls=urls, retry_if_failed=3)
            files.fetch(path.name, downloader=pooch.HTTPDownloader(progressbar=True))
            os.chmod(Path(temporary) / path.name, 0o644)  # pooch writes it for its owner only
            os.replace(Path(temporary) / path.name, path)
    except Exception as error:  # of requests, of pooch, of the disk
        by_hand = f"try again, or fetch it by other means and put it at {path}"
        raise BadInput(f"cannot download {url} ({in_a_line(error)}): {by_hand}") from error


# --- the files of the published datasets ---


def _records(path: Path, length: int) -> np.ndarray:
    """A file of records as uint8 (N, length). Only the parts that are used are read."""
    size = path.stat().st_size
    if size == 0 or size % length:
        raise BadInput(f"{path}: {size:,} bytes is no whole number of {length:,}-byte records; fetch it again")
    return np.memmap(path, mode="c").reshape(-1, length)


def _binary(path: Path) -> Tensor:
    """CIFAR's binary records: a byte for each label, then the red, the green and the blue plane, row by row."""
    classes = (20, 100) if path.name == "train.bin" else (10,)  # CIFAR-100's, CIFAR-10's
    raw = _records(path, len(classes) + 3 * 32 * 32)
    if (raw[:, : len(classes)] >= classes).any():
        raise BadInput(f"{path}: holds labels above {max(classes) - 1}, so it is no CIFAR batch; fetch it again")
    return torch.from_numpy(raw[:, len(classes) :].reshape(-1, 3, 32, 32))


def _pickled(path: Path) -> Tensor:
    """CIFAR's batches for Python: a pickled dict with an array of pixels, whose rows are images as in a binary record.

    The pickle is not executed, only searched for its longest string: the array's content, whoever has written it.
    """
    try:
        values = [value for _, value, _ in pickletools.genops(path.read_bytes())]
        pixels = max((value for value in values if isinstance(value, str | bytes | bytearray)), key=len)
        if not {"u1", "|u1"} & {value for value in values if isinstance(value, str)}:
            raise ValueError("its array holds other numbers than bytes")
        pixels = bytearray(pixels, "latin1") if isinstance(pixels, str) else bytearray(pixels)
        return torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 3, 32, 32)
    except Exception as error:  # damaged bytes raise almost anything
        raise BadInput(f"{path} is no CIFAR batch for Python ({in_a_line(error)}); fetch it again") from error


def _stl10(path: Path) -> Tensor:
    """STL-10's binary records: the red, the green and the blue plane, *column by column*."""
    return torch.from_numpy(_records(path, 3 * 96 * 96).reshape(-1, 3, 96, 96)).transpose(2, 3)


BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
BINARY = [f"{name}.bin" for name in BATCHES]
STL, TINY = (100_000, "http://ai.stanford.edu/~acoates/stl10/"), (100_000, "http://cs231n.stanford.edu/")
ARCHIVES = {  # the first one of a dataset can be downloaded; the second one is the form that torchvision leaves
    "cifar10": [
        ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin", BINARY, _binary),
        ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py", BATCHES, _pickled),
    ],
    "cifar100": [
        ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary", ["train.bin"], _binary),
        ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python", ["train"], _pickled),
    ],
    "stl10": [
        ("stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", "stl10_binary", ["unlabeled_X.bin"], _stl10, *STL)
    ],
    "tiny-imagenet": [
        ("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200", ["train"], None, *TINY)
    ],
}
SOURCES = {name: [Source(*archive) for archive in archives] for name, archives in ARCHIVES.items()}
DATASETS = (*SOURCES, "folder", "toy")


# --- image files ---

SUFFIXES = ".bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp"  # pytorch-fid's
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for others Pillow would start other programs
warnings.filterwarnings("ignore", module="PIL")  # it warns of oddities in files that it can read


@functools.cache  # it is asked twice, but says once what it leaves out
def image_files(folder: Path, deep: bool = False, least: int = 1) -> list[Path]:
    """The images in a folder, sorted by name; with `deep` also in its folders, each once, even if links lead to it.

    Hidden files (.NAME, __MACOSX) are no images. Raises BadInput for an unreadable folder, and for less than `least`.
    """

    def stop(error: OSError) -> None:
        raise BadInput(f"{error.filename} is no folder that can be read: {error.strerror}") from error

    def shown(names: list[str]) -> list[str]:
        return sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")

    found, others, seen = [], 0, set()
    for path, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        new = (real := os.path.realpath(path)) not in seen
        seen.add(real)
        folders[:] = shown(folders) if deep and new else []
        files = [Path(path, name) for name in shown(names) if new]
        images = [file for file in files if file.suffix.lower() in SUFFIXES.split()]
        found, others = found + images, others + len(files) - len(images)
    if others:
        print(f"{folder}: {others:,} files are left out, because their suffix is none of {SUFFIXES}")
    if len(found) < least:
        raise BadInput(f"{folder} holds {len(found)} images ({SUFFIXES}); {least} or more are needed")
    return sorted(found)


def read_image(path: Path) -> Tensor:
    """The image in a file, upright, also a grey one, as uint8 (3, H, W).

    Raises ValueError, or what Pillow raises, for a bad or large file, a pipe, and more than Pillow's 89 million pixels.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
    try:
        image = Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("its format is unknown") from error
    width, height = image.size
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"it has {width}x{height} pixels, more than Pillow thinks safe")
    if image.mode[0] in "IF":  # converted to RGB, everything above 255 would be white
        raise ValueError("it has more than 8 bits a channel")
    image.load()
    with suppress(Exception):  # of damaged metadata: the image itself is whole
        ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):  # all at once would take three times the memory
        pixels[top : top + 256] = rgb.crop((0, top, width, min(top + 256, height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _squares(files: list[Path], size: int, resize: Resize) -> Tensor:
    """The square in the middle of each image, (N, 3, size, size). Raises BadInput that names unreadable images."""
    root = os.path.commonpath([files[0].parent, files[-1].parent])
    images, bad = torch.empty((len(files), 3, size, size), dtype=torch.uint8), []

    def fill(i: int) -> None:
        try:
            image = read_image(files[i])
            _, h, w = image.shape
            side = min(h, w)
            top, left = (h - side) // 2, (w - side) // 2
            images[i] = resize(image[None, :, top : top + side, left : left + side], size)[0]
        except Exception as error:  # Pillow's decoders raise almost anything
            bad.append(f"{files[i].relative_to(root)} ({error})")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a large image takes 1 GB: one for each core
        list(tqdm(pool.map(fill, range(len(files))), str(root), len(files), leave=False, delay=1, unit="img"))
    if bad:
        some = ", ".join(sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
        raise BadInput(f"{root}: {len(bad):,} of {len(files):,} images can't be read; take them away: {some}")
    return images
