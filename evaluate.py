"""Attack every model of a run, and write how well each attack tells members from non-members.

    python evaluate.py --attack pia        python evaluate.py --memorization        python evaluate.py --fid
    python evaluate.py --list              python evaluate.py --checkpoint FILE --member-split NPZ --attack pia

It prints a table and leaves it in the run's directory, with figures: table.md, results.json, epochs.json, *.png.
Given several runs that differ in their seed, it writes the mean and the range over these trainings. An AUC of
0.5 is a coin toss, 1 a certain attacker; metrics.py says what the two protocols are. Where there is a reference
model, each attack is made a second time with it, as ATTACK-ref. With --memorization no model is attacked, but
each generates images, and how many are copies of training images goes into memorization.md, .json and .png. With
--fid, how far what they generate is from the members, and from held-out images, goes into fid.md and fid.json; given
an --attack too, into columns of its table. With --checkpoint, what is judged is a model of pytorch-ddpm's, like those
that SecMI, PIA and SimA attack. With --list, nothing is judged, but said which models there are.
"""

import argparse
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import attacks
import data
import fid
import metrics
from lab import checkpoint, cli, figures
from lab.files import BadInput, atomic_write, require_writable
from lab.memorization import is_copy, nearest
from lab.releases import GENERATING, RELEASES, RULES, EvaluatedRun, require_comparable

# the timesteps at which SecMI's and PIA's authors attack CIFAR-10, and ReDiffuse's; the others, where PIA does
PUBLISHED_T = dict.fromkeys(attacks.HOLDS, 200) | {"secmi": 100, "secmi_nn": 100}
GRID = [50, 100, 150, 200, 250, 300]  # the adaptive attacker's choice; of DualMD, A and B answer at three each


def main() -> None:
    parser = cli.parser(__doc__, runs="+")
    what = parser.add_argument_group("membership inference")
    named, default = "one or more, or all of them", " ".join(cli.ATTACKS)
    what.add_argument("--attack", choices=[*attacks.HOLDS, "all"], nargs="+", help=f"{named} (default: {default})")
    what.add_argument("--t", type=int, help="timestep of the published protocol (default: each attack's own)")
    what.add_argument("--grid", type=int, nargs="+", default=GRID, help="of the adaptive one (default: %(default)s)")
    what.add_argument("--reference", type=Path, help="the attacker's own model (default: each run's reference.pt)")
    what.add_argument("--seed", type=cli.seed, default=0, help="of the attacker's noise (default: %(default)s)")
    generated = parser.add_argument_group("what the models generate, or which there are")
    instead = generated.add_mutually_exclusive_group()
    instead.add_argument("--memorization", action="store_true", help="generate images, and look for copies")
    instead.add_argument("--fid", action="store_true", help="generate images, and measure their quality")
    instead.add_argument("--list", action="store_true", help="show which models are in --run (default: runs/)")
    fid.add_weights(generated)
    generated.add_argument("--n", type=cli.natural, help="images to generate, a model (default: as many as members)")
    published = parser.add_argument_group("a model in pytorch-ddpm's format, as SecMI, PIA and SimA publish theirs")
    published.add_argument("--checkpoint", metavar="FILE", type=Path, help="judge it instead of a run's models")
    cli.add_member_split(published)
    published.add_argument("--members", type=cli.natural, help="judge it by so many of them (default: by all)")
    published.add_argument("--size", type=cli.natural, help="side of its images, in pixels (default: 32)")
    parser.add_argument("--batch", type=cli.natural, help="images at a time (default: 64, on a GPU 256)")
    parser.add_argument("--out", type=Path, help="directory to write into (default: the run's, or that of all runs)")
    parser.add_argument("--print-only", action="store_true", help="write neither table nor figures")
    args = parser.parse_args()
    args.batch = args.batch or (256 if args.device.type == "cuda" else 64)
    if args.list:
        list_models(args.run or [Path("runs")])
        return
    if args.checkpoint:
        if args.run:
            raise BadInput("--checkpoint and --run: one at a time")
        runs = [args.out or Path("runs") / args.checkpoint.stem]  # which has no models, but all that is found out
        trainings = [published_model(runs[0], args)]
    else:
        for flag in ("member_split", "members", "size"):
            if getattr(args, flag) is not None:
                raise BadInput(
                    f"--{flag.replace('_', '-')} belongs to --checkpoint; the models of a run know their own"
                )
        runs = args.run or [cli.run_directory(args)]
        trainings = [EvaluatedRun(run, args, reference=args.reference) for run in runs]
    out = args.out or (runs[0] if len(runs) == 1 else Path(os.path.commonpath([run.absolute() for run in runs])))
    require_comparable(trainings)
    inception = fid.load(args.inception_weights, args.device) if args.fid else None
    if not args.print_only:
        require_writable(out)
    if args.memorization:
        memorization(trainings, args, out)
    elif args.fid and not args.attack:
        quality(trainings, inception, args, out)
    else:
        membership(trainings, inception, args, out)


