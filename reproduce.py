"""The whole study: train the undefended model, A, B and both students, sample from them, attack them, look for copies.

    python reproduce.py

Without a flag it takes the toy data, and minutes on two cores. It is a list of the commands that anybody could
type; as many run at a time as there are cores, and those whose output is there already are left out, so that
the same command goes on after Ctrl-C. Every seed is a training of everything, in a directory of its own.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import fid
from lab import checkpoint, cli
from lab.files import BadInput

# Members and epochs by dataset and preset, so that the undefended model learns its members by heart, and no longer.
# Others are train.py's.
SIZES = {
    ("toy", "tiny"): (128, 200),
    ("cifar10", "tiny"): (112, 250),
}
DEFAULTS = [
    f"(default: toy {toy}, cifar10 {real}, else the preset's)" for toy, real in zip(*SIZES.values(), strict=True)
]
CLEAR = "\r\033[K" if sys.stdout.isatty() else ""  # the progress bar in the line that is printed on


@dataclass
class Job:
    command: list[str]
    needs: list[Path] = field(default_factory=list)  # files of other jobs that have to be there before
    makes: list[Path] = field(default_factory=list)  # what it leaves; if that is there, there is nothing to do
    cores: int = 1

    @property
    def done(self) -> bool:
        return bool(self.makes) and all(path.exists() for path in self.makes)

    def __str__(self) -> str:
        return shlex.join(self.command)


def main() -> None:
    parser = cli.parser(__doc__, dataset="toy")
    size = parser.add_argument_group("how large a study (train.py's flags)")
    size.add_argument("--preset", help="tiny, small, cifar10 (default: tiny; for real images on a GPU, cifar10)")
    size.add_argument("--size", type=cli.natural, help="side of the images, in pixels (default: the preset's)")
    size.add_argument("--members", type=cli.natural, help=f"images of A and B together {DEFAULTS[0]}")
    cli.add_member_split(size)
    size.add_argument("--epochs", type=cli.natural, help=f"of every training {DEFAULTS[1]}")
    size.add_argument("--seeds", type=cli.natural, default=1, help="trainings of everything (default: %(default)s)")
    size.add_argument("--snapshots", type=cli.natural, default=8, help="points of epochs.png (default: %(default)s)")
    judged = parser.add_argument_group("how it is judged (evaluate.py's flags)")
    attack = f"or all, which take long (default: {' '.join(cli.ATTACKS)})"
    judged.add_argument("--attack", nargs="+", default=cli.ATTACKS, help=attack)
    fid.add_weights(judged, default=None)
    judged.add_argument("--n", type=cli.natural, help="images to generate, a model (default: as many as members)")
    args = parser.parse_args()

    began = time.monotonic()
    cores = torch.get_num_threads() if args.device.type == "cpu" else 1  # on a GPU one command at a time
    without_fid = reason_without_fid(args)
    jobs = study(args, cores, with_fid=not without_fid)
    for job in jobs:
        for model in [path for path in job.makes if path.suffix == ".pt" and path.exists()]:
            require_same_study(model, {"name": args.dataset} | sizes(args))
    print(f"{cli.run_directory(args)}/: {len(jobs)} commands, as many at a time as {cores} core(s) allow:\n")
    for job in jobs:
        print(f"  {job}{'  # done already' if job.done else ''}")
    if without_fid:
        print(f"\nFID is left out: {without_fid}")
    print(flush=True)
    run_all([job for job in jobs if not job.done], cores, args.device.type == "cpu")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"{minutes} min {seconds} s")


def reason_without_fid(args: argparse.Namespace) -> str | None:
    """Why there is no FID in this study; None where there is one. Weights that were asked for have to be there."""
    if args.inception_weights is not None:
        fid.load(args.inception_weights)
        return None
    path = fid.weights_path("torchvision")
    if args.dataset == "toy" and not path.exists():  # nothing is downloaded for a demonstration
        return f"there is no {path}; with --inception-weights torchvision it is downloaded (104 MB)"
    try:
        fid.load("torchvision")
    except BadInput as error:
        return str(error)
    return None


def study(args: argparse.Namespace, cores: int, with_fid: bool) -> list[Job]:
    """All commands, in an order in which one could run them one by one."""
    root, jobs = cli.run_directory(args), []
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
        # the attacker's own model, for the attacks that are calibrated with it; of all images none is left for it
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
    if with_fid:  # after --memorization, from the images that it has kept
        add("evaluate.py", *fids, *all_runs, needs=[root / "memorization.md"], makes=[root / "fid.md"])
    everything = [path for job in jobs for path in job.makes]
    add("evaluate.py", "--attack", *args.attack, *fids, *all_runs, needs=everything, cores=cores)
    return jobs


def sizes(args: argparse.Namespace) -> dict[str, object]:
    """The flags of train.py that say how large a training is; None where it is left to the preset."""
    preset = args.preset or ("cifar10" if args.dataset != "toy" and args.device.type == "cuda" else "tiny")
    members, epochs = SIZES.get((args.dataset, preset), (None, None))
    found = {"preset": preset, "members": args.members or members, "epochs": args.epochs or epochs, "size": args.size}
    return found | {"member_split": args.member_split and str(args.member_split)}


def require_same_study(model: Path, wanted: dict[str, object]) -> None:
    """Raise BadInput where a model that is there already was not trained as this study would train it."""
    trained = checkpoint.load(model)
    for key, value in wanted.items():
        found = (trained.settings | trained.dataset)[key]
        if value is not None and found != value:
            raise BadInput(
                f"{model} is of another study, with {key} = {found}, not {value}: give this one its own --run"
            )


def flags(**values: object) -> list[str]:
    return [word for name, value in values.items() if value for word in (f"--{name.replace('_', '-')}", str(value))]


def run_all(waiting: list[Job], cores: int, on_cpu: bool) -> None:
    """Run jobs as soon as what they need is there and cores are free, the first of the list first."""
    running: dict[int, tuple[Job, subprocess.Popen]] = {}  # by the line of the screen that its progress bar has
    try:
        while waiting or running:
            for line, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[line]
                    if process.stdout:  # of one command among others: all at once, and not across their progress bars
                        print(f"{CLEAR}$ {job}\n{process.stdout.read()}", flush=True)
                    if process.returncode == 2:
                        sys.exit(2)  # it has said what is wrong
                    if process.returncode or (job.makes and not job.done):
                        raise BadInput(
                            f"this failed (exit status {process.returncode}), and the rest was stopped: {job}"
                        )
            free = cores - sum(job.cores for job, _ in running.values())
            ready = [job for job in waiting if job.cores <= free and all(path.exists() for path in job.needs)]
            if ready:
                job = ready[0]
                waiting.remove(job)
                line = min(set(range(cores)) - set(running))
                running[line] = job, start(job, line, alone=job.cores == cores > 1, on_cpu=on_cpu)
            else:
                time.sleep(0.1)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def start(job: Job, line: int, alone: bool, on_cpu: bool) -> subprocess.Popen:
    environment = os.environ | {"TQDM_POSITION": str(line)}
    if on_cpu:  # two processes of one thread do almost twice the work of one with two
        environment["OMP_NUM_THREADS"] = str(job.cores)
    words = [sys.executable, str(Path(__file__).parent / job.command[1]), *job.command[2:]]
    return subprocess.Popen(words, env=environment, text=True, stdout=None if alone else subprocess.PIPE)


if __name__ == "__main__":
    cli.run(main)
