"""The field's checkpoint format: pytorch-ddpm writes it, and the code of SecMI, PIA and SimA reads it.

A file is a dict. Its "ema_model" holds the averaged weights, its "net_model" those of the last step. Their names are
those of unet.py, except in the time embedding, whose table is saved too. No size is saved. A GroupNorm has 32 groups.
"""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lab import checkpoint
from lab.checkpoint import Checkpoint
from lab.files import BadInput, atomic_write, in_a_line, read_tensors, write_tensors
from unet import SinusoidalEmbedding, UNetConfig

KIND = "a checkpoint in pytorch-ddpm's format"
GROUPS = 32
TABLE = "time_embedding.timembedding.0.weight"  # (T, ch)


def load_published(path: Path) -> tuple[UNetConfig, dict[str, Tensor], int]:
    """Sizes of a model in pytorch-ddpm's format, but for its dropout; its averaged weights; its T. Raises BadInput."""
    content = read_tensors(path, KIND)
    if content.get("format") == checkpoint.FORMAT:
        raise BadInput(f"{path} is {checkpoint.KIND}: name its directory with --run")
    if not isinstance(content.get("ema_model"), dict):
        raise BadInput(f"{path} is not {KIND}: it has no ema_model")
    try:
        # DataParallel and torch.compile put prefixes in front, AveragedModel counts
        weights = {re.sub(r"^((module|_orig_mod)\.)+", "", str(k)): v.detach() for k, v in content["ema_model"].items()}
        weights.pop("n_averaged", None)
        unet, table = _sizes_of(weights), weights.pop(TABLE)
        weights = {name.replace(".timembedding.", "."): value for name, value in weights.items()}
        checkpoint.require_rules({"unet": dataclasses.asdict(unet)})
        checkpoint.require_network(unet, weights)
        if len(table) not in checkpoint.RULES["schedule"]["T"]:
            raise ValueError(f"{len(table)} timesteps")
        off = (SinusoidalEmbedding(unet.ch)(torch.arange(len(table))) - table).abs().max().item()
        if not off < max(1e-3, torch.finfo(table.dtype).eps):  # a table in half precision is rounded
            raise ValueError(f"its table of timesteps is off by {off:.3g}")
    except Exception as error:  # made-up content can fail in any way
        raise BadInput(f"{path} holds another network than pytorch-ddpm's ({in_a_line(error)})") from error
    return unet, {name: value.float() for name, value in weights.items()}, len(table)


def _sizes_of(weights: dict[str, Tensor]) -> UNetConfig:
    """The sizes of a U-Net, from the names and shapes of the weights in its downward half."""
    levels = [[]]  # the names of the residual blocks, by level
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
    """Raise BadInput where pytorch-ddpm's network would load the weights and compute something else with them."""
    if unet.groups != GROUPS:
        theirs = f"pytorch-ddpm's network has GroupNorm({GROUPS}) and would compute something else"
        mine = f"--export: this preset has GroupNorm({unet.groups})"
        raise BadInput(f"{mine}, {theirs}; a model of --preset cifar10 can be exported")


def publish(model: Checkpoint, path: Path) -> Path:
    """Write a model into `path` in pytorch-ddpm's format, and its members in SecMI's format into an .npz beside it.

    "net_model" gets the averaged weights too, because no others are kept. Returns the path of the .npz.
    """
    weights = {TABLE: SinusoidalEmbedding(model.unet.ch)(torch.arange(model.schedule["T"]))}
    for name, value in model.weights.items():
        weights[name.replace("time_embedding.", "time_embedding.timembedding.")] = value
    split, members = path.with_name(f"{path.stem}-split.npz"), model.trained_on.numpy()
    nonmembers = model.split.nonmembers[: len(members)].numpy()
    with atomic_write(split) as temporary, open(temporary, "wb") as file:
        np.savez(file, mia_train_idxs=members, mia_eval_idxs=nonmembers)
    write_tensors(path, {"net_model": weights, "ema_model": weights})
    return split
