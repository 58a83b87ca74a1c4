"""What surrounds a training: it is done once, by one process at a time, and it continues where it stopped.

`train.py` has the loop itself. Everything random in it is a function of --seed and the step, so that an unfinished
training is saved without the state of any random generator.
"""

import dataclasses
import signal
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lab import checkpoint, cli, distributed, files, hardware
from lab.checkpoint import Checkpoint, path_in
from lab.files import BadInput, remove_abandoned, require_writable
from lab.published import publish, require_publishable
from unet import UNet

FORMAT = "dualmd unfinished training 1"


def student(args: Namespace) -> tuple[Checkpoint, Tensor, list[UNet]]:
    """The student of --distill without weights, the dataset's images, and the teachers A and B.

    A student has the settings of its teachers, except for --epochs. Raises BadInput where a teacher is missing, or
    where a flag contradicts the teachers' settings.
    """
    a, b = (checkpoint.load(path_in(args.run, half)) for half in "AB")
    checkpoint.require_same_images(a, b, args.run)
    for flag in ("preset", "size", "members", "member_split", "seed"):
        given, theirs = getattr(args, flag), (a.dataset | a.settings)[flag]
        if given is not None and str(given) != str(theirs):
            name = flag.replace("_", "-")
            raise BadInput(f"--{name} {given}: the teachers in {args.run}/ were trained with {theirs}")
    settings = a.settings | {"targets": args.distill, "teachers": checkpoint.weights_key(a, b)}
    settings["epochs"] = args.epochs or settings["epochs"]
    print(f"preset {settings['preset']}, like the teachers {args.run}/A.pt and {args.run}/B.pt")
    images = checkpoint.load_images(a, args.data_dir)
    wanted = Checkpoint(f"distill-{args.distill}", a.dataset, a.split, settings, a.unet)
    return wanted, images, [a.eps_model(args.device), b.eps_model(args.device)]


@contextmanager
def claimed(wanted: Checkpoint, args: Namespace) -> Iterator[bool]:
    """Keep other processes from training the `wanted` model. Yield True if it is still to be trained.

    When the block ends, --export is written. Raises BadInput where another process trains this model, where the file
    that is there comes from another training, where no image is left for a reference model, or where something cannot
    be written or exported.
    """
    run, path, first = args.run, path_in(args.run, wanted.name), distributed.RANK == 0
    if len(wanted.trained_on) == 0:
        scored = f"all {len(wanted.split.nonmembers):,} non-members will be scored, and no image is left to train on"
        raise BadInput(f"--split reference: {scored}; take fewer --members, for every model of the run")
    if args.export:
        require_publishable(wanted.unet)
        require_writable(args.export.parent)
    with files.exclusive(path) if first else nullcontext():
        untrained = not is_trained(run, wanted, args.restart)
        if untrained:
            require_writable(run)
        else:
            print(f"{path} is trained already (--restart begins anew)")
        yield untrained
        if args.export and first:
            split = publish(checkpoint.load(path), args.export)
            print(f"{args.export}: the same in pytorch-ddpm's format; {split}: its members and non-members")


def is_trained(run: Path, wanted: Checkpoint, restart: bool) -> bool:
    """Is the wanted model in `run`? With `restart`, or while it is being trained anew, its file does not count.

    Raises BadInput where this model was trained with other settings, where another model in `run` has other images,
    and where `load` would refuse the wanted model after its training.
    """
    try:
        for part in checkpoint.RULES:
            checkpoint.require_rules(part, dataclasses.asdict(wanted)[part])
    except ValueError as error:
        raise BadInput(f"no such model can be read again ({error}): change train.py's preset") from error
    trained, anew = False, restart or _unfinished(run, wanted.name).exists()
    for name in checkpoint.NAMES:
        path = path_in(run, name)
        if path.exists() and not (anew and name == wanted.name):
            found = checkpoint.load(path)
            checkpoint.require_same_images(wanted, found, run)
            if name == wanted.name:
                _require_same(_identity(found), _identity(wanted), path)
                trained = True
    return trained


# --- from the first step to the last -------------------------------------------------------------------


