"""A trained model as a file, with everything that is needed to judge it: weights, sizes, dataset, split, settings.

A run directory holds the models of NAMES, or some. Only this module knows the format. `load` reads a file as data,
never as code, and checks all types, sizes and ranges. The rest of the project trusts a `Checkpoint`.
"""

import dataclasses
import functools
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import data
from data import Split
from dualmd import NoiseSchedule
from lab.datasets import DATASETS, LARGEST_SIZE, published_split
from lab.files import BadInput, in_a_line, key_of, read_tensors, write_tensors
from unet import UNet, UNetConfig

FORMAT = "dualmd checkpoint 2"
KIND = "a checkpoint of this project"
TEACHERS = {"cross": ["A", "B"], "average": ["A", "B"], "single": ["all"], "reference": ["reference"]}  # by targets
NAMES = ("all", "A", "B", *(f"distill-{targets}" for targets in TEACHERS), "reference")


@dataclass
class Checkpoint:
    name: str  # one of NAMES
    dataset: dict  # name, data_dir, size, seed: the arguments of data.load; sha256: of the pixels
    split: Split
    settings: dict  # of the training: seed, steps, batch, lr, ...
    unet: UNetConfig
    weights: dict[str, Tensor] = field(default_factory=dict)  # the averaged (EMA) ones; empty before the training
    schedule: dict = field(default_factory=lambda: {"T": 1000, "beta_1": 1e-4, "beta_T": 0.02})

    @property
    def trained_on(self) -> Tensor:
        """The indices of the images that this model is trained on, int64 (N,)."""
        own = {"A": self.split.a, "B": self.split.b}
        own |= dict.fromkeys(["reference", "distill-reference"], self.split.reference)
        return own.get(self.name, self.split.members)

    def difference(self, other: "Checkpoint", *keys: str) -> str:
        """The first of these keys in which two models differ, as "KEY = OURS, not THEIRS"; "" if there is none."""
        ours, theirs = (
            model.settings
            | model.dataset
            | {"members": len(model.split.members), "unet": model.unet, "schedule": model.schedule}
            | {"split": key_of(*(part.numpy() for part in vars(model.split).values()))[:16]}
            for model in (self, other)
        )
        keys = [key for key in keys if key != "sha256" or theirs[key]]  # of a new model, before its images are read
        return next((f"{key} = {ours.get(key)}, not {theirs[key]}" for key in keys if ours.get(key) != theirs[key]), "")

    def eps_model(self, device: torch.device | str = "cpu") -> UNet:
        """The network in eval mode, without gradients."""
        model = UNet(self.unet)
        model.load_state_dict(self.weights)
        return model.to(device).eval().requires_grad_(False)

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule(**self.schedule)


def path_in(run: Path, name: str) -> Path:
    return run / f"{name}.pt"


def snapshot_in(run: Path, steps: int) -> Path:
    """The run directory, inside `run`, for the models as they were after so many steps."""
    return run / f"step-{steps:06d}"


def snapshots(run: Path) -> list[Path]:
    """The run directories of all snapshots in `run`, in the order of their steps, without those that were emptied."""
    found = [path for path in run.glob("step-*") if path.name[5:].isdecimal() and any(path.glob("*.pt"))]
    return sorted(found, key=lambda path: int(path.name[5:]))


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Write the model into `run`, whole or not at all. Raises BadInput where it cannot be written."""
    write_tensors(path_in(run, checkpoint.name), {"format": FORMAT} | dataclasses.asdict(checkpoint))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU. Raises BadInput where there is no file, or the file is not one of this project."""
    content = read_tensors(path, KIND)
    if (written := content.pop("format", None)) != FORMAT:
        if str(written).startswith(FORMAT[:-1]):
            raise BadInput(f"{path} was written by another version of this project ({written}): train the model again")
        hint = "; evaluate.py --checkpoint attacks those of pytorch-ddpm" if "ema_model" in content else ""
        raise BadInput(f"{path} is not {KIND}: it does not say {FORMAT!r}{hint}")
    try:
        checkpoint = checked(content)
    except Exception as error:  # made-up content can fail in any way
        raise BadInput(f"{path} is a damaged checkpoint ({in_a_line(error)})") from error
    if path.stem in NAMES and path.stem != checkpoint.name:
        raise BadInput(f"{path} holds the model {checkpoint.name}: rename it to {checkpoint.name}.pt")
    return checkpoint


