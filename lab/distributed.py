"""Several processes of torchrun train one model, each on its share of every batch. Without it there is rank 0 of 1."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lab.files import BadInput
from unet import Dropout

# torchrun sets them all; without the first, the others are left from another program
ELASTIC = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}
RANK = int(ELASTIC.get("RANK", 0))
LOCAL_RANK = int(ELASTIC.get("LOCAL_RANK", 0))  # among the processes of this machine
WORLD = int(ELASTIC.get("WORLD_SIZE", 1))


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Connect this process with the others while the block lasts."""
    if WORLD > 1:  # the others wait while one process downloads or reads a large dataset
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield
    except RuntimeError as error:
        if WORLD > 1 and any(word in str(error) for word in ("Connection", "NCCL", "gloo")):
            time.sleep(6)  # for when this process ends, torchrun ends the one that says why
            raise BadInput("another process of this training has ended, and says why; so this one ends too") from error
        raise
    finally:
        if WORLD > 1:
            dist.destroy_process_group()


def require_same(*what: str | int) -> None:
    """Raise BadInput unless all processes have found the same on their disks."""
    found = [what] * WORLD
    if WORLD > 1:
        dist.all_gather_object(found, what)
    if len(set(found)) > 1:
        shared = "--data-dir and --run must name directories that they share"
        raise BadInput(f"the processes see different files ({found}): {shared}")


def share(n: int, model: nn.Module) -> tuple[slice, float]:
    """The images of a batch of n that this process computes, and the weight of its mean loss.

    With these weights the mean over all processes is the mean over the batch. With more processes than images, some
    get another's image with weight 0, because all have to take part. The model's dropout is told the images too.
    """
    first, last = n * RANK // WORLD, n * (RANK + 1) // WORLD
    mine, weight = (slice(first, last), WORLD * (last - first) / n) if first < last else (slice(1), 0.0)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.rows = n, mine
    return mine, weight


def mean(x: Tensor) -> Tensor:
    """The mean of a scalar over all processes."""
    if WORLD > 1:
        dist.all_reduce(x)
    return x / WORLD
