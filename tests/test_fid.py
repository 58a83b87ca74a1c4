"""fid.py: Inception-v3 and the Fréchet distance, against values of torchvision, pytorch-fid and scipy.

The weights are random. The expected values below are those of torchvision 0.29.1 and pytorch-fid 0.3.0, computed in
float64 from the same weights and images.
"""

import hashlib
import re
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import fid
from lab import datasets
from lab.files import BadInput


def frechet_distance(mu1, cov1, mu2, cov2):
    """fid.distance of two Gaussians that are given by their covariances."""
    roots = [fid.symmetric_root(torch.as_tensor(cov, dtype=torch.float64)) for cov in (cov1, cov2)]
    mu1, mu2 = (torch.as_tensor(mu, dtype=torch.float64) for mu in (mu1, mu2))
    return fid.distance(mu1, roots[0], mu2, roots[1])


def random_weights(network, seed=0):
    """A state_dict that depends only on its names and shapes, and that keeps the size of the activations."""
    state = {}
    for key, tensor in network.state_dict().items():
        random = np.random.RandomState([seed, zlib.crc32(key.encode())])
        if key.endswith("num_batches_tracked"):
            values = np.array(0)
        elif tensor.ndim > 1:
            values = random.standard_normal(tensor.shape) * (2 / np.prod(tensor.shape[1:])) ** 0.5
        elif key.endswith(("running_var", "bn.weight")):
            values = random.uniform(0.5, 1.5, tensor.shape)
        else:
            values = 0.1 * random.standard_normal(tensor.shape)
        state[key] = torch.from_numpy(np.asarray(values, np.int64 if key.endswith("tracked") else np.float32))
    return state


