"""Measure how fast training, sampling and attacks are: beside other libraries, and as a share of the machine's limit.

    python -m tools.bench                python -m tools.bench --peers --out results/bench-laptop.json

It takes ten minutes at most, and prints and saves each speed as it is measured. A round measures everything once, each
in a process of its own. The result is the median of the rounds. The limit is the speed of a large matrix product in the
same precision; torch.utils.flop_counter counts the operations of a network. "this project" trains with train.py's own
loop, and samples and attacks as sample.py and evaluate.py do. "this network, plainly" and the other libraries (pip
install diffusers denoising-diffusion-pytorch) are used as the libraries' documentation tells, in float32 and, where
that is faster, under bfloat16 autocast. Small networks are trained as reproduce.py trains them, as many at a time as
there are cores.
"""

import contextlib
import functools
import importlib
import io
import itertools
import json
import multiprocessing
import platform
import shlex
import statistics
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

import train
from dualmd import EpsModel, NoiseSchedule, denoise, training_loss
from lab import cli, hardware
from lab.checkpoint import load_images
from lab.files import atomic_write, in_a_line
from lab.releases import attacker_at
from unet import UNet, UNetConfig

EXPECTED = {"tiny": 600, "small": 200, "cifar10": 20}  # images/s on one core; the length of a training follows from it
BATCH = {"tiny": 128, "small": 32, "cifar10": 16}  # images at a time on a CPU; at most as many as the preset trains on
STEPS, MEASURED_STEPS = 100, 2  # denoising steps of an image; those that are measured, and then scaled
T = {"pia": 200, "secmi": 50, "gsa": 200}  # of the attacks; SecMI at t = 200 makes 3.5 times as many queries
PRECISIONS = ["float32", "bfloat16"]
OURS, PLAIN = "this project", "this network, plainly"


def main() -> None:
    parser = cli.plain_parser(__doc__)
    presets = "presets (default: tiny cifar10)"
    parser.add_argument("--preset", nargs="+", choices=EXPECTED, default=["tiny", "cifar10"], help=presets)
    parser.add_argument("--peers", action="store_true", help="comparison with the libraries that are installed")
    parser.add_argument("--rounds", type=cli.natural, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="no round begins that ends later (default: 10)")
    seconds = "rough time of one measurement, at least one step (default: %(default)s)"
    parser.add_argument("--seconds", type=float, default=0.5, help=seconds)
    parser.add_argument("--out", type=Path, metavar="JSON", help="file for all results")
    args = parser.parse_args()

    command = shlex.join(["python", "-m", "tools.bench", *sys.argv[1:]])
    result = {"machine": machine(args.device), "date": time.strftime("%Y-%m-%d"), "command": command}
    result |= {"flop_per_s": dict.fromkeys(precisions(args.device), 0)}
    result["rows"] = [row for preset in args.preset for row in rows_of(preset, installed() if args.peers else [], args)]
    print(result["machine"], flush=True)
    began = time.monotonic()
    for number in range(args.rounds):
        measure(result, args, show=number == 0)
        if (time.monotonic() - began) * (number + 2) / (number + 1) > 60 * args.minutes:
            break
    products = [f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in result["flop_per_s"].items()]
    print(f"\nmedians of {number + 1} rounds; matrix product: {', '.join(products)}")
    for preset in args.preset:
        print_table([row for row in result["rows"] if row["preset"] == preset], result["flop_per_s"])


def machine(device: torch.device) -> str:
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())  # not every processor has a name
    processor = torch.cuda.get_device_name() if device.type == "cuda" else name
    return f"{processor}, {torch.get_num_threads()} cores, torch {torch.__version__}"


def precisions(device: torch.device) -> list[str]:
    """A processor without bfloat16 would need most of the ten minutes for it."""
    return PRECISIONS if hardware.bfloat16_is_faster(device) else PRECISIONS[:1]


