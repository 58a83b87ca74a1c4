"""What the exercises ask a solution. Each check has points, and some parts; a part has a name and a question.

There are no answers here. The inputs depend on a seed: a hand-out's grader asks with seed 0, a teacher's with another.
As a program this file asks one solution, and writes what came back: grading.py starts it in a process of its own, where
it imports the student's modules. It needs nothing else of the course.

    python cases.py FOLDER FILE SEED QUESTION...
"""

import importlib
import json
import os
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

MEMORY, FILE, CPU = 3 * 2**30, 10 * 2**20, 600  # bytes, bytes, seconds: what the solution's process may use
NUMBERS = 10_000  # in an answer, at most

Check = tuple[float, str, dict[str, Callable]]  # points, what is right, and the parts: {name: question}


# --- what the questions use ----------------------------------------------------------------------


class Draw(random.Random):
    """Inputs of an exercise, from its number and a seed."""

    def level(self) -> float:
        """A pixel from 0.2 to 0.9, or its negative."""
        return self.choice([-1, 1]) * self.randint(20, 90) / 100

    def levels(self, n: int) -> list[float]:
        """n different pixels, of both signs."""
        return [sign * level / 100 for sign, level in zip([1, -1] * n, self.sample(range(20, 90), n))]

    def numpy(self) -> np.random.RandomState:
        return np.random.RandomState(self.randrange(2**31))


def pixels(*levels: float) -> Tensor:
    """Images of one pixel, one for each of these values."""
    return torch.tensor(levels, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 1, 1).clone()


def levels(images: Tensor) -> Tensor:
    """The value of each image, as `pixels` took them; other things stay as they are."""
    small = isinstance(images, Tensor) and images.ndim == 4 and images.shape[1:] == (3, 1, 1)
    return images[:, 0, 0, 0] if small and bool((images == images[:, :1]).all()) else images


class Model:
    """An eps model that answers `answer(x, t)`, and remembers the images and timesteps of its calls."""

    def __init__(self, answer: Callable):
        self.answer, self.calls, self.images, self.timesteps = answer, 0, [], []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if not isinstance(t, Tensor) or t.shape != (len(x),):
            raise TypeError("an eps model takes t as a tensor (N,), with a timestep for each of its N images")
        self.calls += 1
        self.images += levels(x).tolist()
        self.timesteps += t.tolist()
        return self.answer(x, t)


def always(value: float) -> Model:
    return Model(lambda x, t: torch.full_like(x, value))


def curved(x: Tensor, t: Tensor) -> Tensor:
    """An answer that depends on the image and on t."""
    t = t.view(-1, 1, 1, 1)
    return torch.sin(2 * x + t / 70) + x * (t / 1000) ** 0.5


def tilted(x: Tensor, t: Tensor) -> Tensor:
    """Another one, in round numbers."""
    return x + t.view(-1, 1, 1, 1) / 1000


def after(call: Callable, *given: Tensor) -> list:
    """What the arguments of a call are after it."""
    call(*given)
    return [levels(each) for each in given]


def untouched(call: Callable) -> list[float]:
    """The next numbers of numpy's and torch's global generators after a call."""
    np.random.seed(7), torch.manual_seed(7)
    call()
    return [np.random.rand(), torch.rand(()).item()]


def refusal(good: Callable, bad: Callable, error: str) -> list:
    """The answer to a possible call, and how an impossible one ends."""
    answer = good()
    try:
        return [answer, bad()]
    except Exception as raised:
        names = [one.__name__ for one in type(raised).__mro__]
        return [answer, f"raises {error if error in names else names[0]}"]


@contextmanager
def resamples(metrics: ModuleType, n: int) -> Iterator[None]:
    """A bootstrap of n resamples, so that a question takes less time."""
    before, metrics.RESAMPLES = metrics.RESAMPLES, n
    try:
        yield
    finally:
        metrics.RESAMPLES = before


# --- the checks of each exercise -----------------------------------------------------------------


