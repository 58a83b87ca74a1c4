"""Faults by their kinds: what is known at the start is checked there, nothing is lost or stale, odd files and shells.

Each test has cases of one kind, more than the ones that were once seen.
"""

import argparse
import collections
import contextlib
import dataclasses
import errno
import io
import json
import os
import pickle
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, few_steps, largest_file, same, tree
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_evaluate import CONFIG, MEMBERS, evaluate_args, make_run, published

import attacks
import data
import dualmd
import evaluate
import fid
import metrics
import reproduce
import sample
import train
from lab import checkpoint, cli, datasets, distributed, figures, files, releases, reports, training
from lab.files import BadInput, kept_rows
from lab.published import load_published
from lab.releases import EvaluatedRun
from tools import forked
from unet import SinusoidalEmbedding, UNet, UNetConfig


def call(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words), "--device", "cpu"])
    module.main()


def never(what):
    return lambda *args, **rest: pytest.fail(f"{what} before the command was refused")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """24 small images in imgs/, a file, and the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imgs").mkdir()
    for i in range(24):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (16, 16, 3)).astype(np.uint8)).save(f"imgs/{i}.png")
    (tmp_path / "file").touch()
    np.savez("far.npz", mia_train_idxs=np.arange(30_000), mia_eval_idxs=np.arange(30_000, 60_000))
    return tmp_path


DRAWN = figures.save

# --- 1. what can be known at the start ---


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--dataset folder --data-dir imgs --members 12", "--split reference: all 12 .* no image is left to train on"),
        ("--dataset folder --data-dir imgs --members 14", "--members 14: must be even, and from 2 to 12 "),
        ("--dataset folder --data-dir gone", "gone is no folder that can be read"),
        ("--size 18", "--size 18: .* a multiple of 4"),
        ("--preset cifar10 --size 36", "--size 36: .* a multiple of 8"),
        ("--dataset cifar10 --members 30000", "--members 30000: .* from 2 to 25000 with these 50,000 images"),
        ("--dataset cifar10 --member-split far.npz", "--member-split far.npz: .* its indices are 0 to 59,999"),
        ("--run file/below", "cannot write into file/below/seed-0: Not a directory"),
        ("--run file", "cannot write into file/seed-0: Not a directory"),
    ],
)
def test_a_study_is_refused_before_its_first_command(folder, monkeypatch, flags, says):
    monkeypatch.setattr(reproduce, "run_all", never("a command was started"))
    monkeypatch.setattr(datasets, "download", never("something was downloaded"))
    monkeypatch.setattr(fid, "load", never("Inception was loaded"))
    monkeypatch.setattr(data, "load", never("images were read"))
    before = tree(folder)
    with pytest.raises(BadInput, match=says):
        call(monkeypatch, reproduce, "--steps", 2, *flags.split())
    assert tree(folder) == before


@pytest.mark.parametrize(
    "command, says",
    [
        ("train.py --split A --member-split gone.npz", "--member-split: gone.npz: No such file"),
        ("train.py --split A --member-split imgs", "--member-split: imgs: Is a directory"),
        ("train.py --split A --member-split far.npz", "its indices are 0 to 59,999"),
        ("train.py --split A --members 25002", "from 2 to 25000"),
        ("train.py --split reference --members 25000", "no image is left to train on"),
        ("train.py --split A --size 18", "a multiple of 4"),
        ("train.py --split A --export x.pt", "GroupNorm"),
        ("train.py --split A --preset cifar10 --export file/x.pt", "cannot write file/x.pt: Not a directory"),
        ("train.py --split A --preset cifar10 --export imgs", "cannot write imgs: it is a directory"),
        ("train.py --split A --run file", "cannot write into file: it is no directory"),
        ("train.py --split A --steps 2147483648", "--steps: 2147483648 is not a whole number"),
        ("evaluate.py --checkpoint gone.pt", "--checkpoint: gone.pt: No such file"),
        ("evaluate.py --checkpoint step800000.pt --size 2000", "--size 2000: must be at most 1024"),
        ("evaluate.py --checkpoint step800000.pt --member-split gone.npz", "--member-split: gone.npz: No such"),
        ("evaluate.py --checkpoint step800000.pt --member-split far.npz", "its indices are 0 to 59,999"),
        ("evaluate.py --checkpoint step800000.pt --attack pia --t 1001", "pia: t = 1001"),
        ("evaluate.py --checkpoint step800000.pt --attack pia secmi --grid 55", "secmi: t = 55"),
        ("evaluate.py --checkpoint step800000.pt --attack pia --out file", "cannot write into file: it is no dir"),
        ("evaluate.py --fid --inception-weights gone.pth", "--inception-weights: gone.pth: No such file"),
        ("evaluate.py --attack pia --reference gone.pt", "--reference: gone.pt: No such file"),
        ("sample.py --out file/x.png", "cannot write file/x.png: Not a directory"),
        ("sample.py --out imgs", "cannot write imgs: it is a directory"),
    ],
)
def test_nothing_is_read_or_downloaded_before_a_refusal(folder, monkeypatch, capsys, command, says):
    published(folder, data.toy(8, 0, n=40))
    monkeypatch.setattr(datasets, "download", never("something was downloaded"))
    monkeypatch.setattr(data, "load", never("images were read"))
    script, *words = command.split()
    before = tree(folder)
    monkeypatch.setattr(sys, "argv", [script, *words, "--device", "cpu"])
    with pytest.raises((BadInput, SystemExit)) as refusal:
        {"train.py": train, "evaluate.py": evaluate, "sample.py": sample}[script].main()
    assert says in f"{refusal.value} {capsys.readouterr().err}" and tree(folder) == before


def test_a_model_of_other_settings_is_noticed_before_the_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TOY_IMAGES", 40)
    words = ["--dataset", "toy", "--size", 8, "--steps", 1, "--run", tmp_path]
    call(monkeypatch, train, "--split", "A", "--members", 8, *words)
    monkeypatch.setattr(data, "load", never("images were read"))
    with pytest.raises(BadInput, match=r"A and B differ .members = 8, not 10"):
        call(monkeypatch, train, "--split", "B", "--members", 10, *words)
    with pytest.raises(BadInput, match="A.pt was trained with steps = 1, not 2"):
        call(monkeypatch, train, "--split", "A", "--members", 8, *words, "--steps", 2)


@pytest.fixture
def small(monkeypatch):
    """40 images of 8x8, few resamples, and images that take 4 steps."""
    images = data.toy(8, 0, n=40)
    monkeypatch.setattr(data, "load", lambda name, data_dir, size, seed: images)
    monkeypatch.setattr(data, "count", lambda name, data_dir: len(images))
    monkeypatch.setattr(metrics, "RESAMPLES", 5)

    def save(figure, path, mark=""):  # drawing takes long
        said = PngInfo()
        said.add_text("Description", mark)
        Image.new("RGB", (1, 1)).save(path, pnginfo=said)

    monkeypatch.setattr(figures, "save", save)
    few_steps(monkeypatch)
    return images


def judge(monkeypatch, *words):
    call(monkeypatch, evaluate, "--dataset", "toy", "--attack", "pia", "--grid", 50, *words)


def test_what_would_end_an_evaluation_late_is_refused_before_the_first_score(tmp_path, small, monkeypatch):
    make_run(tmp_path / "run", small, ["all", "A"])
    for name in ("all", "A"):
        make_run(tmp_path / "run" / "step-000001", small, [name], steps=1)
    (tmp_path / "run" / "step-000001" / "A.pt").write_bytes(b"damaged")
    make_run(tmp_path / "two", small, ["A"], members=2)
    monkeypatch.setattr(releases, "attack_scores", never("an image was scored"))
    monkeypatch.setattr(dualmd, "denoise", never("an image was generated"))
    for words, says in (
        (["--run", tmp_path / "run"], "step-000001/A.pt is not a checkpoint"),
        (["--run", tmp_path / "two"], "two/: an attack, or a search for copies, takes two members at least"),
    ):
        with pytest.raises(BadInput, match=says):
            judge(monkeypatch, *words)
    with pytest.raises(BadInput, match="takes two members at least"):
        call(monkeypatch, evaluate, "--dataset", "toy", "--memorization", "--run", tmp_path / "two")
    (tmp_path / "no-inception.pth").write_bytes(b"text")
    monkeypatch.setattr(data, "load", never("images were read"))
    with pytest.raises(BadInput, match="no-inception.pth is not a file of Inception-v3's weights"):
        make_run(tmp_path / "good", small, ["all"])
        weights = tmp_path / "no-inception.pth"
        judge(monkeypatch, "--run", tmp_path / "good", "--fid", "--inception-weights", weights)


# --- 2. nothing is stale ---


def test_results_of_other_models_are_recomputed_or_removed(tmp_path, small, monkeypatch):
    monkeypatch.setattr(figures, "save", DRAWN)
    make_run(tmp_path, small, ["all", "A", "B"])
    call(monkeypatch, evaluate, "--dataset", "toy", "--memorization", "--n", 4, "--run", tmp_path)
    judge(monkeypatch, "--run", tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    marks = {json.loads(first[name])[0]["mark"][:31] for name in ("memorization.json", "results.json", "t.json")}
    assert len(marks) == 1 and next(iter(marks)).startswith("dualmd result ")
    for name in ("memorization.md", "memorization.png", "table.md", "roc.png"):
        assert next(iter(marks)).encode() in first[name], f"{name} does not say what it was computed from"
    call(monkeypatch, evaluate, "--dataset", "toy", "--memorization", "--n", 6, "--run", tmp_path)
    assert "| 6      |" in (tmp_path / "memorization.md").read_text(), "another --n"
    assert (tmp_path / "table.md").exists(), "of the same models"
    another = checkpoint.load(tmp_path / "all.pt")
    another.weights["head.bias"] += 1
    checkpoint.save(tmp_path, another)
    (tmp_path / "notes.md").write_text("mine")
    judge(monkeypatch, "--run", tmp_path)
    assert not list(tmp_path.glob("memorization.*")) and (tmp_path / "notes.md").exists()
    assert (tmp_path / "table.md").read_bytes() != first["table.md"]


def test_curves_without_points_leave_no_old_figure(tmp_path, small, monkeypatch):
    make_run(tmp_path, small, ["all"])
    make_run(tmp_path / "step-000001", small, ["all"], steps=1)
    judge(monkeypatch, "--run", tmp_path)
    assert (tmp_path / "steps.png").exists() and (tmp_path / "t.png").exists()
    (tmp_path / "step-000001" / "all.pt").unlink()
    judge(monkeypatch, "--run", tmp_path, "--t", 50)
    assert not (tmp_path / "steps.png").exists() and not (tmp_path / "t.png").exists()


def test_snapshots_count_only_with_their_model(tmp_path, small, monkeypatch):
    make_run(tmp_path, small, ["all", "B"])
    make_run(tmp_path / "step-000001", small, ["all", "A"], steps=1)  # A is gone
    make_run(tmp_path / "step-000002", small, ["reference", "A"], steps=2)  # all that is left is not attacked
    other = make_run(tmp_path / "aside", small, ["B"], steps=1)
    assert len(other.a)
    model = dataclasses.replace(checkpoint.load(tmp_path / "aside" / "B.pt"))
    model.settings["lr"] *= 2  # of another training
    checkpoint.save(tmp_path / "step-000001", model)
    judge(monkeypatch, "--run", tmp_path)
    rows = json.loads((tmp_path / "steps.json").read_text())
    assert {(row["model"], row["steps"]) for row in rows} == {("undefended", 1), ("undefended", 3), ("B alone", 3)}


def test_a_new_training_removes_the_snapshots_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TOY_IMAGES", 40)
    words = ["--split", "A", "--dataset", "toy", "--size", 8, "--members", 8, "--run", tmp_path]
    call(monkeypatch, train, *words, "--steps", 4, "--snapshots", 2)
    assert "step-000002/A.pt" in tree(tmp_path)
    (tmp_path / "A.pt").unlink()
    call(monkeypatch, train, *words, "--steps", 3)
    assert not list(tmp_path.glob("step-*/*")), "they would stand as this one's"


def test_a_student_of_other_teachers_is_not_taken_for_theirs(tmp_path, monkeypatch):
    """A is trained anew, and otherwise: neither a study nor an evaluation goes on with the student that is there."""
    monkeypatch.setattr(data, "TOY_IMAGES", 40)
    size = ["--members", 8, "--steps", 2, "--size", 8]
    run, where = tmp_path / "seed-0", ["--dataset", "toy", "--run", tmp_path / "seed-0"]
    for split in "AB":
        call(monkeypatch, train, "--split", split, *size, *where)
    call(monkeypatch, train, "--distill", *where)
    another = checkpoint.load(run / "A.pt")
    another.weights["head.bias"] += 1
    checkpoint.save(run, another)
    with pytest.raises(BadInput, match="distill-cross.pt was taught by others .* --distill cross --restart"):
        judge(monkeypatch, "--run", run)
    monkeypatch.setattr(reproduce, "run_all", never("a command was started"))
    with pytest.raises(BadInput, match="distill-cross.pt was trained with teachers = "):
        call(monkeypatch, reproduce, *size, "--run", tmp_path)
    call(monkeypatch, train, "--distill", "--restart", *where)
    monkeypatch.setattr(metrics, "RESAMPLES", 5)
    judge(monkeypatch, "--run", run)


def test_models_in_one_table_are_told_apart(tmp_path, small, monkeypatch, capsys):
    for seed, names, steps in ((0, ["all", "distill-cross"], 3), (1, ["all"], 5)):
        make_run(tmp_path / f"seed-{seed}", small, names, seed=seed, steps=steps)
    judge(monkeypatch, "--run", tmp_path / "seed-0", tmp_path / "seed-1")
    table = (tmp_path / "table.md").read_text()
    assert f"steps: {tmp_path}/seed-0/all 3, {tmp_path}/seed-0/distill-cross 3, {tmp_path}/seed-1/all 5" in table
    assert f"DistillMD: only of {tmp_path}/seed-0" in table and "| DistillMD " in table
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {(row["model"], row["run"][-6:]) for row in rows} == {
        ("undefended", "seed-0"), ("undefended", "seed-1"), ("DistillMD", "seed-0"),
    }  # fmt: skip
    make_run(tmp_path / "copy", small, ["all"])
    with pytest.raises(BadInput, match="two of these hold the same model"):
        judge(monkeypatch, "--run", tmp_path / "seed-0", tmp_path / "copy")
    with pytest.raises(BadInput, match="two of these hold the same model"):
        judge(monkeypatch, "--run", tmp_path / "copy", tmp_path / "copy")


def test_two_published_models_of_one_name_and_a_run_of_that_name(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path, small)
    content = torch.load("step800000.pt", weights_only=True)
    make_run(tmp_path / "runs" / "toy", small, ["all"])
    before = tree(tmp_path / "runs" / "toy")
    for i in (0, 1):
        os.mkdir(f"m{i}")
        content["ema_model"]["head.bias"] += i
        torch.save(content, f"m{i}/toy.pt")
        judge(monkeypatch, "--checkpoint", f"m{i}/toy.pt", "--member-split", "step800000-split.npz", "--size", 8)
    assert tree(tmp_path / "runs" / "toy") == before and len(os.listdir("runs")) == 3
    judge(monkeypatch, "--checkpoint", "m0/toy.pt", "--member-split", "step800000-split.npz", "--size", 8)
    assert len(os.listdir("runs")) == 3, "the same model under any path has one directory"


def test_what_formulas_give_is_pinned_to_their_version():
    """Whoever changes these numbers raises files.FORMULA: kept scores and images of older formulas must not count."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(ch=8, mult=(1,), attn=(), blocks=1, dropout=0, groups=2)).eval()
    torch.nn.init.normal_(model.tail[-1].weight, std=0.1)
    x0, schedule, found = data.to_float(data.toy(8, 0, n=2)), dualmd.NoiseSchedule(), {}
    for attack in ("loss", "sima", "pia", "pian", "secmi", "rediffuse"):
        attacker = releases.attacker_at(attack, 100, torch.Generator().manual_seed(0))
        found[attack] = attacker(model, schedule, x0).tolist()
    image = dualmd.denoise(model, schedule, torch.ones(1, 3, 8, 8), stride=100)
    found["image"] = [image.mean().item(), image.std().item()]
    assert files.FORMULA == "1"
    for name, values in PINNED.items():
        assert found[name] == pytest.approx(values, rel=0.02 if name == "secmi" else 1e-3), name


