"""What grades the exercises of EXERCISES.md: a class an exercise, a point a test, named in plain words.

`python exercises.py grade` runs them on a student's copy of the project, and the suite on the project itself. Nothing
else in tests/ is needed. Expected values are worked out by hand or in plain Python; a failure says what was expected.
"""

import math

import numpy as np
import pytest
import torch

import attacks
import data
import dualmd
import fid
import metrics
from dualmd import NoiseSchedule
from lab.files import BadInput

BETA = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
ALPHA_BAR = [math.prod(1 - beta for beta in BETA[: t + 1]) for t in range(1000)] + [1.0]  # the last one is index -1's


def check(expected, wanted, compute, mistakes=None):
    """Fail, saying what was `expected` in words, unless compute() gives `wanted`, numbers in any form.

    `mistakes` has what would come out of a mistake, by its name: whoever made it is told.
    """
    __tracebackhide__ = True
    try:
        got = compute()
    except Exception as error:
        pytest.fail(f"expected {expected}; it raised {type(error).__name__}: {error}", pytrace=False)
    if close(got, wanted):
        return
    hints = [f" (as if {mistake})" for mistake, value in (mistakes or {}).items() if close(got, value)]
    pytest.fail(f"expected {expected}: {shown(wanted)}; got {shown(got)}{''.join(hints[:1])}", pytrace=False)


def close(got, wanted):
    try:
        got, wanted = (np.asarray(value, dtype=np.float64) for value in (got, wanted))
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-5, atol=1e-9)


def shown(value):
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        return repr(value)
    if array.ndim == 0:
        return f"{array:.6g}"
    head = ", ".join(f"{x:.6g}" for x in array.ravel()[:4])
    return f"[{head}{', ...' if array.size > 4 else ''}] of shape {array.shape}"


def refuses(expected, error, compute):
    """Fail unless compute() raises this error."""
    __tracebackhide__ = True
    try:
        got = compute()
    except error:
        return
    except Exception as other:
        pytest.fail(f"expected {expected}; it raised {type(other).__name__}: {other}", pytrace=False)
    pytest.fail(f"expected {expected}; got {shown(got)}", pytrace=False)


def numbers(*values):
    """Images of one pixel, one for each value."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 1, 1).clone()


def firsts(images):
    return images[:, 0, 0, 0].tolist()


class Model:
    """An eps model that answers `answer(x, t)`, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, x, t):
        self.asked.append((firsts(x), t.tolist()))
        return self.answer(x, t)

    @property
    def images(self):
        """The images that it was asked about."""
        return [image for images, _ in self.asked for image in images]

    @property
    def timesteps(self):
        return [t for _, ts in self.asked for t in ts]


def always(value):
    return Model(lambda x, t: torch.full_like(x, value))


class TestExercise1:
    def test_a_beta_and_an_alpha_bar_for_each_of_the_T_timesteps(self):
        check(
            "T = 1000, and beta and alpha_bar of shape (1000,)",
            [1000, 1000, 1000],
            lambda: [(s := NoiseSchedule()).T, *s.beta.shape, *s.alpha_bar.shape],
        )

    def test_beta_rises_linearly_and_both_ends_count(self):
        check(
            "beta from 1e-4 at t = 0 to 0.02 at t = 999, both included, at even distances",
            [BETA[0], BETA[1], BETA[500], BETA[999]],
            lambda: NoiseSchedule().beta[[0, 1, 500, 999]],
        )

    def test_alpha_bar_is_the_product_of_what_each_step_leaves(self):
        check(
            "alpha_bar_t = (1 - beta_0) (1 - beta_1) ... (1 - beta_t), t's own factor included",
            [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, 0.9 * 0.8 * 0.7 * 0.6],
            lambda: NoiseSchedule(T=4, beta_1=0.1, beta_T=0.4).alpha_bar,
            {
                "t's own factor were left out": [1, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7],
                "it were the product of the betas": [0.1, 0.1 * 0.2, 0.1 * 0.2 * 0.3, 0.1 * 0.2 * 0.3 * 0.4],
                "it were the sum": [0.9, 0.9 + 0.8, 0.9 + 0.8 + 0.7, 0.9 + 0.8 + 0.7 + 0.6],
            },
        )

    def test_it_is_exact_to_the_last_timestep(self):
        check("float64 and alpha_bar_999 = 4.0358e-05", [True, ALPHA_BAR[999]], self._last)

    def _last(self):
        schedule = NoiseSchedule()
        return [schedule.alpha_bar.dtype == torch.float64, schedule.alpha_bar[999].item()]


