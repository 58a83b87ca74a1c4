"""Each score against its formula, worked out once more in numpy and float64, as the published code computes it."""

import inspect
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Spy

import attacks
import metrics
from dualmd import DualMD, NoiseSchedule
from unet import UNet, UNetConfig

SCHEDULE = NoiseSchedule()
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
X0 = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def eps_np(x, t):
    """An eps model without symmetries: not odd in x, different at each t."""
    return np.sin(2 * x + t / 70) + 0.3 * np.cos(x * (1 + t / 500)) + x * math.sqrt(1 - ALPHA_BAR[t])


def model():
    return Spy(lambda x, t: torch.from_numpy(eps_np(x.double().numpy(), t[0].item())).to(x.dtype))


def ddim_np(x, eps, t, t_next):
    x0 = (x - np.sqrt(1 - ALPHA_BAR[t]) * eps) / np.sqrt(ALPHA_BAR[t])
    return np.sqrt(ALPHA_BAR[t_next]) * x0 + np.sqrt(1 - ALPHA_BAR[t_next]) * eps


def noised_np(x, t, eps):
    return np.sqrt(ALPHA_BAR[t]) * x + np.sqrt(1 - ALPHA_BAR[t]) * eps


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def close(score, expected, rtol):
    assert score.shape == (3,) and score.dtype == torch.float32
    np.testing.assert_allclose(score.numpy(), expected, rtol=rtol)


@pytest.mark.parametrize("t", [0, 50, 999])
def test_loss(t):
    x, eps = X0.double().numpy(), torch.randn(X0.shape, generator=generator()).double().numpy()
    expected = -((eps_np(noised_np(x, t, eps), t) - eps) ** 2).reshape(3, -1).mean(1)
    spy = model()
    close(attacks.loss(spy, SCHEDULE, X0, t, generator=generator()), expected, 1e-5)
    assert spy.timesteps == [t]


@pytest.mark.parametrize("t, stride", [(10, 10), (20, 10), (100, 10), (100, 20), (30, 1)])
def test_secmi(t, stride):
    """SecMI's ddim_multistep and ddim_singlestep."""
    x = X0.double().numpy()
    targets = list(range(0, t, stride))
    for now, then in itertools.pairwise(targets):
        x = ddim_np(x, eps_np(x, now), now, then)
    up = ddim_np(x, eps_np(x, t - stride), t - stride, t)
    back = ddim_np(up, eps_np(up, t), t, t - stride)
    spy = model()
    score = attacks.secmi(spy, SCHEDULE, X0, t, stride=stride)
    close(score, -((back - x) ** 2).reshape(3, -1).sum(1), 2e-3)  # a small difference of large numbers
    assert spy.timesteps == [*targets, t]
    double = attacks.secmi(model(), SCHEDULE, X0.double(), t, stride=stride)
    np.testing.assert_allclose(double.numpy(), -((back - x) ** 2).reshape(3, -1).sum(1), rtol=1e-8)