PINNED = {
    "loss": [-1.037, -1.1467],
    "sima": [-2.4339, -2.7368],
    "pia": [-0.29482, -1.1049],
    "pian": [-107.7, -88.89],
    "secmi": [-4.177e-05, -5.7564e-05],
    "rediffuse": [-5.2993, -6.4237],
    "image": [0.020552, 0.65525],
}


# --- 3. interruptions ---


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, BrokenPipeError, MemoryError])
def test_rows_are_kept_however_the_work_ends(tmp_path, stop):
    """With the state of the random generator, so that the rest is what it would have been."""
    made = []

    def rows(path, fails_at=None, n=10):
        generator = torch.Generator().manual_seed(0)

        def batches(done):
            for i in range(done, 10, 3):
                if i == fails_at:
                    raise stop
                made.append(i)
                yield torch.rand(min(3, 10 - i), generator=generator), torch.full((min(3, 10 - i), 2), i)

        return kept_rows(path, "key", n, batches, generator)

    whole = rows(tmp_path / "whole.npz")
    made.clear()
    with pytest.raises(stop):
        rows(tmp_path / "cut.npz", fails_at=6)
    assert made == [0, 3]
    for one, other in zip(whole, rows(tmp_path / "cut.npz"), strict=True):
        assert torch.equal(one, other)
    assert made == [0, 3, 6, 9]
    assert torch.equal(rows(tmp_path / "cut.npz", n=4)[0], whole[0][:4]) and len(made) == 4
    assert len(kept_rows(tmp_path / "cut.npz", "another key", 1, lambda done: [(torch.ones(1),)])) == 1


