"""The figures of a study, as PNG files, in colours that colour-blind readers can tell apart and that print in grey."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from lab import tables
from lab.files import atomic_write
from metrics import ROC

matplotlib.use("agg")  # files only: it needs no display
from matplotlib import pyplot as plt  # noqa: E402

# the colours of Okabe and Ito
COLOURS = "#000000 #56B4E9 #009E73 #F0E442 #999999 #CC79A7 #0072B2 #D55E00 #E69F00 #117733 #882255".split()
STYLES = {
    "undefended": ("#000000", "-"),
    "A alone": ("#56B4E9", "-"),
    "B alone": ("#009E73", "-"),
    "DualMD pipeline": ("#0072B2", "--"),
    "DualMD unmixed": ("#009E73", (0, (3, 1, 1, 1))),
    "DualMD leaked": ("#CC79A7", "-."),
    "DistillMD": ("#D55E00", ":"),
    "averaged targets": ("#E69F00", (0, (5, 1, 1, 1, 1, 1))),
    "ordinary distillation": ("#56B4E9", (0, (1, 3))),
}


def roc_curves(path: Path, curves: dict[tuple[str, str], Sequence[ROC]], mark: str = "") -> None:
    """ROC curves by (attack, release), one for each run: above on linear axes, below on logarithmic ones.

    Three attacks are shown at most: the paper's two if they are there, and those with the highest AUC on any release.
    """
    best = {}
    for (attack, _), several in curves.items():
        best[attack] = max(best.get(attack, 0), np.mean([curve.auc for curve in several]))
    attacks = sorted(best, key=lambda attack: (attack in ("secmi", "pia"), best[attack]), reverse=True)[:3]
    figure, axes = plt.subplots(2, len(attacks), figsize=(3.2 * len(attacks) + 0.6, 6.6), squeeze=False)
    floor = 0.5 / max(curve.nonmembers for several in curves.values() for curve in several)
    for column, attack in enumerate(attacks):
        for ax, scale in zip(axes[:, column], ("linear", "log"), strict=True):
            diagonal = np.geomspace(floor, 1, 50)
            ax.plot(diagonal, diagonal, color="#999999", linewidth=0.8)
            for (its_attack, release), several in curves.items():
                for k, curve in enumerate(several if its_attack == attack else []):
                    colour, dashes = STYLES[release]
                    x, y = (np.maximum(rates, floor) if scale == "log" else rates for rates in (curve.fpr, curve.tpr))
                    label = None if k else release
                    ax.plot(x, y, color=colour, linestyle=dashes, linewidth=1.3, drawstyle="steps-post", label=label)
            low = floor if scale == "log" else 0
            ax.set(xscale=scale, yscale=scale, xlim=(low, 1), ylim=(low, 1.02), aspect="equal", xlabel="FPR")
        axes[0, column].set_title(attack)
    for ax in axes[:, 0]:
        ax.set_ylabel("TPR")
    save(figure, path, mark)


def over(path: Path, x: str, rows: Sequence[dict], mark: str = "") -> None:
    """AUC with the published sign over `x`, "steps" or "t", from rows of x.json: mean and range of runs, by attack."""
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    if len({row[x] for row in rows}) < 2:
        path.unlink(missing_ok=True)
        return  # that is no curve
    tall = 2 if len(attacks) > 3 else 1
    wide = -(-len(attacks) // tall)
    figure, axes = plt.subplots(tall, wide, figsize=(4 * wide, 3.2 * tall + 0.4), squeeze=False, sharey=True)
    for ax in axes.flat[len(attacks) :]:
        ax.set_axis_off()
    for ax, attack in zip(axes.flat, attacks, strict=False):
        ax.axhline(0.5, color="#999999", linewidth=0.8)
        for release, (colour, dashes) in STYLES.items():
            aucs: dict[int, list[float]] = {}
            for row in rows:
                if row["attack"] == attack and row["model"] == release:
                    aucs.setdefault(row[x], []).append(row["auc"])
            if aucs:
                at = sorted(aucs)
                low, mean, high = ([f(aucs[one]) for one in at] for f in (min, np.mean, max))
                ax.plot(at, mean, color=colour, linestyle=dashes, marker="o", markersize=3, label=release)
                ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.axhspan(0, 0.5, color="#999999", alpha=0.15, linewidth=0)
        ax.set(xlabel=x, title=attack, ylim=(0, 1.02))
    for ax in axes[:, 0]:
        ax.set_ylabel("AUC, published sign")
    save(figure, path, mark)


def frontier(path: Path, rows: Sequence[dict], mark: str = "") -> None:
    """The strongest attacker's AUC by predictions, with its interval, and TPR at 1 % FPR, over each held-out loss."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5))
    for k, (family, label) in enumerate(tables.FAMILY.items()):
        if not (its := [row for row in rows if row["family"] == family]):
            continue
        x, found = [np.mean(row["held_out_loss"]) for row in its], [row["predictions"] for row in its]
        style = {"color": COLOURS[k], "marker": "os^Dv<>pP*X"[k], "linewidth": 1.2 if k == 0 else 0, "label": label}
        auc, (low, high) = np.array([one["auc"] for one in found]), np.transpose([one["auc_95"] for one in found])
        axes[0].errorbar(x, auc, np.abs([auc - low, high - auc]), elinewidth=0.7, **style)
        axes[1].plot(x, [np.nan if None in one["tpr_at_1"] else np.mean(one["tpr_at_1"]) for one in found], **style)
        for n, i in enumerate(np.argsort(x)):  # more names would overlap; that of the leftmost is on its left
            name = f"   {its[i]['model'].removeprefix(label)}   " if auc[i] < 0.99 and len(its) > 2 else ""
            axes[0].text(x[i], auc[i], name, va="bottom", ha="left" if n else "right", fontsize=6, color=style["color"])
    for ax, name in zip(axes, ("AUC", "TPR at 1 % FPR"), strict=True):
        ax.set(xlabel="held-out loss", ylabel=f"{name} of the strongest attacker, by predictions")
    save(figure, path, mark)


