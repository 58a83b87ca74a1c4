"""What makes a computation fast on this machine, and how much memory it took."""

import copy
import ctypes
import timeit
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualmd import EpsModel
from lab import distributed
from lab.files import BadInput, in_a_line
from unet import UNet, UNetConfig


def bfloat16_is_faster(device: torch.device) -> bool:
    """Is a training faster in bfloat16 than in float32? The processor's instructions decide: a clock would vary.

    An AMD EPYC is twice as fast in it, an Intel Xeon without AMX a third slower, others many times.
    """
    if device.type != "cpu":
        return device.type == "cuda"
    has = torch.cpu.get_capabilities()
    amd = has.get("avx512_bf16", False) and "Intel" not in has.get("cpu_name", "")
    return has.get("amx_bf16", False) or amd or has.get("bf16", False)  # "bf16": ARM's


def accelerated(model: nn.Module, ema: nn.Module, args: Namespace, steps: int) -> nn.Module:
    """The model for a training of so many steps: its gradients are means over all processes, and it may be compiled.

    --compile decides that; by default only long trainings on a GPU are (158 seconds on an H200, for a quarter). There
    both networks get tensor cores' memory layout, too. Raises BadInput if --compile is given and does not work.
    """
    on_gpu = args.device.type == "cuda"
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        for network in (model, ema):
            network.to(memory_format=torch.channels_last)
    network = DistributedDataParallel(model) if distributed.WORLD > 1 else model
    if args.compile or (args.compile is None and on_gpu and steps >= 10_000):
        try:
            torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=args.device))
            return torch.compile(network, dynamic=False)
        except Exception as error:  # a compiler, its headers or triton may be missing
            if args.compile:
                problem = f"torch.compile does not work on this machine ({in_a_line(error)})"
                raise BadInput(f"--compile: {problem}") from error
    return network


def for_sampling(network: UNet, T: int) -> EpsModel:
    """A copy of the network that generates images faster: in bfloat16, where trainings use that, for t from 0 to T - 1.

    The embeddings of all timesteps are computed once, in float32: bfloat16 doesn't tell 999 from 1000. Not for attacks.
    """
    device, fast = network.head.weight.device, copy.deepcopy(network)
    fast.time_embedding = nn.Embedding.from_pretrained(network.time_embedding(torch.arange(T, device=device)))
    # a CPU's group norms are slow in channels_last, and only a wide network gains more from its convolutions
    layout = torch.channels_last if device.type == "cuda" or network.config.ch >= 128 else torch.contiguous_format
    to = {"dtype": torch.bfloat16 if bfloat16_is_faster(device) else torch.float32, "memory_format": layout}
    fast.to(**to)
    return lambda x, t: fast(x.to(**to), t).to(x.dtype, memory_format=torch.contiguous_format)


@contextmanager
def on_all_cores(eps_model: EpsModel, device: torch.device) -> Iterator[EpsModel]:
    """The same eps model while the block lasts: on a CPU each core computes a part of every batch, with one thread."""
    cores = torch.get_num_threads() if device.type == "cpu" else 1

    def answer(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([*pool.map(eps_model, x.chunk(cores), t.chunk(cores))])

    with ThreadPoolExecutor(cores, "", torch.set_num_threads, (1,)) as pool:
        try:
            yield answer if cores > 1 else eps_model
        finally:
            torch.set_num_threads(cores)  # or later threads would have one, as these


def seconds_a_step(unet: UNetConfig, size: int, batch: int, device: torch.device) -> float:
    """How long a training step takes with one thread: the fastest of three."""
    network, cores = UNet(unet).to(device), torch.get_num_threads()
    x, t = torch.zeros(batch, 3, size, size, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
    torch.set_num_threads(1)
    times = timeit.repeat(lambda: F.mse_loss(network(x, t), x).backward(), number=1, repeat=3)
    torch.set_num_threads(cores)
    return min(times)


def reuse_memory() -> None:
    """Make the C library keep freed memory for the next tensor, instead of giving it back to the system.

    The system clears each page, which takes as long as a step's computation. Large images leave gaps: load them before.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes that this process had, on a GPU or on Linux; 0 elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, IndexError):  # getrusage would include the memory of the parent process
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return 0
