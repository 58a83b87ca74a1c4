"""The tests that grade the exercises of EXERCISES.md: one class for each exercise, one test for each point.

`python -m course grade` runs them on a student's copy of the project. pytest also runs them on the project itself.
Expected values are calculated by hand or in plain Python. A failed test says what was expected.
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
ALPHA_BAR = [math.prod(1 - beta for beta in BETA[: t + 1]) for t in range(1000)] + [1.0]  # the last one has index -1


def check(expected, wanted, compute, mistakes=None):
    """Fail unless compute() gives the numbers, or raises the error, `wanted`. The message says what was `expected`.

    `mistakes` maps the name of a mistake to the numbers that it leads to. The message names the mistake.
    """
    __tracebackhide__ = True
    try:
        got = compute()
    except Exception as error:
        if isinstance(wanted, type) and isinstance(error, wanted):
            return
        pytest.fail(f"expected {expected}; it raised {type(error).__name__}: {error}", pytrace=False)
    if close(got, wanted):
        return
    hints = [f" (it looks as if {mistake})" for mistake, value in (mistakes or {}).items() if close(got, value)]
    pytest.fail(f"expected {expected}: {shown(wanted)}; got {shown(got)}{''.join(hints[:1])}", pytrace=False)


def as_array(value):
    """`value` as float64, or None if it does not consist of numbers."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        return None


def close(got, wanted):
    got, wanted = as_array(got), as_array(wanted)
    comparable = got is not None and wanted is not None and got.shape == wanted.shape
    return comparable and np.allclose(got, wanted, rtol=1e-5, atol=1e-9)


def shown(value):
    array = as_array(value)
    if array is None:
        return getattr(value, "__name__", repr(value))
    if array.ndim == 0:
        return f"{array:.6g}"
    head = ", ".join(f"{x:.6g}" for x in array.ravel()[:4])
    return f"[{head}{', ...' if array.size > 4 else ''}] of shape {array.shape}"


def pixels(*levels):
    """Images of one pixel, one for each of these values."""
    return torch.tensor(levels, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 1, 1).clone()


def values(images):
    """The value of each image that `pixels` made."""
    return images[:, 0, 0, 0].tolist()


class Model:
    """An eps model that answers `answer(x, t)`. It remembers the images and timesteps of all calls."""

    def __init__(self, answer):
        self.answer, self.images, self.timesteps = answer, [], []

    def __call__(self, x, t):
        self.images += values(x)
        self.timesteps += t.tolist()
        return self.answer(x, t)


def always(value):
    return Model(lambda x, t: torch.full_like(x, value))


def noised(x0, t, eps):
    """DDPM eq. 4, of numbers or arrays."""
    return math.sqrt(ALPHA_BAR[t]) * x0 + math.sqrt(1 - ALPHA_BAR[t]) * eps


