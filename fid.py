"""FID, the Fréchet Inception distance between two sets of images: how far apart what Inception-v3 sees in them lies.

    python fid.py DIR_A DIR_B

Every image becomes 2,048 numbers, a set of images their mean and covariance, and two sets the Fréchet distance of the
two Gaussians that have these (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium"). A FID is comparable with others from the same weights, the same resizing and as many images, and
with no others: the fewer images, the larger it is, also between two sets of the same kind.

Images are resized to 299x299 as pytorch-fid does: bilinearly (pixel centres at half-integers, `align_corners=False`),
without antialiasing, in float32 and not rounded. Two networks are known, told apart by what the weight file holds:
torchvision's, and the literature's, the TensorFlow graph of 2015 that published FIDs come from.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

import data
from lab import cli
from lab.files import BadInput, digest_of, download, exclusive, read_tensors

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
    sets = [data.image_files(folder) for folder in args.folders]
    for folder, files in zip(args.folders, sets, strict=True):
        if len(files) < 2:
            raise BadInput(f"{folder} holds {len(files)} images ({data.SUFFIXES}); a FID takes two at least")
    inception = load(args.inception_weights, args.device)
    gaussians = []
    for folder, files in zip(args.folders, sets, strict=True):
        gaussians.append(gaussian(inception, read_images(files, args.batch), len(files), str(folder)))
    of = " and ".join(f"{len(files):,}" for files in sets)
    print(f"FID ({inception.weights}) of {of} images: {distance(*gaussians[0], *gaussians[1]):.4f}")


def add_weights(parser: argparse.ArgumentParser, default: str | None = "torchvision") -> None:
    parser.add_argument(
        "--inception-weights",
        metavar="WEIGHTS",
        default=default,
        help="torchvision (the default) or literature, downloaded on first use, or a FILE with the weights of either",
    )


# --- the distance -----------------------------------------------------------------------------------


def mean_and_covariance(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64, of feature vectors that come in batches (N, D).

    Memory does not grow with the number of vectors. Raises ValueError for fewer than two of them, or NaN in one.
    """
    n, mean, scatter = 0, 0, 0
    for x in batches:
        x = x.double()
        delta, new = x.mean(0) - mean, len(x)
        centred = x - x.mean(0)
        # the pairwise update of Chan et al. 1979: no difference of large sums, in which digits would cancel
        scatter = scatter + centred.T @ centred + delta.outer(delta) * (n * new / (n + new))
        mean, n = mean + delta * (new / (n + new)), n + new
    if n < 2:
        raise ValueError(f"a covariance takes two images at least, and here is {n}")
    if not scatter.isfinite().all():
        raise ValueError("Inception's features are no finite numbers; its weights cannot be right")
    return mean, scatter / (n - 1)


def frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """|mu1 - mu2|^2 + Tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2))  (Heusel et al. 2017, eq. 6), in float64, never negative.

    mu (D,), cov (D, D) symmetric and positive semi-definite. The root of the product, which is not symmetric, is never
    taken: it is inaccurate or complex where there are fewer images than features. `distance` says what is instead.
    """
    mu1, cov1, mu2, cov2 = (torch.as_tensor(x, dtype=torch.float64) for x in (mu1, cov1, mu2, cov2))
    return distance(mu1, symmetric_root(cov1), mu2, symmetric_root(cov2))


Gaussian = tuple[Tensor, Tensor]  # mean (D,), and the root (D, r) of a covariance of rank r


def symmetric_root(cov: Tensor) -> Tensor:
    """R (D, r) with R R^T = cov: eigenvectors times the roots of those r eigenvalues that are not zero."""
    values, vectors = torch.linalg.eigh(cov)
    # a zero that rounding has made 1e-16 would be 1e-8 as a root
    there = values > values.max() * len(cov) * torch.finfo(cov.dtype).eps
    return vectors[:, there] * values[there].sqrt()