def installed() -> list[str]:
    """The other libraries that can be imported. The others are named."""
    found = []
    for peer, (package, _) in NETWORKS.items():
        try:
            importlib.import_module(package)
            found.append(peer)
        except Exception as error:  # a build of torchvision for another torch raises almost anything
            print(f"{peer} is left out: {in_a_line(error)}")
    return [peer for peer in found if peer not in (OURS, PLAIN)]


def rows_of(preset: str, peers: list[str], args: Namespace) -> list[dict]:
    """The rows of the table, still without numbers."""
    its, rows = precisions(args.device), []
    for what in ("training", "sampling", *T):
        lower = what == "sampling" or (what == "training" and train.PRESETS[preset]["train"]["bfloat16"])
        who = [(OURS, its[-1] if lower else "float32")]
        if peers and what in ("training", "sampling", "pia"):
            who += itertools.product([PLAIN, *peers], its)
        rows += [{"preset": preset, "what": what, "who": one, "precision": precision} for one, precision in who]
    return [row | {"images_per_s": []} for row in rows]


def measure(result: dict, args: Namespace, show: bool) -> None:
    """Measure everything once, and save all that is known after each."""
    limits = result["flop_per_s"]
    for precision in limits:  # the best counts: other programs on the machine can only slow it down
        limits[precision] = max(limits[precision], apart(matrix_product, precision, args.device)[0])
    for row in tqdm(list(result["rows"]), "a round", leave=False):
        how = row["what"], row["who"], row["precision"], row["preset"], args.device, args.seconds
        several = row["what"] == "training" and row["preset"] != "cifar10" and args.device.type == "cpu"
        try:
            found = apart(timed, *how, processes=torch.get_num_threads() if several else 1)
        except Exception as error:
            if row["who"] in (OURS, PLAIN):
                raise
            tqdm.write(f"{row['who']} is left out of {row['what']}: {in_a_line(error)}")
            result["rows"].remove(row)
            continue
        rate, row["flop_per_image"], memory = found
        row["images_per_s"].append(float(f"{rate:.4g}"))
        row["peak_memory"] = max(memory, row.get("peak_memory", 0))
        if show:
            what = "{preset:8} {what:10} {who:28} {precision:9}".format(**row)
            tqdm.write(f"{what} {rate:10,.2f} images/s")
        if args.out:
            save(args.out, result)


def save(path: Path, result: dict) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def print_table(rows: list[dict], limits: dict[str, float]) -> None:
    print(f"\n{rows[0]['preset']:50} images/s  lowest  highest  GFLOP/image  of the limit    memory")
    speed = {}
    for row in rows:
        rates, name = row["images_per_s"], f"{row['what']}, {row['who']}, {row['precision']}"
        rate = speed[row["what"], row["who"], row["precision"]] = statistics.median(rates)
        share = rate * row["flop_per_image"] / limits[row["precision"]]
        print(f"  {name:46} {rate:10,.5g} {min(rates):7,.4g} {max(rates):8,.4g}", end=" ")
        print(f"{row['flop_per_image'] / 1e9:12,.2f} {share:13.0%} {row['peak_memory'] / 1e9:6.2f} GB")
    for what, default in [(what, precision) for what, who, precision in speed if who == OURS]:
        pairs = [(OURS, default, "float32")]  # what users meet; then at equal precision
        pairs += [(OURS if same == default else PLAIN, same, same) for same in limits]
        for one, mine, theirs in dict.fromkeys(pairs):
            peers = {who: rate for (its, who, p), rate in speed.items() if (its, p) == (what, theirs)}
            peers = {who: rate for who, rate in peers.items() if who not in (OURS, PLAIN)}
            if peers:
                best, ratio = max(peers, key=peers.get), speed[what, one, mine] / max(peers.values())
                print(f"  {what}: {one} in {mine} is {ratio:.2f} times as fast as {best} in {theirs}")


# --- how it is measured ------------------------------------------------------------------------------

Measured = tuple[float, int, int]  # images/s, operations of one image, peak memory in bytes