def exercise_1(m: "Modules", d: Draw) -> Iterator[Check]:
    def made(**how):
        return m.dualmd.NoiseSchedule(**how)

    how = {"T": d.randint(4, 6), "beta_1": d.randint(5, 15) / 100, "beta_T": d.randint(30, 50) / 100}
    small = "NoiseSchedule(" + ", ".join(f"{name}={value}" for name, value in how.items()) + ")"

    def sizes(**how):
        return [(s := made(**how)).T, *s.beta.shape, *s.alpha_bar.shape]

    parts = {"NoiseSchedule()": sizes, small: lambda: sizes(**how)}
    parts = {f"T and the lengths of beta and alpha_bar of {name}": ask for name, ask in parts.items()}
    yield 0.25, "there are a beta and an alpha_bar for each of the T timesteps", parts
    parts = {"NoiseSchedule().beta at t = 0, 1, 500, 999": lambda: made().beta[[0, 1, 500, 999]]}
    parts |= {f"beta of {small}": lambda: made(**how).beta}
    yield 0.25, "beta rises linearly, and includes both ends", parts
    parts = {f"alpha_bar of {small}": lambda: made(**how).alpha_bar}
    yield 0.25, "alpha_bar is the product of all 1 - beta up to t", parts
    parts = {"the types of beta and alpha_bar": lambda: [str((s := made()).beta.dtype), str(s.alpha_bar.dtype)]}
    parts |= {"NoiseSchedule().alpha_bar at t = 999, to ten digits": lambda: f"{made().alpha_bar[999].item():.9e}"}
    yield 0.25, "both are float64, and precise to ten digits", parts


def exercise_2(m: "Modules", d: Draw) -> Iterator[Check]:
    def add(x, t, eps):
        return levels(m.dualmd.NoiseSchedule().add_noise(pixels(*x), t, pixels(*eps)))

    def back(x, t, eps):
        return levels(m.dualmd.NoiseSchedule().predict_x0(pixels(*x), t, pixels(*eps)))

    def kept(name):
        call = getattr(m.dualmd.NoiseSchedule(), name)
        return after(lambda x, eps: call(x, 500, eps), pixels(*x), pixels(*eps))

    x, eps, ts = d.levels(3), d.levels(3), [d.randint(300, 700), d.randint(3, 30), 999]
    parts = {
        f"add_noise of x_0 = {x[0]} at t = {t} with eps = {eps[1]}": lambda t=t: add(x[:1], t, eps[1:2])
        for t in (0, d.randint(300, 700), 999)
    }
    parts |= {"x_0 and eps after add_noise": lambda: kept("add_noise")}
    yield 1, "add_noise takes a share of the image and a share of the noise", parts
    parts = {f"add_noise of x_0 = {x} at t = {ts} with eps = {eps}": lambda: add(x, torch.tensor(ts), eps)}
    yield 0.5, "each image may have its own timestep", parts
    t = d.randint(200, 500)
    parts = {f"predict_x0 of x_t = {x[0]} at t = {t} with eps = {eps[1]}": lambda: back(x[:1], t, eps[1:2])}
    parts |= {f"predict_x0 of x_t = {x} at t = {ts} with eps = {eps}": lambda: back(x, torch.tensor(ts), eps)}
    parts |= {"x_t and eps after predict_x0": lambda: kept("predict_x0")}
    yield 0.5, "predict_x0 is the inverse", parts


def exercise_3(m: "Modules", d: Draw) -> Iterator[Check]:
    x, target, ts = d.levels(2), d.levels(2), d.sample(range(1, 999), 2)

    def asked():
        model = always(0.0)
        m.dualmd.training_loss(model, pixels(*x), torch.tensor(ts), pixels(*target))
        return [model.calls, model.images, model.timesteps]

    def loss_of(model):
        return m.dualmd.training_loss(model, pixels(*x), torch.tensor(ts), pixels(*target))

    def slope():
        weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        loss_of(lambda x, t: weight * x).backward()
        return weight.grad

    given = f"x_t = {x}, t = {ts} and the target {target}"
    parts = {f"the loss with {given}, of a model that answers 3 x": lambda: loss_of(Model(lambda x, t: 3 * x))}
    yield 0.5, "it is the mean squared error", parts
    parts = {f"the number of calls, their x and t, with {given}": asked}
    yield 0.25, "the model is called once, with x_t and t", parts
    parts = {f"the derivative at w = 3 of the loss with {given}, of a model that answers w x": slope}
    yield 0.25, "the gradient reaches the model", parts


