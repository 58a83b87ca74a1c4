"""Images, archives, downloads and splits, in miniatures of the published formats; and files made to do harm."""

import dataclasses
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import Payload, largest_file, pickled_by_python_2, png
from PIL import Image

import data
import fid
from lab import datasets, files, hardware
from lab.files import BadInput

# --- the index split ---


def test_split_is_pinned():
    """Checkpoints outlive versions of torch and numpy: the permutation must never change."""
    split = data.index_split(12, seed=0)
    assert (split.a.tolist(), split.b.tolist()) == ([6, 11, 4], [10, 2, 8])
    assert split.nonmembers.tolist() == [1, 7, 9, 3, 0, 5]
    fewer = data.index_split(12, members=4, seed=0)
    assert (fewer.a.tolist(), fewer.b.tolist(), fewer.nonmembers.tolist()) == ([6, 11], [4, 10], [1, 7, 9, 3])
    assert (split.reference.tolist(), fewer.reference.tolist()) == ([], [0, 5])
    assert data.index_split(50_000, seed=3).a[:5].tolist() == np.random.RandomState(3).permutation(50_000)[:5].tolist()


@pytest.mark.parametrize("n, members", [(50_000, None), (5085, None), (5085, 256), (10, 2)])
def test_split_is_disjoint_and_exhaustive(n, members):
    split = data.index_split(n, members, seed=1)
    count = members or n // 4 * 4 // 2
    assert len(split.a) == len(split.b) == count // 2
    assert len(split.nonmembers) == count
    assert len(split.reference) == min(count, n - n // 2 - count), "as many more, as far as there are"
    everything = torch.cat([split.a, split.b, split.nonmembers, split.reference])
    assert everything.dtype == torch.int64
    assert (
        len(everything.unique()) == 2 * count + len(split.reference) and everything.min() >= 0 and everything.max() < n
    )
    assert torch.equal(split.members, torch.cat([split.a, split.b]))


def test_pools_of_different_sizes_stay_apart():
    """The smaller pool says how many: with an odd number of images, and with given pools."""
    assert len(data.index_split(7).members) == len(data.index_split(7).nonmembers) == 2
    for pools in (([1, 3, 5, 7], [0, 2, 4, 6, 8, 10]), ([1, 3, 5, 7, 9, 11], [0, 2, 4, 6])):
        pools = tuple(np.array(pool) for pool in pools)
        split = data.index_split(12, pools=pools)
        assert len(split.members) == len(split.nonmembers) == 4
        assert set(split.members.tolist()) <= set(pools[0]) and set(split.nonmembers.tolist()) <= set(pools[1])
        with pytest.raises(BadInput, match="--members 6: must be even, and from 2 to 4"):
            data.index_split(12, 6, pools=pools)
    with pytest.raises(BadInput, match="from 2 to 2"):
        data.index_split(7, 4)


def test_a_split_of_pools_is_pinned():
    """Runs with --member-split outlive versions of numpy, too. The pools may have any integer type."""
    odd, even = np.arange(1, 12, 2, dtype=np.int32), np.arange(0, 12, 2, dtype=np.uint8)
    split = data.index_split(12, members=4, seed=0, pools=(odd, even))
    found = [part.tolist() for part in (split.a, split.b, split.nonmembers, split.reference)]
    assert found == [[11, 5], [3, 7], [2, 6, 8, 0], [4, 10]]
    assert split.a.dtype == split.nonmembers.dtype == torch.int64


def test_a_split_without_a_reference_has_none():
    reference = data.Split(*torch.arange(3)).reference
    assert reference.shape == (0,) and reference.dtype == torch.int64


def test_split_depends_on_the_seed():
    assert torch.equal(data.index_split(100).a, data.index_split(100, seed=0).a)
    assert not torch.equal(data.index_split(100, seed=0).a, data.index_split(100, seed=1).a)


@pytest.mark.parametrize("members", [0, -2, 3, 52])
def test_split_refuses_members_that_it_cannot_halve_or_does_not_have(members):
    with pytest.raises(BadInput, match=f"--members {members}: must be even, and from 2 to 50"):
        data.index_split(100, members)


def test_the_split_of_the_literature(published_split):
    pools, file = datasets.published_split(published_split, 50_000), np.load(published_split)
    for pool, key in zip(pools, ("mia_train_idxs", "mia_eval_idxs"), strict=True):
        assert np.array_equal(pool, file[key].ravel()) and len(pool) == 25_000
    with pytest.raises(BadInput, match="not .* indices of 5,085 images .*its indices are 0 to 49,999; "):
        datasets.published_split(published_split, 5085)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mia_train_idxs": [1, 2]},
        {"mia_train_idxs": [1, 2], "mia_eval_idxs": [2, 3]},
        {"mia_train_idxs": [1.5, 2], "mia_eval_idxs": [0, 3]},
        {"mia_train_idxs": [-1, 2], "mia_eval_idxs": [0, 3]},
        {"mia_train_idxs": [12, 2], "mia_eval_idxs": [0, 3]},
        {"mia_train_idxs": np.array([{}, {}]), "mia_eval_idxs": [0, 3]},
    ],
)
def test_a_published_split_of_other_arrays_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "split.npz", mia_train_idxs=[[1], [11]], mia_eval_idxs=[0, 3])
    members, nonmembers = datasets.published_split(tmp_path / "split.npz", 12)
    assert members.tolist() == [1, 11] and nonmembers.tolist() == [0, 3]
    np.savez(tmp_path / "split.npz", **arrays)
    with pytest.raises(BadInput, match="--member-split .*split.npz: not an .npz file"):
        datasets.published_split(tmp_path / "split.npz", 12)


