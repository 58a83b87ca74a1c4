"""Generate images with a model of a run, as one PNG grid.

    python sample.py --model dual

"dual" is DualMD: A and B take turns. All models start from the same noise, so that their grids can be compared.
"""

import math
from argparse import Namespace
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lab import checkpoint, cli
from lab.files import BadInput, atomic_write, key_of, require_writable
from lab.hardware import reuse_memory
from lab.releases import generate, identity


def parse_args(words: list[str] | None = None) -> Namespace:
    """The flags in `words`; by default those of the command line."""
    parser = cli.parser(__doc__)
    what = parser.add_argument_group("what to generate")
    models = "model, or dual for A and B in turns (default: %(default)s)"
    what.add_argument("--model", choices=["dual", *checkpoint.NAMES], default="dual", help=models)
    what.add_argument("--n", type=cli.natural, default=64, help="number of images (default: %(default)s)")
    what.add_argument("--seed", type=cli.seed, default=0, help="seed of the noise (default: %(default)s)")
    what.add_argument("--out", type=Path, help="output PNG (default: RUN/samples-MODEL.png)")
    how = parser.add_argument_group("how")
    how.add_argument("--method", choices=["ddim", "ddpm"], default="ddim", help="sampler (default: %(default)s)")
    how.add_argument("--stride", type=cli.natural, default=10, help="DDIM's step in timesteps (default: %(default)s)")
    how.add_argument("--eta", type=float, default=0.0, help="DDIM's fresh noise, 0 to 1 (default: %(default)s)")
    how.add_argument("--batch", type=cli.natural, help="images at a time (default: 128, on a GPU 256)")
    args = parser.parse_args(words)
    args.run = args.run or Path("runs") / args.dataset
    args.batch = args.batch or (256 if args.device.type == "cuda" else 128)
    args.out = args.out or args.run / f"samples-{args.model}.png"
    if not 0 <= args.eta <= 1:
        raise BadInput(f"--eta {args.eta}: must be between 0 and 1")
    require_writable(args.out)
    return args


def main() -> None:
    args = parse_args()
    names = ["A", "B"] if args.model == "dual" else [args.model]
    loaded = [checkpoint.load(checkpoint.path_in(args.run, name)) for name in names]
    checkpoint.require_same_images(loaded[0], loaded[-1], args.run)
    networks = [one.eps_model(args.device) for one in loaded]

    reuse_memory()
    generator = torch.Generator().manual_seed(cli.seed_for(args.seed, "sample"))
    x_T = torch.randn((args.n, 3, *[loaded[0].dataset["size"]] * 2), generator=generator)
    how = {"method": args.method, "stride": args.stride, "eta": args.eta}
    its, path = identity(loaded[0], *loaded), args.run / "generated" / f"samples-{args.model}.npz"
    key, how = key_of(its, str((args.n, args.seed, args.batch, how))), how | {"generator": generator}
    images = generate(networks, loaded[0].noise_schedule(), x_T, args, path, key, **how)

    said = PngInfo()
    said.add_text("Description", f"dualmd sample {its}")
    with atomic_write(args.out) as temporary:
        grid(images).save(temporary, format="PNG", pnginfo=said)
    print(f"{args.out}: {args.n} images of {args.model}")


def grid(images: torch.Tensor) -> Image.Image:
    """uint8 (N, 3, S, S) -> a nearly square picture, enlarged so that each image has at least 64 pixels a side."""
    n, _, size, _ = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = torch.full((rows * columns, 3, size, size), 255, dtype=torch.uint8)
    cells[:n] = images
    pixels = cells.view(rows, columns, 3, size, size).permute(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)
    zoom = max(1, 64 // size)
    return Image.fromarray(pixels.numpy()).resize((columns * size * zoom, rows * size * zoom), Image.Resampling.NEAREST)


if __name__ == "__main__":
    cli.run(main)
