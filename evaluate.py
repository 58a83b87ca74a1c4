"""Attack every model of a run, and write how well each attack tells members from non-members.

    python evaluate.py --attack pia

It prints a table and leaves it in the run's directory, with figures: table.md, results.json, epochs.json, *.png.
Given several runs that differ in their seed, it writes the mean and the range over these trainings. An AUC of
0.5 is a coin toss, 1 a certain attacker; metrics.py says what the two protocols are.
"""

import argparse
import functools
import hashlib
import json
import os
import shlex
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import attacks
import checkpoint
import cli
import data
import dualmd
import figures
import metrics
import unet
from dualmd import DualMD, EpsModel, NoiseSchedule
from files import BadInput, atomic_write, require_writable

# the timesteps at which SecMI's and PIA's authors attack CIFAR-10; the loss, where PIA does
PUBLISHED_T = {"loss": 200, "secmi": 100, "pia": 200, "pian": 200}
GRID = [50, 100, 150, 200, 250, 300]  # the adaptive attacker's choice; of DualMD, A and B answer at three each
HELD_OUT_T = list(range(50, 1000, 100))  # the held-out loss is the mean over these
TARGETS = {  # what is attacked, and the eps models that the attacker can ask
    "undefended": ["all"],
    "A alone": ["A"],
    "B alone": ["B"],
    "DualMD pipeline": ["dual"],
    "DualMD leaked": ["A", "B"],
    "DistillMD average": ["distill-average"],
    "DistillMD cross": ["distill-cross"],
}


def main() -> None:
    parser = cli.parser(__doc__.partition("\n")[0], "python evaluate.py --attack pia --dataset toy", runs="+")
    parser.add_argument("--attack", choices=PUBLISHED_T, nargs="+", default=list(PUBLISHED_T), help="default: all")
    parser.add_argument("--t", type=int, help="timestep of the published protocol (default: each attack's own)")
    parser.add_argument("--grid", type=int, nargs="+", default=GRID, help="timesteps of the adaptive one: %(default)s")
    parser.add_argument("--batch", type=cli.natural, default=64, help="images at a time (default: %(default)s)")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the attacker's noise (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="directory to write into (default: the run's, or that of all runs)")
    parser.add_argument("--print-only", action="store_true", help="write neither table nor figures")
    args = parser.parse_args()
    runs = args.run or [cli.run_directory(args)]
    out = args.out or (runs[0] if len(runs) == 1 else Path(os.path.commonpath([run.absolute() for run in runs])))
    fixed = {attack: PUBLISHED_T[attack] if args.t is None else args.t for attack in args.attack}
    grid = {attack: sorted({*args.grid, t}) for attack, t in fixed.items()}

    trainings = [Training(run, args) for run in runs]
    require_comparable(trainings)
    if not args.print_only:
        require_writable(out)

    # --- the table: every target, every attack, both protocols ---
    lines, rows, curves, histograms = heading(trainings), [], {}, {}
    print(*lines, sep="\n", flush=True)
    for target in TARGETS:
        attacked = [training for training in trainings if target in training.targets]
        held_out_losses = [training.held_out_loss(target) for training in attacked]
        scores = [training.scores(target, grid) for training in attacked]
        for attack in args.attack if attacked else []:
            ts, at, new = grid[attack], grid[attack].index(fixed[attack]), []
            for training, held_out_loss, score in zip(attacked, held_out_losses, scores, strict=True):
                members, nonmembers = score[attack]
                found = {"model": target, "attack": attack, "held_out_loss": held_out_loss}
                found |= {"seed": training.first.settings["seed"], "commit": commit(), "command": command()}
                try:
                    published = metrics.published(members[at], nonmembers[at], args.seed)
                    adaptive = metrics.adaptive(members, nonmembers, args.seed)
                except ValueError as error:
                    raise BadInput(f"{attack} on {target} of {training.run}: {error}") from error
                new.append(found | summary("published", [fixed[attack]], published))
                new.append(found | summary("adaptive", ts, adaptive))
                curves.setdefault((attack, target), []).append(adaptive.curve)
                histograms.setdefault((attack, target), (members[at], nonmembers[at]))
            rows += new
            lines.append(table_row(new))
            print(lines[-1], flush=True)
    if args.print_only:
        return

    # --- what stays in the directory ---
    cheap = {attack: t for attack, t in fixed.items() if attack in ("loss", "pia")}
    over_epochs = [row for training in trainings for row in training.over_epochs(cheap)]
    texts = {"table.md": "\n".join(lines), "results.json": json.dumps(rows, indent=1)}
    for name, text in (texts | {"epochs.json": json.dumps(over_epochs, indent=1)}).items():
        with atomic_write(out / name) as path:
            path.write_text(text + "\n")
    figures.roc_curves(out / "roc.png", curves)
    figures.histograms(out / "histograms.png", histograms, fixed)
    figures.over_epochs(out / "epochs.png", over_epochs)
    figures.samples(out / "samples.png", {target: runs[0] / f"samples-{TARGETS[target][0]}.png" for target in TARGETS})
    print(f"table, results and figures are in {out}/")


