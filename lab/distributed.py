"""Several processes that train one model together, each on its share of every batch, started by torchrun.

A process that was started as usual is rank 0 of 1, for which all of this does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lab.files import BadInput

RANK = int(os.environ.get("RANK", 0))  # torchrun sets these three
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # among the processes of this machine
WORLD = int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the others for as long as the block lasts."""
    if WORLD == 1:
        yield
        return
    # whoever downloads or reads a large dataset lets the others wait
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield
    except RuntimeError as error:
        if any(word in str(error) for word in ("Connection closed", "Connection reset", "NCCL", "gloo")):
            raise BadInput("another process of this training has ended, and says why; so this one ends, too") from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """The block is rank 0's to run before the others do, so that what has to be downloaded is downloaded once."""
    if WORLD > 1 and RANK > 0:
        dist.barrier()
    yield
    if WORLD > 1 and RANK == 0:
        dist.barrier()


def require_same(*what: str | int) -> None:
    """Raise BadInput unless all processes say the same of what they have found on their disks."""
    found = [what]
    if WORLD > 1:
        found = [None] * WORLD
        dist.all_gather_object(found, what)
    if len(set(found)) > 1:
        raise BadInput(
            f"the processes see different files ({found}): --data-dir and --run must name directories that they share"
        )


def share(n: int) -> tuple[slice, float]:
    """Which of the n images of a batch are this process's, and the weight of their mean loss.

    With these weights the mean over all processes is the mean over the batch. Where there are more processes than
    images, some have one that is another's, of weight 0: they have to take part.
    """
    first, last = n * RANK // WORLD, n * (RANK + 1) // WORLD
    weight = WORLD * (last - first) / n
    return (slice(first, last), weight) if weight else (slice(1), weight)


def synchronised(model: nn.Module) -> nn.Module:
    """The same model, whose gradients are after each backward() the mean over all processes."""
    return DistributedDataParallel(model) if WORLD > 1 else model


def mean(x: Tensor) -> Tensor:
    """The mean over all processes of a scalar."""
    if WORLD > 1:
        dist.all_reduce(x)
        x /= WORLD
    return x