def wave(*shape, k):
    """f of ../shared/README.md: sin(i k + 0.3 sin(0.77 i)) over the numbers i of all entries."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(i * k + 0.3 * torch.sin(0.77 * i)).view(shape)


@pytest.mark.parametrize("t", [50, 100, 200, 300])
@pytest.mark.parametrize("name, rtol", [("secmi", 3e-4), ("pia", 2e-6), ("pian", 5e-6)])
def test_the_published_code_gives_the_same_errors(name, rtol, t):
    """peer_scores.json has what the code that PIA's authors published gives for this eps model, stride 10.

    Ours are the same numbers: no factor, no power, and the same t. The published code computes in float32, and SecMI's
    error is the small difference of two nearly equal images: so it agrees to four digits, and PIA to six.
    """
    kernel = (0.4 * wave(3, 3, 3, 3, k=1.7)).float()
    x0 = torch.tanh(1.3 * wave(6, 3, 16, 16, k=0.9) + wave(6, 3, 16, 16, k=0.013)).float()

    def eps_model(x, t):
        return torch.tanh(F.conv2d(x, kernel, padding=1) * (0.5 + t.view(-1, 1, 1, 1) / 1000) + 0.3 * x)

    published = json.loads((Path(__file__).parent / "peer_scores.json").read_text(encoding="utf-8"))[name][str(t)]
    ours = -getattr(attacks, name)(eps_model, SCHEDULE, x0, t)
    np.testing.assert_allclose(ours.numpy(), published, rtol=rtol)


def test_secmi_steps_by_10_unless_told():
    assert torch.equal(attacks.secmi(model(), SCHEDULE, X0, 100), attacks.secmi(model(), SCHEDULE, X0, 100, stride=10))


@pytest.mark.parametrize("t", [0, 15, 5])
def test_secmi_needs_a_multiple_of_its_stride(t):
    with pytest.raises(ValueError, match=f"t = {t}: .* multiple"):
        attacks.secmi(model(), SCHEDULE, X0, t)


@pytest.mark.parametrize("t", [0, 50, 200, 999])
@pytest.mark.parametrize("kwargs, p", [({}, 4), ({"p": 2}, 2), ({"p": 3}, 3)])
def test_pia(t, kwargs, p):
    x = X0.double().numpy()
    eps0 = eps_np(x, 0)
    expected = -(np.abs(eps_np(noised_np(x, t, eps0), t) - eps0) ** p).reshape(3, -1).sum(1)
    spy = model()
    close(attacks.pia(spy, SCHEDULE, X0, t, **kwargs), expected, 1e-4)
    assert spy.timesteps == [0, t]


@pytest.mark.parametrize("kwargs, p", [({}, 4), ({"p": 2}, 2)])
def test_pian(kwargs, p):
    x = X0.double().numpy()
    eps0 = eps_np(x, 0)
    scaled = np.stack([image / np.abs(image).mean() * np.sqrt(2 / np.pi) for image in eps0])
    expected = -(np.abs(eps_np(noised_np(x, 200, scaled), 200) - scaled) ** p).reshape(3, -1).sum(1)
    close(attacks.pian(model(), SCHEDULE, X0, 200, **kwargs), expected, 1e-4)


@pytest.mark.parametrize("kwargs, p", [({}, 4), ({"p": 2}, 2), ({"p": 1}, 1)])
def test_sima(kwargs, p):
    expected = -((np.abs(eps_np(X0.double().numpy(), 150)) ** p).reshape(3, -1).sum(1) ** (1 / p))
    spy = model()
    close(attacks.sima(spy, SCHEDULE, X0, 150, **kwargs), expected, 1e-5)
    assert spy.timesteps == [150] and torch.equal(spy.asked[0][0], X0), "one query, of the image as it is"


@pytest.mark.parametrize(
    "t, n, visited, kwargs",
    [(100, 6, [100, 50, 0], {}), (100, 3, [100, 50, 0], {"n": 3}), (30, 1, [30, 20, 10, 0], {"n": 1, "stride": 10})],
)
def test_rediffuse(t, n, visited, kwargs):
    """DDIM from t down to the clean image, as the sampler does it: the image in each step clipped, eps kept."""
    eps = torch.randn((3, n, *X0.shape[1:]), generator=generator()).double().numpy()
    variations = []
    for i in range(n):
        x = noised_np(X0.double().numpy(), t, eps[:, i])
        for now, then in itertools.pairwise([*visited, None]):
            answer = eps_np(x, now)
            x0 = np.clip((x - np.sqrt(1 - ALPHA_BAR[now]) * answer) / np.sqrt(ALPHA_BAR[now]), -1, 1)
            x = x0 if then is None else noised_np(x0, then, answer)
        variations.append(np.clip(x, -1, 1))
    expected = -((np.mean(variations, axis=0) - X0.double().numpy()) ** 2).reshape(3, -1).sum(1)
    spy = model()
    close(attacks.rediffuse(spy, SCHEDULE, X0, t, generator=generator(), **kwargs), expected, 1e-4)
    assert spy.timesteps == visited * n


def test_gradients_are_those_of_one_image_at_a_time():
    torch.manual_seed(0)
    network = UNet(UNetConfig(ch=8, mult=(1, 2), attn=(1,), blocks=1, dropout=0.3, groups=2)).double().eval()
    torch.nn.init.normal_(network.tail[-1].weight, std=0.1)
    x0 = torch.rand(5, 3, 8, 8, generator=generator(1), dtype=torch.float64) * 2 - 1
    eps = torch.randn(x0.shape, generator=generator()).double()
    norms = []
    for image, noise in zip(x0, eps, strict=True):
        x_t = torch.from_numpy(noised_np(image.numpy(), 120, noise.numpy()))[None]
        network.zero_grad()
        ((network(x_t, torch.tensor([120])) - noise) ** 2).mean().backward()
        norms.append([weight.grad.norm().item() for weight in network.parameters()])
    network.requires_grad_(False)  # as a checkpoint's is
    for chunk in (1, 2, 16):
        score = attacks.gradient_norms(network, SCHEDULE, x0, 120, generator=generator(), chunk=chunk)
        np.testing.assert_allclose(score.numpy(), np.log(np.maximum(norms, 1e-8)), rtol=1e-8)


def run(name, eps_model, x0, t=100):
    attack = getattr(attacks, name)
    kwargs = {"generator": generator()} if "generator" in inspect.signature(attack).parameters else {}
    return attack(eps_model, SCHEDULE, x0, t, **kwargs)


ALL = [name for name in attacks.HOLDS if name not in attacks.FEATURES] + ["round_trip", "gradient_norms"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("t", [-1, 1000])
def test_t_must_be_a_timestep(name, t):
    with pytest.raises(ValueError, match="0 to 999"):
        run(name, model(), X0, t)


class Sine(torch.nn.Module):
    """An eps model with a weight, that remembers what was the case inside it."""

    def __init__(self):
        super().__init__()
        self.weight, self.inside = torch.nn.Parameter(torch.ones(())), []

    def forward(self, x, t):
        cudnn = torch.backends.cudnn
        self.inside.append((torch.is_autocast_enabled("cpu"), cudnn.allow_tf32, cudnn.enabled, x.dtype))
        return self.weight * torch.sin(x)


@pytest.mark.parametrize("name", ALL)
def test_scores_are_float32_and_keep_no_gradient(name):
    """SecMI compares two nearly equal images: in bfloat16 nothing of their difference would be left."""
    network = Sine()
    with torch.autocast("cpu", torch.bfloat16):
        score = run(name, network, X0)
    assert set(network.inside) == {(False, False, True, torch.float32)} and not score.requires_grad
    assert torch.backends.cudnn.enabled and torch.backends.cudnn.allow_tf32, "afterwards all is as it was"


@pytest.mark.parametrize("name", ["secmi", "pia", "pian", "sima"])
def test_each_image_has_a_score_of_its_own(name):
    together = run(name, model(), X0)
    alone = torch.cat([run(name, model(), X0[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", ["loss", "rediffuse", "gradient_norms"])
def test_the_noise_is_the_same_however_images_are_batched(name):
    x0 = torch.rand(6, 3, 8, 8, generator=generator(1)) * 2 - 1
    network, kwargs = Sine(), {"generator": generator()}
    together = run(name, network, x0)
    parts = [getattr(attacks, name)(network, SCHEDULE, part, 100, **kwargs) for part in x0.split(2)]
    torch.testing.assert_close(together, torch.cat(parts))


# --- models that have learnt images by heart ----------------------------------------------------

MEMBERS, OTHERS, UNSEEN = torch.rand(3, 64, 3, 8, 8, generator=generator(1), dtype=torch.float64) * 2 - 1
BOTH = torch.cat([MEMBERS, OTHERS])


class ByHeart(torch.nn.Module):
    """The exact eps model of a set of images, which are its weights."""

    def __init__(self, images):
        super().__init__()
        self.images = torch.nn.Parameter(images.flatten(1), requires_grad=False)

    def forward(self, x, t):
        """eps = (x_t - sqrt(alpha_bar_t) E[x_0 | x_t]) / sqrt(1 - alpha_bar_t), the mean over the set."""
        alpha_bar = SCHEDULE.alpha_bar[t][:, None]
        difference = x.flatten(1)[:, None] / alpha_bar[:, None].sqrt() - self.images
        odds = -difference.square().sum(2) * alpha_bar / (2 * (1 - alpha_bar))
        x0 = torch.softmax(odds, dim=1) @ self.images
        return ((x.flatten(1) - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()).view(x.shape)


def auc(scores, members=64):
    return metrics.auc(scores[:members].numpy(), scores[members:].numpy())


def learnt_scores(attack, features):
    """Those of every second image, from an attacker who learned on the others."""
    is_member = torch.arange(128) < 64
    return getattr(attacks, attack)(features[::2].float(), is_member[::2], features[1::2].float())


PLANTED = [name for name in ALL if name not in ("round_trip", "gradient_norms")]


@pytest.mark.parametrize("name", PLANTED)
def test_a_model_that_knows_its_images_gives_them_away(name):
    """Attacked, the exact model of 64 images tells them from 64 others. Higher means member."""
    assert auc(run(name, ByHeart(MEMBERS), BOTH)) == 1


@pytest.mark.parametrize("name", PLANTED)
def test_a_model_that_saw_neither_gives_nothing_away(name):
    assert 0.35 < auc(run(name, ByHeart(UNSEEN), BOTH)) < 0.65


@pytest.mark.parametrize("attack", attacks.FEATURES)
def test_an_attacker_learns_what_a_planted_model_gives_away(attack):
    features = attacks.FEATURES[attack].__name__
    assert auc(learnt_scores(attack, run(features, ByHeart(MEMBERS), BOTH)), 32) == 1
    assert 0.3 < auc(learnt_scores(attack, run(features, ByHeart(UNSEEN), BOTH)), 32) < 0.7


def test_gsa_once_more():
    """At its minimum the penalised loss has no slope, and no column's unit or origin counts."""
    norms, is_member = torch.randn(40, 7, generator=generator()).double(), torch.arange(40) % 3 == 0
    norms[:, 2] += is_member
    norms[:, 5] = 4  # a column that tells nothing
    mine, others = norms[:30], norms[30:]
    score = attacks.gsa(mine, is_member[:30], others)
    mean, std = mine.mean(0), mine.std(0)
    x, y = ((each - mean) / (std + (std == 0)) for each in (mine, others))
    w, bias = torch.zeros(7, dtype=torch.float64), 0.0
    for _ in range(50):  # Newton's method
        p = 1 / (1 + torch.exp(-(x @ w + bias)))
        full = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], 1)
        slope = full.T @ (p - is_member[:30].double()) + torch.cat([w, torch.zeros(1, dtype=x.dtype)])
        curve = full.T @ (full * (p * (1 - p))[:, None]) + torch.diag(torch.tensor([1.0] * 7 + [0.0], dtype=x.dtype))
        step = torch.linalg.solve(curve, slope)
        w, bias = w - step[:7], bias - step[7].item()
    np.testing.assert_allclose(score, y @ w + bias, atol=1e-4)
    assert not score.requires_grad and score.dtype == torch.float32
    torch.testing.assert_close(attacks.gsa(3 * mine + 5, is_member[:30], 3 * others + 5), score, atol=1e-3, rtol=0)
    torch.testing.assert_close(attacks.gsa(mine, ~is_member[:30], others), -score, atol=1e-3, rtol=0)


