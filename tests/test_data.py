import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch

import data
import files
from files import BadInput

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


def test_split_depends_on_the_seed():
    assert not torch.equal(data.index_split(100, seed=0).a, data.index_split(100, seed=1).a)


@pytest.mark.parametrize("members", [0, -2, 3, 52])
def test_split_refuses_members_that_it_cannot_halve_or_does_not_have(members):
    with pytest.raises(BadInput, match=f"--members {members}: must be even, and from 2 to 50"):
        data.index_split(100, members)


def test_published_split(tmp_path):
    path = tmp_path / "split.npz"
    np.savez(path, mia_train_idxs=[1, 3, 5, 7, 9, 11], mia_eval_idxs=[0, 2, 4, 6, 8, 10])
    split = data.index_split(12, published=path)
    assert sorted(split.members.tolist()) == [1, 3, 5, 7, 9, 11]
    assert sorted(split.nonmembers.tolist()) == [0, 2, 4, 6, 8, 10]
    fewer = data.index_split(12, members=4, published=path)
    assert len(fewer.a) == len(fewer.b) == 2 and len(fewer.nonmembers) == 4
    assert sorted([*fewer.nonmembers.tolist(), *fewer.reference.tolist()]) == [0, 2, 4, 6, 8, 10]
    assert set(fewer.members.tolist()) < set(split.members.tolist())


def test_the_split_of_the_literature(published_split):
    split = data.index_split(50_000, published=published_split)
    file = np.load(published_split)
    assert len(split.a) == len(split.b) == 12_500 and len(split.nonmembers) == 25_000
    assert set(split.members.tolist()) == set(file["mia_train_idxs"].tolist())
    assert set(split.nonmembers.tolist()) == set(file["mia_eval_idxs"].tolist())
    with pytest.raises(BadInput, match="indices up to 49,999, but the dataset has 5,085"):
        data.index_split(5085, published=published_split)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mia_train_idxs": [1, 2]},
        {"mia_train_idxs": [1, 2], "mia_eval_idxs": [2, 3]},
        {"mia_train_idxs": [1.5, 2], "mia_eval_idxs": [0, 3]},
        {"mia_train_idxs": [-1, 2], "mia_eval_idxs": [0, 3]},
        {"mia_train_idxs": np.array([{}, {}]), "mia_eval_idxs": [0, 3]},
    ],
)
def test_published_split_that_is_none(tmp_path, arrays):
    np.savez(tmp_path / "split.npz", **arrays)
    with pytest.raises(BadInput, match="--member-split .*split.npz"):
        data.index_split(12, published=tmp_path / "split.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_published_split_that_is_no_npz(tmp_path, content):
    (tmp_path / "split.npz").write_bytes(content)
    with pytest.raises(BadInput, match="not an .npz file"):
        data.index_split(12, published=tmp_path / "split.npz")


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


# --- CIFAR-10 ---


def batch_of(first: int, n: int = 2) -> tuple[bytes, np.ndarray]:
    """n records with random pixels, and those pixels as (n, 3, 32, 32)."""
    pixels = np.random.RandomState(first).randint(0, 256, (n, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(n, dtype=np.uint8) % 10
    return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True)), pixels


@pytest.fixture
def miniature(tmp_path):
    """A --data-dir in the official layout with two records a file, and their pixels."""
    folder = tmp_path / "mini" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    pixels = []
    for i in range(1, 6):
        content, images = batch_of(i)
        (folder / f"data_batch_{i}.bin").write_bytes(content)
        pixels.append(images)
    return folder.parent, torch.from_numpy(np.concatenate(pixels))


def test_cifar10_pixels_and_order(miniature):
    root, pixels = miniature
    assert torch.equal(data.cifar10(str(root)), pixels)
    assert torch.equal(data.cifar10(str(root / "cifar-10-batches-bin")), pixels)
    assert data.cifar10(str(root), size=16).shape == (10, 3, 16, 16)


def test_cifar10_record_layout(tmp_path):
    """A label, then 1,024 red, 1,024 green, 1,024 blue bytes, each plane row by row."""
    record = bytes([7]) + bytes([10] * 1024) + bytes([20] * 1024) + bytes(range(256)) * 4
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(record)
    image = data.cifar10(str(tmp_path))[0]
    assert (image[0] == 10).all() and (image[1] == 20).all()
    assert image[2, 0, :3].tolist() == [0, 1, 2] and image[2, 1, 0] == 32


def test_real_images(real_images):
    images = data.cifar10(str(real_images))
    assert images.shape == (5085, 3, 32, 32) and images.dtype == torch.uint8
    assert hashlib.sha256(images[0].numpy()).hexdigest() != hashlib.sha256(images[1017].numpy()).hexdigest()
    # the per-channel means of CIFAR-10 are known: 0.4914, 0.4822, 0.4465
    means = images.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=0.01, rtol=0)


