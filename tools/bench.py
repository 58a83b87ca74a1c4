"""Measure how fast training, sampling and each attack are, also as a share of what this machine can do.

    python -m tools.bench                python -m tools.bench --peers --out results/bench-laptop.json

The limit is the speed of a large matrix product in the same precision, measured in the same run. The operations of a
network are counted by torch.utils.flop_counter. Training is train.py's own loop. Small networks are trained as
reproduce.py trains them: as many at a time as there are cores. --peers also measures plain training steps on images in
memory, in float32 and in bfloat16, of this network and of those of other libraries, if they are installed (pip install
diffusers denoising-diffusion-pytorch). Each round measures everything once, each in a process of its own.
"""

import importlib.util
import inspect
import io
import itertools
import json
import multiprocessing
import os
import platform
import shlex
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import attacks
import train
from dualmd import NoiseSchedule, denoise, training_loss
from lab import cli, hardware
from lab.files import atomic_write
from unet import UNet, UNetConfig

MEMBERS = 128  # images to train on: a whole number of batches
EXPECTED = {"tiny": 500, "small": 200, "cifar10": 20}  # images/s on one core; the length of a training follows from it
ATTACKS = ["loss", "sima", "pia", "pian", "secmi", "rediffuse", "gradient"]
T, STEPS = 200, 100  # the timestep of the attacks; the denoising steps of a generated image
PRECISIONS = ["float32", "bfloat16"]


def main() -> None:
    parser = cli.plain_parser(__doc__)
    presets = "presets (default: tiny cifar10)"
    parser.add_argument("--preset", nargs="+", choices=EXPECTED, default=["tiny", "cifar10"], help=presets)
    parser.add_argument("--peers", action="store_true", help="comparison with the libraries that are installed")
    parser.add_argument("--rounds", type=cli.natural, default=2, help="number of rounds (default: %(default)s)")
    seconds = "rough time of one measurement (default: %(default)s)"
    parser.add_argument("--seconds", type=cli.natural, default=10, help=seconds)
    parser.add_argument("--out", type=Path, metavar="JSON", help="file for all results")
    args = parser.parse_args()

    limits = dict.fromkeys(PRECISIONS, 0)
    rows = [row for preset in args.preset for row in measure(preset, args, limits)]
    for row in rows:
        row["of_limit"] = max(row["images_per_s"]) * row["flop_per_image"] / limits[row["precision"]]
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())  # not every processor has a name
    processor = torch.cuda.get_device_name() if args.device.type == "cuda" else name
    machine = f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(machine)
    print("matrix product: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits.items()))
    for preset in args.preset:
        print_table([row for row in rows if row["preset"] == preset])
    if args.out:
        command = shlex.join(["python", "-m", "tools.bench", *sys.argv[1:]])
        result = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "command": command}
        with atomic_write(args.out) as temporary:
            temporary.write_text(json.dumps(result | {"flop_per_s": limits, "rows": rows}, indent=1) + "\n")


def measure(preset: str, args: Namespace, limits: dict[str, float]) -> list[dict]:
    """The rows of the table for this preset, without `of_limit`. `limits` keeps the best operations/s."""
    device = args.device
    at_once = os.cpu_count() if device.type == "cpu" and preset != "cifar10" else 1  # trainings
    ours = "bfloat16" if hardware.bfloat16_is_faster(device) else "float32"
    peers = [peer for peer, (package, _) in NETWORKS.items() if args.peers and importlib.util.find_spec(package)]
    todo = {("training", ours): (at_once, training)}
    for peer, precision in itertools.product(peers, PRECISIONS):
        todo[f"training: {peer}, plainly", precision] = at_once, plain_training, peer, precision
    for what in ["sampling", *ATTACKS]:
        todo[what, "float32"] = 1, asked, what, "this network"
        for peer in peers[1:] if what == "sampling" else []:
            todo[f"sampling: {peer}", "float32"] = 1, asked, what, peer
    rows = [{"preset": preset, "what": what, "precision": precision, "images_per_s": []} for what, precision in todo]
    for _ in range(args.rounds):
        for precision in PRECISIONS:  # the best counts: other programs on the machine can only slow it down
            limits[precision] = max(limits[precision], apart(matrix_product, precision, device)[0])
        for row, (processes, *call) in zip(rows, tqdm(todo.values(), preset, leave=False), strict=True):
            rate, flops, memory = apart(*call, preset, device, args.seconds, processes=processes)
            row["images_per_s"].append(round(rate, 3))
            row |= {"flop_per_image": flops, "peak_memory": max(memory, row.get("peak_memory", 0))}
    return rows


def print_table(rows: list[dict]) -> None:
    print(f"\n{rows[0]['preset']:54} images/s  GFLOP/image  of the limit    memory")
    for row in rows:
        what, rate, gflops = f"{row['what']}, {row['precision']}", max(row["images_per_s"]), row["flop_per_image"] / 1e9
        print(f"  {what:50} {rate:10,.2f} {gflops:12,.2f} {row['of_limit']:13.0%} {row['peak_memory'] / 1e9:6.2f} GB")


# --- how it is measured ------------------------------------------------------------------------------

Measured = tuple[float, int, int]  # images/s, operations of one image, peak memory in bytes