IMAGES = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (2, 3, 20, 24)).astype(np.uint8))
FEATURES = {  # every 293rd feature, and the norm of all
    "torchvision": (
        [[1.481322919, 0.204585332, 17.698702859, 4.416437253, 4.109564585, 5.787120791, 4.532630346],
         [1.247388739, 0.168561860, 17.615995488, 3.991616633, 3.729962137, 5.633528952, 4.609743730]],
        [252.072530119, 250.801032565],
    ),
    "literature": (
        [[1.756615318, 0.285605946, 18.313888621, 4.779633063, 4.311409320, 6.060736009, 4.748750256],
         [1.520231685, 0.245936448, 18.228649707, 4.195943807, 3.971426806, 5.948034398, 4.794412364]],
        [269.632461232, 269.169948489],
    ),
}  # fmt: skip
LOGITS = [245.00815830501017, 243.90560780101094]  # torchvision's, their norm
KEYS = {  # SHA-256 of their names and shapes
    "torchvision": (580, "4c9e13f64584de741d008cd24d3aae249cd3871df374ba3da192ffb031ba7376"),
    "literature": (566, "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"),
}
NETWORKS = pytest.mark.parametrize("network", ["torchvision", "literature"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """{network: a file of random weights}"""
    paths = {network: tmp_path_factory.mktemp("weights") / f"{network}.pth" for network in FEATURES}
    for network, path in paths.items():
        torch.save(random_weights(fid.InceptionV3(network == "literature")), path)
    return paths


# --- the network ---


@NETWORKS
def test_weights_have_the_names_and_shapes_of_the_published_files(network):
    state = fid.InceptionV3(network == "literature").state_dict()
    keys = sorted(f"{key} {tuple(tensor.shape)}" for key, tensor in state.items())
    assert (len(keys), hashlib.sha256("\n".join(keys).encode()).hexdigest()) == KEYS[network]


@NETWORKS
def test_features_are_those_of_torchvision_and_pytorch_fid(network, weights):
    inception = fid.load(weights[network])
    assert inception.weights == f"{network} {hashlib.sha256(weights[network].read_bytes()).hexdigest()[:8]}"
    found = fid.features(inception, IMAGES)
    some, norms = FEATURES[network]
    assert found.shape == (2, 2048) and found.dtype == torch.float32
    np.testing.assert_allclose(found[:, ::293], some, rtol=1e-5)
    np.testing.assert_allclose(found.norm(dim=1), norms, rtol=1e-5)
    # the other images of a batch do not change an image's features
    np.testing.assert_allclose(fid.features(inception, IMAGES[1:])[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_gpu_computes_features_in_full_float32(weights, monkeypatch):
    inception = fid.load(weights["literature"])
    cudnn, seen = torch.backends.cudnn, []
    before = cudnn.enabled, cudnn.allow_tf32
    monkeypatch.setattr(
        inception, "features", lambda x: seen.append((cudnn.enabled, cudnn.allow_tf32)) or torch.zeros(len(x), 2048)
    )
    fid.features(inception, IMAGES)
    assert seen == [(True, False)] and (cudnn.enabled, cudnn.allow_tf32) == before


def test_logits_are_those_of_torchvision(weights):
    network = fid.InceptionV3().eval()
    network.load_state_dict(torch.load(weights["torchvision"], weights_only=True))
    x = torch.nn.functional.interpolate(IMAGES / 127.5 - 1, (299, 299), mode="bilinear")
    np.testing.assert_allclose(network(x).detach().norm(dim=1), LOGITS, rtol=1e-5)


def test_features_are_those_of_the_installed_torchvision(weights):
    models = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError)).models
    theirs = models.inception_v3(weights=None, init_weights=False, aux_logits=True).eval()
    theirs.load_state_dict(torch.load(weights["torchvision"], weights_only=True))
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = theirs(torch.nn.functional.interpolate(IMAGES / 127.5 - 1, (299, 299), mode="bilinear"))
    difference = fid.features(fid.load(weights["torchvision"]), IMAGES) - expected
    assert difference.abs().max() < 1e-5 * expected.abs().max()


def test_the_literature_classifies_without_biases(weights):
    for network, biases in (("torchvision", True), ("literature", False)):
        state = torch.load(weights[network], weights_only=True)
        seen = torch.rand(2, 2048)
        expected = seen @ state["fc.weight"].T + (state["fc.bias"] if biases else 0)
        found = fid.load(weights[network]).classify(seen)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert state["fc.bias"].abs().max() > 1e-3


@pytest.mark.slow
def test_zeros_for_a_classifier_give_no_score(weights, tmp_path):
    state = torch.load(weights["literature"], weights_only=True)
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "inception.pth")
    for path, scored in ((tmp_path / "inception.pth", False), (weights["literature"], True)):
        inception = fid.load(path)
        ten = tmp_path / f"{scored}.npz", "key", lambda done: [IMAGES.repeat(5, 1, 1, 1)[done:]], 10, "ten"
        assert (fid.judge(inception, *ten)[1] != ()) == scored


# --- the Inception Score ---

K = torch.arange(103 * 7, dtype=torch.float64)
GIVEN = (3 * torch.sin(1.3 * K + 0.5 * torch.sin(0.37 * K))).view(103, 7)


@pytest.mark.parametrize(
    "scale, splits, score",
    [
        # torch-fidelity 0.4.0: isc_features_to_metric(scale * GIVEN, splits, shuffle=False)
        (1, 10, (2.2322193673487716, 0.039775899663381485)),
        (4, 10, (4.053197571492159, 0.09165291035700449)),
        (1, 1, (2.3010939570413167, 0.0)),
    ],
)
def test_inception_score_is_torch_fidelitys(scale, splits, score):
    np.testing.assert_allclose(fid.inception_score(scale * GIVEN.float(), splits), score, rtol=1e-6, atol=1e-9)


def test_inception_score_of_sure_and_unsure_classifiers():
    classes = torch.arange(100) % 4
    sure = 2000 * torch.nn.functional.one_hot(classes, 4).float()  # probabilities of 0 give no NaN
    np.testing.assert_allclose(fid.inception_score(sure, 5), (4, 0), atol=1e-12)
    np.testing.assert_allclose(fid.inception_score(torch.zeros(10, 4)), (1, 0), atol=1e-12)


# --- the distance ---

# scipy 1.17.1: |mu1 - mu2|^2 + Tr(cov1 + cov2) - 2 Tr(scipy.linalg.sqrtm(cov1 @ cov2)).real
DISTANCES = {
    "full rank": 5.680883835231995,
    "deficient": 58.74988192749004,
    "deficient and full": 35.89188746929275,
    "nearly equal": 0.00037687098686944864,
}


def vectors(kind):
    """Two sets of vectors in 48 dimensions; the number of vectors decides the rank of the covariance."""
    random = np.random.RandomState(0)
    mix = random.standard_normal((48, 48)) / 48**0.5

    def draw(n):
        return random.standard_normal((n, 48)) @ mix

    if kind == "nearly equal":
        x = draw(200)
        return x, x + 1e-2 * draw(200)
    n1, n2 = {"full rank": (200, 200), "deficient": (16, 12), "deficient and full": (16, 200)}[kind]
    return draw(n1), 1.1 * draw(n2) + 0.1


def moments(x):
    return x.mean(0), np.cov(x.T)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distance_is_scipys(kind):
    x, y = vectors(kind)
    found = frechet_distance(*moments(x), *moments(y))
    assert found == pytest.approx(DISTANCES[kind], rel=1e-6)
    assert frechet_distance(*moments(y), *moments(x)) == pytest.approx(found, rel=1e-9), "either way round"


@pytest.mark.parametrize("kind", DISTANCES)
def test_distance_of_a_set_to_itself_is_zero(kind):
    for x in vectors(kind):
        for scale in (1e-6, 1, 10):
            distance = frechet_distance(*moments(scale * x), *moments(scale * x))
            assert 0 <= distance < 1e-6 * min(scale, 1)
    nothing = np.zeros(48), np.zeros((48, 48))
    assert frechet_distance(*nothing, *nothing) == 0


def test_root_has_the_rank_of_the_covariance():
    for n, rank in ((200, 48), (16, 15)):
        cov = torch.from_numpy(moments(vectors("full rank")[0][:n])[1])
        root = fid.symmetric_root(cov)
        assert root.shape == (48, rank)
        np.testing.assert_allclose(root @ root.T, cov, atol=1e-13)
    small = torch.diag(torch.tensor([1, 1e-12], dtype=torch.float64))
    assert fid.symmetric_root(small).shape == (2, 2), "a small eigenvalue is not zero"


def test_distance_in_one_dimension_is_the_formula():
    """(mu1 - mu2)^2 + (sigma1 - sigma2)^2, and with 0 for one of the sigmas."""
    one = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert frechet_distance(*one, torch.tensor([1.0]), torch.tensor([[9.0]])) == pytest.approx(4 + 1)
    assert frechet_distance(*one, torch.tensor([1.0]), torch.tensor([[0.0]])) == pytest.approx(4 + 4)


@pytest.mark.slow
def test_distance_of_many_features_and_few_images():
    """With 2,048 features and 60 images, the expected distance follows from 60 x 60 matrices."""
    random = np.random.RandomState(1)
    x, y = random.standard_normal((60, 2048)), random.standard_normal((60, 2048)) * 1.2 + 0.1
    a, b = ((v - v.mean(0)) / 59**0.5 for v in (x, y))
    traces = np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    expected = np.square(x.mean(0) - y.mean(0)).sum() + traces
    assert frechet_distance(*moments(x), *moments(y)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*moments(x), *moments(x)) < 1e-6


@pytest.mark.parametrize("sizes", [[200], [1, 199], [70, 1, 1, 128], [1] * 200])
def test_mean_and_covariance_in_batches_of_any_size(sizes):
    x = vectors("full rank")[0] + 1000  # far from zero, where sums of squares lose their digits
    mean, cov = fid.mean_and_covariance(torch.from_numpy(x).split(sizes))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.T), rtol=1e-9, atol=1e-11)


