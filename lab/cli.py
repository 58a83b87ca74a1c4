"""What the scripts share: flags of one name and meaning, the device, seeds, and errors in one line."""

import argparse
import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from data import DATASETS, LARGEST_SIZE
from lab import distributed
from lab.files import BadInput, in_a_line
from unet import UNetConfig

ATTACKS = ["loss", "sima", "pia", "secmi"]  # --attack's default: what takes minutes for a whole study on a laptop


def plain_parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser that shows a script's docstring, and whose errors are one line; what computes has --device."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.error = lambda message: fail(f"{message} (--help lists all flags)")
    result.add_argument("--device", type=device, default="auto", help="cpu, cuda, mps (default: cuda, if there is one)")
    return result


def parser(doc: str, dataset: str = "cifar10", runs: str | None = None) -> argparse.ArgumentParser:
    """The same with the flags that every script about a run takes; with `runs` "+", --run names one or more."""
    result = plain_parser(doc)
    which = result.add_argument_group("which images, which run")
    which.add_argument("--dataset", choices=DATASETS, default=dataset, help="(default: %(default)s)")
    which.add_argument("--data-dir", help="where the images are, or are downloaded to (default: data/)")
    which.add_argument("--run", type=Path, nargs=runs, help="directory of the run's models (default: runs/DATASET)")
    return result


def add_member_split(parser: argparse._ActionsContainer) -> None:
    help = "who is a member: an .npz with mia_train_idxs and mia_eval_idxs, as SecMI's authors publish it"
    parser.add_argument("--member-split", metavar="NPZ", type=Path, help=f"{help} (default: split by --seed)")


def run_directory(args: argparse.Namespace) -> Path:
    return args.run or Path("runs") / args.dataset


def device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"this machine's torch has no device {name!r}") from error
    if name == "cuda" and distributed.WORLD > 1:
        torch.cuda.set_device(distributed.LOCAL_RANK)
        return torch.device("cuda", distributed.LOCAL_RANK)
    return torch.device(name)


def bfloat16_is_faster(device: torch.device) -> bool:
    """Is a training faster in bfloat16 than in float32?

    Told by what the processor has, not by the clock: the same seed is to give the same weights. bfloat16 doubles the
    speed of an AMD EPYC; an Intel Xeon without AMX is a third faster in float32; and a processor without instructions
    for bfloat16 computes it all the same, many times slower.
    """
    if device.type != "cpu":
        return device.type == "cuda"
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    has = torch.cpu.get_capabilities()
    return has.get("amx_bf16", False) or "Intel" not in has.get("cpu_name", "")


def compiles(wanted: bool | None, device: torch.device, steps: int) -> bool:
    """Is a training of so many steps to be compiled? As --compile says; else where it repays its start, on a GPU.

    On a CPU it has been seen to take a minute and to gain nothing (AMD EPYC), or a third (Intel Xeon). Raises
    BadInput where it is wanted, and torch.compile finds no compiler.
    """
    if wanted is False or (wanted is None and (device.type != "cuda" or steps < 5000)):
        return False
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing: a compiler, its headers, triton
        if wanted:
            raise BadInput(f"--compile: torch.compile does not work on this machine ({in_a_line(error)})") from error
        return False
    return True


def natural(text: str) -> int:
    """Type of a flag that takes 1, 2, 3, ..."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive whole number")
    return value


def require_size(size: int, unet: UNetConfig) -> None:
    """Raise BadInput for a --size of images that this network cannot halve and double again, or that is too large."""
    if size > LARGEST_SIZE:
        raise BadInput(f"--size {size}: must be {LARGEST_SIZE} at most")
    halvings = len(unet.mult) - 1
    if size % 2**halvings:
        raise BadInput(
            f"--size {size}: must be a multiple of {2**halvings}, for this network halves it {halvings} times"
        )


def seed(text: str) -> int:
    """Type of --seed; numpy's generator takes 32 bits."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 2**32 - 1")
    return value


def seed_for(*purpose: str | int) -> int:
    """A seed that is a function of what it is for: seed_for(0, "A", "step", 7) has nothing in common with step 8's.

    Python hashes a string seed by SHA-512, the same on every machine.
    """
    return random.Random("/".join(map(str, purpose))).getrandbits(63)


def fail(message: str, status: int = 2) -> None:
    if distributed.RANK > 0:  # rank 0 mostly says the same, and then torchrun ends this process
        time.sleep(3)
        message = f"rank {distributed.RANK}: {message}"
    message = "".join(c if c.isprintable() else "?" for c in message)  # whatever a file is called, or says
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)


def reuse_memory() -> None:
    """Have memory that was freed used again, where it would go back to the system and be fetched for the next tensor.

    The system clears each page that it hands out. glibc asks it anew for every block over 32 MB, which takes as long
    as all computation in a training step of the cifar10 preset. After the first few steps nothing is fetched any more.
    Call it when the images are there: reading large ones would leave holes that nobody fills.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has had, in bytes, or on its GPU; 0 on Windows, which cannot say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, IndexError):  # Linux, where getrusage counts what the process that started this one had
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(main: Callable[[], None], several: bool = False) -> None:
    """Call a script's main; what the user can mend ends in one line and exit status 2.

    `several` says that torchrun may start it: then rank 0 alone prints. SIGTERM ends it as Ctrl-C does: what it has
    begun is tidied up.
    """
    with suppress(ValueError):  # in a thread
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if distributed.RANK > 0:
        sys.stdout = open(os.devnull, "w")
    try:
        if distributed.WORLD > 1 and not several:
            raise BadInput("torchrun is for train.py; this is to be started as usual, with python")
        main()
    except BadInput as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)