def damage(folder, how):
    path = folder / "data_batch_3.bin"
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other":
        path.write_bytes(bytes([200]) * 3073)


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "other"])
def test_damaged_batch_is_named(miniature, how):
    root, _ = miniature
    damage(root / "cifar-10-batches-bin", how)
    with pytest.raises(BadInput, match="data_batch_3.bin"):
        data.cifar10(str(root))


def test_image_folder_where_cifar_is_expected(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(BadInput, match="no cifar-10-batches-bin/data_batch_1.bin in it"):
        data.cifar10(str(tmp_path))
    with pytest.raises(BadInput, match="no such directory"):
        data.cifar10(str(tmp_path / "nowhere"))


# --- download ---


def test_download_goes_on_where_it_was_cut_off(server, tmp_path):
    server.content = np.random.RandomState(0).bytes(300_000)
    md5, path = hashlib.md5(server.content).hexdigest(), tmp_path / "new" / "file"
    server.cut = 100_000
    with pytest.raises(BadInput, match="closed after 100,000 of 300,000 bytes"):
        files.download(server.url, path, md5, "md5")
    assert not path.exists()
    server.cut = None
    files.download(server.url, path, md5, "md5")
    assert path.read_bytes() == server.content
    assert server.ranges == [None, "bytes=100000-"]
    assert list(path.parent.iterdir()) == [path]


def test_a_server_that_cannot_resume_sends_it_all_again(server, tmp_path):
    server.content, server.resumes = b"all of it", False
    (tmp_path / "file.part").write_bytes(server.content[:4])
    files.download(server.url, tmp_path / "file", hashlib.md5(server.content).hexdigest(), "md5")
    assert (tmp_path / "file").read_bytes() == server.content


def test_download_whose_last_byte_was_there_already(server, tmp_path):
    server.content = b"all of it"
    (tmp_path / "file.part").write_bytes(server.content)
    files.download(server.url, tmp_path / "file", hashlib.md5(server.content).hexdigest(), "md5")
    assert (tmp_path / "file").read_bytes() == server.content


def test_wrong_bytes_are_deleted(server, tmp_path):
    server.content = b"an error page, perhaps"
    with pytest.raises(BadInput, match="other bytes than expected"):
        files.download(server.url, tmp_path / "file", hashlib.md5(b"the file").hexdigest(), "md5")
    assert list(tmp_path.iterdir()) == []


def test_no_server_writes_nothing(server, tmp_path):
    server.http.server_close()
    with pytest.raises(BadInput, match="cannot download"):
        files.download(server.url.replace("http", "nothing"), tmp_path / "new" / "file", "", "md5")
    assert list(tmp_path.iterdir()) == []


def test_cifar10_is_downloaded_once(server, tmp_path, monkeypatch, miniature):
    root, pixels = miniature
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(root / "cifar-10-batches-bin", "cifar-10-batches-bin")
    server.content = archive.getvalue()
    monkeypatch.setattr(data, "CIFAR10_URL", server.url)
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(server.content).hexdigest())
    workdir = tmp_path / "elsewhere"
    workdir.mkdir()
    monkeypatch.chdir(workdir)
    assert torch.equal(data.cifar10(), pixels)  # into the default data/
    assert torch.equal(data.cifar10(), pixels)
    assert len(server.ranges) == 1
    assert [path.name for path in (workdir / "data").iterdir()] == ["cifar-10-batches-bin"]
    # an archive fetched by hand serves as well, and one of other bytes is refused
    (tmp_path / "by-hand").mkdir()
    by_hand = tmp_path / "by-hand" / "cifar-10-binary.tar.gz"
    by_hand.write_bytes(server.content)
    assert torch.equal(data.cifar10(str(tmp_path / "by-hand")), pixels)
    assert by_hand.exists()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(BadInput, match="not the official archive"):
        data.cifar10(str(tmp_path / "wrong"))


def test_the_official_archive():
    assert data.CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert data.CIFAR10_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"


def test_atomic_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(BadInput, match="cannot write .*file: .*No space left"), files.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with files.atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


# --- toy ---


def test_what_is_kept_is_kept_under_a_key(tmp_path):
    path, code = tmp_path / "new" / "kept.npz", tmp_path / "code.py"
    code.write_text("one")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    keys = [files.key_of(code, array, "text"), files.key_of(code, array + 1, "text"), files.key_of(code, array, "word")]
    code.write_text("two")
    keys.append(files.key_of(code, array, "text"))
    assert len(set(keys)) == 4, "the file's content, the numbers and the text all count"
    assert keys[3] == files.key_of(code, array.copy(), "text")
    files.keep(path, keys[0], array=array)
    assert np.array_equal(files.read_kept(path, keys[0])["array"], array)
    assert files.read_kept(path, keys[1]) == {} == files.read_kept(tmp_path / "none.npz", keys[0])
    files.keep(path / "below a file", keys[0], array=array)  # where nothing can be written, nothing is kept


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


def test_load_names_the_datasets(miniature):
    root, pixels = miniature
    assert torch.equal(data.load("cifar10", str(root), 32, seed=0), pixels)
    assert torch.equal(data.load("toy", None, 16, seed=2)[:2], data.toy(16, seed=2, n=2))
