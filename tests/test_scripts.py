"""The scripts as a user meets them: what they do, what they refuse, and the whole story on real images."""

import argparse
import copy
import importlib
import json
import math
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, same, tree
from PIL import Image

import data
import evaluate
import metrics
import sample as sample_script
import train
from dualmd import NoiseSchedule
from lab import checkpoint, cli, files, hardware, training
from lab.files import BadInput
from unet import UNet, UNetConfig


def run(script, *flags, cwd):
    """Run a script in a process of its own; its lanes beside it keep to one thread each."""
    return subprocess.run(
        [sys.executable, ROOT / script, *map(str, flags)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def call(monkeypatch, *flags):
    """train.py's main in this process, on the toy data with 8 members unless `flags` say otherwise."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--dataset", "toy", "--device", "cpu", *map(str, flags)])
    train.main()


TINY = ("--members", 8, "--steps", 3)


@pytest.fixture(autouse=True)
def few_toy_images(monkeypatch):
    """Draw 80 toy images, not 4,096, in this process."""
    monkeypatch.setattr(data, "TOY_IMAGES", 80)


def record(monkeypatch, module, name):
    """From now on, each call of module.name leaves its arguments and its result in the list returned."""
    calls, function = [], getattr(module, name)

    def recorder(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(module, name, recorder)
    return calls


def pixels(images):
    """Images as things that can be compared and counted."""
    return [image.numpy().tobytes() for image in images]


def weights(run, name):
    return checkpoint.load(run / f"{name}.pt").weights


# --- training ---


def test_the_same_seed_gives_the_same_weights(tmp_path, monkeypatch):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        call(monkeypatch, "--split", "A", "--run", tmp_path / name, "--seed", seed, *TINY)
        torch.manual_seed(123)  # what happened before in this process does not matter
    assert same(weights(tmp_path / "one", "A"), weights(tmp_path / "same", "A"))
    assert not same(weights(tmp_path / "one", "A"), weights(tmp_path / "other", "A"))


def test_every_model_records_and_sees_its_own_images(tmp_path, monkeypatch):
    """Each image exactly once an epoch, and no other: A its half, B the other, undefended and student both."""
    seen = record(monkeypatch, data, "to_float")
    pool = data.toy(16, 0)
    split = data.index_split(len(pool), 8, seed=0)
    expected = {"A": split.a, "B": split.b, "all": split.members, "reference": split.reference}
    expected["distill-cross"] = split.members
    for name, indices in expected.items():
        seen.clear()
        which = ("--distill", "cross") if name == "distill-cross" else ("--split", name, *TINY)
        call(monkeypatch, *which, "--run", tmp_path)
        assert torch.equal(checkpoint.load(tmp_path / f"{name}.pt").trained_on, indices)
        trained_on = [image for (images,), _ in seen for image in pixels(images)]
        assert sorted(trained_on) == sorted(3 * pixels(pool[indices]))
        count = len(indices)
        assert len(seen) == 3, "each model gets as many steps, however few its images are"
        epochs = [trained_on[i : i + count] for i in range(0, 3 * count, count)]
        assert epochs[0] != epochs[1] != epochs[2], "every epoch has an order of its own"


def test_an_epoch_has_each_image_once_in_batches_of_the_presets_size(tmp_path, monkeypatch):
    monkeypatch.setitem(train.PRESETS["tiny"]["train"], "batch", 3)
    seen = record(monkeypatch, data, "to_float")
    call(monkeypatch, "--split", "all", "--run", tmp_path, "--members", 8, "--steps", 6)
    batches, pool = [pixels(images) for (images,), _ in seen], data.toy(16, 0)
    assert [len(batch) for batch in batches] == [3, 3, 2] * 2, "the last one has what is left"
    for epoch in (batches[:3], batches[3:]):
        assert sorted(sum(epoch, [])) == sorted(pixels(pool[data.index_split(len(pool), 8, seed=0).members]))


@pytest.mark.parametrize("targets", ["cross", "average"])
def test_a_student_learns_from_the_right_teachers(tmp_path, monkeypatch, targets):
    assert train.parse_args(["--distill"]).distill == "cross", "as in the paper"
    for half in "AB":
        call(monkeypatch, "--split", half, "--run", tmp_path, *TINY)
    half_a = pixels(data.toy(16, 0)[checkpoint.load(tmp_path / "A.pt").split.a])
    batches = record(monkeypatch, data, "to_float")
    asked = record(monkeypatch, train, "distill_targets")
    losses = record(monkeypatch, train, "training_loss")
    call(monkeypatch, "--distill", targets, "--run", tmp_path)
    assert len(asked) == 3
    for ((images,), _), ((a, b, x_t, t, in_a, how), target), (loss_args, _) in zip(batches, asked, losses, strict=True):
        assert same(a.state_dict(), weights(tmp_path, "A")) and same(b.state_dict(), weights(tmp_path, "B"))
        assert in_a.tolist() == [image in half_a for image in pixels(images)]
        assert how == targets
        assert loss_args[1] is x_t and loss_args[2] is t and loss_args[3] is target


def test_an_ordinary_student_learns_from_one_teacher_that_it_names(tmp_path, monkeypatch):
    """By default from the undefended model; or from one of other images, in another directory."""
    call(monkeypatch, "--split", "all", "--run", tmp_path, *TINY)
    teachers = record(monkeypatch, train, "training_loss")
    call(monkeypatch, "--split", "reference", "--block", 3, "--run", tmp_path / "other", *TINY)
    members = checkpoint.load(tmp_path / "all.pt").trained_on
    for run, teacher, named in (("", "all", ()), ("student", "other/reference", ("--teachers", "other/reference.pt"))):
        named = [tmp_path / word if "/" in word else word for word in named]
        losses = record(monkeypatch, train, "training_loss")
        asked = record(monkeypatch, train.UNet, "forward")
        call(monkeypatch, "--distill", "single", *named, "--run", tmp_path / run)
        assert len(asked) == 6, "in each step the teacher, and then the student"
        for ((_, *by_teacher), _), ((_, *by_student), _) in zip(asked[::2], asked[1::2], strict=True):
            assert all(map(torch.equal, by_teacher, by_student)), "the same images at the same timesteps"
        network = checkpoint.load(tmp_path / f"{teacher}.pt").eps_model()
        assert len(losses) == 3
        for (_, x_t, t, target), _ in losses:
            torch.testing.assert_close(target, network(x_t, t))
            assert not target.requires_grad
        student = checkpoint.load(tmp_path / run / "distill-single.pt")
        assert torch.equal(student.trained_on, members), "a student learns from members, whatever its teacher saw"
        assert student.settings["targets"] == "single"
    reference = checkpoint.load(tmp_path / "other" / "reference.pt")
    assert not torch.isin(reference.trained_on, members).any()
    losses = record(monkeypatch, train, "training_loss")
    call(monkeypatch, "--distill", "reference", *named, "--run", tmp_path / "attacker")
    for (_, x_t, t, target), _ in losses:
        torch.testing.assert_close(target, network(x_t, t))
    student = checkpoint.load(tmp_path / "attacker" / "distill-reference.pt")
    assert torch.equal(student.trained_on, reference.trained_on), "an attacker's student learns from what they own"
    (_, x_t, *_), _ = losses[0]
    assert not torch.equal(x_t, teachers[0][0][1]), "with its teacher's first weights and noise it becomes a copy of it"


def test_teachers_from_another_directory(tmp_path, monkeypatch, capsys):
    """The same student as of those beside it. A and B must be named in this order."""
    for half in "AB":
        call(monkeypatch, "--split", half, "--run", tmp_path / "halves", *TINY)
    call(monkeypatch, "--distill", "--run", tmp_path / "halves")
    a, b = (tmp_path / "halves" / f"{half}.pt" for half in "AB")
    call(monkeypatch, "--distill", "--teachers", a, b, "--run", tmp_path / "student")
    assert same(weights(tmp_path / "student", "distill-cross"), weights(tmp_path / "halves", "distill-cross"))
    for words, says in (
        (["--distill", "--teachers", b, a], "--teachers: --distill cross takes A, then B"),
        (["--distill", "reference", "--teachers", a], "--teachers: --distill reference takes reference"),
        (["--distill", "--teachers", a], "--teachers: 1 given, and --distill cross takes 2"),
        (["--distill", "single", "--teachers", a, b], "--teachers: 2 given, and --distill single takes 1"),
        (["--split", "A", *TINY, "--teachers", a, b], r"--teachers: only a student \(--distill\) has teachers"),
        (["--distill", "--teachers", a, b, "--dropout", 0.3], "--dropout 0.3: the teachers in .*/halves/ were .* 0.0"),
    ):
        with pytest.raises(BadInput, match=says):
            call(monkeypatch, *words, "--run", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_blocks_are_disjoint_sets_of_images_that_nobody_scores(tmp_path, monkeypatch):
    for block in (1, 2, 3):
        call(monkeypatch, "--split", "reference", "--block", block, "--run", tmp_path / str(block), *TINY)
    models = [checkpoint.load(tmp_path / str(block) / "reference.pt") for block in (1, 2, 3)]
    assert all(torch.equal(one.split.nonmembers, models[0].split.nonmembers) for one in models)
    every = torch.cat([models[0].split.members, models[0].split.nonmembers, *(one.trained_on for one in models)])
    assert len(every) == len(every.unique()) == 8 * 5


def test_what_else_makes_a_model_remember_less(tmp_path, monkeypatch):
    decays = record(monkeypatch, torch.optim, "AdamW")
    call(monkeypatch, "--split", "all", "--run", tmp_path / "plain", *TINY)
    call(monkeypatch, "--split", "all", "--run", tmp_path, "--dropout", 0.3, "--weight-decay", 0.5, "--flip", *TINY)
    model = checkpoint.load(tmp_path / "all.pt")
    assert [optimizer.defaults["weight_decay"] for _, optimizer in decays] == [0, 0.5]
    assert (model.unet.dropout, model.settings["weight_decay"], model.settings["flip"]) == (0.3, 0.5, True)
    plain = checkpoint.load(tmp_path / "plain" / "all.pt")
    assert (plain.unet.dropout, plain.settings["weight_decay"], plain.settings["flip"]) == (0, None, False)


def test_the_undefended_model_learns_the_true_noise(tmp_path, monkeypatch):
    read = record(monkeypatch, data, "to_float")
    noised = record(monkeypatch, NoiseSchedule, "add_noise")
    losses = record(monkeypatch, train, "training_loss")
    call(monkeypatch, "--split", "all", "--run", tmp_path, *TINY)
    for (_, images), ((_, x0, _, _), _) in zip(read, noised, strict=True):
        assert torch.equal(images, x0), "nothing is mirrored unless the preset says so"
    for ((_, _, t, eps), x_t), (loss_args, _) in zip(noised, losses, strict=True):
        for used, drawn in zip(loss_args[1:], (x_t, t, eps), strict=True):
            assert torch.equal(used, drawn)
    draws = [(t.tolist(), eps) for ((_, _, t, eps), _) in noised]
    assert draws[0][0] != draws[1][0] and not torch.equal(draws[0][1], draws[1][1]), "each step draws anew"


def test_a_training_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    """And ends at the very weights that it would have had."""
    flags = ("--split", "all", "--members", 40, "--steps", 8, "--save-every", -1)
    call(monkeypatch, *flags, "--run", tmp_path / "undisturbed")

    class Cut(Exception):
        pass

    def cut_after(steps):
        def loss(*args, f=train.training_loss, left=[steps]):  # noqa: B006  the list is the counter
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return f(*args)

        return loss

    resumed = record(monkeypatch, training, "resume")
    for run_for in (1, 4):  # an epoch is 2 steps: cut off within one
        with monkeypatch.context() as patch, pytest.raises(Cut):
            patch.setattr(train, "training_loss", cut_after(run_for))
            call(monkeypatch, *flags, "--run", tmp_path / "cut")
        assert not (tmp_path / "cut" / "all.pt").exists()
    with pytest.raises(BadInput, match="all.unfinished was trained with steps = 8, not 9"):
        call(monkeypatch, "--split", "all", "--members", 40, "--steps", 9, "--run", tmp_path / "cut")
    call(monkeypatch, *flags, "--run", tmp_path / "cut")
    assert [step for _, step in resumed[:2] + resumed[-1:]] == [None, 1, 5]
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["all.pt"]
    assert same(weights(tmp_path / "undisturbed", "all"), weights(tmp_path / "cut", "all"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_obeyed_once_all_is_saved(tmp_path, monkeypatch, capsys, number):
    flags = ("--split", "all", "--members", 40, "--steps", 12)
    call(monkeypatch, *flags, "--run", tmp_path / "undisturbed")
    before, steps = signal.getsignal(number), []

    def loss(*args, f=train.training_loss):
        steps.append(args)
        if len(steps) == 5:
            for _ in range(2):  # a terminal and torchrun may both send one
                os.kill(os.getpid(), number)
        return f(*args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train, "training_loss", loss)
        call(monkeypatch, *flags, "--run", tmp_path / "stopped")
    assert end.value.code == 128 + number and len(steps) == 5
    said = "train.py: all was stopped after step 5 of 12, and saved: the same command continues\n"
    assert capsys.readouterr().err.endswith(said)
    assert tree(tmp_path / "stopped") == ["all.unfinished"]
    assert signal.getsignal(number) == before
    resumed = record(monkeypatch, training, "resume")
    call(monkeypatch, *flags, "--run", tmp_path / "stopped")
    assert resumed[0][1] == 5
    assert same(weights(tmp_path / "undisturbed", "all"), weights(tmp_path / "stopped", "all"))


def test_a_signal_at_the_last_step_changes_nothing(tmp_path, monkeypatch):
    kill = lambda *args, f=train.training_loss: os.kill(os.getpid(), signal.SIGTERM) or f(*args)  # noqa: E731
    monkeypatch.setattr(train, "training_loss", kill)
    call(monkeypatch, "--split", "A", "--members", 8, "--steps", 1, "--run", tmp_path)
    assert tree(tmp_path) == ["A.pt"]


def test_a_training_begun_anew_goes_on_too_and_the_old_model_stays_until_it_is_there(tmp_path, monkeypatch, capsys):
    run = ("--split", "A", "--members", 8, "--run", tmp_path)
    call(monkeypatch, *run, "--steps", 2)
    old = (tmp_path / "A.pt").read_bytes()
    stop = lambda *args, f=train.training_loss: os.kill(os.getpid(), signal.SIGTERM) or f(*args)  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "training_loss", stop)
        call(monkeypatch, *run, "--steps", 3, "--restart")
    assert "after step 1 of 3, and saved: the same command, but for --restart, continues" in capsys.readouterr().err
    assert (tmp_path / "A.pt").read_bytes() == old
    with pytest.raises(BadInput, match="A.unfinished was trained with steps = 3, not 2"):
        call(monkeypatch, *run, "--steps", 2)
    call(monkeypatch, *run, "--steps", 3)
    assert tree(tmp_path) == ["A.pt"] and checkpoint.load(tmp_path / "A.pt").settings["steps"] == 3
    # of what --restart begins nothing is left of before, even if it dies at once
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "training_loss", lambda *args: 1 / 0)
        call(monkeypatch, *run, "--steps", 4, "--restart")
    with pytest.raises(BadInput, match="A.unfinished was trained with steps = 4, not 3"):
        call(monkeypatch, *run, "--steps", 3)


def test_killed_between_the_last_two_things_to_do(tmp_path, monkeypatch):
    """When A.pt has been written, and A.unfinished not yet removed."""
    flags = ("--split", "A", "--members", 8, "--steps", 3, "--run", tmp_path)
    save = training.save_unfinished
    kept = []
    keep = lambda *args: save(*args) or kept.append((tmp_path / "A.unfinished").read_bytes())  # noqa: E731
    monkeypatch.setattr(training, "save_unfinished", keep)
    call(monkeypatch, *flags, "--save-every", -1)
    finished = weights(tmp_path, "A")
    (tmp_path / "A.unfinished").write_bytes(kept[-1])
    (tmp_path / ".A.unfinished.1234567.tmp").write_bytes(kept[-1][:1000])
    call(monkeypatch, *flags)
    assert tree(tmp_path) == ["A.pt"] and same(weights(tmp_path, "A"), finished)


def test_a_disk_that_is_full_in_the_middle_of_a_training(tmp_path, monkeypatch):
    flags = ("--split", "A", "--members", 8, "--steps", 4, "--save-every", -1, "--run")
    call(monkeypatch, *flags, tmp_path / "straight")
    before, steps = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def loss(*args, f=train.training_loss):
        steps.append(args)
        if len(steps) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        return f(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "training_loss", loss)
        try:
            with pytest.raises(BadInput, match="cannot write .*A.unfinished: File too large"):
                call(monkeypatch, *flags, tmp_path / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tree(tmp_path / "full") == ["A.unfinished"] and len(steps) == 2
    resumed = record(monkeypatch, training, "resume")
    call(monkeypatch, *flags, tmp_path / "full")
    assert resumed[0][1] == 1, "what had been saved before"
    assert same(weights(tmp_path / "straight", "A"), weights(tmp_path / "full", "A"))


def test_two_trainings_of_the_same_model(tmp_path, monkeypatch):
    with files.exclusive(tmp_path / "A.pt"):
        with pytest.raises(BadInput, match="A.pt is being made by another process: wait for it, stop it, or name"):
            call(monkeypatch, "--split", "A", "--run", tmp_path, *TINY)
        assert not (tmp_path / "A.pt").exists()
        call(monkeypatch, "--split", "B", "--run", tmp_path, *TINY)
    assert tree(tmp_path) == ["B.pt"]


def test_it_goes_on_only_as_it_was_begun(tmp_path, monkeypatch):
    np.savez(tmp_path / "split.npz", mia_train_idxs=np.arange(8), mia_eval_idxs=np.arange(8, 16))
    flags = ("--split", "A", "--steps", 2, "--members", 8, "--member-split", tmp_path / "split.npz")
    flags += ("--run", tmp_path / "run")

    def cut(*flags):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(train, "training_loss", lambda *args: 1 / 0)
            call(monkeypatch, *flags)

    cut(*flags)
    before = (tmp_path / "run" / "A.unfinished").read_bytes()
    tiny = train.PRESETS["tiny"]
    for change, key in {
        ("--steps", 3): "steps",
        ("--seed", 1): "seed",
        ("--size", 8): "size",
        ("--members", 6): "members",
    }.items():
        with pytest.raises(BadInput, match=f"A.unfinished was trained with {key} = .*: --restart begins anew, --run"):
            call(monkeypatch, *flags, *change)
    for key, value in {"lr": 0.1, "batch": 3, "ema": 0.5, "warmup": 7, "flip": True, "cosine": False}.items():
        with monkeypatch.context() as patch, pytest.raises(BadInput, match=f"was trained with {key} = "):
            patch.setitem(tiny, "train", tiny["train"] | {key: value})
            call(monkeypatch, *flags)
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="was trained with unet = UNetConfig"):
        patch.setitem(tiny, "unet", UNetConfig(ch=16, mult=(1,), attn=(), blocks=1, dropout=0.0, groups=4))
        call(monkeypatch, *flags)
    np.savez(tmp_path / "split.npz", mia_train_idxs=np.arange(8), mia_eval_idxs=np.arange(9, 17))
    with pytest.raises(BadInput, match="was trained with split = "):
        call(monkeypatch, *flags)
    assert (tmp_path / "run" / "A.unfinished").read_bytes() == before


def test_a_student_goes_on_with_the_teachers_that_it_had(tmp_path, monkeypatch):
    for half in "AB":
        call(monkeypatch, "--split", half, "--run", tmp_path, *TINY)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "training_loss", lambda *args: 1 / 0)
        call(monkeypatch, "--distill", "cross", "--run", tmp_path)
    its = checkpoint.load(tmp_path / "B.pt")
    its.weights["head.bias"][0] += 1
    checkpoint.save(tmp_path, its)
    with pytest.raises(BadInput, match="distill-cross.unfinished was trained with teachers = "):
        call(monkeypatch, "--distill", "cross", "--run", tmp_path)
    call(monkeypatch, "--distill", "cross", "--run", tmp_path, "--restart")
    its.weights["head.bias"][0] += 1
    checkpoint.save(tmp_path, its)
    with pytest.raises(BadInput, match="distill-cross.pt was trained with teachers = "):
        call(monkeypatch, "--distill", "cross", "--run", tmp_path)


def test_a_snapshot_is_what_a_shorter_training_makes(tmp_path, monkeypatch):
    """Where the learning rate is constant. Where it falls, a shorter training is another one."""
    monkeypatch.setitem(train.PRESETS["tiny"]["train"], "cosine", False)
    flags = ("--split", "all", "--members", 20)
    call(monkeypatch, *flags, "--steps", 7, "--snapshots", 3, "--run", tmp_path / "long")
    call(monkeypatch, *flags, "--steps", 4, "--run", tmp_path / "short")
    call(monkeypatch, *flags, "--steps", 7, "--run", tmp_path / "plain")
    assert tree(tmp_path / "plain") == ["all.pt"], "snapshots are for those who ask"
    kept = checkpoint.snapshots(tmp_path / "long")
    assert [path.name for path in kept] == ["step-000002", "step-000004"]
    underway, short = checkpoint.load(kept[1] / "all.pt"), checkpoint.load(tmp_path / "short" / "all.pt")
    assert same(underway.weights, short.weights) and underway.settings == short.settings
    assert same(weights(tmp_path / "long", "all"), weights(tmp_path / "plain", "all"))
    call(monkeypatch, *flags, "--steps", 5, "--restart", "--run", tmp_path / "long")
    assert not list((tmp_path / "long").glob("*/*.pt")), "the snapshots of a training that is no more"
    assert not checkpoint.snapshots(tmp_path / "long")


def test_the_average_of_the_weights_is_kept(tmp_path, monkeypatch):
    """After one step the average is a tenth of the initial weights and nine tenths of the new ones."""
    monkeypatch.setitem(train.PRESETS["tiny"]["train"], "lr", 1.0)  # so that the two differ visibly
    models = record(monkeypatch, train, "UNet")
    initial = {}
    remember = lambda run, wanted, model, *rest: initial.update(copy.deepcopy(model.state_dict())) or 0  # noqa: E731
    monkeypatch.setattr(training, "resume", remember)
    call(monkeypatch, "--split", "A", "--run", tmp_path, "--members", 8, "--steps", 1)
    new, saved = models[0][1].state_dict(), weights(tmp_path, "A")
    assert not same(initial, new)
    for key in initial:
        torch.testing.assert_close(saved[key], 0.1 * initial[key] + 0.9 * new[key])
    # Adam's first step changes no weight by more than the learning rate, which begins at a hundredth of its value
    step = max((new[key] - initial[key]).abs().max().item() for key in initial)
    assert step == pytest.approx(0.01, rel=0.05)


def test_the_rate_and_the_decay_warm_up(tmp_path, monkeypatch):
    for name, value in (("lr", 0.1), ("warmup", 3), ("cosine", False), ("ema", 0.3)):
        monkeypatch.setitem(train.PRESETS["tiny"]["train"], name, value)
    rates, step = [], torch.optim.AdamW.step
    spy = lambda optimizer, *args: rates.append(optimizer.param_groups[0]["lr"]) or step(optimizer, *args)  # noqa: E731
    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    averages = record(monkeypatch, train, "update_average")
    call(monkeypatch, "--split", "A", "--run", tmp_path, "--members", 8, "--steps", 5)
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1])
    assert [decay for (_, _, decay), _ in averages] == pytest.approx([1 / 10, 2 / 11, 3 / 12, 0.3, 0.3])
    ema = averages[-1][0][0]
    assert not any(weight.requires_grad for weight in ema.parameters()), "or memory grows with every step"
    monkeypatch.setitem(train.PRESETS["tiny"]["train"], "cosine", True)
    rates.clear()
    call(monkeypatch, "--split", "A", "--run", tmp_path, "--members", 8, "--steps", 5, "--restart")
    falling = [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3 * falling[1], *(0.1 * share for share in falling[2:])])
    assert falling[-1] < 0.1


def test_flips_are_left_to_right_and_half_of_all(tmp_path, monkeypatch):
    """The cifar10 preset mirrors images; the others if asked to."""
    batches = record(monkeypatch, data, "to_float")
    noised = record(monkeypatch, NoiseSchedule, "add_noise")
    call(monkeypatch, "--split", "all", "--run", tmp_path, "--members", 32, "--steps", 4, "--flip")
    assert len(batches) == 4 and train.PRESETS["cifar10"]["train"]["flip"]
    flipped = []
    for (_, x0), ((_, used, _, _), _) in zip(batches, noised, strict=True):
        for image, seen in zip(x0, used, strict=True):
            flipped.append(torch.equal(seen, image.flip(2)))
            assert flipped[-1] or torch.equal(seen, image)
    assert len(flipped) == 128 and 32 < sum(flipped) < 96


@pytest.mark.parametrize("lower", [False, True])
def test_small_networks_are_trained_in_float32(tmp_path, monkeypatch, lower):
    """Also where bfloat16 is faster: the preset decides."""
    assert not train.PRESETS["tiny"]["train"]["bfloat16"] and train.PRESETS["cifar10"]["train"]["bfloat16"]
    monkeypatch.setitem(train.PRESETS["tiny"]["train"], "bfloat16", lower)
    seen = []

    def loss(*args, f=train.training_loss):
        seen.append(torch.is_autocast_enabled("cpu"))
        return f(*args)

    monkeypatch.setattr(train, "training_loss", loss)
    for faster in (True, False):
        monkeypatch.setattr(train, "bfloat16_is_faster", lambda device, faster=faster: faster)
        call(monkeypatch, "--split", "A", "--run", tmp_path, "--members", 8, "--steps", 1, "--restart")
    assert seen == [lower, False]


def test_gradients_are_clipped(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(optimizer, *args):
        gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    monkeypatch.setattr(train, "training_loss", lambda *args, f=train.training_loss: 1000 * f(*args))
    call(monkeypatch, "--split", "A", "--run", tmp_path, *TINY)
    assert norms == pytest.approx([1.0] * 3, abs=1e-3)


def test_bfloat16_is_for_processors_that_gain_by_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    cpu = torch.device("cpu")
    for has, faster in (
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "avx512_f": True}, False),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({"architecture": "aarch64", "bf16": False}, False),
        ({}, False),
    ):
        assert hardware.bfloat16_is_faster(cpu) is faster
    assert hardware.bfloat16_is_faster(torch.device("cuda")) and not hardware.bfloat16_is_faster(torch.device("mps"))


def test_the_papers_scale():
    its = train.PRESETS["cifar10"]
    assert its["unet"] == UNetConfig() and its["members"] is None and its["size"] == 32
    assert (its["train"]["steps"], its["train"]["batch"], its["train"]["lr"]) == (780_000, 128, 2e-4)


def test_long_trainings_on_a_gpu_are_compiled(tmp_path, monkeypatch):
    compiled = []

    def compiles(function, **flags):
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiles)
    monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: torch.zeros(8))  # there is no GPU
    network = UNet(train.SMALL)

    def accelerated(device, steps, wanted=None):
        compiled.clear()
        args = argparse.Namespace(compile=wanted, device=torch.device(device))
        assert hardware.accelerated(network, network, args, steps) is network
        return network in compiled

    assert not accelerated("cuda", 9_999) and accelerated("cuda", 10_000) and not accelerated("cuda", 10_000, False)
    assert not accelerated("cpu", 10**6) and accelerated("cpu", 1, True)
    monkeypatch.undo()

    def no_compiler(function, **flags):
        raise RuntimeError("no working C++ compiler\nwas found")

    monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: torch.zeros(8))
    monkeypatch.setattr(torch, "compile", no_compiler)
    assert not accelerated("cuda", 10_000), "nobody asked for it, and it goes without"
    with pytest.raises(BadInput, match="--compile: .* does not work .*no working C.. compiler was found"):
        accelerated("cpu", 1, True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other allocators")
def test_memory_is_used_again():
    """In the end, a tensor of 64 MB costs none of its 15,625 pages: it is where an earlier one was."""
    faults = "resource.getrusage(resource.RUSAGE_SELF).ru_minflt"
    often = f"[(before := {faults}, torch.ones(16_000_000), {faults} - before)[2] for _ in range(20)]"
    for call, fetched in (("pass", True), ("hardware.reuse_memory()", False)):
        code = f"import resource, sys, torch; sys.path.insert(0, {str(ROOT)!r}); from lab import hardware; {call}"
        code += f"; print({often}[-1])"
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (int(process.stdout) > 10_000) == fetched


def test_a_message_is_one_line_whatever_is_in_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample.py"])

    def main():
        raise BadInput("a\nfile\x1b[2J that is called é")

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2 and capsys.readouterr().err == "sample.py: a?file?[2J that is called é\n"


def test_a_preset_that_could_not_be_read_again_is_refused_before_it_is_trained(tmp_path, monkeypatch):
    tiny = train.PRESETS["tiny"]
    monkeypatch.setitem(tiny, "train", tiny["train"] | {"lr": 11.0})
    with pytest.raises(BadInput, match="settings: lr cannot be 11.0.*train.py's preset"):
        call(monkeypatch, "--split", "A", "--run", tmp_path, *TINY)
    assert tree(tmp_path) == []
    monkeypatch.setitem(tiny, "train", tiny["train"] | {"lr": 1, "ema": 0})
    call(monkeypatch, "--split", "A", "--run", tmp_path, *TINY)
    assert checkpoint.load(tmp_path / "A.pt").settings["lr"] == 1


def test_sigterm_ends_a_script_tidily(tmp_path):
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from lab import cli, files; from pathlib import Path\n"
        "def main():\n"
        "    with files.exclusive(Path('a')), files.atomic_write(Path('a')) as temporary:\n"
        "        temporary.touch(); print('in', flush=True); time.sleep(60)\n"
        "cli.run(main)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n" and len(tree(tmp_path)) == 2
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM and tree(tmp_path) == []


def test_a_run_stays_one_experiment(tmp_path, monkeypatch, capsys):
    call(monkeypatch, "--split", "A", "--run", tmp_path, *TINY)
    capsys.readouterr()
    before = (tmp_path / "A.pt").read_bytes()
    call(monkeypatch, "--split", "A", "--run", tmp_path, *TINY)
    said = capsys.readouterr().out
    assert "is trained already" in said and " steps" not in said, "it is not trained once more"
    with pytest.raises(BadInput, match="A.pt was trained with steps = 3, not 4"):
        call(monkeypatch, "--split", "A", "--run", tmp_path, "--members", 8, "--steps", 4)
    with pytest.raises(BadInput, match="A and B differ .seed = 0, not 1.; give each experiment .* a --run of its own"):
        call(monkeypatch, "--split", "B", "--run", tmp_path, *TINY, "--seed", 1)
    with pytest.raises(BadInput, match="A and B differ .members = 8, not 12.; give each"):
        call(monkeypatch, "--split", "B", "--run", tmp_path, "--members", 12, "--steps", 3)
    with pytest.raises(BadInput, match="B.pt does not exist"):
        call(monkeypatch, "--distill", "cross", "--run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["A.pt"] and (tmp_path / "A.pt").read_bytes() == before
    call(monkeypatch, "--split", "B", "--run", tmp_path, *TINY)
    with pytest.raises(BadInput, match="--members 12: the teachers in .* were trained with 8"):
        call(monkeypatch, "--distill", "cross", "--run", tmp_path, "--members", 12)
    call(monkeypatch, "--split", "A", "--run", tmp_path, "--members", 8, "--steps", 4, "--restart")
    assert checkpoint.load(tmp_path / "A.pt").settings["steps"] == 4


def test_a_model_is_exported_and_judged_alike(tmp_path, monkeypatch):
    """In the field's format it is the same model, on the same members and non-members."""
    unet = UNetConfig(ch=32, mult=(1, 2), attn=(1,), blocks=1, dropout=0.0)
    monkeypatch.setitem(train.PRESETS["tiny"], "unet", unet)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time it is trained already
        call(monkeypatch, "--split", "all", "--run", "run", *TINY, "--export", "out/all.pt")
        assert tree(tmp_path / "out") == ["all-split.npz", "all.pt"]
        for path in (tmp_path / "out").iterdir():
            path.rename(tmp_path / path.name)
    flags = ("--dataset", "toy", "--device", "cpu", "--attack", "pia", "--grid", "50")
    theirs = ("--checkpoint", "all.pt", "--member-split", "all-split.npz", "--size", "16", "--out", "out")
    for which in (("--run", "run"), theirs):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, *which])
        evaluate.main()
    one, other = (json.loads((tmp_path / out / "results.json").read_text())[0] for out in ("run", "out"))
    assert one["auc"] == other["auc"] and one["n_members"] == other["n_members"] == 8
    assert one["held_out_loss"] == pytest.approx(other["held_out_loss"], rel=0.2)  # under other noise


