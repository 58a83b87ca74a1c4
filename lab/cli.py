"""What the scripts share: flags with one name and one meaning, the device, seeds, and errors in one line."""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lab import distributed
from lab.datasets import DATASETS
from lab.files import BadInput

ATTACKS = ["loss", "sima", "pia", "secmi"]  # --attack's default: a whole study then takes minutes on a laptop


def plain_parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser with --device. Its help starts with a script's docstring, and its errors are one line."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.error = lambda message: fail(f"{message} (--help lists all flags)")
    result.add_argument("--device", type=device, default="auto", help="cpu, cuda or mps (default: cuda if present)")
    return result


def parser(doc: str, dataset: str = "cifar10", several: bool = False, members: str = "") -> argparse.ArgumentParser:
    """`plain_parser` with the flags that choose images and a run, or `several` runs, whose default is yet to be set.

    Given the default of --members in words, there are those that choose a split, too.
    """
    result = plain_parser(doc)
    which = result.add_argument_group("which images, which run")
    which.add_argument("--dataset", choices=DATASETS, default=dataset, help="dataset (default: %(default)s)")
    which.add_argument("--data-dir", help="directory of the images, or for their download (default: data/)")
    run = "directory of the run's models (default: runs/DATASET)"
    which.add_argument("--run", type=Path, nargs="+" if several else None, help=run)
    if members:
        which.add_argument("--members", type=natural, help=f"images of A and B together {members}")
        split = "members and non-members: mia_train_idxs and mia_eval_idxs, as SecMI's authors publish them"
        which.add_argument("--member-split", metavar="NPZ", type=readable, help=f"{split} (default: a split by --seed)")
    return result


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


def readable(text: str) -> Path:
    """Type of a flag that names an input file: it is there, and can be read."""
    try:
        with open(text, "rb"):
            return Path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error


def natural(text: str, least: int = 1, bits: int = 31) -> int:
    """Type of a flag that takes 1, 2, 3, ..."""
    value = int(text)
    if not least <= value < 2**bits:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number from {least} to 2**{bits} - 1")
    return value


def seed(text: str) -> int:
    """Type of --seed: numpy's generator takes 32 bits."""
    return natural(text, least=0, bits=32)


def seed_for(*purpose: str | int) -> int:
    """A seed for one purpose: seed_for(0, "A", "step", 7) is unlike that of step 8, and the same on every machine."""
    return random.Random("/".join(map(str, purpose))).getrandbits(63)


def fail(message: str, status: int = 2) -> None:
    """Print the script's name and the message as one line to stderr, and exit."""
    if distributed.RANK > 0:  # rank 0 mostly says the same, and then torchrun ends this process
        time.sleep(3)
        message = f"rank {distributed.RANK}: {message}"
    message = "".join(c if c.isprintable() else "?" for c in message)  # a file's name may hold anything
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)


def run(main: Callable[[], None], under_torchrun: bool = False) -> None:
    """Call a script's main. An error that the user can mend ends it with one line and exit status 2; SIGTERM as Ctrl-C.

    `under_torchrun`: torchrun may start this script, and then only rank 0 prints.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None or (name == "stdout" and distributed.RANK > 0):  # None: it is closed
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="replace")  # a terminal without a character shows another one
    try:
        try:
            if distributed.WORLD > 1 and not under_torchrun:
                raise BadInput("torchrun is for train.py; start this script with python")
            main()
        except BadInput as error:
            fail(str(error))
        except KeyboardInterrupt:
            print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
            sys.exit(130)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, such as `head`, has seen enough
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)  # or Python would complain when it flushes them
        sys.exit(141)  # as of a program that SIGPIPE ended