def exercise_4(m: "Modules", d: Draw) -> Iterator[Check]:
    x, eps, z = d.levels(1)[0], d.levels(2)[1], 2 * d.level()

    def step(x, eps, *args, **kwargs):
        return levels(m.dualmd.NoiseSchedule().ddim_step(pixels(*x), pixels(*eps), *args, **kwargs))

    def plain_step(x, eps):
        return m.dualmd.NoiseSchedule().ddim_step(x, eps, 500, 490)

    t = d.randint(300, 600)
    given = f"ddim_step of x = {x} with eps = {eps}"
    parts = {f"{given}, from t = {t} to {to}": lambda t=t, to=to: step([x], [eps], t, to) for to in (t - 10, t - 200)}
    parts |= {f"{given}, from t = 999 to 0": lambda: step([x], [eps], 999, 0)}
    parts |= {"x and eps after ddim_step": lambda: after(plain_step, pixels(x), pixels(eps))}
    yield 1, "a step towards the image", parts
    up = 10 * d.randint(2, 6)
    parts = {f"{given}, from t = {up} to {up + 10}": lambda: step([x], [eps], up, up + 10)}
    yield 0.5, "a step towards the noise (DDIM inversion)", parts
    parts = {f"{given}, from t = 10 to -1": lambda: step([x], [eps], 10, -1)}
    yield 0.5, "the step to -1 gives the clean image", parts
    # near T a small eps gives an image far above 1, a large one an image far below -1, and 0.5 one between them
    late, several = d.randint(880, 930), [-0.3, 0.55, 0.5]
    parts = {
        f"ddim_step of x = [0.5, 0.5, 0.5] with eps = {several}, from t = {late} to {late - 10}, clip = {clip}": (
            lambda clip=clip: step([0.5] * 3, several, late, late - 10, clip=clip)
        )
        for clip in (True, False)
    }
    yield 0.5, "with clip, the predicted image stays in [-1, 1]", parts
    parts = {
        f"{given}, z = {z} and eta = {eta}, from t = {t} to {t - 100}": (
            lambda eta=eta: step([x], [eps], t, t - 100, eta=eta, z=pixels(z))
        )
        for eta in (0.5, 1.0)
    }
    yield 0.5, "with eta, new noise replaces a part of the old", parts


def exercise_5(m: "Modules", d: Draw) -> Iterator[Check]:
    x, eps, z = d.levels(1)[0], d.levels(2)[1], 2 * d.level()

    def step(x, eps, t, z, **how):
        noise = pixels(*[z] * len(x))
        return levels(m.dualmd.NoiseSchedule().ddpm_step(pixels(*x), pixels(*eps), t, noise, **how))

    def plain_step(x, eps, z):
        return m.dualmd.NoiseSchedule().ddpm_step(x, eps, 500, z)

    middle, given = d.randint(300, 700), f"ddpm_step of x = {x} with eps = {eps}"
    parts = {f"{given}, z = 0 at t = {t}": lambda t=t: step([x], [eps], t, 0.0) for t in (1, middle, 999)}
    parts |= {"x, eps and z after ddpm_step": lambda: after(plain_step, pixels(x), pixels(eps), pixels(z))}
    yield 0.5, "without noise it is the mean of equation 11", parts

    def change(t):
        return step([x], [eps], t, z) - step([x], [eps], t, 0.0)

    given += f", the change by z = {z}"
    parts = {f"{given} at t = {t}": lambda t=t: change(t) for t in (2, middle)}
    yield 0.5, "the noise has the standard deviation sqrt(beta_t)", parts
    parts = {f"{given} at t = {t}": lambda t=t: change(t) for t in (0, 1)}
    yield 0.5, "the last step, and only this one, adds no noise", parts
    late, images, several = d.randint(850, 890), [0.5, 0.5, 0.5, 1.5], [-1.3, 0.55, 0.5, 0.6]
    parts = {f"ddpm_step of x = {images} with eps = {several}, z = 0 at t = {late}, clip = True": (
        lambda: step(images, several, late, 0.0, clip=True)
    )}  # fmt: skip
    yield 0.5, "with clip, eps belongs to the clipped image", parts


