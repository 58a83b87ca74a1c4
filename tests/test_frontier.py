"""The frontier: statistics against known values, planted defences that win and lose, and the stronger attackers."""

import argparse
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, few_steps, settings
from test_evaluate import CONFIG, call

import attacks
import data
import evaluate
import metrics
from lab import attackers, checkpoint, cli, frontier, releases, tables
from lab.files import BadInput
from lab.frontier import Judged, Run
from lab.releases import EvaluatedRun
from unet import UNet


def once(cut, draws=200):
    return frontier.resamples(cut, 0, draws)


# --- statistics -----------------------------------------------------------------------------------


def test_weighted_aucs_are_those_of_the_drawn_images():
    random = np.random.RandomState(0)
    members, nonmembers = random.randint(0, 6, (3, 9)) * 1.0, random.randint(0, 6, (3, 7)) * 1.0  # with ties
    counts = [random.multinomial(9, [1 / 9] * 9, 5), random.multinomial(7, [1 / 7] * 7, 5)]
    found = frontier.weighted_aucs(members, nonmembers, counts)
    for row in range(3):
        for b in range(5):
            drawn = members[row].repeat(counts[0][b]), nonmembers[row].repeat(counts[1][b])
            assert found[row, b] == pytest.approx(metrics.auc(*drawn), abs=1e-6)


def test_resamples_begin_with_the_images_themselves():
    cut = metrics.halves(10, 14)
    for half, weights in zip(cut, once(cut), strict=True):
        for rows, its in zip(half, weights, strict=True):
            assert its.shape == (201, len(rows)) and (its[0] == 1).all()
            assert (its.sum(1) == len(rows)).all() and its[1:].std() > 0.5


def test_the_strongest_attacker_is_picked_on_one_half_and_judged_on_the_other():
    random = np.random.RandomState(0)
    members, nonmembers = random.normal(size=(300, 60)), random.normal(size=(300, 60))
    cut = metrics.halves(60, 60)

    def strongest():
        halves = zip(cut, once(cut), strict=True)
        aucs = [frontier.weighted_aucs(members[:, m], nonmembers[:, n], w)[None] for (m, n), w in halves]
        (judged,), picks = frontier.strongest(aucs, aucs[::-1])
        return judged, picks

    luck, _ = strongest()
    assert 0.3 < luck[0] < 0.7, "the best of 300 coins on its own half would have 0.7 or more"
    # row 7 tells them apart, the other way round
    members[7] -= 8
    aucs, picks = strongest()
    assert picks == [(7, -1), (7, -1)] and aucs.min() > 0.99
    # a row that only helps on one half is found there, and does not help
    members[7] += 8
    members[3, cut[0][0]] += 8
    aucs, picks = strongest()
    assert picks[0] == (3, 1) and aucs[0] < 0.8


def test_the_pick_is_for_all_trainings_together():
    """Each training has a row that looks best by luck on one half. Row 1 is best on average, and row 2 is flipped."""
    known = np.array([[0.9, 0.7, 0.4], [0.4, 0.7, 0.4], [0.4, 0.7, 0.4]])[:, :, None]
    others = np.array([[0.5, 0.72, 0.1], [0.5, 0.68, 0.1], [0.5, 0.6, 0.1]])[:, :, None]
    aucs, picks = frontier.strongest([known, known], [others, others])
    assert picks == [(1, 1), (1, 1)] and aucs.tolist() == [[0.72], [0.68], [0.6]]
    aucs, picks = frontier.strongest([known, known], [others, others][:1] + [others + 0.1])
    assert aucs[:, 0] == pytest.approx([0.77, 0.73, 0.65]), "the mean of two attackers"
    known[1:, 2] = 0.05
    aucs, picks = frontier.strongest([known, known], [others, others])
    assert picks == [(2, -1), (2, -1)] and aucs[:, 0] == pytest.approx([0.9, 0.9, 0.9])


XS, YS, INF = [0.08, 0.07, 0.06, 0.09], np.array([[0.5], [0.6], [0.8], [1.0]]), np.inf


@pytest.mark.parametrize(
    "x, y, least, most",
    [
        (0.08, 0.5, 0.5, 0.5),
        (0.075, 0.55, 0.5, 0.55),
        (0.07, 0.6, 0.6, 0.6),
        (0.0625, 0.75, 0.6, 0.75),
        (0.06, 0.8, 0.6, 0.8),  # the minimum may be before the point
        (0.085, 0.5, -INF, 0.5),  # not the rise after the minimum
        (0.05, 0.8, 0.6, INF),
    ],
)
def test_at_equal_quality(x, y, least, most):
    assert np.concatenate(frontier.at_equal(x, XS, YS)) == pytest.approx([y, least, most])