class Training:
    """One run directory and what can be attacked in it. Scores are kept in its scores/, and computed only once."""

    def __init__(self, run: Path, args: argparse.Namespace, images: Tensor | None = None):
        self.run, self.args = run, args
        self.models = checkpoint.load_run(run)
        self.first = next(iter(self.models.values()))
        self.images = checkpoint.load_images(self.first, args.data_dir) if images is None else images
        checkpoint.require_images(self.first, self.images)
        self.asked: dict[str, EpsModel] = {name: one.eps_model(args.device) for name, one in self.models.items()}
        if "A" in self.asked and "B" in self.asked:
            self.asked["dual"] = DualMD(self.asked["A"], self.asked["B"])
        alone = "A alone", "B alone"  # there to be attacked only as long as the other half is not
        self.targets = [
            target
            for target, names in TARGETS.items()
            if all(name in self.asked for name in names) and not (target in alone and "dual" in self.asked)
        ]

    def scores(self, target: str, wanted: dict[str, list[int]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each attack wanted, scores of members (T, N) and of as many non-members, a row a timestep."""
        members = self.models[TARGETS[target][0]].trained_on if target.endswith("alone") else self.first.split.members
        indices = torch.cat([members, self.first.split.nonmembers[: len(members)]])
        asked = [self._scores(name, indices, wanted) for name in TARGETS[target]]
        return {attack: np.split(combined([one[attack] for one in asked]), [len(members)], axis=1) for attack in wanted}

    def held_out_loss(self, target: str) -> float:
        """The denoising loss on images that no model saw, as a mean over timesteps: what the defence costs."""
        target = target.replace("leaked", "pipeline")  # a thief of A and B would sample from them alike
        _, nonmembers = self.scores(target, {"loss": HELD_OUT_T})["loss"]
        return float(-nonmembers.mean())

    def _scores(self, name: str, indices: Tensor, wanted: dict[str, list[int]]) -> dict[str, np.ndarray]:
        """One eps model's scores (T, N) of these images, from scores/ as far as they are there already."""
        # they are good for as long as nothing changes that they depend on, the attack's source included
        models = [self.models[half] for half in "AB"] if name == "dual" else [self.models[name]]
        depends = [tensor.numpy() for model in models for tensor in model.weights.values()]
        depends += [Path(module.__file__).read_bytes() for module in (attacks, dualmd, unet)]
        depends += [indices.numpy(), f"{self.first.dataset['sha256']} {self.args.seed}".encode()]
        key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in depends)).hexdigest()

        kept = {attack: self.run / "scores" / f"{name}-{attack}.npz" for attack in wanted}
        found = {attack: read_scores(path, key) for attack, path in kept.items()}
        missing = {attack: [t for t in ts if t not in found[attack]] for attack, ts in wanted.items()}
        missing = {attack: ts for attack, ts in missing.items() if ts}
        if missing:
            x0 = self.images[indices]
            new = attack_scores(self.asked[name], self.first.noise_schedule(), x0, missing, self.args, name)
            for attack in missing:
                found[attack] |= new[attack]
                ts = sorted(found[attack])
                # whoever may not write there can still attack
                with suppress(BadInput), atomic_write(kept[attack]) as path, open(path, "wb") as file:
                    np.savez(file, key=key, t=ts, scores=[found[attack][t] for t in ts], image=indices.numpy())
        return {attack: np.stack([found[attack][t] for t in ts]) for attack, ts in wanted.items()}

    def over_epochs(self, fixed: dict[str, int]) -> list[dict]:
        """The published protocol's AUCs of the models as they were underway (train.py --snapshots) and as they are."""
        underway = [Training(run, self.args, self.images) for run in checkpoint.snapshots(self.run).values()]
        rows = []
        for training in [*underway, self]:
            settings = training.first.settings
            for target in [target for target in training.targets if target != "DualMD leaked"]:
                for attack, t in fixed.items():
                    (members,), (nonmembers,) = training.scores(target, {attack: [t]})[attack]
                    row = {"model": target, "attack": attack, "protocol": "published", "t": [t]}
                    row |= {"auc": metrics.auc(members, nonmembers)}
                    rows.append(row | {"epochs": settings["epochs"], "seed": settings["seed"]})
        return rows