def test_a_published_split_is_halved(tmp_path, monkeypatch):
    members, nonmembers = np.arange(10, 26), np.arange(40, 56)
    np.savez(tmp_path / "split.npz", mia_train_idxs=members, mia_eval_idxs=nonmembers)
    for half in ("A", "B", "all"):
        flags = ("--split", half, "--run", tmp_path, "--steps", 1, "--members", 16)
        call(monkeypatch, *flags, "--member-split", tmp_path / "split.npz")
    a, b, undefended = (set(checkpoint.load(tmp_path / f"{name}.pt").trained_on.tolist()) for name in ("A", "B", "all"))
    assert len(a) == len(b) == 8 and not a & b and a | b == undefended == set(members.tolist())
    assert set(checkpoint.load(tmp_path / "A.pt").split.nonmembers.tolist()) == set(nonmembers.tolist())


def test_images_of_another_size(tmp_path, monkeypatch):
    call(monkeypatch, "--split", "A", "--run", tmp_path, *TINY, "--size", 8)
    dataset = checkpoint.load(tmp_path / "A.pt").dataset
    assert dataset["size"] == 8 and dataset["sha256"] == data.fingerprint(data.toy(8, 0))
    with pytest.raises(BadInput, match="A and B differ .size = 8, not 16.; give each"):
        call(monkeypatch, "--split", "B", "--run", tmp_path, *TINY)
    call(monkeypatch, "--split", "B", "--run", tmp_path, *TINY, "--size", 8)
    with pytest.raises(BadInput, match="--size 16: the teachers in .* were trained with 8"):
        call(monkeypatch, "--distill", "cross", "--run", tmp_path, "--size", 16)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_no_number_ends_the_training(tmp_path, monkeypatch, what):
    """At the next save, too, so that what was saved last is good."""
    asked = []

    def wrong_at_step_7(model, x_t, t, target, f=train.training_loss):
        asked.append(t)
        loss = f(model, x_t, t, target)
        if len(asked) != 7:
            return loss
        # the root's slope at zero is infinite, and the root is not
        return loss * float("inf") if what == "loss" else loss + (loss - loss.detach()).sqrt()

    small = UNetConfig(ch=8, mult=(1,), attn=(), blocks=1, groups=4)
    monkeypatch.setitem(train.PRESETS["tiny"], "unet", small)
    flags = ("--split", "A", "--members", 8, "--steps", 60, "--run", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_loss", wrong_at_step_7)
        for save_every in (1000, -1):
            asked.clear()
            with pytest.raises(BadInput) as refusal:
                call(monkeypatch, *flags, "--save-every", save_every, "--restart")
            t = asked[6]
            assert re.fullmatch(
                f"the {what} of A is no finite number at step 7, of images at t = {t.min()} to {t.max()}; "
                f"{tmp_path}/A.unfinished is from before; .*",
                str(refusal.value),
            )
            assert len(asked) == (50 if save_every == 1000 else 7) and tree(tmp_path) == ["A.unfinished"]
            kept = torch.load(tmp_path / "A.unfinished", weights_only=True)
            assert kept["state"]["step"] == (0 if save_every == 1000 else 6)
            assert all(value.isfinite().all() for value in kept["state"]["weights"].values())
    call(monkeypatch, *flags)
    assert tree(tmp_path) == ["A.pt"]


def test_no_snapshot_is_kept_that_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "training_loss", lambda model, x_t, t, target: model(x_t, t).mean() * float("nan"))
    with pytest.raises(BadInput, match="loss of A is no finite number at step 1, "):
        call(monkeypatch, "--split", "A", "--run", tmp_path, "--members", 8, "--steps", 10, "--snapshots", 5)
    assert tree(tmp_path) == ["A.unfinished"]


