"""A trained model as a file, with all that it takes to judge it: weights, sizes, dataset, split, settings.

A run directory holds up to six: all.pt, A.pt, B.pt, distill-cross.pt, distill-average.pt and an
attacker's reference.pt; and an `.unfinished` file for each training that is not over.
Nothing outside this module knows the format, nor that of the field, pytorch-ddpm's, in which models
come in and go out. Files are read with `weights_only=True`, as data and never as code, and nothing is
made of that data before its types, sizes and ranges have been looked at.
"""

import dataclasses
import itertools
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import data
from data import Split
from dualmd import NoiseSchedule
from lab.files import BadInput, atomic_write, in_a_line, key_of, read_tensors, remove_abandoned, write_tensors
from unet import SinusoidalEmbedding, UNet, UNetConfig

FORMAT = "dualmd checkpoint 1"
UNFINISHED = "dualmd unfinished training 1"
KIND = "a checkpoint of this project"
PUBLISHED_KIND = "a checkpoint in pytorch-ddpm's format"
NAMES = ("all", "A", "B", "distill-cross", "distill-average", "reference")


@dataclass
class Checkpoint:
    name: str  # one of NAMES
    dataset: dict  # name, data_dir, size, seed: what data.load takes; sha256: of the pixels that it gave
    split: Split
    trained_on: Tensor  # indices of the images that this model's training saw
    settings: dict  # of the training: seed, epochs, batch, lr, ...
    unet: UNetConfig
    weights: dict[str, Tensor]  # the averaged (EMA) ones
    schedule: dict = field(default_factory=lambda: {"T": 1000, "beta_1": 1e-4, "beta_T": 0.02})

    def eps_model(self, device: torch.device | str = "cpu") -> UNet:
        """The network, ready to be asked: in eval mode, without gradients."""
        model = UNet(self.unet)
        model.load_state_dict(self.weights)
        return model.to(device).eval().requires_grad_(False)

    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule(**self.schedule)


def path_in(run: Path, name: str) -> Path:
    return run / f"{name}.pt"


def snapshot_in(run: Path, epochs: int) -> Path:
    """Where a training into `run` leaves its model after so many epochs: a run directory within."""
    return run / f"epoch-{epochs:04d}"


def snapshots(run: Path) -> dict[int, Path]:
    """The run directories of all snapshots in `run`, by epochs."""
    found = {int(path.name[6:]): path for path in run.glob("epoch-*") if path.name[6:].isdecimal()}
    return dict(sorted(found.items()))


def images_of(name: str, split: Split) -> Tensor:
    """The indices of the images that this one of NAMES is trained on."""
    return {"A": split.a, "B": split.b, "reference": split.reference}.get(name, split.members)


def _parts(split: Split) -> list[Tensor]:
    return [split.a, split.b, split.nonmembers, split.reference]


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Write the finished model into `run`, whole or not at all; its `.unfinished` file has served."""
    write_tensors(path_in(run, checkpoint.name), {"format": FORMAT} | dataclasses.asdict(checkpoint))
    unfinished = _unfinished(run, checkpoint.name)
    unfinished.unlink(missing_ok=True)
    remove_abandoned(unfinished)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, to the CPU. Raises BadInput where there is none, or the file is none of ours."""
    content = read_tensors(path, KIND)
    if content.pop("format", None) != FORMAT:
        hint = "; evaluate.py --checkpoint attacks those of pytorch-ddpm" if "ema_model" in content else ""
        raise BadInput(f"{path} is not {KIND}: it does not say {FORMAT!r}{hint}")
    try:
        checkpoint = _checked(content)
    except Exception as error:  # what somebody has made up can be wrong in any way
        raise BadInput(f"{path} is a damaged checkpoint ({in_a_line(error)})") from error
    if path.stem in NAMES and path.stem != checkpoint.name:
        raise BadInput(f"{path} holds the model {checkpoint.name}: give it its own name back")
    return checkpoint


