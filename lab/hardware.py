"""What makes a computation fast on this machine, and how much memory it took."""

import ctypes
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from lab.distributed import synchronised
from lab.files import BadInput, in_a_line


def bfloat16_is_faster(device: torch.device) -> bool:
    """Is a training faster in bfloat16 than in float32?

    The processor's instructions decide, and no clock, because the same seed must give the same weights. bfloat16
    doubles the speed of an AMD EPYC. An Intel Xeon without AMX is a third faster in float32. A processor without
    instructions for bfloat16 is many times slower in it.
    """
    if device.type != "cpu":
        return device.type == "cuda"
    has = torch.cpu.get_capabilities()
    amd = has.get("avx512_bf16", False) and "Intel" not in has.get("cpu_name", "")
    return has.get("amx_bf16", False) or amd or has.get("bf16", False)  # "bf16": ARM's


def accelerated(model: nn.Module, ema: nn.Module, args: Namespace, steps: int) -> nn.Module:
    """The model for a training of so many steps: its gradients are the mean over all processes; it may be compiled.

    On a GPU it also changes the memory layout of `model` and `ema` to the one that tensor cores need.
    """
    if args.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        for network in (model, ema):
            network.to(memory_format=torch.channels_last)
    network = synchronised(model)
    return torch.compile(network, dynamic=False) if compiles(args.compile, args.device, steps) else network


def compiles(wanted: bool | None, device: torch.device, steps: int) -> bool:
    """Is a training of so many steps to be compiled? --compile decides; by default only long ones on a GPU are.

    On a CPU the compilation took a minute. It gained nothing on an AMD EPYC, and a third on an Intel Xeon. Raises
    BadInput where it is wanted and torch.compile finds no compiler.
    """
    if wanted is False or (wanted is None and (device.type != "cuda" or steps < 5000)):
        return False
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=device))
    except Exception as error:  # a compiler, its headers or triton may be missing
        if wanted:
            raise BadInput(f"--compile: torch.compile does not work on this machine ({in_a_line(error)})") from error
        return False
    return True


def reuse_memory() -> None:
    """Make the C library keep freed memory for the next tensor, instead of giving it back to the system.

    The system clears each page that it hands out. glibc asks it anew for every block over 32 MB, which takes as long
    as all computation in a training step of the cifar10 preset. Call this function after the images are loaded:
    large images would leave gaps in the memory that nothing fills.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes that this process had, or had on its GPU; 0 on Windows, which does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, IndexError):  # Linux; getrusage would include the memory of the parent process
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
