"""The whole study: train the undefended model, A, B and the student, sample from them, attack them, look for copies.

    python reproduce.py

Without a flag it draws the toy data, and takes minutes on two cores. It is a list of commands that anybody could type.
It runs as many at a time as there are cores. It leaves out those whose output is there already, so that the same
command continues after Ctrl-C. Each seed is a training of all models, in a directory of its own.
"""

from argparse import Namespace
from pathlib import Path

import torch

import attacks
import fid
from lab import checkpoint, cli
from lab.files import BadInput
from lab.hardware import paper_scale
from lab.jobs import Job, run_all

# members and steps of train.py's presets: models of another study in --run are noticed by them
SIZES = {"tiny": (128, 1300), "small": (512, 9600), "cifar10": (None, 780_000)}


def main() -> None:
    parser = cli.parser(__doc__, dataset="toy", members="(default: the preset's)")
    size = parser.add_argument_group("size of the study (train.py's flags)")
    size.add_argument("--preset", choices=SIZES, default="tiny", help="minutes, hours, days (default: %(default)s)")
    size.add_argument("--size", type=cli.natural, help="side of the images in pixels (default: the preset's)")
    size.add_argument("--steps", type=cli.natural, help="steps of every training (default: the preset's)")
    size.add_argument("--seeds", type=cli.natural, default=1, help="trainings of all models (default: %(default)s)")
    size.add_argument("--snapshots", type=cli.natural, default=8, help="points of steps.png (default: %(default)s)")
    size.add_argument("--average", action="store_true", help="the variant, too: a student of averaged targets")
    judged = parser.add_argument_group("attacks and quality (evaluate.py's flags)")
    attack = f"attacks, or all, which take long (default: {' '.join(cli.ATTACKS)})"
    judged.add_argument("--attack", choices=[*attacks.HOLDS, "all"], nargs="+", default=cli.ATTACKS, help=attack)
    fid.add_weights(judged, default=None)
    judged.add_argument("--n", type=cli.natural, help="images that each model generates (default: one per member)")
    args = parser.parse_args()

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
    if args.device.type == "cuda" and args.preset != "cifar10":
        print(paper_scale(args.device))
    print(flush=True)
    times = run_all([job for job in jobs if not job.done], cores, args.device.type == "cpu")
    for job, *moments in sorted(times, key=lambda row: row[1]):
        began, ended = (f"{int(moment) // 60}:{int(moment) % 60:02}" for moment in moments)
        print(f"{began:>5} to {ended:>5}  {' '.join(job.command[1 : job.command.index('--run') + 2])}")


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
    students = ["distill-cross", *(["distill-average"] if args.average else [])]
    its, missing = sizes(args), not (root / "table.md").exists()
    size = flags(**its)
    data = flags(dataset=args.dataset, data_dir=args.data_dir, device=args.device)

    def add(*words: object, **rest) -> None:
        jobs.append(Job(["python", *map(str, words), *data], **rest))

    for seed, run in enumerate(runs):
        model = {name: run / f"{name}.pt" for name in ("all", "A", "B", *students)}
        teachers, into = [model["A"], model["B"]], ["--run", run, "--snapshots", args.snapshots]
        for split in ("A", "B", "all"):  # the teachers first: on two cores the student is trained beside the others
            add("train.py", "--split", split, *into, *size, "--seed", seed, makes=[model[split]])
        for student in students:
            targets = student.removeprefix("distill-")
            add("train.py", "--distill", targets, *into, needs=teachers, makes=[model[student]])
        if seed == 0 and missing:  # a first result, before the last training is over
            needs = [model["all"], model[students[0]]]
            add("evaluate.py", "--attack", "pia", "--print-only", "--run", run, needs=needs)
        reference = []  # the attacker's own model; if every image is scored, none is left to train it on
        if its["preset"] != "cifar10" or its["members"]:
            reference = [run / "reference.pt"]
            add("train.py", "--split", "reference", "--run", run, *size, "--seed", seed, makes=reference)
        if seed == 0:
            for name in ("all", "dual", *students):
                needs, grid = teachers if name == "dual" else [model[name]], run / f"samples-{name}.png"
                add("sample.py", "--model", name, "--n", 16, "--run", run, needs=needs, makes=[grid])
        if missing and run != runs[-1]:  # its scores are kept; the last run's come with the table
            needs = [*model.values(), *reference]
            add("evaluate.py", "--attack", *args.attack, "--print-only", "--run", run, needs=needs)
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
    members, steps = SIZES[args.preset]
    found = {"preset": args.preset, "members": args.members or members, "steps": args.steps or steps, "size": args.size}
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


if __name__ == "__main__":
    cli.run(main)