def test_at_equal_quality_of_a_curve_that_only_rises():
    for x, expected in ((0.2, [0.5, -INF, 0.5]), (0.1, [0.5, 0.5, 0.5]), (0.05, [0.5, 0.5, INF])):
        assert np.concatenate(frontier.at_equal(x, [0.1, 0.2], YS[:2])) == pytest.approx(expected)


def test_the_interval_is_over_seeds_and_over_images():
    draws = np.random.RandomState(1).normal(size=(1, 2001))
    one = np.concatenate([np.zeros((1, 1)), draws[:, 1:]], 1)
    assert frontier.mean_and_interval(one) == pytest.approx((0, -1.96, 1.96), abs=0.15)
    # four seeds whose images say nothing: the mean of four draws of -1, -1, 1 and 1 is binomial
    seeds = np.repeat([[-1.0], [-1], [1], [1]], 4001, 1)
    assert frontier.mean_and_interval(seeds) == (0, -1, 1)
    mean, low, high = frontier.mean_and_interval(np.repeat([[-1.0], [-1], [1], [1]] * 16, 4001, 1))
    assert (mean, low, high) == pytest.approx((0, -1.96 / 8, 1.96 / 8), abs=0.04)
    # both together: variances add up
    both = np.random.RandomState(2).normal(size=(64, 4001)) + np.repeat([[-1.0], [1]] * 32, 4001, 1)
    both[:, 0] = [-1, 1] * 32
    low, high = frontier.mean_and_interval(both)[1:]
    assert (high - low) / 2 == pytest.approx(1.96 * 2**0.5 / 8, rel=0.15)


def test_the_interval_is_around_the_value():
    """In a resample an attacker picks worse: all resamples of a weak signal are below it."""
    draws = np.random.RandomState(1).normal(size=(2, 4001)) / 100
    draws[:, 0] = 0.7, 0.9
    mean, low, high = frontier.mean_and_interval(draws)
    assert mean == 0.8 and (low + high) / 2 == pytest.approx(0.8, abs=0.005)
    assert 0.69 < low < 0.71 and 0.89 < high < 0.91


def test_intervals_of_differences_are_paired():
    values = np.random.RandomState(0).normal(size=(3, 501))
    low, high = frontier.mean_and_interval(values - (values - 0.25))[1:]
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)
    assert frontier.mean_and_interval(values, 1) == frontier.mean_and_interval(values, 1)


# --- planted examples -------------------------------------------------------------------------------


def planted(name, loss, signal, seed, compute=1.0, family="undefended", n=300):
    """A model from which an attacker gets normal scores, of members higher by `signal`; and other, useless scores."""
    random = np.random.RandomState([seed, len(name), int(1000 * loss)])
    scores = torch.from_numpy(random.normal(size=(4, 2 * n)))
    scores[2, :n] += signal
    rows = {"noise": scores[None, :2], "signal": scores[None, 2:3], "by weights: noise": scores[None, 3:]}
    rows["noise, one t"] = scores[None, 2:3] + (torch.arange(2 * n) < n)  # what is not picked, however good it is
    return Judged(family, name, compute, loss, {}, metrics.halves(n, n), rows)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(frontier.resamples, "__defaults__", (200,))
    monkeypatch.setattr(metrics, "RESAMPLES", 10)


def summarised(loss, signal, seeds=3, compute=4.0):
    lengths = [(0.09, 0.0), (0.08, 0.4), (0.07, 0.8), (0.06, 1.6), (0.1, 4.0)]
    runs = []
    for seed in range(seeds):
        run = [planted(f"undefended {2**k}", *its, seed, 2.0**k) for k, its in enumerate(lengths)]
        run += [planted("cross 1", loss, signal, seed, compute, "cross")]
        runs.append({one.name: one for one in run})
    return frontier.summarised(runs, 0)[-1]


