"""What evaluate.py reports besides attacks: copies and image quality; and how results are written."""

import functools
import json
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import torch

import fid
from lab import figures, tables
from lab.files import atomic_write
from lab.releases import GENERATING, EvaluatedRun
from metrics import is_copy, nearest


def memorization(runs: list[EvaluatedRun], args: Namespace, out: Path) -> None:
    """The table of how much each release's images are copies of its members, and of no others."""
    table, results, pairs = tables.Table(tables.MEMORIZATION, runs), [], {}
    for release in GENERATING:
        rows = []
        for run in [run for run in runs if release in run.releases]:
            members, nonmembers = (run.images[indices] for indices in run.indices(release))
            n = args.n or len(members)
            generated = run.generated(release, n)
            found, which = nearest(generated, members)
            control, _ = nearest(generated, nonmembers)
            copies, of_b = is_copy(found), torch.isin(run.indices(release)[0][which[:, 0]], run.first.split.b)
            shares = {
                "copies": copies,
                "of_a": copies & ~of_b,
                "of_b": copies & of_b,
                "of_nonmembers": is_copy(control),
                "nearer_to_members": found[:, 0] < control[:, 0],
            }
            row = {"model": release, "n": n} | {key: share.float().mean().item() for key, share in shares.items()}
            ratio = (found[:, 0] / found[:, 1]).nan_to_num(1)  # 0 / 0 where two members are the same image
            row |= {"smallest_ratio": ratio.min().item(), "median_ratio": ratio.median().item()}
            rows.append(row | provenance(run))
            closest = ratio.argsort()[:8]
            pairs.setdefault(release, (generated[closest], members[which[closest, 0]], ratio[closest]))
        if rows:
            results += rows
            table.add(rows)
    if not args.print_only:
        write(out, {"memorization.md": table.lines, "memorization.json": results})
        figures.pairs(out / "memorization.png", pairs)
        print(f"table and closest pairs are in {out}/")


def quality(runs: list[EvaluatedRun], inception: fid.InceptionV3, args: Namespace, out: Path) -> None:
    """The table of how far each release's images are from its members, and from images that no model saw."""
    table, results = tables.Table(tables.QUALITY, runs, inception.weights), []
    for run in runs:
        row = {"model": "real held-out", "held_out_loss": None, "n_generated": len(run.indices(run.releases[0])[1])}
        row |= {"fid_members": run.fid_of_real(inception), "fid_held_out": None, "fid_weights": inception.weights}
        results.append(row | provenance(run))
    table.add(results)
    for release in GENERATING:
        here = [run for run in runs if release in run.releases]
        rows = [{"model": release} | cost(run, release, inception, args) | provenance(run) for run in here]
        if rows:
            results += rows
            table.add(rows)
    if not args.print_only:
        write(out, {"fid.md": table.lines, "fid.json": results})
        print(f"table is in {out}/")


def cost(run: EvaluatedRun, release: str, inception: fid.InceptionV3 | None, args: Namespace) -> dict:
    """What the defence costs: the loss on held-out images and, given Inception, the FIDs of the release's images."""
    found = {"held_out_loss": run.held_out_loss(release)}
    if inception:
        n = args.n or len(run.indices(release)[0])
        to_members, to_held_out = run.fids(release, n, inception)
        found |= {"n_generated": n, "fid_members": to_members, "fid_held_out": to_held_out}
        found |= {"fid_weights": inception.weights}
    return found


def write(out: Path, contents: dict[str, list]) -> None:
    """Write lines as text and rows as JSON, each file whole or not at all."""
    for name, content in contents.items():
        text = json.dumps(content, indent=1) if name.endswith(".json") else "\n".join(content)
        with atomic_write(out / name) as path:
            path.write_text(text + "\n", encoding="utf-8")


def provenance(run: EvaluatedRun) -> dict:
    """The seed, the commit and the command of a result."""
    return {"seed": run.seed, "commit": commit(), "command": shlex.join(["python", "evaluate.py", *sys.argv[1:]])}


@functools.cache
def commit() -> str | None:
    """The commit of this code, "-dirty" after uncommitted edits; None where git does not tell."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
