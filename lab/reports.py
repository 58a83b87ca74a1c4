"""What evaluate.py reports besides attacks: copies and image quality; and how results are written."""

import json
import re
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import torch

import fid
from lab import figures, tables
from lab.files import FORMULA, BadInput, atomic_write, key_of
from lab.releases import GENERATING, RELEASES, EvaluatedRun, generates_as
from metrics import is_copy, nearest


def memorization(runs: list[EvaluatedRun], args: Namespace, out: Path) -> None:
    """The table of how many generated images are copies of members and, for comparison, of non-members."""
    table, results, pairs = tables.Table(tables.MEMORIZATION, runs), [], {}
    for release in GENERATING:
        rows = []
        for run in [run for run in runs if release in run.releases]:
            # an image's copy is not its second nearest
            members, nonmembers = (torch.tensor([*run.distinct(side).values()]) for side in run.indices(release))
            if min(len(members), len(nonmembers)) < 2:
                raise BadInput(f"{run.path}/: all members, or all non-members, are one image; copies need two images")
            n = args.n or len(run.indices(release)[0])
            generated = run.generated(release, n)
            found, which = nearest(generated, run.images[members])
            control, _ = nearest(generated, run.images[nonmembers])
            copies, of_b = is_copy(found), torch.isin(members[which[:, 0]], run.first.split.b)
            shares = {"copies": copies, "of_a": copies & ~of_b, "of_b": copies & of_b}
            shares |= {"of_nonmembers": is_copy(control), "nearer_to_members": found[:, 0] < control[:, 0]}
            row = {"model": release, "n": n} | {key: share.float().mean().item() for key, share in shares.items()}
            ratio = found[:, 0] / found[:, 1]
            row |= {"smallest_ratio": ratio.min().item(), "median_ratio": ratio.median().item()}
            rows.append(row | provenance(run))
            closest = ratio.argsort()[:8]
            training = run.images[members[which[closest, 0]]]
            pairs.setdefault(release, (generated[closest], training, ratio[closest]))
        results += table.add(rows)
    if not args.print_only:
        its = mark(runs, args)
        write(out, its, {"memorization.md": table.lines, "memorization.json": results})
        figures.pairs(out / "memorization.png", pairs, its)
        print(f"table and closest pairs are in {out}/")


def quality(runs: list[EvaluatedRun], inception: fid.InceptionV3, args: Namespace, out: Path) -> None:
    """The table of how far each release's images are from its members, and from images that no model saw."""
    table, rows = tables.Table(tables.QUALITY, runs, inception.weights), []
    for run in runs:  # a perfect model would have the FID of the held-out images with as many images
        row = {"model": "real held-out", "held_out_loss": None, "n_generated": len(run.indices(run.releases[0])[1])}
        row |= quality_of(run, run.releases[0], None, inception) | {"fid_held_out": None}
        rows.append(row | provenance(run))
    results = table.add(rows)
    for release in GENERATING:
        here = [run for run in runs if release in run.releases]
        rows = [{"model": release} | cost(run, release, inception, args) | provenance(run) for run in here]
        results += table.add(rows)
    if not args.print_only:
        write(out, mark(runs, args, inception), {"fid.md": table.lines, "fid.json": results})
        print(f"table is in {out}/")


def cost(run: EvaluatedRun, release: str, inception: fid.InceptionV3 | None, args: Namespace) -> dict:
    """What the defence costs: the loss on held-out images and, given Inception, the FIDs of the release's images."""
    found = {"held_out_loss": run.held_out_loss(release)}
    if inception:
        n = args.n or len(run.indices(release)[0])
        found |= {"n_generated": n} | quality_of(run, generates_as(release), n, inception)
    return found


def quality_of(run: EvaluatedRun, release: str, n: int | None, inception: fid.InceptionV3) -> dict:
    """The Inception Score of n generated images, or of held-out ones, and their FIDs to both sides."""
    sides = zip(("members", "held-out"), run.indices(release), strict=True)
    members, held_out = (run.judged(what, run.images[indices], inception) for what, indices in sides)
    (seen, score) = run.judged(RELEASES[release].models[0], run.generated(release, n), inception) if n else held_out
    found = {"fid_members": fid.distance(*seen, *members[0]), "fid_held_out": fid.distance(*seen, *held_out[0])}
    mean, spread = score or (None, None)
    return found | {"inception_score": mean, "inception_score_std": spread, "fid_weights": inception.weights}


def mark(runs: list[EvaluatedRun], args: Namespace, inception: fid.InceptionV3 | None = None) -> str:
    """What a result was computed from, as two keys: of models, images and formulas; of arguments and other weights."""
    judged = [run.identity(name) for run in runs for name in run.models if name != "reference"]
    other = [run.identity("reference") for run in runs if "reference" in run.models]
    asked = [args.attack, args.t, args.grid, args.n, args.seed, args.fid, inception and inception.sha256]
    return mark_of(judged, str(asked), *other)


def mark_of(judged: list[str], *asked: str) -> str:
    return f"dualmd result {key_of(FORMULA, *judged)[:16]} {key_of(*asked)[:16]}"


def write(out: Path, its_mark: str, contents: dict[str, list]) -> None:
    """Write lines as text and rows as JSON, with their mark. Remove results of other models, and those without rows."""
    remove_results(out, its_mark)
    for name, content in contents.items():
        if not content:
            (out / name).unlink(missing_ok=True)
            continue
        text = "\n".join([*content, "", f"<!-- {its_mark} -->"]) if name.endswith(".md") else ""
        text = text or json.dumps([row | {"mark": its_mark} for row in content], indent=1)
        with atomic_write(out / name) as path:
            path.write_text(text + "\n", encoding="utf-8", errors="replace")


def remove_results(out: Path, its_mark: str = "") -> None:
    """Remove the results in `out` that were computed from other models than those of this mark."""
    for path in [path for form in ("*.md", "*.json", "*.png") for path in out.glob(form)]:
        found = re.search(rb"dualmd result \w{16}", path.read_bytes())
        if found and not its_mark.startswith(found[0].decode()):
            path.unlink()


def provenance(run: EvaluatedRun) -> dict:
    """The run, the seed and the command of a result."""
    command = shlex.join(["python", "evaluate.py", *sys.argv[1:]])
    return {"run": str(run.path), "seed": run.seed, "command": command}