def apart(function: Callable[..., Measured], *args, processes: int = 1) -> Measured:
    """function(*args) in a process of its own.

    Several `processes` run at the same time, with one thread each. Their images/s are added up.
    """
    threads = 1 if processes > 1 else torch.get_num_threads()
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":  # imported once
        context.set_forkserver_preload(["torch._dynamo", *(package for package, _ in NETWORKS.values())])
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,)) as pool:
        futures = [pool.submit(function, *args) for _ in range(processes)]
        rates, flops, memories = zip(*(future.result() for future in futures), strict=True)
    return sum(rates), flops[0], max(memories)


def repeated(step: Callable[[int], object], n: int, device: torch.device, seconds: float) -> Measured:
    """step(n), which computes n images, repeated for so many seconds after a first time."""
    count, wait = 0, torch.cuda.synchronize if device.type == "cuda" else lambda: None
    flops, began = operations(step), time.perf_counter()
    step(n), wait()
    if time.perf_counter() - began > 2:
        count = 1  # a long step counts at once, a short one must wait until the memory is there
    else:
        began = time.perf_counter()
    while count == 0 or time.perf_counter() - began < seconds:
        step(n), wait()
        count += 1
    rate = n * count / (time.perf_counter() - began)
    return rate, flops, hardware.peak_memory(device)