@contextmanager
def resumable(wanted: Checkpoint, args: Namespace, **parts: nn.Module | torch.optim.Optimizer) -> Iterator["Progress"]:
    """Load into `parts` (model, ema, optimizer) what an earlier attempt saved; save the finished model at the end.

    Raises BadInput where that attempt had other settings, and where the disk is full (already before the first step).
    """
    run, first = args.run, distributed.RANK == 0
    hardware.reuse_memory()
    with deferred_signals() as signals:
        step = None if args.restart else resume(run, wanted, parts)
        distributed.require_same(str(step), wanted.dataset["sha256"])
        if step is None and first:
            for folder in [run, *checkpoint.snapshots(run).values()]:
                remove_abandoned(path_in(folder, wanted.name))
            save_unfinished(run, wanted, parts, 0)
            # an earlier training's snapshots say nothing about this one
            for folder in checkpoint.snapshots(run).values() if args.restart else []:
                path_in(folder, wanted.name).unlink(missing_ok=True)
        progress = Progress(wanted, args, parts, step or 0, signals)
        with progress.bar:
            yield progress
    if first:
        checkpoint.save(run, progress.trained(wanted.settings["epochs"]))
        _unfinished(run, wanted.name).unlink(missing_ok=True)
        remove_abandoned(_unfinished(run, wanted.name))
        done = f"{path_in(run, wanted.name)}: {len(wanted.trained_on)} images, {progress.total:,} steps"
        if progress.rate:
            done += f", {progress.rate:,.1f} images/s, {hardware.peak_memory(args.device) / 1e9:.2f} GB"
        print(done)