def test_on_a_full_disk_the_work_stops_and_where_nobody_may_write_it_goes_on(tmp_path, monkeypatch):
    numbers = lambda done: ((torch.rand(4096),) for _ in range(done // 4096, 4))  # noqa: E731
    monkeypatch.setattr(files, "SAVE_EVERY", -1)
    with largest_file(40_000), pytest.raises(BadInput, match="cannot write .*full.npz: File too large"):
        kept_rows(tmp_path / "full.npz", "key", 4 * 4096, numbers)
    assert len(files.read_kept(tmp_path / "full.npz", "key")["0"]) == 2 * 4096, "the rows before are still there"
    (tmp_path / "file").touch()
    assert len(kept_rows(tmp_path / "file" / "x.npz", "key", 4 * 4096, numbers)[0]) == 4 * 4096
    for number in (errno.ENOSPC, errno.EDQUOT):
        with monkeypatch.context() as patch, pytest.raises(BadInput):
            patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(number, "full")))
            files.keep(tmp_path / "x.npz", "key", rows=np.ones(3))


@pytest.mark.parametrize("attack", ["pia", "loss", "secmi_nn", "gsa"])
def test_attacks_go_on_where_they_were_interrupted(tmp_path, small, monkeypatch, attack):
    make_run(tmp_path / "one", small, ["all"])
    make_run(tmp_path / "two", small, ["all"])
    wanted, batches = {attack: [100, 200]}, []
    whole = EvaluatedRun(tmp_path / "one", evaluate_args(batch=5)).scores("undefended", wanted)
    original = data.to_float

    def to_float(images):
        batches.append(len(images))
        if len(batches) == stop_at:
            raise KeyboardInterrupt
        return original(images)

    monkeypatch.setattr(data, "to_float", to_float)
    stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        EvaluatedRun(tmp_path / "two", evaluate_args(batch=5)).scores("undefended", wanted)
    stop_at = None
    batches.clear()
    again = EvaluatedRun(tmp_path / "two", evaluate_args(batch=5)).scores("undefended", wanted)
    assert sum(batches) == 2 * MEMBERS - 15, "fifteen images have their scores"
    for one, other in zip(whole[attack], again[attack], strict=True):
        torch.testing.assert_close(one, other)
    assert not list((tmp_path / "two" / "scores").glob("*unfinished*"))