def pairs(path: Path, closest: dict[str, tuple[Tensor, Tensor, Tensor]], mark: str = "") -> None:
    """By release: generated images, uint8 (K, 3, H, W), each below its nearest training image, and d1 / d2."""
    most = max(len(generated) for generated, *_ in closest.values())
    size = (1.1 * most + 1.6, 2.6 * len(closest))
    figure, axes = plt.subplots(2 * len(closest), most, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for row, (release, (generated, training, ratio)) in enumerate(closest.items()):
        axes[2 * row, 0].set_ylabel("nearest\ntraining image", fontsize=7)
        axes[2 * row + 1, 0].set_ylabel(release, fontsize=8)
        for column in range(len(generated)):
            axes[2 * row, column].set_title(f"{ratio[column]:.2f}", fontsize=8)
            for ax, image in ((axes[2 * row, column], training), (axes[2 * row + 1, column], generated)):
                ax.imshow(image[column].permute(1, 2, 0).numpy(), interpolation="nearest")
    save(figure, path, mark)


def samples(path: Path, grids: dict[str, tuple[Path, str]], mark: str = "") -> None:
    """The sample grids that exist (sample.py writes them), side by side; those of other models than this key's not."""
    grids = {k: png for k, (png, key) in grids.items() if png.exists() and key.encode() in png.read_bytes()}
    if not grids:
        path.unlink(missing_ok=True)
        return
    figure, axes = plt.subplots(1, len(grids), figsize=(3.2 * len(grids), 3.6), squeeze=False)
    for ax, (release, grid) in zip(axes[0], grids.items(), strict=True):
        ax.imshow(Image.open(grid), interpolation="nearest")
        ax.set_title(release, fontsize=10)
        ax.set_axis_off()
    save(figure, path, mark)


def save(figure, path: Path, mark: str = "") -> None:
    named = [pair for ax in figure.axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    if named:  # not every panel has all of them
        names = {label: handle for handle, label in named}
        columns = int(figure.get_size_inches()[0] / 1.7)  # as many names as fit into the width
        figure.legend(names.values(), names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.set_layout_engine("constrained")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Description": mark})
    plt.close(figure)
