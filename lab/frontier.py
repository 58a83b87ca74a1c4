"""The frontier: does a defence leak less than a plain model of the same quality, or of the same cost?

A run, such as runs/frontier-toy/seed-0/, has a directory for each training: FAMILY-STEPS, or FAMILY-STEPS-of-STEPS.
"""

import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import attacks
import data
import fid
import metrics
from lab import attackers, checkpoint, figures, reports, tables
from lab.checkpoint import Checkpoint, load_run
from lab.files import BadInput, keep, key_of, read_kept
from lab.releases import COMBINATIONS, RELEASES, EvaluatedRun, identity, require_own_students, require_reference

NAME = re.compile(r"[a-z]+-\d+(-(of-)?\d+)?")
CHEAP = "loss", "sima", "pia"  # compared with every reference model; the others with the first one alone
# how an attack's name begins, and what such an attacker uses; who holds weights can do all that the others can
WAYS = {"": ("images", "predictions"), "unmixed ": ("predictions",), "by weights: ": ("weights",)}
WAYS |= {"leaked, by weights: ": ("images", "predictions", "weights")}


@dataclass
class Judged:
    """A model of one run, or DualMD's two together: what it costs, and the scores that attackers have."""

    family: str  # a key of tables.FAMILY
    name: str
    compute: float  # in steps of an undefended training, with its teachers'
    held_out_loss: float
    quality: dict  # of generated images
    cut: list  # metrics.halves of its members and non-members
    rows: dict[str, Tensor]  # scores (1, R, 2 N) by attacker, members first; or `attackers.learned_by_each`


# --- statistics ---------------------------------------------------------------------------------------


