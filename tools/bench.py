"""How fast this is, as a share of what the machine can do: images a second in training, sampling and each attack.

    python bench.py                      python bench.py --peers --out results/bench-laptop.json

The limit is the rate of a large matrix product in the same precision, measured in the same run: it cannot do a
network's operations, which torch.utils.flop_counter counts, any faster. Training is train.py itself, run as a user
would; small networks, as many at a time as there are cores, as reproduce.py trains. With --peers it is followed by
what people would otherwise train such a network with, as far as it is installed (pip install diffusers
denoising-diffusion-pytorch): plain steps on images in memory, in float32 and in bfloat16, as many at a time. Whatever
is compared is measured in turns, each time in a process of its own.
"""

import importlib.util
import inspect
import itertools
import json
import multiprocessing
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import attacks
from dualmd import NoiseSchedule, denoise, training_loss
from lab import checkpoint, cli
from lab.files import BadInput, atomic_write
from unet import UNet, UNetConfig

MEMBERS = {"tiny": 256, "small": 256, "cifar10": 128}  # to train on: a whole number of batches
EXPECTED = {"tiny": 500, "small": 200, "cifar10": 20}  # images a second on one core, to train for about --seconds
T, STEPS = 200, 100  # the timestep at which attacks look; the denoising steps of a generated image
PASSES = {  # forward passes an image, with a gradient counted as three
    "sampling": STEPS, "loss": 1, "sima": 1, "pia": 2, "pian": 2, "secmi": T // 10 + 1,
    "rediffuse": 6 * (T // 50 + 1), "gradient": 3,
}  # fmt: skip
PEERS = {
    "this network": "torch",
    "diffusers": "diffusers",
    "denoising-diffusion-pytorch": "denoising_diffusion_pytorch",
}
BATCH = {"cpu": 16, "cuda": 256}  # images at a time, in sampling and attacks
LIMIT = "matrix product"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = cli.plain_parser(__doc__)
    parser.add_argument(
        "--preset", nargs="+", choices=MEMBERS, default=["tiny", "cifar10"], help="default: %(default)s"
    )
    parser.add_argument("--peers", action="store_true", help="compare with what else is installed")
    parser.add_argument("--rounds", type=cli.natural, default=2, help="of each measurement (default: %(default)s)")
    parser.add_argument("--seconds", type=cli.natural, default=10, help="that one lasts, about (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write everything into this file, too")
    args = parser.parse_args()
    device = args.device

    machine = f"{processor(device)}, {os.cpu_count()} cores, torch {torch.__version__}"
    rows, limits = [], {}
    for row in [row for preset in args.preset for row in measure(preset, args)]:
        if row["what"] == LIMIT:  # the best of the whole run: others on this machine can only make it less
            limits[row["precision"]] = max([*row["images_per_s"], limits.get(row["precision"], 0)])
        else:
            rows.append(row)
    for row in rows:
        row["of_limit"] = max(row["images_per_s"]) * row["flop_per_image"] / limits[row["precision"]]
    print(machine)
    print("a matrix product: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits.items()))
    for preset in args.preset:
        print_table([row for row in rows if row["preset"] == preset])
    if args.out:
        result = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "command": shlex.join(["python", *sys.argv])}
        with atomic_write(args.out) as temporary:
            temporary.write_text(json.dumps(result | {"flop_per_s": limits, "rows": rows}, indent=1) + "\n")


def measure(preset: str, args) -> list[dict]:
    """Rows of the table. Each round measures all of them once, one after another."""
    device = args.device
    with tempfile.TemporaryDirectory() as folder:  # for the sizes that train.py gives the network
        train(preset, Path(folder), device, seconds=0)
        trained = checkpoint.load(checkpoint.path_in(Path(folder) / "0", "all"))
    config, size, batch = trained.unet, trained.dataset["size"], trained.settings["batch"]
    ours = "bfloat16" if cli.bfloat16_is_faster(device) else "float32"
    peers = [peer for peer, package in PEERS.items() if args.peers and importlib.util.find_spec(package)]
    how = device, args.seconds
    with tempfile.TemporaryDirectory() as folder:
        todo = {(LIMIT, precision): partial(apart, matrix_rate, precision, device) for precision in PRECISIONS}
        todo["training", ours] = partial(train, preset, Path(folder), *how)
        for peer, precision in itertools.product(peers, PRECISIONS):
            step = partial(apart, peer_rate, peer, config, size, batch, precision, True, *how)
            todo[f"training: {peer}, plainly", precision] = partial(step, processes=processes(preset, device))
        for what in PASSES:
            todo[what, "float32"] = partial(apart, rate_of, what, config, size, *how)
            for peer in peers if what == "sampling" else []:
                forward = partial(apart, peer_rate, peer, config, size, BATCH[device.type], "float32", False, *how)
                todo[f"sampling: {peer}, plainly", "float32"] = forward
        found = {key: [] for key in todo}
        with tqdm(total=len(found) * args.rounds, desc=preset, leave=False) as bar:
            for _ in range(args.rounds):
                for key, measurement in todo.items():
                    found[key].append(measurement())
                    bar.update()
    forward, step = (operations(UNet(config), size, training) for training in (False, True))
    rows = []
    for (what, precision), results in found.items():
        rates, memories = zip(*results, strict=True)
        flops = step if what == "training" else forward * PASSES.get(what, 0)
        if ":" in what:  # a peer says how many operations its network has
            rates, flops = [rate for rate, _ in rates], max(flops for _, flops in rates)
        rows.append(
            {"preset": preset, "what": what, "precision": precision, "images_per_s": [round(rate, 3) for rate in rates]}
            | {"flop_per_image": flops, "peak_memory": max(memories)}
        )
    return rows


def print_table(rows: list[dict]) -> None:
    print(f"\n{rows[0]['preset']:54} images/s  GFLOP/image  of the limit    memory")
    for row in rows:
        what = f"{row['what']}, {row['precision']}"
        print(
            f"  {what:50} {max(row['images_per_s']):10,.2f} {row['flop_per_image'] / 1e9:12,.2f} "
            f"{row['of_limit']:13.0%} {row['peak_memory'] / 1e9:6.2f} GB"
        )


# --- what is measured -------------------------------------------------------------------------------


def processes(preset: str, device: torch.device) -> int:
    """How many trainings at a time make the most of the machine."""
    return os.cpu_count() if device.type == "cpu" and preset != "cifar10" else 1


def train(preset: str, folder: Path, device: torch.device, seconds: int) -> tuple[float, int]:
    """train.py's images/s, all processes together, and the memory of one."""
    at_once = processes(preset, device)
    images = EXPECTED[preset] * seconds * (100 if device.type == "cuda" else 1)
    epochs = max(8 if seconds else 1, images // MEMBERS[preset])  # the first few fetch memory
    command = f"train.py --restart --split all --dataset toy --preset {preset} --device {device.type}"
    command += f" --members {MEMBERS[preset] if seconds else 2} --epochs {epochs} --run"
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if at_once > 1 else {})
    started = [
        subprocess.Popen(
            [sys.executable, *command.split(), folder / str(i)],
            cwd=Path(__file__).parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(at_once)
    ]
    rate, memory = 0, 0
    for process in started:
        output, errors = process.communicate()
        if process.returncode:
            raise BadInput(f"{command} failed: {errors.splitlines()[-1]}")
        if said := re.search(r"([\d,.]+) images/s, ([\d,.]+) GB", output):
            rate, memory = rate + float(said[1].replace(",", "")), max(memory, int(float(said[2]) * 1e9))
    return rate, memory


def rate_of(what: str, config: UNetConfig, size: int, device: torch.device, seconds: int) -> float:
    """Images/s of sampling, or of an attack at T."""
    cli.reuse_memory()
    model, schedule = UNet(config).to(device).eval().requires_grad_(False), NoiseSchedule()
    n = BATCH[device.type]
    x = torch.rand(n, 3, size, size, device=device) * 2 - 1
    if what == "sampling":
        steps = 4  # of STEPS
        each = lambda: denoise(model, schedule, x, 10 * (steps - 1))  # noqa: E731
        return repeated(each, n, device, seconds) * steps / STEPS
    attack = getattr(attacks, what)
    more = {"generator": torch.Generator()} if "generator" in inspect.signature(attack).parameters else {}
    return repeated(lambda: attack(model, schedule, x, T, **more), n, device, seconds)


def peer_rate(
    peer: str, config: UNetConfig, size: int, batch: int, precision: str, training: bool, device: torch.device, seconds
) -> tuple[float, float]:
    """Images/s of a peer's training step, or of its forward passes alone as those of a sampler; operations an image."""
    network, loss_of, optimizer = PLAIN[peer](config, size)
    flops = operations(network, size, training)
    network.to(device).train(training)
    x = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    t = torch.full((len(x),), T, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(x)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    if training:
        return repeated(step, len(x), device, seconds), flops
    with torch.no_grad():
        return repeated(lambda: network(x, t), len(x), device, seconds) / STEPS, flops * STEPS


def plain_network(config: UNetConfig, size: int):
    network, schedule = UNet(config), NoiseSchedule()

    def loss_of(x0: Tensor) -> Tensor:
        t, eps = torch.randint(1000, (len(x0),), device=x0.device), torch.randn_like(x0)
        return training_loss(network, schedule.add_noise(x0, t, eps), t, eps)

    return network, loss_of, torch.optim.Adam(network.parameters(), lr=2e-4)


def plain_diffusers(config: UNetConfig, size: int):
    """google/ddpm-cifar10-32, or a smaller one like it, and the step of examples/unconditional_image_generation."""
    from diffusers import DDPMScheduler, UNet2DModel

    attends = [level in config.attn for level in range(len(config.mult))]
    network = UNet2DModel(
        sample_size=size,
        layers_per_block=config.blocks,
        block_out_channels=[config.ch * mult for mult in config.mult],
        down_block_types=["AttnDownBlock2D" if attn else "DownBlock2D" for attn in attends],
        up_block_types=["AttnUpBlock2D" if attn else "UpBlock2D" for attn in reversed(attends)],
        norm_num_groups=config.groups,
        dropout=config.dropout,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def loss_of(x0: Tensor) -> Tensor:
        t, eps = torch.randint(1000, (len(x0),), device=x0.device), torch.randn_like(x0)
        return F.mse_loss(network(scheduler.add_noise(x0, eps, t), t).sample.float(), eps)

    return network, loss_of, torch.optim.AdamW(network.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6)


def plain_denoising_diffusion_pytorch(config: UNetConfig, size: int):
    """Its README's example at these sizes, and its Trainer's step. The network is another, of its own."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    network = Unet(dim=config.ch, dim_mults=config.mult, dropout=config.dropout)
    diffusion = GaussianDiffusion(network, image_size=size, timesteps=1000)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, (0.9, 0.99))
    return network, lambda x0: diffusion.to(x0.device)((x0 + 1) / 2), optimizer


PLAIN = dict(zip(PEERS, (plain_network, plain_diffusers, plain_denoising_diffusion_pytorch), strict=True))


# --- how ---------------------------------------------------------------------------------------------


def apart(function: Callable, *args, processes: int = 1):
    """function(*args) in a process of its own, and the most memory that it had, in bytes.

    With several `processes` at once each has one thread, and (rate, operations) comes with the sum of the rates.
    """
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(with_memory, processes, function, *args) for _ in range(processes)]
        results = [future.result() for future in futures]
    found, memory = results[0]
    if processes > 1:
        found = sum(rate for (rate, _), _ in results), found[1]
    return found, memory


def with_memory(processes: int, function: Callable, *args):
    if processes > 1:
        torch.set_num_threads(1)
    return function(*args), cli.peak_memory(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))


def repeated(step: Callable, images: int, device: torch.device, seconds: float) -> float:
    """Images/s, after a first time that does not count."""
    n, wait = 0, torch.cuda.synchronize if device.type == "cuda" else lambda: None
    step(), wait()
    began = time.perf_counter()
    while n == 0 or time.perf_counter() - began < seconds:
        step(), wait()
        n += 1
    return images * n / (time.perf_counter() - began)


def operations(network: nn.Module, size: int, training: bool) -> int:
    """Floating-point operations of a forward pass for one image; with the backward pass, if `training`."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        answer = network(torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.int64))
        if training:
            getattr(answer, "sample", answer).sum().backward()
    network.zero_grad()
    return counter.get_total_flops()


def matrix_rate(precision: str, device: torch.device) -> float:
    """Operations a second of a large matrix product: the fastest size, and as a 1x1 convolution if that is faster."""
    best, dtype = 0, PRECISIONS[precision]
    for n in [8192] if device.type == "cuda" else [1024, 2048]:
        a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
        image = a.T.reshape(1, n, n // 32, 32)
        for product in (lambda: a @ b, lambda: F.conv2d(image, b[:, :, None, None])):
            best = max(best, 2 * n**3 * repeated(product, 1, device, seconds=1))
    return best


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return torch.cpu.get_capabilities().get("cpu_name", platform.machine())  # not every processor has a name


if __name__ == "__main__":
    cli.run(main)
