"""evaluate.py and releases.py: which model is attacked on which images, what is kept, and what is written."""

import argparse
import dataclasses
import functools
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
from conftest import Spy, few_steps, same, settings, tree
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import attacks
import data
import dualmd
import evaluate
import fid
import metrics
from dualmd import DualMD, NoiseSchedule, denoise
from lab import attackers, checkpoint, cli, figures, files, hardware, releases, reports, tables
from lab.files import BadInput
from lab.published import load_published, publish
from lab.releases import EvaluatedRun
from unet import UNet, UNetConfig

CONFIG = UNetConfig(ch=8, mult=(1,), attn=(), blocks=1, dropout=0.0, groups=2)
MEMBERS = 12


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """40 images of 8x8, and few resamples."""
    images = data.toy(8, 0, n=40)
    monkeypatch.setattr(data, "load", lambda name, data_dir, size, seed: images)
    monkeypatch.setattr(data, "count", lambda name, data_dir: len(images))
    monkeypatch.setattr(metrics, "RESAMPLES", 20)
    return images


def make_run(folder, images, names=checkpoint.NAMES, seed=0, members=MEMBERS, steps=3):
    """A run of untrained networks, each different, with outputs that are not zero."""
    split = data.index_split(len(images), members, seed)
    for i, name in enumerate(names):
        torch.manual_seed(10 * seed + i)
        model = UNet(CONFIG)
        torch.nn.init.normal_(model.tail[-1].weight, std=0.1)
        dataset = {"name": "toy", "data_dir": None, "size": 8, "seed": seed, "sha256": data.fingerprint(images)}
        its = settings(steps=steps, seed=seed)
        checkpoint.save(folder, checkpoint.Checkpoint(name, dataset, split, its, CONFIG, model.state_dict()))
    return split