def denoised(x, t, eps):
    """DDIM eq. 9, of numbers or arrays."""
    return (x - math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(ALPHA_BAR[t])


def ddim(x, eps, t, t_next, clip=False):
    """DDIM eq. 12 with sigma = 0, of numbers or arrays."""
    x0 = denoised(x, t, eps)
    return noised(np.clip(x0, -1, 1) if clip else x0, t_next, eps)


def ddpm(x, eps, t, z=0.0):
    """DDPM algorithm 2, of numbers."""
    return (x - BETA[t] / math.sqrt(1 - ALPHA_BAR[t]) * eps) / math.sqrt(1 - BETA[t]) + math.sqrt(BETA[t]) * z


class TestExercise1:
    def test_a_beta_and_an_alpha_bar_for_each_of_the_T_timesteps(self):
        check(
            "T = 1000, and beta and alpha_bar of shape (1000,)",
            [1000, 1000, 1000],
            lambda: [(s := NoiseSchedule()).T, *s.beta.shape, *s.alpha_bar.shape],
        )

    def test_beta_rises_linearly_and_includes_both_ends(self):
        check(
            "beta from 1e-4 at t = 0 to 0.02 at t = 999, both included, in equal steps",
            [BETA[0], BETA[1], BETA[500], BETA[999]],
            lambda: NoiseSchedule().beta[[0, 1, 500, 999]],
        )

    def test_alpha_bar_is_the_product_of_all_1_minus_beta_up_to_t(self):
        check(
            "alpha_bar_t = (1 - beta_0) (1 - beta_1) ... (1 - beta_t), with the factor of t itself",
            [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, 0.9 * 0.8 * 0.7 * 0.6],
            lambda: NoiseSchedule(T=4, beta_1=0.1, beta_T=0.4).alpha_bar,
            {
                "the factor of t itself is missing": [1, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7],
                "it is the product of the betas": [0.1, 0.1 * 0.2, 0.1 * 0.2 * 0.3, 0.1 * 0.2 * 0.3 * 0.4],
                "it is the sum": [0.9, 0.9 + 0.8, 0.9 + 0.8 + 0.7, 0.9 + 0.8 + 0.7 + 0.6],
            },
        )

    def test_it_is_float64_and_exact_at_the_last_timestep(self):
        check(
            "float64 (1 if it is, 0 if not), and alpha_bar_999 = 4.0358e-05",
            [True, ALPHA_BAR[999]],
            lambda: [(s := NoiseSchedule()).alpha_bar.dtype == torch.float64, s.alpha_bar[999].item()],
        )


class TestExercise2:
    def test_add_noise_takes_a_part_of_the_image_and_a_part_of_the_noise(self):
        for t in (0, 500, 999):
            signal, noise = math.sqrt(ALPHA_BAR[t]), math.sqrt(1 - ALPHA_BAR[t])
            check(
                f"x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps at t = {t}, for x_0 = 0.5 and eps = 2",
                [noised(0.5, t, 2)],
                lambda: values(NoiseSchedule().add_noise(pixels(0.5), t, pixels(2.0))),
                {
                    "the roots are missing": [ALPHA_BAR[t] * 0.5 + (1 - ALPHA_BAR[t]) * 2],
                    "image and noise are swapped": [noise * 0.5 + signal * 2],
                    "the noise is subtracted": [noised(0.5, t, -2)],
                },
            )

    def test_each_image_may_have_its_own_timestep(self):
        ts, x0, eps = [0, 10, 999], [0.5, -1.0, 0.25], [2.0, 1.0, -3.0]
        check(
            "each image noised to its own entry of t = [0, 10, 999]",
            list(map(noised, x0, ts, eps)),
            lambda: values(NoiseSchedule().add_noise(pixels(*x0), torch.tensor(ts), pixels(*eps))),
        )

    def test_predict_x0_is_the_inverse(self):
        check(
            "x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t) at t = 300, for x_t = 0.7 and eps = -0.4",
            [denoised(0.7, 300, -0.4)],
            lambda: values(NoiseSchedule().predict_x0(pixels(0.7), 300, pixels(-0.4))),
            {"the noise is added": [denoised(0.7, 300, 0.4)]},
        )


class TestExercise3:
    def test_it_is_the_mean_squared_error(self):
        x, target = pixels(1.0, 2.0), pixels(0.5, -1.0)
        check(
            "the mean over all pixels of (eps_model(x_t, t) - target)^2, a scalar, for predictions (3, 6) of (0.5, -1)",
            (2.5**2 + 7**2) / 2,
            lambda: dualmd.training_loss(Model(lambda x, t: 3 * x), x, torch.tensor([1, 2]), target),
            {
                "it is the sum": 3 * (2.5**2 + 7**2),
                "the errors are not squared": (2.5 + 7) / 2,
                "x_t is taken as the target": (2**2 + 4**2) / 2,
            },
        )

    def test_the_model_is_called_once_with_x_t_and_t(self):
        def calls():
            model = always(0.0)
            dualmd.training_loss(model, pixels(1.0, 2.0), torch.tensor([7, 8]), pixels(0, 0))
            return [model.images, model.timesteps]

        check("one call with x_t = (1, 2) and t = (7, 8)", [[1, 2], [7, 8]], calls)

    def test_the_gradient_reaches_the_model(self):
        def slope():
            weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
            dualmd.training_loss(lambda x, t: weight * x, pixels(1.0), torch.tensor([0]), pixels(1.0)).backward()
            return weight.grad

        check("d/dw of (w x - target)^2 = 2 (w x - target) x = 4, for w = 3, x = 1, target = 1", 4.0, slope)


class TestExercise4:
    def step(self, *args, eps=(-0.3,), **kwargs):
        """The step from images 0.5, with these predictions of the noise."""
        return values(NoiseSchedule().ddim_step(pixels(*[0.5] * len(eps)), pixels(*eps), *args, **kwargs))

    def test_a_step_towards_the_image(self):
        for t, t_next in ((500, 490), (999, 0)):
            check(
                f"sqrt(alpha_bar_next) x_0 + sqrt(1 - alpha_bar_next) eps from t = {t} to {t_next}, with the x_0 that "
                "predict_x0 gives",
                [ddim(0.5, -0.3, t, t_next)],
                lambda: self.step(t, t_next),
                {"t and t_next are swapped": [ddim(0.5, -0.3, t_next, t)], "nothing has changed": [0.5]},
            )

    def test_a_step_towards_the_noise(self):
        check(
            "the same formula from t = 40 up to 50 (DDIM inversion)",
            [ddim(0.5, -0.3, 40, 50)],
            lambda: self.step(40, 50),
            {"it goes down, to t = 30": [ddim(0.5, -0.3, 40, 30)]},
        )

    def test_the_step_to_minus_1_gives_the_clean_image(self):
        clean = denoised(0.5, 10, -0.3)
        check("x_0 itself at t_next = -1, where alpha_bar is 1", [clean], lambda: self.step(10, -1))

    def test_with_clip_the_predicted_image_stays_in_range(self):
        check(
            "x_0 clipped to [-1, 1] before the step, from t = 900 to 890",
            [ddim(0.5, -0.3, 900, 890, clip=True), ddim(0.5, 0.52, 900, 890, clip=True)],
            lambda: self.step(900, 890, eps=(-0.3, 0.52), clip=True),
            {"nothing is clipped": [ddim(0.5, -0.3, 900, 890), ddim(0.5, 0.52, 900, 890)]},
        )

    def test_with_eta_new_noise_replaces_a_part_of_the_old(self):
        t, t_next, eta, x, eps, z = 500, 400, 0.5, 0.5, -0.3, 2.0
        now, then = ALPHA_BAR[t], ALPHA_BAR[t_next]
        sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
        wanted = math.sqrt(then) * denoised(x, t, eps) + math.sqrt(1 - then - sigma**2) * eps + sigma * z
        check(
            "DDIM eq. 12 and 16 for eta = 0.5: sigma z is added, and sqrt(1 - alpha_bar_next - sigma^2) eps is left",
            [wanted],
            lambda: self.step(t, t_next, eta, pixels(z)),
            {
                "eps keeps its whole weight": [ddim(x, eps, t, t_next) + sigma * z],
                "eta is 0": [ddim(x, eps, t, t_next)],
            },
        )


class TestExercise5:
    def step(self, t, z, **kwargs):
        """The step from an image 0.5, with the noise predicted as -0.3."""
        return values(NoiseSchedule().ddpm_step(pixels(0.5), pixels(-0.3), t, pixels(z), **kwargs))

    def test_without_noise_it_is_the_mean_of_equation_11(self):
        for t in (1, 500, 999):
            check(
                f"(x - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(1 - beta_t) at t = {t} for x = 0.5, eps = -0.3",
                [ddpm(0.5, -0.3, t)],
                lambda: self.step(t, 0.0),
                {
                    "eps is added": [ddpm(0.5, 0.3, t)],
                    "it is the DDIM step": [ddim(0.5, -0.3, t, t - 1)],
                    "it is not divided by sqrt(1 - beta_t)": [ddpm(0.5, -0.3, t) * math.sqrt(1 - BETA[t])],
                },
            )

    def test_the_noise_has_the_standard_deviation_sqrt_beta(self):
        check(
            "the mean plus sqrt(beta_t) z at t = 500, for z = 2",
            [ddpm(0.5, -0.3, 500, 2.0)],
            lambda: self.step(500, 2.0),
            {
                "the root of beta_t is missing": [ddpm(0.5, -0.3, 500) + BETA[500] * 2.0],
                "there is no noise": [ddpm(0.5, -0.3, 500)],
            },
        )

    def test_the_last_step_adds_no_noise(self):
        check(
            "only the mean at t = 0, for any z",
            [ddpm(0.5, -0.3, 0)],
            lambda: self.step(0, 2.0),
            {"z is added": [ddpm(0.5, -0.3, 0, 2.0)]},
        )

    def test_with_clip_eps_belongs_to_the_clipped_image(self):
        t, x, eps = 900, 0.5, -0.3  # the image predicted from eps is far above 1
        clipped = (x - math.sqrt(ALPHA_BAR[t]) * 1.0) / math.sqrt(1 - ALPHA_BAR[t])
        check(
            "the step with the eps for which predict_x0 gives 1, at t = 900",
            [ddpm(x, clipped, t, 2.0)],
            lambda: self.step(t, 2.0, clip=True),
            {"nothing is clipped": [ddpm(x, eps, t, 2.0)]},
        )


class TestExercise6:
    def parts(self, *args, **kwargs):
        split = data.index_split(*args, **kwargs)
        return [part.tolist() for part in (split.a, split.b, split.nonmembers, split.reference)]

    def test_A_and_B_have_one_half_each_and_there_are_as_many_nonmembers_as_members(self):
        check(
            "of 100 images and 20 members: 10 in A, 10 in B, 20 non-members, 20 for a reference model",
            [10, 10, 20, 20],
            lambda: [len(part) for part in self.parts(100, members=20)],
            {"A and B have all members each": [20, 20, 20, 20]},
        )

    def test_no_image_is_in_two_parts(self):
        check(
            "60 different images, all of them from 0 to 99",
            60,
            lambda: len(set(sum(self.parts(100, 20), [])) & set(range(100))),
        )

    def test_the_parts_are_cut_from_the_permutation_in_order(self):
        order = np.random.RandomState(3).permutation(100)
        for name, at, (first, last) in (("A", 0, (0, 10)), ("B", 1, (10, 20)), ("non-members", 2, (50, 70))):
            check(
                f"{name} = permutation[{first}:{last}] of RandomState(seed = 3)",
                order[first:last],
                lambda: self.parts(100, members=20, seed=3)[at],
            )

    def test_by_default_all_images_are_used(self):
        check(
            "of 50,000 images 12,500 in A and in B, 25,000 non-members, and none left for a reference model",
            [12_500, 12_500, 25_000, 0],
            lambda: [len(part) for part in self.parts(50_000)],
        )

    def test_an_odd_or_impossible_number_of_members_is_refused(self):
        for members in (7, 0, 102):
            check(f"a refusal of {members} members of 100 images", BadInput, lambda: data.index_split(100, members).a)

    def test_given_pools_are_permuted_and_kept_apart(self):
        random, pools = np.random.RandomState(3), (np.arange(20, 40), np.arange(60, 80))
        members, nonmembers = (random.permutation(pool) for pool in pools)

        def members_and_nonmembers():
            a, b, others, _ = self.parts(100, 20, seed=3, pools=pools)
            return [a + b, others]

        check(
            "members 20 to 39 and non-members 60 to 79, as the pools say; RandomState(seed = 3) permutes the members' "
            "pool, then the non-members'",
            [members, nonmembers],
            members_and_nonmembers,
            {"the pools are not permuted": pools, "the pools are swapped": [nonmembers, members]},
        )


class TestExercise7:
    def answers(self, *timesteps, **kwargs):
        """The answers at these timesteps of a pipeline whose A always answers 1, and whose B always answers 2."""
        return values(
            dualmd.DualMD(always(1), always(2), **kwargs)(pixels(*[0] * len(timesteps)), torch.tensor(timesteps))
        )

    def test_A_answers_first_and_then_they_alternate(self):
        check(
            "A (which answers 1) at t = 0 and 20, B (which answers 2) at t = 10 and 30",
            [1, 2, 1, 2],
            lambda: self.answers(0, 10, 20, 30),
            {"B answers first": [2, 1, 2, 1], "A answers at each even t": [1, 1, 1, 1]},
        )

    def test_each_turn_lasts_stride_timesteps(self):
        check("A at t = 9, B at t = 19, A at t = 29", [1, 2, 1], lambda: self.answers(9, 19, 29))

    def test_another_stride_may_be_given(self):
        check(
            "with stride 25: A at 0 and 24, B at 25 and 49, A at 50",
            [1, 1, 2, 2, 1],
            lambda: self.answers(0, 24, 25, 49, 50, stride=25),
        )

    def test_each_model_is_called_only_for_the_images_that_it_answers(self):
        def calls():
            a, b = always(1), always(2)
            dualmd.DualMD(a, b)(pixels(0.1, 0.2, 0.3), torch.tensor([0, 10, 20]))
            return a.images + b.images

        check("A called for images 0.1 and 0.3 only, B for 0.2 only", [0.1, 0.3, 0.2], calls)


class TestExercise8:
    T, IN_A = torch.tensor([1, 2, 3]), torch.tensor([True, False, True])

    def targets(self, a, b, how):
        return values(dualmd.distill_targets(a, b, pixels(0.1, 0.2, 0.3), self.T, self.IN_A, how))

    def test_average_targets_are_the_mean_of_both_teachers(self):
        check(
            "(A + B) / 2 = 1.5 for every image",
            [1.5, 1.5, 1.5],
            lambda: self.targets(always(1), always(2), "average"),
            {"they are the sum": [3, 3, 3]},
        )

    def test_cross_targets_come_from_the_teacher_that_never_saw_the_image(self):
        check(
            "for images of half A, B's answer (2); for images of half B, A's answer (1)",
            [2, 1, 2],
            lambda: self.targets(always(1), always(2), "cross"),
            {"each comes from the teacher that saw the image": [1, 2, 1], "they are averaged": [1.5, 1.5, 1.5]},
        )

    def test_no_teacher_is_called_for_an_image_of_its_own_half(self):
        def calls():
            a, b = always(1), always(2)
            self.targets(a, b, "cross")
            return [a.images + b.images, a.timesteps + b.timesteps]

        check(
            "A called for image 0.2, of half B, at t = 2; B called for 0.1 and 0.3 at t = 1 and 3",
            [[0.2, 0.1, 0.3], [2, 1, 3]],
            calls,
        )

    def test_any_other_name_is_refused(self):
        check('a refusal of targets "both"', ValueError, lambda: self.targets(always(1), always(2), "both"))


class TestExercise9:
    X0 = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1

    def answer(self, x, t):
        return np.sin(2 * x + t / 70) + x * math.sqrt(1 - ALPHA_BAR[t])

    def score(self, attack, t, **kwargs):
        model = Model(lambda x, t: torch.from_numpy(self.answer(x.numpy(), t[0].item())))
        return getattr(attacks, attack)(model, NoiseSchedule(), self.X0, t, **kwargs), model.timesteps[:: len(self.X0)]

    def test_loss_is_minus_the_mean_squared_error_of_each_image(self):
        eps = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(7)).double().numpy()
        errors = ((self.answer(noised(self.X0.numpy(), 200, eps), 200) - eps) ** 2).reshape(3, -1)
        check(
            "minus the mean over an image's pixels of (eps_model(x_t, t) - eps)^2, at t = 200",
            -errors.mean(1),
            lambda: self.score("loss", 200, generator=torch.Generator().manual_seed(7))[0],
            {"the minus is missing": errors.mean(1), "it is the sum": -errors.sum(1)},
        )

    def test_pia_uses_the_answer_at_0_as_the_noise(self):
        eps0 = self.answer(self.X0.numpy(), 0)
        errors = np.abs(self.answer(noised(self.X0.numpy(), 200, eps0), 200) - eps0).reshape(3, -1)
        check(
            "minus the sum over an image's pixels of |eps_model(x_t, t) - eps0|^4, with x_t noised by eps0, at t = 200",
            -(errors**4).sum(1),
            lambda: self.score("pia", 200)[0],
            {"the minus is missing": (errors**4).sum(1), "it is the mean": -(errors**4).mean(1)},
        )
        check("the same with |...|^2 for p = 2", -(errors**2).sum(1), lambda: self.score("pia", 200, p=2)[0])

    def test_secmi_is_the_change_after_a_step_up_and_back(self):
        def step(x, t, t_next):
            return ddim(x, self.answer(x, t), t, t_next)

        x = step(step(step(self.X0.numpy(), 0, 10), 10, 20), 20, 30)
        back = step(step(x, 30, 40), 40, 30)
        check(
            "minus the sum of squares of (back at 30, after a step up to 40) - (x at 30); steps of 10 lead x up from 0",
            -((back - x) ** 2).reshape(3, -1).sum(1),
            lambda: self.score("secmi", 40)[0],
        )

    def test_each_attack_makes_only_the_queries_that_it_needs(self):
        for name, wanted in (("loss", [40]), ("pia", [0, 40]), ("secmi", [0, 10, 20, 30, 40])):
            kwargs = {"generator": torch.Generator()} if name == "loss" else {}
            check(f"queries of {name} at t = {wanted} only", wanted, lambda: self.score(name, 40, **kwargs)[1])