def operations(step: Callable[[int], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step(1)
    return counter.get_total_flops()


# --- what is measured --------------------------------------------------------------------------------


def matrix_product(precision: str, device: torch.device) -> Measured:
    """Operations/s of a large matrix product: the fastest size, and also written as a 1x1 convolution."""
    best = 0
    for n in [8192] if device.type == "cuda" else [1024, 2048]:
        a, b = (torch.rand(n, n, device=device).to(getattr(torch, precision)) for _ in range(2))
        image = a.T.reshape(1, n, n // 32, 32)
        for product in (lambda _: a @ b, lambda _: F.conv2d(image, b[:, :, None, None])):
            rate, flops, memory = repeated(product, 1, device, seconds=0.3)
            best = max(best, rate * flops)
    return best, 1, memory


def timed(what: str, who: str, precision: str, preset: str, device: torch.device, seconds: float) -> Measured:
    """Training, sampling or an attack, as `who` does it."""
    its, batch = train.PRESETS[preset], 256 if device.type == "cuda" else BATCH[preset]
    if what == "training":
        batch = min(batch, its["train"]["batch"])
        if who == OURS:
            return own_training(preset, batch, device, seconds)
    network, eps_model, loss, sample = NETWORKS[who][1](its["unet"], its["size"], device)
    x, schedule = torch.rand(batch, 3, its["size"], its["size"], device=device) * 2 - 1, NoiseSchedule()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    attacker = attacker_at(what, T[what], torch.Generator()) if what in T else None
    network.train(what == "training").requires_grad_(what == "training")

    def autocast(n: int) -> torch.autocast:  # on one image the operations are counted, in float32
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16" and n > 1)

    def ask(x: Tensor, t: Tensor) -> Tensor:
        with autocast(len(x)):  # which the attacks switch off
            return eps_model(x, t)

    def step(n: int) -> None:
        if attacker:
            attacker(network if what == "gsa" else ask, schedule, x[:n])
            return
        with redirect_stderr(io.StringIO()), autocast(n):  # no progress bar
            value = loss(x[:n]) if what == "training" else sample(n, MEASURED_STEPS)
        if what == "training":
            learn(value, network, optimizer)

    rate, flops, memory = repeated(step, batch, device, seconds)
    part = STEPS // MEASURED_STEPS if what == "sampling" else 1
    return rate / part, flops * part, memory


def learn(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def own_training(preset: str, batch: int, device: torch.device, seconds: float) -> Measured:
    """train.py's own loop, on toy images in such batches, for about so many seconds."""
    steps = max(6, round(EXPECTED[preset] * seconds * (100 if device.type == "cuda" else 2) / batch))
    words = f"--split all --dataset toy --preset {preset} --members {batch} --steps {steps} --device {device.type}"
    with tempfile.TemporaryDirectory() as run, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        args = train.parse_args([*words.split(), "--run", run])
        wanted = train.new_model(args)
        images = load_images(wanted, None)
        wanted.settings["batch"] = batch
        rate, memory = train.train(wanted, images, [], args), hardware.peak_memory(device)
    _, _, loss, _ = this_network(wanted.unet, images.shape[-1], torch.device("cpu"))
    return rate, operations(lambda n: loss(torch.rand(n, *images.shape[1:])).backward()), memory


# --- networks: their package, and a function of sizes that makes one, as an eps model, its loss and its sampler ----

Made = tuple[nn.Module, EpsModel, Callable[[Tensor], Tensor], Callable[[int, int], object]]


def this_project(config: UNetConfig, size: int, device: torch.device) -> Made:
    """As sample.py and evaluate.py ask it; operations of one image are counted in this thread."""
    hardware.reuse_memory()
    network, _, loss, _ = this_network(config, size, device)
    models, schedule = [network, hardware.for_sampling(network, 1000)], NoiseSchedule()
    threads = contextlib.ExitStack()
    spread = [threads.enter_context(hardware.on_all_cores(model, device)) for model in models]

    def eps_model(x: Tensor, t: Tensor, which: int = 0) -> Tensor:
        return (spread if len(x) > 1 else models)[which](x, t)

    eps_model.threads = threads  # as long as the function is used

    def sample(n: int, steps: int) -> None:
        x = torch.randn(n, 3, size, size, device=device)
        denoise(functools.partial(eps_model, which=1), schedule, x, stride=schedule.T // steps)

    return network, eps_model, loss, sample


def this_network(config: UNetConfig, size: int, device: torch.device) -> Made:
    network, schedule = UNet(config).to(device), NoiseSchedule()

    def loss(x0: Tensor) -> Tensor:
        t, eps = torch.randint(1000, (len(x0),), device=device), torch.randn_like(x0)
        return training_loss(network, schedule.add_noise(x0, t, eps), t, eps)

    def sample(n: int, steps: int) -> None:
        denoise(network, schedule, torch.randn(n, 3, size, size, device=device), stride=schedule.T // steps)

    return network, network, loss, sample


def diffusers(config: UNetConfig, size: int, device: torch.device) -> Made:
    """The network of google/ddpm-cifar10-32, at these sizes."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel

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
    ).to(device)
    noising, pipeline = DDPMScheduler(num_train_timesteps=1000), DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def loss(x0: Tensor) -> Tensor:
        t, eps = torch.randint(1000, (len(x0),), device=device), torch.randn_like(x0)
        return F.mse_loss(network(noising.add_noise(x0, eps, t), t, return_dict=False)[0], eps)

    def sample(n: int, steps: int) -> None:
        pipeline(batch_size=n, num_inference_steps=steps, output_type="np")

    return network, lambda x, t: network(x, t).sample, loss, sample


def denoising_diffusion_pytorch(config: UNetConfig, size: int, device: torch.device) -> Made:
    """The network of that library: its architecture is another one."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    network = Unet(dim=config.ch, dim_mults=config.mult, dropout=config.dropout).to(device)
    how = {"image_size": size, "timesteps": 1000, "sampling_timesteps": MEASURED_STEPS}
    diffusion = GaussianDiffusion(network, **how).to(device)
    return network, network, lambda x0: diffusion((x0 + 1) / 2), lambda n, steps: diffusion.sample(batch_size=n)


NETWORKS = {
    OURS: ("torch", this_project),
    PLAIN: ("torch", this_network),
    "diffusers": ("diffusers", diffusers),
    "denoising-diffusion-pytorch": ("denoising_diffusion_pytorch", denoising_diffusion_pytorch),
}


if __name__ == "__main__":
    cli.run(main)