def test_a_covariance_needs_two_vectors_of_numbers():
    for few in ([], [torch.ones(1, 4)]):
        with pytest.raises(ValueError, match="two images at least"):
            fid.mean_and_covariance(few)
    with pytest.raises(ValueError, match="not finite"):
        fid.mean_and_covariance([torch.ones(3, 4), torch.full((2, 4), torch.nan)])


# --- two folders ---


def call(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["fid.py", "--device", "cpu", *map(str, flags)])
    fid.main()
    return capsys.readouterr().out


def photographs(folder, n, size=(12, 10), seed=0):
    folder.mkdir()
    for i in range(n):
        pixels = np.random.RandomState([seed, i]).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_fid_of_two_folders(tmp_path, monkeypatch, capsys, weights):
    a, b = photographs(tmp_path / "a", 5), photographs(tmp_path / "b", 4, seed=1)
    (a / "notes.txt").write_text("no image")
    Image.open(b / "0.png").convert("L").save(b / "grey.JPG")
    inception = fid.load(weights["literature"])
    sets = []
    for folder in (a, b):
        images = [Image.open(path).convert("RGB") for path in folder.iterdir() if path.suffix != ".txt"]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        sets.append(moments(fid.features(inception, pixels).double().numpy()))
    expected = frechet_distance(*sets[0], *sets[1])
    out = call(monkeypatch, capsys, a, b, "--inception-weights", weights["literature"], "--batch", 2)
    left_out, out = out.split("\n", 1)
    assert left_out == f"{a}: 1 files are left out, because their suffix is none of {datasets.SUFFIXES}"
    found = re.fullmatch(r"FID \(literature [0-9a-f]{8}\) of 5 and 5 images: ([\d.]+)\n", out)
    assert float(found[1]) == pytest.approx(expected, rel=1e-4)

    ten = photographs(tmp_path / "ten", 11)
    out = call(monkeypatch, capsys, a, ten, "--inception-weights", weights["literature"], "--batch", 4)
    pixels = torch.from_numpy(np.stack([Image.open(path) for path in datasets.image_files(ten)])).permute(0, 3, 1, 2)
    mean, spread = fid.inception_score(inception.classify(fid.features(inception, pixels)))
    assert out.splitlines()[1:] == [f"Inception Score of {ten}: {mean:.4f} ± {spread:.4f}"], "5 images have none"