def test_secmi_nn_once_more():
    """Its sizes, its schedule and its numbers, written down a second time."""
    errors, is_member = torch.randn(40, 4, 9, 9, generator=generator()), torch.arange(40) % 3 == 0
    errors[0, 0, :3], errors[30, 1, :3] = 0, 1e-9
    mine, others = errors[:30], errors[30:]
    log = mine.abs().clamp(min=1e-8).log()
    mean, std = (f(log, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    x, y = (log - mean) / std, (others.abs().clamp(min=1e-8).log() - mean) / std
    state = torch.get_rng_state()
    score = attacks.secmi_nn(mine, is_member[:30], others, steps=30, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    layers = torch.nn.Conv2d(4, 16, 3), torch.nn.Conv2d(16, 32, 3), torch.nn.Linear(32, 1)
    weights = [weight for layer in layers for weight in layer.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=0.003, weight_decay=0.1)

    def network(x):
        h = torch.nn.functional.avg_pool2d(torch.conv2d(x, *weights[:2], padding=1).relu(), 2)
        return torch.conv2d(h, *weights[2:4], padding=1).relu().mean((2, 3)) @ weights[4][0] + weights[5]

    for _ in range(30):
        rows = torch.randint(30, (64,))
        signs = 2 * is_member[rows].float() - 1
        loss = torch.log1p(torch.exp(-signs * network(x[rows]))).mean()
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        optimizer.step()
    torch.testing.assert_close(score, network(y).detach(), rtol=1e-3, atol=1e-4)
    assert not score.requires_grad and attacks.secmi_nn.__kwdefaults__ == {"steps": 300, "seed": 0}


@pytest.mark.slow
def test_a_network_learns_from_its_own_half_alone():
    errors, is_member = torch.randn(40, 6, 8, 8, generator=generator()), torch.arange(40) < 20
    score = attacks.secmi_nn(errors[:30], is_member[:30], errors[30:], seed=1)
    assert torch.equal(score, attacks.secmi_nn(errors[:30], is_member[:30], errors[30:], seed=1))
    fewer = attacks.secmi_nn(errors[:30], is_member[:30], errors[35:], seed=1)
    torch.testing.assert_close(fewer, score[5:])  # whoever else is scored changes nothing
    assert not torch.equal(score, attacks.secmi_nn(errors[:30], is_member[:30], errors[30:], seed=2))
    scaled = attacks.secmi_nn(1000 * errors[:30], is_member[:30], 1000 * errors[30:], seed=1)
    torch.testing.assert_close(score, scaled, rtol=1e-2, atol=1e-2)  # errors count by their ratios
    torch.testing.assert_close(score, attacks.secmi_nn(-errors[:30], is_member[:30], -errors[30:], seed=1))
    turned = attacks.secmi_nn(errors[:30], ~is_member[:30], errors[30:], seed=1)
    assert ((turned > 0) != (score > 0)).float().mean() > 0.5, "above 0 is a member"


# --- attackers who hold, or know, something more ------------------------------------------------


def test_calibrated():
    scores, reference = -torch.tensor([1.0, 2, 8, 0.5]), -torch.tensor([2.0, 2, 2, 4])
    expected = np.log([2 / 1, 2 / 2, 2 / 8, 4 / 0.5])
    np.testing.assert_allclose(attacks.calibrated(scores, reference).numpy(), expected, rtol=1e-6)
    assert torch.isfinite(attacks.calibrated(torch.zeros(2), torch.tensor([0.0, -1]))).all()


class Average(torch.nn.Module):
    def __init__(self, *models):
        super().__init__()
        self.models = torch.nn.ModuleList(models)

    def forward(self, x, t):
        return torch.stack([model(x, t) for model in self.models]).mean(0)


@pytest.mark.parametrize("name", ["rediffuse", "loss", "sima"])
def test_a_reference_takes_away_what_makes_an_image_hard(name):
    """Contrast hides the members of a model that knows them only by halves; not from calibrated scores."""
    contrast = torch.linspace(0.2, 1, 64).double()[:, None, None, None]
    known, others, unseen = MEMBERS * contrast, OTHERS * contrast, UNSEEN * contrast
    both, reference = torch.cat([known, others]), ByHeart(unseen)
    scores = run(name, Average(ByHeart(known), reference), both, t=300)
    assert auc(scores) < 0.9 < auc(attacks.calibrated(scores, run(name, reference, both, t=300)))


@pytest.mark.parametrize("half, answered", [("A", [0, 0, 0, 20, 20, 40, 200]), ("B", [10, 10, 10, 30, 30, 50, 210])])
def test_isolate_half(half, answered):
    a, b = model(), model()
    isolated = attacks.isolate_half(DualMD(a, b), half)
    for t, asked in zip([0, 5, 19, 20, 39, 45, 200], answered, strict=True):
        found = isolated(X0, torch.full((3,), t))
        asked_model, other = (a, b) if half == "A" else (b, a)
        assert asked_model.timesteps[-1] == asked and not other.asked
        assert torch.equal(found, model()(X0, torch.full((3,), asked)))
    c, d = model(), model()
    attacks.isolate_half(DualMD(c, d, stride=50), half, stride=50)(X0, torch.full((3,), 120))
    assert [len(c.asked), len(d.asked)] == ([1, 0] if half == "A" else [0, 1])


def test_combine_scores():
    """Where one of two models betrays an image, the maximum does; and a wild outlier does not spoil it."""
    one = torch.tensor([0.0, 1, 2, 3, 4]) * 10 + 5
    other = torch.tensor([1e9, 3, 2, 1, 0])
    first, second = (np.arange(5) - 2) / 2, (np.array([1e9, 3, 2, 1, 0]) - 2) / 2
    np.testing.assert_allclose(
        attacks.combine_scores([one, other], "max").numpy(), np.maximum(first, second), rtol=1e-6
    )
    np.testing.assert_allclose(attacks.combine_scores([one, other], "sum").numpy(), first + second, rtol=1e-6)
    equal, expected = torch.tensor([7.0, 7, 7, 7, 9]), torch.from_numpy(first) + torch.tensor([0, 0, 0, 0, 2])
    torch.testing.assert_close(attacks.combine_scores([one, equal], "sum"), expected.float())
    rows = torch.stack([one, one.flip(0)]), torch.stack([other, other])
    assert torch.equal(attacks.combine_scores(rows, "max")[0], attacks.combine_scores([one, other], "max"))


@pytest.mark.parametrize("name", [name for name in PLANTED if name != "rediffuse"])
def test_who_knows_the_defence_undoes_it(name):
    """A knows the first half of the members by heart, B the second. Alternating asks neither of them alone."""
    a, b = ByHeart(MEMBERS[:32]), ByHeart(MEMBERS[32:])
    leaked = attacks.combine_scores([run(name, a, BOTH), run(name, b, BOTH)], "max")
    assert auc(leaked) > (0.95 if name == "secmi" else 0.99)
    dual = DualMD(a, b)
    sides = [run(name, attacks.isolate_half(dual, half), BOTH) for half in "AB"]
    assert auc(run(name, dual, BOTH)) < 0.9 < 0.99 < auc(attacks.combine_scores(sides, "max"))


def test_attacks_reach_a_pipeline_of_two_models():
    a, b = model(), model()
    score = attacks.secmi(DualMD(a, b), SCHEDULE, X0, 100)
    torch.testing.assert_close(score, attacks.secmi(model(), SCHEDULE, X0, 100))
    assert a.timesteps == [0, 20, 40, 60, 80, 100] and b.timesteps == [10, 30, 50, 70, 90]
