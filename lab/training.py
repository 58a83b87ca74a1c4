"""What surrounds train.py's loop: no other command trains the same model meanwhile, and it continues where it stopped.

Everything random is a function of --seed and the step, so no state of a random generator is saved.
"""

import dataclasses
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Adam
from tqdm import tqdm

import data
from lab import checkpoint, cli, distributed, files, hardware
from lab.checkpoint import TEACHERS, Checkpoint, path_in
from lab.files import BadInput
from lab.published import publish, require_publishable
from unet import UNet

FORMAT = "dualmd unfinished training 3"
AVERAGES = "exp_avg", "exp_avg_sq"  # Adam's, of each weight


def require_possible(args: Namespace) -> None:
    """Raise BadInput for what would fail after the images are there: call it before. Teachers may yet be missing."""
    files.require_writable(args.run, directory=True)
    if args.export:
        files.require_writable(args.export)
    if args.teachers and not args.distill:
        raise BadInput("--teachers: only a student (--distill) has teachers")
    wanted = args.wanted or (student(args)[0] if all(path.exists() for path in teachers_of(args)) else None)
    if not wanted:
        return
    checkpoint.require_size(wanted.dataset["size"], wanted.unet)
    try:
        checkpoint.require_rules({"settings": wanted.settings, "unet": vars(wanted.unet)})
    except ValueError as error:
        raise BadInput(f"no file may hold such a model ({error}): change the flag, or train.py's preset") from error
    if len(wanted.trained_on) < (len(wanted.split.members) if args.block > 1 else 1):
        scored = f"all {len(wanted.split.nonmembers):,} non-members will be scored, and no image is left to train on"
        left = f"too few are left for --block {args.block}" if args.block > 1 else scored
        raise BadInput(f"--split reference: {left}; take fewer --members, for every model of the run")
    is_trained(wanted, args)


def is_trained(wanted: Checkpoint, args: Namespace) -> bool:
    """Is this model in --run? Raise BadInput where the models there come from other settings or images."""
    anew = args.restart or unfinished(args.run, wanted).exists()  # then its own file does not count
    models = checkpoint.load_run(args.run, without=wanted.name if anew else None)
    for model in models.values():
        checkpoint.require_same_images(wanted, model, args.run)
    if wanted.name in models:
        _require_same(models[wanted.name], wanted, path_in(args.run, wanted.name))
    return wanted.name in models


def teachers_of(args: Namespace) -> list[Path]:
    """The files of a student's teachers. Raises BadInput where --teachers are not as many as --distill needs."""
    names = TEACHERS[args.distill]
    if args.teachers and len(args.teachers) != len(names):
        raise BadInput(f"--teachers: {len(args.teachers)} given, and --distill {args.distill} takes {len(names)}")
    return args.teachers or [path_in(args.run, name) for name in names]


def student(args: Namespace) -> tuple[Checkpoint, list[Checkpoint]]:
    """The student of --distill, with its teachers' settings but for --steps; and the teachers. Raises BadInput."""
    paths = teachers_of(args)
    teachers = a, *_ = [checkpoint.load(path) for path in paths]
    last, trained = teachers[-1], f"the teachers in {paths[0].parent}/ were trained with"
    checkpoint.require_same_images(a, last, args.run)
    if args.distill != "single" and [one.name for one in teachers] != TEACHERS[args.distill]:
        raise BadInput(f"--teachers: --distill {args.distill} takes {', then '.join(TEACHERS[args.distill])}")
    for flag in ("preset", "size", "members", "seed", "flip", "dropout", "weight_decay"):
        given, theirs = getattr(args, flag), (a.dataset | a.settings | vars(a.unet))[flag]
        if given is not None and given is not False and given != theirs:
            raise BadInput(f"--{flag.replace('_', '-')} {given}: {trained} {theirs}")
    if args.member_split:
        args.members, args.seed = a.settings["members"], a.settings["seed"]
        split = checkpoint.split_for(args, data.count(a.dataset["name"], args.data_dir or a.dataset["data_dir"]))
        if a.difference(dataclasses.replace(a, split=split), "split"):
            raise BadInput(f"--member-split {args.member_split}: {trained} another")
    settings = a.settings | {"targets": args.distill, "teachers": checkpoint.weights_key(*teachers), "epsilon": None}
    settings["steps"] = args.steps or settings["steps"]
    return Checkpoint(f"distill-{args.distill}", a.dataset, a.split, settings, a.unet), teachers