class Progress:
    """Counts and shows the steps of one training. Between two steps it saves, keeps snapshots, and obeys signals."""

    def __init__(self, wanted: Checkpoint, args: Namespace, parts: dict, step: int, signals: list[int]):
        self.wanted, self.args, self.parts, self.step, self.signals = wanted, args, parts, step, signals
        self.saves = distributed.RANK == 0
        images, epochs = len(wanted.trained_on), wanted.settings["epochs"]
        self.steps_per_epoch = -(-images // wanted.settings["batch"])
        self.total = epochs * self.steps_per_epoch
        self.snapshots = {epochs * part // args.snapshots for part in range(1, args.snapshots)}  # after these epochs
        self.recent, self.saved, self.began, self.rate = [], time.monotonic(), None, 0.0
        begin, how = epochs * images * step // self.total, {"unit": "img", "smoothing": 0.02}
        self.bar = tqdm(total=epochs * images, initial=begin, desc=wanted.name, disable=not self.saves, **how)

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that are left, from 0 in a new training."""
        while self.step < self.total:
            yield self.step
            self.step += 1
            self._between_steps()

    def note(self, loss: Tensor, norm: Tensor, t: Tensor) -> None:
        """Tell the loss of this step, the norm of its gradient, and the timesteps (N,) of its images."""
        self.recent.append((loss.detach(), norm, t))
        self.bar.update(len(t))

    def trained(self, epochs: int) -> Checkpoint:
        """The model as it is now. A training with --epochs EPOCHS would end at the same weights."""
        weights = {key: value.cpu() for key, value in self.parts["ema"].state_dict().items()}
        settings = self.wanted.settings | {"epochs": epochs}
        return dataclasses.replace(self.wanted, settings=settings, weights=weights)

    def _between_steps(self) -> None:
        run, name, now = self.args.run, self.wanted.name, time.monotonic()
        self.began = self.began or (now, self.step)  # after the first step, which may include a compilation
        if self.step > self.began[1]:
            images = (self.step - self.began[1]) * len(self.wanted.trained_on) / self.steps_per_epoch
            self.rate = images / (now - self.began[0])
        epoch, into_epoch = divmod(self.step, self.steps_per_epoch)
        last = self.step == self.total
        logged = self.step % 50 == 0 or last  # seldom, because a GPU waits while the loss is read
        snapshot = self.saves and into_epoch == 0 and epoch in self.snapshots
        stop = self.saves and not last and self.signals
        saving = stop or (self.saves and not last and now - self.saved > self.args.save_every)
        if logged or snapshot or saving:
            require_finite(run, name, self.step, self.recent)
        if logged:
            mean = distributed.mean(torch.stack([loss for loss, *_ in self.recent]).mean()).item()
            self.bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            self.recent.clear()
        if snapshot:
            checkpoint.save(checkpoint.snapshot_in(run, epoch), self.trained(epoch))
        if saving:
            save_unfinished(run, self.wanted, self.parts, self.step)
            self.saved = time.monotonic()
        if stop:
            self.bar.close()
            same = f"the same command{', but for --restart,' if self.args.restart else ''} continues"
            stopped = f"{name} was stopped after step {self.step:,} of {self.total:,}, and saved"
            cli.fail(f"{stopped}: {same}", 128 + self.signals[0])


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


def require_finite(run: Path, name: str, step: int, recent: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Raise BadInput where one of the last steps had a loss or a gradient that is not finite.

    `recent` has the loss, the gradient's norm and the timesteps of each step since the last look, up to `step`.
    """
    finite = torch.stack([loss + norm for loss, norm, _ in recent]).isfinite().tolist()  # one wait for a GPU
    if not all(finite):
        wrong = finite.index(False)
        loss, norm, t = recent[wrong]
        what = "loss" if not loss.isfinite() else "gradient"
        raise BadInput(
            f"the {what} of {name} is no finite number at step {step - len(recent) + wrong + 1:,}, of images at t = "
            f"{t.min()} to {t.max()}; the last good checkpoint is {_unfinished(run, name)}; lower lr in train.py's "
            "preset, and --restart"
        )


# --- unfinished trainings ------------------------------------------------------------------------------


def _unfinished(run: Path, name: str) -> Path:
    return run / f"{name}.unfinished"


def save_unfinished(run: Path, wanted: Checkpoint, parts: dict, step: int) -> None:
    """Save what the training needs to continue after `step` steps: the state_dict of each part."""
    state = {name: part.state_dict() for name, part in parts.items()}
    content = {"format": FORMAT, "training": _identity(wanted), "step": step}
    files.write_tensors(_unfinished(run, wanted.name), content | state)


def resume(run: Path, wanted: Checkpoint, parts: dict) -> int | None:
    """Load into `parts` what `save_unfinished` saved, and return its step; None where nothing was saved.

    Raises BadInput, with the difference, where another training was saved.
    """
    path = _unfinished(run, wanted.name)
    if not path.exists():
        return None
    state = files.read_tensors(path, "an unfinished training of this project")
    if state.get("format") != FORMAT:
        raise BadInput(f"{path} is no unfinished training of this project: --restart begins anew")
    try:
        found, step = state["training"], state["step"]
        for value in (*found.values(), step):
            if not isinstance(value, str | int | float | None):
                raise ValueError(f"a {type(value).__name__} is no setting")
        _require_same(found, _identity(wanted), path)
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                part.load_state_dict(state[name])
                tensors = part.state_dict().values()
            else:
                tensors = _load_optimizer(part, state[name])
            if not all(tensor.isfinite().all() for tensor in tensors):
                raise ValueError(f"its {name} is not finite")
        if type(step) is not int or step < 0:
            raise ValueError(f"step {step}")
    except BadInput:
        raise
    except Exception as error:  # made-up content can fail in any way
        raise BadInput(f"{path} is damaged ({files.in_a_line(error)}): --restart begins anew") from error
    return step


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> list[Tensor]:
    """Load Adam's averages and return them. Its learning rate and so on come from train.py, not from the file."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for parameter, averages in optimizer.state.items():
        if averages.keys() != {"step", "exp_avg", "exp_avg_sq"} or any(
            value.shape not in (parameter.shape, ()) for value in averages.values()
        ):
            raise ValueError("an average of another shape than its weight's")
    return [value for averages in optimizer.state.values() for value in averages.values()]


def _identity(wanted: Checkpoint) -> dict[str, str | int | float | None]:
    """Everything that makes one training different from another."""
    split = wanted.split
    parts = (part.numpy() for part in (split.a, split.b, split.nonmembers, split.reference))
    return wanted.settings | {
        "pixels": wanted.dataset["sha256"],
        "split": files.key_of(*parts)[:16],
        "unet": str(wanted.unet),
        "schedule": str(wanted.schedule),
    }


def _require_same(found: dict, wanted: dict, path: Path) -> None:
    for key in wanted:
        if wanted[key] != found.get(key):
            was = f"{key} = {found.get(key)}, not {wanted[key]}"
            raise BadInput(f"{path} was trained with {was}: --restart begins anew, --run names another directory")