class TestExercise10:
    def auc(self, members, nonmembers):
        return metrics.auc(np.array(members, dtype=float), np.array(nonmembers, dtype=float))

    def test_it_is_the_share_of_pairs_in_the_right_order(self):
        check(
            "5 of the 6 pairs of (3, 1.5) with (2, 1, 0) in the right order",
            5 / 6,
            lambda: self.auc([3, 1.5], [2, 1, 0]),
            {"members and non-members are swapped": 1 / 6},
        )

    def test_equal_scores_count_one_half(self):
        check("1/2 if all scores are equal", 0.5, lambda: self.auc([1, 1], [1, 1, 1]), {"ties count 0": 0.0})
        check(
            "pairs of (1, 2, 2) with (2, 0): 1 has no win and one win, each 2 has a tie and a win, in all 4 / 6",
            4 / 6,
            lambda: self.auc([1, 2, 2], [2, 0]),
            {"ties count 1": 5 / 6, "ties count 0": 3 / 6},
        )

    def test_perfect_order_and_its_opposite(self):
        check("1 and 0", [1.0, 0.0], lambda: [self.auc([5, 4], [1, 2, 3]), self.auc([1, 2], [3, 4])])

    def test_many_random_scores(self):
        random = np.random.RandomState(0)
        members, nonmembers = random.randint(0, 9, 50), random.randint(0, 7, 30)
        wins = sum((m > n) + (m == n) / 2 for m in members for n in nonmembers)
        check("the count over all 1,500 pairs", wins / (50 * 30), lambda: self.auc(members, nonmembers))


