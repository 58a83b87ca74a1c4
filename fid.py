"""FID, the Fréchet Inception distance between two sets of images, and the Inception Score of one set.

    python fid.py DIR_A DIR_B

Inception-v3 turns each image into 2,048 features. The FID is the Fréchet distance between two Gaussians with the means
and covariances of the two sets' features (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to
a Local Nash Equilibrium"). FIDs compare only with the same weights, resizing and number of images. The Inception Score
is high where Inception recognises something in each image, and many different things in the whole set (Salimans et al.
2016, "Improved Techniques for Training GANs"). Images are resized to 299x299 as pytorch-fid does it: bilinearly,
without antialiasing, in float32. A weight file holds torchvision's network, or the literature's, of published FIDs.
"""

import argparse
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

import data
from lab import cli, datasets
from lab.files import BadInput, exclusive, keep, kept_rows, key_of, read_kept, read_tensors

WEIGHTS = {
    "torchvision": "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
    "literature": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
}


def main() -> None:
    parser = cli.plain_parser(__doc__)
    parser.add_argument("folders", metavar="DIR", type=Path, nargs=2, help="a folder of images, all of one size")
    add_weights(parser)
    parser.add_argument("--batch", type=cli.natural, default=64, help="images at a time (default: %(default)s)")
    args = parser.parse_args()
    sets = [datasets.image_files(folder, least=2) for folder in args.folders]
    sum(1 for files in sets for _ in read_images(files, args.batch))  # a wrong one is refused before the long work
    inception, judged = load(args.inception_weights, args.device), []
    for folder, files in zip(args.folders, sets, strict=True):
        key = key_of(*files)
        path = datasets.DEFAULT / "fid" / f"{key[:16]}.npz"  # after Ctrl-C the same command continues
        rest = lambda done, files=files: read_images(files[done:], args.batch)  # noqa: E731
        judged.append(judge(inception, path, key, rest, len(files), str(folder)))
    of = " and ".join(f"{len(files):,}" for files in sets)
    print(f"FID ({inception.weights}) of {of} images: {distance(*judged[0][0], *judged[1][0]):.4f}")
    for folder, (_, score) in zip(args.folders, judged, strict=True):
        if score:
            print(f"Inception Score of {folder}: {score[0]:.4f} ± {score[1]:.4f}")


def add_weights(parser: argparse.ArgumentParser, default: str | None = "torchvision") -> None:
    text = "torchvision or literature (downloaded on first use), or a FILE of either (default: torchvision)"
    known = lambda text: text if text in WEIGHTS else str(cli.readable(text))  # noqa: E731
    parser.add_argument("--inception-weights", metavar="WEIGHTS", type=known, default=default, help=text)


# --- the distance -----------------------------------------------------------------------------------


def mean_and_covariance(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64, of feature vectors in batches (N, D).

    Memory does not grow with the number of vectors. Raises ValueError for fewer than two vectors, and for NaN.
    """
    n, mean, scatter = 0, 0, 0
    for x in batches:
        x = x.double()
        delta, new = x.mean(0) - mean, len(x)
        centred = x - x.mean(0)
        # the pairwise update of Chan et al. 1979: a difference of large sums would lose digits
        scatter = scatter + centred.T @ centred + delta.outer(delta) * (n * new / (n + new))
        mean, n = mean + delta * (new / (n + new)), n + new
    if n < 2:
        raise ValueError(f"a covariance takes two images at least, not {n}")
    if not scatter.isfinite().all():
        raise ValueError("Inception's features are not finite; its weights cannot be right")
    return mean, scatter / (n - 1)


Gaussian = tuple[Tensor, Tensor]  # mean (D,), and the root (D, r) of a covariance of rank r


def symmetric_root(cov: Tensor) -> Tensor:
    """R (D, r) with R R^T = cov (D, D): the eigenvectors times the roots of the r eigenvalues that are not zero."""
    values, vectors = torch.linalg.eigh(cov)
    # rounding turns a zero into 1e-16, whose root would be 1e-8
    there = values > values.max() * len(cov) * torch.finfo(cov.dtype).eps
    return vectors[:, there] * values[there].sqrt()


def distance(mu1: Tensor, root1: Tensor, mu2: Tensor, root2: Tensor) -> float:
    """|mu1 - mu2|^2 + Tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2))  (Heusel et al. 2017, eq. 6), in float64, never negative.

    The means are (D,), the covariances R1 R1^T and R2 R2^T with R1 (D, r1) and R2 (D, r2). The root of the product is
    never computed: with fewer images than features it is inaccurate or complex.

    (R1 R1^T R2 R2^T)^(1/2) has the same non-zero eigenvalues as (R1^T R2 R2^T R1)^(1/2), and these are the singular
    values of R1^T R2. So the trace of the root is their sum. Tr(R R^T) is the sum of R's squares.
    """
    trace_of_root = torch.linalg.svdvals(root1.T @ root2).sum()
    result = (mu1 - mu2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * trace_of_root
    return max(result.item(), 0.0)  # for a set with itself, rounding leaves 1e-12 of either sign


SPLITS = 10  # parts of a set in an Inception Score, as in the literature


def inception_score(logits: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """exp(mean of KL(p(y|x) || p(y))) of each of `splits` parts: their mean and standard deviation, in float64.

    logits (N, classes) are of N images in random order, N >= splits; p(y) is the mean of a part's p(y|x). It compares
    only with the same N (Salimans et al. 2016, section 4; the parts are torch-fidelity's).
    """
    log_p, scores = logits.double().log_softmax(1), []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        log_mean = part.logsumexp(0) - math.log(len(part))
        scores.append((part.exp() * (part - log_mean)).sum(1).mean().exp())
    scores = torch.stack(scores)
    return scores.mean().item(), scores.std(correction=0).item()


# --- Inception-v3 -----------------------------------------------------------------------------------


class Conv(nn.Module):
    """Convolution, batch norm, ReLU: torchvision's BasicConv2d. `padding` is "same" or "valid"; a stride is "valid"."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding: str = "same"):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding if stride == 1 else "valid", bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


# The branches of a block, each a sequence of convolutions (channels, kernel, and a stride of 2 where there is one). The
# names are torchvision's without "branch". A pooling comes first in "_pool"; the two in FORK have the same input.
Branches = dict[str, list]
FORK = [(384, (1, 3)), (384, (3, 1))]


def block_a(pool: int) -> Branches:
    return {"1x1": [(64, 1)], "5x5": [(48, 1), (64, 5)], "3x3dbl": [(64, 1), (96, 3), (96, 3)], "_pool": [(pool, 1)]}


def block_c(c: int) -> Branches:
    double = [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))]
    return {"1x1": [(192, 1)], "7x7": [(c, 1), (c, (1, 7)), (192, (7, 1))], "7x7dbl": double, "_pool": [(192, 1)]}