def exercise_6(m: "Modules", d: Draw) -> Iterator[Check]:
    members, seed = 2 * d.randint(7, 10), d.randint(1, 99)

    def split(*args, **how):
        its = m.data.index_split(*args, **how)
        return [its.a, its.b, its.nonmembers, its.reference]

    def parts_of(*args, **how):
        return [part.tolist() for part in split(*args, **how)]

    def refused(bad):
        return refusal(lambda: len(parts_of(100, 20)[0]), lambda: parts_of(100, bad), "BadInput")

    parts = {
        f"the sizes of A, B, non-members and reference of index_split(100, {members})": (
            lambda: [len(part) for part in parts_of(100, members)]
        ),
        f"the number of different indices from 0 to 99 in all four parts of index_split(100, {members})": (
            lambda: len(set(sum(parts_of(100, members), [])) & set(range(100)))
        ),
        "their types": lambda: [str(part.dtype) for part in split(100, members)],
    }
    yield 0.5, "A and B have one half each, there are as many non-members, and no image is in two parts", parts
    given = f"index_split(50, 12, seed={seed}"
    parts = {
        f"{name} of {given})": lambda i=i: parts_of(50, 12, seed=seed)[i]
        for i, name in enumerate(["A", "B", "non-members", "reference"])
    }
    given = f"index_split(80, 12, seed={seed}, block=2)"
    parts |= {f"reference of {given}": lambda: parts_of(80, 12, seed=seed, block=2)[3]}
    yield 0.5, "the parts are cut from the permutation in order", parts
    parts = {"the sizes of A, B, non-members and reference of index_split(50_000)": (
        lambda: [len(part) for part in parts_of(50_000)]
    )}  # fmt: skip
    yield 0.5, "by default all images are used", parts
    parts = {
        f"A's size of 20 members, then index_split(100, {bad})": lambda bad=bad: refused(bad)
        for bad in (members + 1, 0, 102)
    }
    yield 0.5, "an odd or impossible number of members is refused with BadInput", parts

    def pools():
        return np.arange(20, 34), np.arange(60, 74)

    parts = {f"A, B, non-members and reference of index_split(100, 6, seed={seed}, pools=(20 to 33, 60 to 73))": (
        lambda: parts_of(100, 6, seed=seed, pools=pools())
    )}  # fmt: skip
    parts |= {"the pools after this call": lambda: after(lambda *pools: parts_of(100, 6, pools=pools), *pools())}
    yield 0.5, "given pools are permuted, and kept apart", parts
    parts = {"numpy.random.rand() and torch.rand(()) after a call": lambda: untouched(lambda: parts_of(100, 20))}
    yield 0.5, "the global random numbers go on as if nothing had happened", parts