# --- sampling and evaluation ---


def test_dualmd_is_made_of_a_and_b_in_this_order(tmp_path, monkeypatch):
    """A answers at timestep 0, and the published attacks ask there."""
    for half in "AB":
        call(monkeypatch, "--split", half, "--run", tmp_path, *TINY)
    made = record(monkeypatch, sample_script, "generate")
    argv = ["sample.py", "--n", "1", "--stride", "500", "--run", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    sample_script.main()
    ((((a, b), *_), _),) = made
    assert same(a.state_dict(), weights(tmp_path, "A")) and same(b.state_dict(), weights(tmp_path, "B"))


def test_grid_shows_the_images_in_order():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 16, 16).clone()
    images[1, :, 0, 2] = 99  # first row, third column
    picture = np.asarray(sample_script.grid(images))
    assert picture.shape == (2 * 64, 3 * 64, 3)
    assert picture[32::64, 32::64, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
    assert (picture[0:4, 64 + 8 : 64 + 12] == 99).all() and (picture == 99).sum() == 3 * 16


# --- refusals: one line, status 2, nothing written ---


def scene(folder):
    """Directories that are not what they should be."""
    (folder / "pictures").mkdir()
    (folder / "pictures" / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "photographs").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / "photographs" / name)
    (folder / "cut" / "cifar-10-batches-bin").mkdir(parents=True)
    for i in range(1, 6):
        (folder / "cut" / "cifar-10-batches-bin" / f"data_batch_{i}.bin").write_bytes(bytes(3073 * 4 - (i == 2)))
    (folder / "foreign").mkdir()
    torch.save({"ema_model": {}}, folder / "foreign" / "all.pt")
    (folder / "pickled").mkdir()
    (folder / "pickled" / "all.pt").write_bytes(pickle.dumps({"scores": [1, 2]}))
    (folder / "evil" / "cifar-10-batches-py").mkdir(parents=True)
    for i in range(1, 6):
        (folder / "evil" / "cifar-10-batches-py" / f"data_batch_{i}").write_bytes(b"cos\nsystem\n(S'touch it-ran'\ntR.")
    (folder / "evil" / "model.pt").write_bytes(b"cos\nsystem\n(S'touch it-ran'\ntR.")