BLOCK_B = {"3x3": [(384, 3, 2)], "3x3dbl": [(64, 1), (96, 3), (96, 3, 2)], "_pool": []}
BLOCK_D = {"3x3": [(192, 1), (320, 3, 2)], "7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)], "_pool": []}
BLOCK_E = {"1x1": [(320, 1)], "3x3": [(384, 1), FORK], "3x3dbl": [(448, 1), (384, 3), FORK], "_pool": [(192, 1)]}


class Block(nn.Module):
    """Branches with the same input; their outputs are concatenated in this order."""

    def __init__(self, channels: int, branches: Branches, pool: nn.Module):
        super().__init__()
        self.branches = []  # each a sequence of steps; the modules of a step have the same input
        for branch, convs in branches.items():
            width, steps = channels, [[pool]] if branch == "_pool" else []
            for i, conv in enumerate(convs, 1):
                name = f"branch{branch}_{i}" if len(convs) > 1 else f"branch{branch}"
                step = {name + "a": conv[0], name + "b": conv[1]} if conv is FORK else {name: conv}
                steps.append([Conv(width, *step[name]) for name in step])
                for name, module in zip(step, steps[-1], strict=True):
                    self.add_module(name, module)
                width = sum(out for out, *_ in step.values())
            self.branches.append(steps)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for steps in self.branches:
            y = x
            for step in steps:
                y = torch.cat([module(y) for module in step], 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


class InceptionV3(nn.Module):
    """Szegedy et al. 2016, "Rethinking the Inception Architecture", with torchvision's `state_dict` and outputs.

    `literature` is the network of published FIDs: 1,008 classes, averages without the padding, max pooling at the end.
    """

    def __init__(self, literature: bool = False):
        super().__init__()
        average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=not literature)
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padding="valid")
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padding="valid")
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = Block(192, block_a(32), average)
        self.Mixed_5c = Block(256, block_a(64), average)
        self.Mixed_5d = Block(288, block_a(64), average)
        self.Mixed_6a = Block(288, BLOCK_B, nn.MaxPool2d(3, stride=2))
        self.Mixed_6b = Block(768, block_c(128), average)
        self.Mixed_6c = Block(768, block_c(160), average)
        self.Mixed_6d = Block(768, block_c(160), average)
        self.Mixed_6e = Block(768, block_c(192), average)
        self.Mixed_7a = Block(768, BLOCK_D, nn.MaxPool2d(3, stride=2))
        self.Mixed_7b = Block(1280, BLOCK_E, average)
        self.Mixed_7c = Block(2048, BLOCK_E, nn.MaxPool2d(3, stride=1, padding=1) if literature else average)
        self.fc = nn.Linear(2048, 1008 if literature else 1000)
        if not literature:  # used in its training only, but in the file
            auxiliary = {"conv0": Conv(768, 128, 1), "conv1": Conv(128, 768, 5), "fc": nn.Linear(768, 1000)}
            self.AuxLogits = nn.ModuleDict(auxiliary)

    def features(self, x: Tensor) -> Tensor:
        """Images (N, 3, 299, 299) in [-1, 1] -> (N, 2048): the last block's mean over all pixels."""
        for name, module in self.named_children():
            if name == "fc":
                break
            x = module(x)
        return x.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """features (N, 2048) -> logits (N, classes), as for Inception Scores: the literature's leave out the biases."""
        biases = None if len(self.fc.bias) == 1008 else self.fc.bias
        return F.linear(features.to(self.fc.weight.device), self.fc.weight, biases)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 299, 299) in [-1, 1] -> logits (N, classes)."""
        return self.fc(self.features(x))


# --- weights, images, features ----------------------------------------------------------------------


def weights_path(weights: str) -> Path:
    """The file that --inception-weights names: "torchvision" and "literature" are files in torch's hub directory."""
    if weights not in WEIGHTS:
        return Path(weights)
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS[weights].rpartition("/")[2]