def exercise_7(m: "Modules", d: Draw) -> Iterator[Check]:
    def answers(*timesteps, a=None, b=None, x=None, **how):
        pipeline = m.dualmd.DualMD(a or always(1), b or always(2), **how)
        return levels(pipeline(pixels(*x or [0] * len(timesteps)), torch.tensor(timesteps)))

    def asked(x, timesteps):
        a, b = always(1), always(2)
        answers(*timesteps, a=a, b=b, x=x)
        return {"images of A": a.images, "t of A": a.timesteps, "images of B": b.images, "t of B": b.timesteps}

    def mixed():
        a, b = Model(tilted), Model(lambda x, t: -tilted(x, t))
        return answers(*ts, a=a, b=b, x=x)

    ts, x, stride = [0, 30, 10, 20], d.levels(4), d.randint(15, 40)
    parts = {f"answers at t = {ts}, where A always answers 1 and B always 2": lambda: answers(*ts)}
    parts |= {f"answers to x = {x} at t = {ts}, where A answers x + t / 1000 and B the negative": mixed}
    yield 0.5, "A answers first, and then they alternate", parts
    ts2 = [4, 9, 10, 19, 20, 29, 31]
    parts = {f"answers at t = {ts2} (A: 1, B: 2)": lambda: answers(*ts2)}
    yield 0.5, "each turn lasts `stride` timesteps", parts
    ts3 = [0, stride - 1, stride, 2 * stride - 1, 2 * stride]
    parts = {f"answers at t = {ts3} with stride = {stride} (A: 1, B: 2)": lambda: answers(*ts3, stride=stride)}
    parts |= {"answers at t = [0, 1, 2, 3] with stride = 1 (A: 1, B: 2)": lambda: answers(0, 1, 2, 3, stride=1)}
    yield 0.5, "another stride may be given", parts
    parts = {f"who was asked what, for x = {x} at t = {ts}": lambda: asked(x, ts)}
    parts |= {f"the same for x = {x[:2]} at t = [0, 20], where only A answers": lambda: asked(x[:2], [0, 20])}
    yield 0.5, "each model is called only for the images that it answers", parts


def exercise_8(m: "Modules", d: Draw) -> Iterator[Check]:
    x, ts, in_a = d.levels(3), d.sample(range(1, 999), 3), [True, False, True]

    def targets(how, a=None, b=None):
        asked = pixels(*x), torch.tensor(ts), torch.tensor(in_a)
        return levels(m.dualmd.distill_targets(a or always(1), b or always(2), *asked, how))

    def asked(how):
        a, b = always(1), always(2)
        targets(how, a, b)
        return {"images of A": a.images, "t of A": a.timesteps, "images of B": b.images, "t of B": b.timesteps}

    def mixed(how):
        return targets(how, Model(tilted), Model(lambda x, t: 3 * x))

    given = f"for x = {x}, t = {ts} and in_a = {in_a}"
    both = "where A always answers 1 and B always 2", "where A answers x + t / 1000 and B answers 3 x"
    parts = {f"average targets {given}, {both[0]}": lambda: targets("average")}
    parts |= {f"average targets {given}, {both[1]}": lambda: mixed("average")}
    yield 0.5, "average targets are the mean of both teachers", parts
    parts = {f"cross targets {given}, {both[0]}": lambda: targets("cross")}
    parts |= {f"cross targets {given}, {both[1]}": lambda: mixed("cross")}
    yield 0.5, "cross targets come from the teacher that never saw the image", parts
    parts = {f"who was asked what for cross targets {given}": lambda: asked("cross")}
    yield 0.5, "no teacher is called for an image of its own half", parts
    parts = {
        f"the number of average targets, then targets {name!r}": (
            lambda name=name: refusal(lambda: len(targets("average")), lambda: targets(name), "ValueError")
        )
        for name in ("both", "")
    }
    yield 0.5, "any other name is refused with ValueError", parts