REFUSALS = {
    "evaluate.py --attack pia": "no trained model in runs/cifar10/: train one .*",
    "evaluate.py --attack guess": "argument --attack: invalid choice: 'guess' .*",
    "evaluate.py --run foreign": "foreign/all.pt is not a checkpoint of this project: .*",
    "evaluate.py --run pickled": "pickled/all.pt is not a checkpoint of this project: .*",
    "evaluate.py --fid --memorization": "argument --memorization: not allowed with argument --fid .*",
    "fid.py pictures cut": "pictures holds 1 images .*; 2 or more are needed",
    "fid.py photographs photographs --inception-weights gone.pth": "argument --inception-weights: gone.pth: No such .*",
    "reproduce.py --inception-weights foreign/all.pt": "foreign/all.pt is not a file of Inception-v3's weights, .*",
    "sample.py --model dual": "runs/cifar10/A.pt does not exist",
    "sample.py --run foreign --model all": "foreign/all.pt is not a checkpoint of this project: .*",
    "sample.py --eta 2": "--eta 2.0: must be between 0 and 1",
    "train.py": "one of the arguments --split --distill is required .*",
    "train.py --split A --dataset toy --dropout 1": "no file may hold such a model .unet: dropout cannot be 1.0.: .*",
    "train.py --split A --dataset toy --weight-decay -1": "no file .* .settings: weight_decay cannot be -1.0.: .*",
    "train.py --split C": "argument --split: invalid choice: 'C' .*",
    "train.py --split A --data-dir nowhere": "--data-dir nowhere: no such directory; .*",
    "train.py --split A --data-dir pictures": "--data-dir pictures: no cifar-10-batches-bin/data_batch_1.bin in it; .*",
    "train.py --split A --data-dir cut": "cut/.*/data_batch_2.bin: 12,291 bytes is no whole number of .*",
    "train.py --split A --dataset toy --run foreign": "foreign/all.pt is not a checkpoint of this project: .*",
    "train.py --split A --dataset toy --members 7": "--members 7: must be even, and from 2 to 512 .*",
    "train.py --split A --dataset toy --members 0": "argument --members: 0 is not a whole number from 1 .*",
    "train.py --split reference --dataset toy --members 512": "--split reference: all 512 .* fewer --members, .*",
    "evaluate.py --attack pia --reference gone.pt --run foreign": "argument --reference: gone.pt: No such file .*",
    "train.py --split A --dataset toy --seed -1": "argument --seed: -1 is not a whole number from 0 .*",
    "train.py --split A --device warp": "argument --device: this machine's torch has no device 'warp' .*",
    "train.py --split A --dataset toy --run pictures/cat.png": "cannot write into pictures/cat.png: it is no .*",
    "train.py --distill cross": "runs/cifar10/A.pt does not exist",
    "reproduce.py --attack pia pai": "argument --attack: invalid choice: 'pai' .*",
    "reproduce.py --seeds 0": "argument --seeds: 0 is not a whole number from 1 .*",
    "train.py --split A --dataset toy --member-split cut": "argument --member-split: cut: Is a directory .*",
    "train.py --split A --dataset toy --export x.pt": r"--export: this preset has GroupNorm\(4\), pytorch-ddpm's .*",
    "train.py --split A --dataset toy --size 18": "--size 18: must be at most 1024, and a multiple of 4, .*",
    "train.py --split A --dataset stl10 --data-dir pictures": "--data-dir pictures: no stl10_binary/unlab.* in it; .*",
    "train.py --split A --dataset tiny-imagenet --data-dir pictures": "--data-dir pictures: no tiny-ima.* in it; .*",
    "train.py --split A --dataset folder": "--dataset folder: which[?] .*",
    "train.py --split A --dataset folder --data-dir pictures": "--members 128: .* from 2 to 0 with these 1 images",
    "train.py --split A --data-dir evil": "evil/cifar-10-batches-py/data_batch_1 is no CIFAR batch for Python .*",
    "evaluate.py --dataset toy --checkpoint evil/model.pt": "evil/model.pt is not a checkpoint in pytorch-ddpm's .*",
    "evaluate.py --dataset toy --checkpoint foreign/all.pt": "foreign/all.pt holds another network than .*",
    "evaluate.py --dataset toy --checkpoint gone.pt": "argument --checkpoint: gone.pt: No such file .*",
}