def load_run(run: Path) -> dict[str, Checkpoint]:
    """All finished models of a run directory by name, in the order of NAMES.

    Raises BadInput where there is none, or where two were not trained on the same images and split:
    half A of one split and half B of another are not disjoint.
    """
    found = {name: load(path_in(run, name)) for name in NAMES if path_in(run, name).exists()}
    if not found:
        raise BadInput(f"no trained model in {run}/: train one (python train.py --split A), or name a run with --run")
    first, *others = found.values()
    for other in others:
        require_same_images(first, other, run)
    return found


def require_same_images(one: Checkpoint, other: Checkpoint, run: Path) -> None:
    """Raise BadInput, naming the difference, unless both models stand on the same images and the same split."""
    for key in ("name", "size", "seed", "sha256"):
        if one.dataset[key] != other.dataset[key]:
            raise BadInput(
                f"{run}: {one.name} and {other.name} differ in their dataset's {key} ({one.dataset[key]}, "
                f"{other.dataset[key]}); give each experiment a --run of its own"
            )
    for part in ("a", "b", "nonmembers"):
        if not torch.equal(getattr(one.split, part), getattr(other.split, part)):
            raise BadInput(
                f"{run}: {one.name} and {other.name} have different splits (from --members, --seed or "
                "--member-split); give each experiment a --run of its own"
            )


def open_dataset(name: str, data_dir: str | None, size: int, seed: int) -> tuple[Tensor, dict]:
    """The images of data.load, and what a Checkpoint says of them."""
    images = data.load(name, data_dir, size, seed)
    dataset = {"name": name, "data_dir": data_dir, "size": size, "seed": seed}
    return images, dataset | {"sha256": data.fingerprint(images)}


def load_images(checkpoint: Checkpoint, data_dir: str | None) -> Tensor:
    """The dataset that this model's indices number, from `data_dir` or else from where training found it."""
    dataset = checkpoint.dataset
    images = data.load(dataset["name"], data_dir or dataset["data_dir"], dataset["size"], dataset["seed"])
    require_images(checkpoint, images)
    return images


def require_images(checkpoint: Checkpoint, images: Tensor) -> None:
    """Raise BadInput unless `images` are the ones that this model's indices number."""
    last = torch.cat(_parts(checkpoint.split)).max()
    if data.fingerprint(images) != checkpoint.dataset["sha256"] or last >= len(images):
        raise BadInput(
            f"these {checkpoint.dataset['name']} images are not those that {checkpoint.name} was trained on; "
            "name their directory with --data-dir"
        )


# --- what a file may say ------------------------------------------------------------------------------

# Of each number a range of whole ones, or the ends of one of fractions; of a text its type, or all that it can be. They
# are wide. But nothing that is made of what a stranger says may fill the memory or take for ever.
SEED = range(2**32)
RULES = {
    "dataset": {
        "name": set(data.DATASETS),
        "data_dir": str | None,
        "size": range(1, data.LARGEST_SIZE + 1),
        "seed": SEED,
        "sha256": str,
    },
    "settings": {
        "preset": str,
        "seed": SEED,
        "members": range(2, 2**31),
        "epochs": range(1, 2**31),
        "batch": range(1, 2**20),
        "lr": (0.0, 10.0),
        "warmup": range(1, 2**31),
        "ema": (0.0, 1.0),
        "flip": bool,
        "member_split": str | None,
        "targets": {"noise", "cross", "average"},
        "teachers": str | None,
    },
    "schedule": {"T": range(1, 10**5), "beta_1": (1e-9, 0.999), "beta_T": (1e-9, 0.999)},
    "unet": {
        "ch": range(2, 4097, 2),
        "mult": tuple,
        "attn": tuple,
        "blocks": range(1, 17),
        "dropout": (0.0, 0.99),
        "groups": range(1, 4097),
    },
}