def require_comparable(trainings: list[Training]) -> None:
    """Raise BadInput where a mean over these trainings would say nothing."""
    for training in trainings:
        for what in ("name", "size"):
            one, other = trainings[0].first.dataset[what], training.first.dataset[what]
            if one != other:
                raise BadInput(
                    f"--run: {trainings[0].run} has {what} {one}, {training.run} {other}: evaluate each alone"
                )
        one, other = len(trainings[0].first.split.members), len(training.first.split.members)
        if one != other:
            raise BadInput(f"--run: {trainings[0].run} has {one} members, {training.run} {other}: evaluate each alone")


def summary(protocol: str, ts: list[int], result: metrics.Result) -> dict:
    """What results.json says of one attack on one target under one protocol."""
    t, sign = zip(*((ts[row], sign) for row, sign in result.choices), strict=True)
    return {
        "protocol": protocol,
        "t": t,  # under the adaptive protocol two: the pick of each half
        "sign": sign,
        "auc": result.curve.auc,
        "auc_95": result.interval,
        "asr": result.asr,
        "tpr_at_1": result.curve.tpr_at_1,
        "tpr_at_01": result.curve.tpr_at_01,
        "n_members": result.curve.members,
        "n_nonmembers": result.curve.nonmembers,
    }


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


# --- the table ------------------------------------------------------------------------------------


def heading(trainings: list[Training]) -> list[str]:
    """What stands above the rows: what was attacked, how the columns are to be read, the columns' names."""
    first = trainings[0].first
    runs = ", ".join(str(training.run) for training in trainings)
    seeds = ", ".join(str(training.first.settings["seed"]) for training in trainings)
    count, size = len(first.split.members), first.dataset["size"]
    brackets = "[95 %]" if len(trainings) == 1 else "[range]"
    names = ["model", "held-out", "attack", f"published {brackets}", "ASR", "@1%", "@0.1%"]
    names += [f"adaptive {brackets}", "t", "ASR", "@1%", "@0.1%"]
    return [
        f"{runs}: {first.dataset['name']} at {size}x{size}, {count:,} members, {count:,} non-members, seed {seeds}",
        "",
        columns(names),
        columns(["-" * width for width in WIDTHS]),
    ]


WIDTHS = [17, 8, 6, 17, 5, 5, 5, 17, 9, 5, 5, 5]