@pytest.mark.parametrize("how", [["--method", "ddpm"], ["--eta", 1], []])
def test_samples_go_on_where_they_were_interrupted(tmp_path, small, monkeypatch, how):
    make_run(tmp_path, small, ["A", "B"])
    for name in "AB":  # fewer steps for the ancestral sampler, too
        model = checkpoint.load(tmp_path / f"{name}.pt")
        model.schedule["T"] = 40
        checkpoint.save(tmp_path, model)
    denoise = dualmd.denoise
    sizes = []

    def counted(*args, **rest):
        sizes.append(len(args[2]))
        if len(sizes) == stop_at:
            raise SystemExit(143)
        return denoise(*args, **rest)

    monkeypatch.setattr(dualmd, "denoise", counted)
    words = ["--dataset", "toy", "--run", tmp_path, "--n", 5, "--batch", 2, *how]
    stop_at = None
    call(monkeypatch, sample, *words, "--out", tmp_path / "whole.png")
    (tmp_path / "generated" / "samples-dual.npz").unlink()
    sizes.clear()
    stop_at = 3
    with pytest.raises(SystemExit):
        call(monkeypatch, sample, *words, "--out", tmp_path / "again.png")
    assert not (tmp_path / "again.png").exists()
    stop_at = None
    sizes.clear()
    call(monkeypatch, sample, *words, "--out", tmp_path / "again.png")
    assert sizes == [1], "four of five were there"
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_inception_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    seen, inception = [], types.SimpleNamespace(sha256="x", classifies=False)
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)

    def features(network, batch):
        seen.append(len(batch))
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return batch.flatten(1).float()

    def judged(path):
        return fid.judge(inception, path, "key", lambda done: images[done:].split(3), len(images), "ten")

    monkeypatch.setattr(fid, "features", features)
    stop_at = None
    (mean, root), score = judged(tmp_path / "whole.npz")
    seen.clear()
    stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path / "cut.npz")
    stop_at = None
    seen.clear()
    (mean_, root_), _ = judged(tmp_path / "cut.npz")
    assert seen == [3, 1] and torch.equal(mean, mean_) and torch.equal(root, root_) and score == ()
    assert tree(tmp_path) == ["cut.npz", "whole.npz"]