def exercise_9(m: "Modules", d: Draw) -> Iterator[Check]:
    seed, t = d.randrange(2**31), 10 * d.randint(15, 25)
    x0 = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1

    def score(attack, t, x0=x0, **how):
        return getattr(m.attacks, attack)(Model(curved), m.dualmd.NoiseSchedule(), x0, t, **how)

    def loss_of(t):
        return score("loss", t, x0.float(), generator=torch.Generator().manual_seed(seed))

    def asked(attack, **how):
        model = Model(curved)
        getattr(m.attacks, attack)(model, m.dualmd.NoiseSchedule(), x0, 40, **how)
        return sorted(model.timesteps)

    images, generator = "of three random images", torch.Generator()
    yield 1.25, "loss is minus the mean squared error of each image", {f"loss {images} at t = {t}": lambda: loss_of(t)}
    parts = {f"pia {images} at t = {t}, p = {p}": lambda p=p: score("pia", t, p=p) for p in (4, 2, 3)}
    yield 1.25, "pia takes the answer at 0 as the noise", parts
    small = 10 * d.randint(3, 6)
    parts = {f"secmi {images} at t = {small}": lambda: score("secmi", small)}
    parts |= {f"secmi {images} at t = {5 * small}, stride = {small}": lambda: score("secmi", 5 * small, stride=small)}
    parts |= {f"secmi {images} at t = 10": lambda: score("secmi", 10)}
    yield 1.5, "secmi is the change by a step up and back, after a walk up to t - stride", parts
    how = {"loss": {"generator": generator}, "pia": {}, "secmi": {}}
    parts = {f"t of all queries of {a} at t = 40, for three images": lambda a=a: asked(a, **how[a]) for a in how}
    yield 0.5, "each attack makes only the queries that it needs", parts
    parts = {
        f"the number of scores of secmi at t = 10, then secmi at t = {bad}": (
            lambda bad=bad: refusal(lambda: len(score("secmi", 10)), lambda: score("secmi", bad), "ValueError")
        )
        for bad in (0, 45)
    }
    yield 0.5, "secmi refuses a t that steps of 10 do not reach, with ValueError", parts


def exercise_10(m: "Modules", d: Draw) -> Iterator[Check]:
    def auc(members, nonmembers):
        return m.metrics.auc(np.array(members, dtype=float), np.array(nonmembers, dtype=float))

    def asked(*pairs):
        return {f"the AUC of members {one} and non-members {two}": lambda o=one, t=two: auc(o, t) for one, two in pairs}

    low = d.randint(0, 5)
    odd = [low, low + 4], [low + 1, low + 5, low + 2, low + 3]
    parts = asked(([low + 3, low + 1.5], [low + 2, low + 1, low]), odd)
    yield 1, "it is the share of pairs in the right order", parts
    parts = asked(([low] * 2, [low] * 3), ([low + 1, low + 2, low + 2], [low + 2, low]), ([low, low + 1], [low]))
    yield 1, "equal scores count one half", parts
    yield 0.5, "it is 1 in perfect order, and 0 in the opposite one", asked(([8, 9], [1, 3, 2]), ([2, 1], [3, 4]))
    random = d.numpy()
    many = random.randint(0, 9, 50), random.randint(0, 7, 30)
    parts = {"the AUC of 50 random members and 30 non-members from 0 to 8, with ties": lambda: auc(*many)}
    parts |= {"the scores after the call": lambda: after(m.metrics.auc, *map(np.array, ([3.0, 1.0], [2.0, 0.0])))}
    yield 0.5, "many random scores", parts


