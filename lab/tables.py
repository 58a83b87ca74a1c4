"""The tables of evaluate.py, in Markdown."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.releases import EvaluatedRun
from metrics import wilson

FAMILY = {  # the study frontier's families, by the first word of a directory
    "undefended": "undefended", "dropout": "dropout", "flip": "flips", "decay": "weight decay", "private": "DP-SGD",
    "half": "half of the members", "halves": "DualMD", "cross": "DistillMD", "average": "averaged targets",
    "ordinary": "ordinary distillation", "unseen": "teacher of other images",
}  # fmt: skip
ACCESS = "predictions", "weights"  # what an attacker of that study holds
ONE_T = ", one t"  # else scores are summed over the timesteps. The strongest attacker would pick one t mostly by luck
EQUAL = {"held_out_loss": "held-out loss", "fid": "FID", "compute": "compute"}
# Columns: heading, width, key of the results, form of the cells (see `cell`), and a protocol if only its results count.
# In a heading, {} stands for the meaning of the brackets below it.
MODEL = [("model", 17, "model", ""), ("held-out", 8, "held_out_loss", ".4f")]
FIDS = [("FID to members", 20, "fid_members", "fid"), ("FID to held-out", 20, "fid_held_out", "fid")]
JUDGED = [("ASR", 5, "asr", ".3f"), ("@1%", 5, "tpr_at_1", ".3f"), ("@0.1%", 5, "tpr_at_01", ".3f")]
PUBLISHED = [("published {}", 17, "auc", "range"), *JUDGED]
ADAPTIVE = [("adaptive {}", 17, "auc", "range"), ("t", 9, "t", "picks"), *JUDGED]
QUALITY = [*MODEL, ("images", 6, "n_generated", ","), *FIDS, ("Inception Score", 15, "inception_score", ".2f")]
MEMORIZATION = [MODEL[0], ("images", 6, "n", ","), ("copies {}", 17, "copies", "range"), ("of A", 5, "of_a", ".3f")]
MEMORIZATION += [("of B", 5, "of_b", ".3f"), ("of non-members", 14, "of_nonmembers", ".3f")]
MEMORIZATION += [("nearer to members", 17, "nearer_to_members", ".3f"), ("median d1/d2", 12, "median_ratio", ".3f")]
MEMORIZATION += [("smallest", 8, "smallest_ratio", "min")]


class Table:
    """A table whose rows are printed as soon as they are known; `lines` has all of it."""

    def __init__(self, columns: list[tuple], runs: list[EvaluatedRun], weights: str | None = None):
        self.columns, self.widths = columns, [width for _, width, *_ in columns]
        first, brackets = runs[0].first, "[range]" if len(runs) > 1 else "[95 %]"
        paths, seeds = ", ".join(str(run.path) for run in runs), ", ".join(str(run.seed) for run in runs)
        count, size = len(first.split.members), first.dataset["size"]
        about = f"{first.dataset['name']} at {size}x{size}, {count:,} members, {count:,} non-members, seed {seeds}"
        of_fid = [f"FID by Inception weights: {weights}"] if weights else []
        self.lines = [f"{paths}: {about}", *remarks(runs), *of_fid, ""]
        self.lines += heading([name.format(brackets) for name, *_ in columns], self.widths)
        print(*self.lines, sep="\n", flush=True)

    def add(self, rows: list[dict]) -> list[dict]:
        """Add a row of one release's results: those of each run (and protocol), if there are any. Returns them."""
        if rows:
            cells = []
            for _, _, key, form, *protocol in self.columns:
                counted = [row for row in rows if not protocol or row["protocol"] in protocol]
                cells.append(cell(counted, key, form))
            self.lines.append(line(cells, self.widths))
            print(self.lines[-1], flush=True)
        return rows


def membership(runs: list[EvaluatedRun], weights: str | None) -> Table:
    """The table of attacks; with Inception `weights`, it has FIDs too."""
    attack = ("attack", 21, "attack", ""), ("holds", 11, "holds", "")
    published = [(*column, "published") for column in [*(FIDS if weights else []), *attack, *PUBLISHED]]
    columns = [*MODEL, *published, *((*column, "adaptive") for column in ADAPTIVE)]
    return Table(columns, runs, weights)