def apart(function: Callable[..., Measured], *args, processes: int = 1) -> Measured:
    """function(*args) in a process of its own.

    Several `processes` run at the same time, with one thread each. Their images/s are added up.
    """
    threads, spawn = 1 if processes > 1 else torch.get_num_threads(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, torch.set_num_threads, (threads,)) as pool:
        futures = [pool.submit(function, *args) for _ in range(processes)]
        rates, flops, memories = zip(*(future.result() for future in futures), strict=True)
    return sum(rates), flops[0], max(memories)


def repeated(step: Callable[[Tensor], object], x: Tensor, seconds: float) -> Measured:
    """step(x), repeated for so many seconds after a first time."""
    n, wait = 0, torch.cuda.synchronize if x.is_cuda else lambda: None
    with FlopCounterMode(display=False) as counter:
        step(x[:1])
    step(x), wait()
    began = time.perf_counter()
    while n == 0 or time.perf_counter() - began < seconds:
        step(x), wait()
        n += 1
    rate = len(x) * n / (time.perf_counter() - began)
    return rate, counter.get_total_flops(), hardware.peak_memory(x.device)


# --- what is measured --------------------------------------------------------------------------------


def matrix_product(precision: str, device: torch.device) -> Measured:
    """Operations/s of a large matrix product: the fastest size, and also written as a 1x1 convolution."""
    best = 0
    for n in [8192] if device.type == "cuda" else [1024, 2048]:
        a, b = (torch.rand(n, n, device=device).to(getattr(torch, precision)) for _ in range(2))
        image = a.T.reshape(1, n, n // 32, 32)
        for product in (lambda _: a @ b, lambda _: F.conv2d(image, b[:, :, None, None])):
            rate, flops, memory = repeated(product, a, seconds=1)
            best = max(best, rate / n * flops)
    return best, 1, memory


def training(preset: str, device: torch.device, seconds: int) -> Measured:
    """train.py's own loop, on toy images, for about so many seconds."""
    n = EXPECTED[preset] * seconds * (100 if device.type == "cuda" else 1)
    epochs = max(8, n // MEMBERS)  # the first few epochs still allocate memory
    words = f"--split all --dataset toy --preset {preset} --members {MEMBERS} --epochs {epochs} --device {device.type}"
    silence = io.StringIO()
    with tempfile.TemporaryDirectory() as run, redirect_stdout(silence), redirect_stderr(silence):
        args = train.parse_args([*words.split(), "--run", run])
        wanted, images = train.new_model(args)
        rate, memory = train.train(wanted, images, [], args), hardware.peak_memory(device)
    _, flops, _ = plain_training("this network", "float32", preset, torch.device("cpu"), seconds=0, batch=1)
    return rate, flops, memory


def plain_training(
    name: str, precision: str, preset: str, device: torch.device, seconds: int, batch: int | None = None
) -> Measured:
    """Training steps as one would write them, on images in memory."""
    network, x = created(name, preset, batch or train.PRESETS[preset]["train"]["batch"], device)
    schedule = NoiseSchedule()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step(x0: Tensor) -> None:
        t, eps = torch.randint(1000, (len(x0),), device=device), torch.randn_like(x0)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = training_loss(network, schedule.add_noise(x0, t, eps), t, eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return repeated(step, x, seconds)


def asked(what: str, name: str, preset: str, device: torch.device, seconds: int) -> Measured:
    """Sampling, or an attack at T."""
    hardware.reuse_memory()
    network, x = created(name, preset, 256 if device.type == "cuda" else 16, device)
    network, schedule = network.eval().requires_grad_(False), NoiseSchedule()
    if what == "sampling":
        part = 25  # of the steps
        rate, flops, memory = repeated(lambda x: denoise(network, schedule, x, 10 * (STEPS // part - 1)), x, seconds)
        return rate / part, flops * part, memory
    attack = getattr(attacks, what)
    more = {"generator": torch.Generator()} if "generator" in inspect.signature(attack).parameters else {}
    return repeated(lambda x: attack(network, schedule, x, T, **more), x, seconds)


def created(name: str, preset: str, batch: int, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A network, and a batch of random images in [-1, 1]."""
    config, size = train.PRESETS[preset]["unet"], train.PRESETS[preset]["size"]
    return NETWORKS[name][1](config, size).to(device), torch.rand(batch, 3, size, size, device=device) * 2 - 1


def diffusers(config: UNetConfig, size: int) -> nn.Module:
    """The network of google/ddpm-cifar10-32, at these sizes."""
    from diffusers import UNet2DModel

    attends = ["Attn" if level in config.attn else "" for level in range(len(config.mult))]
    network = UNet2DModel(
        sample_size=size,
        layers_per_block=config.blocks,
        block_out_channels=[config.ch * mult for mult in config.mult],
        down_block_types=[f"{attn}DownBlock2D" for attn in attends],
        up_block_types=[f"{attn}UpBlock2D" for attn in reversed(attends)],
        norm_num_groups=config.groups,
        dropout=config.dropout,
        attention_head_dim=None,
        downsample_padding=0,
    )
    network.register_forward_hook(lambda module, arguments, answer: answer.sample)
    return network


def denoising_diffusion_pytorch(config: UNetConfig, size: int) -> nn.Module:
    """The network of that library: its architecture is another one."""
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=config.ch, dim_mults=config.mult, dropout=config.dropout)


NETWORKS = {  # the package to look for, and an eps model of these sizes
    "this network": ("torch", lambda config, size: UNet(config)),
    "diffusers": ("diffusers", diffusers),
    "denoising-diffusion-pytorch": ("denoising_diffusion_pytorch", denoising_diffusion_pytorch),
}


if __name__ == "__main__":
    cli.run(main)