def call(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--dataset", "toy", "--device", "cpu", *map(str, flags)])
    evaluate.main()


def rows_of(folder):
    rows = json.loads((folder / "results.json").read_text())
    return {(row["model"], row["attack"], row["protocol"]): row for row in rows}


def scaled(scores):
    low, centre, high = np.quantile(scores, [0.25, 0.5, 0.75])
    return (scores - centre) / (high - low)


@pytest.mark.slow
def test_each_release_is_attacked_through_its_own_models(tmp_path, monkeypatch, small):
    """Every published AUC once more, straight from attacks.py and the checkpoints, without and with a reference."""
    split = make_run(tmp_path, small)
    monkeypatch.setattr(metrics, "RESAMPLES", 2)
    monkeypatch.setattr(figures, "roc_curves", lambda *args: None)  # takes long to draw, and is drawn in another test
    monkeypatch.setattr(attacks, "secmi_nn", functools.partial(attacks.secmi_nn, steps=2))
    call(monkeypatch, "--run", tmp_path, "--attack", "all", "--grid", 20, 50)
    models = {name: one.eps_model() for name, one in checkpoint.load_run(tmp_path).items()}
    x0 = data.to_float(small[torch.cat([split.members, split.nonmembers])])
    dual = models["dual"] = DualMD(models["A"], models["B"])
    assert dual.stride == 10, "A answers at t = 0"
    models |= {half: attacks.isolate_half(dual, half[-1]) for half in ("as A", "as B")}

    def scores(attack, t, name, calibrated):
        def attacked(name):
            kwargs = {}
            if attack in ("loss", "rediffuse"):
                kwargs["generator"] = torch.Generator().manual_seed(cli.seed_for(0, "attack", attack, t))
            return getattr(attacks, attack)(models[name], NoiseSchedule(), x0, t, **kwargs).double().numpy()

        if not calibrated:
            return attacked(name)
        return np.log(attacked("reference") / attacked(name))

    rows = rows_of(tmp_path)
    released = {"undefended": ["all"], "DualMD leaked": ["A", "B"]}
    released |= {"DistillMD": ["distill-cross"], "averaged targets": ["distill-average"]}
    released |= {"ordinary distillation": ["distill-single"]}
    service = {"DualMD pipeline": ["dual"]}
    expected = {
        "loss": (200, "predictions", released | service | {"DualMD unmixed": ["as A", "as B"]}),
        "secmi": (100, "predictions", released | service | {"DualMD unmixed": ["as A", "as B"]}),
        "rediffuse": (200, "images", released | service),
    }
    for attack, (t, holds, attacked) in expected.items():
        for label, calibrated in ((attack, False), (f"{attack}-ref", True)):
            its = {model for model, name, protocol in rows if (name, protocol) == (label, "published")}
            assert its == set(attacked), "weights are not asked of a service, nor a side of images from both"
            for model, names in attacked.items():
                row, found = rows[model, label, "published"], [scores(attack, t, name, calibrated) for name in names]
                found = np.maximum(*map(scaled, found)) if len(found) == 2 else found[0]
                assert row["auc"] == pytest.approx(metrics.auc(found[:MEMBERS], found[MEMBERS:]), abs=0.008)
                assert (row["t"], row["sign"], row["holds"]) == ([t], [1], holds)
                assert row["rule"] == (["max"] if len(names) == 2 else [])
                assert set(rows[model, label, "adaptive"]["t"]) <= {20, 50, t}
    assert {model for model, name, _ in rows if name == "gsa"} == set(released), "a service keeps its weights"
    assert {label for _, label, _ in rows} == {
        *attacks.HOLDS,
        *(f"{attack}-ref" for attack in attacks.HOLDS),
        tables.KEPT_SIGN,
    }


def test_of_two_models_the_adaptive_attacker_tries_the_sum_too(tmp_path, small):
    make_run(tmp_path, small)
    training = EvaluatedRun(tmp_path, evaluate_args())
    members, nonmembers = training.scores("DualMD leaked", {"pia": [50, 200]})["pia"]
    assert members.shape == nonmembers.shape == (4, MEMBERS)
    models = [training.models[half].eps_model() for half in "AB"]
    x0 = data.to_float(small[torch.cat([training.first.split.members, training.first.split.nonmembers])])
    for row, t, rule in ((0, 50, np.maximum), (1, 200, np.maximum), (2, 50, np.add), (3, 200, np.add)):
        found = rule(*(scaled(attacks.pia(model, NoiseSchedule(), x0, t).numpy()) for model in models))
        np.testing.assert_allclose(members[row].numpy(), found[:MEMBERS], rtol=1e-2, atol=1e-3)
    one, other = np.zeros((2, 6)), np.zeros((2, 6))  # rows: max and sum at one t, of which the sum tells
    one[1] += 1
    (_, row), _ = evaluate.judge("pia", torch.from_numpy(one), torch.from_numpy(other), [50], 50, evaluate_args())
    assert (row["t"], row["auc"], row["rule"]) == ((50, 50), 1, ["sum", "sum"])


@pytest.mark.parametrize("attack, shape", [("secmi_nn", (3, 8, 8)), ("gsa", (3,))])
def test_who_learns_is_scored_by_the_other_half(tmp_path, monkeypatch, small, attack, shape):
    """Who is scored is never among those that were learned from, and both are of both kinds."""
    seen = []

    def spy(features, is_member, others, **seed):
        assert seed == ({"seed": 0} if attack == "secmi_nn" else {})
        features, others = (each.view(*each.shape[:2], -1)[:, :, 0] for each in (features, others))
        seen.append((features[:, 0], is_member, others[:, 0], features.shape[1:]))
        return others[:, 0]

    monkeypatch.setattr(attacks, attack, spy)
    number = torch.arange(4 * 20).view(4, 20, *[1] * len(shape)).expand(4, 20, *shape).half()  # two models at two t
    rows, _ = evaluate.judge(attack, number[:, :12], number[:, 12:], [50, 100], 100, evaluate_args())
    pair = attackers.learned(attack, number[1::2, :12], number[1::2, 12:], 0, "cpu")
    for features, is_member, others, shape in seen:
        assert shape[0] in (6, 12)
        numbers = features if shape[0] == 12 else features - 20
        assert torch.equal(is_member, numbers < 12)
        assert not set(features.tolist()) & set(others.tolist()) and len(features) == len(others) == 10
    assert [list(scores) for scores in pair] == [list(range(20, 32)), list(range(32, 40))]
    assert rows[1]["t"] == (50, 100) and rows[1]["asr"] == 11 / 20  # all above 0 but the first: 11 members right


def test_the_adaptive_attacker_chooses_among_the_grid(tmp_path, monkeypatch, small):
    make_run(tmp_path, small, ["all"])
    seen = {}
    judge = metrics.adaptive

    def spy(members, nonmembers, seed, flips):
        seen.update(members=members, nonmembers=nonmembers, seed=seed)
        return judge(members, nonmembers, seed, flips)

    monkeypatch.setattr(metrics, "adaptive", spy)
    call(monkeypatch, "--run", tmp_path, "--attack", "loss", "--grid", 300, 50, "--seed", 4)
    training = EvaluatedRun(tmp_path, evaluate_args(seed=4))
    for i, t in enumerate([50, 200, 300]):
        ((members, nonmembers),) = training.scores("undefended", {"loss": [t]}).values()
        assert torch.equal(members[0], seen["members"][i]) and torch.equal(nonmembers[0], seen["nonmembers"][i])
    assert seen["seed"] == 4 and len(seen["members"]) == 3
    row = rows_of(tmp_path)["undefended", "loss", "adaptive"]
    result = judge(seen["members"], seen["nonmembers"], 4)
    assert row["t"] == [[50, 200, 300][choice] for choice, _ in result.choices]
    assert row["sign"] == [sign for _, sign in result.choices]
    assert (row["auc"], row["asr"], tuple(row["auc_95"])) == (result.curve.auc, result.asr, result.interval)


def test_secmi_is_judged_with_its_published_sign_too(tmp_path, monkeypatch, small, capsys):
    """t is picked, the sign is not. Its AUC over t is that of all images, and so may be below 0.5."""
    make_run(tmp_path, small, ["all", "A", "B"])
    monkeypatch.setattr(metrics, "RESAMPLES", 2)
    call(monkeypatch, "--run", tmp_path, "--attack", "secmi", "--grid", 20, 50)
    rows, training = rows_of(tmp_path), EvaluatedRun(tmp_path, evaluate_args())
    said = capsys.readouterr().out
    assert "3 steps for each model; DualMD's pipeline: A where t // 10 is even, else B\n" in said
    assert {attack for _, attack, _ in rows} == {"secmi", "secmi, published sign"}
    over_t = {(row["model"], row["t"]): row for row in json.loads((tmp_path / "t.json").read_text())}
    for release in ("undefended", "DualMD pipeline", "DualMD leaked"):
        scores = training.scores(release, {"secmi": [20, 50, 100]})["secmi"]
        for protocol in ("published", "adaptive"):
            row = rows[release, "secmi, published sign", protocol]
            assert set(row["sign"]) == {1} and row["holds"] == "predictions"
        assert row["auc"] == metrics.adaptive(*scores, flips=False).curve.auc
        assert rows[release, "secmi", "adaptive"]["auc"] == metrics.adaptive(*scores).curve.auc
    curves = [(release, t) for release in ("undefended", "DualMD pipeline") for t in (20, 50, 100)]
    assert list(over_t) == curves, "with two models the attacker picks more than t"
    for (release, t), row in over_t.items():
        sides = training.scores(release, {"secmi": [t]})["secmi"]
        assert row["auc"] == metrics.auc(*(side[0].numpy() for side in sides)) and row["attack"] == "secmi"
    assert min(Image.open(tmp_path / "t.png").size) > 300

    checkpoint.save(tmp_path, dataclasses.replace(checkpoint.load(tmp_path / "A.pt"), settings=settings(steps=2)))
    call(monkeypatch, "--run", tmp_path, "--memorization", "--n", 1, "--print-only")
    assert "steps: all 3, A 2, B 3; DualMD's pipeline" in capsys.readouterr().out


def test_the_papers_table_beside_ours(tmp_path, monkeypatch, small):
    make_run(tmp_path, small, ["all", "distill-cross"])
    monkeypatch.setattr(metrics, "RESAMPLES", 2)
    call(monkeypatch, "--run", tmp_path, "--attack", "secmi", "--grid", 20, "--print-only")
    runs, names = [EvaluatedRun(tmp_path, evaluate_args())], ("undefended", "DistillMD")
    rows = [
        {"model": model, "attack": attack, "protocol": protocol, "t": (t, t), "auc": auc, "tpr_at_1": auc / 2}
        for attack, much in (("secmi", 0.3), ("secmi, published sign", 0), ("secmi-ref", 0.2))
        for protocol, t, auc in (("published", 100, 0.4 + much), ("adaptive", 20, 0.6 + much))
        for model, auc in zip(names, (auc, auc - 0.2), strict=True)
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.beside_the_paper(runs, rows)[1:]]
    assert lines[2][:3] == ["the paper, CIFAR-10", "0.93", "0.59"] and len(lines) == 2 + 4 + 2
    assert lines[6] == ["ours, toy, t = 100", "0.40", "0.20", "0.20", "0.10", "8x8", "12", "3"]
    assert lines[7] == ["ours, toy, t picked", "0.60", "0.40", "0.30", "0.20", "8x8", "12", "3"]
    assert tables.beside_the_paper(runs, [row for row in rows if row["model"] == "undefended"]) == []


def test_a_flipped_sign_is_marked():
    rows = [
        {"attack": attack, "model": model, "protocol": "adaptive", "auc": 0.7, "sign": sign}
        for attack, model, sign in [("pia", "one", (1, 1)), ("pia", "two", (-1, -1)), ("secmi", "one", (-1, 1))]
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.overview(rows)]
    assert lines[2:4] == [["pia", "0.700", "0.700 −"], ["secmi", "0.700 ±", "–"]]


def evaluate_args(seed=0, batch=256):
    return argparse.Namespace(seed=seed, batch=batch, device=torch.device("cpu"), data_dir=None, reference=None)


def test_held_out_loss_is_that_of_images_no_model_saw(tmp_path, small):
    split = make_run(tmp_path, small)
    training = EvaluatedRun(tmp_path, evaluate_args())
    x0 = data.to_float(small[split.nonmembers])
    schedule, model = NoiseSchedule(), training.models["all"].eps_model()
    generator = torch.Generator().manual_seed(1)
    losses = []
    for t in range(0, 1000, 20):  # other noise, more timesteps
        eps = torch.randn(x0.shape, generator=generator)
        ts = torch.full((len(x0),), t)
        losses.append((model(schedule.add_noise(x0, t, eps), ts) - eps).square().mean().item())
    assert training.held_out_loss("undefended") == pytest.approx(np.mean(losses), rel=0.03)
    assert training.held_out_loss("DualMD leaked") == training.held_out_loss("DualMD pipeline")
    assert training.held_out_loss("DualMD pipeline") != training.held_out_loss("undefended")


def test_scores_are_kept_until_what_they_depend_on_changes(tmp_path, monkeypatch, small):
    make_run(tmp_path, small, ["all", "A", "B"])
    attacked = []
    original = releases.attack_scores

    def spy(eps_model, schedule, x0, attackers, args, name):
        attacked.append((name, [*attackers]))
        return original(eps_model, schedule, x0, attackers, args, name)

    def scores(release="undefended", ts=(100, 200), seed=0):
        attacked.clear()
        return EvaluatedRun(tmp_path, evaluate_args(seed)).scores(release, {"pia": list(ts)})["pia"]

    monkeypatch.setattr(releases, "attack_scores", spy)
    first = scores()
    assert attacked == [("all", [("pia", 100), ("pia", 200)])]
    again = scores(ts=(200, 100))
    assert attacked == [] and torch.equal(again[0], first[0].flip(0))
    third = scores(ts=(100, 150, 200))
    assert attacked == [("all", [("pia", 150)])] and torch.equal(third[0][[0, 2]], first[0])
    scores("DualMD leaked")
    assert [name for name, _ in attacked] == ["A", "B"]
    scores("DualMD pipeline")
    assert [name for name, _ in attacked] == ["dual"]
    scores(seed=1)
    assert attacked, "another seed, other noise"

    (tmp_path / "scores" / "all-pia-100.npz").write_bytes(b"PK\x03\x04 damaged")
    scores()
    assert ("pia", 100) in attacked[0][1]
    scores("DualMD pipeline")
    assert not attacked
    damaged = checkpoint.load(tmp_path / "B.pt")
    damaged.weights["head.bias"] += 1
    checkpoint.save(tmp_path, damaged)
    scores("DualMD pipeline")
    assert attacked, "B has other weights"
    scores()
    assert not attacked, "the undefended model has not"
    monkeypatch.setattr(files, "FORMULA", "another")
    scores()
    assert attacked, "an attack has been changed"


def test_scores_do_not_depend_on_the_batch_nor_on_other_timesteps(tmp_path, small):
    make_run(tmp_path / "one", small, ["all"])
    make_run(tmp_path / "two", small, ["all"])
    wanted = {"loss": [50, 200], "pia": [50, 200], "secmi": [50, 200]}
    one = EvaluatedRun(tmp_path / "one", evaluate_args()).scores("undefended", wanted)
    training = EvaluatedRun(tmp_path / "two", evaluate_args(batch=7))
    for attack in wanted:
        ((members, nonmembers),) = training.scores("undefended", {attack: [200]}).values()
        np.testing.assert_allclose(members[0], one[attack][0][1], rtol=1e-3)
        np.testing.assert_allclose(nonmembers[0], one[attack][1][1], rtol=1e-3)


def test_remembering_answers_alike_and_asks_once():
    spy = Spy(lambda x, t: x * 0.1 + t[:, None, None, None] / 1000)
    x0 = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule, ask = NoiseSchedule(), releases.memoize(spy)
    for attack, t in (("secmi", 100), ("secmi", 50), ("secmi", 200), ("pia", 200), ("pian", 200)):
        found = getattr(attacks, attack)(ask, schedule, x0, t)
        assert torch.equal(found, getattr(attacks, attack)(spy.answer, schedule, x0, t))
    # SecMI: 0, 10, ..., 200; PIA shares the question at 0, and asks one at 200, as does PIAN
    assert sorted(spy.timesteps) == sorted([*range(0, 201, 10), 200, 200])
    ask(x0, torch.tensor([1, 2, 3]))
    assert torch.equal(ask(x0, torch.tensor([1, 2, 4])), spy.answer(x0, torch.tensor([1, 2, 4])))


def test_many_timesteps_cost_hardly_more_questions_than_the_last():
    x0 = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for attack, ts, questions in (("pia", range(10, 310, 10), 31), ("secmi", range(10, 310, 10), 31)):
        spy = Spy(lambda x, t: x * 0.1)
        attackers = {(attack, t): releases.attacker_at(attack, t, torch.Generator()) for t in ts}
        list(releases.attack_scores(spy, NoiseSchedule(), x0, attackers, evaluate_args(), "spy"))
        assert len(spy.asked) == questions and all(len(x) == 5 for x, _ in spy.asked)


def test_half_a_run(tmp_path, small):
    """A alone is attacked on its own images; where B stands beside it, only both together."""
    split = make_run(tmp_path, small, ["B"])
    training = EvaluatedRun(tmp_path, evaluate_args())
    assert training.releases == ["B alone"]
    (members, nonmembers), x0 = training.scores("B alone", {"pia": [200]})["pia"], data.to_float(small)
    model = training.models["B"].eps_model()
    assert members.shape == nonmembers.shape == (1, MEMBERS // 2)
    for found, indices in ((members, split.b), (nonmembers, split.nonmembers[: MEMBERS // 2])):
        expected = attacks.pia(model, NoiseSchedule(), x0[indices], 200)
        np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-3)
    make_run(tmp_path, small, ["A", "distill-cross"])
    assert EvaluatedRun(tmp_path, evaluate_args()).releases == [
        "DualMD pipeline",
        "DualMD unmixed",
        "DualMD leaked",
        "DistillMD",
    ]


@pytest.mark.slow
def test_what_is_written(tmp_path, monkeypatch, small, capsys):
    monkeypatch.setattr(metrics, "RESAMPLES", 10)
    runs = [tmp_path / "seed-0", tmp_path / "seed-1"]
    for seed, run in enumerate(runs):
        make_run(run, small, seed=seed)
        make_run(checkpoint.snapshot_in(run, 1), small, ["all", "A", "B"], seed=seed, steps=1)
        said = PngInfo()
        said.add_text("Description", f"dualmd sample {EvaluatedRun(run, evaluate_args()).identity('dual')}")
        Image.new("RGB", (8, 8)).save(run / "samples-dual.png", pnginfo=said)
        Image.new("RGB", (8, 8)).save(run / "samples-all.png")  # of a model that is there no more
    flags = ("--attack", "pia", "loss", "--grid", 50)
    call(monkeypatch, "--run", runs[0], *flags, "--print-only")
    assert not (runs[0] / "table.md").exists() and "undefended" in capsys.readouterr().out
    for run in runs:
        call(monkeypatch, "--run", run, *flags)
    capsys.readouterr()
    call(monkeypatch, "--run", *runs, *flags)
    drawn = ["roc.png", "samples.png", "steps.png", "t.png"]
    for folder in (*runs, tmp_path):
        assert {"results.json", "steps.json", "table.md", *drawn} <= {path.name for path in folder.iterdir()}
        for name in drawn:
            assert min(Image.open(folder / name).size) > 300
    printed = capsys.readouterr().out
    assert printed.startswith((tmp_path / "table.md").read_text().partition("\n<!--")[0])

    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == 7 * 2 * 2 * 2 * 2  # targets, attacks, each without and with the reference, protocols, seeds
    for row in rows:
        assert " ".join(row) == (
            "model attack holds held_out_loss run seed command protocol t sign rule "
            "auc auc_95 asr tpr_at_1 tpr_at_01 n_members n_nonmembers mark"
        )
        assert row["tpr_at_1"] is None and row["n_members"] == row["n_nonmembers"] == MEMBERS
        assert row["command"].startswith("python evaluate.py --dataset toy")
        assert row["auc_95"][0] <= row["auc_95"][1]
    first, second = (rows_of(run)["DualMD leaked", "pia", "adaptive"] for run in runs)
    line = next(line for line in printed.splitlines() if re.match(r"\| DualMD leaked +\| [\d.]+ +\| pia", line))
    low, high = sorted([first["auc"], second["auc"]])
    assert line.split("|")[9].strip() == f"{(low + high) / 2:.3f} [{low:.2f} {high:.2f}]"
    overview = printed[printed.index("| adaptive AUC") :].splitlines()
    header, row, strongest = (
        next(line for line in overview if line.startswith(f"| {name}")).split("|")
        for name in ("adaptive AUC", "pia ", "strongest")
    )
    at = [name.strip() for name in header].index("DualMD leaked")
    assert row[at].strip().rstrip(" −±") == f"{(low + high) / 2:.3f}"
    means = {}
    for its in rows:
        if its["model"] == "DualMD leaked" and its["protocol"] == "adaptive":
            means[its["attack"]] = means.get(its["attack"], 0) + its["auc"] / 2
    assert strongest[at].strip() == f"{max(means, key=means.get)} {max(means.values()):.3f}"
    alone = (runs[0] / "table.md").read_text()
    line = next(line for line in alone.splitlines() if re.match(r"\| DualMD leaked +\| [\d.]+ +\| pia", line))
    assert line.split("|")[9].strip() == "{:.3f} [{:.2f} {:.2f}]".format(first["auc"], *first["auc_95"])

    steps = json.loads((tmp_path / "steps.json").read_text())
    assert {(row["seed"], row["steps"], row["model"]) for row in steps} >= {
        (0, 1, "undefended"),
        (1, 3, "undefended"),
    }
    assert ("DistillMD", 1) not in {(row["model"], row["steps"]) for row in steps}
    final = [row["auc"] for row in steps if (row["model"], row["attack"], row["steps"]) == ("undefended", "pia", 3)]
    assert final == [rows_of(run)["undefended", "pia", "published"]["auc"] for run in runs]


def test_picks_of_timesteps_and_signs():
    def picks(*rows):
        return tables.cell([{"t": t, "sign": sign} for t, sign in rows], "t", "picks")

    assert picks(((100, 100), (1, 1))) == "100"
    assert picks(((100, 50), (-1, -1))) == "−50…100"
    assert picks(((100, 50), (1, 1)), ((200, 50), (-1, 1))) == "±50…200"


def test_refusals(tmp_path, monkeypatch, small):
    make_run(tmp_path / "one", small, ["all"])
    make_run(tmp_path / "fewer", small, ["all"], members=8)
    with pytest.raises(BadInput, match="fewer and .*one differ .members = 8, not 12.: evaluate each by itself"):
        call(monkeypatch, "--run", tmp_path / "one", tmp_path / "fewer")
    make_run(tmp_path / "other", small, ["all", "reference"], seed=3)
    with pytest.raises(BadInput, match="one has no reference model, and others have"):
        call(monkeypatch, "--run", tmp_path / "one", tmp_path / "other")
    call(monkeypatch, "--run", tmp_path / "one", tmp_path / "other", "--memorization", "--n", 2, "--print-only")
    with pytest.raises(BadInput, match="--reference .*reference.pt: it was trained on images that will be scored"):
        call(monkeypatch, "--run", tmp_path / "one", "--reference", tmp_path / "other" / "reference.pt")
    one = checkpoint.load(tmp_path / "one" / "all.pt")
    nobody = torch.empty(0, dtype=torch.int64)
    for scored in (one.split.members[-1:], one.split.nonmembers[-1:]):
        others = data.Split(one.split.reference, scored, nobody)
        reference = dataclasses.replace(one, split=others)
        checkpoint.save(tmp_path / "scored", reference)
        with pytest.raises(BadInput, match="all.pt: it was trained on images that will be scored"):
            call(monkeypatch, "--run", tmp_path / "one", "--reference", tmp_path / "scored" / "all.pt")
    elsewhere = checkpoint.load(tmp_path / "other" / "reference.pt")
    elsewhere.dataset["sha256"] = "another"
    checkpoint.save(tmp_path / "elsewhere", elsewhere)
    with pytest.raises(BadInput, match="--reference .*: it and the attacked models differ .sha256 = another, not "):
        call(monkeypatch, "--run", tmp_path / "one", "--reference", tmp_path / "elsewhere" / "reference.pt")
    make_run(tmp_path / "nothing", small, ["reference"])
    with pytest.raises(BadInput, match="nothing/ has no model to attack, only a reference"):
        call(monkeypatch, "--run", tmp_path / "nothing")
    with pytest.raises(BadInput, match="secmi: t = 55: .* multiple"):
        call(monkeypatch, "--run", tmp_path / "one", "--attack", "secmi", "--grid", 55)
    with pytest.raises(BadInput, match="pia: t = 1000.* 0 to 999"):
        call(monkeypatch, "--run", tmp_path / "one", "--attack", "pia", "--t", 1000)
    make_run(tmp_path / "two", small, ["all"], members=2)
    call(monkeypatch, "--run", tmp_path / "two", "--attack", "pia", "--print-only")
    nan = checkpoint.load(tmp_path / "one" / "all.pt")
    nan.weights["tail.2.bias"] += 3e38  # the square is too large for a float32
    checkpoint.save(tmp_path / "one", nan)
    with pytest.raises(BadInput, match="loss on all at t = 50: a score is not finite"):
        call(monkeypatch, "--run", tmp_path / "one", "--attack", "pia")
    assert not {"results.json", "scores"} & set(tree(tmp_path / "one")), "nothing is left behind"


def test_a_reference_may_come_from_elsewhere(tmp_path, monkeypatch, small):
    split = make_run(tmp_path / "run", small, ["all"])
    make_run(tmp_path / "attackers", small)
    reference = tmp_path / "attackers" / "reference.pt"
    call(monkeypatch, "--run", tmp_path / "run", "--attack", "pia", "--reference", reference)
    x0 = data.to_float(small[torch.cat([split.members, split.nonmembers])])
    models = [checkpoint.load(path).eps_model() for path in (reference, tmp_path / "run" / "all.pt")]
    theirs, its = (attacks.pia(model, NoiseSchedule(), x0, 200).numpy() for model in models)
    row = rows_of(tmp_path / "run")["undefended", "pia-ref", "published"]
    assert row["auc"] == pytest.approx(metrics.auc((theirs / its)[:MEMBERS], (theirs / its)[MEMBERS:]), abs=1e-9)


def test_memorization_finds_planted_copies_and_only_those(tmp_path, monkeypatch, small, capsys):
    """Of 8 generated images two are of A, and one of B, slightly changed; the undefended model's are new."""
    split = make_run(tmp_path, small, ["all", "A", "B", "reference"])
    new = data.toy(8, 99, n=40)[:8]
    planted = new.clone()
    for row, index in enumerate([split.a[0], split.a[3], split.b[2]]):
        planted[row] = (small[index].short() + torch.randint(-3, 4, (3, 8, 8))).clamp(0, 255).to(torch.uint8)
    asked = []

    def generated(training, release, n):
        asked.append((release, n))
        return planted if release == "DualMD pipeline" else new

    monkeypatch.setattr(EvaluatedRun, "generated", generated)
    call(monkeypatch, "--run", tmp_path, "--memorization", "--n", 8)
    assert asked == [("undefended", 8), ("DualMD pipeline", 8)], "the leaked weights would generate the same"
    undefended, dual = json.loads((tmp_path / "memorization.json").read_text())
    keys = ("model", "n", "copies", "of_a", "of_b", "of_nonmembers")
    assert [dual[key] for key in keys] == ["DualMD pipeline", 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert [undefended[key] for key in keys] == ["undefended", 8, 0, 0, 0, 0]
    assert dual["smallest_ratio"] < 0.1 and dual["nearer_to_members"] >= 3 / 8
    printed = capsys.readouterr().out
    assert printed.startswith((tmp_path / "memorization.md").read_text().partition("\n<!--")[0])
    assert "| 0.375 [0.14 0.69] | 0.250 | 0.125 | 0.000 " in printed  # Wilson's interval of 3 in 8
    assert min(Image.open(tmp_path / "memorization.png").size) > 300

    planted[:] = small[split.nonmembers[:8]]
    call(monkeypatch, "--run", tmp_path, "--memorization", "--n", 8, "--out", tmp_path / "out")
    _, dual = json.loads((tmp_path / "out" / "memorization.json").read_text())
    assert (dual["copies"], dual["of_nonmembers"], dual["nearer_to_members"]) == (0, 1, 0)


def test_generated_images_are_the_samplers(tmp_path, small):
    make_run(tmp_path, small)
    training = EvaluatedRun(tmp_path, evaluate_args(batch=2))
    few = training.generated("DualMD pipeline", 5)
    assert few.shape == (5, 3, 8, 8) and few.dtype == torch.uint8
    generator = torch.Generator().manual_seed(cli.seed_for(0, "memorization"))
    dual = DualMD(*(hardware.for_sampling(training.eps_models[half], 1000) for half in "AB"))
    noise = torch.randn((2, 3, 8, 8), generator=generator)
    assert torch.equal(few[:2], data.to_uint8(denoise(dual, NoiseSchedule(), noise)))
    assert len(few.flatten(1).unique(dim=0)) == 5
    assert (tmp_path / "generated" / "dual.npz").exists(), "kept, though it took no minute"


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bfloat16, error", [(False, 1e-5), (True, 0.02)])
def test_what_generates_is_the_same_network(monkeypatch, wide, bfloat16, error):
    """Up to rounding, and bfloat16 itself would not tell the last timesteps from each other."""
    monkeypatch.setattr(hardware, "bfloat16_is_faster", lambda device: bfloat16)
    torch.manual_seed(0)
    network = UNet(UNetConfig(128, (1, 1), (1,), 1, 0.0, 32) if wide else CONFIG).eval().requires_grad_(False)
    for weight in [weight for weight in network.parameters() if weight.dim() == 4]:  # no branch is near zero
        torch.nn.init.xavier_uniform_(weight)
    network.time_embedding[-1].weight *= 5
    fast, x, before = hardware.for_sampling(network, 1000), torch.randn(2, 3, 8, 8), dict(network.state_dict())
    for t in (0, 1, 499, 998, 999):
        expected, found = (model(x, torch.tensor([t, 7])) for model in (network, fast))
        assert found.dtype == torch.float32 and found.is_contiguous()
        neighbour = network(x, torch.tensor([t - 1 if t else 1, 7]))
        assert (found - expected).norm() < error * expected.norm()
        assert (found - expected)[0].norm() < (neighbour - expected)[0].norm() / 2
    assert same(network.state_dict(), before) and network.head.weight.dtype == torch.float32


def test_however_many_cores_generate_and_attack_the_same(tmp_path, small):
    make_run(tmp_path, small, ["all"])
    network, x_T = checkpoint.load(tmp_path / "all.pt").eps_model(), torch.randn(5, 3, 8, 8)
    args, schedule = types.SimpleNamespace(batch=4, seed=0, device=torch.device("cpu")), NoiseSchedule(T=50)

    def on_cores(cores, function, *its, **how):
        torch.set_num_threads(cores)
        try:
            return function(*its, **how)
        finally:
            assert torch.get_num_threads() == cores
            torch.set_num_threads(1)

    def images(cores, **how):
        generator = torch.Generator().manual_seed(0)
        its = [network], schedule, x_T, args, tmp_path / f"{cores}.npz", str(how)
        return on_cores(cores, lambda: releases.generate(*its, generator=generator, **how))

    for how in ({}, {"stride": 5, "eta": 1.0}, {"method": "ddpm"}):
        assert torch.equal(images(1, **how), images(3, **how)), how
    names = "loss", "pia", "secmi", "rediffuse", "gsa"

    def scores():
        seeded = {(name, 20): releases.attacker_at(name, 20, torch.Generator().manual_seed(0)) for name in names}
        return list(releases.attack_scores(network, schedule, small[:5], seeded, args, "all"))

    for one, several in zip(on_cores(1, scores), on_cores(3, scores), strict=True):
        for its, other in zip(one, several, strict=True):
            torch.testing.assert_close(its, other)


@pytest.mark.parametrize("how", [{}, {"stride": 25}, {"method": "ddpm"}, {"method": "ddpm", "stride": 25}])
def test_two_models_alternate_at_every_step_of_the_sampler(tmp_path, monkeypatch, how):
    """Whichever sampler it is, and A makes the last step. Models that record who was asked say so."""
    asked = []

    def recording(name, T):
        return lambda x, t: asked.append((t[0].item(), name)) or torch.zeros_like(x)

    monkeypatch.setattr(hardware, "for_sampling", recording)
    args, x_T = evaluate_args(batch=2), torch.randn(2, 3, 4, 4)
    schedule, generator = NoiseSchedule(T=100), torch.Generator().manual_seed(0)
    releases.generate(["A", "B"], schedule, x_T, args, tmp_path / "dual.npz", "key", generator=generator, **how)
    stride = 1 if how.get("method") == "ddpm" else how.get("stride", 10)
    assert [t for t, _ in asked] == list(range((99 // stride) * stride, -1, -stride))
    names = "".join(name for _, name in asked)
    assert names == "BA" * (len(asked) // 2) and names[-1] == "A"


def test_generated_images_are_kept_and_go_on(tmp_path, monkeypatch, small):
    make_run(tmp_path, small, ["all", "A", "B"])
    sizes = []

    few_steps(monkeypatch)

    def spy(eps_model, schedule, x, original=dualmd.denoise, **how):
        sizes.append(len(x))
        if len(sizes) == interrupt_at:
            raise KeyboardInterrupt
        return original(eps_model, schedule, x, **how)

    def generate(n, batch=4, seed=0):
        sizes.clear()
        return EvaluatedRun(tmp_path, evaluate_args(seed, batch)).generated("undefended", n)

    monkeypatch.setattr(dualmd, "denoise", spy)
    monkeypatch.setattr(files, "SAVE_EVERY", 0)
    interrupt_at = None
    whole = generate(10)
    assert sizes == [4, 4, 2]
    assert torch.equal(generate(10), whole) and not sizes
    assert torch.equal(generate(3), whole[:3]) and not sizes
    assert torch.equal(generate(14)[:10], whole) and sizes == [4]
    assert torch.equal(generate(10), whole) and not sizes, "fewer were asked for, and the others are still there"
    (tmp_path / "generated" / "all.npz").unlink()
    interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        generate(10)
    interrupt_at = None
    assert torch.equal(generate(10), whole) and sizes == [2]
    assert not torch.equal(generate(10, seed=1), whole)
    other = checkpoint.load(tmp_path / "all.pt")
    other.weights["head.bias"] += 1
    checkpoint.save(tmp_path, other)
    assert not torch.equal(generate(10, seed=1), whole) and sizes == [4, 4, 2]
    monkeypatch.setattr(files, "FORMULA", "another")
    generate(10, seed=1)
    assert sizes == [4, 4, 2], "the sampler has been changed"


# --- quality ---


@pytest.fixture
def eyes(monkeypatch):
    """An Inception that sees 24 numbers in an image, and the list of how many images it was shown at a time."""
    inception = types.SimpleNamespace(weights="eyes 01234567", sha256="01234567", classifies=True)
    inception.classify = lambda features: features[:, ::5] / 20
    shown = []

    def features(network, images):
        assert network is inception
        shown.append(len(images))
        return images[:, :, ::4, ::2].flatten(1).float()

    monkeypatch.setattr(fid, "features", features)
    monkeypatch.setattr(fid, "load", lambda weights, device: inception)
    return shown


def frechet(x, y):
    """By the text book, for covariances of full rank or not: the eigenvalues of the product, which is not symmetric."""
    x, y = (images[:, :, ::4, ::2].flatten(1).double().numpy() for images in (x, y))
    of_product = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T)).real.clip(min=0)
    traces = np.cov(x.T).trace() + np.cov(y.T).trace() - 2 * np.sqrt(of_product).sum()
    return np.square(x.mean(0) - y.mean(0)).sum() + traces


def test_fid_of_every_release_to_members_and_to_held_out_images(tmp_path, monkeypatch, small, eyes, capsys):
    split = make_run(tmp_path, small)
    few_steps(monkeypatch)
    call(monkeypatch, "--run", tmp_path, "--fid", "--batch", 7)
    rows = {row["model"]: row for row in json.loads((tmp_path / "fid.json").read_text())}
    generating = ["undefended", "DualMD pipeline", "DistillMD", "averaged targets", "ordinary distillation"]
    assert list(rows) == ["real held-out", *generating]
    assert eyes == [7, 5] * 7, "members and held-out images only once"
    members, held_out = small[split.members], small[split.nonmembers]
    real = rows["real held-out"]
    assert real["fid_members"] == pytest.approx(frechet(held_out, members), rel=1e-6)
    assert (real["n_generated"], real["fid_held_out"]) == (MEMBERS, None)
    training = EvaluatedRun(tmp_path, evaluate_args(batch=7))
    for release in generating:
        images = training.generated(release, MEMBERS)
        assert rows[release]["n_generated"] == MEMBERS and rows[release]["fid_weights"] == "eyes 01234567"
        assert rows[release]["held_out_loss"] == training.held_out_loss(release)
        assert rows[release]["fid_members"] == pytest.approx(frechet(images, members), rel=1e-6)
        assert rows[release]["fid_held_out"] == pytest.approx(frechet(images, held_out), rel=1e-6)
        score = fid.inception_score(images[:, :, ::4, ::2].flatten(1)[:, ::5].float() / 20)
        assert (rows[release]["inception_score"], rows[release]["inception_score_std"]) == score
    assert real["inception_score"] == fid.inception_score(held_out[:, :, ::4, ::2].flatten(1)[:, ::5].float() / 20)[0]
    printed = capsys.readouterr().out
    assert (
        printed.startswith((tmp_path / "fid.md").read_text().partition("\n<!--")[0])
        and "weights: eyes 01234567" in printed
    )
    assert not (tmp_path / "table.md").exists()

    # another number of images; then the columns of the table of attacks, from what is kept
    call(monkeypatch, "--run", tmp_path, "--fid", "--n", 20)
    dual = {row["model"]: row for row in json.loads((tmp_path / "fid.json").read_text())}["DualMD pipeline"]
    assert dual["n_generated"] == 20
    eyes.clear()
    call(monkeypatch, "--run", tmp_path, "--fid", "--n", 20, "--attack", "pia")
    assert not eyes
    rows = rows_of(tmp_path)
    assert rows["DistillMD", "pia", "published"]["n_generated"] == 20
    for release in ("DualMD pipeline", "DualMD unmixed", "DualMD leaked"):  # whoever has A and B samples alike
        row = rows[release, "pia-ref", "adaptive"]
        assert [row[key] for key in ("fid_members", "fid_held_out")] == [dual["fid_members"], dual["fid_held_out"]]
    table = (tmp_path / "table.md").read_text()
    assert (
        f"| {dual['fid_members']:<20.2f} | {dual['fid_held_out']:<20.2f} |" in table
        and "weights: eyes 01234567" in table
    )


def test_what_inception_saw_is_kept_until_it_changes(tmp_path, monkeypatch, small, eyes):
    make_run(tmp_path / "run", small, ["all"])
    inception = fid.load(None, None)

    def fids(n=8, seed=0):
        eyes.clear()
        return reports.quality_of(EvaluatedRun(tmp_path / "run", evaluate_args(seed)), "undefended", n, inception)

    first = fids()
    assert eyes == [12, 12, 8]
    assert fids() == first and not eyes
    assert fids(n=9) != first and eyes == [9]
    assert fids(seed=1) != first and eyes == [8], "other images are generated, the real ones are the same"
    inception.sha256 = "other weights"
    fids()
    assert eyes == [12, 12, 8]
    for part in ("members", "held-out"):
        (tmp_path / "run" / "fid" / f"{part}.npz").write_bytes(b"PK\x03\x04 damaged")
        fids()
        assert eyes == [12]
    monkeypatch.setattr(files, "FORMULA", "another")
    fids()
    assert eyes == [12, 12, 8], "fid.py has been changed"
    one = checkpoint.load(tmp_path / "run" / "all.pt")
    one.split = data.index_split(len(small), MEMBERS, seed=5)
    checkpoint.save(tmp_path / "run", one)
    fids()
    assert eyes == [12, 12], "other images are members, those generated are the same"


def test_fid_of_half_a_run_and_of_several(tmp_path, monkeypatch, small, eyes, capsys):
    split = make_run(tmp_path / "half", small, ["B"])
    call(monkeypatch, "--run", tmp_path / "half", "--fid")
    real, alone = json.loads((tmp_path / "half" / "fid.json").read_text())
    images = EvaluatedRun(tmp_path / "half", evaluate_args()).generated("B alone", MEMBERS // 2)
    assert (alone["model"], alone["n_generated"], real["n_generated"]) == ("B alone", 6, 6)
    assert alone["inception_score"] is None and real["inception_score"] is None, "fewer images than parts"
    assert alone["fid_members"] == pytest.approx(frechet(images, small[split.b]), rel=1e-6)
    assert alone["fid_held_out"] == pytest.approx(frechet(images, small[split.nonmembers[:6]]), rel=1e-6)
    assert real["fid_members"] == pytest.approx(frechet(small[split.nonmembers[:6]], small[split.b]), rel=1e-6)

    for seed in (1, 2):
        make_run(tmp_path / str(seed), small, ["all"], seed=seed)
    capsys.readouterr()
    call(monkeypatch, "--run", tmp_path / "1", tmp_path / "2", "--fid", "--out", tmp_path / "both")
    rows = json.loads((tmp_path / "both" / "fid.json").read_text())
    assert [(row["model"], row["seed"]) for row in rows] == [
        ("real held-out", 1), ("real held-out", 2), ("undefended", 1), ("undefended", 2)
    ]  # fmt: skip
    one, other = (row["fid_held_out"] for row in rows[2:])
    low, high = sorted((one, other))
    assert f" {(one + other) / 2:.2f} [{low:.1f} {high:.1f}] " in capsys.readouterr().out

    with pytest.raises(BadInput, match="--n 1: a FID takes two images at least"):
        call(monkeypatch, "--run", tmp_path / "1", "--fid", "--n", 1)


# --- models of the field, and which there are ---


def published(folder, images):
    """A model in pytorch-ddpm's format and its split: trained on images 3, 4, ..., 14; not on 20, ..., 31."""
    torch.manual_seed(0)
    unet = UNetConfig(ch=32, mult=(1, 2), attn=(1,), blocks=1)
    model = UNet(unet)
    torch.nn.init.normal_(model.tail[-1].weight, std=0.1)
    split = data.Split(torch.arange(3, 9), torch.arange(9, 15), torch.arange(20, 32))
    dataset = {"name": "toy", "data_dir": None, "size": 8, "seed": 0, "sha256": data.fingerprint(images)}
    made = checkpoint.Checkpoint("all", dataset, split, {}, unet, model.state_dict())
    return model.eval(), split, publish(made, folder / "step800000.pt")


def test_a_published_model_is_judged_by_its_own_split(tmp_path, monkeypatch, small, capsys):
    model, split, npz = published(tmp_path, small)
    monkeypatch.chdir(tmp_path)
    flags = ("--checkpoint", "step800000.pt", "--member-split", npz, "--size", 8, "--attack", "pia", "--grid", 50)
    call(monkeypatch, *flags)
    out = capsys.readouterr().out
    assert "step800000.pt: 32 channels times (1, 2), 1 blocks a level, attention at levels (1,)," in out
    assert "no --member-split" not in out
    (run,) = (tmp_path / "runs").iterdir()
    rows = rows_of(run)
    assert re.fullmatch("step800000-[0-9a-f]{8}", run.name)
    assert list(rows) == [("undefended", "pia", "published"), ("undefended", "pia", "adaptive")]
    members, nonmembers = (
        attacks.pia(model, NoiseSchedule(), data.to_float(small[indices]), 200)
        for indices in (split.members, split.nonmembers)
    )
    row = rows["undefended", "pia", "published"]
    assert (row["n_members"], row["n_nonmembers"]) == (12, 12)
    assert row["auc"] == pytest.approx(metrics.auc(members.detach().numpy(), nonmembers.detach().numpy()), abs=1e-6)
    # fewer of them, beside the snapshots of another model; and without a split it is said whose members these are
    make_run(tmp_path / "elsewhere" / "step-000002", small, ["all"])
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "samples-all.png")
    call(monkeypatch, *flags, "--members", 4, "--out", "elsewhere")
    assert not (tmp_path / "elsewhere" / "steps.json").exists()
    assert not (tmp_path / "elsewhere" / "samples.png").exists()
    assert rows_of(tmp_path / "elsewhere")["undefended", "pia", "published"]["n_members"] == 4
    kept = np.load(tmp_path / "elsewhere" / "scores" / "all-pia-200.npz")["image"]
    assert set(kept[:4]) < set(range(3, 15)) and set(kept[4:]) < set(range(20, 32))
    capsys.readouterr()
    call(monkeypatch, *flags[:2], *flags[4:], "--out", "elsewhere", "--seed", 1)
    said = "no --member-split: the members are those that train.py --seed 1 would train on"
    assert said in capsys.readouterr().out
    kept = np.load(tmp_path / "elsewhere" / "scores" / "all-pia-200.npz")["image"]
    expected = data.index_split(40, None, 1)
    assert kept.tolist() == torch.cat([expected.members, expected.nonmembers]).tolist()


def test_a_published_model_has_its_own_number_of_timesteps(tmp_path, monkeypatch, small):
    model, split, npz = published(tmp_path, small)
    content = torch.load(tmp_path / "step800000.pt", weights_only=True)
    table = "time_embedding.timembedding.0.weight"
    content["ema_model"][table] = content["ema_model"][table][:150]
    torch.save(content, tmp_path / "short.pt")
    monkeypatch.chdir(tmp_path)
    flags = ("--checkpoint", "short.pt", "--member-split", npz, "--size", 8, "--attack", "pia", "secmi", "--out", ".")
    with pytest.raises(BadInput, match="pia: t = 150 is not a timestep of this schedule: 0 to 149"):
        call(monkeypatch, *flags, "--t", 150)
    call(monkeypatch, *flags)
    rows = json.loads((tmp_path / "t.json").read_text())
    # 20, 30, 50, 100, ..., 300 and PIA's 200 and SecMI's 100 of 1000, as multiples of SecMI's step
    assert [row["t"] for row in rows] == [10, 20, 30, 40] * 2
    assert json.loads((tmp_path / "results.json").read_text())[0]["held_out_loss"] > 0
    keys, dataset = [], {"name": "toy", "data_dir": None, "seed": 0, "sha256": data.fingerprint(small)}
    for name in ("short.pt", "step800000.pt"):
        unet, weights, T = load_published(tmp_path / name)
        one = checkpoint.Checkpoint("all", dataset, split, {"seed": 0}, unet, weights)
        one.schedule["T"] = T
        keys.append(EvaluatedRun(tmp_path, evaluate_args(), small, {"all": one}).identity("all"))
    assert keys[0] != keys[1], "what is kept of one is not taken for the other's"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--member-split", "step800000-split.npz"], "--member-split belongs to --checkpoint"),
        (["--members", 4], "--members belongs to --checkpoint"),
        (["--size", 8], "--size belongs to --checkpoint"),
        (["--checkpoint", "step800000.pt", "--run", "r"], "--checkpoint and --run"),
        (["--checkpoint", "step800000.pt", "--size", 9], "--size 9: must be at most 1024, and a multiple of 2"),
    ],
)
def test_flags_that_belong_to_a_published_model(tmp_path, monkeypatch, small, flags, message):
    published(tmp_path, small)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        call(monkeypatch, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step800000-split.npz", "step800000.pt"]


def test_closest_pairs_of_releases_with_different_numbers_of_images(tmp_path):
    few, many = ((torch.zeros(n, 3, 8, 8, dtype=torch.uint8),) * 2 + (torch.ones(n),) for n in (2, 5))
    figures.pairs(tmp_path / "pairs.png", {"A alone": few, "DistillMD": many})
    assert (tmp_path / "pairs.png").stat().st_size > 1000


def test_roc_curves_show_the_papers_attacks_and_the_strongest(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path, mark: drawn.append(figure))
    rng = np.random.RandomState(0)
    edge = {"loss": 1, "loss-ref": 3, "sima": 2, "pia": 0.5, "secmi": 0.2}
    curves = {
        (attack, release): [metrics.roc(rng.normal(size=100) + much * (release == "undefended"), rng.normal(size=100))]
        for attack, much in edge.items()
        for release in ("DistillMD", "undefended")
    }
    figures.roc_curves(tmp_path / "roc.png", curves)
    figures.roc_curves(tmp_path / "roc.png", {key: curve for key, curve in curves.items() if key[0] == "loss"})
    several, one = ([ax.get_title() for ax in figure.axes if ax.lines] for figure in drawn)
    assert several == ["pia", "secmi", "loss-ref", "", "", ""] and one == ["loss", ""]
    scales = [(ax.get_xscale(), ax.get_yscale()) for ax in drawn[0].axes]
    assert scales == 3 * [("linear",) * 2] + 3 * [("log",) * 2]