def distance(mu1: Tensor, root1: Tensor, mu2: Tensor, root2: Tensor) -> float:
    """The Fréchet distance of two Gaussians with covariances R1 R1^T and R2 R2^T, where R1 is (D, r1), R2 (D, r2).

    R1^T R2 has the singular values whose sum is the trace of the root: (R1 R1^T R2 R2^T)^(1/2) has the same non-zero
    eigenvalues as (R1^T R2 R2^T R1)^(1/2). And Tr(R R^T) is the sum of R's squares.
    """
    trace_of_root = torch.linalg.svdvals(root1.T @ root2).sum()
    result = (mu1 - mu2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * trace_of_root
    return max(result.item(), 0.0)  # of a set with itself rounding leaves 1e-12, of either sign


# --- Inception-v3 -----------------------------------------------------------------------------------


class Conv(nn.Module):
    """Convolution, batch norm, ReLU: torchvision's BasicConv2d. Padded to keep the size, unless it has a stride."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = tuple(k // 2 if pad and stride == 1 else 0 for k in kernel)
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


# What goes on side by side in a block, by the names that torchvision gives it, and one after another in each: a
# convolution's channels, its kernel, and a stride of 2. Two in a list share their input. "branch_pool" begins with a
# pooling.
Branches = dict[str, list]


def block_a(pool: int) -> Branches:
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pool, 1)],
    }


def block_c(c: int) -> Branches:
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, (1, 7)), (192, (7, 1))],
        "branch7x7dbl": [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))],
        "branch_pool": [(192, 1)],
    }


BLOCK_B: Branches = {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)], "branch_pool": []}
BLOCK_D: Branches = {
    "branch3x3": [(192, 1), (320, 3, 2)],
    "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
    "branch_pool": [],
}
BLOCK_E: Branches = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), [(384, (1, 3)), (384, (3, 1))]],
    "branch3x3dbl": [(448, 1), (384, 3), [(384, (1, 3)), (384, (3, 1))]],
    "branch_pool": [(192, 1)],
}


class Block(nn.Module):
    """Branches that see the same input, and whose outputs are stacked, in this order."""

    def __init__(self, channels: int, branches: Branches, pool: nn.Module):
        super().__init__()
        self.branches = []  # of each the modules one after another, each a list of one or of two side by side
        for branch, path in branches.items():
            width, modules = channels, [[pool]] if branch == "branch_pool" else []
            for i, step in enumerate(path, 1):
                beside = step if isinstance(step, list) else [step]
                modules.append([Conv(width, *conv) for conv in beside])
                width = sum(out for out, *_ in beside)
                for conv, letter in zip(modules[-1], "ab" if len(beside) > 1 else [""], strict=True):
                    self.add_module(f"{branch}_{i}{letter}" if len(path) > 1 else branch, conv)
            self.branches.append(modules)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for modules in self.branches:
            y = x
            for beside in modules:
                y = beside[0](y) if len(beside) == 1 else torch.cat([module(y) for module in beside], 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


class InceptionV3(nn.Module):
    """Szegedy et al. 2016, "Rethinking the Inception Architecture", with torchvision's `state_dict` and outputs.

    With `literature` it is the network of published FIDs instead: 1,008 classes, average pooling that leaves the
    padding out, and max pooling in the last block.
    """

    def __init__(self, literature: bool = False):
        super().__init__()
        average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=not literature)
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
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
        if not literature:  # only trained with, but in the file
            auxiliary = {"conv0": Conv(768, 128, 1), "conv1": Conv(128, 768, 5), "fc": nn.Linear(768, 1000)}
            self.AuxLogits = nn.ModuleDict(auxiliary)

    def features(self, x: Tensor) -> Tensor:
        """Images (N, 3, 299, 299) in [-1, 1] -> (N, 2048), the last block's mean over all places."""
        for name, module in self.named_children():
            if name == "fc":
                break
            x = module(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 299, 299) in [-1, 1] -> logits (N, classes)."""
        return self.fc(self.features(x))


# --- weights, images, features ----------------------------------------------------------------------


def weights_path(weights: str) -> Path:
    """The file that --inception-weights means; torchvision's and the literature's lie in torch's hub directory."""
    if weights not in WEIGHTS:
        return Path(weights)
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS[weights].rpartition("/")[2]


def hash_in(path: Path) -> str:
    """The first digits of a file's SHA-256, as torch's hub has them in the name: "" where there are none."""
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    return found[1] if found else ""


def load(weights: str, device: torch.device | str = "cpu") -> InceptionV3:
    """The network of --inception-weights, ready to be asked; its `.weights` says in a word which it is.

    Raises BadInput where the file is not there, or holds anything but the weights of one of the two networks.
    """
    path = weights_path(weights)
    if weights in WEIGHTS and not path.exists():
        with exclusive(path, wait=True):
            if not path.exists():  # another process may have fetched it meanwhile
                download(WEIGHTS[weights], path, hash_in(path), "sha256")
    try:
        sha256 = digest_of(path, "sha256")
    except OSError as error:
        raise BadInput(f"--inception-weights {path}: {error.strerror}") from error
    if not sha256.startswith(hash_in(path)):
        raise BadInput(f"{path} is damaged: its SHA-256 is not {hash_in(path)}...; delete it and fetch it again")
    kind = "a file of Inception-v3's weights, torchvision's or the literature's"
    state = read_tensors(path, kind)
    try:
        literature = len(state["fc.bias"]) == 1008
        inception = InceptionV3(literature)
        inception.load_state_dict(state)
    except Exception as error:  # what somebody has made up can be wrong in any way
        raise BadInput(f"{path} is not {kind}: it holds other tensors") from error
    for module in inception.modules():
        if isinstance(module, Conv):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv.eval(), module.bn.eval()), nn.Identity()
    inception.sha256 = sha256
    inception.weights = f"{'literature' if literature else 'torchvision'} {sha256[:8]}"
    return inception.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def gaussian(inception: InceptionV3, batches: Iterable[Tensor], n: int, what: str) -> Gaussian:
    """What `distance` takes of n uint8 images that come in batches (N, 3, H, W); `what` names them.

    Raises BadInput for fewer than two images, and where the network's answer is no number.
    """
    with tqdm(total=n, desc=f"Inception on {what}", unit="img", leave=False) as bar:

        def seen() -> Iterator[Tensor]:
            for images in batches:
                yield features(inception, images)
                bar.update(len(images))

        try:
            mean, cov = mean_and_covariance(seen())
        except ValueError as error:
            raise BadInput(f"no FID of {what}: {error}") from error
    return mean, symmetric_root(cov)