class TestExercise11:
    def scores(self):
        """Three timesteps: members and non-members alike, members far lower, members a little higher."""
        members, nonmembers = np.random.RandomState(0).randn(2, 3, 60)
        return members + np.array([[0], [-2.5], [0.5]]), nonmembers

    def test_the_best_timestep_and_its_sign_are_found(self):
        check(
            "row 1 with sign -1, chosen by each of the halves",
            [(1, -1), (1, -1)],
            lambda: metrics.adaptive(*self.scores()).choices,
            {"the sign is never changed": [(2, 1), (2, 1)]},
        )

    def test_an_AUC_below_one_half_is_no_privacy(self):
        check("an AUC above 0.9", True, lambda: metrics.adaptive(*self.scores()).curve.auc > 0.9)

    def judged(self, members, nonmembers, seed=0):
        """AUC and accuracy, calculated a second time: each half scores the images of the other half."""
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

    def test_no_image_is_scored_by_a_choice_that_was_made_with_it(self):
        random = np.random.RandomState(1)
        noise = random.randn(8, 40), random.randn(8, 50)
        for pair in (noise, self.scores()):
            check(
                "AUC and accuracy over all images, each scored by the attacker of the half that does not contain it",
                self.judged(*pair),
                lambda: [(r := metrics.adaptive(*pair)).curve.auc, r.asr],
            )

    def test_the_interval_includes_the_luck_of_the_choice(self):
        def interval():
            low, high = metrics.adaptive(*np.random.RandomState(2).randn(2, 8, 40)).interval
            return [low < 0.5 < high, high - low > 0.1]

        check(
            "a 95 % interval around 0.5, wider than 0.1, if scores are only noise; each resample makes its own choice",
            [True, True],
            interval,
        )

    def test_two_of_each_are_needed(self):
        one, nine = np.zeros((3, 1)), np.zeros((3, 9))
        check("a refusal of a single member", ValueError, lambda: metrics.adaptive(one, nine).curve.auc)