def test_when_nobody_reads_the_progress_any_more_a_training_saves_and_ends(tmp_path, monkeypatch):
    """`python train.py 2>&1 | head`: exit status 141, as of a program that SIGPIPE ended; the same command goes on."""
    monkeypatch.setattr(data, "TOY_IMAGES", 40)
    words = ["--split", "A", "--dataset", "toy", "--size", 8, "--members", 8, "--steps", 5, "--run", tmp_path]

    class Closed(io.TextIOWrapper):
        def write(self, text):
            if "3/5" in text:
                raise BrokenPipeError
            return len(text)

    monkeypatch.setattr(sys, "stderr", Closed(io.BytesIO()))
    original = training.tqdm.__init__
    monkeypatch.setattr(training.tqdm, "__init__", lambda *its, **how: original(*its, **how, mininterval=0, miniters=1))
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: call(monkeypatch, train, *words))
    monkeypatch.undo()
    assert end.value.code == 141
    assert torch.load(tmp_path / "A.unfinished", weights_only=True)["state"]["step"] == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child outlives a parent that was killed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_is_killed_leaves_no_child(tmp_path, number):
    flags = "--members 8 --steps 100000 --run".split()
    command = [sys.executable, ROOT / "reproduce.py", *flags, tmp_path / "study"]
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=tmp_path, start_new_session=True)

    def alive():
        """The processes of this session that are no zombies."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, state, _, _, session = re.sub(r"\(.*\)", "", path.read_text()).split()[:5]
                found += [pid] if session == str(process.pid) and state != "Z" else []
        return found

    try:
        while len(list(tmp_path.glob("study/seed-0/*.unfinished"))) < 2:
            time.sleep(0.1)
            assert process.poll() is None
        assert len(alive()) >= 4, "the study, its fork server and two trainings"
        process.send_signal(number)
        process.wait(timeout=60)
        end = time.monotonic() + 60
        while alive():
            assert time.monotonic() < end, "a child goes on"
            time.sleep(0.2)
    finally:
        for pid in alive():
            os.kill(int(pid), signal.SIGKILL)
    assert {path.name for path in tmp_path.glob("study/seed-0/*")} == {"A.unfinished", "B.unfinished"}


# --- 4. the files of the field ---

TABLE = "time_embedding.timembedding.0.weight"
FIELD = {  # how a checkpoint may lie about: its ema_model, made of plain weights
    "nn.Parameters": lambda its: {name: torch.nn.Parameter(weight) for name, weight in its.items()},
    "compiled, then parallel": lambda its: {f"module._orig_mod.{name}": weight for name, weight in its.items()},
    "parallel, then compiled": lambda its: {f"_orig_mod.module.{name}": weight for name, weight in its.items()},
    "AveragedModel": lambda its: {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in its.items()},
    "OrderedDict": collections.OrderedDict,
    "bfloat16": lambda its: {name: weight.bfloat16() for name, weight in its.items()},
    "float16": lambda its: {name: weight.half() for name, weight in its.items()},
    "float64": lambda its: {name: weight.double() for name, weight in its.items()},
    "one storage": lambda its: _views(torch.cat([weight.flatten() for weight in its.values()]), its),
    "channels last": lambda its: {
        k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in its.items()
    },
}


def _views(storage, its):
    parts = storage.split([weight.numel() for weight in its.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(its.items(), parts, strict=True)}


@pytest.mark.parametrize("form", FIELD)
def test_a_checkpoint_of_the_field_is_read_in_any_form(tmp_path, small, monkeypatch, form):
    model, split, npz = published(tmp_path, small)
    plain = torch.load(tmp_path / "step800000.pt", weights_only=True)["ema_model"]
    torch.save({"ema_model": FIELD[form](plain), "net_model": plain, "step": 3}, tmp_path / "its.pt")
    config, weights, T = load_published(tmp_path / "its.pt")
    assert (config, T) == (UNetConfig(ch=32, mult=(1, 2), attn=(1,), blocks=1, groups=32), 1000)
    own, lossy = dict(model.state_dict()), form in ("bfloat16", "float16")
    for name, weight in weights.items():
        torch.testing.assert_close(weight, own[name], rtol=0.01 if lossy else 0, atol=1e-3 if lossy else 0)
    judge(monkeypatch, "--checkpoint", tmp_path / "its.pt", "--member-split", npz, "--size", 8, "--out", tmp_path / "o")


@pytest.mark.parametrize(
    "what, named",
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(3), "numpy._core.multiarray.scalar"),
        (np.ones(3), "numpy._core.multiarray._reconstruct"),
        (CONFIG, "unet.UNetConfig"),
        (collections.defaultdict(int), "collections.defaultdict"),
    ],
)
def test_what_the_safe_loader_refuses_is_named(tmp_path, what, named):
    for zipped in (True, False):
        torch.save({"ema_model": {}, "other": what}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(BadInput, match=f"it holds a {named}, .* torch.save.*'ema_model'") as refusal:
            load_published(tmp_path / "x.pt")
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_a_checkpoint_without_checksums_is_read_and_a_wrong_checksum_is_none(tmp_path, small):
    published(tmp_path, small)
    content = torch.load(tmp_path / "step800000.pt", weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, tmp_path / "none.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    one, other = (load_published(tmp_path / name)[1] for name in ("none.pt", "step800000.pt"))
    assert same(one, other)
    raw = bytearray((tmp_path / "step800000.pt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(raw)
    with pytest.raises(BadInput, match="it is damaged"):
        load_published(tmp_path / "flipped.pt")


@pytest.mark.parametrize("T, ts", [(100, range(5, 100, 10)), (4000, range(200, 4000, 400)), (7, range(7))])
def test_the_timesteps_of_another_schedule_are_derived_from_it(tmp_path, small, monkeypatch, T, ts):
    published(tmp_path, small)
    content = torch.load(tmp_path / "step800000.pt", weights_only=True)
    content["ema_model"][TABLE] = SinusoidalEmbedding(32)(torch.arange(T))
    torch.save(content, tmp_path / "its.pt")
    split, out = tmp_path / "step800000-split.npz", tmp_path / "out"
    words = ["--checkpoint", tmp_path / "its.pt", "--member-split", split, "--size", 8, "--out", out]
    call(
        monkeypatch,
        evaluate,
        "--dataset",
        "toy",
        "--attack",
        "pia",
        *(["--t", 3, "--grid", 2] if T == 7 else []),
        *words,
    )
    (row, _) = json.loads((out / "results.json").read_text())
    unet, weights, _ = load_published(tmp_path / "its.pt")
    model, schedule = UNet(unet).eval(), dualmd.NoiseSchedule(T=T)
    model.load_state_dict(weights)
    x0 = data.to_float(small[np.load(out / "scores" / f"all-loss-{ts[0]}.npz")["image"]])
    losses = []
    for t in ts:
        generator = torch.Generator().manual_seed(cli.seed_for(0, "attack", "loss", t))
        losses.append(-attacks.loss(model, schedule, x0, t, generator=generator)[MEMBERS:].mean().item())
    assert row["held_out_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["t"] == [{100: 20, 4000: 800, 7: 3}[T]]


def oriented(path, orientation):
    """A picture of 6x4 with one white pixel, at the top left of what a viewer sees turned by this orientation."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    how = {"tiffinfo": {274: orientation}}
    if path.suffix != ".tif":
        exif = Image.Exif()
        exif[274] = orientation
        how = {"exif": exif.tobytes(), "quality": 100, "lossless": True, "subsampling": 0}
    Image.fromarray(pixels).save(path, **how)