class TestExercise2:
    def test_x_t_is_a_share_of_the_image_and_a_share_of_the_noise(self):
        for t in (0, 500, 999):
            signal, noise = math.sqrt(ALPHA_BAR[t]), math.sqrt(1 - ALPHA_BAR[t])
            check(
                f"x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps at t = {t}, for x_0 = 0.5 and eps = 2",
                [signal * 0.5 + noise * 2],
                lambda t=t: firsts(NoiseSchedule().add_noise(numbers(0.5), t, numbers(2.0))),
                {
                    "there were no roots": [ALPHA_BAR[t] * 0.5 + (1 - ALPHA_BAR[t]) * 2],
                    "image and noise were swapped": [noise * 0.5 + signal * 2],
                    "the noise were subtracted": [signal * 0.5 - noise * 2],
                },
            )

    def test_every_image_may_have_a_timestep_of_its_own(self):
        ts, x0, eps = [0, 10, 999], [0.5, -1.0, 0.25], [2.0, 1.0, -3.0]
        wanted = [math.sqrt(ALPHA_BAR[t]) * x + math.sqrt(1 - ALPHA_BAR[t]) * e for t, x, e in zip(ts, x0, eps)]
        check(
            "each image noised to its own entry of t = [0, 10, 999]",
            wanted,
            lambda: firsts(NoiseSchedule().add_noise(numbers(*x0), torch.tensor(ts), numbers(*eps))),
        )

    def test_predict_x0_undoes_it(self):
        t, x_t, eps = 300, 0.7, -0.4
        wanted = (x_t - math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(ALPHA_BAR[t])
        check(
            "x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t) at t = 300, for x_t = 0.7 and eps = -0.4",
            [wanted],
            lambda: firsts(NoiseSchedule().predict_x0(numbers(x_t), t, numbers(eps))),
            {"the noise were added": [(x_t + math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(ALPHA_BAR[t])]},
        )


class TestExercise3:
    def test_it_is_the_mean_squared_error(self):
        x, target = numbers(1.0, 2.0), numbers(0.5, -1.0)
        check(
            "the mean over all pixels of (eps_model(x_t, t) - target)^2, a scalar, for predictions (3, 6) of (0.5, -1)",
            (2.5**2 + 7**2) / 2,
            lambda: dualmd.training_loss(Model(lambda x, t: 3 * x), x, torch.tensor([1, 2]), target),
            {
                "it were the sum": 3 * (2.5**2 + 7**2),
                "errors were not squared": (2.5 + 7) / 2,
                "the target were x_t": (2**2 + 4**2) / 2,
            },
        )

    def test_the_model_is_asked_once_for_x_t_at_t(self):
        model = always(0.0)
        check(
            "one question: x_t = (1, 2) at t = (7, 8)",
            [[1, 2], [7, 8]],
            lambda: (
                dualmd.training_loss(model, numbers(1.0, 2.0), torch.tensor([7, 8]), numbers(0, 0)),
                [model.images, model.timesteps],
            )[1],
        )

    def test_a_gradient_flows_into_the_model(self):
        weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

        def slope():
            dualmd.training_loss(lambda x, t: weight * x, numbers(1.0), torch.tensor([0]), numbers(1.0)).backward()
            return weight.grad

        check("d/dw of (w x - target)^2 = 2 (w x - target) x = 4, for w = 3, x = 1, target = 1", 4.0, slope)


def ddim(x, eps, t, t_next, clip=False):
    """DDIM eq. 12 with sigma = 0, of numbers."""
    x0 = (x - math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(ALPHA_BAR[t])
    x0 = min(max(x0, -1), 1) if clip else x0
    return math.sqrt(ALPHA_BAR[t_next]) * x0 + math.sqrt(1 - ALPHA_BAR[t_next]) * eps


class TestExercise4:
    def test_a_step_towards_the_image(self):
        for t, t_next in ((500, 490), (999, 0)):
            check(
                f"sqrt(alpha_bar_next) x_0 + sqrt(1 - alpha_bar_next) eps from t = {t} to {t_next}, with the x_0 that "
                "eps amounts to",
                [ddim(0.5, -0.3, t, t_next)],
                lambda t=t, t_next=t_next: firsts(NoiseSchedule().ddim_step(numbers(0.5), numbers(-0.3), t, t_next)),
                {"t and t_next were swapped": [ddim(0.5, -0.3, t_next, t)], "nothing had moved": [0.5]},
            )

    def test_a_step_towards_the_noise(self):
        check(
            "the same formula from t = 40 up to 50: DDIM inversion",
            [ddim(0.5, -0.3, 40, 50)],
            lambda: firsts(NoiseSchedule().ddim_step(numbers(0.5), numbers(-0.3), 40, 50)),
            {"it went down all the same": [ddim(0.5, -0.3, 40, 30)]},
        )

    def test_the_step_to_minus_1_ends_at_the_clean_image(self):
        check(
            "x_0 itself at t_next = -1, where alpha_bar is 1",
            [ddim(0.5, -0.3, 10, -1)],
            lambda: firsts(NoiseSchedule().ddim_step(numbers(0.5), numbers(-0.3), 10, -1)),
        )

    def test_with_clip_the_image_in_between_stays_in_range(self):
        check(
            "x_0 clipped to [-1, 1] before the step, from t = 900 to 890",
            [ddim(0.5, -0.3, 900, 890, clip=True), ddim(0.5, 0.52, 900, 890, clip=True)],
            lambda: firsts(NoiseSchedule().ddim_step(numbers(0.5, 0.5), numbers(-0.3, 0.52), 900, 890, clip=True)),
            {"nothing were clipped": [ddim(0.5, -0.3, 900, 890), ddim(0.5, 0.52, 900, 890)]},
        )

    def test_with_eta_fresh_noise_replaces_some_of_the_old(self):
        t, t_next, eta, x, eps, z = 500, 400, 0.5, 0.5, -0.3, 2.0
        now, then = ALPHA_BAR[t], ALPHA_BAR[t_next]
        sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        wanted = math.sqrt(then) * x0 + math.sqrt(1 - then - sigma**2) * eps + sigma * z
        without = math.sqrt(then) * x0 + math.sqrt(1 - then) * eps + sigma * z
        check(
            "DDIM eq. 12 and 16 for eta = 0.5: sigma z in, and sqrt(1 - alpha_bar_next - sigma^2) eps left",
            [wanted],
            lambda: firsts(NoiseSchedule().ddim_step(numbers(x), numbers(eps), t, t_next, eta, numbers(z))),
            {"eps kept all of its share": [without], "eta were 0": [ddim(x, eps, t, t_next)]},
        )


def ddpm(x, eps, t, z=0.0):
    """DDPM algorithm 2, of numbers."""
    return (x - BETA[t] / math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(1 - BETA[t]) + math.sqrt(BETA[t]) * z


class TestExercise5:
    def test_without_noise_it_is_the_mean_of_equation_11(self):
        for t in (1, 500, 999):
            check(
                f"(x - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(1 - beta_t) at t = {t} for x = 0.5, eps = -0.3",
                [ddpm(0.5, -0.3, t)],
                lambda t=t: firsts(NoiseSchedule().ddpm_step(numbers(0.5), numbers(-0.3), t, numbers(0.0))),
                {
                    "eps were added": [ddpm(0.5, 0.3, t)],
                    "it were the DDIM step": [ddim(0.5, -0.3, t, t - 1)],
                    "it were not divided by sqrt(1 - beta_t)": [ddpm(0.5, -0.3, t) * math.sqrt(1 - BETA[t])],
                },
            )

    def test_the_noise_has_the_standard_deviation_sqrt_beta(self):
        check(
            "the mean plus sqrt(beta_t) z at t = 500, for z = 2",
            [ddpm(0.5, -0.3, 500, 2.0)],
            lambda: firsts(NoiseSchedule().ddpm_step(numbers(0.5), numbers(-0.3), 500, numbers(2.0))),
            {
                "the root of beta_t were missing": [ddpm(0.5, -0.3, 500) + BETA[500] * 2.0],
                "there were no noise": [ddpm(0.5, -0.3, 500)],
            },
        )

    def test_the_last_step_adds_no_noise(self):
        check(
            "the mean alone at t = 0, whatever z is",
            [ddpm(0.5, -0.3, 0)],
            lambda: firsts(NoiseSchedule().ddpm_step(numbers(0.5), numbers(-0.3), 0, numbers(2.0))),
            {"z were added": [ddpm(0.5, -0.3, 0, 2.0)]},
        )

    def test_with_clip_eps_is_that_of_the_clipped_image(self):
        t, x, eps = 900, 0.5, -0.3  # eps amounts to an image far above 1
        clipped = (x - math.sqrt(ALPHA_BAR[t]) * 1.0) / math.sqrt(1 - ALPHA_BAR[t])
        check(
            "the step with the eps of which x_0 = 1 comes out, at t = 900",
            [ddpm(x, clipped, t, 2.0)],
            lambda: firsts(NoiseSchedule().ddpm_step(numbers(x), numbers(eps), t, numbers(2.0), clip=True)),
            {"nothing were clipped": [ddpm(x, eps, t, 2.0)]},
        )


class TestExercise6:
    def parts(self, *args, **kwargs):
        split = data.index_split(*args, **kwargs)
        return [part.tolist() for part in (split.a, split.b, split.nonmembers, split.reference)]

    def test_halves_of_one_size_and_as_many_non_members(self):
        check(
            "of 100 images and 20 members: 10 in A, 10 in B, 20 non-members, 20 for a reference model",
            [10, 10, 20, 20],
            lambda: [len(part) for part in self.parts(100, members=20)],
            {"A and B had all members each": [20, 20, 20, 20]},
        )

    def test_no_image_is_in_two_of_them(self):
        check(
            "60 different images out of 0..99",
            [60, True],
            lambda: (lambda all_: [len(set(all_)), set(all_) <= set(range(100))])(sum(self.parts(100, 20), [])),
        )

    def test_they_are_cut_from_the_permutation_in_order(self):
        order = np.random.RandomState(3).permutation(100)
        for name, at, (first, last) in (("A", 0, (0, 10)), ("B", 1, (10, 20)), ("non-members", 2, (50, 70))):
            check(
                f"{name} = permutation[{first}:{last}] of RandomState(seed = 3)",
                order[first:last],
                lambda at=at: self.parts(100, members=20, seed=3)[at],
            )

    def test_by_default_all_images_are_used(self):
        check(
            "of 50,000 images 12,500 in A and in B, 25,000 non-members, and none left for a reference model",
            [12_500, 12_500, 25_000, 0],
            lambda: [len(part) for part in self.parts(50_000)],
        )

    def test_an_odd_or_impossible_number_of_members_is_refused(self):
        for members in (7, 0, 102):
            refuses(
                f"BadInput for {members} members of 100 images",
                BadInput,
                lambda members=members: len(self.parts(100, members=members)[0]),
            )

    def test_published_pools_are_kept_apart(self, tmp_path):
        members, others = np.arange(20, 40), np.arange(60, 80)
        np.savez(tmp_path / "split.npz", mia_train_idxs=members, mia_eval_idxs=others)
        path = tmp_path / "split.npz"
        check(
            "members 20..39 and non-members 60..79, as the file has them",
            [list(members), list(others)],
            lambda: (lambda a, b, nonmembers, _: [sorted(a + b), sorted(nonmembers)])(
                *self.parts(100, 20, published=path)
            ),
            {"members and non-members were swapped": [list(others), list(members)]},
        )


class TestExercise7:
    def test_a_answers_first_and_they_take_turns(self):
        check(
            "A (answering 1) at t = 0 and 20, B (answering 2) at t = 10 and 30",
            [1, 2, 1, 2],
            lambda: firsts(dualmd.DualMD(always(1), always(2))(numbers(0, 0, 0, 0), torch.tensor([0, 10, 20, 30]))),
            {"B answered first": [2, 1, 2, 1], "A answered at each even t": [1, 1, 1, 1]},
        )

    def test_between_two_steps_it_is_still_the_same_turn(self):
        check(
            "A at t = 9, B at t = 19, A at t = 29: turns last `stride` timesteps",
            [1, 2, 1],
            lambda: firsts(dualmd.DualMD(always(1), always(2))(numbers(0, 0, 0), torch.tensor([9, 19, 29]))),
        )

    def test_the_stride_is_the_samplers(self):
        check(
            "with stride 25: A at 0 and 24, B at 25 and 49, A at 50",
            [1, 1, 2, 2, 1],
            lambda: firsts(
                dualmd.DualMD(always(1), always(2), stride=25)(
                    numbers(0, 0, 0, 0, 0), torch.tensor([0, 24, 25, 49, 50])
                )
            ),
        )

    def test_nobody_is_asked_for_what_the_other_answers(self):
        a, b = always(1), always(2)
        check(
            "A asked about images 0.1 and 0.3 only, B about 0.2 only",
            [0.1, 0.3, 0.2],
            lambda: (
                dualmd.DualMD(a, b)(numbers(0.1, 0.2, 0.3), torch.tensor([0, 10, 20])),
                a.images + b.images,
            )[1],
        )


class TestExercise8:
    T, IN_A = torch.tensor([1, 2, 3]), torch.tensor([True, False, True])

    def targets(self, a, b, how):
        return dualmd.distill_targets(a, b, numbers(0.1, 0.2, 0.3), self.T, self.IN_A, how)

    def test_average_targets_are_the_mean_of_both(self):
        check(
            "(A + B) / 2 = 1.5 for every image",
            [1.5, 1.5, 1.5],
            lambda: firsts(self.targets(always(1), always(2), "average")),
            {"they were the sum": [3, 3, 3]},
        )

    def test_cross_targets_come_from_the_teacher_that_never_saw_the_image(self):
        check(
            "for images of half A, B's answer (2); for those of half B, A's (1)",
            [2, 1, 2],
            lambda: firsts(self.targets(always(1), always(2), "cross")),
            {"each came from the teacher that did see it": [1, 2, 1], "they were averaged": [1.5, 1.5, 1.5]},
        )

    def test_nobody_is_asked_about_images_that_it_knows_by_heart(self):
        a, b = always(1), always(2)
        check(
            "A asked about image 0.2, of half B, at t = 2; B about 0.1 and 0.3 at t = 1 and 3",
            [[0.2, 0.1, 0.3], [2, 1, 3]],
            lambda: (self.targets(a, b, "cross"), [a.images + b.images, a.timesteps + b.timesteps])[1],
        )

    def test_any_other_name_is_refused(self):
        refuses('ValueError for targets "both"', ValueError, lambda: self.targets(always(1), always(2), "both"))


def noised(x, t, eps):
    return np.sqrt(ALPHA_BAR[t]) * x + np.sqrt(1 - ALPHA_BAR[t]) * eps


class TestExercise9:
    X0 = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1

    def answer(self, x, t):
        return np.sin(2 * x + t / 70) + x * math.sqrt(1 - ALPHA_BAR[t])

    def model(self):
        return Model(lambda x, t: torch.from_numpy(self.answer(x.numpy(), t[0].item())))

    def test_loss_is_minus_the_mean_squared_error_of_each_image(self):
        eps = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(7)).double().numpy()
        errors = ((self.answer(noised(self.X0.numpy(), 200, eps), 200) - eps) ** 2).reshape(3, -1)
        check(
            "minus the mean over an image's pixels of (eps_model(x_t, t) - eps)^2, at t = 200",
            -errors.mean(1),
            lambda: attacks.loss(
                self.model(), NoiseSchedule(), self.X0, 200, generator=torch.Generator().manual_seed(7)
            ),
            {"the sign were missing": errors.mean(1), "it were the sum": -errors.sum(1)},
        )

    def test_pia_takes_the_answer_at_0_for_the_noise(self):
        eps0 = self.answer(self.X0.numpy(), 0)
        errors = np.abs(self.answer(noised(self.X0.numpy(), 200, eps0), 200) - eps0).reshape(3, -1)
        check(
            "minus the sum over an image's pixels of |eps_model(x_t, t) - eps0|^4, with x_t noised by eps0, at t = 200",
            -(errors**4).sum(1),
            lambda: attacks.pia(self.model(), NoiseSchedule(), self.X0, 200),
            {"the sign were missing": (errors**4).sum(1), "it were the mean": -(errors**4).mean(1)},
        )
        check(
            "the same with |...|^2 for p = 2",
            -(errors**2).sum(1),
            lambda: attacks.pia(self.model(), NoiseSchedule(), self.X0, 200, p=2),
        )

    def _ddim(self, x, t, t_next, at=None):
        eps = self.answer(x, t)
        x0 = (x - math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(ALPHA_BAR[t])
        return noised(x0, t_next, eps)

    def test_secmi_is_what_a_step_up_and_back_changes(self):
        x = self.X0.numpy()
        for s in (0, 10, 20):
            x = self._ddim(x, s, s + 10)
        back = self._ddim(self._ddim(x, 30, 40), 40, 30)
        check(
            "minus the sum of squares of (back at 30, after a step up to 40) - (x at 30), with x walked up from 0",
            -((back - x) ** 2).reshape(3, -1).sum(1),
            lambda: attacks.secmi(self.model(), NoiseSchedule(), self.X0, 40),
        )

    def test_each_attack_asks_no_more_than_it_needs(self):
        def asked(attack, **kwargs):
            model = self.model()
            attack(model, NoiseSchedule(), self.X0[:1], 40, **kwargs)
            return model.timesteps

        for name, wanted in (("loss", [40]), ("pia", [0, 40]), ("secmi", [0, 10, 20, 30, 40])):
            kwargs = {"generator": torch.Generator()} if name == "loss" else {}
            check(
                f"{name} to ask at t = {wanted}",
                wanted,
                lambda name=name, kwargs=kwargs: asked(getattr(attacks, name), **kwargs),
            )


class TestExercise10:
    def auc(self, members, nonmembers):
        return metrics.auc(np.array(members, dtype=float), np.array(nonmembers, dtype=float))

    def test_it_is_the_share_of_pairs_that_are_in_order(self):
        check(
            "5 of the 6 pairs of (3, 1.5) with (2, 1, 0) in order",
            5 / 6,
            lambda: self.auc([3, 1.5], [2, 1, 0]),
            {"members and non-members were swapped": 1 / 6},
        )

    def test_equal_scores_count_one_half(self):
        check("1/2 where all scores are equal", 0.5, lambda: self.auc([1, 1], [1, 1, 1]), {"ties counted 0": 0.0})
        check(
            "pairs of (1, 2, 2) with (2, 0): 1 tie and a win, twice; 0 and a win: 4 / 6",
            4 / 6,
            lambda: self.auc([1, 2, 2], [2, 0]),
            {"ties counted 1": 5 / 6, "ties counted 0": 3 / 6},
        )

    def test_certainty_and_its_opposite(self):
        check("1 and 0", [1.0, 0.0], lambda: [self.auc([5, 4], [1, 2, 3]), self.auc([1, 2], [3, 4])])

    def test_any_scores_at_all(self):
        random = np.random.RandomState(0)
        members, nonmembers = random.randint(0, 9, 50), random.randint(0, 7, 30)
        wins = sum((m > n) + (m == n) / 2 for m in members for n in nonmembers)
        check(
            "what all 1,500 pairs give, one by one", wins / (50 * 30), lambda: self.auc(list(members), list(nonmembers))
        )


class TestExercise11:
    def scores(self):
        """Three timesteps: nothing to see, members far lower, members a little higher."""
        random = np.random.RandomState(0)
        members, nonmembers = random.randn(2, 3, 60)
        return members + np.array([[0], [-2.5], [0.5]]), nonmembers

    def test_the_best_timestep_and_its_sign_are_found(self):
        check(
            "row 1 with sign -1, picked by each of the halves",
            [(1, -1), (1, -1)],
            lambda: metrics.adaptive(*self.scores()).choices,
            {"the sign were never turned": [(2, 1), (2, 1)]},
        )

    def test_an_auc_below_one_half_is_no_privacy(self):
        check("an AUC above 0.9", True, lambda: metrics.adaptive(*self.scores()).curve.auc > 0.9)

    def judged(self, members, nonmembers, seed=0):
        """AUC and accuracy once more: every image scored by the half that it is not in."""
        first, second = metrics.halves(members.shape[1], nonmembers.shape[1], seed)
        pooled, right = ([], []), 0
        for mine, other in ((second, first), (first, second)):
            learnt = members[:, mine[0]], nonmembers[:, mine[1]]
            _, scored = metrics._attacker(*learnt)
            threshold = metrics.roc(*map(scored, learnt)).threshold
            for kind, scores, rows in zip(pooled, (members, nonmembers), other, strict=True):
                kind.append(scored(scores[:, rows]))
            right += (pooled[0][-1] >= threshold).sum() + (pooled[1][-1] < threshold).sum()
        auc = metrics.auc(*(np.concatenate(kind) for kind in pooled))
        return [auc, right / (members.shape[1] + nonmembers.shape[1])]

    def test_nobody_is_judged_by_a_choice_that_it_was_part_of(self):
        random = np.random.RandomState(1)
        noise = random.randn(8, 40), random.randn(8, 50)
        for members, nonmembers in (noise, self.scores()):
            check(
                "AUC and accuracy of every image, each scored by the attacker of the half that it is not in",
                self.judged(members, nonmembers),
                lambda pair=(members, nonmembers): [(r := metrics.adaptive(*pair)).curve.auc, r.asr],
            )

    def test_the_interval_holds_the_luck_of_the_pick(self):
        check(
            "a 95 % interval around the AUC, from resamples that pick anew: wider than 0.1 where there is only noise",
            [True, True],
            lambda: (lambda low, high: [low < 0.5 < high, high - low > 0.1])(
                *metrics.adaptive(*np.random.RandomState(2).randn(2, 8, 40)).interval
            ),
        )

    def test_two_of_each_are_needed(self):
        refuses(
            "ValueError for a single member",
            ValueError,
            lambda: metrics.adaptive(np.zeros((3, 1)), np.zeros((3, 9))).curve.auc,
        )


class TestExercise12:
    def distance(self, mu1, cov1, mu2, cov2):
        return fid.frechet_distance(*(torch.tensor(x, dtype=torch.float64) for x in (mu1, cov1, mu2, cov2)))

    def test_in_one_dimension(self):
        check(
            "(mu1 - mu2)^2 + (sigma1 - sigma2)^2 = 4 + 1, for variances 9 and 4",
            5.0,
            lambda: self.distance([1.0], [[9.0]], [3.0], [[4.0]]),
            {"the means were left out": 1.0, "the root's trace were left out": 17.0, "it were taken once": 11.0},
        )

    def test_nothing_to_itself_and_never_less(self):
        cov = [[2.0, 0.5], [0.5, 1.0]]
        check(
            "0 between a Gaussian and itself, to nine digits",
            0.0,
            lambda: self.distance([1.0, 2.0], cov, [1.0, 2.0], cov),
        )

    def test_covariances_that_do_not_commute(self):
        cov1, cov2 = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
        trace_of_root = np.sqrt(np.linalg.eigvals(cov1 @ cov2)).sum()
        check(
            "Tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)) by the eigenvalues of the product",
            np.trace(cov1) + np.trace(cov2) - 2 * trace_of_root,
            lambda: self.distance([0.0, 0.0], cov1.tolist(), [0.0, 0.0], cov2.tolist()),
        )

    def test_fewer_images_than_features(self):
        check(
            "rank 1 in 3 dimensions, variances 4 and 9 along axes at right angles: 4 + 9, for the root is zero",
            13.0,
            lambda: self.distance([0.0] * 3, np.diag([4.0, 0, 0]).tolist(), [0.0] * 3, np.diag([0, 9.0, 0]).tolist()),
        )
        check(
            "the same along one axis: (3 - 2)^2",
            1.0,
            lambda: self.distance([0.0] * 3, np.diag([4.0, 0, 0]).tolist(), [0.0] * 3, np.diag([9.0, 0, 0]).tolist()),
        )