def require_references(trainings: list[EvaluatedRun]) -> bool:
    """Is there a reference model for every run? Raise BadInput where some have one and others have not."""
    without = [training.run for training in trainings if "reference" not in training.models]
    if without and len(without) < len(trainings):
        raise BadInput(
            f"--run: {without[0]} has no reference model, and others have: train it, too "
            "(python train.py --split reference)"
        )
    return not without


# --- which models --------------------------------------------------------------------------------


def published_model(run: Path, args: argparse.Namespace) -> EvaluatedRun:
    """The model of --checkpoint as the undefended one of a run; says what has been inferred of it."""
    images, dataset = checkpoint.open_dataset(args.dataset, args.data_dir, args.size or 32, args.seed)
    split = data.index_split(len(images), args.members, args.seed, args.member_split)
    model = checkpoint.load_published(args.checkpoint, dataset, split)
    cli.require_size(dataset["size"], model.unet)
    if args.member_split is None:
        print(f"no --member-split: taken for members are those that train.py --seed {args.seed} would train on")
    unet, T = model.unet, model.schedule["T"]
    print(
        f"{args.checkpoint}: {unet.ch} channels times {unet.mult}, {unet.blocks} blocks a level, attention at levels "
        f"{unet.attn}, {parameters(model):,} parameters, T = {T:,}",
        flush=True,
    )
    return EvaluatedRun(run, args, images, args.reference, {"all": model})


def parameters(model: checkpoint.Checkpoint) -> int:
    return sum(weight.numel() for weight in model.weights.values())


def list_models(roots: list[Path]) -> None:
    """A line for each finished model in these directories and those below, without snapshots."""
    paths = [path for root in roots for path in sorted(root.rglob("*.pt")) if path.stem in checkpoint.NAMES]
    rows, unreadable = [], []
    for path in [path for path in paths if not path.parent.name.startswith("epoch-")]:
        try:
            model = checkpoint.load(path)
        except BadInput as error:
            unreadable.append(str(error))
            continue
        size, count, settings = model.dataset["size"], len(model.split.members), model.settings
        cells = path, model.dataset["name"], f"{size}x{size}", f"{len(model.trained_on):,}", f"{count:,}"
        cells += f"{settings['epochs']:,}", settings["seed"], f"{parameters(model):,}", path.stat().st_size // 1000
        rows.append([str(cell) for cell in cells])
    if rows:
        names = "model", "dataset", "images", "trained on", "members", "epochs", "seed", "parameters", "kB"
        table = [(name, max(map(len, column))) for name, *column in zip(names, names, *rows, strict=True)]
        dashes = ["-" * width for _, width in table]
        print(*(columns(list(cells), table) for cells in (names, dashes, *rows)), sep="\n")
    elif not unreadable:
        raise BadInput(f"no trained model in {', '.join(map(str, roots))}: train one (python train.py --split A)")
    print(*unreadable, sep="\n", end="\n" if unreadable else "")


# --- membership inference -------------------------------------------------------------------------