def test_a_split_runs_no_code(tmp_path):
    evil = np.array([Payload(tmp_path / "it-ran"), 1], dtype=object)
    np.savez(tmp_path / "split.npz", mia_train_idxs=evil, mia_eval_idxs=[0, 3])
    with pytest.raises(BadInput, match="not an .npz file"):
        datasets.published_split(tmp_path / "split.npz", 12)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_a_split_of_damaged_bytes_is_refused(tmp_path, content):
    (tmp_path / "split.npz").write_bytes(content)
    with pytest.raises(BadInput, match="not an .npz file"):
        datasets.published_split(tmp_path / "split.npz", 12)


# --- pixels ---


def test_float_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = data.to_float(pixels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x.double(), (pixels.double() / 255 - 0.5) / 0.5)
    assert torch.equal(data.to_uint8(x), pixels)
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_resize_takes_the_mean_of_each_area():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    small = data.resize(images, 2)
    expected = images.double().view(2, 3, 2, 2, 2, 2).mean((3, 5))
    assert small.dtype == torch.uint8 and (small - expected).abs().max() <= 0.5
    assert torch.equal(data.resize(images, 4), images)


# --- published datasets ---


def load(name, root, size):
    return data.load(name, str(root), size, seed=0)


def random_pixels(n, size, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, 3, size, size)).astype(np.uint8)


def official(name, folder):
    """Write a miniature of a published dataset into `folder`, in its true format; return its training images."""
    folder.mkdir(parents=True)
    batches = {"cifar-10-batches-bin": 5, "cifar-10-batches-py": 5}.get(name, 1)
    pixels = [random_pixels(2, 96 if name == "stl10_binary" else 32, seed) for seed in range(batches)]
    for i, images in enumerate(pixels, 1):
        if name == "cifar-10-batches-bin":
            content = b"".join(bytes([9 * j]) + image.tobytes() for j, image in enumerate(images))
            (folder / f"data_batch_{i}.bin").write_bytes(content)
        elif name == "cifar-10-batches-py":
            content = pickled_by_python_2(images, batch_label=f"training batch {i} of 5")
            (folder / f"data_batch_{i}").write_bytes(content)
        elif name == "cifar-100-binary":
            content = b"".join(bytes([19 * j, 99 * j]) + image.tobytes() for j, image in enumerate(images))
            (folder / "train.bin").write_bytes(content)
        elif name == "cifar-100-python":
            (folder / "train").write_bytes(pickled_by_python_2(images))
        elif name == "stl10_binary":  # a column of red pixels after the other, then green, then blue
            content = bytes(
                image[channel, row, column]
                for image in images
                for channel in range(3)
                for column in range(96)
                for row in range(96)
            )
            (folder / "unlabeled_X.bin").write_bytes(content)
    (folder / "readme.html").write_text("what else is in the archive")
    return torch.from_numpy(np.concatenate(pixels))