def _checked(content: dict) -> Checkpoint:
    """The checkpoint that a file says it is. Raises ValueError, or whatever else, where it can be none."""
    _require_rules(content)
    content["split"], content["unet"] = Split(**content["split"]), UNetConfig(**content["unet"])
    checkpoint = Checkpoint(**content)
    parts = _parts(checkpoint.split)
    if any(part.dtype != torch.int64 or part.dim() != 1 for part in (*parts, checkpoint.trained_on)):
        raise ValueError("its split consists of other things than indices")
    every = torch.cat(parts)
    if len(checkpoint.split.a) == 0 or every.min() < 0 or len(every.unique()) < len(every):
        raise ValueError("its split is none, for an image is in it twice, or there are no members")
    if not isinstance(checkpoint.name, str) or checkpoint.name not in NAMES:
        raise ValueError(f"it is none of {', '.join(NAMES)}")
    if not torch.equal(checkpoint.trained_on, images_of(checkpoint.name, checkpoint.split)):
        raise ValueError(f"{checkpoint.name} is not what was trained on those images")
    _require_network(checkpoint.unet, checkpoint.weights)
    if checkpoint.dataset["size"] % 2 ** (len(checkpoint.unet.mult) - 1):
        raise ValueError("its network cannot halve its images so often")
    return checkpoint


def _require_rules(content: dict) -> None:
    for part in RULES:
        _require_values(part, content[part])


def _require_values(part: str, values: dict) -> None:
    """Raise ValueError unless these are values of the names that RULES has for this part, and within their rules."""
    rules = RULES[part]
    if not values.keys() <= rules.keys():
        raise ValueError(f"{part} has other entries than {', '.join(rules)}")
    for name, rule in rules.items():
        value = values.get(name)
        if isinstance(rule, range):
            fits = type(value) is int and value in rule
        elif isinstance(rule, tuple):
            fits = type(value) in (int, float) and rule[0] <= value <= rule[1]
        elif isinstance(rule, set):
            fits = type(value) is str and value in rule
        else:
            fits = isinstance(value, rule)
        if not fits:
            shown = value if isinstance(value, int | float | str) else f"a {type(value).__name__}"
            raise ValueError(f"{part}: {name} cannot be {shown}")


def _require_network(unet: UNetConfig, weights: dict[str, Tensor]) -> None:
    """Raise ValueError unless these are the weights of such a network, within RULES; none is made to find out."""
    mult, attn = range(1, 65), range(len(unet.mult))
    if not 1 <= len(unet.mult) <= 8 or not all(type(m) is int and m in mult for m in unet.mult):
        raise ValueError("unet: mult is out of range")
    if not all(type(level) is int and level in attn for level in unet.attn):
        raise ValueError("unet: attn is out of range")
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in UNet(unet).state_dict().items()}
    if weights.keys() != shapes.keys():
        odd = sorted(map(str, shapes.keys() ^ weights.keys()))[0]
        raise ValueError(f"{odd:.60} is only in the file, or only in such a network")
    for name, value in weights.items():
        if value.shape != shapes[name] or not value.is_floating_point():
            raise ValueError(f"{name} has another shape than in such a network")
        if not value.isfinite().all():
            raise ValueError(f"{name} is not finite")


# --- a training: wanted, unfinished, resumed ------------------------------------------------------


def is_trained(run: Path, wanted: Checkpoint, restart: bool) -> bool:
    """Is the wanted model in `run`? With `restart`, or while it is being made anew, its file counts for nothing.

    Raises BadInput where it was trained otherwise, or a model beside it on other images; and where `load` would not
    take it, once it was trained.
    """
    try:
        _require_rules(dataclasses.asdict(wanted))
    except ValueError as error:
        raise BadInput(f"no such model can be read again ({error}): change train.py's preset") from error
    trained, anew = False, restart or _unfinished(run, wanted.name).exists()
    for name in NAMES:
        path = path_in(run, name)
        if path.exists() and not (anew and name == wanted.name):
            found = load(path)
            require_same_images(wanted, found, run)
            if name == wanted.name:
                _require_same(_identity(found), _identity(wanted), path)
                trained = True
    return trained