def remarks(runs: list[EvaluatedRun]) -> list[str]:
    """What a reader must know of these runs: steps, DualMD's rule, what only some of them have, duplicates."""
    paths = [f"{run.path}/" if len(runs) > 1 else "" for run in runs]
    both = zip(paths, runs, strict=True)
    steps = {path + name: model.settings["steps"] for path, run in both for name, model in run.models.items()}
    counts, said = sorted({count for count in steps.values() if count}), []
    if len(counts) == 1:
        said.append(f"{counts[0]:,} steps for each model")
    elif counts:
        said.append("steps: " + ", ".join(f"{name} {count:,}" for name, count in steps.items()))
    if duals := [run.eps_models["dual"] for run in runs if "dual" in run.eps_models]:
        said.append(f"DualMD's pipeline: A where t // {duals[0].stride} is even, else B")
    for release in dict.fromkeys(name for run in runs for name in run.releases):
        there = [str(run.path) for run in runs if release in run.releases]
        said += [f"{release}: only of {', '.join(there)}"] if len(there) < len(runs) else []
    if any(found := [run.duplicates() for run in runs]):
        said.append(f"{' and '.join(map(str, found))} non-members are copies of members: attacks look too weak")
    return ["; ".join(said)] if said else []


def line(cells: Sequence[object], widths: Sequence[int]) -> str:
    return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def heading(names: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line(names, widths), line(["-" * width for width in widths], widths)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose cells are all known; its first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [*heading(rows[0], widths), *(line(row, widths) for row in rows[1:])]


def cell(rows: list[dict], key: str, form: str) -> str:
    """A value of several runs: their mean, and with some forms their range, or a single run's 95 % interval."""
    values = [row[key] for row in rows]
    if values[0] is None:
        return "–"
    if form in ("", ","):
        return format(values[0], form)
    if form == "picks":  # the timesteps that adaptive attackers chose, with a minus where they flipped the sign
        ts, signs = sum(values, ()), {sign for row in rows for sign in row["sign"]}
        return f"{sign_of(signs)}{min(ts)}" + (f"…{max(ts)}" if min(ts) < max(ts) else "")
    low, mean, high = min(values), np.mean(values), max(values)
    if form == "min":
        return f"{low:.3f}"
    if form == "fid":
        return f"{mean:.2f}" + (f" [{low:.1f} {high:.1f}]" if len(rows) > 1 else "")
    if form == "range":
        if len(rows) == 1:
            low, high = rows[0]["auc_95"] if key == "auc" else wilson(mean, rows[0]["n"])
        return interval(mean, (low, high))
    return format(mean, form)


def sign_of(signs: set[int]) -> str:
    return {(1,): "", (-1,): "−", (-1, 1): "±"}[tuple(sorted(signs))]


def overview(rows: list[dict]) -> list[str]:
    """The adaptive AUCs as means over runs, a line for each attack and a column for each release.

    − after an AUC says that the attacker flipped the sign, ± that they did so on one half, or in some runs.
    """
    its: dict[tuple[str, str], list[dict]] = {}
    for row in [row for row in rows if row["protocol"] == "adaptive"]:
        its.setdefault((row["attack"], row["model"]), []).append(row)
    means = {key: np.mean([row["auc"] for row in found]) for key, found in its.items()}
    signs = {key: sign_of({sign for row in found for sign in row["sign"]}) for key, found in its.items()}
    cells = {key: f"{mean:.3f} {signs[key]}".strip() for key, mean in means.items()}
    attacks, releases = (list(dict.fromkeys(names)) for names in zip(*its, strict=True))
    strongest = [max(attacks, key=lambda attack: means.get((attack, name), 0)) for name in releases]
    best = [f"{attack} {means[attack, name]:.3f}" for attack, name in zip(strongest, releases, strict=True)]
    table = [[attack, *(cells.get((attack, name), "–") for name in releases)] for attack in attacks]
    return aligned([["adaptive AUC", *releases], *table, ["strongest", *best]])


KEPT_SIGN = "secmi, published sign"  # the rows of an attacker who may not flip SecMI's sign
# SecMI's AUCs in the paper (arXiv 2410.16657): undefended and DistillMD. Its TPR at 1 % FPR is 0.02 to 0.03 after.
PAPER = {"CIFAR-10": (0.93, 0.59), "CIFAR-100": (0.96, 0.61), "Tiny ImageNet": (0.96, 0.57), "STL10-U": (0.94, 0.58)}


def beside_the_paper(runs: list[EvaluatedRun], rows: list[dict]) -> list[str]:
    """SecMI with its published sign in the paper and in these rows: at its published t, and at the picked ones."""
    first, names = runs[0].first, ("undefended", "DistillMD")
    kept = [row for row in rows if row["attack"] == KEPT_SIGN and row["model"] in names]
    if {row["model"] for row in kept} != set(names) or not first.settings["steps"]:
        return []
    columns = "SecMI, published sign", "AUC: undefended", "DistillMD", "TPR@1%: undefended", "DistillMD"
    table = [[*columns, "images", "members", "steps"]]
    for dataset, aucs in PAPER.items():
        cells = f"{aucs[0]:.2f}", f"{aucs[1]:.2f}", "–", "0.02 to 0.03", "–", "–", "780,000"
        table.append([f"the paper, {dataset}", *cells])
    size = f"{first.dataset['size']}x{first.dataset['size']}"
    about = size, f"{len(first.split.members):,}", f"{first.settings['steps']:,}"
    for protocol, which in (("published", "t = {}"), ("adaptive", "t picked")):
        cells = []
        for key, form in (("auc", ".2f"), ("tpr_at_1", ".2f")):
            by = {name: [row for row in kept if (row["model"], row["protocol"]) == (name, protocol)] for name in names}
            cells += [cell(by[name], key, form) for name in names]
        t = by["undefended"][0]["t"][0]
        table.append([f"ours, {first.dataset['name']}, {which.format(t)}", *cells, *about])
    return ["", *aligned(table)]


def frontier(paths: list[Path], rows: list[dict]) -> list[str]:
    """Three tables: every model; each one beside the undefended models; and how strong each attacker is."""
    numbers = [("held-out loss", "held_out_loss", ".4f"), *([("FID", "fid", ".1f")] if "fid" in rows[0] else [])]
    heads = [f"AUC by {holds}, attacker, TPR@1%".split(", ") for holds in ACCESS]
    first = [["model", "compute", *(name for name, *_ in numbers), *heads[0], *heads[1]]]
    second = [["AUC minus an undefended model's", *(f"at equal {name}" for x, name in EQUAL.items() if x in rows[0])]]
    for row in rows:
        cells = [row["model"], f"{row['compute']:,.0f}", *(format(np.mean(row[x]), form) for _, x, form in numbers)]
        for holds, its in [(holds, row[holds]) for holds in ACCESS]:
            tpr = "–" if None in its["tpr_at_1"] else f"{np.mean(its['tpr_at_1']):.2f}"
            cells += [interval(its["auc"], its["auc_95"]), " / ".join(dict.fromkeys(its["attacker"])), tpr]
            found = [its[f"at_equal_{x}"] for x in EQUAL if f"at_equal_{x}" in its]
            second += [[f"{row['model']}, by {holds}", *map(difference, found)]] if found else []
        if "set_p" in row:  # of several seeds, twice the mean of their p-values is a p-value, too
            cells.append(f"{min(1, np.mean(row['set_p']) * min(len(row['set_p']), 2)):.3f}")
        first.append(cells)
    first[0] += ["set-level p"] if "set_p" in rows[0] else []
    means = [{by: np.mean(x) for by, x in row["weights"]["auc_by_attacker"].items() if ONE_T not in by} for row in rows]
    aucs = {name: [one[name] for one in means if name in one] for every in means for name in every}
    best, third = [max(x, key=x.get) for x in means], [["attacker", "mean AUC", "largest", "models", "strongest of"]]
    for name, found in sorted(aucs.items(), key=lambda item: (-len(item[1]), -np.mean(item[1]))):
        third.append([name, f"{np.mean(found):.3f}", f"{max(found):.3f}", str(len(found)), str(best.count(name))])
    what = f"{', '.join(map(str, paths))}: means over {len(paths)} trainings of each model, with 95 % intervals"
    return [what, "", *aligned(first), "", *aligned(second), "", *aligned(third)]


def interval(value: float, ends: Sequence[float], sign: str = "") -> str:
    return f"{value:{sign}.3f} [{ends[0]:{sign}.2f} {ends[1]:{sign}.2f}]"


def difference(found: dict) -> str:
    """≥ and ≤ are bounds: in some training no undefended model is so bad, or so good."""
    bound = {(): "", ("at least",): "≥ ", ("at most",): "≤ "}.get(tuple(found["bounds"]), "≷ ")
    return f"{bound}{interval(found['difference'], found['difference_95'], '+')}: {found['verdict']}"
