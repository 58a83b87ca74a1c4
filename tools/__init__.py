"""Measurements of the project itself: `python -m tools.bench`, `.mutate` and `.stress`, from the project's root."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm


def forked(
    function: Callable[[], object], folder: Path, seconds: int, output: str | Path = os.devnull
) -> tuple[int, int]:
    """Call function() in a fork of this process, inside `folder`; `output` gets what it prints to stderr.

    Returns the exit status, which the function may return or raise as SystemExit, and the peak memory in bytes. After
    so many `seconds` the fork ends with the status -SIGALRM.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(seconds)
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w", 1)
            tqdm.set_lock(threading.RLock())  # another thread may have held the lock during the fork
            torch.set_num_threads(1)  # makes new threads; those of the parent process are not in the fork
            status = function() or 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), 1024 * used.ru_maxrss
