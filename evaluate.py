"""Attack every model of a run, and write how well each attack tells members from non-members.

    python evaluate.py --attack pia        python evaluate.py --memorization        python evaluate.py --fid
    python evaluate.py --frontier          python evaluate.py --checkpoint FILE --member-split NPZ --attack pia

It prints a table and writes it into the run's directory, with figures: table.md, {results,steps,t}.json, *.png.
With several runs, which differ in their seed, it gives the mean and the range over them. An AUC of 0.5 is a coin toss,
an AUC of 1 is a certain attacker. metrics.py explains the two protocols. If there is a reference model, each attack is
made a second time with it, as ATTACK-ref. --memorization says how many of the images that each model generates are
copies of training images. --fid says how far they are from the members and from held-out images; with --attack it adds
columns to its table. --checkpoint judges a model in pytorch-ddpm's format, like those that SecMI, PIA and SimA attack.
"""

import functools
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

import attacks
import data
import dualmd
import fid
import metrics
from lab import attackers, cli, figures, frontier, releases, reports, tables
from lab.checkpoint import Checkpoint, load_run, require_size, snapshots, split_for, weights_key
from lab.files import BadInput, require_writable
from lab.published import load_published
from lab.releases import COMBINATIONS, GENERATING, RELEASES, EvaluatedRun

# the timesteps at which the authors of SecMI, PIA and ReDiffuse attack CIFAR-10; for the other attacks, PIA's
PUBLISHED_T = dict.fromkeys(attacks.HOLDS, 200) | {"secmi": 100, "secmi_nn": 100}
# the adaptive attacker chooses; small ones for SecMI and small networks. DualMD's A answers at four, B at the others
GRID = [20, 30, 50, 100, 150, 200, 250, 300]
LONG = dict.fromkeys(["rediffuse", "gsa"], [100, 200])  # --frontier's for attacks that take long
# all are for T = 1000. For another T they are the same shares of it, rounded to a step of SecMI


def parse_args(words: list[str] | None = None) -> Namespace:
    """The flags in `words`; by default those of the command line."""
    parser = cli.parser(__doc__, several=True, members="(with --checkpoint; default: all)")
    what = parser.add_argument_group("membership inference")
    named, default = "one or more attacks, or all", " ".join(cli.ATTACKS)
    what.add_argument("--attack", choices=[*attacks.HOLDS, "all"], nargs="+", help=f"{named} (default: {default})")
    what.add_argument("--t", type=int, help="timestep of the published protocol (default: each attack's own)")
    what.add_argument("--grid", type=int, nargs="+", help=f"of the adaptive one (default: {GRID})")
    reference = "the attacker's own model (default: each run's reference.pt)"
    what.add_argument("--reference", type=cli.readable, help=reference)
    what.add_argument("--seed", type=cli.seed, default=0, help="seed of noise and of --checkpoint's split (default: 0)")
    generated = parser.add_argument_group("generated images")
    instead = generated.add_mutually_exclusive_group()
    instead.add_argument("--memorization", action="store_true", help="copies among generated images")
    instead.add_argument("--fid", action="store_true", help="quality of generated images")
    what.add_argument("--frontier", action="store_true", help="models of reproduce.py --study frontier, side by side")
    fid.add_weights(generated)
    generated.add_argument("--n", type=cli.natural, help="images that each model generates (default: one per member)")
    published = parser.add_argument_group("a model in pytorch-ddpm's format, as SecMI, PIA and SimA publish theirs")
    published.add_argument("--checkpoint", metavar="FILE", type=cli.readable, help="model to judge instead of a run's")
    published.add_argument("--size", type=cli.natural, help="side of its images in pixels (default: 32)")
    parser.add_argument("--batch", type=cli.natural, help="images at a time (default: 64, on a GPU 256)")
    parser.add_argument("--out", type=Path, help="output directory (default: the run's, or that of all runs)")
    parser.add_argument("--print-only", action="store_true", help="no tables or figures as files (scores are kept)")
    args = parser.parse_args(words)
    args.batch = args.batch or (256 if args.device.type == "cuda" else 64)
    args.n = args.n or (1000 if args.frontier and args.fid else None)
    if args.fid and args.n == 1:
        raise BadInput("--n 1: a FID takes two images at least")
    return args


def main() -> None:
    args = parse_args()
    if args.frontier:
        other = "reference", "checkpoint", "member_split", "members", "size", "t", "memorization"
        paths = args.run or sorted((Path("runs") / f"frontier-{args.dataset}").glob("seed-*"))
        grid = {attack: args.grid or LONG.get(attack, GRID) for attack in attacks_of(args)}
        if any(getattr(args, flag) for flag in other) or not paths or {*grid} <= {"gsa"}:
            raise BadInput(f"--frontier takes runs, an attack by predictions, and none of: {', '.join(other)}")
        releases.require_timesteps(grid, dualmd.NoiseSchedule())
    else:
        runs = [published_run(args)] if args.checkpoint else own_runs(args)
        releases.require_comparable(runs)
        paths = [run.path for run in runs]
    out = args.out or (paths[0] if len(paths) == 1 else Path(os.path.commonpath([path.absolute() for path in paths])))
    if not args.print_only:
        require_writable(out, directory=True)
    inception = fid.load(args.inception_weights, args.device) if args.fid else None
    if args.frontier:
        frontier.report(paths, grid, inception, args, out)
    elif args.memorization:
        reports.memorization(runs, args, out)
    elif args.fid and not args.attack:
        reports.quality(runs, inception, args, out)
    else:
        membership(runs, inception, args, out)