def columns(cells: list[str]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)) + " |"


def table_row(rows: list[dict]) -> str:
    """A target under an attack: of one training the AUCs with their 95 % intervals, of several mean and range."""
    cells = [rows[0]["model"], f"{np.mean([row['held_out_loss'] for row in rows]):.4f}", rows[0]["attack"]]
    for protocol in ("published", "adaptive"):
        its = [row for row in rows if row["protocol"] == protocol]
        aucs = [row["auc"] for row in its]
        low, high = its[0]["auc_95"] if len(its) == 1 else (min(aucs), max(aucs))
        cells.append(f"{np.mean(aucs):.3f} [{low:.2f} {high:.2f}]")
        if protocol == "adaptive":
            cells.append(picked(its))
        for key in ("asr", "tpr_at_1", "tpr_at_01"):
            values = [row[key] for row in its]
            cells.append("–" if None in values else f"{np.mean(values):.3f}")
    return columns(cells)


def picked(rows: list[dict]) -> str:
    """The timesteps that adaptive attackers picked, with a minus where they flipped the sign."""
    ts, signs = ([value for row in rows for value in row[key]] for key in ("t", "sign"))
    sign = {(1,): "", (-1,): "−", (-1, 1): "±"}[tuple(sorted(set(signs)))]
    return f"{sign}{min(ts)}" + (f"…{max(ts)}" if min(ts) < max(ts) else "")


def read_scores(path: Path, key: str) -> dict[int, np.ndarray]:
    """The scores in a file by timestep; none where it does not exist, or was made from anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["key"] == key:
                return dict(zip(file["t"].tolist(), file["scores"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return {}


def attack_scores(
    eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, wanted: dict[str, list[int]], args, name: str
) -> dict[str, dict[int, np.ndarray]]:
    """{attack: {t: scores (N,)}} of the uint8 images x0 (N, 3, H, W). Every model is attacked with the same noise."""
    calls = {}
    for attack, ts in wanted.items():
        for t in ts:
            calls[attack, t] = functools.partial(getattr(attacks, attack), t=t)
            if attack == "loss":
                generator = torch.Generator().manual_seed(cli.seed_for(args.seed, "attack", attack, t))
                calls[attack, t].keywords["generator"] = generator
    parts = {call: [] for call in calls}
    batches = x0.split(args.batch)
    with tqdm(total=len(batches) * len(calls), desc=f"attacks on {name}", leave=False) as bar:
        for batch in batches:
            x = data.to_float(batch.to(args.device))
            ask = remembering(eps_model)
            for call, attacker in calls.items():
                try:
                    parts[call].append(attacker(ask, schedule, x).cpu())
                except ValueError as error:
                    raise BadInput(f"{call[0]} at t = {call[1]}: {error}") from error
                bar.update()
    return {attack: {t: torch.cat(parts[attack, t]).numpy() for t in ts} for attack, ts in wanted.items()}


def remembering(eps_model: EpsModel) -> EpsModel:
    """The same model, which answers what it was asked before from memory.

    Attacks share many of their questions: SecMI at t = 300 walks through all that it does at smaller t.
    """
    answers = {}

    def ask(x: Tensor, t: Tensor) -> Tensor:
        question = hashlib.sha256(x.cpu().numpy()).digest(), *t.tolist()
        if question not in answers:
            answers[question] = eps_model(x, t)
        return answers[question]

    return ask


def combined(scores: list[np.ndarray]) -> np.ndarray:
    """What an attacker makes of scores (T, N) under several models: the highest, in units of each one's spread.

    Whoever holds A and B asks both: a member betrays itself under one of them.
    """
    if len(scores) == 1:
        return scores[0]
    scores = np.stack(scores).astype(np.float64)
    return ((scores - scores.mean(2, keepdims=True)) / scores.std(2, keepdims=True)).max(0)


if __name__ == "__main__":
    cli.run(main)