def load_run(run: Path, without: str | None = None) -> dict[str, Checkpoint]:
    """The finished models of a run directory by name, in the order of NAMES, and `without` one of them.

    Raises BadInput where two have different images or splits: A's half of one is not disjoint from B's of another.
    """
    paths = [path_in(run, name) for name in NAMES if name != without]
    found = {path.stem: load(path) for path in paths if path.exists()}
    for other in list(found.values())[1:]:
        require_same_images(next(iter(found.values())), other, run)
    return found


def require_same_images(one: Checkpoint, other: Checkpoint, run: Path) -> None:
    """Raise BadInput unless both models have the same images and the same split."""
    if found := other.difference(one, "name", "size", "seed", "members", "sha256", "split"):
        advice = "give each experiment (--dataset, --size, --seed, --members, --member-split) a --run of its own"
        raise BadInput(f"{run}: {other.name} and {one.name} differ ({found}); {advice}")


def split_for(args: Namespace, n: int, members: int | None = None, block: int = 1) -> Split:
    """The split of n images that --members (default: `members`), --seed and --member-split ask for."""
    pools = published_split(args.member_split, n) if args.member_split else None
    return data.index_split(n, args.members or members, args.seed or 0, pools, block)


def load_images(checkpoint: Checkpoint, data_dir: str | None) -> Tensor:
    """The dataset of this model, from `data_dir` or else from where its training found it."""
    its, where = checkpoint.dataset, data_dir or checkpoint.dataset["data_dir"]
    images = data.load(its["name"], where, its["size"], its["seed"])
    require_images(checkpoint, images)
    return images


def require_images(checkpoint: Checkpoint, images: Tensor) -> None:
    """Raise BadInput unless these images are those that the model's indices refer to. A new model gets their key."""
    last, found = torch.cat(list(vars(checkpoint.split).values())).max(), data.fingerprint(images)
    checkpoint.dataset["sha256"] = checkpoint.dataset["sha256"] or found
    if found != checkpoint.dataset["sha256"] or last >= len(images):
        mine = f"these {checkpoint.dataset['name']} images are not those that {checkpoint.name} was trained on"
        raise BadInput(f"{mine}; name their directory with --data-dir")


def require_size(size: int, unet: UNetConfig) -> None:
    """Raise BadInput for a side of images that is too large, or that this network cannot halve so often."""
    halvings = len(unet.mult) - 1
    if size > LARGEST_SIZE or size % 2**halvings:
        multiple = f"a multiple of {2**halvings}, because this network halves it {halvings} times"
        raise BadInput(f"--size {size}: must be at most {LARGEST_SIZE}, and {multiple}")


def weights_key(*models: Checkpoint) -> str:
    """A key that changes with any weight of these models."""
    return key_of(*(weight.detach().numpy() for model in models for weight in model.weights.values()))[:16]


# --- what a file may say ------------------------------------------------------------------------------