def refused(monkeypatch, capfd, folder, command):
    """What a script prints to stderr, when it is started inside `folder` and ends with exit status 2."""
    script, *flags = command.split()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # a script's handlers would outlive it
    with pytest.raises(SystemExit) as end:
        cli.run(importlib.import_module(script.removesuffix(".py")).main)
    assert end.value.code == 2
    return capfd.readouterr().err


@pytest.mark.parametrize("command, message", REFUSALS.items())
def test_refusals(tmp_path, monkeypatch, capfd, command, message):
    scene(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(data, "TOY_IMAGES", 1024)
    error = [line for line in refused(monkeypatch, capfd, tmp_path, command).splitlines() if "it/s" not in line]
    assert len(error) == 1, error
    assert re.fullmatch(f"{command.split()[0]}: {message}", error[0])
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--members 7", "--members 7: must be even, .*"),
        ("--dataset cifar10 --data-dir nowhere", "--data-dir nowhere: no such directory; .*"),
    ],
)
def test_what_a_study_runs_says_what_is_wrong(tmp_path, monkeypatch, capfd, flags, says):
    monkeypatch.setattr("reproduce.run_all", lambda *jobs: pytest.fail("a command was started"))
    error = refused(monkeypatch, capfd, tmp_path, f"reproduce.py {flags}")
    assert re.fullmatch(f"reproduce.py: {says}\n", error), error
    assert tree(tmp_path) == []


