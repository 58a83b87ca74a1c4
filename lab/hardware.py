"""What makes a computation fast on this machine, and how much memory it took."""

import ctypes
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lab import distributed
from lab.files import BadInput, in_a_line


def bfloat16_is_faster(device: torch.device) -> bool:
    """Is a training faster in bfloat16 than in float32?

    The processor's instructions decide, and no clock, because the same seed must give the same weights. bfloat16
    doubles the speed of an AMD EPYC; an Intel Xeon without AMX is a third faster in float32; a processor without
    instructions for bfloat16 is many times slower in it.
    """
    if device.type != "cpu":
        return device.type == "cuda"
    has = torch.cpu.get_capabilities()
    amd = has.get("avx512_bf16", False) and "Intel" not in has.get("cpu_name", "")
    return has.get("amx_bf16", False) or amd or has.get("bf16", False)  # "bf16": ARM's


def accelerated(model: nn.Module, ema: nn.Module, args: Namespace, steps: int) -> nn.Module:
    """The model for a training of so many steps: its gradients are means over all processes, and it may be compiled.

    --compile decides that; by default only long trainings on a GPU are compiled. On a CPU a compilation took a minute,
    and gained nothing on an AMD EPYC, a third on an Intel Xeon. On an H200 it took 158 seconds and gained a quarter, so
    it pays after about 10,000 steps of the cifar10 preset. On a GPU `model` and `ema` also get the memory layout
    that tensor cores need. Raises BadInput where --compile is given and torch.compile does not work.
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


def reuse_memory() -> None:
    """Make the C library keep freed memory for the next tensor, instead of giving it back to the system.

    The system clears each page that it hands out, and glibc asks it for every block over 32 MB: that takes as long as
    all computation in a training step of the cifar10 preset. Call this after the images are loaded, because large
    images would leave gaps in the memory.
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
