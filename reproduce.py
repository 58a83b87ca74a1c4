"""The whole study: train the undefended model, A, B and both students, sample from them, attack them, look for copies.

    python reproduce.py

Without a flag it draws the toy data, and takes minutes on two cores. It is a list of commands that anybody could type.
It runs as many at a time as there are cores. It leaves out those whose output is there already, so that the same
command continues after Ctrl-C. Each seed is a training of all models, in a directory of its own.
"""

import os
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch

import attacks
import fid
from lab import checkpoint, cli
from lab.files import BadInput

# Members and epochs by dataset and preset: the undefended model memorises its members, and training ends soon after.
# All other values are train.py's.
SIZES = {("toy", "tiny"): (128, 200), ("cifar10", "tiny"): (112, 250)}


@dataclass
class Job:
    command: list[str]
    needs: list[Path] = field(default_factory=list)  # files of other jobs that it reads
    makes: list[Path] = field(default_factory=list)  # files that it leaves; if they are there, it has nothing to do
    cores: int = 1

    @property
    def done(self) -> bool:
        return bool(self.makes) and all(path.exists() for path in self.makes)

    def __str__(self) -> str:
        return shlex.join(self.command)


def main() -> None:
    members, epochs = (f"(default: toy {toy}, cifar10 {real}, else the preset's)" for toy, real in zip(*SIZES.values()))
    parser = cli.parser(__doc__, dataset="toy", members=members)
    size = parser.add_argument_group("size of the study (train.py's flags)")
    size.add_argument("--preset", help="tiny, small, cifar10 (default: tiny; for real images on a GPU, cifar10)")
    size.add_argument("--size", type=cli.natural, help="side of the images in pixels (default: the preset's)")
    size.add_argument("--epochs", type=cli.natural, help=f"epochs of every training {epochs}")
    size.add_argument("--seeds", type=cli.natural, default=1, help="trainings of all models (default: %(default)s)")
    size.add_argument("--snapshots", type=cli.natural, default=8, help="points of epochs.png (default: %(default)s)")
    judged = parser.add_argument_group("attacks and quality (evaluate.py's flags)")
    attack = f"attacks, or all, which take long (default: {' '.join(cli.ATTACKS)})"
    judged.add_argument("--attack", choices=[*attacks.HOLDS, "all"], nargs="+", default=cli.ATTACKS, help=attack)
    fid.add_weights(judged, default=None)
    judged.add_argument("--n", type=cli.natural, help="images that each model generates (default: one per member)")
    args = parser.parse_args()

    began = time.monotonic()
    cores = torch.get_num_threads() if args.device.type == "cpu" else 1  # on a GPU one command at a time
    without_fid = reason_without_fid(args)
    jobs = study(args, cores, with_fid=not without_fid)
    for job in jobs:
        for model in [path for path in job.makes if path.suffix == ".pt" and path.exists()]:
            require_same_study(model, {"name": args.dataset} | sizes(args))
    print(f"{args.run}/: {len(jobs)} commands, as many at a time as {cores} core(s) allow:\n")
    for job in jobs:
        print(f"  {job}{'  # done already' if job.done else ''}")
    if without_fid:
        print(f"\nFID is left out: {without_fid}")
    print(flush=True)
    run_all([job for job in jobs if not job.done], cores, args.device.type == "cpu")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"{minutes} min {seconds} s")


def reason_without_fid(args: Namespace) -> str | None:
    """Why this study has no FID; None if it has one. Raises BadInput if --inception-weights cannot be had."""
    if args.inception_weights is not None:
        fid.load(args.inception_weights)
        return None
    path = fid.weights_path("torchvision")
    if args.dataset == "toy" and not path.exists():  # a demonstration downloads nothing
        return f"there is no {path}; with --inception-weights torchvision it is downloaded (104 MB)"
    try:
        fid.load("torchvision")
    except BadInput as error:
        return str(error)
    return None


