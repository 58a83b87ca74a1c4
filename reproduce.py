"""The whole study: train the undefended model, A, B and the student, sample from them, attack them, look for copies.

    python reproduce.py                    python reproduce.py --study frontier

Without a flag it draws the toy data, and takes minutes on two cores. It is a list of commands that anybody could type.
It runs as many at a time as there are cores. It leaves out the trainings whose model is there already, and the other
commands keep what takes long, so that the same command continues after Ctrl-C. Each seed is a training of all models,
in a directory of its own.

--study frontier asks: does a defended model leak less than a plain one of the same quality, or of the same cost?
"""

import shlex
from argparse import Namespace
from pathlib import Path

import torch

import attacks
import fid
from lab import cli
from lab.files import BadInput
from lab.hardware import seconds_a_step
from lab.jobs import Job, run_all
from lab.reports import remove_results

PRESETS = {"tiny": 1300, "small": 9600, "cifar10": 780_000}  # train.py's, and their steps


def main() -> None:
    parser = cli.parser(__doc__, dataset="toy", members="(default: the preset's)")
    parser.add_argument("--study", choices=["defence", "frontier"], default="defence", help="(default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="all models and attacks of the frontier: hours")
    parser.add_argument("--references", type=cli.natural, help="number of reference models (default: 1; full: 4)")
    size = parser.add_argument_group("size of the study (train.py's flags)")
    size.add_argument("--preset", choices=PRESETS, default="tiny", help="minutes, hours, days (default: %(default)s)")
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
    about = frontier if args.study == "frontier" else study
    args.run = args.run or Path("runs") / (f"frontier-{args.dataset}" if about == frontier else args.dataset)
    cores = torch.get_num_threads() if args.device.type == "cpu" else 1  # on a GPU one command at a time
    parsed = [job.check() for job in about(args, cores, with_fid=args.inception_weights is not None)]
    without_fid = reason_without_fid(args) if about == study or args.full or args.inception_weights else ""
    jobs = about(args, cores, with_fid=without_fid is None)
    print(f"{args.run}/: {len(jobs)} commands, as many at a time as {cores} core(s) allow:\n")
    if about == frontier:
        print(f"They take about {minutes(jobs, parsed, args) / cores:,.0f} minutes on this machine.\n")
    for job in jobs:
        print(f"  {job}{'  # done already' if job.done else ''}")
    if without_fid:
        print(f"\nFID is left out: {without_fid}")
    print(flush=True)
    if not all(job.done for job in jobs if job.makes):
        remove_results(args.run)  # they are of other models
    times = run_all([job for job in jobs if not job.done], cores, args.device.type == "cpu")
    for job, *moments in sorted(times, key=lambda row: row[1]):
        began, ended = (f"{int(moment) // 60}:{int(moment) % 60:02}" for moment in moments)
        print(f"{began:>5} to {ended:>5}  {shlex.join(job.command[1 : job.command.index('--run') + 2])}")


def reason_without_fid(args: Namespace) -> str | None:
    """Why this study has no FID; None if it has one. Raises BadInput if --inception-weights cannot be had."""
    path = fid.weights_path("torchvision")
    # a demonstration downloads nothing
    if args.inception_weights is None and args.dataset == "toy" and not path.exists():
        return f"there is no {path}; with --inception-weights torchvision it is downloaded (104 MB)"
    try:
        fid.load(args.inception_weights or "torchvision")
    except BadInput as error:
        if args.inception_weights is None:
            return str(error)
        raise
    return None


def study(args: Namespace, cores: int, with_fid: bool) -> list[Job]:
    """All commands, in an order in which they can be run one by one."""
    root, jobs = args.run, []
    runs = [root / f"seed-{seed}" for seed in range(args.seeds)]
    students = ["distill-cross", *(["distill-average"] if args.average else [])]
    size = given(args, "preset", "members", "steps", "size", "member_split")
    data = given(args, "dataset", "data_dir", "device")

    def add(*words: object, **rest) -> Job:
        jobs.append(Job(["python", *map(str, words), *data], **rest))
        return jobs[-1]

    for seed, run in enumerate(runs):
        into, model = ["--run", run, "--snapshots", args.snapshots], {}
        for split in ("A", "B", "all"):  # the teachers first: on two cores the student is trained beside the others
            makes = run / f"{split}.pt"
            model[split] = add("train.py", "--split", split, *into, *size, "--seed", seed, makes=makes)
        teachers = [model["A"], model["B"]]
        for student in students:
            targets, makes = student.removeprefix("distill-"), run / f"{student}.pt"
            model[student] = add("train.py", "--distill", targets, *into, needs=teachers, makes=makes)
        untrained = not all(job.done for job in model.values())
        if seed == 0 and untrained:  # a first result, before the last training is over
            needs = [model["all"], model[students[0]]]
            add("evaluate.py", "--attack", "pia", "--print-only", "--run", run, needs=needs)
        if args.preset != "cifar10" or args.members:  # else every image is scored, and none is left for a reference
            words, makes = ["--split", "reference", "--run", run, *size, "--seed", seed], run / "reference.pt"
            model["reference"] = add("train.py", *words, makes=makes)
        if seed == 0:
            for name in ("all", "dual", *students):
                needs = teachers if name == "dual" else [model[name]]
                add("sample.py", "--model", name, "--n", 16, "--run", run, needs=needs)
        if untrained and run != runs[-1]:  # its scores are kept; the last run's come with the table
            add("evaluate.py", "--attack", *args.attack, "--print-only", "--run", run, needs=[*model.values()])
    all_runs, everything = ["--run", *runs, "--out", root], list(jobs)
    generating = [job for job in jobs if job.makes and job.makes.stem != "reference"]
    n = flags(n=args.n)
    copies = add("evaluate.py", "--memorization", *n, *all_runs, needs=generating)
    fids = ["--fid", *n, *flags(inception_weights=args.inception_weights)] if with_fid else []
    # after --memorization, which keeps the images that it generates
    quality = [add("evaluate.py", *fids, *all_runs, needs=[copies])] if with_fid else []
    add("evaluate.py", "--attack", *args.attack, *fids, *all_runs, needs=[*everything, copies, *quality], cores=cores)
    return jobs


def minutes(jobs: list[Job], parsed: list[Namespace], args: Namespace) -> float:
    """A guess for one core: a step is timed, and judging a model takes as long as so many steps for each member."""
    model, judging = parsed[0].wanted, 12 if args.full else 4
    models = [(job.done, its) for job, its in zip(jobs, parsed) if job.makes]
    steps = sum(its.steps * (4 / 3 if its.distill else 1) for done, its in models if not done and "steps" in its)
    steps += len(models) * len(model.split.members) * judging
    return steps * seconds_a_step(model.unet, model.dataset["size"], model.settings["batch"], args.device) / 60


def frontier(args: Namespace, cores: int, with_fid: bool) -> list[Job]:
    """The commands of --study frontier. A model's directory is named after its steps, and those of its teachers."""
    if (unit := args.steps or PRESETS[args.preset]) < 8:
        raise BadInput(f"--steps {unit}: the shortest training of the frontier has an eighth of them: take 8 or more")
    double, full, half, quarter, eighth = lengths = [unit * eighths // 8 for eighths in (16, 8, 4, 2, 1)]
    between = [unit * eighths // 8 for eighths in (6, 3)] if args.full else []  # the curve bends there
    references = range(1, 1 + (args.references or (4 if args.full else 1)))
    models = [(f"undefended-{steps}", steps, ["all"]) for steps in (*lengths, *between)]
    for steps in lengths[1:] if args.full else (full, quarter):
        models += [(f"halves-{steps}", steps, [images]) for images in "AB"]
    models += [(f"reference-{full}-{k}", full, ["reference", "--block", k]) for k in references]
    students = [("cross", full, full), ("cross", full, quarter)]
    if args.full:
        models += [(f"reference-{n}", n, ["reference"]) for n in (double, half, quarter, eighth, *between)]
        models += [(f"other-{quarter}", quarter, ["reference", "--block", references.stop])]  # no attacker's
        models += [(f"dropout-{full}", full, ["all", "--dropout", 0.3]), (f"flip-{full}", full, ["all", "--flip"])]
        models += [(f"decay-{full}", full, ["all", "--weight-decay", 0.5])]
        students += [("cross", full, half), ("cross", full, eighth), ("cross", half, full), ("cross", half, quarter)]
        students += [(name, full, steps) for name in ("average", "ordinary") for steps in (full, quarter)]
        students += [("unseen", full, quarter), ("reference", full, quarter)]
    of = {"cross": "halves", "average": "halves", "ordinary": "undefended", "unseen": "other", "reference": "reference"}
    new, data = given(args, "preset", "members", "size", "member_split"), given(args, "dataset", "data_dir", "device")
    attack, n = ["all"] if args.full else args.attack, flags(n=args.n or 1000 * args.full)
    judge = ["evaluate.py", "--frontier", *n, "--attack", *attack]
    judge += ["--fid", *flags(inception_weights=args.inception_weights)] if with_fid else []
    runs, jobs = [args.run / f"seed-{seed}" for seed in range(args.seeds)], []

    def add(words: list, **rest) -> None:
        jobs.append(Job(["python", *map(str, words), *data], **rest))

    for seed, run in enumerate(runs):
        first, made = len(jobs), {}
        for folder, steps, words in models:
            size = [*new, "--seed", seed, "--steps", steps, "--run", run / folder]
            add(["train.py", "--split", *words, *size], makes=run / folder / f"{words[0]}.pt")
            made.setdefault(folder, []).append(jobs[-1])
        for name, steps, theirs in students:
            needs = made[f"{of[name]}-{theirs}"]
            into, targets = run / f"{name}-{steps}-of-{theirs}", "single" if name in ("ordinary", "unseen") else name
            words = ["--distill", targets, "--teachers", *(job.makes for job in needs), "--steps", steps, "--run", into]
            add(["train.py", *words], needs=needs, makes=into / f"distill-{targets}.pt")
        for epsilon in (10, 100) if args.full and args.dataset != "toy" else ():  # too few images
            needs, into = made[f"undefended-{full}"], run / f"private-{full}-{epsilon}"
            words = ["--like", needs[0].makes, "--epsilon", epsilon, "--run", into]
            add(["-m", "lab.private", *words], needs=needs, makes=into / "all.pt")
        if run != runs[-1]:  # its scores are kept; the last run's come with the table
            add([*judge, "--print-only", "--run", run], needs=jobs[first:])
    add([*judge, "--run", *runs, "--out", args.run], needs=[*jobs], cores=cores)
    return jobs


def given(args: Namespace, *names: str) -> list[str]:
    return flags(**{name: getattr(args, name) for name in names})


def flags(**values: object) -> list[str]:
    return [word for name, value in values.items() if value for word in (f"--{name.replace('_', '-')}", str(value))]


if __name__ == "__main__":
    cli.run(main)