class TestExercise12:
    def distance(self, cov1, cov2, apart=0.0):
        """The distance of two Gaussians with these covariances, whose means differ by `apart` in each dimension."""
        mean, roots = torch.ones(len(cov1)).double(), [fid.symmetric_root(torch.tensor(cov)) for cov in (cov1, cov2)]
        return fid.distance(mean, roots[0], mean + apart, roots[1])

    def test_in_one_dimension(self):
        check(
            "(mu1 - mu2)^2 + (sigma1 - sigma2)^2 = 4 + 1, for variances 9 and 4",
            5.0,
            lambda: self.distance(np.diag([9.0]), np.diag([4.0]), apart=2),
            {"the means are missing": 1.0, "the trace of the root is missing": 17.0, "the factor 2 is missing": 11.0},
        )

    def test_a_Gaussian_has_the_distance_0_to_itself(self):
        cov = np.array([[2.0, 0.5], [0.5, 1.0]])
        check("0 between a Gaussian and itself, to nine digits", 0.0, lambda: self.distance(cov, cov))

    def test_covariances_that_do_not_commute(self):
        cov1, cov2 = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
        trace_of_root = np.sqrt(np.linalg.eigvals(cov1 @ cov2)).sum()
        check(
            "Tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), calculated with the eigenvalues of the product",
            np.trace(cov1) + np.trace(cov2) - 2 * trace_of_root,
            lambda: self.distance(cov1, cov2),
        )

    def test_fewer_images_than_features(self):
        cov, other, same = (np.diag(variances) for variances in ([4.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]))
        check(
            "4 + 9 for covariances of rank 1 in 3 dimensions, with variances 4 and 9 along different axes",
            13.0,
            lambda: self.distance(cov, other),
        )
        check("(3 - 2)^2 for the same variances along one axis", 1.0, lambda: self.distance(cov, same))
