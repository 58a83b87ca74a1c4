"""Train one model of a run: half A's, half B's, the undefended one on all members, a student of A and B, a reference.

    python train.py --split A            python train.py --distill cross
    torchrun --nproc_per_node=2 -- train.py --split A

One step's randomness (which images, timesteps, noise, dropout) is a function of --seed, the model's
name and the step, and of nothing else: the same seed gives the same weights, a training that was
cut off goes on as if it had not been, and several processes compute together what one would alone.
"""

import dataclasses
import time
from argparse import BooleanOptionalAction, Namespace
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import data
from dualmd import distill_targets, training_loss
from lab import checkpoint, cli, distributed
from lab.checkpoint import Checkpoint
from lab.files import BadInput, exclusive, require_writable
from unet import Dropout, UNet, UNetConfig

SMALL = UNetConfig(ch=32, mult=(1, 1, 2), attn=(), blocks=1, dropout=0.0, groups=8)
QUICK = {"epochs": 600, "batch": 16, "lr": 1e-3, "warmup": 100, "ema": 0.99, "flip": False}
LONG = {"epochs": 4096, "batch": 128, "lr": 2e-4, "warmup": 5000, "ema": 0.9999, "flip": True}
PRESETS = {
    # Minutes on a laptop: small images, few enough to be learnt by heart. Four channels a group, as at the
    # paper's scale: with one, the norms hide from the network how noisy its input is, and PIA reads nothing.
    "tiny": {"unet": SMALL, "size": 16, "members": 256, "train": QUICK},
    # The same network on images of CIFAR-10's own size, and twice as many: hours on a laptop.
    "small": {"unet": SMALL, "size": 32, "members": 512, "train": QUICK},
    # The paper's scale: the network and training of DDPM, as SecMI and PIA attack it (800,000 steps).
    "cifar10": {"unet": UNetConfig(), "size": 32, "members": None, "train": LONG},
}