# The rule of each value: all that it can be, the ends of a range of fractions (with None if it can be that), its type,
# or [the rule of each entry of a tuple]. The ranges are wide, but a stranger's numbers may not fill the memory.
SEED, SIZE, COUNT, FRACTION = range(2**32), range(1, LARGEST_SIZE + 1), range(1, 2**31), (0.0, 1.0)
RULES = {
    "dataset": {"name": DATASETS, "data_dir": str | None, "size": SIZE, "seed": SEED, "sha256": str},
    "settings": {"preset": str, "seed": SEED, "members": COUNT, "steps": COUNT, "batch": COUNT, "lr": (0.0, 10.0)}
    | {"warmup": COUNT, "cosine": bool, "ema": FRACTION, "flip": bool, "bfloat16": bool}
    | {"member_split": str | None, "teachers": str | None, "targets": ("noise", *TEACHERS)}
    | {"weight_decay": (0.0, 10.0, None), "epsilon": (0.1, 1e4, None)},
    "schedule": {"T": range(1, 10**5), "beta_1": (1e-9, 0.999), "beta_T": (1e-9, 0.999)},
    "unet": {"ch": range(2, 4097, 2), "mult": [range(1, 65)], "attn": [range(8)], "blocks": range(1, 17)}
    | {"dropout": (0.0, 0.99), "groups": range(1, 4097)},
}


def require_rules(content: dict[str, dict]) -> None:
    """Raise ValueError unless each part of `content` has the names that RULES has, and each value keeps its rule."""
    for part, values in content.items():
        rules = RULES.get(part, {})
        if rules and not values.keys() <= rules.keys():
            raise ValueError(f"{part} has other entries than {', '.join(rules)}")
        for name, rule in rules.items():
            value = values.get(name)
            if isinstance(rule, range):
                fits = type(value) is int and value in rule
            elif isinstance(rule, list):
                fits = type(value) is tuple and len(value) <= 8 and all(type(x) is int and x in rule[0] for x in value)
            elif isinstance(rule, tuple) and isinstance(rule[0], str):
                fits = type(value) is str and value in rule
            elif isinstance(rule, tuple):
                fits = value in rule[2:] or (type(value) in (int, float) and rule[0] <= value <= rule[1])
            else:
                fits = isinstance(value, rule)
            if not fits:
                shown = value if isinstance(value, int | float | str) else f"a {type(value).__name__}"
                raise ValueError(f"{part}: {name} cannot be {shown}")


def checked(content: dict) -> Checkpoint:
    """The checkpoint that a file describes. Raises ValueError, or any other error, where it cannot be one."""
    content |= {part: dict.fromkeys(rules) | content[part] for part, rules in RULES.items()}  # None for what is missing
    require_rules({part: content[part] for part in RULES})
    content["split"], content["unet"] = Split(**content["split"]), UNetConfig(**content["unet"])
    checkpoint = Checkpoint(**content)
    if not isinstance(checkpoint.name, str) or checkpoint.name not in NAMES:
        raise ValueError(f"its name is none of {', '.join(NAMES)}")
    parts = list(vars(checkpoint.split).values())
    if any(part.dtype != torch.int64 or part.dim() != 1 or not part.is_contiguous() for part in parts):
        raise ValueError("its split holds other things than indices")
    every = torch.cat(parts)
    if len(checkpoint.split.a) == 0 or every.min() < 0 or len(every.unique()) < len(every):
        raise ValueError("its split has no members, or has an image twice")
    require_network(checkpoint.unet, checkpoint.weights)
    require_size(checkpoint.dataset["size"], checkpoint.unet)
    return checkpoint


def require_network(unet: UNetConfig, weights: dict[str, Tensor]) -> None:
    """Raise ValueError unless these are the weights of such a network, within RULES. No network is built for it."""
    shapes = _shapes(unet)
    if weights.keys() != shapes.keys():
        odd = sorted(map(str, shapes.keys() ^ weights.keys()))[0]
        raise ValueError(f"{odd:.60} is only in the file, or only in such a network")
    for name, value in weights.items():
        if value.shape != shapes[name] or not value.is_floating_point():
            raise ValueError(f"{name} has another shape than in such a network")
        if not value.isfinite().all():
            raise ValueError(f"{name} is not finite")


@functools.cache  # it takes a tenth of a second, and the models of a run have the same sizes
def _shapes(unet: UNetConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in UNet(unet).state_dict().items()}