def membership(
    trainings: list[EvaluatedRun], inception: fid.InceptionV3 | None, args: argparse.Namespace, out: Path
) -> None:
    """The table of every release, every attack, both protocols; and all that is drawn from it."""
    has_reference = require_references(trainings)
    asked = args.attack or cli.ATTACKS
    chosen = [attack for attack in attacks.HOLDS if attack in asked or "all" in asked]
    fixed = {attack: PUBLISHED_T[attack] if args.t is None else args.t for attack in chosen}
    grid = {attack: sorted({*args.grid, t}) for attack, t in fixed.items()}

    table = [*MEMBERSHIP[:2], *(FID_COLUMNS if inception else []), *MEMBERSHIP[2:]]
    lines, rows, curves, histograms = heading(trainings, table, inception), [], {}, {}
    print(*lines, sep="\n", flush=True)
    for release in RELEASES:
        attacked = [training for training in trainings if release in training.releases]
        possible = {attack: grid[attack] for attack in chosen if attacks.HOLDS[attack] in RELEASES[release].gives}
        costs = [cost(training, release, inception, args) for training in attacked]
        scores = {False: [training.scores(release, possible) for training in attacked]}
        if has_reference:
            scores[True] = [training.scores(release, possible, calibrate=True) for training in attacked]
        for attack in possible if attacked else []:
            for calibrated, each in scores.items():
                label, new = attack + ("-ref" if calibrated else ""), []
                for training, its_cost, score in zip(attacked, costs, each, strict=True):
                    found = {"model": release, "attack": label, "holds": attacks.HOLDS[attack]}
                    found |= its_cost | provenance(training)
                    try:
                        its, curve, pair = judge(attack, *score[attack], grid[attack], fixed[attack], args)
                    except ValueError as error:
                        raise BadInput(f"{label} on {release} of {training.run}: {error}") from error
                    new += [found | row for row in its]
                    curves.setdefault((label, release), []).append(curve)
                    histograms.setdefault((label, release), pair)
                rows += new
                lines.append(columns(table_row(new), table))
                print(lines[-1], flush=True)
    closing = ["", *overview(rows)]
    print(*closing, sep="\n")
    if args.print_only:
        return

    cheap = {attack: t for attack, t in fixed.items() if attack in ("loss", "pia")}
    underway = [row for training in trainings for row in over_epochs(training, cheap)]
    write(out, {"table.md": lines + closing, "results.json": rows, "epochs.json": underway})
    figures.roc_curves(out / "roc.png", curves)
    figures.histograms(out / "histograms.png", histograms, fixed)
    figures.over_epochs(out / "epochs.png", underway)
    grids = {
        release: trainings[0].run / f"samples-{RELEASES[release].models[0]}.png" for release in trainings[0].releases
    }
    figures.samples(out / "samples.png", grids)
    print(f"table, results and figures are in {out}/")