FOLDERS = {
    "cifar-10-batches-bin": "cifar10",
    "cifar-10-batches-py": "cifar10",
    "cifar-100-binary": "cifar100",
    "cifar-100-python": "cifar100",
    "stl10_binary": "stl10",
}


@pytest.mark.parametrize("folder, name", FOLDERS.items())
def test_pixels_and_order(tmp_path, folder, name):
    pixels = official(folder, tmp_path / folder)
    size = pixels.shape[-1]
    assert torch.equal(load(name, tmp_path, size), pixels)
    assert torch.equal(load(name, tmp_path / folder, size), pixels)
    small = load(name, tmp_path, 16)
    resized = data.resize_by_pillow if name == "stl10" else data.resize
    assert small.dtype == torch.uint8 and torch.equal(small, resized(pixels, 16))


def test_cifar_record_layout(tmp_path):
    """The labels, then 1,024 red, 1,024 green, 1,024 blue bytes, each plane row by row."""
    planes = bytes([10] * 1024) + bytes([20] * 1024) + bytes(range(256)) * 4
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(bytes([7]) + planes)
    (tmp_path / "train.bin").write_bytes(bytes([7, 70]) + planes)
    for image in (load("cifar10", tmp_path, 32)[0], load("cifar100", tmp_path, 32)[0]):
        assert (image[0] == 10).all() and (image[1] == 20).all()
        assert image[2, 0, :3].tolist() == [0, 1, 2] and image[2, 1, 0] == 32


def test_stl10_is_stored_column_by_column(tmp_path):
    """The second byte of an image is the pixel *below* the first one, and not the one to the right of it."""
    content = bytes(i % 251 for i in range(9216)) + bytes([20] * 9216) + bytes([30] * 9216)
    (tmp_path / "unlabeled_X.bin").write_bytes(content)
    image = load("stl10", tmp_path, 96)[0]
    assert image[0, :3, 0].tolist() == [0, 1, 2] and image[0, 0, 1] == 96
    assert (image[1] == 20).all() and (image[2] == 30).all()


def test_real_images(real_images):
    images = load("cifar10", real_images, 32)
    assert images.shape == (5085, 3, 32, 32) and images.dtype == torch.uint8
    assert hashlib.sha256(images[0].numpy()).hexdigest() != hashlib.sha256(images[1017].numpy()).hexdigest()
    # the per-channel means of CIFAR-10 are known: 0.4914, 0.4822, 0.4465
    means = images.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=0.01, rtol=0)


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other":
        path.write_bytes(bytes([200]) * path.stat().st_size)


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "other"])
@pytest.mark.parametrize(
    "folder, file", [("cifar-10-batches-bin", "data_batch_3.bin"), ("cifar-10-batches-py", "data_batch_3")]
)
def test_damaged_batch_is_named(tmp_path, folder, file, how):
    official(folder, tmp_path / folder)
    damage(tmp_path / folder / file, how)
    with pytest.raises(BadInput, match=file):
        load("cifar10", tmp_path, 32)


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    official("stl10_binary", tmp_path / "stl10_binary")

    def closed(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "unlabeled_X.bin"))

    monkeypatch.setattr(np, "memmap", closed)
    with pytest.raises(BadInput, match="cannot be read .*Permission denied.*unlabeled_X.bin"):
        load("stl10", tmp_path, 96)


@pytest.mark.parametrize("how", ["cut", "empty", "other"])
def test_damaged_file_is_named(tmp_path, how):
    for folder, file in (
        ("cifar-100-binary", "train.bin"),
        ("cifar-100-python", "train"),
        ("stl10_binary", "unlabeled_X.bin"),
    ):
        official(folder, tmp_path / how / folder)
        damage(tmp_path / how / folder / file, how)
        if (folder, how) != ("stl10_binary", "other"):  # any bytes are STL-10 images
            with pytest.raises(BadInput, match=f"{folder}/{file}"):
                load(FOLDERS[folder], tmp_path / how / folder, 32)


