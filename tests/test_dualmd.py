import math

import pytest
import torch
from conftest import Spy

from dualmd import DualMD, NoiseSchedule, denoise, distill_targets, training_loss

# the schedule once more, in plain Python
BETA = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
ALPHA_BAR = []
for beta in BETA:
    ALPHA_BAR.append((ALPHA_BAR[-1] if ALPHA_BAR else 1.0) * (1 - beta))


def alpha_bar(t):
    return 1.0 if t == -1 else ALPHA_BAR[t]


def images(n=4, seed=0):
    return torch.randn(n, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(model, schedule, shape, *, generator, **how):
    """Images from noise that `generator` draws first."""
    return denoise(model, schedule, torch.randn(shape, generator=generator), generator=generator, **how)


# --- schedule ---


def test_schedule():
    schedule = NoiseSchedule()
    assert schedule.T == 1000 and schedule.alpha_bar.dtype == torch.float64
    torch.testing.assert_close(schedule.beta, torch.tensor(BETA, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.alpha_bar, torch.tensor(ALPHA_BAR, dtype=torch.float64), rtol=1e-10, atol=0)
    assert schedule.alpha_bar[999].item() == pytest.approx(4.0358e-05, rel=1e-4)  # DDPM's, as widely quoted
    other = NoiseSchedule(T=10, beta_1=0.1, beta_T=0.1)
    assert other.alpha_bar[-1].item() == pytest.approx(0.9**10)


def test_a_schedule_that_sets_only_what_exercise_1_asks_for():
    class Written(NoiseSchedule):
        def __init__(self):
            self.T, self.beta = 4, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
            self.alpha_bar = torch.cumprod(1 - self.beta, 0)

    x0, eps = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 2.0)
    expected = NoiseSchedule(4, 0.1, 0.4).add_noise(x0, 2, eps)
    torch.testing.assert_close(Written().add_noise(x0, 2, eps), expected)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_add_noise(t):
    x0, eps = images(seed=1), images(seed=2)
    expected = math.sqrt(ALPHA_BAR[t]) * x0 + math.sqrt(1 - ALPHA_BAR[t]) * eps
    torch.testing.assert_close(NoiseSchedule().add_noise(x0, t, eps), expected)
    torch.testing.assert_close(NoiseSchedule().predict_x0(expected, t, eps), x0)
    torch.testing.assert_close(NoiseSchedule().predict_eps(expected, t, x0), eps)


def test_a_timestep_for_each_image():
    schedule, x, eps, z = NoiseSchedule(), images(seed=1), images(seed=2), images(seed=3)
    t, t_next = torch.tensor([0, 10, 500, 999]), torch.tensor([-1, 0, 400, 1])
    rows = [(x[i : i + 1], eps[i : i + 1], z[i : i + 1], int(t[i]), int(t_next[i])) for i in range(4)]
    alone = torch.cat([schedule.add_noise(x, t, eps) for x, eps, _, t, _ in rows])
    torch.testing.assert_close(schedule.add_noise(x, t, eps), alone)
    alone = torch.cat([schedule.ddim_step(x, eps, t, t_next) for x, eps, _, t, t_next in rows])
    torch.testing.assert_close(schedule.ddim_step(x, eps, t, t_next), alone)
    alone = torch.cat([schedule.ddim_step(x, eps, t, t_next, 0.7, z) for x, eps, z, t, t_next in rows])
    torch.testing.assert_close(schedule.ddim_step(x, eps, t, t_next, 0.7, z), alone)


def test_float32_keeps_its_digits_at_t_0():
    """1 - alpha_bar_0 = 1e-4: computed in float32 it would be wrong in the fourth digit."""
    x = NoiseSchedule().add_noise(torch.zeros(1, 3, 1, 1), 0, torch.ones(1, 3, 1, 1))
    assert x.dtype == torch.float32
    assert x[0, 0, 0, 0].item() == pytest.approx(0.01, rel=1e-6)


# --- steps ---


@pytest.mark.parametrize("t, t_next", [(999, 989), (10, 0), (0, -1), (500, 499), (0, 10), (90, 100)])
def test_ddim_step(t, t_next):
    """DDIM eq. 12 with sigma = 0: up (inversion) or down."""
    x, eps = images(seed=1), images(seed=2)
    x0 = (x - math.sqrt(1 - alpha_bar(t)) * eps) / math.sqrt(alpha_bar(t))
    expected = math.sqrt(alpha_bar(t_next)) * x0 + math.sqrt(1 - alpha_bar(t_next)) * eps
    torch.testing.assert_close(NoiseSchedule().ddim_step(x, eps, t, t_next), expected)


@pytest.mark.parametrize("t, t_next, eta", [(999, 989, 1.0), (500, 400, 0.3), (10, 0, 1.0), (0, -1, 1.0)])
def test_ddim_step_with_noise(t, t_next, eta):
    """DDIM eq. 12 and 16."""
    x, eps, z = images(seed=1), images(seed=2), images(seed=3)
    now, then = alpha_bar(t), alpha_bar(t_next)
    sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
    x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
    expected = math.sqrt(then) * x0 + math.sqrt(1 - then - sigma**2) * eps + sigma * z
    torch.testing.assert_close(NoiseSchedule().ddim_step(x, eps, t, t_next, eta, z), expected)


def test_rounding_leaves_no_root_of_a_negative_number():
    """From 999 to 0 with eta = 1, sigma^2 is all of 1 - alpha_bar_next, and in float32 a little more."""
    x, eps, z = (images(seed=seed).float() for seed in (1, 2, 3))
    assert NoiseSchedule().ddim_step(x, eps, 999, 0, 1.0, z).isfinite().all()


def test_inversion_and_its_inverse():
    schedule, x, eps = NoiseSchedule(), images(seed=1), images(seed=2)
    up = schedule.ddim_step(x, eps, 40, 50)
    assert not torch.allclose(up, x)
    torch.testing.assert_close(schedule.ddim_step(up, eps, 50, 40), x)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_ddpm_step(t):
    """DDPM algorithm 2."""
    x, eps, z = images(seed=1), images(seed=2), images(seed=3)
    expected = (x - BETA[t] / math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(1 - BETA[t])
    if t > 0:
        expected = expected + math.sqrt(BETA[t]) * z
    torch.testing.assert_close(NoiseSchedule().ddpm_step(x, eps, t, z), expected)


@pytest.mark.parametrize("t", [1, 500, 999])
def test_ddim_with_eta_1_has_ddpm_s_mean(t):
    schedule, x, eps, zero = NoiseSchedule(), images(seed=1), images(seed=2), torch.zeros(4, 3, 4, 4).double()
    torch.testing.assert_close(schedule.ddim_step(x, eps, t, t - 1, 1.0, zero), schedule.ddpm_step(x, eps, t, zero))


def test_training_loss():
    x, t, target = images(seed=1), torch.tensor([5, 6, 7, 8]), images(seed=2)
    model = Spy(lambda x, t: 2 * x)
    expected = sum(float(d) ** 2 for d in (2 * x - target).flatten()) / target.numel()
    assert training_loss(model, x, t, target).item() == pytest.approx(expected)
    assert torch.equal(model.asked[0][1], t)


# --- sampling ---


@pytest.mark.parametrize("how", [{}, {"eta": 1.0}, {"stride": 25}, {"method": "ddpm"}])
def test_sampling_finds_the_only_image_there_is(how):
    """With the exact eps model of a dataset that has one image, every sampler ends at that image."""
    schedule = NoiseSchedule()
    only = torch.rand(1, 3, 4, 4, generator=generator(1)) * 2 - 1

    def exact(x, t):
        alpha_bar = schedule.alpha_bar[t].float()[:, None, None, None]
        return (x - alpha_bar.sqrt() * only) / (1 - alpha_bar).sqrt()

    x = sample(exact, schedule, (2, 3, 4, 4), generator=generator(), **how)
    torch.testing.assert_close(x, only.expand(2, -1, -1, -1), atol=2e-3, rtol=0)


def test_ddpm_keeps_a_normal_distribution():
    """If images were standard normal, so would every x_t be: eps = sqrt(1 - alpha_bar_t) x_t."""
    schedule = NoiseSchedule(T=200)
    x = torch.randn(2000, 3, 2, 2, generator=generator(1))
    for t in range(199, -1, -1):
        z = torch.randn(x.shape, generator=generator(t + 2))
        x = schedule.ddpm_step(x, (1 - schedule.alpha_bar[t]).sqrt().float() * x, t, z)
    # the last step adds no noise: what is missing is beta_0
    assert x.var().item() == pytest.approx(1 - BETA[0], abs=0.03)
    assert x.mean().item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("method, stride, eta", [("ddim", 7, 0.0), ("ddim", 7, 0.5), ("ddpm", 1, 0.0)])
def test_sampling_step_by_step(method, stride, eta):
    """The loop once more, with its noise drawn in the order x_T, then one z a step; DDPM's by eq. 7."""
    schedule, shape, source = NoiseSchedule(T=20), (2, 3, 2, 2), generator(5)
    x = torch.randn(shape, generator=source)
    for t in range(19 // stride * stride, -1, -stride):
        now, then = schedule.alpha_bar[t].item(), schedule.alpha_bar[t - stride].item() if t else 1.0
        eps = 0.5 * x
        x0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
        if method == "ddpm":
            z, beta = torch.randn(shape, generator=source), schedule.beta[t].item()
            x = (math.sqrt(then) * beta * x0 + math.sqrt(1 - beta) * (1 - then) * x) / (1 - now)
            x = x + math.sqrt(beta) * z * (t > 0)
        else:
            sigma = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
            x = math.sqrt(then) * x0 + math.sqrt(1 - then - sigma**2) * eps
            x = x + sigma * torch.randn(shape, generator=source) if eta else x
    model = Spy(lambda x, t: 0.5 * x)
    result = sample(model, schedule, shape, generator=generator(5), method=method, stride=stride, eta=eta)
    torch.testing.assert_close(result, x.clamp(-1, 1))


def test_sampling_visits_every_stride_down_to_0():
    model = Spy()
    sample(model, NoiseSchedule(), (1, 3, 2, 2), generator=generator())
    assert model.timesteps == list(range(990, -1, -10))
    model = Spy()
    sample(model, NoiseSchedule(T=20), (1, 3, 2, 2), generator=generator(), stride=7)
    assert model.timesteps == [14, 7, 0]
    model = Spy()
    sample(model, NoiseSchedule(T=20), (1, 3, 2, 2), generator=generator(), method="ddpm")
    assert model.timesteps == list(range(19, -1, -1))


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_sampling_clips_the_image_at_every_step(method):
    """A model that finds no noise takes x_T, enlarged 157 times, for the image; clipped, x_t keeps its usual size."""
    model = Spy()
    x = sample(model, NoiseSchedule(), (1, 3, 2, 2), generator=generator(), method=method)
    assert max(asked.abs().max() for asked, _ in model.asked) < 8
    assert x.abs().max() == 1


def test_sampling_keeps_no_gradient():
    weight = torch.ones((), requires_grad=True)
    for how in ({}, {"method": "ddpm"}):
        x = sample(lambda x, t: weight * x, NoiseSchedule(T=20), (1, 3, 2, 2), generator=generator(), **how)
        assert not x.requires_grad


def test_sampling_is_seeded_and_strict():
    model, schedule = Spy(), NoiseSchedule()
    one, same, other = (sample(model, schedule, (1, 3, 2, 2), generator=generator(seed), eta=0.5) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(ValueError, match="ddim"):
        sample(model, schedule, (1, 3, 2, 2), generator=generator(), method="euler")


# --- DualMD ---


def two_models():
    return Spy(lambda x, t: torch.full_like(x, 1)), Spy(lambda x, t: torch.full_like(x, 2))


def test_dualmd_alternates():
    a, b = two_models()
    sample(DualMD(a, b), NoiseSchedule(), (1, 3, 2, 2), generator=generator())
    assert a.timesteps == list(range(980, -1, -20))  # t // 10 even, 0 among them
    assert b.timesteps == list(range(990, -1, -20))
    a, b = two_models()
    sample(DualMD(a, b, stride=25), NoiseSchedule(), (1, 3, 2, 2), generator=generator(), stride=25)
    assert a.timesteps == list(range(950, -1, -50)) and b.timesteps == list(range(975, -1, -50))


def test_dualmd_is_an_eps_model():
    a, b = two_models()
    x, t = images(), torch.tensor([0, 9, 10, 39])
    eps = DualMD(a, b)(x, t)
    assert eps.shape == x.shape and eps[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert a.asked[0][1].tolist() == [0, 9] and b.asked[0][1].tolist() == [10, 39]
    assert torch.equal(a.asked[0][0], x[:2]) and torch.equal(b.asked[0][0], x[2:])
    a, b = two_models()
    DualMD(a, b)(x, torch.tensor([0, 1, 2, 3]))
    assert not b.asked, "a model that has nothing to answer is not run"


# --- DistillMD ---

IN_A = torch.tensor([True, False, False, True])


def test_average_targets():
    a, b = two_models()
    targets = distill_targets(a, b, images(), torch.tensor([1, 2, 3, 4]), IN_A, "average")
    assert (targets == 1.5).all()
    assert a.asked[0][1].tolist() == b.asked[0][1].tolist() == [1, 2, 3, 4]
    assert len(a.asked) == len(b.asked) == 1 and len(a.asked[0][0]) == len(b.asked[0][0]) == 4


def test_cross_targets_come_from_the_teacher_that_never_saw_the_image():
    a, b = two_models()
    x, t = images(), torch.tensor([1, 2, 3, 4])
    targets = distill_targets(a, b, x, t, IN_A, "cross")
    assert targets[:, 0, 0, 0].tolist() == [2, 1, 1, 2]
    ((x_a, t_a),), ((x_b, t_b),) = a.asked, b.asked
    assert torch.equal(x_a, x[1:3]) and t_a.tolist() == [2, 3], "A is asked about B's images only"
    assert torch.equal(x_b, x[[0, 3]]) and t_b.tolist() == [1, 4], "B is asked about A's images only"


def test_targets_carry_no_gradient_and_are_named():
    weight = torch.ones((), requires_grad=True)
    x, t = images(), torch.tensor([1, 2, 3, 4])
    for targets in ("average", "cross"):
        assert not distill_targets(lambda x, t: weight * x, lambda x, t: weight * x, x, t, IN_A, targets).requires_grad
    with pytest.raises(ValueError, match="average"):
        distill_targets(*two_models(), x, t, IN_A, "both")
