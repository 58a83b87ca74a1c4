"""Generate images with a model of a run, as one PNG grid.

    python sample.py --model dual

"dual" is DualMD: A and B take turns. All models start from the same noise, so that grids compare.
"""

import math
from pathlib import Path

import torch
from PIL import Image

import data
from dualmd import DualMD, sample
from lab import checkpoint, cli
from lab.files import BadInput, atomic_write


def main() -> None:
    parser = cli.parser(__doc__)
    what = parser.add_argument_group("what to generate")
    what.add_argument("--model", choices=["dual", *checkpoint.NAMES], default="dual", help="(default: %(default)s)")
    what.add_argument("--n", type=cli.natural, default=64, help="images (default: %(default)s)")
    what.add_argument("--seed", type=cli.seed, default=0, help="of the noise (default: %(default)s)")
    what.add_argument("--out", type=Path, help="PNG to write (default: RUN/samples-MODEL.png)")
    how = parser.add_argument_group("how")
    how.add_argument("--method", choices=["ddim", "ddpm"], default="ddim", help="sampler (default: %(default)s)")
    how.add_argument("--stride", type=cli.natural, default=10, help="of DDIM's timesteps (default: %(default)s)")
    how.add_argument("--eta", type=float, default=0.0, help="fresh noise in DDIM, 0 to 1 (default: %(default)s)")
    how.add_argument("--batch", type=cli.natural, default=256, help="images at a time (default: %(default)s)")
    args = parser.parse_args()
    run = cli.run_directory(args)
    if not 0 <= args.eta <= 1:
        raise BadInput(f"--eta {args.eta}: must be between 0 and 1")

    names = ["A", "B"] if args.model == "dual" else [args.model]
    loaded = [checkpoint.load(checkpoint.path_in(run, name)) for name in names]
    checkpoint.require_same_images(loaded[0], loaded[-1], run)
    models = [one.eps_model(args.device) for one in loaded]
    eps_model = DualMD(*models, stride=args.stride) if args.model == "dual" else models[0]

    cli.reuse_memory()
    generator = torch.Generator().manual_seed(cli.seed_for(args.seed, "sample"))
    size = loaded[0].dataset["size"]
    x = torch.cat(
        [
            sample(
                eps_model,
                loaded[0].noise_schedule(),
                (min(args.batch, args.n - first), 3, size, size),
                generator=generator,
                method=args.method,
                stride=args.stride,
                eta=args.eta,
                device=args.device,
                progress=True,
            )
            for first in range(0, args.n, args.batch)
        ]
    )

    out = args.out or run / f"samples-{args.model}.png"
    with atomic_write(out) as temporary:
        grid(data.to_uint8(x.cpu())).save(temporary, format="PNG")
    print(f"{out}: {args.n} images of {args.model}")


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
