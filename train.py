"""Train one model of a run: on half A, on half B, on all members (undefended), as a student of A and B, a reference.

    python train.py --split A            python train.py --distill
    torchrun --nproc_per_node=2 -- train.py --split A

As in the paper, each model gets the same number of steps (batches). A and B have half of the images each, and so they
see each of them twice as often.

The randomness of a step (its images, timesteps, noise and dropout) is a function of --seed, the model's name and the
step. So the same seed gives the same weights, an interrupted training continues as if nothing had happened, and
several processes compute together what one process would compute.
"""

import copy
import math
from argparse import BooleanOptionalAction, Namespace
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import data
from dualmd import distill_targets, training_loss
from lab import cli
from lab.checkpoint import Checkpoint, split_for
from lab.cli import seed_for
from lab.distributed import share, together
from lab.hardware import accelerated, bfloat16_is_faster
from lab.training import claimed, require_possible, resumable, student
from unet import UNet, UNetConfig

SMALL = UNetConfig(ch=24, mult=(1, 1, 2), attn=(), blocks=1, dropout=0.0, groups=4)
# "cosine": the learning rate falls to 0 at the last step, and the network memorises its images in half of the steps.
# "bfloat16": where that is faster. A small network gains little by it, and SecMI compares states whose noise is hardly
# larger than bfloat16's rounding of a pixel.
QUICK = {"steps": 1300, "batch": 32, "lr": 2e-3, "warmup": 100, "cosine": True, "ema": 0.99}
QUICK |= {"flip": False, "bfloat16": False}
LONG = {"steps": 780_000, "batch": 128, "lr": 2e-4, "warmup": 5000, "cosine": False, "ema": 0.9999}
LONG |= {"flip": True, "bfloat16": True}
PRESETS = {
    # Minutes on a laptop: few small images, and a small network, which memorises them in the fewest seconds. It has six
    # channels a group: with fewer, group norms hide more of how noisy the input is, and SecMI works at fewer timesteps.
    "tiny": {"unet": SMALL, "size": 16, "members": 128, "train": QUICK},
    # Hours on a laptop: the same network, twice as many images, and of CIFAR-10's own size.
    "small": {"unet": SMALL, "size": 32, "members": 512, "train": QUICK | {"steps": 9600}},
    # The paper's scale, with the network and the training of DDPM, as SecMI and PIA attack it. None stands for half of
    # the dataset: 25,000 members of CIFAR-10.
    "cifar10": {"unet": UNetConfig(), "size": 32, "members": None, "train": LONG},
}


def parse_args(words: list[str] | None = None) -> Namespace:
    """The flags in `words`; by default those of the command line."""
    parser = cli.parser(__doc__, members="(default: the preset's)")
    which = parser.add_argument_group("which model").add_mutually_exclusive_group(required=True)
    images = "training images: half A, half B, all members (the undefended model), or an attacker's own images"
    which.add_argument("--split", choices=["A", "B", "all", "reference"], help=images)
    targets = "a student. cross (default): A and B teach it, each about images that it never saw (DistillMD); average: "
    targets += "by the mean of both; single: by one teacher; reference: an attacker's own, by their reference model"
    kinds = ["cross", "average", "single", "reference"]
    which.add_argument("--distill", choices=kinds, nargs="?", const="cross", help=targets)
    parser.add_argument("--teachers", metavar="FILE", type=Path, nargs="+", help="teachers' files (default: in --run)")
    size = parser.add_argument_group("how it is trained (a student has its teachers' values, except for --steps)")
    size.add_argument("--preset", choices=PRESETS, help="minutes, hours, days (default: tiny)")
    size.add_argument("--size", type=cli.natural, help="side of the images in pixels (default: the preset's)")
    size.add_argument("--steps", type=cli.natural, help="batches to learn from (default: the preset's)")
    size.add_argument("--seed", type=cli.seed, help="seed of everything random (default: 0)")
    size.add_argument("--flip", action="store_true", help="each image mirrored, by chance (default: the preset's)")
    size.add_argument("--dropout", type=float, help="share of activations set to 0 (default: the preset's)")
    size.add_argument("--weight-decay", type=float, help="weight decay of AdamW (default: 0)")
    size.add_argument("--block", type=cli.natural, default=1, help="which set of a reference's images (default: 1)")
    files = parser.add_argument_group("what is saved")
    snapshots = "models to keep, evenly spaced over the training (default: %(default)s, the last one)"
    files.add_argument("--snapshots", type=cli.natural, default=1, help=snapshots)
    seconds = "time between two saves of the unfinished training (default: %(default)s)"
    files.add_argument("--save-every", type=float, default=45, metavar="SECONDS", help=seconds)
    files.add_argument("--restart", action="store_true", help="a new training, even if this model is trained already")
    files.add_argument("--export", type=Path, metavar="FILE", help="a copy of the model in pytorch-ddpm's format")
    parser.add_argument("--compile", action=BooleanOptionalAction, help="torch.compile (default: long GPU trainings)")
    args = parser.parse_args(words)
    args.run = args.run or Path("runs") / args.dataset
    args.wanted = new_model(args) if args.split else None
    require_possible(args)  # what would fail later is refused now
    return args


