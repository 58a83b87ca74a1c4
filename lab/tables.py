"""The tables of evaluate.py, in Markdown."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lab import checkpoint
from lab.files import BadInput
from lab.releases import EvaluatedRun
from metrics import wilson

Cell = Callable[[list[dict]], str]  # makes a cell from the results of one release, one dict (or one a protocol) a run
Column = tuple[str, int, Cell]  # heading, width, cell; in a heading, {} stands for the meaning of the brackets below it


class Table:
    """A table whose rows are printed as soon as they are known; `lines` has all of it."""

    def __init__(self, columns: list[Column], runs: list[EvaluatedRun], weights: str | None = None):
        self.headings, self.widths, self.cells = zip(*columns, strict=True)
        first, brackets = runs[0].first, "[range]" if len(runs) > 1 else "[95 %]"
        paths, seeds = ", ".join(str(run.path) for run in runs), ", ".join(str(run.seed) for run in runs)
        count, size = len(first.split.members), first.dataset["size"]
        about = f"{first.dataset['name']} at {size}x{size}, {count:,} members, {count:,} non-members, seed {seeds}"
        self.lines = [f"{paths}: {about}", *([f"FID by Inception weights: {weights}"] if weights else []), ""]
        self.lines += heading([name.format(brackets) for name in self.headings], self.widths)
        print(*self.lines, sep="\n", flush=True)

    def add(self, rows: list[dict]) -> list[dict]:
        """Make a row of one release's results, if there are any, and return them."""
        if rows:
            self.lines.append(line([cell(rows) for cell in self.cells], self.widths))
            print(self.lines[-1], flush=True)
        return rows


def line(cells: Sequence[object], widths: Sequence[int]) -> str:
    return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def heading(names: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line(names, widths), line(["-" * width for width in widths], widths)]


# --- cells: the mean over several runs and its range, or one run's value and its 95 % interval ---------


def text(key: str) -> Cell:
    return lambda rows: f"{rows[0][key]:,}" if isinstance(rows[0][key], int) else rows[0][key]


def mean(key: str, digits: int = 3) -> Cell:
    return lambda rows: "–" if rows[0][key] is None else f"{np.mean([row[key] for row in rows]):.{digits}f}"


def with_range(key: str, interval: Callable[[dict], Sequence[float]]) -> Cell:
    def cell(rows: list[dict]) -> str:
        values = [row[key] for row in rows]
        low, high = interval(rows[0]) if len(rows) == 1 else (min(values), max(values))
        return f"{np.mean(values):.3f} [{low:.2f} {high:.2f}]"

    return cell


def fid(key: str) -> Cell:
    def cell(rows: list[dict]) -> str:
        values = [row[key] for row in rows]
        several = len(rows) > 1 and values[0] is not None
        return mean(key, 2)(rows) + (f" [{min(values):.1f} {max(values):.1f}]" if several else "")

    return cell


def picked(rows: list[dict]) -> str:
    """The timesteps that the adaptive attackers chose, with a minus where they flipped the sign."""
    ts, signs = ([value for row in rows for value in row[key]] for key in ("t", "sign"))
    sign = {(1,): "", (-1,): "−", (-1, 1): "±"}[tuple(sorted(set(signs)))]
    return f"{sign}{min(ts)}" + (f"…{max(ts)}" if min(ts) < max(ts) else "")


def under(protocol: str, columns: list[Column]) -> list[Column]:
    """The same columns, whose cells see the results under this protocol only."""

    def only(cell: Cell) -> Cell:
        return lambda rows: cell([row for row in rows if row["protocol"] == protocol])

    return [(name, width, only(cell)) for name, width, cell in columns]


MODEL = [("model", 17, text("model")), ("held-out", 8, mean("held_out_loss", 4))]
FIDS = [("FID to members", 20, fid("fid_members")), ("FID to held-out", 20, fid("fid_held_out"))]
AUC = with_range("auc", lambda row: row["auc_95"])
JUDGED = [("ASR", 5, mean("asr")), ("@1%", 5, mean("tpr_at_1")), ("@0.1%", 5, mean("tpr_at_01"))]
ATTACKS = [("attack", 13, text("attack")), ("holds", 11, text("holds"))]
ATTACKS += under("published", [("published {}", 17, AUC), *JUDGED])
ATTACKS += under("adaptive", [("adaptive {}", 17, AUC), ("t", 9, picked), *JUDGED])
QUALITY = [*MODEL, ("images", 6, text("n_generated")), *FIDS]
MEMORIZATION = [
    MODEL[0],
    ("images", 6, text("n")),
    ("copies {}", 17, with_range("copies", lambda row: wilson(row["copies"], row["n"]))),
    ("of A", 5, mean("of_a")),
    ("of B", 5, mean("of_b")),
    ("of non-members", 14, mean("of_nonmembers")),
    ("nearer to members", 17, mean("nearer_to_members")),
    ("median d1/d2", 12, mean("median_ratio")),
    ("smallest", 8, lambda rows: f"{min(row['smallest_ratio'] for row in rows):.3f}"),
]


def membership(runs: list[EvaluatedRun], weights: str | None) -> Table:
    """The table of attacks; with Inception `weights`, it has FIDs too."""
    fids = under("published", FIDS) if weights else []  # one protocol's rows, or each run would count twice
    return Table([*MODEL, *fids, *ATTACKS], runs, weights)


def overview(rows: list[dict]) -> list[str]:
    """The adaptive AUCs as means over runs, a line for each attack and a column for each release."""
    aucs: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["protocol"] == "adaptive":
            aucs.setdefault(row["attack"], {}).setdefault(row["model"], []).append(row["auc"])
    means = {attack: {release: float(np.mean(its[release])) for release in its} for attack, its in aucs.items()}
    releases = list(dict.fromkeys(row["model"] for row in rows))
    widths = [13, *map(len, releases)]
    lines = heading(["adaptive AUC", *releases], widths)
    for attack, its in means.items():
        lines.append(line([attack, *(f"{its[name]:.3f}" if name in its else "–" for name in releases)], widths))
    strongest = [max(means, key=lambda attack: means[attack].get(name, 0)) for name in releases]
    return [*lines, line(["strongest", *strongest], widths)]


def print_models(roots: list[Path]) -> None:
    """Print a row for each finished model in these directories and those below, without snapshots."""
    paths = [path for root in roots for path in sorted(root.rglob("*.pt")) if path.stem in checkpoint.NAMES]
    rows, unreadable = [], []
    for path in [path for path in paths if not path.parent.name.startswith("epoch-")]:
        try:
            model = checkpoint.load(path)
        except BadInput as error:
            unreadable.append(str(error))
            continue
        its, size = model.settings, model.dataset["size"]
        row = path, model.dataset["name"], f"{size}x{size}", f"{len(model.trained_on):,}"
        row += f"{len(model.split.members):,}", f"{its['epochs']:,}", its["seed"], f"{model.parameters:,}"
        rows.append([*map(str, row), str(path.stat().st_size // 1000)])
    if not paths:
        raise BadInput(f"no trained model in {', '.join(map(str, roots))}: train one (python train.py --split A)")
    names = "model", "dataset", "images", "trained on", "members", "epochs", "seed", "parameters", "kB"
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    print(*heading(names, widths), *(line(row, widths) for row in rows), *unreadable, sep="\n")