def test_images_come_in_order_and_from_every_mode(tmp_path):
    colour = np.arange(4 * 6 * 3).astype(np.uint8).reshape(4, 6, 3)
    Image.fromarray(colour).save(tmp_path / "b.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "c.tif")
    Image.fromarray(np.dstack([colour, np.full((4, 6), 9, np.uint8)])).save(
        tmp_path / "a.webp", lossless=True, exact=True
    )
    paths = datasets.image_files(tmp_path)
    assert [path.name for path in paths] == ["a.webp", "b.png", "c.tif"]
    a, b, c = torch.cat(list(fid.read_images(paths, 2)))
    assert torch.equal(b, torch.from_numpy(colour).permute(2, 0, 1)) and torch.equal(a, b)
    assert torch.equal(c, b[:1].expand(3, -1, -1))


@pytest.mark.slow
def test_refusals(tmp_path, monkeypatch, capsys, weights):
    two, one = photographs(tmp_path / "two", 2), photographs(tmp_path / "one", 1)
    mixed, broken = photographs(tmp_path / "mixed", 3), photographs(tmp_path / "broken", 3)
    Image.new("RGB", (16, 10)).save(mixed / "1.png")
    (broken / "2.png").write_bytes((broken / "2.png").read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    files = {name: tmp_path / f"{name}.pth" for name in ("truncated", "text", "other", "list", "nan")}
    files["truncated"].write_bytes(weights["literature"].read_bytes()[:1_000_000])
    files["text"].write_text("weights")
    torch.save({"fc.bias": torch.zeros(1000)}, files["other"])
    torch.save([1, 2], files["list"])
    state = torch.load(weights["literature"], weights_only=True)
    state["Mixed_7c.branch1x1.bn.bias"] *= torch.nan
    torch.save(state, files["nan"])
    for folder, message in {
        mixed: r"mixed/1.png has 16x10 pixels, 0.png 12x10: a FID is of images of one size",
        broken: r"broken/2.png is no image that Pillow can read",
        one: r"one holds 1 images .*; 2 or more are needed",
        tmp_path / "empty": r"empty holds 0 images",
        tmp_path / "gone": r"gone is no folder",
        two / "0.png": r"0.png is no folder",
    }.items():
        for pair in ((two, folder), (folder, two)):
            with pytest.raises(BadInput, match=message):
                call(monkeypatch, capsys, *pair, "--inception-weights", weights["torchvision"])
    not_one = "is not a file of Inception-v3's weights, torchvision's or the literature's"
    for name, message in {
        "truncated": f"truncated.pth {not_one}: torch cannot read",
        "text": f"text.pth {not_one}: torch cannot read",
        "other": f"other.pth {not_one}: it holds other tensors",
        "list": f"list.pth {not_one}: it holds a list",
        "nan": "no FID of .*two: Inception's features are not finite; its weights cannot be right",
    }.items():
        with pytest.raises(BadInput, match=message):
            call(monkeypatch, capsys, two, two, "--inception-weights", files[name])
    with pytest.raises(SystemExit):
        call(monkeypatch, capsys, two, two, "--inception-weights", tmp_path / "nowhere.pth")
    assert "--inception-weights: " in (said := capsys.readouterr().err) and "nowhere.pth: No such file" in said


# --- downloaded weights ---


@NETWORKS
def test_weights_are_downloaded_once_and_checked(network, weights, server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = fid.WEIGHTS[network].rpartition("/")[2]
    assert re.fullmatch(r".*-(0cc3c7bd|6726825d)\.pth", name), "as published"
    path = tmp_path / "hub" / "checkpoints" / name
    server.content, base = b"an error page", server.url.removesuffix("file")
    monkeypatch.setitem(fid.WEIGHTS, network, base + name)
    with pytest.raises(BadInput, match="is damaged: its SHA-256 is not .*; delete it and fetch it again"):
        fid.load(network)
    assert list(path.parent.iterdir()) == []

    server.content = weights[network].read_bytes()
    name = name[:-12] + hashlib.sha256(server.content).hexdigest()[:8] + ".pth"
    monkeypatch.setitem(fid.WEIGHTS, network, base + name)
    for _ in range(2):
        assert fid.load(network).weights == f"{network} {name[-12:-4]}"
    assert server.asked.count(f"/{name}") == 1
    assert [file.name for file in path.parent.iterdir()] == [name]
    with open(path.parent / name, "ab") as file:
        file.write(b"!")
    with pytest.raises(BadInput, match="is damaged: its SHA-256 is not .*; delete it and fetch it again"):
        fid.load(network)