# --- the whole story, on real images ---


@pytest.fixture(scope="module")
def trained(real_images, tmp_path_factory):
    """A run on real CIFAR-10 at 8x8, small enough for a test and long enough for memorisation to begin."""
    folder = tmp_path_factory.mktemp("end-to-end")
    size = f"--data-dir {real_images} --device cpu --members 32 --steps 400 --preset tiny --size 8".split()

    def train_one(model):
        os.chdir(folder)
        sys.argv = ["train.py", *model.split(), *(size[:4] if "--distill" in model else size)]
        train.main()

    for models in (("--split A", "--split B"), ("--split all", "--distill cross")):
        forks = [multiprocessing.get_context("fork").Process(target=train_one, args=(model,)) for model in models]
        for fork in forks:
            fork.start()
        for fork in forks:
            fork.join()
    assert len(list(folder.glob("runs/cifar10/*.pt"))) == 4
    return folder


def evaluated(trained, monkeypatch, *attacks):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(metrics, "RESAMPLES", 10)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--device", "cpu", "--attack", *attacks])
    evaluate.main()


@pytest.mark.slow
def test_the_defence_defends(trained, monkeypatch):
    evaluated(trained, monkeypatch, "loss", "sima")
    rows = json.loads((trained / "runs" / "cifar10" / "results.json").read_text())
    auc = {(row["model"], row["attack"], row["protocol"]): row["auc"] for row in rows}
    models = ["undefended", "DualMD pipeline", "DualMD unmixed", "DualMD leaked", "DistillMD"]
    assert list(auc) == [(m, a, p) for m in models for a in ("loss", "sima") for p in ("published", "adaptive")]
    # measured for seeds 0 and 1, published: loss 0.90 0.87, 0.72 0.79, 0.90 0.93, 0.90 0.92, 0.55 0.62;
    # sima 0.97 0.98, 0.75 0.81, 1.00 1.00, 1.00 1.00, 0.56 0.58. PIA and SecMI see nothing at 8x8.
    for attack in ("loss", "sima"):
        for protocol in ("published", "adaptive"):
            undefended, pipeline, unmixed, leaked, student = (auc[model, attack, protocol] for model in models)
            assert min(undefended, unmixed, leaked) > 0.8, (attack, protocol)
            assert 0.85 > pipeline > 0.5 and student < 0.75
    assert auc["undefended", "sima", "published"] > 0.93 and auc["DistillMD", "sima", "published"] < 0.65