def exercise_11(m: "Modules", d: Draw) -> Iterator[Check]:
    """These questions do not depend on how the halves are cut, and how scores of two halves are put together."""
    random, seed = d.numpy(), d.randint(0, 99)
    shift = np.array([[0], [-2.5], [1]])
    normal = random.randn(2, 3, 60)
    clear = normal[0] + shift, normal[1]
    noise = [random.randn(2, 40, 30) for _ in range(12)]

    def judged(pair, n=20, **how):
        with resamples(m.metrics, n):
            return m.metrics.adaptive(*pair, seed=seed, **how)

    def mean_of(pairs, value):
        return float(np.mean([value(judged(pair)) for pair in pairs]))

    data = "scores in rows 0, 1, 2, with members shifted by 0, -2.5 and 1 standard deviations"
    yield 1.5, "each half finds the best row and its sign", {f"choices from {data}": lambda: judged(clear).choices}
    parts = {"is the AUC above 0.9 with these scores?": lambda: bool(judged(clear).curve.auc > 0.9)}
    yield 0.5, "an AUC below one half is no privacy", parts
    only = "scores are only noise, in 40 rows: is the mean"
    parts = {
        f"{only} AUC of 12 repetitions at most 0.6?": lambda: mean_of(noise, lambda its: its.curve.auc) <= 0.6,
        f"{only} accuracy at most 0.555?": lambda: mean_of(noise, lambda its: its.asr) <= 0.555,
        "members are shifted by 1 in one row: is the AUC from 0.66 to 0.86, and the accuracy from 0.57 to 0.80?": (
            lambda: [0.66 <= (r := judged(shifted)).curve.auc <= 0.86, 0.57 <= r.asr <= 0.80]
        ),
    }
    shifted = random.randn(1, 80) + 1, random.randn(1, 80)
    yield 3, "no image is scored by a choice that was made with it", parts
    parts = {f"choices from {data}, flips = False": lambda: judged(clear, flips=False).choices}
    yield 1, "without flips, the sign stays", parts

    def wide():
        results = [judged(pair, 150).interval for pair in noise[:6]]
        return float(np.mean([high - low for low, high in results]))

    def inside():
        low, high = judged(shifted, 200).interval
        return [0.5 < low < 0.76 < high < 0.9]

    parts = {"members are shifted by 1 in one row: is the interval from above 0.5 to below 0.9?": inside}
    parts |= {f"{only} width of 6 intervals above 0.33?": lambda: wide() > 0.33}
    parts |= {"numpy.random.rand() and torch.rand(()) after a call": lambda: untouched(lambda: judged(shifted))}
    yield 1.5, "the interval includes the luck of the choice", parts
    one = np.zeros((3, 1)), np.zeros((3, 9))
    parts = {f"choices from {data}, then of one member": (
        lambda: refusal(lambda: judged(clear).choices, lambda: judged(one), "ValueError")
    )}  # fmt: skip
    yield 0.5, "a single member is refused with ValueError", parts


def exercise_12(m: "Modules", d: Draw) -> Iterator[Check]:
    def distance(cov1, cov2, apart=0.0):
        """The distance of two Gaussians with these covariances, whose means differ by `apart` in each dimension."""
        roots = [m.fid.symmetric_root(torch.tensor(cov, dtype=torch.float64)) for cov in (cov1, cov2)]
        mean = torch.ones(len(cov1)).double()
        return m.fid.distance(mean, roots[0], mean + apart, roots[1])

    def squared(cov):
        root = m.fid.symmetric_root(torch.tensor(cov, dtype=torch.float64))
        return root @ root.T

    def drawn():
        factor = random.randn(3, 3).round(1)
        return (factor @ factor.T + np.eye(3)).round(2).tolist()

    random, apart = d.numpy(), d.randint(2, 5)
    big, small = d.sample([4, 9, 16, 25], 2)
    parts = {f"variances {big} and {small}, means {apart} apart": lambda: distance([[big]], [[small]], apart)}
    parts |= {f"variances {big} and {big}, means {apart} apart": lambda: distance([[big]], [[big]], apart)}
    yield 2, "in one dimension it is (mu1 - mu2)^2 + (sigma1 - sigma2)^2", parts
    first, second, third = drawn(), drawn(), drawn()
    parts = {f"R R^T of the root R of {third}": lambda: squared(third)}
    parts |= {f"the distance of the covariance {third} to itself": lambda: distance(third, third)}
    yield 1.5, "R R^T is the covariance, and a Gaussian has the distance 0 to itself", parts
    parts = {f"covariances {first} and {second}": lambda: distance(first, second)}
    yield 2, "covariances that do not commute", parts
    flat = [np.diag(variances).tolist() for variances in ([big, 0, 0], [0, small, 0], [small, 0, 0])]
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    turned = (turn @ np.array(flat[0]) @ turn.T).tolist()
    names = f"the variance {big} along one axis, and {small}"
    parts = {f"{names} along another one, in three dimensions": lambda: distance(flat[0], flat[1])}
    parts |= {f"{names} along the same one": lambda: distance(flat[0], flat[2])}
    parts |= {f"a covariance of rank 1 with the variance {big}, to itself": lambda: distance(turned, turned)}
    yield 2.5, "fewer images than features", parts