CORNERS = {1: (0, 0), 2: (0, 5), 3: (3, 5), 4: (3, 0), 5: (0, 0), 6: (0, 3), 7: (5, 3), 8: (5, 0)}  # row, column


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_images_are_turned_as_a_viewer_turns_them(tmp_path, suffix):
    for orientation, corner in CORNERS.items():
        path = tmp_path / f"{orientation}{suffix}"
        oriented(path, orientation)
        image = datasets.read_image(path)
        assert image.shape == (3, *((4, 6) if orientation < 5 else (6, 4)))
        assert np.unravel_index(image.sum(0).argmax().item(), image.shape[1:]) == corner, orientation
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "odd.png", exif=b"Exif\x00\x00no TIFF at all")
    assert datasets.read_image(tmp_path / "odd.png").shape == (3, 4, 6), "damaged metadata of a sound image"


def test_what_is_hidden_or_linked_or_of_another_kind_in_a_folder(folder, capsys):
    tree = {"a/1.png": 1, "a/.ipynb_checkpoints/1.png": 0, ".thumbnails/2.png": 0, "__MACOSX/3.png": 0, "a/._4.jpg": 0}
    tree |= {"b/c/5.png": 1, "notes.txt": 0, "b/6.gif": 0, "b/.DS_Store": 0, "a/7.PNG": 1, "noname": 0}
    for name in tree:
        path = folder / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / "imgs" / "0.png").read_bytes())
    (folder / "d" / "linked").symlink_to(folder / "imgs")
    (folder / "d" / "again").symlink_to(folder / "imgs")
    (folder / "d" / "b" / "up").symlink_to(folder / "d")
    (folder / "d" / "one.png").symlink_to(folder / "imgs" / "3.png")
    found = [str(path.relative_to(folder / "d")) for path in datasets.image_files(folder / "d", deep=True)]
    expected = [name for name, counts in tree.items() if counts]
    assert sorted(found) == sorted([*expected, "one.png", *(f"again/{i}.png" for i in range(24))])
    said = capsys.readouterr().out
    assert said == f"{folder}/d: 3 files are left out, because their suffix is none of {datasets.SUFFIXES}\n"
    images = data.load("folder", str(folder / "d"), 8, 0)
    assert len(images) == data.count("folder", str(folder / "d")) == 28 and capsys.readouterr().out == "", "said once"
    (folder / "gone").symlink_to(folder / "nowhere")
    with pytest.raises(BadInput, match="gone is no folder that can be read"):
        datasets.image_files(folder / "gone", deep=True)


def test_a_folder_that_cannot_be_read_is_an_error(folder):
    """As somebody who is not root: root reads everything."""
    (folder / "imgs" / "locked").mkdir()
    (folder / "imgs" / "locked" / "1.png").write_bytes((folder / "imgs" / "0.png").read_bytes())
    (folder / "imgs" / "locked").chmod(0)
    for path in [folder, *folder.parents[:3]]:
        path.chmod(0o755)

    def read():
        if os.geteuid() == 0:
            os.setuid(65534)
        with pytest.raises(BadInput, match="imgs/locked is no folder that can be read: Permission denied"):
            data.load("folder", str(folder / "imgs"), 8, 0)
        with pytest.raises(BadInput, match="cannot write into .*locked"):
            files.require_writable(folder / "imgs" / "locked", directory=True)

    status, _ = forked(read, folder, 60, folder / "said")
    assert status == 0, (folder / "said").read_text()


@pytest.mark.parametrize("name", ["stl10", "tiny-imagenet"])
def test_these_are_resized_as_secmi_and_pia_resize_them(folder, name):
    """By Pillow itself, with its bilinear filter, as torchvision's Resize does; and no other dataset is."""
    pixels = np.random.RandomState(0).randint(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    if name == "stl10":
        pixels = np.random.RandomState(0).randint(0, 256, (5, 96, 96, 3)).astype(np.uint8)
        (folder / "data" / "stl10_binary").mkdir(parents=True)
        (folder / "data" / "stl10_binary" / "unlabeled_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
    else:  # without its images/ folders
        for i, image in enumerate(pixels):
            (folder / "data" / "tiny-imagenet-200" / "train" / f"n{i // 2}").mkdir(parents=True, exist_ok=True)
            path = folder / "data" / "tiny-imagenet-200" / "train" / f"n{i // 2}" / f"n{i // 2}_{i}.JPEG"
            Image.fromarray(image).save(path, quality=100)
            pixels[i] = np.asarray(Image.open(path))
    expected = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in pixels]
    images = data.load(name, "data", 32, 0)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected) and data.count(name, "data") == 5
    area = data.resize(torch.from_numpy(pixels).permute(0, 3, 1, 2), 32)
    assert (images.int() - area.int()).abs().max() > 10


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_batches_that_any_python_and_numpy_pickled(folder, protocol, module):
    (folder / "data" / "cifar-10-batches-py").mkdir(parents=True)
    pixels = np.random.RandomState(0).randint(0, 256, (5, 4, 3072)).astype(np.uint8)
    for i, batch in enumerate(pixels, 1):
        content = pickle.dumps({b"data": batch, b"labels": [1, 2, 3, 4], "batch_label": "x"}, protocol=protocol)
        assert b"numpy._core" in content
        content = content if module == "numpy._core" or protocol > 3 else content.replace(b"numpy._core", b"numpy.core")
        (folder / "data" / "cifar-10-batches-py" / f"data_batch_{i}").write_bytes(content)
    images = data.load("cifar10", "data", 32, 0)
    assert np.array_equal(images.numpy(), pixels.reshape(20, 3, 32, 32)) and data.count("cifar10", "data") == 20
    wide = pickle.dumps({b"data": pixels[0].astype(np.int64)}, protocol=protocol)
    (folder / "data" / "cifar-10-batches-py" / "data_batch_1").write_bytes(wide)
    with pytest.raises(BadInput, match="its array holds other numbers than bytes"):
        data.load("cifar10", "data", 32, 0)