def parse_args() -> Namespace:
    parser = cli.parser(__doc__)
    which = parser.add_argument_group("which model").add_mutually_exclusive_group(required=True)
    images = "of half A, half B, all members (the undefended model), or an attacker's own images"
    which.add_argument("--split", choices=["A", "B", "all", "reference"], help=images)
    teachers = "a student of A and B: of the one that never saw the image, or of their mean"
    which.add_argument("--distill", choices=["cross", "average"], help=teachers)
    size = parser.add_argument_group("how large (a student takes all but --epochs from its teachers)")
    size.add_argument("--preset", choices=PRESETS, help="minutes, hours, days (default: cifar10 with a GPU, else tiny)")
    size.add_argument("--size", type=cli.natural, help="side of the images, in pixels (default: the preset's)")
    size.add_argument("--members", type=cli.natural, help="images of A and B together (default: the preset's)")
    cli.add_member_split(size)
    size.add_argument("--epochs", type=cli.natural, help="times that each image is seen (default: the preset's)")
    size.add_argument("--seed", type=cli.seed, help="everything random hangs on it (default: 0)")
    files = parser.add_argument_group("what is saved")
    files.add_argument(
        "--snapshots", type=cli.natural, default=1, help="of it to keep (default: %(default)s, the last)"
    )
    files.add_argument(
        "--save-every", type=float, default=300, metavar="SECONDS", help="what a crash may cost (default: %(default)s)"
    )
    files.add_argument("--restart", action="store_true", help="begin anew, even if this model is trained already")
    files.add_argument("--export", type=Path, metavar="FILE", help="write the model in pytorch-ddpm's format, too")
    parser.add_argument(
        "--compile", action=BooleanOptionalAction, help="(default: torch.compile for long trainings on a GPU)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    run = cli.run_directory(args)
    with distributed.together(args.device):
        result, images, teachers = wanted(args, run)
        if args.export:
            checkpoint.require_publishable(result.unet)
            require_writable(args.export.parent)
        path = checkpoint.path_in(run, result.name)
        with exclusive(path) if distributed.RANK == 0 else nullcontext():
            if checkpoint.is_trained(run, result, args.restart):
                print(f"{path} is trained already (--restart begins anew)")
            else:
                require_writable(run)
                with checkpoint.deferred_signals() as signals:
                    train(args, run, result, images, teachers, signals)
            if args.export and distributed.RANK == 0:
                split = checkpoint.publish(checkpoint.load(path), args.export)
                print(f"{args.export}: the same in pytorch-ddpm's format; {split}: its members and non-members")


def wanted(args: Namespace, run: Path) -> tuple[Checkpoint, Tensor, list[UNet]]:
    """The model that the flags ask for, as yet without weights; the dataset's images; a student's teachers, A and B."""
    name, device, teachers = args.split or f"distill-{args.distill}", args.device, []
    if args.distill:  # a student takes everything from its teachers
        a, b = (checkpoint.load(checkpoint.path_in(run, half)) for half in "AB")
        checkpoint.require_same_images(a, b, run)
        for flag in ("preset", "size", "members", "member_split", "seed"):
            given, theirs = getattr(args, flag), (a.dataset | a.settings)[flag]
            if given is not None and str(given) != str(theirs):
                raise BadInput(f"--{flag.replace('_', '-')} {given}: the teachers in {run}/ were trained with {theirs}")
        settings = a.settings | {"targets": args.distill, "teachers": checkpoint.weights_key(a, b)}
        config, dataset, split = a.unet, a.dataset, a.split
        print(f"preset {settings['preset']}, like the teachers {run}/A.pt and {run}/B.pt")
        with distributed.first_rank_first():
            images = checkpoint.load_images(a, args.data_dir)
        teachers = [a.eps_model(device), b.eps_model(device)]
    else:
        preset_name = args.preset or ("cifar10" if device.type == "cuda" else "tiny")
        preset, seed = PRESETS[preset_name], args.seed or 0
        reason = "as --preset says" if args.preset else f"because the device is {device}"
        config, size = preset["unet"], args.size or preset["size"]
        cli.require_size(size, config)
        print(f"preset {preset_name}, {reason}: {size}x{size} images, {config.ch} channels")
        with distributed.first_rank_first():
            images, dataset = checkpoint.open_dataset(args.dataset, args.data_dir, size, seed)
        split = data.index_split(len(images), args.members or preset["members"], seed, args.member_split)
        settings = {"preset": preset_name, "seed": seed, "members": len(split.members)} | preset["train"]
        settings["member_split"] = args.member_split and str(args.member_split)
        settings |= {"targets": "noise", "teachers": None}
    settings["epochs"] = args.epochs or settings["epochs"]
    trained_on = checkpoint.images_of(name, split)
    if len(trained_on) == 0:
        all_of_them = f"--split reference: all {len(split.nonmembers):,} non-members will be scored, and none is left"
        raise BadInput(f"{all_of_them} for a reference model: take fewer --members, for every model of the run")
    return Checkpoint(name, dataset, split, trained_on, settings, config, weights={}), images, teachers


def train(
    args: Namespace, run: Path, result: Checkpoint, images: Tensor, teachers: list[UNet], signals: list[int]
) -> None:
    """Give `result` its weights, and save it in `run`; stop, but only after having saved, once there are `signals`."""
    name, settings, trained_on, device = result.name, result.settings, result.trained_on, args.device
    schedule, saves = result.noise_schedule(), distributed.RANK == 0
    cli.reuse_memory()

    # --- model, its average, optimiser ---
    torch.manual_seed(cli.seed_for(settings["seed"], name, "init"))
    model = UNet(result.unet).to(device)
    ema = UNet(result.unet).to(device).requires_grad_(False)  # what is attacked and sampled, in the end
    ema.load_state_dict(model.state_dict())
    if device.type == "cuda":  # what its tensor cores are made for
        torch.backends.cuda.matmul.allow_tf32 = True
        model, ema = model.to(memory_format=torch.channels_last), ema.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"], fused=True)
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    step = None if args.restart else checkpoint.resume(run, result, parts)
    distributed.require_same(str(step), result.dataset["sha256"])
    if step is None:
        step = 0
        if saves:
            checkpoint.begin(run, result, parts, args.restart)
    snapshots = {settings["epochs"] * part // args.snapshots for part in range(1, args.snapshots)}  # after these epochs

    def trained(epochs: int) -> Checkpoint:
        """The model as it is now: the very one that --epochs EPOCHS would have made."""
        weights = {key: value.cpu() for key, value in ema.state_dict().items()}
        return dataclasses.replace(result, settings=settings | {"epochs": epochs}, weights=weights)

    # --- the loop ---
    x_all = images.to(device)  # uint8, resident
    in_a = torch.arange(len(trained_on)) < len(result.split.a)
    batch, steps_an_epoch = settings["batch"], -(-len(trained_on) // settings["batch"])
    steps = settings["epochs"] * steps_an_epoch
    bfloat16 = cli.bfloat16_is_faster(device)
    network = distributed.synchronised(model)
    if cli.compiles(args.compile, device, steps - step):
        network = torch.compile(network, dynamic=False)
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    averages, weights = list(ema.parameters()), list(model.parameters())
    recent, saved, order, began = [], time.monotonic(), None, None
    total = settings["epochs"] * len(trained_on)
    begin = total * step // steps
    with tqdm(total=total, initial=begin, desc=name, unit="img", smoothing=0.02, disable=not saves) as bar:
        while step < steps:
            epoch, position = divmod(step, steps_an_epoch)
            if position == 0 or order is None:
                torch.manual_seed(cli.seed_for(settings["seed"], name, "epoch", epoch))
                order = torch.randperm(len(trained_on))
            rows = order[position * batch : (position + 1) * batch]
            torch.manual_seed(cli.seed_for(settings["seed"], name, "step", step))

            # drawn for the whole batch, of which this process then takes its share
            x0 = data.to_float(x_all[trained_on[rows].to(device, non_blocking=True)])
            if settings["flip"]:
                x0 = torch.where(torch.rand(len(rows), 1, 1, 1, device=device) < 0.5, x0.flip(3), x0)
            t = timesteps = torch.randint(schedule.T, (len(rows),), device=device)
            eps = torch.randn_like(x0)
            x_t = schedule.add_noise(x0, t, eps)
            mine, weight = distributed.share(len(rows))
            for dropout in dropouts:
                dropout.rows = len(rows), mine
            x_t, t, eps, in_a_mine = x_t[mine], t[mine], eps[mine], in_a[rows[mine]]
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                target = eps
                if args.distill:
                    target = distill_targets(*teachers, x_t, t, in_a_mine, args.distill)
                loss = weight * training_loss(network, x_t, t, target)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(weights, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = settings["lr"] * min(1, (step + 1) / settings["warmup"])
            optimizer.step()
            # early weights leave the average soon: its memory grows with the steps, up to 1 / (1 - decay)
            decay = min(settings["ema"], (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, weights, 1 - decay)
            step += 1
            began = began or (time.monotonic(), step)  # after the first step, which may have been compiled

            recent.append((loss.detach(), norm, timesteps))
            bar.update(len(rows))
            logged = step % 50 == 0 or step == steps  # seldom, because reading the loss makes a GPU wait
            snapshot = saves and position == steps_an_epoch - 1 and epoch + 1 in snapshots
            stop = saves and step < steps and signals
            saving = stop or (saves and step < steps and time.monotonic() - saved > args.save_every)
            if logged or snapshot or saving:
                checkpoint.require_finite(run, name, step, recent)
            if logged:
                mean = distributed.mean(torch.stack([loss for loss, *_ in recent]).mean()).item()
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                recent.clear()
            if snapshot:
                checkpoint.save(checkpoint.snapshot_in(run, epoch + 1), trained(epoch + 1))
            if saving:
                checkpoint.save_unfinished(run, result, parts, step)
                saved = time.monotonic()
            if stop:
                bar.close()
                same = "the same command, but for --restart, goes on" if args.restart else "the same command goes on"
                cli.fail(f"{name} was stopped after step {step:,} of {steps:,}, and saved: {same}", 128 + signals[0])
    if not saves:
        return

    checkpoint.save(run, trained(settings["epochs"]))
    done = f"{checkpoint.path_in(run, name)}: {len(trained_on)} images, {steps:,} steps"
    if began and step > began[1]:
        rate = (step - began[1]) * len(trained_on) / steps_an_epoch / (time.monotonic() - began[0])
        done += f", {rate:,.1f} images/s, {cli.peak_memory(device) / 1e9:.2f} GB"
    print(done)


if __name__ == "__main__":
    cli.run(main, several=True)
