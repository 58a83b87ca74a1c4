"""Measure how the cost of training, sampling and attacks grows, and draw it.

    python -m tools.growth --out results/growth.json --figure docs/growth.png

Each point is measured on the CPU in a process of its own with one thread, in float32, in about a second. All of them
take a minute or two. What would take longer is extrapolated: it is proportional to the x axis. The figure shows it as a
hollow point.
"""

from pathlib import Path

import torch

from data import to_float
from dualmd import NoiseSchedule
from lab import cli, figures, hardware
from lab.releases import attacker_at
from metrics import nearest
from tools.bench import Measured, apart, learn, machine, repeated, save, this_network
from unet import UNet, UNetConfig

CPU, BATCH, SIDE, CH = torch.device("cpu"), 4, 32, 32
QUERIES = {"loss": 1, "pia": 2, "secmi": 11, "rediffuse": 30}  # of an attack, for each image
T = {"secmi": 100}  # the timestep that these queries belong to; the number is another one at others
# axis: its name, the measured values, those that are extrapolated
AXES = {
    "side": ("training step, an image,\nby its side", [16, 32, 48, 64], []),
    "parameters": ("training step, an image,\nby parameters", [8, 16, 32, 64, 128], []),
    "images": ("an epoch,\nby training images", [16, 64, 256], [50_000]),
    "timesteps": ("sampling, an image,\nby denoising steps", [5, 20], [100, 1000]),
    "queries": ("attack, an image,\nby queries", list(QUERIES), []),
    "copies": ("search for a copy,\nby training images", [512, 2048, 8192], [50_000]),
    "processes": ("training step, an image,\nby processes", [1, 2], []),
}


def network(ch: int) -> UNetConfig:
    """DDPM's network for CIFAR-10, with so many channels."""
    return UNetConfig(ch=ch, groups=min(32, ch // 4))


def cost(axis: str, x: int | str) -> Measured:
    """Times a second, operations of one time, and peak memory, at one point of an axis."""
    torch.set_num_threads(1)
    hardware.reuse_memory()
    side = x if axis == "side" else SIDE
    stored = torch.randint(256, (x if axis in ("images", "copies") else BATCH, 3, side, side), dtype=torch.uint8)
    if axis == "copies":
        return repeated(lambda n: nearest(stored[: 64 * n], stored), 1, CPU, seconds=1)
    model, _, loss, sample = this_network(network(x if axis == "parameters" else CH), side, CPU)
    if axis in ("timesteps", "queries"):
        model.eval().requires_grad_(False)
        if axis == "timesteps":
            return repeated(lambda n: sample(n, x), BATCH, CPU, seconds=1)
        attacker, images = attacker_at(x, T.get(x, 200), torch.Generator()), to_float(stored)
        return repeated(lambda n: attacker(model, NoiseSchedule(), images[:n]), BATCH, CPU, seconds=1)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def train(n: int) -> None:
        for batch in stored[:n].split(BATCH):
            learn(loss(to_float(batch)), model, optimizer)

    return repeated(train, len(stored), CPU, seconds=1)


def points(axis: str) -> list[dict]:
    """Each point of an axis: x, seconds, operations, bytes, and whether it is measured."""
    name, measured, others = AXES[axis]
    found = []
    for x in measured:
        rate, flops, memory = apart(cost, axis, x, processes=x if axis == "processes" else 1)
        n = {"images": x, "copies": 1 / 64}.get(axis, 1)
        at = QUERIES[x] if axis == "queries" else x
        if axis == "parameters":
            at = sum(weight.numel() for weight in UNet(network(x)).parameters())
        found.append({"x": at, "seconds": n / rate, "flop": n * flops, "bytes": memory, "measured": True})
        what = f"{name.replace(chr(10), ' ')} {at:,}"
        print(f"{what}: {n / rate:.4g} s, {n * flops:.3g} FLOP, {memory / 1e9:.2f} GB", flush=True)
    last = found[-1]
    for x in others:
        times = x / last["x"]
        more = (x - last["x"]) * 3 * SIDE**2 if axis in ("images", "copies") else 0  # uint8 images
        its = {"seconds": last["seconds"] * times, "flop": last["flop"] * times, "bytes": last["bytes"] + more}
        found.append({"x": x} | its | {"measured": False})
    return found


def draw(path: Path, results: dict[str, list[dict]]) -> None:
    shown = [axis for axis in results if axis != "processes"]  # two numbers are no curve
    figure, axes = figures.plt.subplots(2, len(shown), figsize=(2.4 * len(shown), 4.6), sharex="col")
    for (above, below), axis in zip(axes.T, shown, strict=True):
        for ax, key, unit in ((above, "seconds", 1), (below, "bytes", 1e9)):
            x, y = [p["x"] for p in results[axis]], [p[key] / unit for p in results[axis]]
            ax.plot(x, y, color="#0072B2", linewidth=1)
            for at, value, p in zip(x, y, results[axis], strict=True):
                ax.plot(at, value, "o", color="#0072B2", fillstyle="full" if p["measured"] else "none")
            ax.set(xscale="log", yscale="log")
            ax.yaxis.set_major_locator(figures.plt.LogLocator(subs=(1,) if max(y) > 100 * min(y) else (1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(figures.plt.NullFormatter())
        below.set_ylim(0.2, 2)
        if axis == "side":
            below.set_xticks(x, x)
            below.xaxis.set_minor_locator(figures.plt.NullLocator())
        above.set_title(AXES[axis][0], fontsize=9)
    axes[0, 0].set_ylabel("seconds"), axes[1, 0].set_ylabel("memory in GB")
    figures.save(figure, path)


def main() -> None:
    parser = cli.plain_parser(__doc__)
    parser.add_argument("--out", type=Path, metavar="JSON", help="file for the numbers")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="file for the picture")
    args = parser.parse_args()
    results = {axis: points(axis) for axis in AXES}
    if args.out:
        save(args.out, {"machine": machine(CPU), "axes": results})
    if args.figure:
        draw(args.figure, results)


if __name__ == "__main__":
    cli.run(main)
