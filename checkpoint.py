"""A trained model as a file, with all that it takes to judge it: weights, sizes, dataset, split, settings.

A run directory holds up to six: all.pt, A.pt, B.pt, distill-cross.pt, distill-average.pt and an
attacker's reference.pt; and an `.unfinished` file for each training that is not over.
Nothing outside this module knows the format, nor that of the field, pytorch-ddpm's, in which models
come in and go out. Files are read with `weights_only=True`: as data, never as code.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import data
from data import Split
from dualmd import NoiseSchedule
from files import BadInput, atomic_write, in_a_line, read_tensors
from unet import SinusoidalEmbedding, UNet, UNetConfig

FORMAT = "dualmd checkpoint 1"
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


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Write the finished model into `run`, whole or not at all; its `.unfinished` file has served."""
    with atomic_write(path_in(run, checkpoint.name)) as temporary:
        torch.save({"format": FORMAT} | dataclasses.asdict(checkpoint), temporary)
    _unfinished(run, checkpoint.name).unlink(missing_ok=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, to the CPU. Raises BadInput where there is none, or the file is none of ours."""
    content = read_tensors(path, KIND)
    if content.pop("format", None) != FORMAT:
        hint = "; evaluate.py --checkpoint attacks those of pytorch-ddpm" if "ema_model" in content else ""
        raise BadInput(f"{path} is not {KIND}: it does not say {FORMAT!r}{hint}")
    try:
        content["split"], content["unet"] = Split(**content["split"]), UNetConfig(**content["unet"])
        checkpoint = Checkpoint(**content)
        checkpoint.eps_model()  # do weights and sizes fit?
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path} is a damaged checkpoint: {str(error).splitlines()[0]}") from error
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
    if data.fingerprint(images) != checkpoint.dataset["sha256"]:
        raise BadInput(
            f"these {checkpoint.dataset['name']} images are not those that {checkpoint.name} was trained on; "
            "name their directory with --data-dir"
        )


# --- a training: wanted, unfinished, resumed ------------------------------------------------------


def is_trained(run: Path, wanted: Checkpoint, restart: bool) -> bool:
    """Is the wanted model in `run`? With `restart` its file counts for nothing.

    Raises BadInput where it was trained otherwise, or a model beside it on other images.
    """
    trained = False
    for name in NAMES:
        path = path_in(run, name)
        if path.exists() and not (restart and name == wanted.name):
            found = load(path)
            require_same_images(wanted, found, run)
            if name == wanted.name:
                _require_same_settings(found.settings, wanted.settings, path)
                trained = True
    return trained


def save_unfinished(run: Path, wanted: Checkpoint, parts: dict, step: int) -> None:
    """Keep what the training needs to go on after `step` steps; `parts` are whatever has a state_dict."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_write(_unfinished(run, wanted.name)) as temporary:
        torch.save({"settings": wanted.settings, "pixels": wanted.dataset["sha256"], "step": step} | state, temporary)


def resume(run: Path, wanted: Checkpoint, parts: dict) -> int:
    """Load into `parts` what `save_unfinished` kept, and return its step; 0 where nothing was kept."""
    path = _unfinished(run, wanted.name)
    if not path.exists():
        return 0
    state = read_tensors(path, KIND)
    try:
        found = state["settings"] | {"pixels": state["pixels"]}
        _require_same_settings(found, wanted.settings | {"pixels": wanted.dataset["sha256"]}, path)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"]
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path} is damaged: --restart begins anew") from error


def _unfinished(run: Path, name: str) -> Path:
    return run / f"{name}.unfinished"


def _require_same_settings(found: dict, wanted: dict, path: Path) -> None:
    for key in wanted:
        if wanted[key] != found.get(key):
            raise BadInput(
                f"{path} was trained with {key} = {found.get(key)}, not {wanted[key]}: "
                "--restart begins anew, --run names another directory"
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
    # the prefix is DataParallel's
    weights = {str(name).removeprefix("module."): value for name, value in content["ema_model"].items()}
    try:
        unet, table = _sizes_of(weights), weights.pop(TABLE)
        weights = {name.replace(".timembedding.", "."): value.float() for name, value in weights.items()}
        UNet(unet).load_state_dict(weights)
        off = (SinusoidalEmbedding(unet.ch)(torch.arange(len(table))) - table).abs().max().item()
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
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
    with atomic_write(path) as temporary:
        torch.save({"net_model": weights, "ema_model": weights}, temporary)
    return split