def save_unfinished(run: Path, wanted: Checkpoint, parts: dict, step: int) -> None:
    """Keep what the training needs to go on after `step` steps; `parts` are whatever has a state_dict.

    Its random numbers are a function of the step, its place in the epoch's permutation as well: see train.py.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    content = {"format": UNFINISHED, "training": _identity(wanted), "step": step}
    write_tensors(_unfinished(run, wanted.name), content | state)


def begin(run: Path, wanted: Checkpoint, parts: dict, anew: bool) -> None:
    """Save a training before its first step: a full disk shows now, and not in five minutes.

    Where it is trained `anew`, the old snapshots go: what it was underway the last time says nothing about this one.
    """
    save_unfinished(run, wanted, parts, 0)
    for snapshot in snapshots(run).values() if anew else []:
        path_in(snapshot, wanted.name).unlink(missing_ok=True)


def resume(run: Path, wanted: Checkpoint, parts: dict) -> int | None:
    """Load into `parts` what `save_unfinished` kept, and return its step; None where nothing was kept.

    Raises BadInput where that was another training, naming the difference.
    """
    path = _unfinished(run, wanted.name)
    if not path.exists():
        return None
    state = read_tensors(path, "an unfinished training of this project")
    if state.get("format") != UNFINISHED:
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
    except Exception as error:  # what somebody has made up can be wrong in any way
        raise BadInput(f"{path} is damaged ({in_a_line(error)}): --restart begins anew") from error
    return step


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> list[Tensor]:
    """Give Adam back its averages, which are returned, and nothing else: how it is set up is for train.py to say."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for parameter, averages in optimizer.state.items():
        if averages.keys() != {"step", "exp_avg", "exp_avg_sq"} or any(
            value.shape not in (parameter.shape, ()) for value in averages.values()
        ):
            raise ValueError("an average of another shape than its weight's")
    return [value for averages in optimizer.state.values() for value in averages.values()]


def _unfinished(run: Path, name: str) -> Path:
    return run / f"{name}.unfinished"


def _identity(wanted: Checkpoint) -> dict[str, str | int | float | None]:
    """All that makes one training another than another."""
    return wanted.settings | {
        "pixels": wanted.dataset["sha256"],
        "split": key_of(*(part.numpy() for part in _parts(wanted.split)))[:16],
        "unet": str(wanted.unet),
        "schedule": str(wanted.schedule),
    }


def weights_key(*models: Checkpoint) -> str:
    """A key that changes with any weight of these models."""
    return key_of(*(weight.numpy() for model in models for weight in model.weights.values()))[:16]


def _require_same(found: dict, wanted: dict, path: Path) -> None:
    for key in wanted:
        if wanted[key] != found.get(key):
            raise BadInput(
                f"{path} was trained with {key} = {found.get(key)}, not {wanted[key]}: "
                "--restart begins anew, --run names another directory"
            )


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Within the block SIGINT (Ctrl-C) and SIGTERM do no more than that their numbers are in the list."""
    caught, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's, or a shell's for what runs in its background
            before[number] = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require_finite(run: Path, name: str, step: int, recent: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Raise BadInput where one of the last steps went wrong.

    `recent` has of each, up to `step`, the loss, the norm of the gradient, and the timesteps of its images.
    """
    finite = torch.stack([loss + norm for loss, norm, _ in recent]).isfinite().tolist()  # a GPU is waited for once
    if not all(finite):
        wrong = finite.index(False)
        loss, norm, t = recent[wrong]
        what = "loss" if not loss.isfinite() else "gradient"
        raise BadInput(
            f"the {what} of {name} is no finite number at step {step - len(recent) + wrong + 1:,}, of images at t = "
            f"{t.min()} to {t.max()}; the last good checkpoint is {_unfinished(run, name)}; lower lr in train.py's "
            "preset, and --restart"
        )


# --- the field's format: what pytorch-ddpm writes, and SecMI, PIA and SimA read ------------------------
#
# A dict whose "ema_model" holds the weights ("net_model" those that are not averaged), named as unet.py names them but
# for the time embedding, of which it has the table, too. No size is written down; every GroupNorm has 32 groups.

GROUPS = 32
TABLE = "time_embedding.timembedding.0.weight"  # (T, ch)