@pytest.mark.parametrize(
    "loss, signal, difference, said",
    [
        (0.065, 0.4, -0.18, "leaks less"),  # undefended ones of this loss have 0.8 to 1.6
        (0.075, 2.5, 0.30, "leaks more"),  # 0.4 to 0.8
        (0.065, 1.15, 0.0, "undecided"),
        (0.065, 0.9, -0.05, "undecided"),  # less than the interpolated 1.2, but not than the shorter training's 0.8
    ],
)
def test_planted_defences(loss, signal, difference, said, few_resamples):
    row = summarised(loss, signal)
    found = row["predictions"]["at_equal_held_out_loss"]
    assert found["verdict"] == said and found["bounds"] == []
    assert found["difference"] == pytest.approx(difference, abs=0.05)
    assert found["difference_95"][0] < found["difference"] < found["difference_95"][1]
    assert row["predictions"]["attacker"] == ["signal", "signal"]


def test_a_defence_without_equal_is_compared_with_the_end_point(few_resamples):
    assert summarised(0.05, 1.0)["predictions"]["at_equal_held_out_loss"]["bounds"] == ["at most"]
    better = summarised(0.05, 0.3)["predictions"]["at_equal_held_out_loss"]
    assert better["verdict"] == "leaks less", "it has a better loss than any, and leaks less than the best two of them"
    assert summarised(0.05, 0.9)["predictions"]["at_equal_held_out_loss"]["verdict"] == "undecided"
    worse = summarised(0.2, 1.0)["predictions"]["at_equal_held_out_loss"]
    assert (worse["bounds"], worse["verdict"]) == (["at least"], "leaks more")


@pytest.mark.parametrize(
    "compute, difference, bounds",
    [(4, -0.06, []), (8**0.5, 0.02, []), (0.5, 0.16, ["at least"]), (64, -0.32, ["at most"])],
)
def test_equal_compute_is_another_question(compute, difference, bounds, few_resamples):
    """At 2, 4 and 16 steps the signals are 0.4, 0.8 and 4. Between two, the AUC is linear in the logarithm of steps."""
    found = summarised(0.065, 0.57, compute=compute)["predictions"]["at_equal_compute"]
    assert found["difference"] == pytest.approx(difference, abs=0.05) and found["bounds"] == bounds


def test_the_auc_and_tpr_of_a_planted_model(few_resamples):
    row = summarised(0.065, 1.0)
    by = row["weights"]["auc_by_attacker"]
    assert max(by["noise"]) < 0.6 < 0.7 < min(by["signal"]) and len(by["by weights: noise"]) == 3
    row = row["predictions"]
    assert row["auc"] == pytest.approx(0.76, abs=0.04)  # Phi(1 / sqrt 2)
    assert row["auc_95"][0] < 0.76 < row["auc_95"][1] and len(row["auc_of_runs"]) == 3
    assert np.mean(row["tpr_at_1"]) == pytest.approx(0.09, abs=0.08)  # 1 - Phi(2.33 - 1)


# --- stronger attackers -------------------------------------------------------------------------------


def test_lira_by_hand():
    errors = np.array([[2.0, 0.5, 1.0]])
    outside = np.array([[[1.0, 0.4, 3.0]], [[4.0, 0.9, 1.0]], [[2.5, 0.2, 0.7]]])
    found = attackers.lira(-torch.from_numpy(errors), -torch.from_numpy(outside)).numpy()
    expected = np.empty(3)
    phi = -np.log(outside[:, 0])
    variances = [sum((p - phi[:, i].mean()) ** 2 for p in phi[:, i]) / 2 for i in range(3)]
    for i in range(3):
        sigma = ((variances[i] + sum(variances) / 3) / 2) ** 0.5
        expected[i] = (-np.log(errors[0, i]) - phi[:, i].mean()) / sigma
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


def test_lira_finds_what_one_reference_does_not():
    """Each image has its own difficulty, and each model its own luck with it; four models know it better."""
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=random)  # noqa: E731
    difficulty = 3 * normal(400)
    outside = -(difficulty + 0.8 * normal(4, 400)).exp()
    target = difficulty + 0.3 * normal(400)
    target[:200] -= 1
    target = -target.exp()

    def auc(scores):
        return metrics.auc(scores[:200].numpy(), scores[200:].numpy())

    plain, one = auc(target), auc(attacks.calibrated(target, outside[0]))
    assert plain < 0.65 < one < auc(attackers.lira(target, outside)) - 0.05