# --- which models --------------------------------------------------------------------------------


def own_runs(args: Namespace) -> list[EvaluatedRun]:
    """The runs of --run. Raises BadInput for a flag of --checkpoint: these models know their own values."""
    for flag in ("member_split", "members", "size"):
        if getattr(args, flag) is not None:
            raise BadInput(f"--{flag.replace('_', '-')} belongs to --checkpoint; the models of a run know their own")
    return [EvaluatedRun(path, args) for path in args.run or [Path("runs") / args.dataset]]


def published_run(args: Namespace) -> EvaluatedRun:
    """The model of --checkpoint as the undefended model of a run. Prints what was inferred from its weights."""
    if args.run:
        raise BadInput("--checkpoint and --run: give only one of them")
    unet, weights, T = load_published(args.checkpoint)
    dataset = {"name": args.dataset, "data_dir": args.data_dir, "size": args.size or 32, "seed": args.seed}
    require_size(dataset["size"], unet)
    split = split_for(args, data.count(args.dataset, args.data_dir))
    if args.member_split is None:
        print(f"no --member-split: the members are those that train.py --seed {args.seed} would train on")
    model = Checkpoint("all", dataset | {"sha256": None}, split, {"seed": args.seed, "steps": None}, unet, weights)
    model.schedule["T"] = T
    sizes = f"{unet.ch} channels times {unet.mult}, {unet.blocks} blocks a level, attention at levels {unet.attn}"
    print(f"{args.checkpoint}: {sizes}, {model.parameters:,} parameters, T = {T:,}", flush=True)
    # a directory without models, for what is found out; another model of the same file name has another one
    out = args.out or Path("runs") / f"{args.checkpoint.stem}-{weights_key(model)[:8]}"
    return EvaluatedRun(out, args, models={"all": model})


# --- membership inference -------------------------------------------------------------------------


def membership(runs: list[EvaluatedRun], inception: fid.InceptionV3 | None, args: Namespace, out: Path) -> None:
    """The table of every release, every attack and both protocols; and the figures of it."""
    without = [run.path for run in runs if "reference" not in run.models]
    if without and len(without) < len(runs):
        advice = "train it, too (python train.py --split reference)"
        raise BadInput(f"--run: {without[0]} has no reference model, and others have: {advice}")
    calibrations, chosen = [False] if without else [False, True], attacks_of(args)
    scaled = {t: max(10, round(t * runs[0].schedule.T / 1e4) * 10) for t in [*GRID, *PUBLISHED_T.values()]}
    fixed = {attack: scaled[PUBLISHED_T[attack]] if args.t is None else args.t for attack in chosen}
    grid = {attack: sorted({*(args.grid or map(scaled.get, GRID)), t}) for attack, t in fixed.items()}
    releases.require_timesteps(grid, runs[0].schedule)
    own = [] if args.checkpoint else runs  # what lies beside the scores of another's model is not of that model
    for path in [path for run in own for path in snapshots(run.path)]:
        load_run(path)  # a damaged one is refused now

    table = tables.membership(runs, inception.weights if inception else None)
    results, curves = [], {}
    for release in RELEASES:
        attacked = [run for run in runs if release in run.releases]
        possible = {attack: grid[attack] for attack in chosen if attacks.HOLDS[attack] in RELEASES[release].gives}
        costs = [reports.cost(run, release, inception, args) | reports.provenance(run) for run in attacked]
        scores = {ref: [run.scores(release, possible, ref) for run in attacked] for ref in calibrations}
        for attack in possible:
            ways = [(attack + ("-ref" if calibrate else ""), calibrate, True) for calibrate in calibrations]
            if attack == "secmi":
                ways.insert(1, (tables.KEPT_SIGN, False, False))
            for label, calibrate, flips in ways:
                rows = []
                for run, its_cost, its_scores in zip(attacked, costs, scores[calibrate], strict=True):
                    found = {"model": release, "attack": label, "holds": attacks.HOLDS[attack]} | its_cost
                    its = *its_scores[attack], grid[attack], fixed[attack]
                    try:
                        judged, curve = judge(attack, *its, args, flips)
                    except ValueError as error:
                        raise BadInput(f"{label} on {release} of {run.path}: {error}") from error
                    rows += [found | one for one in judged]
                    if flips:
                        curves.setdefault((label, release), []).append(curve)
                results += table.add(rows)
    closing = ["", *tables.overview(results), *tables.beside_the_paper(runs, results)]
    print(*closing, sep="\n")
    if args.print_only:
        return

    scored = {attack: ts for attack, ts in grid.items() if attack not in attacks.FEATURES}
    cheap = {attack: [fixed[attack]] for attack in scored if attack in ("loss", "pia")}
    steps = [row for run in own for at in [*snapshots_of(run), run] for row in published_aucs(at, cheap)]
    over_t = [row for run in runs for row in published_aucs(run, scored)]
    over = {"steps.json": steps, "t.json": over_t}
    mark = reports.mark(runs, args, inception)
    reports.write(out, mark, {"table.md": table.lines + closing, "results.json": results} | over)
    figures.roc_curves(out / "roc.png", curves, mark)
    figures.over(out / "steps.png", "steps", steps, mark)
    figures.over(out / "t.png", "t", over_t, mark)
    samples = [(name, RELEASES[name].models[0]) for run in own[:1] for name in run.releases if name in GENERATING]
    grids = {name: (own[0].path / f"samples-{model}.png", own[0].identity(model)) for name, model in samples}
    figures.samples(out / "samples.png", grids, mark)
    print(f"table, results and figures are in {out}/")