def load_published(path: Path, dataset: dict, split: Split) -> Checkpoint:
    """A model in pytorch-ddpm's format, to the CPU, as the undefended one of this dataset and split.

    Its sizes are inferred from the shapes; the dropout that it was trained with leaves no trace. Raises BadInput
    where the file is none such, or holds another network.
    """
    content = read_tensors(path, PUBLISHED_KIND)
    if content.get("format") == FORMAT:
        raise BadInput(f"{path} is {KIND}: name its directory with --run")
    if not isinstance(content.get("ema_model"), dict):
        raise BadInput(f"{path} is not {PUBLISHED_KIND}: it has no ema_model")
    try:
        # the prefix is DataParallel's
        weights = {str(name).removeprefix("module."): value for name, value in content["ema_model"].items()}
        unet, table = _sizes_of(weights), weights.pop(TABLE)
        weights = {name.replace(".timembedding.", "."): value for name, value in weights.items()}
        _require_values("unet", dataclasses.asdict(unet))
        _require_network(unet, weights)
        if len(table) not in RULES["schedule"]["T"]:
            raise ValueError(f"{len(table)} timesteps")
        weights = {name: value.float() for name, value in weights.items()}
        off = (SinusoidalEmbedding(unet.ch)(torch.arange(len(table))) - table).abs().max().item()
    except Exception as error:  # what somebody has made up can be wrong in any way
        raise BadInput(f"{path} holds another network than pytorch-ddpm's ({in_a_line(error)})") from error
    if not off < 1e-3:
        raise BadInput(f"{path} holds another network than pytorch-ddpm's: its table of timesteps is off by {off:.3g}")
    settings = {"seed": dataset["seed"], "epochs": None}
    result = Checkpoint("all", dataset, split, split.members, settings, unet, weights)
    result.schedule["T"] = len(table)
    return result


def _sizes_of(weights: dict[str, Tensor]) -> UNetConfig:
    """The sizes of a U-Net, from the names and shapes of its weights on the way down."""
    levels = [[]]  # of each level the names of its residual blocks
    for layer in itertools.count():
        name = f"downblocks.{layer}"
        if f"{name}.block1.2.weight" in weights:
            levels[-1].append(name)
        elif f"{name}.main.weight" in weights:
            levels.append([])
        else:
            break
    ch = len(weights["head.weight"])
    mult = tuple(len(weights[f"{level[0]}.block1.2.weight"]) // ch for level in levels)
    attn = tuple(i for i, level in enumerate(levels) if f"{level[0]}.attn.proj_q.weight" in weights)
    return UNetConfig(ch, mult, attn, blocks=len(levels[0]), groups=GROUPS)


def require_publishable(unet: UNetConfig) -> None:
    """Raise BadInput where pytorch-ddpm's network would take the weights, and compute something else with them."""
    if unet.groups != GROUPS:
        raise BadInput(
            f"--export: this preset has GroupNorm({unet.groups}), pytorch-ddpm's network GroupNorm({GROUPS}): it would "
            "load the weights and compute something else; a model of --preset cifar10 can be exported"
        )


def publish(checkpoint: Checkpoint, path: Path) -> Path:
    """Write a model into `path` in pytorch-ddpm's format; and whom it was trained on, in SecMI's, into an .npz beside.

    "net_model", too, are the averaged weights, for no others are kept. Returns the .npz's path.
    """
    weights = {TABLE: SinusoidalEmbedding(checkpoint.unet.ch)(torch.arange(checkpoint.schedule["T"]))}
    for name, value in checkpoint.weights.items():
        weights[name.replace("time_embedding.", "time_embedding.timembedding.")] = value
    split, nonmembers = path.with_name(f"{path.stem}-split.npz"), checkpoint.split.nonmembers
    with atomic_write(split) as temporary, open(temporary, "wb") as file:
        members = checkpoint.trained_on.numpy()
        np.savez(file, mia_train_idxs=members, mia_eval_idxs=nonmembers[: len(members)].numpy())
    write_tensors(path, {"net_model": weights, "ema_model": weights})
    return split
