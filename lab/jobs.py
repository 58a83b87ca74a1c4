"""Commands that run side by side, each when the files that it needs are there. reproduce.py lists them."""

import importlib
import multiprocessing.connection
import multiprocessing.forkserver
import os
import runpy
import shlex
import signal
import sys
import tempfile
import threading
import time
from argparse import Namespace
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path

import torch
from tqdm import tqdm

from lab.files import BadInput
from lab.training import deferred_signals


@dataclass(eq=False)
class Job:
    command: list[str]
    needs: list["Job"] = field(default_factory=list)  # those whose files it reads
    makes: Path | None = None  # a model; if it is there, nothing is to be done. Other commands keep their long parts
    cores: int = 1

    def __post_init__(self):
        self.done = self.makes is not None and self.makes.exists()
        self.words = self.command[2 if self.command[1] == "-m" else 1 :]  # a script, or a module of lab/, and its flags

    def __str__(self) -> str:
        return shlex.join(self.command)

    def check(self) -> Namespace:
        """Parse the command as its script does: that refuses what can be known to be impossible."""
        return importlib.import_module(self.words[0].removesuffix(".py")).parse_args(self.words[1:])


def run_all(waiting: list[Job], cores: int, on_cpu: bool) -> list[tuple[Job, float, float]]:
    """Run jobs, each when its needs are done and cores are free. Returns the seconds when each began and ended."""
    # on Linux each process is a fork of one that has already imported torch, which would take seconds every time
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["torch._dynamo", "matplotlib.pyplot"])
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C must not end the server's imports
        multiprocessing.forkserver.ensure_running()
        signal.signal(signal.SIGINT, handler)
    running, times, start, folder = {}, [], time.monotonic(), tempfile.TemporaryDirectory()
    try:
        while waiting or running:
            free = cores - sum(job.cores for job, *_ in running.values())
            ready = [job for job in waiting if job.cores <= free and all(one.done for one in job.needs)]
            if ready:
                job, line = ready[0], min(set(range(cores)) - {line for *_, line in running.values()})
                waiting.remove(job)
                # a command beside others prints all its text at the end, so that it does not cross their progress bars
                text = None if job.cores == cores > 1 else Path(folder.name, str(line))
                process = context.Process(target=run_script, args=(job, text, line, on_cpu))
                with deferred_signals() as signals:  # a process that runs is in `running`, so that it is ended
                    process.start()
                    running[process.sentinel] = job, process, text, time.monotonic() - start, line
                for number in signals:
                    signal.raise_signal(number)
                continue
            for sentinel in multiprocessing.connection.wait(running):
                job, process, text, began, _ = running.pop(sentinel)
                process.join()
                times.append((job, began, time.monotonic() - start))
                if text:
                    clear = "\r\033[K" if sys.stdout.isatty() else ""  # the progress bar on this line
                    print(f"{clear}$ {job}\n{text.read_text(encoding='utf-8')}", flush=True)
                if process.exitcode == 2:
                    sys.exit(2)  # the job has said what is wrong
                if process.exitcode or (job.makes and not job.makes.exists()):
                    raise BadInput(f"this failed (exit status {process.exitcode}), and the rest was stopped: {job}")
                job.done = True
    finally:
        for _, process, *_ in running.values():
            process.terminate()
            process.join()
        folder.cleanup()
    return times


def end_with_the_study() -> None:
    """End this process as SIGTERM does when the one that started it has ended, for example by SIGKILL."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def run_script(job: Job, output: Path | None, line: int, on_cpu: bool) -> None:
    """Run a job in this process; its progress bars appear on this line of the screen."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that started this one, which ends it
    threading.Thread(target=end_with_the_study, daemon=True).start()
    if output:
        sys.stdout = open(output, "w", encoding="utf-8", errors="replace")
    if on_cpu:  # two processes of one thread do almost twice the work of one process with two threads
        torch.set_num_threads(job.cores)
    tqdm.__init__ = partialmethod(tqdm.__init__, position=line)
    sys.argv = job.words
    if sys.argv[0].endswith(".py"):
        runpy.run_path(str(Path(__file__).parent.parent / sys.argv[0]), run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__")