@torch.no_grad()
def features(inception: InceptionV3, images: Tensor) -> Tensor:
    """uint8 images (N, 3, H, W) of any size -> features (N, 2048), float32 on the CPU."""
    x = data.to_float(images.to(inception.fc.weight.device)).contiguous(memory_format=torch.channels_last)
    x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    # a GPU's default, TensorFloat-32, has three decimal digits
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return inception.features(x).cpu()


def read_images(files: list[Path], batch: int) -> Iterator[Tensor]:
    """uint8 batches (N, 3, H, W) of image files, decoded while the batch before is looked at.

    Raises BadInput for a file that is no image, or has another size than the first.
    """

    def read(path: Path) -> Tensor:
        try:
            return data.read_image(data.image_bytes(path))
        except Exception as error:  # Pillow's decoders raise almost anything
            raise BadInput(f"{path} is no image that Pillow can read ({error})") from error

    size, ahead = None, []
    pixels = read(files[0]).numel() // 3
    batch = max(1, min(batch, 2**26 // pixels))  # of large images fewer at a time, or they would fill the memory
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(files) + batch, batch):
            now, ahead = list(ahead), pool.map(read, files[first : first + batch])
            for image, path in zip(now, files[first - batch :]):
                size = size or image.shape
                if image.shape != size:
                    (_, h, w), (_, height, width) = image.shape, size
                    raise BadInput(
                        f"{path} has {w}x{h} pixels, {files[0].name} {width}x{height}: a FID is of images of one size"
                    )
            if now:
                yield torch.stack(now)


if __name__ == "__main__":
    cli.run(main)