@contextmanager
def claimed(wanted: Checkpoint, args: Namespace) -> Iterator[Tensor | None]:
    """Keep other processes from training the `wanted` model. Yield its images; None if it is trained already.

    When the block ends, --export is written. Raises BadInput as `is_trained`, and where another process trains it.
    """
    its, path, first = wanted.dataset, path_in(args.run, wanted.name), distributed.RANK == 0
    print(f"preset {wanted.settings['preset']}: {its['size']}x{its['size']} images, {wanted.unet.ch} channels")
    if args.export:
        require_publishable(wanted.unet)
    images = checkpoint.load_images(wanted, args.data_dir)
    with files.exclusive(path) if first else nullcontext():
        if trained := is_trained(wanted, args):
            print(f"{path} is trained already (--restart begins anew)")
        yield None if trained else images
        if args.export and first:
            split = publish(checkpoint.load(path), args.export)
            print(f"{args.export}: the same in pytorch-ddpm's format; {split}: its members and non-members")


# --- from the first step to the last -------------------------------------------------------------------


@contextmanager
def resumable(wanted: Checkpoint, args: Namespace, model: UNet, ema: UNet, optimizer: Adam) -> Iterator["Progress"]:
    """Load into `model`, `ema` and `optimizer` what an earlier attempt saved; save the finished model at the end.

    Raises BadInput where that attempt had other settings, and where the disk is full, even before the first step.
    """
    run, first, parts = args.run, distributed.RANK == 0, (model, ema, optimizer)
    hardware.reuse_memory()
    with deferred_signals() as signals:
        step = None if args.restart else resume(run, wanted, *parts)
        distributed.require_same(str(step), wanted.dataset["sha256"])
        if first:
            for left in run.glob(f"**/.{wanted.name}.*.tmp"):  # by an attempt that was killed
                left.unlink()
        if step is None and first:
            save_unfinished(run, wanted, *parts, 0)
            for folder in checkpoint.snapshots(run):  # they come from a training before
                path_in(folder, wanted.name).unlink(missing_ok=True)
        progress = Progress(wanted, args, parts, step or 0, signals)
        with progress.bar:
            yield progress
    if first:
        checkpoint.save(run, progress.trained(wanted.settings["steps"]))
        unfinished(run, wanted).unlink(missing_ok=True)
        steps, epochs = progress.total, progress.total / progress.steps_per_epoch
        done = f"{path_in(run, wanted.name)}: {len(wanted.trained_on)} images, {steps:,} steps ({epochs:,.0f} epochs)"
        if progress.rate:
            done += f", {progress.rate:,.1f} images/s, {hardware.peak_memory(args.device) / 1e9:.2f} GB"
        print(done)