def test_quantile_regression_knows_which_images_are_easy():
    """The error of an image is its brightness; a member's is 10 % smaller."""
    random = torch.Generator().manual_seed(0)
    brightness = torch.rand(600, generator=random)
    images = (brightness[:, None, None, None] * 2 - 1).expand(-1, 3, 8, 8) + 0.1 * torch.randn(
        (600, 3, 8, 8), generator=random
    )
    errors = (2 * brightness).exp() * (0.03 * torch.randn(600, generator=random)).exp()
    errors[:100] *= 0.85
    scores = -torch.stack([errors, errors**2])
    found = attackers.by_quantiles(images[200:], scores[:, 200:], images[:200], scores[:, :200])
    assert found.shape == (2, 200)
    assert metrics.auc(scores[0, :100].numpy(), scores[0, 100:200].numpy()) < 0.65
    for row in found.numpy():
        assert metrics.auc(row[:100], row[100:]) > 0.85
    again = attackers.by_quantiles(images[200:], scores[:, 200:], images[:200], scores[:, :200])
    assert torch.equal(found, again)


def test_quantile_regression_predicts_the_quantiles():
    """Where the image says nothing, the evidence above the median is 0 for half of all images, above 1 for a tenth."""
    random = torch.Generator().manual_seed(0)
    scores = -torch.randn((2, 3000), generator=random).exp()
    scores[1] *= 100
    images = torch.zeros((3000, 3, 8, 8))
    found = attackers.by_quantiles(images[:2000], scores[:, :2000], images[2000:], scores[:, 2000:])
    for row in found:
        assert (row > 0).float().mean() == pytest.approx(0.5, abs=0.06)
        assert (row > 1).float().mean() == pytest.approx(0.1, abs=0.06)