def study(args: Namespace, cores: int, with_fid: bool) -> list[Job]:
    """All commands, in an order in which they can be run one by one."""
    root, jobs = args.run, []
    runs = [root / f"seed-{seed}" for seed in range(args.seeds)]
    its = sizes(args)
    size = flags(**its)
    data = flags(dataset=args.dataset, data_dir=args.data_dir, device=args.device)

    def add(*words: object, **rest) -> None:
        jobs.append(Job(["python", *map(str, words), *data], **rest))

    for seed, run in enumerate(runs):
        model = {name: run / f"{name}.pt" for name in ("all", "A", "B", "distill-cross", "distill-average")}
        into = ["--run", run, "--snapshots", args.snapshots]
        for split in ("all", "A", "B"):
            add("train.py", "--split", split, *into, *size, "--seed", seed, makes=[model[split]])
        if seed == 0 and not (root / "table.md").exists():
            # a first result, long before the last training is over
            first = [model["all"], model["A"], model["B"]]
            add("evaluate.py", "--attack", "pia", "--print-only", "--run", run, needs=first)
        for targets in ("cross", "average"):
            student = model[f"distill-{targets}"]
            add("train.py", "--distill", targets, *into, needs=[model["A"], model["B"]], makes=[student])
        # the attacker's own model, for calibrated attacks; if every image is scored, none is left to train it on
        if its["preset"] != "cifar10" or its["members"]:
            reference = run / "reference.pt"
            add("train.py", "--split", "reference", "--run", run, *size, "--seed", seed, makes=[reference])
        if seed == 0:
            for name in ("all", "dual", "distill-cross", "distill-average"):
                teachers = [model["A"], model["B"]] if name == "dual" else [model[name]]
                grid = run / f"samples-{name}.png"
                add("sample.py", "--model", name, "--n", 16, "--run", run, needs=teachers, makes=[grid])
    all_runs = ["--run", *runs, "--out", root]
    models = [path for job in jobs for path in job.makes if path.suffix == ".pt"]
    generating = [path for path in models if path.stem != "reference"]
    n = flags(n=args.n)
    add("evaluate.py", "--memorization", *n, *all_runs, needs=generating, makes=[root / "memorization.md"])
    fids = ["--fid", *n, *flags(inception_weights=args.inception_weights)] if with_fid else []
    if with_fid:  # after --memorization, which keeps the images that it generates
        add("evaluate.py", *fids, *all_runs, needs=[root / "memorization.md"], makes=[root / "fid.md"])
    everything = [path for job in jobs for path in job.makes]
    add("evaluate.py", "--attack", *args.attack, *fids, *all_runs, needs=everything, cores=cores)
    return jobs


def sizes(args: Namespace) -> dict[str, object]:
    """The flags of train.py that give a training's size; None where the preset decides."""
    preset = args.preset or ("cifar10" if args.dataset != "toy" and args.device.type == "cuda" else "tiny")
    members, epochs = SIZES.get((args.dataset, preset), (None, None))
    found = {"preset": preset, "members": args.members or members, "epochs": args.epochs or epochs, "size": args.size}
    return found | {"member_split": args.member_split and str(args.member_split)}


def require_same_study(model: Path, wanted: dict[str, object]) -> None:
    """Raise BadInput where an existing model was trained otherwise than this study would train it."""
    trained = checkpoint.load(model)
    for key, value in wanted.items():
        found = (trained.settings | trained.dataset)[key]
        if value is not None and found != value:
            another = f"{model} is of another study, with {key} = {found}, not {value}"
            raise BadInput(f"{another}: give this one its own --run")


def flags(**values: object) -> list[str]:
    return [word for name, value in values.items() if value for word in (f"--{name.replace('_', '-')}", str(value))]


def run_all(waiting: list[Job], cores: int, on_cpu: bool) -> None:
    """Run each job when the files that it needs are there and its cores are free, in the order of the list."""
    running = {}  # {future: (job, process, the line of its progress bar on the screen)}
    with ThreadPoolExecutor(cores) as pool:
        try:
            while waiting or running:
                free = cores - sum(job.cores for job, *_ in running.values())
                ready = [job for job in waiting if job.cores <= free and all(path.exists() for path in job.needs)]
                if ready:
                    job, line = ready[0], min(set(range(cores)) - {line for *_, line in running.values()})
                    waiting.remove(job)
                    process = start(job, line, alone=job.cores == cores > 1, on_cpu=on_cpu)
                    running[pool.submit(process.communicate)] = job, process, line
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, process, _ = running.pop(future)
                    finish(job, future.result()[0], process.returncode)
        finally:
            for _, process, _ in running.values():
                process.terminate()


def start(job: Job, line: int, alone: bool, on_cpu: bool) -> subprocess.Popen:
    environment = os.environ | {"TQDM_POSITION": str(line)}
    if on_cpu:  # two processes of one thread do almost twice the work of one process with two threads
        environment["OMP_NUM_THREADS"] = str(job.cores)
    words = [sys.executable, str(Path(__file__).parent / job.command[1]), *job.command[2:]]
    # a command beside others prints all its text at the end, so that it does not cross their progress bars
    return subprocess.Popen(words, env=environment, text=True, stdout=None if alone else subprocess.PIPE)


def finish(job: Job, said: str | None, status: int) -> None:
    """Print what a job said. Ends the study if it failed."""
    if said is not None:
        clear = "\r\033[K" if sys.stdout.isatty() else ""  # the progress bar on this line
        print(f"{clear}$ {job}\n{said}", flush=True)
    if status == 2:
        sys.exit(2)  # the job has said what is wrong
    if status or (job.makes and not job.done):
        raise BadInput(f"this failed (exit status {status}), and the rest was stopped: {job}")


if __name__ == "__main__":
    cli.run(main)