def test_labels_that_a_batch_cannot_have(tmp_path):
    for labels, highest in ((b"\x0a", "9"), (b"\x14\x00", "99"), (b"\x00\x64", "99")):
        for name in ("train.bin", *(f"data_batch_{i}.bin" for i in range(1, 6))):
            (tmp_path / name).write_bytes(labels + bytes(3072))
        with pytest.raises(BadInput, match=f"labels above {highest}, so it is no CIFAR batch"):
            load("cifar10" if len(labels) == 1 else "cifar100", tmp_path, 32)


@pytest.mark.parametrize(
    "content",
    [
        lambda trace: pickle.dumps({"data": Payload(trace)}),
        lambda trace: pickle.dumps(Payload(trace), protocol=0),
        lambda trace: f"cos\nsystem\n(S'touch {trace}'\ntR.".encode(),
        lambda trace: f"cbuiltins\neval\n(S'open({str(trace)!r}, \"w\")'\ntR.".encode(),
        lambda trace: pickle.dumps({"data": np.array([Payload(trace)])}),
        lambda trace: pickle.dumps({"data": [[1] * 3072]}),
        lambda trace: pickle.dumps({"labels": [1, 2]}),
    ],
)
def test_a_pickle_that_is_no_batch_is_refused_and_never_run(tmp_path, content):
    official("cifar-10-batches-py", tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(content(tmp_path / "it-ran"))
    with pytest.raises(BadInput, match="data_batch_1 is no CIFAR batch for Python.*fetch it again") as refusal:
        load("cifar10", tmp_path, 32)
    assert "\n" not in str(refusal.value) and not (tmp_path / "it-ran").exists()


def test_image_folder_where_cifar_is_expected(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(BadInput, match="no cifar-10-batches-bin/data_batch_1.bin in it"):
        load("cifar10", tmp_path, 32)
    with pytest.raises(BadInput, match="no such directory"):
        load("cifar10", tmp_path / "nowhere", 32)


# --- folders of images ---


def picture(pixels, **options):
    """The bytes of an image file of uint8 (H, W) or (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return file.getvalue()


def test_folder_of_images(tmp_path):
    """Every size, the square in the middle of each, in folders, too, in the order of their names."""
    random = np.random.RandomState(0)
    wide, high = (random.randint(0, 256, shape).astype(np.uint8) for shape in ((8, 13, 3), (10, 4, 3)))
    grey = random.randint(0, 256, (4, 4)).astype(np.uint8)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.PNG").write_bytes(picture(wide, format="png"))
    (tmp_path / "a.bmp").write_bytes(picture(high, format="bmp"))
    (tmp_path / "c.png").write_bytes(picture(grey, format="png"))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._c.png").write_bytes(b"what macOS leaves on a stick")
    images = load("folder", tmp_path, 4)
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 4, 4)
    assert torch.equal(images[0], torch.from_numpy(high[3:7]).permute(2, 0, 1))
    middle = wide[:, 2:10].reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(images[1].permute(1, 2, 0).numpy() - middle).max() <= 0.5
    assert torch.equal(images[2], torch.from_numpy(grey).expand(3, 4, 4))


def test_unreadable_images_are_named(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    for name in ("a.png", "e.png"):
        (tmp_path / name).write_bytes(picture(pixels, format="png"))
    (tmp_path / "b.png").write_bytes(b"text")
    (tmp_path / "c.jpg").write_bytes(picture(random_pixels(3, 64)[0].transpose(1, 2, 0), format="jpeg")[:300])
    (tmp_path / "d.png").write_bytes(picture(np.zeros((8, 8), np.uint16), format="png"))
    with pytest.raises(
        BadInput, match=r"3 of 5 images .*: b.png \(.*\), c.jpg \(.*\), d.png \(.*more than 8 bits.*\)$"
    ):
        load("folder", tmp_path, 8)
    with pytest.raises(BadInput, match="--dataset folder: which"):
        data.load("folder", None, 8, seed=0)
    with pytest.raises(BadInput, match="nowhere is no folder"):
        load("folder", tmp_path / "nowhere", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty holds 0 images"):
        load("folder", tmp_path / "empty", 8)


def tiny_imagenet():
    """A miniature of its zip: {name: content}, and its training images; JPEGs of one colour keep it exactly."""
    files, images = {"tiny-imagenet-200/": b"", "tiny-imagenet-200/words.txt": b"n02124075\tEgyptian cat"}, []
    left, right = np.indices((64, 64))[1] < 32, np.indices((64, 64))[0] < 32
    # the zip's order is another than the names'; and a string's, in which 10 is before 2, is torchvision's
    for name in ("n02124075_1", "n01443537_0", "n01443537_2", "n01443537_10"):
        value = len(files) * 10
        grey = np.where(left & ~right, value, 200).astype(np.uint8)  # the lower left quarter is dark
        pixels = grey if name.endswith("_2") else np.stack([grey, grey // 2, 255 - grey], axis=2)
        content = picture(pixels, format="jpeg", quality=100, subsampling=0)
        files[f"tiny-imagenet-200/train/{name[:9]}/images/{name}.JPEG"] = content
        images.append((name, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)))
    files["tiny-imagenet-200/train/n01443537/n01443537_boxes.txt"] = b"n01443537_0.JPEG\t0\t10\t63\t58"
    files["tiny-imagenet-200/val/images/val_0.JPEG"] = content
    files["tiny-imagenet-200/test/images/test_0.JPEG"] = content
    return files, torch.from_numpy(np.stack([pixels for _, pixels in sorted(images)])).permute(0, 3, 1, 2)


def zipped(files):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return archive.getvalue()


def publish(monkeypatch, name, content, server=None, which=0):
    """Let `content` be the official archive of a dataset's source from now on, on this server."""
    sources = list(datasets.SOURCES[name])
    sources[which] = dataclasses.replace(sources[which], md5=hashlib.md5(content).hexdigest())
    if server:
        server.content = content
        sources[which] = dataclasses.replace(sources[which], site=server.url.removesuffix("file"))
    monkeypatch.setitem(datasets.SOURCES, name, sources)
    return sources[which].archive


def test_tiny_imagenet(tmp_path, monkeypatch):
    files, pixels = tiny_imagenet()
    for name, content in files.items():
        path = tmp_path / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    (tmp_path / "packed").mkdir()
    archive = publish(monkeypatch, "tiny-imagenet", zipped(files))
    (tmp_path / "packed" / archive).write_bytes(zipped(files))
    for where in ("unpacked", "unpacked/tiny-imagenet-200", "packed"):
        images = load("tiny-imagenet", tmp_path / where, 64)
        assert images.shape == (4, 3, 64, 64)
        assert (images.int() - pixels.int()).abs().max() <= 3, "a JPEG is not exact"
        small = data.resize_by_pillow(pixels, 2)
        assert (load("tiny-imagenet", tmp_path / where, 2).int() - small.int()).abs().max() <= 3
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["tiny-imagenet-200", archive]


# --- what is made to do harm ---


CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(10_000, 9_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_an_error(tmp_path, size):
    assert Image.MAX_IMAGE_PIXELS < 9e7, "Pillow's own limit"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(*size, zlib.compress(bytes(1000))))
    before = hardware.peak_memory(CPU)
    with pytest.raises(BadInput, match=r"1 of 2 images can't be read; take them away: b.png \(.*pixels"):
        load("folder", tmp_path, 8)
    assert hardware.peak_memory(CPU) - before < 2e8
    with pytest.raises(BadInput, match="b.png is no image that Pillow can read .*pixels"):
        list(fid.read_images([tmp_path / "a.png", tmp_path / "b.png"], 2))


def test_no_other_program_is_started_for_an_image(tmp_path, monkeypatch):
    """Pillow has Ghostscript run what is in an EPS file, whatever its name."""
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(BadInput, match=r"page.png \(its format is unknown\)"):
        load("folder", tmp_path, 8)


def test_what_is_no_file_is_not_read(tmp_path, monkeypatch):
    """From a pipe nothing ever comes."""
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "large.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(datasets, "LARGEST_FILE", 10)
    with pytest.raises(BadInput, match="3 of 3 images can't be read") as refusal:
        load("folder", tmp_path, 8)
    for why in (
        "pipe.png (it is no file)",
        "large.png (it has more than 10 bytes)",
        "gone",
    ):
        assert why in str(refusal.value)


def test_a_split_that_unpacks_to_more_than_it_should(tmp_path, monkeypatch):
    zeros = np.zeros(100_000, np.int64)
    np.savez_compressed(tmp_path / "split.npz", mia_train_idxs=[1, 3], mia_eval_idxs=[0, 2], more=zeros)
    assert (tmp_path / "split.npz").stat().st_size < 10_000
    monkeypatch.setattr(datasets, "LARGEST_FILE", 128 + zeros.nbytes)  # with numpy's header: exactly as large
    assert len(datasets.published_split(tmp_path / "split.npz", 12)[0]) == 2
    monkeypatch.setattr(datasets, "LARGEST_FILE", 10_000)
    with pytest.raises(BadInput, match="split.npz: not an .npz file .*an array of more than 10,000 bytes"):
        datasets.published_split(tmp_path / "split.npz", 12)


def test_a_pickle_that_says_how_much_memory_it_wants(tmp_path):
    """Python's unpickler would allocate a table of 4 GiB for this."""
    official("cifar-10-batches-py", tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"\x80\x02K\x01r\xff\xff\xff\x0f.")
    before = hardware.peak_memory(CPU)
    with pytest.raises(BadInput, match="data_batch_2 is no CIFAR batch for Python"):
        load("cifar10", tmp_path, 32)
    assert hardware.peak_memory(CPU) - before < 2e8


def test_a_disk_that_is_full_while_an_archive_is_unpacked(tmp_path, monkeypatch):
    official("cifar-10-batches-bin", tmp_path / "official" / "cifar-10-batches-bin")
    content = packed(tmp_path / "official" / "cifar-10-batches-bin")
    archive = publish(monkeypatch, "cifar10", content)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / archive).write_bytes(content)
    refusal = f"{archive} cannot be unpacked .*File too large"
    with largest_file(1000), pytest.raises(BadInput, match=refusal) as refused:
        load("cifar10", tmp_path / "data", 32)
    assert "\n" not in str(refused.value)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [archive]


def test_two_processes_download_once(server, tmp_path, monkeypatch):
    pixels = official("cifar-100-binary", tmp_path / "official" / "cifar-100-binary")
    publish(monkeypatch, "cifar100", packed(tmp_path / "official" / "cifar-100-binary"), server)
    download = datasets.download
    monkeypatch.setattr(datasets, "download", lambda *args: time.sleep(0.5) or download(*args))
    (tmp_path / "data").mkdir()
    with ThreadPoolExecutor(3) as several:  # the lock keeps threads out as well
        found = list(several.map(lambda _: load("cifar100", tmp_path / "data", 32), range(3)))
    assert all(torch.equal(images, pixels) for images in found) and len(server.asked) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-100-binary"]


# --- downloads ---


CONTENT = np.random.RandomState(0).bytes(300_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.mark.parametrize("answer", [{"cut": 1000}, {"body": b"an error page"}, {"status": 503}, {"claims": 1000}])
def test_a_download_that_goes_wrong_is_tried_again_and_leaves_nothing(server, tmp_path, answer):
    server.content, path = CONTENT, tmp_path / "new" / "file"
    server.answers = 4 * [answer]
    with pytest.raises(BadInput, match="^cannot download .*: try again, or fetch it by other means") as refusal:
        datasets.download(server.url, path, MD5)
    assert "\n" not in str(refusal.value) and len(server.asked) == 4 and list(path.parent.iterdir()) == []
    server.answers = 3 * [answer]
    datasets.download(server.url, path, MD5)
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]


def test_a_download_without_a_digest_or_a_length(server, tmp_path):
    server.content = CONTENT
    server.answers = [{"claims": None}]  # a server need not name the length
    datasets.download(server.url, tmp_path / "file", None)
    assert (tmp_path / "file").read_bytes() == CONTENT and (tmp_path / "file").stat().st_mode & 0o444 == 0o444


def test_a_download_that_cannot_be_written_ends_at_once(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot download .*File exists"):
        datasets.download(server.url, tmp_path / "file" / "below", MD5)
    with largest_file(100_000), pytest.raises(BadInput, match="cannot download .*File too large"):
        datasets.download(server.url, tmp_path / "large", MD5)
    assert len(server.asked) == 1 and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_download_without_a_network_leaves_nothing(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    for url in (server.url.replace("http", "nothing"), server.url, "http://no-such-host.invalid/file"):
        with pytest.raises(BadInput, match="cannot download"):
            datasets.download(url, tmp_path / "file", None)
    assert list(tmp_path.iterdir()) == []


# --- archives ---


def packed(folder):
    """The bytes of a .tar.gz with a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return archive.getvalue()


@pytest.mark.parametrize("folder, name", [(f, n) for f, n in FOLDERS.items() if "py" not in f])
def test_archives_are_downloaded_once_and_write_nothing_else(server, tmp_path, monkeypatch, folder, name):
    pixels = official(folder, tmp_path / "official" / folder)
    size = pixels.shape[-1]
    archive = publish(monkeypatch, name, packed(tmp_path / "official" / folder), server)
    workdir = tmp_path / "elsewhere"
    workdir.mkdir()
    monkeypatch.chdir(workdir)
    assert torch.equal(data.load(name, None, size, 0), pixels)  # into the default data/
    assert torch.equal(data.load(name, None, size, 0), pixels)
    assert server.asked == [f"/{archive}"]
    (file, *others) = datasets.SOURCES[name][0].files
    expected = {"data", f"data/{folder}", *(f"data/{folder}/{name}" for name in (file, *others))}
    there = {str(path.relative_to(workdir)) for path in workdir.rglob("*")}
    assert there - expected <= {f"data/{folder}/readme.html"} and expected <= there
    # an archive fetched by hand serves as well, and one of other bytes is refused
    (tmp_path / "by-hand").mkdir()
    by_hand = tmp_path / "by-hand" / archive
    by_hand.write_bytes(server.content)
    assert torch.equal(load(name, tmp_path / "by-hand", size), pixels)
    assert by_hand.exists()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / archive).write_bytes(b"no archive")
    with pytest.raises(BadInput, match="not the official archive .*: delete it"):
        load(name, tmp_path / "wrong", size)
    assert (tmp_path / "wrong" / archive).read_bytes() == b"no archive" and len(server.asked) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-hand", "elsewhere", "official", "wrong"]


def test_the_archive_for_python_that_torchvision_leaves(tmp_path, monkeypatch):
    pixels = official("cifar-10-batches-py", tmp_path / "official" / "cifar-10-batches-py")
    content = packed(tmp_path / "official" / "cifar-10-batches-py")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / publish(monkeypatch, "cifar10", content, which=1)).write_bytes(content)
    assert torch.equal(load("cifar10", tmp_path / "data", 32), pixels)
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"other bytes")
    assert torch.equal(load("cifar10", tmp_path / "data", 32), pixels), "it has been unpacked"


def test_datasets_share_a_directory(server, tmp_path, monkeypatch):
    """What is downloaded into a directory that has other datasets in it, and not into just any."""
    official("cifar-10-batches-py", tmp_path / "data" / "cifar-10-batches-py")
    pixels = official("cifar-100-binary", tmp_path / "official" / "cifar-100-binary")
    archive = publish(monkeypatch, "cifar100", packed(tmp_path / "official" / "cifar-100-binary"), server)
    server.answers = 4 * [{"status": 404}]
    with pytest.raises(BadInput, match="cannot download .*404"):
        load("cifar100", tmp_path / "data", 32)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-py"]
    assert torch.equal(load("cifar100", tmp_path / "data", 32), pixels)
    assert server.asked == 5 * [f"/{archive}"]


def test_the_official_archives():
    published = {
        source.site + source.archive: source.md5 for sources in datasets.SOURCES.values() for source in sources
    }
    toronto = "https://www.cs.toronto.edu/~kriz/"
    assert published == {
        toronto + "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        toronto + "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        toronto + "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        toronto + "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de",
    }


# --- toy ---


def test_toy_image_is_a_function_of_index_size_and_seed():
    images = data.toy(16, seed=5, n=8)
    assert images.shape == (8, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(images[:3], data.toy(16, seed=5, n=3))
    assert not torch.equal(images, data.toy(16, seed=6, n=8))
    assert data.toy(32, seed=5, n=1).shape == (1, 3, 32, 32)


def test_toy_images_are_all_different():
    x = data.to_float(data.toy(16, n=400)).flatten(1)
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    assert distance.min() > 2  # of 768 values in [-1, 1]; two random images are about 20 apart


def test_toy_images_have_the_spectrum_of_photographs(real_images):
    """Amplitudes fall about as 1 / frequency, by half for each doubling; and no image is mostly flat."""

    def slope_of(images):
        grey = data.to_float(images).mean(1)
        amplitude = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square().mean(0).sqrt()
        f = torch.hypot(torch.fft.fftfreq(16)[:, None], torch.fft.fftfreq(16)[None])
        ring = [amplitude[(f > low) & (f <= 2 * low)].mean().log2().item() for low in (0.06, 0.12, 0.24)]
        return np.mean(np.diff(ring))

    drawn = data.toy(16, n=200)
    photographs = data.load("cifar10", str(real_images), 16, 0)[:200]
    assert slope_of(drawn) == pytest.approx(slope_of(photographs), abs=0.5) and -1.7 < slope_of(drawn) < -0.6
    squares = drawn.float().mean(1).unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)
    assert (squares.std(3).flatten(1).median(1).values > 4).all(), "half of all squares of 4x4 pixels have texture"


def test_there_are_enough_toy_images_for_references_and_they_are_drawn_once(tmp_path, monkeypatch):
    """The file is good for this seed and this size alone. A damaged one is drawn anew, an unfinished one goes on."""
    assert data.TOY_IMAGES >= 4096
    monkeypatch.setattr(data, "kept_rows", files.kept_rows)
    monkeypatch.setattr(data, "TOY_IMAGES", 300)
    drawn, draw = [], data._draw

    def spy(i, size, seed):
        drawn.append((i, size, seed))
        return draw(0, size, seed) // (i % 7 + 1) + i % 50

    def load(folder="new", seed=0):
        drawn.clear()
        return data.load("toy", str(tmp_path / folder), 16, seed)

    monkeypatch.setattr(data, "_draw", spy)
    first = load()
    assert drawn == [(i, 16, 0) for i in range(300)] and len(first) == 300
    assert torch.equal(load(), first) and not drawn
    path = tmp_path / "new" / "toy-16-0.npz"
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(load(), first) and len(drawn) == 300
    path.rename(tmp_path / "new" / "toy-16-1.npz")
    assert not torch.equal(load(seed=1), first) and drawn == [(i, 16, 1) for i in range(300)]
    (tmp_path / "file").touch()
    assert torch.equal(load("file"), first), "where nothing can be kept, it is drawn"
    monkeypatch.setattr(data, "_draw", lambda i, *rest: sys.exit("Ctrl-C") if i == 270 else spy(i, *rest))
    with pytest.raises(SystemExit, match="Ctrl-C"):
        load("cut off")
    monkeypatch.setattr(data, "_draw", spy)
    assert torch.equal(load("cut off"), first) and drawn == [(i, 16, 0) for i in range(256, 300)]


def test_load_names_the_datasets(monkeypatch):
    monkeypatch.setattr(data, "TOY_IMAGES", 2)
    assert torch.equal(data.load("toy", None, 16, seed=2), data.toy(16, seed=2, n=2))