def judge(
    attack: str, members: Tensor, nonmembers: Tensor, ts: list[int], t: int, args: argparse.Namespace
) -> tuple[list[dict], metrics.ROC, tuple[np.ndarray, np.ndarray]]:
    """Rows of results.json for both protocols; the adaptive one's ROC; the published one's scores of (non-)members.

    Scores (R, N), (R, M) are as `EvaluatedRun.scores` gives them, a row a timestep of ts.
    """
    at = ts.index(t)
    if attack == "secmi_nn":  # its rows are images, from which a network has yet to learn
        pair = learned(members[at :: len(ts)], nonmembers[at :: len(ts)], args)
        adaptive = metrics.judged_by_others(*learned(members, nonmembers, args), args.seed)
        picks, rules = [(t, 1) for t in ts], []  # the network sees them all
    else:
        pair = members[at].numpy(), nonmembers[at].numpy()
        adaptive = metrics.adaptive(members, nonmembers, args.seed)
        picks = [(ts[row % len(ts)], sign) for row, sign in adaptive.choices]
        rules = [RULES[row // len(ts)] for row, _ in adaptive.choices] if len(members) > len(ts) else []
    rows = [
        summary("published", [(t, 1)], RULES[:1] if rules else [], metrics.published(*pair, args.seed)),
        summary("adaptive", picks, rules, adaptive),
    ]
    return rows, adaptive.curve, pair


def learned(members: Tensor, nonmembers: Tensor, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """SecMI-NN's scores of error images (R, N, 3, H, W): each half's by a network that learnt on the other half."""
    images = [errors.transpose(0, 1).flatten(1, 2).float() for errors in (members, nonmembers)]
    scores = np.empty(len(images[0])), np.empty(len(images[1]))
    cut = metrics.halves(*map(len, images), args.seed)
    for mine, other in (cut, cut[::-1]):
        errors, others = (torch.cat([images[0][half[0]], images[1][half[1]]]).to(args.device) for half in (mine, other))
        is_member = torch.arange(len(errors), device=args.device) < len(mine[0])
        found = attacks.secmi_nn(errors, is_member, others, seed=args.seed).cpu().numpy()
        scores[0][other[0]], scores[1][other[1]] = np.split(found, [len(other[0])])
    return scores


def summary(protocol: str, picks: list[tuple[int, int]], rules: Sequence[str], result: metrics.Result) -> dict:
    """What results.json says of one attack on one release under one protocol."""
    t, sign = zip(*picks, strict=True)
    return {
        "protocol": protocol,
        "t": t,  # under the adaptive protocol two: the pick of each half
        "sign": sign,
        "rule": rules,  # by which the scores under two models became one, where there are two
        "auc": result.curve.auc,
        "auc_95": result.interval,
        "asr": result.asr,
        "tpr_at_1": result.curve.tpr_at_1,
        "tpr_at_01": result.curve.tpr_at_01,
        "n_members": result.curve.members,
        "n_nonmembers": result.curve.nonmembers,
    }


def over_epochs(training: EvaluatedRun, fixed: dict[str, int]) -> list[dict]:
    """The published protocol's AUCs of the models as they were underway (train.py --snapshots) and as they are."""
    snapshots = checkpoint.snapshots(training.run).values()
    rows = []
    for at in [*(EvaluatedRun(run, training.args, training.images) for run in snapshots), training]:
        settings = at.first.settings
        for release in [release for release in at.releases if release not in ("DualMD unmixed", "DualMD leaked")]:
            for attack, t in fixed.items():
                (members,), (nonmembers,) = at.scores(release, {attack: [t]})[attack]
                row = {"model": release, "attack": attack, "protocol": "published", "t": [t]}
                row |= {"auc": metrics.auc(members.numpy(), nonmembers.numpy())}
                rows.append(row | {"epochs": settings["epochs"], "seed": settings["seed"]})
    return rows


# --- memorisation ---------------------------------------------------------------------------------


def memorization(trainings: list[EvaluatedRun], args: argparse.Namespace, out: Path) -> None:
    """The table of how much of what each model generates is copied from its training images, and from no others."""
    lines, rows, pairs = heading(trainings, MEMORIZATION), [], {}
    print(*lines, sep="\n", flush=True)
    for release in GENERATING:
        new = []
        for training in [training for training in trainings if release in training.releases]:
            members, nonmembers = (training.images[indices] for indices in training.indices(release))
            n = args.n or len(members)
            generated = training.generated(release, n)
            found, which = nearest(generated, members)
            control, _ = nearest(generated, nonmembers)
            copies, of_b = is_copy(found), torch.isin(training.indices(release)[0][which[:, 0]], training.first.split.b)
            shares = {
                "copies": copies,
                "of_a": copies & ~of_b,
                "of_b": copies & of_b,
                "of_nonmembers": is_copy(control),
                "nearer_to_members": found[:, 0] < control[:, 0],
            }
            row = {"model": release, "n": n} | {key: share.float().mean().item() for key, share in shares.items()}
            ratio = (found[:, 0] / found[:, 1]).nan_to_num(1)  # two copies of one training image: 0 / 0
            row |= {"smallest_ratio": ratio.min().item(), "median_ratio": ratio.median().item()}
            new.append(row | provenance(training))
            closest = ratio.argsort()[:8]
            pairs.setdefault(release, (generated[closest], members[which[closest, 0]], ratio[closest]))
        if new:
            rows += new
            lines.append(columns(memorization_row(new), MEMORIZATION))
            print(lines[-1], flush=True)
    if not args.print_only:
        write(out, {"memorization.md": lines, "memorization.json": rows})
        figures.pairs(out / "memorization.png", pairs)
        print(f"table and closest pairs are in {out}/")


# --- quality --------------------------------------------------------------------------------------


def quality(trainings: list[EvaluatedRun], inception: fid.InceptionV3, args: argparse.Namespace, out: Path) -> None:
    """The table of how far what each model generates is from its members, and from images that no model saw."""
    lines, rows = heading(trainings, QUALITY, inception), []
    print(*lines, sep="\n", flush=True)
    for release in ["real held-out", *GENERATING]:
        new = []
        for training in trainings:
            if release == "real held-out":
                found = {"held_out_loss": None, "n_generated": len(training.indices(training.releases[0])[1])}
                found |= {"fid_members": training.fid_of_real(inception), "fid_held_out": None}
                new.append({"model": release} | found | {"fid_weights": inception.weights} | provenance(training))
            elif release in training.releases:
                new.append({"model": release} | cost(training, release, inception, args) | provenance(training))
        if new:
            rows += new
            lines.append(columns(quality_row(new), QUALITY))
            print(lines[-1], flush=True)
    if not args.print_only:
        write(out, {"fid.md": lines, "fid.json": rows})
        print(f"table is in {out}/")


def cost(training: EvaluatedRun, release: str, inception: fid.InceptionV3 | None, args: argparse.Namespace) -> dict:
    """What the defence costs: the loss on held-out images and, given Inception, FIDs of what the release generates."""
    found = {"held_out_loss": training.held_out_loss(release)}
    if inception:
        n = args.n or len(training.indices(release)[0])
        to_members, to_held_out = training.fids(release, n, inception)
        found |= {
            "n_generated": n,
            "fid_members": to_members,
            "fid_held_out": to_held_out,
            "fid_weights": inception.weights,
        }
    return found


# --- what is written --------------------------------------------------------------------------------


def write(out: Path, contents: dict[str, list]) -> None:
    """Lines as text, and rows as JSON, each file whole or not at all."""
    for name, content in contents.items():
        with atomic_write(out / name) as path:
            path.write_text((json.dumps(content, indent=1) if name.endswith(".json") else "\n".join(content)) + "\n")


def provenance(training: EvaluatedRun) -> dict:
    return {"seed": training.first.settings["seed"], "commit": commit(), "command": command()}


def command() -> str:
    return shlex.join(["python", "evaluate.py", *sys.argv[1:]])


@functools.cache
def commit() -> str | None:
    """The commit of this code, "-dirty" where it was edited since; None where that can't be told."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# --- tables ---------------------------------------------------------------------------------------

# names and widths of the columns; {} is what the brackets hold
JUDGED = [("ASR", 5), ("@1%", 5), ("@0.1%", 5)]
FID_COLUMNS = [("FID to members", 20), ("FID to held-out", 20)]
QUALITY = [("model", 17), ("held-out", 8), ("images", 6), *FID_COLUMNS]
MEMBERSHIP = [("model", 17), ("held-out", 8), ("attack", 13), ("holds", 11)]
MEMBERSHIP += [("published {}", 17), *JUDGED, ("adaptive {}", 17), ("t", 9), *JUDGED]
MEMORIZATION = [("model", 17), ("images", 6), ("copies {}", 17), ("of A", 5), ("of B", 5), ("of non-members", 14)]
MEMORIZATION += [("nearer to members", 17), ("median d1/d2", 12), ("smallest", 8)]
Table = list[tuple[str, int]]


def heading(trainings: list[EvaluatedRun], table: Table, inception: fid.InceptionV3 | None = None) -> list[str]:
    """What stands above the rows: what was looked at, and the columns' names."""
    first = trainings[0].first
    runs = ", ".join(str(training.run) for training in trainings)
    seeds = ", ".join(str(training.first.settings["seed"]) for training in trainings)
    count, size = len(first.split.members), first.dataset["size"]
    brackets = "[95 %]" if len(trainings) == 1 else "[range]"
    return [
        f"{runs}: {first.dataset['name']} at {size}x{size}, {count:,} members, {count:,} non-members, seed {seeds}",
        *([f"FID by Inception weights: {inception.weights}"] if inception else []),
        "",
        columns([name.format(brackets) for name, _ in table], table),
        columns(["-" * width for _, width in table], table),
    ]


def columns(cells: list[str], table: Table) -> str:
    _, widths = zip(*table, strict=True)
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def table_row(rows: list[dict]) -> list[str]:
    """A release under an attack: of one training the AUCs with their 95 % intervals, of several mean and range."""
    cells = [rows[0]["model"], f"{mean(rows, 'held_out_loss'):.4f}"]
    once = [row for row in rows if row["protocol"] == "published"]  # of each training one
    cells += [fids(once, key) for key in ("fid_members", "fid_held_out") if key in rows[0]]
    cells += [rows[0]["attack"], rows[0]["holds"]]
    for protocol in ("published", "adaptive"):
        its = [row for row in rows if row["protocol"] == protocol]
        cells.append(with_range([row["auc"] for row in its], its[0]["auc_95"]))
        if protocol == "adaptive":
            cells.append(picked(its))
        for key in ("asr", "tpr_at_1", "tpr_at_01"):
            cells.append("–" if its[0][key] is None else f"{mean(its, key):.3f}")
    return cells


def memorization_row(rows: list[dict]) -> list[str]:
    copies = [row["copies"] for row in rows]
    cells = [rows[0]["model"], f"{rows[0]['n']:,}", with_range(copies, wilson(copies[0], rows[0]["n"]))]
    for key in ("of_a", "of_b", "of_nonmembers", "nearer_to_members", "median_ratio"):
        cells.append(f"{mean(rows, key):.3f}")
    return [*cells, f"{min(row['smallest_ratio'] for row in rows):.3f}"]


def quality_row(rows: list[dict]) -> list[str]:
    held_out = "–" if rows[0]["held_out_loss"] is None else f"{mean(rows, 'held_out_loss'):.4f}"
    return [
        rows[0]["model"],
        held_out,
        f"{rows[0]['n_generated']:,}",
        *(fids(rows, key) for key in ("fid_members", "fid_held_out")),
    ]


def fids(rows: list[dict], key: str) -> str:
    """A FID; of several trainings mean and range."""
    values = [row[key] for row in rows]
    if values[0] is None:
        return "–"
    return f"{np.mean(values):.2f}" + (f" [{min(values):.1f} {max(values):.1f}]" if len(values) > 1 else "")


def overview(rows: list[dict]) -> list[str]:
    """The adaptive AUCs once more, an attack a line and a release a column: means over trainings."""
    aucs: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["protocol"] == "adaptive":
            aucs.setdefault(row["attack"], {}).setdefault(row["model"], []).append(row["auc"])
    targets = list(dict.fromkeys(row["model"] for row in rows))
    table = [("adaptive AUC", 13), *((release, len(release)) for release in targets)]
    lines = [columns([name for name, _ in table], table), columns(["-" * width for _, width in table], table)]
    strongest = {}
    for attack, its in aucs.items():
        means = {release: float(np.mean(its[release])) for release in targets if release in its}
        lines.append(columns([attack, *(f"{means[x]:.3f}" if x in means else "–" for x in targets)], table))
        for release in means:
            strongest[release] = max(
                strongest.get(release, ("", 0)), (attack, means[release]), key=lambda pair: pair[1]
            )
    return [*lines, columns(["strongest", *(strongest[release][0] for release in targets)], table)]


def mean(rows: list[dict], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def with_range(values: Sequence[float], interval: Sequence[float]) -> str:
    """The mean of several values and their range; a single one with its 95 % interval."""
    low, high = interval if len(values) == 1 else (min(values), max(values))
    return f"{np.mean(values):.3f} [{low:.2f} {high:.2f}]"


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share among n (Wilson's)."""
    z = 1.96
    centre, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def picked(rows: list[dict]) -> str:
    """The timesteps that adaptive attackers picked, with a minus where they flipped the sign."""
    ts, signs = ([value for row in rows for value in row[key]] for key in ("t", "sign"))
    sign = {(1,): "", (-1,): "−", (-1, 1): "±"}[tuple(sorted(set(signs)))]
    return f"{sign}{min(ts)}" + (f"…{max(ts)}" if min(ts) < max(ts) else "")


if __name__ == "__main__":
    cli.run(main)