def weighted_aucs(members: np.ndarray, nonmembers: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """`metrics.auc` (R, B) of scores (R, N) and (R, M) in B resamples: weights (B, N), (B, M) count who is drawn."""
    of_members, of_nonmembers = (each.astype(np.float32) for each in weights)
    aucs = np.empty((len(members), len(of_members)), np.float32)
    for row, (mine, others) in enumerate(zip(members[:, :, None], nonmembers[:, None], strict=True)):
        wins = (mine > others) + np.float32(0.5) * (mine == others)
        aucs[row] = ((of_members @ wins) * of_nonmembers).sum(1)
    return aucs / (of_members.sum(1) * of_nonmembers.sum(1))


def strongest(known: list[np.ndarray], others: list[np.ndarray]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """AUCs (S, B) of an attacker who picks a row and a sign on a half that they know, and is judged on the other half.

    `known` has the AUCs of all rows (S, R, B) on each half, `others` those on its other half. The pick is for all S
    trainings together. The result is the mean of both attackers; and what each of them picks in resample 0.
    """
    judged, picks = 0, []
    for mine, other in zip(known, others, strict=True):
        row = np.abs((mean := mine.mean(0)) - 0.5).argmax(0)
        at = row, np.arange(len(row))
        flipped = mean[at] < 0.5
        judged = judged + np.where(flipped, 1 - other[:, *at], other[:, *at]) / 2
        picks.append((int(row[0]), -1 if flipped[0] else 1))
    return judged, picks


def resamples(cut: list, seed: int, draws: int = metrics.RESAMPLES) -> list[list[np.ndarray]]:
    """How often each image of each half is in a resample: row 0 has each image once, the others are drawn."""

    def of(n: int) -> np.ndarray:
        return np.concatenate([np.ones((1, n)), random.multinomial(n, np.full(n, 1 / n), draws)])

    random = np.random.RandomState(seed)
    return [[of(len(rows)) for rows in half] for half in cut]


def at_equal(x: float, xs: Sequence[float], ys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y (B,) at x on the curve through points (xs, ys) (L,), (L, B); and the least and the most that it can be there.

    The curve ends at its smallest x: longer trainings are no better, and leak more. Between points y is linear in x,
    rather too much: so the least is the point before. Above all xs the least is -inf; below all, the most is inf.
    """
    best = int(np.argmin(xs))
    before = ys[max(best - 1, 0)]
    if x > xs[0]:
        return ys[0], np.full_like(ys[0], -np.inf), ys[0]
    if x < xs[best]:
        return ys[best], np.minimum(before, ys[best]), np.full_like(before, np.inf)
    left = next((i for i in range(best) if xs[i] >= x > xs[i + 1]), best)
    share = (xs[left] - x) / (xs[left] - xs[left + 1]) if left < best else 0
    y = (1 - share) * ys[left] + share * ys[min(left + 1, best)]
    return y, np.minimum(y, ys[left] if left < best else before), y


def mean_and_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean over seeds of values (S, 1 + B), and its 95 % interval by a hierarchical bootstrap.

    Column 0 has the values themselves, the others those of resampled images. Their mean is moved to these values: in a
    resample one picks worse. A resample of all draws seeds, and a column for each of them: the same for any model.
    """
    random, (seeds, draws) = np.random.RandomState(seed), values.shape
    which = random.randint(0, seeds, (draws - 1, seeds))
    with np.errstate(invalid="ignore"):  # of infinite ends
        moved = values[:, 1:] + np.nan_to_num(values[:, :1] - values[:, 1:].mean(1, keepdims=True))
        means = moved[which, random.randint(0, draws - 1, which.shape)].mean(1)
        return float(values[:, 0].mean()), *map(float, np.quantile(means, [0.025, 0.975]))


# --- one run ------------------------------------------------------------------------------------------


class Run:
    """One training of all models: their images, the scores under reference models, and what attackers get."""

    def __init__(self, path: Path, grid: dict[str, list[int]], inception: fid.InceptionV3 | None, args: Namespace):
        self.path, self.grid, self.inception, self.args = path, grid, inception, args
        self.models = {at: its for at in sorted(path.glob("*")) if NAME.fullmatch(at.name) and (its := load_run(at))}
        self.costs = {None: 0}  # steps, by the key of the weights that they made
        for folder, models in self.models.items():
            require_own_students(folder, models)
            self.costs[checkpoint.weights_key(*models.values())] = sum(one.settings["steps"] for one in models.values())
        self.every = [(folder, model) for folder, models in self.models.items() for model in models.values()]
        plain = [its["all"] for one, its in self.models.items() if one.match("undefended-*") and "all" in its]
        if not plain:
            raise BadInput(f"{path}/ has no undefended model of this study (python reproduce.py --study frontier)")
        self.first, self.seed, split = plain[0], plain[0].settings["seed"], plain[0].split
        self.images, self.members = checkpoint.load_images(self.first, args.data_dir), len(split.members)
        self.judged_on = torch.cat([split.members, split.nonmembers])
        for folder, model in self.every:  # the images of reference models differ
            same = torch.equal(self.judged_on, torch.cat([model.split.members, model.split.nonmembers]))
            if not same or model.difference(self.first, "name", "size", "seed", "members", "sha256"):
                raise BadInput(f"{path}/: not all of its models have the same members and non-members")
            if folder.match("reference-*"):
                require_reference(f"{folder}/", model, self.first)
            if model.settings["teachers"] not in self.costs:
                raise BadInput(f"{path}/ has a student whose teachers are not there: train it again (--restart)")
            if folder.match("halves-*") and not {"A", "B"} <= self.models[folder].keys():
                raise BadInput(f"{folder}/ has only one half: train the other one")
        used = {*torch.cat([split.nonmembers, *(model.trained_on for _, model in self.every)]).tolist()}
        unused = torch.tensor([i for i in range(len(self.images)) if i not in used], dtype=torch.int64)
        order = torch.randperm(len(unused), generator=torch.Generator().manual_seed(self.seed))
        # the last ones are the attacker's own non-members: quantile regression learns from them
        self.indices = torch.cat([self.judged_on, unused[order[: 2 * self.members]]])

    def _references(self) -> tuple[list[dict[str, Tensor]], int]:
        """The scores under each reference model; and how many of them, the first ones, are of the commonest kind."""
        its = {at: one for at, one in self.every if at.match("reference-*")}
        kinds = {at: (one.settings["targets"] != "noise", -one.settings["steps"]) for at, one in its.items()}
        count, scores = [*kinds.values()].count, []
        for folder in sorted(kinds, key=lambda one: (-count(kinds[one]), kinds[one], one.name)):
            run = EvaluatedRun(folder, self.args, self.images, {"all": self.first} | self.models[folder])
            scores.append(self._scores(run, its[folder].name, CHEAP if scores else attacks.HOLDS))
        return scores, max(map(count, kinds.values()), default=0)

    def _scores(self, run: EvaluatedRun, name: str, which: Iterable[str]) -> dict[str, Tensor]:
        """Scores (T, N) of an eps model by attack, members first; by CHEAP ones also of the attacker's own images."""
        wanted = {attack: ts for attack, ts in self.grid.items() if attack in which}
        cheap = {attack: wanted.pop(attack) for attack in CHEAP if attack in wanted}
        return run.scores_of(name, self.indices, cheap) | run.scores_of(name, self.judged_on, wanted)

    def judged(self) -> Iterator[Judged]:
        self.references, self.group = self._references()
        for folder, models in self.models.items():
            family, (name, *_) = folder.name.split("-")[0], models
            if family not in tables.FAMILY:
                continue
            run = EvaluatedRun(folder, self.args, self.images, models)
            if family == "halves":
                both = {"": ["dual"], "unmixed ": ["dual as A", "dual as B"], "leaked, by weights: ": ["A", "B"]}
                yield self._judge(run, "halves", both)
                family, name = "half", "A"
            yield self._judge(run, family, {"": [name], "by weights: ": [name]})

    def _judge(self, run: EvaluatedRun, family: str, asked: dict[str, list[str]]) -> Judged:
        """`asked` has the eps models that an attacker queries, for each of WAYS."""
        (name,), rows = asked[""], {}
        n = len(run.models["A"].trained_on) if family == "half" else self.members
        own = torch.arange(len(self.judged_on), len(self.indices))
        columns = torch.cat([torch.arange(n), self.members + torch.arange(n), own])
        images = self.images[self.indices[columns]]
        for way, names in asked.items():
            which = [attack for attack in self.grid if attacks.HOLDS[attack] in WAYS[way]]
            scores = [*(self._scores(run, one, which) for one in names), *self.references]
            scores = [{k: v[:, columns[columns < v.shape[1]]] for k, v in one.items() if k in which} for one in scores]
            arrays = (array.numpy() for one in scores for array in one.values())
            key = key_of(str((len(names), n, self.group, self.args.seed)), *arrays)
            kept = run.path / "scores" / f"{family}-{way[:3].strip()}.npz"
            found = {label: torch.from_numpy(its) for label, its in read_kept(kept, key).items()}
            if which and not found:  # some attackers learn for a while
                found = attacker_rows(scores[: len(names)], scores[len(names) :], self.group, images, n, self.args)
                keep(kept, key, **{label: its.numpy() for label, its in found.items()})
            rows |= {way + label: its for label, its in found.items()}
        halves, wanted = "AB" if name == "dual" else [name], {"loss": run.loss_ts}  # B alone would answer at these t
        loss = -np.mean([run.scores_of(one, self.indices, wanted)["loss"][:, self.members :] for one in halves])
        suffix, cut = run.path.name.partition("-")[2].replace("-of-", " of "), metrics.halves(n, n, self.args.seed)
        label, of = f"{tables.FAMILY[family]} {suffix.replace('-', ', epsilon ')}", [run.models[one] for one in halves]
        return Judged(family, label, self._cost(of), loss.item(), self._quality(run, name, n), cut, rows)

    def _quality(self, run: EvaluatedRun, name: str, n: int) -> dict:
        """Of --n generated images: are n members nearer to them, as a set, than n non-members; and their FID."""
        if not self.args.n:
            return {}
        images = run.generated(next(release for release, its in RELEASES.items() if its.models == (name,)), self.args.n)
        sides = (self.images[self.judged_on[start : start + n]] for start in (0, self.members))
        found = attackers.set_test(*map(data.to_float, (images, *sides)), seed=self.args.seed)
        found = {"n_generated": self.args.n} | dict(zip(("set_statistic", "set_p"), found, strict=True))
        if self.inception:
            real, where = self.images[self.indices[self.members :]], self.path / "fid" / "held-out.npz"
            batches = lambda done: real[done:].split(self.args.batch)  # noqa: E731
            held_out, _ = fid.judge(self.inception, where, key_of(real.numpy()), batches, len(real), "held-out")
            found["fid"] = fid.distance(*run.judged(name, images, self.inception)[0], *held_out)
        return found

    def _cost(self, models: list[Checkpoint]) -> float:
        """In steps of an undefended training. Asking a teacher takes a third of a step: forward, but not backward."""
        asks, settings = {"cross": 1 / 3, "average": 2 / 3, "single": 1 / 3}, [model.settings for model in models]
        return sum(its["steps"] * (1 + asks.get(its["targets"], 0)) + self.costs[its["teachers"]] for its in settings)


def combined(parts: list[Tensor]) -> Tensor:
    """Scores (T, N) under one eps model; or those under two, combined by both rules."""
    return parts[0] if len(parts) == 1 else torch.cat([attacks.combine_scores(parts, rule) for rule in COMBINATIONS])


def attacker_rows(
    models: list[dict], references: list[dict], group: int, images: Tensor, members: int, args: Namespace
) -> dict[str, Tensor]:
    """What attackers have who query these eps models: `Judged.rows`.

    `models` and `references` are scores (T, N) by attack, of `images` (N, 3, H, W): members, as many non-members, and
    for CHEAP attacks the attacker's own. The first `group` references are of one length.
    """
    rows, evidence, both, known = {}, [], 2 * members, data.to_float(images).to(args.device)
    cheap = [attack for attack in CHEAP if attack in models[0]]

    def learned(attack: str, features: Tensor) -> Tensor:
        return attackers.learned_by_each(attack, features[:, :members], features[:, members:], args.seed, args.device)

    def unexpected(model: dict[str, Tensor]) -> dict[str, Tensor]:
        its = torch.cat([model[attack] for attack in cheap])
        found = attackers.by_quantiles(known[both:], its[:, both:], known[:both], its[:, :both], seed=args.seed)
        return dict(zip(cheap, found.split([len(model[attack]) for attack in cheap]), strict=True))

    quantiles = [unexpected(model) for model in models] if cheap and len(images) > both else []
    for attack, ours in [(attack, [model[attack] for model in models]) for attack in models[0]]:
        theirs = [reference[attack][:, :both] for reference in references if attack in reference]
        if attack in attacks.FEATURES:
            rows[attack] = learned(attack, torch.cat(ours))
            rows |= {f"{attack}-ref": learned(attack, torch.cat([*ours, theirs[0]]))} if theirs else {}
            continue
        mine = [scores[:, :both] for scores in ours]
        evidence += map(attackers.evidence, [*mine, *theirs])
        kinds = {"": [combined(mine)], "-ref": [combined([attacks.calibrated(m, r) for m in mine]) for r in theirs]}
        if 1 < group <= len(theirs):
            kinds["-lira"] = [combined([attackers.lira(m, torch.stack(theirs[:group])) for m in mine])]
        if attack in cheap and quantiles:
            kinds["-quantile"] = [combined([one[attack] for one in quantiles])]
        for label, found in [(attack + kind, torch.cat(found)) for kind, found in kinds.items() if found]:
            sums = [attacks.combine_scores([*part], "sum") for part in found.split(len(mine[0]))]
            rows |= {label: torch.stack(sums)[None], label + tables.ONE_T: found[None]}
    return rows | ({"all scores": learned("all", torch.cat(evidence)[..., None])} if evidence else {})


# --- all runs -----------------------------------------------------------------------------------------


def report(paths: list[Path], grid: dict, inception: fid.InceptionV3 | None, args: Namespace, out: Path) -> None:
    """Judge the models of all runs, print tables, and write frontier.json, frontier.md and frontier.png."""
    runs = [Run(path, grid, inception, args) for path in paths]
    if len({run.seed for run in runs}) < len(runs):
        raise BadInput("--run: two of these have the same seed")
    have = [{f"{at.name}/{one.name}.pt of {one.settings['steps']} steps" for at, one in run.every} for run in runs]
    for run, its in zip(runs, have, strict=True):
        if odd := run.first.difference(runs[0].first, "name", "size", "members") or " ".join(sorted(its ^ have[0])[:1]):
            raise BadInput(f"--run: {paths[0]} and {run.path} differ: only one of them has {odd}")
    judged = [{one.name: one for one in run.judged()} for run in runs]
    rows = summarised(judged, args.seed)
    lines = tables.frontier(paths, rows)
    print(*lines, sep="\n")
    if not args.print_only:
        about = {"runs": [reports.provenance(run) for run in runs]}
        keys = [identity(run.first, model) for run in runs for _, model in run.every]
        mark = reports.mark_of(keys, str((grid, args.n, args.seed, inception and inception.sha256)))
        reports.write(out, mark, {"frontier.md": lines, "frontier.json": [row | about for row in rows]})
        figures.frontier(out / "frontier.png", rows, mark)
        print(f"tables and figure are in {out}/")


def summarised(judged: list[dict[str, Judged]], seed: int) -> list[dict]:
    """A row for each model, given those of each run by name: means over runs, and comparisons with the undefended."""
    rows, aucs, order = [], {}, [*tables.FAMILY]
    for first in sorted(judged[0].values(), key=lambda one: (order.index(one.family), one.compute)):
        several = [its[first.name] for its in judged]
        row = {"model": first.name, "family": first.family, "compute": first.compute}
        row["held_out_loss"] = [one.held_out_loss for one in several]
        row |= {key: [one.quality[key] for one in several] for key in first.quality}
        for access, (values, found) in attacked(several, seed).items():
            aucs[first.name, access] = values
            mean, low, high = mean_and_interval(values, seed)
            row[access] = {"auc": mean, "auc_95": [max(low, 0), min(high, 1)], "auc_of_runs": values[:, 0].tolist()}
            row[access] |= found
        rows.append(row)
    plain = [row for row in rows if row["family"] == "undefended"]
    for row, access in [(row, access) for row in rows if row not in plain for access in tables.ACCESS]:
        for x in [x for x in tables.EQUAL if x in row]:
            row[access][f"at_equal_{x}"] = compared(row, plain, x, access, aucs, seed)
    return rows


def attacked(several: list[Judged], seed: int) -> dict[str, tuple[np.ndarray, dict]]:
    """By access: the strongest attacker's AUC of each training in each resample, who that is on each half, and more."""
    names, cut = np.array([name for name, its in several[0].rows.items() for _ in its[0]]), several[0].cut
    versions = [torch.cat([its.expand(2, -1, -1) for its in one.rows.values()], 1).double().numpy() for one in several]
    sides, weights = [np.split(each, 2, 2) for each in versions], resamples(cut, seed)

    def aucs(k: int, half: int, rows: np.ndarray, weights: list) -> np.ndarray:
        its = [[side[k, rows][:, i] for side, i in zip(one, cut[half], strict=True)] for one in sides]
        return np.stack([weighted_aucs(*pair, weights[half]) for pair in its])

    ways, once, found = ((0, 0), (1, 1), (0, 1), (1, 0)), [[each[:1] for each in half] for half in weights], {}
    plain = np.stack([aucs(*way, np.arange(len(names)), once) for way in ways])
    rows = {name: names == name for name in dict.fromkeys(names.tolist())}
    each = {k: strongest(plain[:2, :, its], plain[2:, :, its])[0][:, 0].tolist() for k, its in rows.items()}
    summed = np.flatnonzero([tables.ONE_T not in name for name in names])
    drawn = np.stack([aucs(*way, summed, weights) for way in ways])
    for access in tables.ACCESS:
        may = np.array([access == "weights" or "by weights" not in names[row] for row in summed])
        (auc, picks), may, tprs = strongest(drawn[:2, :, may], drawn[2:, :, may]), summed[may], []
        for one in sides:
            pooled = []
            for k, (row, sign) in enumerate(picks):
                its = [side[k, may[row], i] for side, i in zip(one, cut[1 - k], strict=True)]
                ranks = np.unique(sign * np.concatenate(its), return_inverse=True)[1]  # two attackers, two scales
                pooled.append(np.split(ranks, [len(its[0])]))
            tprs.append(metrics.roc(*map(np.concatenate, zip(*pooled, strict=True))).tpr_at_1)
        found[access] = auc, {"attacker": [str(names[may[row]]) for row, _ in picks], "tpr_at_1": tprs}
    found["weights"][1]["auc_by_attacker"] = each
    return found


def compared(row: dict, plain: list[dict], x: str, access: str, aucs: dict, seed: int) -> dict:
    """This model's AUC minus that of the undefended curve where x, its loss, FID or compute, is the same."""
    differences = []
    for run, auc in enumerate(aucs[row["model"], access]):
        mine, *theirs = (-np.log(one[x]) if x == "compute" else one[x][run] for one in (row, *plain))
        curve = at_equal(mine, theirs, np.stack([aucs[one["model"], access][run] for one in plain]))
        differences.append([auc - each for each in curve])
    difference, least, most = np.stack(differences, 1)
    mean, *interval = mean_and_interval(difference, seed)
    bounds = [name for name, its in (("at least", least), ("at most", most)) if np.isinf(its[:, 0]).any()]
    more, less = mean_and_interval(most, seed)[1] > 0.005, mean_and_interval(least, seed)[2] < -0.005
    decided = "leaks more" if more else "leaks less" if less else "undecided"
    return {"difference": mean, "difference_95": interval, "bounds": bounds, "verdict": decided}