def attacks_of(args: Namespace) -> list[str]:
    return [attack for attack in attacks.HOLDS if {attack, "all"} & {*(args.attack or cli.ATTACKS)}]


def judge(
    attack: str, members: Tensor, nonmembers: Tensor, ts: list[int], t: int, args: Namespace, flips: bool = True
) -> tuple[list[dict], metrics.ROC]:
    """Rows of results.json for both protocols, and the adaptive ROC, by `EvaluatedRun.scores` at the timesteps ts."""
    at = ts.index(t)
    if attack in attacks.FEATURES:  # the attacker has yet to learn from these rows
        learned = functools.partial(attackers.learned, attack, seed=args.seed, device=args.device)
        pair = learned(members[at :: len(ts)], nonmembers[at :: len(ts)])
        adaptive = metrics.judged_by_others(*learned(members, nonmembers), args.seed)
        picks, rules = [(t, 1) for t in ts], []  # they see all timesteps
    else:
        pair = members[at].numpy(), nonmembers[at].numpy()
        adaptive = metrics.adaptive(members, nonmembers, args.seed, flips)
        picks = [(ts[row % len(ts)], sign) for row, sign in adaptive.choices]
        rules = [COMBINATIONS[row // len(ts)] for row, _ in adaptive.choices] if len(members) > len(ts) else []
    published = metrics.published(*pair, args.seed)
    rows = [summary("published", [(t, 1)], COMBINATIONS[:1] if rules else [], published)]
    return [*rows, summary("adaptive", picks, rules, adaptive)], adaptive.curve


def summary(protocol: str, picks: list[tuple[int, int]], rules: list[str], result: metrics.Result) -> dict:
    """The entry of results.json for one attack on one release under one protocol."""
    t, sign = zip(*picks, strict=True)
    # under the adaptive protocol there are two: the picks of each half. A rule combines the scores under two models
    found = {"protocol": protocol, "t": t, "sign": sign, "rule": rules, "auc": result.curve.auc}
    found |= {"auc_95": result.interval, "asr": result.asr, "tpr_at_1": result.curve.tpr_at_1}
    found |= {"tpr_at_01": result.curve.tpr_at_01, "n_members": result.curve.members}
    return found | {"n_nonmembers": result.curve.nonmembers}


def snapshots_of(run: EvaluatedRun) -> Iterator[EvaluatedRun]:
    """The models of a run as they were at each snapshot (train.py --snapshots), without those of other trainings."""
    for path in snapshots(run.path):
        there = [(name, model) for name, model in load_run(path).items() if name in run.models and name != "reference"]
        keys = run.first.settings.keys() - {"steps", "member_split", "targets", "teachers"}
        if models := {name: one for name, one in there if not one.difference(run.models[name], *keys, "split", "unet")}:
            yield EvaluatedRun(path, run.args, run.images, models)


def published_aucs(run: EvaluatedRun, wanted: dict[str, list[int]]) -> list[dict]:
    """The published protocol's AUC of each wanted attack at each of its timesteps, on each release of one eps model."""
    rows = []
    for release in [name for name in GENERATING if name in run.releases]:  # of two models a rule must be picked, too
        possible = {attack: ts for attack, ts in wanted.items() if attacks.HOLDS[attack] in RELEASES[release].gives}
        for attack, sides in run.scores(release, possible).items():
            its = {"model": release, "attack": attack, "protocol": "published"}
            its |= {"steps": run.first.settings["steps"], "seed": run.seed}
            for t, *pair in zip(wanted[attack], *(side.numpy() for side in sides)):
                rows.append(its | {"t": t, "auc": metrics.auc(*pair)})
    return rows


if __name__ == "__main__":
    cli.run(main)