def test_the_same_content_under_another_path_is_the_same_dataset(folder, monkeypatch):
    words = ["--dataset", "folder", "--data-dir", "imgs", "--size", 8, "--members", 6, "--run", "r"]
    np.savez("24.npz", mia_train_idxs=np.arange(12), mia_eval_idxs=np.arange(12, 24))
    np.savez("odd.npz", mia_train_idxs=np.arange(12, 24), mia_eval_idxs=np.arange(12))
    os.link("24.npz", "again.npz")
    call(monkeypatch, train, "--split", "A", "--steps", 1, *words, "--member-split", "24.npz")
    os.rename("imgs", "moved")
    words[3] = "moved"
    call(monkeypatch, train, "--split", "A", "--steps", 1, *words, "--member-split", "again.npz")  # is trained already
    call(monkeypatch, train, "--split", "B", "--steps", 1, *words, "--member-split", "again.npz")
    call(monkeypatch, train, "--distill", *words, "--member-split", "again.npz")
    with pytest.raises(BadInput, match="A and all differ .split"):
        call(monkeypatch, train, "--split", "all", "--steps", 1, *words, "--member-split", "odd.npz")
    os.remove("r/distill-cross.pt")
    with pytest.raises(BadInput, match="--member-split odd.npz: the teachers in r/ were trained with another"):
        call(monkeypatch, train, "--distill", *words, "--member-split", "odd.npz")
    judge(monkeypatch, "--run", "r", "--data-dir", "moved")
    datasets.image_files.cache_clear()
    with pytest.raises(BadInput, match="imgs is no folder that can be read"):
        judge(monkeypatch, "--run", "r", "--out", "elsewhere")


def test_duplicates_across_members_and_non_members_are_named_in_the_heading(tmp_path, small, monkeypatch, capsys):
    split = data.index_split(len(small), MEMBERS)
    small[split.nonmembers[0]] = small[split.nonmembers[3]] = small[split.b[2]]
    small[split.nonmembers[5]] = small[split.nonmembers[6]]  # both held out: they do not count
    make_run(tmp_path, small, ["all"])
    judge(monkeypatch, "--run", tmp_path)
    said = "2 non-members are copies of members: attacks look too weak"
    assert said in (tmp_path / "table.md").read_text().partition("| model")[0]
    assert said in capsys.readouterr().out


# --- 5. degenerate numbers ---


@pytest.mark.parametrize("other", [[5.0] * 8, [0.0] * 7 + [9.0], [-1e30] * 4 + [1e30] * 4])
def test_scores_without_spread_can_be_combined_and_judged(other):
    one = torch.arange(8.0)
    for rule in releases.COMBINATIONS:
        both = attacks.combine_scores([one, torch.tensor(other)], rule)
        assert both.isfinite().all()
        result = metrics.adaptive(both[None, :4], both[None, 4:])
        assert 0 <= result.curve.auc <= 1 and np.isfinite(result.interval).all() and 0 <= result.asr <= 1
    flat = attacks.combine_scores([one, torch.full((8,), 5.0)], "sum")
    assert flat.argsort().tolist() == list(range(8)), "the model without spread says nothing"


@pytest.mark.parametrize(
    "members, nonmembers, auc",
    [
        ([np.inf, 1, 2, np.inf], [0, 0.5, -np.inf, 0], 1),
        ([-np.inf] * 4, [np.inf] * 4, 0),
        ([3] * 4, [3] * 4, 0.5),
        ([np.inf] * 4, [np.inf] * 4, 0.5),
        ([np.inf, 0, 0, 0], [0, 0, 0, 0], 0.625),
    ],
)
def test_infinite_and_constant_scores(members, nonmembers, auc):
    result = metrics.published(members, nonmembers)
    assert result.curve.auc == auc and not np.isnan([*result.interval, result.asr]).any()
    adaptive = metrics.adaptive([members], [nonmembers])
    assert not np.isnan([adaptive.curve.auc, *adaptive.interval, adaptive.asr, *adaptive.curve.tpr]).any()
    if auc == 0.5:
        assert adaptive.curve.auc == 0.5
    with pytest.raises(ValueError, match="a score is NaN"):
        metrics.published([np.nan, 1], [0, 1])


@pytest.mark.parametrize("members, n, attack", [(2, 1, "all"), (4, 3, "pia")])
def test_few_members_and_images(tmp_path, small, monkeypatch, members, n, attack):
    """Fewer than a batch, than cores, than pairs in a figure: each cell is a number or says that there is none."""
    monkeypatch.setattr(attacks, "secmi_nn", lambda *args, **rest: torch.zeros(len(args[2])))
    make_run(tmp_path, small, members=members)
    call(monkeypatch, evaluate, "--dataset", "toy", "--attack", attack, "--grid", 50, "--run", tmp_path)
    call(monkeypatch, evaluate, "--dataset", "toy", "--memorization", "--n", n, "--run", tmp_path)
    for name in ("table.md", "memorization.md"):
        assert "nan" not in (tmp_path / name).read_text().lower() and "inf" not in (tmp_path / name).read_text().lower()
    for name in ("results.json", "t.json", "memorization.json"):
        assert "NaN" not in (tmp_path / name).read_text() and "Infinity" not in (tmp_path / name).read_text()