def test_the_set_test_is_the_difference_of_two_mmds():
    random = np.random.RandomState(0)
    generated, candidates, held_out = (random.normal(size=(n, 3, 2, 2)) for n in (7, 5, 5))
    given = map(torch.from_numpy, (generated, candidates, held_out))
    statistic, _ = attackers.set_test(*given, draws=10)
    x, y, z = (each.reshape(len(each), -1) for each in (generated, candidates, held_out))
    real = np.concatenate([y, z])
    squares = [((a - b) ** 2).sum() for a in real for b in real]
    median = np.sort([s for s in squares if s > 0])
    median = median[(len(median) - 1) // 2]

    def kernel(a, b):
        square = ((a - b) ** 2).sum()
        return np.mean([np.exp(-square / (2 * median / k**2)) for k in (1, 2, 4, 8)])

    def mmd(real):
        n, m = len(x), len(real)
        own = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (n * (n - 1))
        its = sum(kernel(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j) / (m * (m - 1))
        return own + its - 2 * sum(kernel(a, b) for a in x for b in real) / (n * m)

    assert statistic == pytest.approx(mmd(z) - mmd(y), abs=1e-10)


def test_the_set_test_finds_the_set_that_was_copied():
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=random)  # noqa: E731
    candidates, held_out = normal(40, 3, 4, 4), normal(40, 3, 4, 4)
    copies = candidates.repeat(2, 1, 1, 1) + 0.3 * normal(80, 3, 4, 4)
    statistic, p = attackers.set_test(copies, candidates, held_out)
    assert statistic > 0 and p < 0.01
    turned, p = attackers.set_test(copies, held_out, candidates)
    assert turned == pytest.approx(-statistic) and p > 0.99
    ps = [attackers.set_test(*(normal(n, 3, 4, 4) for n in (80, 40, 40)), draws=200)[1] for _ in range(40)]
    assert np.mean(ps) == pytest.approx(0.5, abs=0.15) and np.std(ps) == pytest.approx(12**-0.5, abs=0.08)


@pytest.mark.parametrize("attack", ["all", "secmi_nn"])
def test_who_learns_knows_nothing_of_the_half_that_is_judged(monkeypatch, attack):
    """Attacker k learns on half k, or on a fold of it. No image is scored by who learned from it."""
    learned = []

    def spy(features, is_member, others, **seed):
        numbers = features.flatten(1)[:, 0]
        assert torch.equal(is_member, numbers < 12)
        learned.append({*numbers.tolist()})
        assert not learned[-1] & {*others.flatten(1)[:, 0].tolist()}
        return others.flatten(1)[:, 0] + 100 * len(learned)

    monkeypatch.setattr(attacks, "gsa", spy)
    monkeypatch.setattr(attacks, "secmi_nn", spy)
    number = torch.arange(20.0).view(1, 20, 1, 1)
    found = attackers.learned_by_each(attack, number[:, :12], number[:, 12:], 0, "cpu")
    assert found.shape == (2, 1, 20) and torch.equal(found[:, 0] % 100, torch.arange(20.0).expand(2, -1).double())
    for k, half in enumerate(metrics.halves(12, 8)):
        mine = {*half[0].tolist(), *(half[1] + 12).tolist()}
        for i in range(20):
            by = learned[int(found[k, 0, i] // 100) - 1]
            assert by <= mine and i not in by and (by == mine) == (i not in mine)


def test_an_attacker_who_learns_finds_nothing_where_there_is_nothing():
    """With one version for both, who learns on noise would look as if they found something: 0.52 to 0.54 on average."""
    random, aucs = np.random.RandomState(0), []
    cut = metrics.halves(40, 40)
    for _ in range(60):
        features = torch.from_numpy(random.normal(size=(30, 80, 1)))
        rows = {"all scores": attackers.learned_by_each("all", features[:, :40], features[:, 40:], 0, "cpu")}
        rows["noise"] = features[None, :3, :, 0]
        one = Judged("undefended", "", 1.0, 0.1, {}, cut, rows)
        aucs.append(frontier.attacked([one], 0)["predictions"][0][0, 0])
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.02)


def test_attacker_rows():
    """Names and numbers of rows: each timestep and their sum, for each reference; both rules for two eps models."""
    random = torch.Generator().manual_seed(0)
    errors = lambda: -torch.rand((3, 24), generator=random) - 0.1  # noqa: E731
    images, args = torch.zeros((24, 3, 8, 8), dtype=torch.uint8), argparse.Namespace(seed=0, device="cpu")
    models, references = [{"loss": errors()}, {"loss": errors()}], [{"loss": errors()} for _ in range(3)]
    rows = frontier.attacker_rows(models[:1], references, 2, images, 8, args)
    assert {k: tuple(v.shape) for k, v in rows.items()} == {
        "loss, one t": (1, 3, 16),
        "loss": (1, 1, 16),
        "loss-ref, one t": (1, 9, 16),
        "loss-ref": (1, 3, 16),
        "loss-lira, one t": (1, 3, 16),
        "loss-lira": (1, 1, 16),
        "loss-quantile, one t": (1, 3, 16),
        "loss-quantile": (1, 1, 16),
        "all scores": (2, 1, 16),
    }
    rows = {label: its[0] for label, its in rows.items()}
    loss, two = models[0]["loss"][:, :16], torch.stack([one["loss"][:, :16] for one in references[:2]])
    assert torch.equal(rows["loss, one t"], loss)
    torch.testing.assert_close(rows["loss-lira, one t"], attackers.lira(loss, two))
    torch.testing.assert_close(rows["loss-ref, one t"][4], attacks.calibrated(loss, two[1])[1])
    torch.testing.assert_close(rows["loss"][0], attacks.combine_scores([*loss], "sum"))
    torch.testing.assert_close(rows["loss-ref"][1], attacks.combine_scores([*attacks.calibrated(loss, two[1])], "sum"))
    models = [{"loss": one["loss"][:, :16]} for one in models]
    rows = frontier.attacker_rows(models, [], 0, images[:16], 8, args)
    assert {k: tuple(v.shape) for k, v in rows.items()} == {
        "loss, one t": (1, 6, 16),
        "loss": (1, 2, 16),
        "all scores": (2, 1, 16),
    }
    for first, rule in ((0, "max"), (3, "sum")):
        both = attacks.combine_scores([one["loss"] for one in models], rule)
        torch.testing.assert_close(rows["loss, one t"][0, first : first + 3], both)


# --- the command --------------------------------------------------------------------------------------

MEMBERS = 8
FOLDERS = {  # directory: names of models, steps, block of the reference
    "undefended-2": (["all"], 2, 1),
    "undefended-4": (["all"], 4, 1),
    "halves-4": (["A", "B"], 4, 1),
    "cross-3-of-4": (["distill-cross"], 3, 1),
    "unseen-3-of-2": (["distill-single"], 3, 4),
    "other-2": (["reference"], 2, 4),
    "reference-4-1": (["reference"], 4, 1),
    "reference-4-2": (["reference"], 4, 2),
    "reference-2-1": (["reference"], 2, 1),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Untrained networks, each different, as one run of the study."""
    images = data.toy(8, 0, n=120)
    monkeypatch.setattr(data, "load", lambda name, data_dir, size, seed: images)
    monkeypatch.setattr(data, "count", lambda name, data_dir: len(images))
    monkeypatch.setattr(frontier.resamples, "__defaults__", (20,))
    monkeypatch.setattr(attackers.by_quantiles, "__kwdefaults__", {"steps": 2, "seed": 0})
    monkeypatch.setattr(metrics, "RESAMPLES", 5)
    make(tmp_path / "seed-0", images, FOLDERS)
    return tmp_path


def make(run, images, folders, seed=0):
    saved = {}
    for folder, (names, steps, block) in folders.items():
        for name in names:
            torch.manual_seed(100 * seed + len(saved))
            model = UNet(CONFIG)
            torch.nn.init.normal_(model.tail[-1].weight, std=0.1)
            dataset = {"name": "toy", "data_dir": None, "size": 8, "seed": seed, "sha256": data.fingerprint(images)}
            its = settings(steps=steps, seed=seed, members=MEMBERS)
            split = data.index_split(len(images), MEMBERS, seed, None, block)
            model = checkpoint.Checkpoint(name, dataset, split, its, CONFIG, model.state_dict())
            saved[f"{folder}/{name}"] = model
    for student, teachers in (("cross-3-of-4/distill-cross", "AB"), ("unseen-3-of-2/distill-single", ["reference"])):
        of = [saved[f"{'other-2' if len(teachers) == 1 else 'halves-4'}/{name}"] for name in teachers]
        its = {"targets": student.split("-")[-1], "teachers": checkpoint.weights_key(*of)}
        saved[student].settings.update(its)
    for path, model in saved.items():
        checkpoint.save(run / path.split("/")[0], model)


def rows_of(run):
    return {row["model"]: row for row in json.loads((run / "frontier.json").read_text())}


def held_out(its, release, indices):
    """The loss on these images, from attacks.py itself; of DualMD that of A and B."""
    found, x0 = [], data.to_float(its.images[indices])
    for name in "AB" if release.startswith("DualMD") else releases.RELEASES[release].models:
        network, schedule = its.models[name].eps_model(), its.schedule
        for t in range(50, 1000, 100):
            noise = torch.Generator().manual_seed(cli.seed_for(0, "attack", "loss", t))
            torch.randn((MEMBERS, *x0.shape[1:]), generator=noise)  # the members come before
            found.append(-attacks.loss(network, schedule, x0, t, generator=noise).mean().item())
    return np.mean(found)


def test_every_model_is_judged_on_its_own_images(run, monkeypatch):
    call(monkeypatch, "--frontier", "--attack", "loss", "pia", "secmi", "--grid", 20, 50, "--run", run / "seed-0")
    rows = rows_of(run / "seed-0")
    assert list(rows) == [
        "undefended 2",
        "undefended 4",
        "half of the members 4",
        "DualMD 4",
        "DistillMD 3 of 4",
        "teacher of other images 3 of 2",
    ]
    costs = [2, 4, 4, 8, 3 * 4 / 3 + 8, 3 * 4 / 3 + 2]
    assert [row["compute"] for row in rows.values()] == pytest.approx(costs)
    args = evaluate.parse_args(["--dataset", "toy", "--device", "cpu", "--grid", "20"])
    all_of = Run(run / "seed-0", {"loss": [20]}, None, args).indices[MEMBERS:]
    trained = [checkpoint.load(path).trained_on for path in (run / "seed-0").glob("*/*.pt")]
    assert len(all_of) == 3 * MEMBERS == len(all_of.unique()) and not torch.isin(all_of, torch.cat(trained)).any()
    for model, folder, release in (
        ("undefended 4", "undefended-4", "undefended"),
        ("DualMD 4", "halves-4", "DualMD pipeline"),
        ("DistillMD 3 of 4", "cross-3-of-4", "DistillMD"),
        ("teacher of other images 3 of 2", "unseen-3-of-2", "ordinary distillation"),
    ):
        its = EvaluatedRun(run / "seed-0" / folder, args)
        assert rows[model]["held_out_loss"] == pytest.approx([held_out(its, release, all_of)])
        scores = its.scores(release, {"pia": [20, 50]})["pia"]
        cut = metrics.halves(MEMBERS, MEMBERS)
        summed = attacks.combine_scores([*torch.cat(scores, 1)], "sum")[None]
        members, nonmembers = (side.double().numpy() for side in summed.split(MEMBERS, 1))
        halves = zip(cut, frontier.resamples(cut, 0, 1), strict=True)
        aucs = [frontier.weighted_aucs(members[:, m], nonmembers[:, n], w)[None] for (m, n), w in halves]
        expected = frontier.strongest(aucs, aucs[::-1])[0][:, 0]
        assert rows[model]["weights"]["auc_by_attacker"]["pia"] == pytest.approx(expected)
    alone = EvaluatedRun(run / "seed-0" / "halves-4", args)
    members, nonmembers = alone.scores("A alone", {"secmi": [20]})["secmi"]
    assert members.shape == nonmembers.shape == (1, MEMBERS // 2)
    kinds = {"loss", "loss-ref", "loss-lira", "pia", "pia-ref", "pia-lira", "secmi", "secmi-ref", "all scores"}
    kinds |= {"loss-quantile", "pia-quantile"}
    kinds |= {f"{kind}, one t" for kind in kinds - {"all scores"}}
    names = {name: set(row["weights"]["auc_by_attacker"]) for name, row in rows.items()}
    assert names["undefended 4"] == names["DistillMD 3 of 4"] == names["half of the members 4"] == kinds
    assert names["DualMD 4"] == {way + kind for way in ("", "unmixed ", "leaked, by weights: ") for kind in kinds}


def test_a_second_time_nothing_is_computed_and_with_another_model_all_of_it_is(run, monkeypatch, capsys):
    flags = "--frontier", "--attack", "loss", "--grid", 20, "--run", run / "seed-0"
    call(monkeypatch, *flags)
    written = (run / "seed-0" / "frontier.json").read_text()
    for name in ("frontier.md", "frontier.png"):
        (run / "seed-0" / name).unlink()
    original, asked = releases.attack_scores, []

    def spy(*args):
        asked.append(args[-1])
        return original(*args)

    monkeypatch.setattr(releases, "attack_scores", spy)
    monkeypatch.setattr(
        frontier, "attacker_rows", lambda *args, f=frontier.attacker_rows: asked.append("rows") or f(*args)
    )
    call(monkeypatch, *flags)
    assert asked == [] and (run / "seed-0" / "frontier.json").read_text() == written
    assert (run / "seed-0" / "frontier.md").exists() and (run / "seed-0" / "frontier.png").exists()
    path = run / "seed-0" / "undefended-4" / "all.pt"
    model = checkpoint.load(path)
    model.weights["tail.2.bias"] += 0.1
    checkpoint.save(path.parent, model)
    call(monkeypatch, *flags)
    assert {*asked} == {"all", "rows"} and (run / "seed-0" / "frontier.json").read_text() != written


def test_a_reference_student_is_no_model_of_lira(run, monkeypatch):
    """Those of LiRA are trained alike."""
    command = "--frontier", "--attack", "loss", "--grid", 20, "--run", run / "seed-0"

    def attackers_of(model):
        call(monkeypatch, *command)
        return rows_of(run / "seed-0")[model]["weights"]["auc_by_attacker"]

    assert "loss-lira" in attackers_of("undefended 4")
    student = checkpoint.load(run / "seed-0" / "reference-4-2" / "reference.pt")
    student.name, student.settings["targets"] = "distill-reference", "reference"
    (run / "seed-0" / "reference-4-2" / "reference.pt").unlink()
    checkpoint.save(run / "seed-0" / "reference-4-2", student)
    without = attackers_of("undefended 4")
    assert "loss-ref" in without and "loss-lira" not in without


def test_several_runs_must_have_the_same_models(run, monkeypatch):
    images = data.toy(8, 0, n=120)
    make(run / "seed-1", images, FOLDERS, seed=1)
    both = "--frontier", "--attack", "loss", "--grid", 20, "--run", run / "seed-0", run / "seed-1"
    call(monkeypatch, *both)
    rows = rows_of(run)
    assert all(len(row["held_out_loss"]) == len(row["predictions"]["auc_of_runs"]) == 2 for row in rows.values())
    assert {one["seed"] for one in rows["DualMD 4"]["runs"]} == {0, 1}
    with pytest.raises(BadInput, match="two of these have the same seed"):
        call(monkeypatch, *both, run / "seed-0")

    def refused(*gone, says):
        for name in gone:
            (run / "seed-1" / name).unlink()
        with pytest.raises(BadInput, match=says):
            call(monkeypatch, *both)

    monkeypatch.setattr(Run, "judged", None)  # refused at the start
    refused("reference-4-2/reference.pt", says="only one of them has reference-4-2/reference.pt of 4 steps")
    make(run / "seed-1", images, FOLDERS, seed=1)
    refused("unseen-3-of-2/distill-single.pt", says="only one of them has unseen-3-of-2/distill-single.pt of 3 steps")
    refused("halves-4/B.pt", says=r"has a student whose teachers are not there: train it again \(--restart\)")
    refused("cross-3-of-4/distill-cross.pt", says="halves-4/ has only one half: train the other one")
    make(run / "seed-1", images, FOLDERS, seed=2)
    (run / "seed-1" / "undefended-4" / "all.pt").write_bytes((run / "seed-0" / "undefended-4" / "all.pt").read_bytes())
    refused(says="not all of its models have the same members and non-members")
    make(run / "seed-1", images, FOLDERS | {"reference-9": (["all"], 4, 1)}, seed=1)
    refused(says="reference-9/: it was trained on images that will be scored")


def test_what_the_frontier_does_not_take(run, monkeypatch):
    (run / "seed-8" / "undefended-4").mkdir(parents=True)
    (run / "seed-8" / "undefended-4" / "A.pt").write_bytes((run / "seed-0" / "halves-4" / "A.pt").read_bytes())
    for words, says in (
        (["--run", run / "seed-8"], "seed-8/ has no undefended model of this study"),
        (["--run", run / "seed-9"], r"seed-9/ has no undefended model of this study \(python reproduce.py --study"),
        ([], "--frontier takes runs, an attack by predictions, and none of: reference, checkpoint"),
        (["--run", run / "seed-0", "--t", 100], "--frontier takes runs, an attack by predictions, and none of: ref"),
        (["--run", run / "seed-0", "--attack", "gsa"], "--frontier takes runs, an attack by predictions, and none of"),
        (["--run", run / "seed-0", "--grid", 205], "secmi: t = 205: SecMI goes up from 0 in steps of 10"),
    ):
        monkeypatch.chdir(run)
        with pytest.raises(BadInput, match=says):
            call(monkeypatch, "--frontier", *words)


@pytest.mark.slow
def test_all_attacks_and_generated_images(run, monkeypatch):
    """Attackers who learn, and who hold weights; and what generated images reveal. gsa alone takes ten seconds."""
    few_steps(monkeypatch)
    monkeypatch.setattr(attacks, "secmi_nn", lambda features, known, others, seed: others.flatten(1).mean(1))
    asked = "--frontier", "--attack", "loss", "secmi_nn", "gsa", "--grid", 20, "--n", 6
    call(monkeypatch, *asked, "--run", run / "seed-0")
    rows = rows_of(run / "seed-0")
    plain = {f"loss{kind}{one}" for kind in ("", "-ref", "-lira", "-quantile") for one in ("", ", one t")}
    plain |= {"secmi_nn", "secmi_nn-ref", "all scores"}
    weights = {"by weights: gsa", "by weights: gsa-ref"}
    assert set(rows["DistillMD 3 of 4"]["weights"]["auc_by_attacker"]) == plain | weights
    leaked = {f"leaked, by weights: {name}" for name in plain | {"gsa", "gsa-ref"}}
    unmixed = {f"unmixed {name}" for name in plain}
    assert set(rows["DualMD 4"]["weights"]["auc_by_attacker"]) == plain | unmixed | leaked
    for name, row in rows.items():
        assert not any("by weights" in pick for pick in row["predictions"]["attacker"]), name
        assert row["n_generated"] == [6] and 0 < row["set_p"][0] <= 1
    images = EvaluatedRun(run / "seed-0" / "cross-3-of-4", evaluate.parse_args(["--dataset", "toy", "--device", "cpu"]))
    split = images.first.split
    sides = (data.to_float(images.images[part]) for part in (split.members, split.nonmembers))
    expected = attackers.set_test(data.to_float(images.generated("DistillMD", 6)), *sides)
    assert [rows["DistillMD 3 of 4"][key][0] for key in ("set_statistic", "set_p")] == pytest.approx(expected)
    (table,) = (run / "seed-0").rglob("frontier.md")
    lines = {line.split("|")[1].strip(): line for line in table.read_text().splitlines()[2:] if "|" in line}
    assert lines["DistillMD 3 of 4"].split("|")[-2].strip() == f"{expected[1]:.3f}"


@pytest.mark.parametrize(
    "values, shown", [([0.2], "0.200"), ([0.2, 0.4], "0.600"), ([0.1, 0.2, 0.3], "0.400"), ([0.7, 0.8], "1.000")]
)
def test_the_p_values_of_several_trainings_become_one(values, shown):
    row = json.loads((ROOT / "results" / "frontier-cifar10-16-fid" / "frontier.json").read_text())[0]
    _, _, head, _, line, *_ = tables.frontier([ROOT], [row | {"set_p": values}])
    assert [text.split("|")[-2].strip() for text in (head, line)] == ["set-level p", shown]