EXERCISES = [exercise_1, exercise_2, exercise_3, exercise_4, exercise_5, exercise_6]
EXERCISES += [exercise_7, exercise_8, exercise_9, exercise_10, exercise_11, exercise_12]


def checks(number: int, modules: "Modules | None" = None, seed: int = 0) -> list[Check]:
    """The checks of an exercise. Their questions go to `modules`; without them there are names and points only."""
    return list(EXERCISES[number - 1](modules, Draw(f"{seed} {number}")))


# --- a question's outcome, as JSON ---------------------------------------------------------------


class Broken(Exception):
    """A module that cannot be imported."""


class Modules:
    """The modules of a solution, each imported when it is first needed."""

    def __init__(self):
        self.broken = {}

    def __getattr__(self, name: str) -> ModuleType:
        if name not in self.broken:
            try:
                module = importlib.import_module(name)
                setattr(self, name, module)
                return module
            except BaseException as error:
                self.broken[name] = f"{name}.py cannot be imported: {in_words(error)}"
        raise Broken(self.broken[name])


def in_words(error: BaseException) -> str:
    """An error's name and message, and the line of the solution where it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == Path.cwd()]
    line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else None)
    file = getattr(error, "filename", None) or (frames[-1].filename if frames else "")
    where = f" ({Path(str(file)).name}, line {line})" if line and isinstance(file, str) else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}"[:400] + where


def outcome(ask: Callable) -> dict:
    """What a question comes to: {"answer": ...}, {"raised": error}, or {"broken": error of the import}."""
    torch.manual_seed(0), np.random.seed(0)
    try:
        with warnings.catch_warnings(action="ignore"):
            return {"answer": plain(ask())}
    except Broken as error:
        return {"broken": str(error)}
    except BaseException as error:
        return {"raised": in_words(error)}


def plain(value: object) -> object:
    """Numbers, texts and lists of them; an array as {"shape", "values"}. Anything else by the name of its type."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.to(torch.complex128 if value.is_complex() else torch.float64).numpy()
    if isinstance(value, np.ndarray | np.generic):
        if value.size > NUMBERS:
            raise ValueError(f"the answer has {value.size:,} numbers")
        if np.iscomplexobj(value):
            return "complex numbers"
        return {"shape": list(value.shape), "values": np.asarray(value, dtype=np.float64).ravel().tolist()}
    if value is None or type(value) in (bool, int, float, str):
        return value[:NUMBERS] if isinstance(value, str) else value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value[:NUMBERS]]
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    return f"a {type(value).__name__}"


def questions(numbers: Iterable[int], modules: "Modules | None" = None, seed: int = 0) -> list[tuple[int, Callable]]:
    """All questions of these exercises, as (exercise, question)."""
    return [(n, ask) for n in numbers for *_, parts in checks(n, modules, seed) for ask in parts.values()]


def main() -> None:
    folder, own, seed, *wanted = sys.argv[1:]
    limit()
    file = open(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the solution may print
    sys.path.insert(0, folder)
    modules = Modules()
    asked = questions(range(1, len(EXERCISES) + 1), modules, int(seed))
    print(file=file, flush=True)  # Python and torch have started
    with suppress(Broken):
        getattr(modules, Path(own).stem)
    print(file=file, flush=True)  # the solution has been imported, or cannot be
    for i in map(int, wanted):
        print(json.dumps([i, outcome(asked[i][1])]), file=file, flush=True)
    os._exit(0)  # whatever the solution's threads still do


def limit() -> None:
    """Limit this process's memory, files and time, where the system can."""
    torch.set_num_threads(1)
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, most in (("RLIMIT_DATA", MEMORY), ("RLIMIT_FSIZE", FILE), ("RLIMIT_CPU", CPU), ("RLIMIT_CORE", 0)):
        resource.setrlimit(getattr(resource, name), (most, most))


if __name__ == "__main__":
    main()