def load(weights: str, device: torch.device | str = "cpu") -> InceptionV3:
    """The network of --inception-weights, for inference only. `.sha256` is that of its file, `.weights` names it.

    `.classifies` is False where the file holds zeros for the classifier, because its source had none.
    Raises BadInput if the file is missing, or is not that of one of the two networks.
    """
    path = weights_path(weights)
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)  # torch hub puts the first digits of SHA-256 there
    digest, fresh = found[1] if found else "", weights in WEIGHTS and not path.exists()
    if fresh:
        with exclusive(path, wait=True):
            if not path.exists():  # another process may have downloaded it meanwhile
                datasets.download(WEIGHTS[weights], path, None)
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"--inception-weights {path}: {error.strerror}") from error
    if not sha256.startswith(digest):
        if fresh:
            path.unlink()
        raise BadInput(f"{path} is damaged: its SHA-256 is not {digest}...; delete it and fetch it again")
    kind = "a file of Inception-v3's weights, torchvision's or the literature's"
    state = read_tensors(path, kind)
    try:
        literature = len(state["fc.bias"]) == 1008
        inception = InceptionV3(literature)
        inception.load_state_dict(state)
    except Exception as error:  # another file can be wrong in any way
        raise BadInput(f"{path} is not {kind}: it holds other tensors") from error
    for module in inception.modules():
        if isinstance(module, Conv):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv.eval(), module.bn.eval()), nn.Identity()
    inception.sha256, inception.classifies = sha256, bool(inception.fc.weight.any())
    inception.weights = f"{'literature' if literature else 'torchvision'} {sha256[:8]}"
    return inception.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def judge(
    inception: InceptionV3, path: Path, key: str, batches: Callable[[int], Iterable[Tensor]], n: int, what: str
) -> tuple[Gaussian, tuple[float, ...]]:
    """What `distance` compares, and the Inception Score, of n images; `what` names them.

    `batches(k)` gives them from image k on, uint8 (N, 3, H, W), in random order. `path` keeps all under `key`. With no
    classifier, or fewer images than parts, the score is (). Raises BadInput for one image, and for infinite features.
    """
    key, unfinished = key_of(key, inception.sha256), path.with_name(f"{path.stem}-unfinished.npz")

    def all_features(done: int) -> Iterator[tuple[Tensor]]:
        with tqdm(total=n - done, desc=f"Inception on {what}", unit="img", leave=False) as bar:
            for images in batches(done):
                yield (features(inception, images),)
                bar.update(len(images))

    if not (kept := read_kept(path, key)):
        parts = kept_rows(unfinished, key, n, all_features)[0].split(1024)
        try:
            mean, cov = mean_and_covariance(parts)
        except ValueError as error:
            raise BadInput(f"no FID of {what}: {error}") from error
        scored = n >= SPLITS and inception.classifies
        score = inception_score(torch.cat([inception.classify(part).cpu() for part in parts])) if scored else ()
        kept = {"mean": mean.numpy(), "root": symmetric_root(cov).numpy(), "score": np.array(score)}
        keep(path, key, **kept)
        unfinished.unlink(missing_ok=True)
    return (torch.from_numpy(kept["mean"]), torch.from_numpy(kept["root"])), tuple(kept["score"].tolist())


@torch.no_grad()
def features(inception: InceptionV3, images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) of any size -> features (N, 2048), float32 on the CPU."""
    x = data.to_float(images.to(inception.fc.weight.device)).contiguous(memory_format=torch.channels_last)
    x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    # a GPU's default, TensorFloat-32, has three decimal digits
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return inception.features(x).cpu()


def read_images(files: list[Path], batch: int) -> Iterator[Tensor]:
    """Images of files, uint8 batches (N, 3, H, W). Raises BadInput for one that is no image, or of another size."""

    def read(path: Path) -> Tensor:
        try:
            return datasets.read_image(path)
        except Exception as error:  # Pillow's decoders raise almost anything
            raise BadInput(f"{path} is no image that Pillow can read ({error})") from error

    _, height, width = read(files[0]).shape
    batch = max(1, min(batch, 2**26 // (height * width)))  # large images must not fill the memory
    with ThreadPoolExecutor() as pool:
        for i in range(0, len(files), batch):
            images = list(pool.map(read, files[i : i + batch]))
            for path, (_, h, w) in zip(files[i:], [image.shape for image in images]):
                if (h, w) != (height, width):
                    sizes = f"{path} has {w}x{h} pixels, {files[0].name} {width}x{height}"
                    raise BadInput(f"{sizes}: a FID is of images of one size")
            yield torch.stack(images)


if __name__ == "__main__":
    cli.run(main)