def test_copies_among_images_that_are_alike(tmp_path, small, monkeypatch):
    """A training image that is there twice is one image: its copy is a copy."""
    split = make_run(tmp_path, small, ["all"])
    small[split.members[1::2]] = small[split.members[0]].clone()  # half of them, and one more
    sha = checkpoint.load(tmp_path / "all.pt")
    sha.dataset["sha256"] = data.fingerprint(small)
    checkpoint.save(tmp_path, sha)
    exact = torch.stack([small[split.members[0]], small[split.members[2]], small[split.nonmembers[0]]])
    monkeypatch.setattr(EvaluatedRun, "generated", lambda *_: exact)
    call(monkeypatch, evaluate, "--dataset", "toy", "--memorization", "--n", 3, "--run", tmp_path)
    (row,) = json.loads((tmp_path / "memorization.json").read_text())
    assert (row["copies"], row["of_nonmembers"], row["smallest_ratio"]) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        0,
    )
    small[split.members] = small[split.members[0]].expand(MEMBERS, -1, -1, -1).clone()
    sha.dataset["sha256"] = data.fingerprint(small)
    checkpoint.save(tmp_path, sha)
    with pytest.raises(BadInput, match="all members, or all non-members, are one image"):
        call(monkeypatch, evaluate, "--dataset", "toy", "--memorization", "--n", 3, "--run", tmp_path)
    judge(monkeypatch, "--run", tmp_path)
    assert "nan" not in (tmp_path / "table.md").read_text().lower()


def test_a_quality_of_images_that_are_all_alike_is_a_number():
    grey = torch.full((6, 2048), 0.5)
    mean, cov = fid.mean_and_covariance([grey])
    root = fid.symmetric_root(cov)
    assert fid.distance(mean, root, mean, root) == 0
    assert fid.distance(mean, root, mean + 1, root) == pytest.approx(2048)


# --- 6. terminals, shells and environments ---


def screen(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin1"])
def test_a_screen_replaces_what_it_lacks_and_files_are_utf_8(tmp_path, small, monkeypatch, encoding):
    make_run(tmp_path / "süß – −", small, ["all"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", screen(encoding))
    monkeypatch.setattr(sys, "stderr", screen(encoding))
    words = ["evaluate.py", "--dataset", "toy", "--attack", "pia", "--grid", "50", "--run", tmp_path / "süß – −"]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--device", "cpu"])
    cli.run(evaluate.main)
    said = sys.stdout.buffer.getvalue().decode(encoding)
    monkeypatch.undo()
    table = (tmp_path / "süß – −" / "table.md").read_text(encoding="utf-8")
    assert "süß – −: toy at 8x8" in table and "| –     |" in table
    assert "?: toy at 8x8" in said and len(said.splitlines()) >= len(table.splitlines()) - 2


def test_a_path_that_is_no_utf_8_ends_in_the_files(tmp_path):
    reports.write(tmp_path, "dualmd result " + "0" * 16, {"table.md": ["bad\udcff"], "t.json": [{"run": "bad\udcff"}]})
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith("bad?")
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))[0]["run"] == "bad\udcff"


def test_a_reader_that_has_seen_enough_ends_a_script_quietly(monkeypatch):
    class Closed(io.TextIOWrapper):
        def write(self, text):
            raise BrokenPipeError

    redirected = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "dup2", lambda *which: redirected.append(which[1]))

    def prints():
        print("a table")

    def refuses():
        raise BadInput("x")

    for stream, main in (("stdout", prints), ("stderr", refuses)):
        redirected.clear()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(sys, stream, Closed(io.BytesIO()))
            cli.run(main)
        assert end.value.code == 141 and redirected == [1, 2]


def test_a_script_without_a_screen_works(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    cli.run(lambda: print("into nothing", file=sys.stderr))


@pytest.mark.parametrize(
    "left", [{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, {"WORLD_SIZE": "x"}, {"RANK": ""}]
)
def test_what_another_program_left_in_the_environment_is_not_torchruns(monkeypatch, left):
    for name, value in (left | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    found = runpy.run_path(distributed.__file__)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD"]) == (0, 0, 1)
    if "LOCAL_RANK" in left:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        found = runpy.run_path(distributed.__file__)
        assert (found["RANK"], found["LOCAL_RANK"], found["WORLD"]) == (1, 1, 2)


def test_paths_with_spaces_and_quotes(tmp_path, monkeypatch, capsys):
    """What a study prints can be copied: it is what the study runs."""
    monkeypatch.chdir(tmp_path)
    run = 'it\'s a "run" $HOME'
    monkeypatch.setattr(data, "TOY_IMAGES", 40)
    started = []
    monkeypatch.setattr(reproduce, "run_all", lambda jobs, *rest: started.extend(jobs) or [(jobs[0], 0, 1)])
    call(monkeypatch, reproduce, "--members", 8, "--steps", 1, "--size", 8, "--run", run)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    printed = [shlex.split(line) for line in lines if line.startswith("python ")]
    assert printed == [job.command for job in started] and any(f"{run}/seed-0" in words for words in printed)
    assert shlex.split(lines[-1])[-1] == f"{run}/seed-0", "also in the list of times"
    monkeypatch.setattr(metrics, "RESAMPLES", 5)
    call(monkeypatch, train, *started[0].command[2:-4], "--dataset", "toy")
    judge(monkeypatch, "--run", f"{run}/seed-0")
    (row, *_) = json.loads((tmp_path / run / "seed-0" / "results.json").read_text())
    assert f"{run}/seed-0" in shlex.split(row["command"]) and row["run"] == f"{run}/seed-0"
