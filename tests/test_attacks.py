"""Each score against its formula, worked out once more in numpy and float64, as the published code computes it."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import Spy

import attacks
from dualmd import DualMD, NoiseSchedule

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


def run(name, eps_model, x0, t=100):
    kwargs = {"generator": generator()} if name == "loss" else {}
    return getattr(attacks, name)(eps_model, SCHEDULE, x0, t, **kwargs)


ALL = ["loss", "secmi", "pia", "pian"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("t", [-1, 1000])
def test_t_must_be_a_timestep(name, t):
    with pytest.raises(ValueError, match="0 to 999"):
        run(name, model(), X0, t)


@pytest.mark.parametrize("name", ALL)
def test_scores_are_float32_and_keep_no_gradient(name):
    """SecMI compares two nearly equal images: in bfloat16 nothing of their difference would be left."""
    weight, inside = torch.ones((), requires_grad=True), []

    def eps_model(x, t):
        inside.append((torch.is_autocast_enabled("cpu"), torch.backends.cudnn.allow_tf32, x.dtype))
        return weight * torch.sin(x)

    with torch.autocast("cpu", torch.bfloat16):
        score = run(name, eps_model, X0)
    assert set(inside) == {(False, False, torch.float32)} and not score.requires_grad
    assert torch.backends.cudnn.enabled and torch.backends.cudnn.allow_tf32, "afterwards all is as it was"


@pytest.mark.parametrize("name", ["secmi", "pia", "pian"])
def test_each_image_has_a_score_of_its_own(name):
    together = run(name, model(), X0)
    alone = torch.cat([run(name, model(), X0[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", ["loss", "secmi", "pia"])  # not pian: it cannot scale the 0 noise that is found here
def test_a_model_that_knows_its_images_gives_them_away(name):
    """The exact eps model of a dataset of 8 images: attacked, it tells them from 8 others. Higher means member."""
    members, others = torch.rand(2, 8, 3, 8, 8, generator=generator(1), dtype=torch.float64) * 2 - 1

    def exact(x, t):
        """eps = (x_t - sqrt(alpha_bar_t) E[x_0 | x_t]) / sqrt(1 - alpha_bar_t), the mean over the dataset."""
        alpha_bar = SCHEDULE.alpha_bar[t][:, None]
        distance = torch.cdist(x.flatten(1) / alpha_bar.sqrt(), members.flatten(1))
        x0 = torch.softmax(-(distance**2) * alpha_bar / (2 * (1 - alpha_bar)), dim=1) @ members.flatten(1)
        return ((x.flatten(1) - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()).view(x.shape)

    scores = run(name, exact, torch.cat([members, others]))
    assert scores[:8].min() > scores[8:].max()


def test_attacks_reach_a_pipeline_of_two_models():
    a, b = model(), model()
    score = attacks.secmi(DualMD(a, b), SCHEDULE, X0, 100)
    torch.testing.assert_close(score, attacks.secmi(model(), SCHEDULE, X0, 100))
    assert a.timesteps == [0, 20, 40, 60, 80, 100] and b.timesteps == [10, 30, 50, 70, 90]