class Progress:
    """Counts and shows the steps of one training. Between two steps it saves, keeps snapshots, and obeys signals."""

    def __init__(
        self, wanted: Checkpoint, args: Namespace, parts: tuple[UNet, UNet, Adam], step: int, signals: list[int]
    ):
        self.wanted, self.args, self.parts, self.step, self.signals = wanted, args, parts, step, signals
        self.saves = distributed.RANK == 0
        self.total = wanted.settings["steps"]
        self.steps_per_epoch = -(-len(wanted.trained_on) // wanted.settings["batch"])
        self.snapshots = {self.total * part // args.snapshots for part in range(1, args.snapshots)}  # after these steps
        self.recent, self.saved, self.began, self.rate = [], time.monotonic(), None, 0.0
        how = {"unit": "step", "smoothing": 0.02, "disable": not self.saves}
        self.bar = tqdm(total=self.total, initial=step, desc=wanted.name, **how)

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that are left; a new training has them from 0."""
        while self.step < self.total:
            yield self.step
            self.step += 1
            self._between_steps()

    def note(self, loss: Tensor, norm: Tensor, t: Tensor) -> None:
        """Tell the loss of this step, the norm of its gradient, and the timesteps (N,) of its images."""
        self.recent.append((loss.detach(), norm, t))
        try:
            self.bar.update()
        except BrokenPipeError:  # nobody reads the bar any more: save, and end
            self.signals.append(13)

    def trained(self, steps: int) -> Checkpoint:
        """The model as it is now, after so many steps."""
        weights = {key: value.cpu() for key, value in self.parts[1].state_dict().items()}
        settings = self.wanted.settings | {"steps": steps}
        return dataclasses.replace(self.wanted, settings=settings, weights=weights)

    def _between_steps(self) -> None:
        now, run, last = time.monotonic(), self.args.run, self.step == self.total
        self.began = self.began or (now, self.step)  # after the first step, which may include a compilation
        if self.step > self.began[1]:
            images = (self.step - self.began[1]) * len(self.wanted.trained_on) / self.steps_per_epoch
            self.rate = images / (now - self.began[0])
        logged = self.step % 50 == 0 or last  # seldom, because a GPU waits while the loss is read
        snapshot = self.saves and self.step in self.snapshots
        stop = self.saves and not last and self.signals
        saving = stop or (self.saves and not last and not now - self.saved <= self.args.save_every)  # also for NaN
        if logged or snapshot or saving:
            self._require_finite()
        if logged:
            mean = distributed.mean(torch.stack([loss for loss, *_ in self.recent]).mean()).item()
            self.bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            self.recent.clear()
        if snapshot:
            checkpoint.save(checkpoint.snapshot_in(run, self.step), self.trained(self.step))
        if saving:
            save_unfinished(run, self.wanted, *self.parts, self.step)
            self.saved = time.monotonic()
        if stop:
            self.bar.close()
            same = f"the same command{', but for --restart,' if self.args.restart else ''} continues"
            stopped = f"{self.wanted.name} was stopped after step {self.step:,} of {self.total:,}, and saved"
            cli.fail(f"{stopped}: {same}", 128 + self.signals[0])

    def _require_finite(self) -> None:
        """Raise BadInput where a loss or a gradient since the last look is not finite."""
        finite = torch.stack([loss + norm for loss, norm, _ in self.recent]).isfinite().tolist()  # one wait for a GPU
        if not all(finite):
            wrong = finite.index(False)
            loss, _, t = self.recent[wrong]
            what, step = "gradient" if loss.isfinite() else "loss", self.step - len(self.recent) + wrong + 1
            where = f"is no finite number at step {step:,}, of images at t = {t.min()} to {t.max()}"
            saved = f"{unfinished(self.args.run, self.wanted)} is from before"
            advice = f"{saved}; lower lr in train.py's preset, and --restart"
            raise BadInput(f"the {what} of {self.wanted.name} {where}; {advice}")


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Inside the block SIGINT (Ctrl-C) and SIGTERM only put their numbers into the list."""
    caught, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores them, and so does a shell for background jobs
            before[number] = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- unfinished trainings: a checkpoint of the averaged weights, and the rest of the training's state --------


def unfinished(run: Path, wanted: Checkpoint) -> Path:
    return run / f"{wanted.name}.unfinished"


def save_unfinished(run: Path, wanted: Checkpoint, model: UNet, ema: UNet, optimizer: Adam, step: int) -> None:
    """Save what the training needs to continue after `step` steps."""
    state = {"step": step, "weights": model.state_dict()}
    for average in AVERAGES if step else []:
        state[average] = {name: optimizer.state[weight][average] for name, weight in model.named_parameters()}
    content = dataclasses.asdict(dataclasses.replace(wanted, weights=ema.state_dict()))
    files.write_tensors(unfinished(run, wanted), {"format": FORMAT} | content | {"state": state})


def resume(run: Path, wanted: Checkpoint, model: UNet, ema: UNet, optimizer: Adam) -> int | None:
    """Load what `save_unfinished` saved, and return its step; None if nothing. Raises BadInput for anything else."""
    path = unfinished(run, wanted)
    if not path.exists():
        return None
    content = files.read_tensors(path, "an unfinished training of this project")
    if content.pop("format", None) != FORMAT:
        raise BadInput(f"{path} is no unfinished training of this version: --restart begins anew")
    try:
        state = content.pop("state")
        found, step = checkpoint.checked(content), state["step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"step {step}")
        for name in ("weights", *(AVERAGES if step else [])):
            checkpoint.require_network(found.unet, state[name])
    except Exception as error:  # made-up content can fail in any way
        raise BadInput(f"{path} is damaged ({files.in_a_line(error)}): --restart begins anew") from error
    _require_same(found, wanted, path)
    model.load_state_dict(state["weights"])
    ema.load_state_dict(found.weights)
    for name, weight in model.named_parameters() if step else []:
        steps = torch.tensor(float(step), device=weight.device)
        averages = {average: state[average][name].to(weight.device) for average in AVERAGES}
        optimizer.state[weight] = {"step": steps} | averages
    return step


def _require_same(found: Checkpoint, wanted: Checkpoint, path: Path) -> None:
    """Raise BadInput, with the difference, unless both come from the same training."""
    keys = wanted.settings.keys() - {"member_split"}  # a path; "split" is what it holds
    if was := found.difference(wanted, *keys, "size", "sha256", "split", "unet", "schedule"):
        raise BadInput(f"{path} was trained with {was}: --restart begins anew, --run names another directory")