def main() -> None:
    args = parse_args()
    with together(args.device):  # with the other processes, if torchrun started several
        wanted, teachers = student(args) if args.distill else (args.wanted, [])
        with claimed(wanted, args) as images:
            if images is not None:
                train(wanted, images, [one.eps_model(args.device) for one in teachers], args)


def new_model(args: Namespace) -> Checkpoint:
    """The model of --split, without weights. Raises BadInput where the dataset is missing, or has too few images."""
    name = args.preset or "tiny"
    preset, seed = PRESETS[name], args.seed or 0
    dataset = {"name": args.dataset, "data_dir": args.data_dir, "size": args.size or preset["size"], "seed": seed}
    split = split_for(args, data.count(args.dataset, args.data_dir), preset["members"], args.block)
    settings = {"preset": name, "seed": seed, "members": len(split.members)} | preset["train"]
    settings |= {"steps": args.steps or settings["steps"], "flip": args.flip or settings["flip"], "targets": "noise"}
    settings |= {"weight_decay": args.weight_decay, "member_split": args.member_split and str(args.member_split)}
    unet = preset["unet"] if args.dropout is None else replace(preset["unet"], dropout=args.dropout)
    return Checkpoint(args.split, dataset | {"sha256": None}, split, settings, unet)


def train(wanted: Checkpoint, images: Tensor, teachers: list[UNet], args: Namespace) -> float:
    """Train the `wanted` model on those of `images` that it lists, and save it in --run. Returns images per second.

    This is DDPM's algorithm 1. images are uint8 (N, 3, H, W), the whole dataset. With `teachers`, A and B or a single
    one, in eval mode with their averaged weights, a student learns to predict what they predict.
    """
    settings, device, schedule = wanted.settings, args.device, wanted.noise_schedule()
    seed, batch, trained_on = settings["seed"], settings["batch"], wanted.trained_on
    lower = settings["bfloat16"] and bfloat16_is_faster(device)
    in_a = torch.arange(len(trained_on)) < len(wanted.split.a)  # a student's images: first half A, then half B
    x_all = images.to(device)

    torch.manual_seed(seed_for(seed, wanted.name, "init"))
    model = UNet(wanted.unet).to(device)
    ema = copy.deepcopy(model).requires_grad_(False)  # the average of the weights: it is saved, sampled and attacked
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings["weight_decay"] or 0.0, fused=True)
    with resumable(wanted, args, model, ema, optimizer) as progress:
        # the same model; with several processes, backward() takes the mean of their gradients
        network = accelerated(model, ema, args, progress.total - progress.step)
        for step in progress.steps():
            # a batch: each epoch has its own permutation of the images, and its last batch may be smaller
            epoch, position = divmod(step, progress.steps_per_epoch)
            order = torch.Generator().manual_seed(seed_for(seed, wanted.name, "epoch", epoch))
            rows = torch.randperm(len(trained_on), generator=order)[position * batch : (position + 1) * batch]
            torch.manual_seed(seed_for(seed, wanted.name, "step", step))
            x0 = data.to_float(x_all[trained_on[rows].to(device, non_blocking=True)])
            if settings["flip"]:
                x0 = torch.where(torch.rand(len(rows), 1, 1, 1, device=device) < 0.5, x0.flip(3), x0)

            # a timestep for each image, and noise
            timesteps = torch.randint(schedule.T, (len(rows),), device=device)
            eps = torch.randn_like(x0)
            x_t = schedule.add_noise(x0, timesteps, eps)

            # the target and the loss; of several processes, each takes its share of the batch, and the loss a weight
            # with which the mean over all processes is the mean over the batch
            mine, weight = share(len(rows), model)
            x_t, t, target = x_t[mine], timesteps[mine], eps[mine]
            with torch.autocast(device.type, torch.bfloat16, enabled=lower):
                if len(teachers) == 1:
                    target = teachers[0](x_t, t)
                elif teachers:
                    target = distill_targets(*teachers, x_t, t, in_a[rows[mine]], settings["targets"])
                loss = weight * training_loss(network, x_t, t, target)

            # a step of Adam, and the average of the weights
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate(step, settings)
            optimizer.step()
            # the decay is small at first, so that the average soon forgets the first weights
            update_average(ema, model, min(settings["ema"], (1 + step) / (10 + step)))
            progress.note(loss, norm, timesteps)
    return progress.rate


def learning_rate(step: int, settings: dict) -> float:
    """The rate of a step, counted from 0. It rises during `warmup` steps; with `cosine`, it falls to 0 at the end."""
    rate = settings["lr"] * min(1, (step + 1) / settings["warmup"])
    return rate * (1 + math.cos(math.pi * step / settings["steps"])) / 2 if settings["cosine"] else rate


@torch.no_grad()
def update_average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema = decay ema + (1 - decay) model, for each weight: an average over about the last 1 / (1 - decay) steps."""
    for average, weight in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(weight, 1 - decay)


if __name__ == "__main__":
    cli.run(main, under_torchrun=True)