@pytest.mark.slow
def test_samples_are_a_picture(trained):
    result = run("sample.py", "--model", "dual", "--n", 5, cwd=trained)
    assert result.returncode == 0, result.stderr
    assert Image.open(trained / "runs" / "cifar10" / "samples-dual.png").size == (192, 128)


@pytest.mark.slow
def test_one_half_alone_is_attacked_on_its_own_images(trained, monkeypatch, capsys):
    for name in ("B", "all", "distill-cross"):
        (trained / "runs" / "cifar10" / f"{name}.pt").unlink()
    evaluated(trained, monkeypatch, "loss")
    said = capsys.readouterr().out
    row = re.search(r"^\| A alone +\| [\d.]+ +\| loss +\| predictions \| ([\d.]+)", said, re.MULTILINE)
    assert float(row[1]) > 0.75, "A is attacked on its own 16 images"


def test_every_script_finds_another_dataset(tmp_path, monkeypatch, capsys):
    """Drawn images as STL-10 stores its photographs: every script finds them, and reads the same."""
    drawn = data.toy(96, 0)
    folder = tmp_path / "data" / "stl10_binary"
    folder.mkdir(parents=True)
    (folder / "unlabeled_X.bin").write_bytes(drawn.transpose(2, 3).contiguous().numpy().tobytes())
    monkeypatch.chdir(tmp_path)
    for module, flags in (
        (train, "--split A --members 8 --steps 2"),
        (evaluate, "--attack loss --grid 100 --print-only"),
        (sample_script, "--model A --n 1 --stride 500"),
    ):
        monkeypatch.setattr(sys, "argv", [module.__file__, "--dataset", "stl10", "--device", "cpu", *flags.split()])
        module.main()
    said = capsys.readouterr().out
    assert "runs/stl10: stl10 at 16x16, 8 members, 8 non-members, seed 0" in said and "| A alone " in said
    dataset = checkpoint.load(tmp_path / "runs" / "stl10" / "A.pt").dataset
    assert dataset["sha256"] == data.fingerprint(data.resize_by_pillow(drawn, 16))
    assert (tmp_path / "runs" / "stl10" / "samples-A.png").exists()
