"""What students usually write instead: changes of the reference solution that make it wrong.

The grader tries them. If a wrong answer is the answer of one of them, the message names it: "it looks as if ...".
They are also the wrong solutions of the tests. Each entry has the number of the check that catches it, the mistake, and
pairs of a text in the exercise's functions and what stands there instead. A hand-out has no copy of this file.
"""

import functools
import importlib
import importlib.util
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

from course import cases
from course.exercises import EXERCISES, ROOT, function_lines

# lines of the reference solution in which there are several mistakes
MSE = "F.mse_loss(eps_model(x_t, t), target)"
STEP = "return signal_next * x0 + noise_next * eps"
TURN = "return route(self.model_a, self.model_b, (t // self.stride) % 2 == 0, x_t, t)"
CROSS = "route(teacher_b, teacher_a, in_a, x_t, t)"
AVERAGE = "(teacher_a(x_t, t) + teacher_b(x_t, t)) / 2"
AUC = "return float(wins.sum() / (2 * len(members) * len(nonmembers)))"
HALVES = "pool[: count // 2], pool[count // 2 : count]"
CURVE = "curve = roc(*_judge_each_other(first, second, flips))"
KEPT = "vectors[:, there] * values[there].sqrt()"
POOLS = "(random.permutation(indices) for indices in pools)"

MISTAKES: dict[int, list[tuple]] = {
    1: [
        (1, "beta and alpha_bar have one number too many", "beta_T, T,", "beta_T, T + 1,"),
        (1, "a 1 stands before alpha_bar", "torch.cumprod(1 - self.beta, dim=0)",
         "torch.cat([torch.ones(1).double(), torch.cumprod(1 - self.beta, dim=0)])"),
        (2, "the last value is left out", "T, dtype=torch.float64)", "T + 1, dtype=torch.float64)[:-1]"),
        (2, "beta begins with 0", "linspace(beta_1,", "linspace(0,"),
        (2, "beta falls", "linspace(beta_1, beta_T,", "linspace(beta_T, beta_1,"),
        (3, "the factor of t itself is missing", "dim=0)", "dim=0) / (1 - self.beta)"),
        (3, "it is the product of the betas", "cumprod(1 - self.beta", "cumprod(self.beta"),
        (3, "it is the sum of 1 - beta, not the product", "cumprod", "cumsum"),
        (4, "both are float32", "dtype=torch.float64", "dtype=torch.float32"),
        (4, "beta is calculated in float32, and converted afterwards", "dtype=torch.float64)",
         "dtype=torch.float32).double()"),
    ],
    2: [
        (1, "the roots are missing", "signal * x0 + noise * eps", "signal**2 * x0 + noise**2 * eps"),
        (1, "image and noise are swapped", "signal * x0 + noise * eps", "noise * x0 + signal * eps"),
        (1, "the noise is subtracted", "signal * x0 + noise * eps", "signal * x0 - noise * eps"),
        (1, "the noise has its full size", "signal * x0 + noise * eps", "signal * x0 + eps"),
        (1, "t were t - 1", "_signal_and_noise(t, x0)", "_signal_and_noise(t - 1, x0)"),
        (1, "t were t + 1", "_signal_and_noise(t, x0)", "_signal_and_noise(t + 1, x0)"),
        (1, "x_0 is changed in place", "signal * x0 + noise * eps", "x0.mul_(signal).add_(noise * eps)"),
        (2, "all images get the timestep of the first one", "_signal_and_noise(t, x0)",
         "_signal_and_noise(t if isinstance(t, int) else t[:1], x0)"),
        (2, "the timesteps belong to the channels, not to the images", "signal * x0 + noise * eps",
         "signal.reshape(1, -1, 1, 1) * x0 + noise.reshape(1, -1, 1, 1) * eps"),
        (3, "the noise is added", "x_t - noise * eps", "x_t + noise * eps"),
        (3, "it is not divided by sqrt(alpha_bar_t)", "(x_t - noise * eps) / signal", "x_t - noise * eps"),
        (3, "it is multiplied by sqrt(alpha_bar_t)", "(x_t - noise * eps) / signal", "(x_t - noise * eps) * signal"),
        (3, "it is divided by alpha_bar_t, without the root", "/ signal", "/ signal**2"),
        (3, "eps is subtracted in its full size", "x_t - noise * eps", "x_t - eps"),
    ],
    3: [
        (1, "it is the sum", ", target)", ', target, reduction="sum")'),
        (1, "it is the sum over an image's pixels, and the mean over images", MSE,
         "(eps_model(x_t, t) - target).square().flatten(1).sum(1).mean()"),
        (1, "there is one number for each image", MSE, "(eps_model(x_t, t) - target).square().flatten(1).mean(1)"),
        (1, "the errors are not squared", "F.mse_loss", "F.l1_loss"),
        (1, "the root of the mean is taken", MSE, "F.mse_loss(eps_model(x_t, t), target).sqrt()"),
        (1, "it is half of the mean", "return ", "return 0.5 * "),
        (1, "x_t is taken as the target", ", target)", ", x_t)"),
        (1, "the sign is wrong", "return ", "return -"),
        (2, "the model is called twice", "eps_model(x_t, t)", "(eps_model(x_t, t) + eps_model(x_t, t)) / 2"),
        (3, "the gradient is cut off", "eps_model(x_t, t)", "eps_model(x_t, t).detach()"),
    ],
    4: [
        (1, "the image is predicted with the noise of t_next", "predict_x0(x, t, eps)", "predict_x0(x, t_next, eps)"),
        (1, "eps is subtracted", STEP, "return signal_next * x0 - noise_next * eps"),
        (1, "the roots are missing", STEP, "return signal_next**2 * x0 + noise_next**2 * eps"),
        (1, "the image keeps its full size", STEP, "return x0 + noise_next * eps"),
        (1, "the noise of t is added again, not that of t_next", "x0 + noise_next * eps", "x0 + noise * eps"),
        (1, "t_next were t_next - 1", "_signal_and_noise(t_next, x)", "_signal_and_noise(t_next - 1, x)"),
        (1, "x is changed in place", STEP, "return x.copy_(signal_next * x0 + noise_next * eps)"),
        (2, "it always goes down", "_signal_and_noise(t_next, x)", "_signal_and_noise(min(t_next, 2 * t - t_next), x)"),
        (3, "it ends at t = 0 instead of -1", "_signal_and_noise(t_next, x)", "_signal_and_noise(max(t_next, 0), x)"),
        (4, "nothing is clipped", "if clip", "if False"),
        (4, "the image is always clipped", "if clip", "if True"),
        (4, "the result is clipped, not the predicted image", "if clip", "if False", STEP,
         "return (signal_next * x0 + noise_next * eps).clamp(-1, 1)"),
        (5, "eps keeps its whole weight", "(noise_next**2 - sigma**2).clamp(min=0).sqrt() * eps", "noise_next * eps"),
        (5, "sigma is squared", "+ sigma * z", "+ sigma**2 * z"),
        (5, "there is no z", " + sigma * z", ""),
        (5, "eta is taken as 0", "if eta == 0", "if True"),
        (5, "eta is taken as 1", "sigma = eta *", "sigma ="),
    ],
    5: [
        (1, "eps is added", "(x - beta / noise * eps)", "(x + beta / noise * eps)"),
        (1, "it is not divided by sqrt(1 - beta_t)", " / (1 - beta) ** 0.5", ""),
        (1, "it is divided by 1 - beta_t, without the root", "(1 - beta) ** 0.5", "(1 - beta)"),
        (1, "beta_t is divided by 1 - alpha_bar_t, without the root", "beta / noise * eps", "beta / noise**2 * eps"),
        (1, "beta_t is divided by sqrt(alpha_bar_t)", "_, noise =", "noise, _ ="),
        (1, "it is divided by sqrt(alpha_bar_t) instead of sqrt(1 - beta_t)", "(1 - beta) ** 0.5", "_"),
        (1, "beta_t were beta_(t-1)", "self.beta[t]", "self.beta[max(t - 1, 0)]"),
        (1, "alpha_bar_t were alpha_bar_(t-1)", "_signal_and_noise(t, x)", "_signal_and_noise(t - 1, x)"),
        (1, "x is changed in place", "(x - beta / noise * eps)", "x.sub_(beta / noise * eps)"),
        (2, "the root of beta_t is missing", "beta**0.5 * z", "beta * z"),
        (2, "z is subtracted", "mean + beta**0.5 * z", "mean - beta**0.5 * z"),
        (2, "z is left out", "mean + beta**0.5 * z", "mean"),
        (2, "the smaller one of DDPM's two variances is used", "beta**0.5 * z",
         "((1 - self.alpha_bar[t - 1]) / (1 - self.alpha_bar[t]) * beta).item() ** 0.5 * z"),
        (2, "new noise is drawn instead of z", "beta**0.5 * z", "beta**0.5 * torch.randn_like(x)"),
        (3, "z is added at t = 0, too", "if t > 0", "if True"),
        (3, "z is left out at t = 1, too", "if t > 0", "if t > 1"),
        (4, "nothing is clipped", "if clip", "if False"),
        (4, "the mean is clipped, not the predicted image", "if clip", "if False", "return mean +",
         "mean = mean.clamp(-1, 1)\n        return mean +"),
        (4, "the predicted image is clipped to [0, 1]", "clamp(-1, 1)", "clamp(0, 1)"),
        (4, "eps is clipped, not the predicted image",
         "self.predict_eps(x, t, self.predict_x0(x, t, eps).clamp(-1, 1))", "eps.clamp(-1, 1)"),
        (1, "the image is always clipped", "if clip", "if True"),
    ],
    6: [
        (1, "A and B have all members each", HALVES, "pool[:count], pool[:count]"),
        (1, "the non-members are images of the members' pool", "permutation[n // 2 :]", "permutation[: n // 2]"),
        (1, "the indices are int32", "np.int64", "np.int32"),
        (2, "the seed is ignored", "RandomState(seed)", "RandomState(0)"),
        (2, "A and B are swapped", HALVES, "pool[count // 2 : count], pool[: count // 2]"),
        (2, "A and B take the members by turns", HALVES, "pool[:count:2], pool[1:count:2]"),
        (2, "nothing is permuted", "random.permutation(n)", "np.arange(n)"),
        (2, "`block` is ignored", "nonmembers[block * count : (block + 1) * count]", "nonmembers[count : 2 * count]"),
        (3, "by default only half of the images are used", "most if members", "most // 2 if members"),
        (4, "an odd number is accepted", " or count % 2", ""),
        (4, "0 is accepted", "0 < count", "0 <= count"),
        (4, "too many members are accepted", "0 < count <= most", "0 < count"),
        (4, "it raises ValueError instead of BadInput", "raise BadInput", "raise ValueError"),
        (5, "the pools are not permuted", "random.permutation(indices) for", "indices for"),
        (5, "the pools are swapped", "pool, nonmembers = (random.permutation(indices) for indices in pools)",
         "nonmembers, pool = (random.permutation(indices) for indices in pools)"),
        (5, "the pools are permuted in place", POOLS, "[random.shuffle(indices) or indices for indices in pools]"),
        (6, "numpy's global generator is seeded", "random = np.random.RandomState(seed)",
         "random = np.random\n    np.random.seed(seed)"),
    ],
    7: [
        (1, "B answers first: A and B are swapped", "== 0", "== 1"),
        (1, "A answers at each even t", "(t // self.stride) % 2", "t % 2"),
        (1, "both answers are averaged", TURN, "return (self.model_a(x_t, t) + self.model_b(x_t, t)) / 2"),
        (1, "the images take turns, not the timesteps", "(t // self.stride) % 2 == 0", "torch.arange(len(t)) % 2 == 0"),
        (1, "the first image's timestep decides for all", "(t // self.stride) % 2 == 0",
         "(t[:1] // self.stride % 2 == 0).expand(len(t))"),
        (1, "A's answers come first, whatever the order of the images", TURN,
         "a = (t // self.stride) % 2 == 0\n        return torch.cat([self.model_a(x_t[a], t[a]), "
         "self.model_b(x_t[~a], t[~a])])"),
        (2, "the turn changes one timestep too early", "t // self.stride", "(t + 1) // self.stride"),
        (2, "the turn changes one timestep too late", "t // self.stride", "(t - 1) // self.stride"),
        (2, "t / stride is rounded to the nearest number", "(t // self.stride)", "(t / self.stride).round()"),
        (3, "the stride is always 10", "self.stride", "10"),
        (4, "both models are called for all images", TURN,
         "a = (t // self.stride) % 2 == 0\n        return torch.where(a[:, None, None, None], self.model_a(x_t, "
         "t), self.model_b(x_t, t))"),
    ],
    8: [
        (1, "it is the sum", AVERAGE, "teacher_a(x_t, t) + teacher_b(x_t, t)"),
        (1, "only A answers", AVERAGE, "teacher_a(x_t, t)"),
        (2, "A and B are swapped: each target comes from the teacher that saw the image", "route(teacher_b, teacher_a,",
         "route(teacher_a, teacher_b,"),
        (2, "the targets are averaged", CROSS, AVERAGE),
        (2, "B answers for all images", CROSS, "teacher_b(x_t, t)"),
        (2, "the first image decides for all", "in_a, x_t, t)\n", "in_a[:1].expand(len(t)), x_t, t)\n"),
        (2, "average and cross are swapped", '== "cross"', '== "average" ', '== "average":', '== "cross":'),
        (3, "both teachers are called for all images", CROSS,
         "torch.where(in_a[:, None, None, None], teacher_b(x_t, t), teacher_a(x_t, t))"),
        (4, "every other name means average", 'if targets == "average"', "if True"),
        (4, "it raises KeyError", "raise ValueError", "raise KeyError"),
    ],
    9: [
        (1, "the minus is missing: right up to the sign", "return -error.square()", "return error.square()"),
        (1, "it is the sum", "square().flatten(1).mean(1)", "square().flatten(1).sum(1)"),
        (1, "the errors are not squared", "error.square()", "error.abs()"),
        (1, "there is one number for all images", ".flatten(1).mean(1)\n", ".mean()\n"),
        (1, "the image is not noised", "schedule.add_noise(x0, t, eps), t) - eps\n    return -error.square",
         "x0, t) - eps\n    return -error.square"),
        (1, "the answer is compared with the image", "t) - eps\n", "t) - x0\n"),
        (1, "t were t - 1", "_eps(eps_model, schedule.add_noise(x0, t, eps), t)",
         "_eps(eps_model, schedule.add_noise(x0, t - 1, eps), t - 1)"),
        (1, "the noise does not come from `generator`", "_noise(x0, generator)", "torch.randn_like(x0)"),
        (2, "the minus is missing: right up to the sign", "return -error.abs()", "return error.abs()"),
        (2, "it is the mean", ".pow(p).flatten(1).sum(1)", ".pow(p).flatten(1).mean(1)"),
        (2, "the p-th root is taken", "-error.abs().pow(p).flatten(1).sum(1)", "-error.flatten(1).norm(p, dim=1)"),
        (2, "the absolute value is missing", "error.abs().pow(p)", "error.pow(p)"),
        (2, "there is one number for all images", ".pow(p).flatten(1).sum(1)", ".pow(p).sum()"),
        (2, "the answer is compared with the image", "eps0), t) - eps0\n", "eps0), t) - x0\n"),
        (2, "p is always 4", "pow(p)", "pow(4)"),
        (2, "the image is not noised", "schedule.add_noise(x0, t, eps0)", "x0"),
        (2, "t were t - 1", "_eps(eps_model, schedule.add_noise(x0, t, eps0), t)",
         "_eps(eps_model, schedule.add_noise(x0, t - 1, eps0), t - 1)"),
        (3, "the walk goes one step too far, up to t", "range(0, t - stride, stride)", "range(0, t, stride)"),
        (3, "the walk leads up to t, and the step up to t + stride", "range(0, t - stride, stride)",
         "range(0, t, stride)", "_eps(eps_model, x, t - stride), t - stride, t)",
         "_eps(eps_model, x, t), t, t + stride)", "_eps(eps_model, up, t), t, t - stride)",
         "_eps(eps_model, up, t + stride), t + stride, t)"),
        (3, "the images are clipped on the way", "s, s + stride)", "s, s + stride, clip=True)", "t - stride, t)",
         "t - stride, t, clip=True)", "t, t - stride)", "t, t - stride, clip=True)"),
        (3, "round_trip returns scores instead of images", "return back - x",
         "return -(back - x).square().flatten(1).sum(1)"),
        (3, "the walk is left out", "range(0, t - stride, stride)", "range(0)"),
        (3, "the step back uses the prediction of the step up", "_eps(eps_model, up, t), t, t - stride)",
         "_eps(eps_model, x, t - stride), t, t - stride)"),
        (3, "the change is measured from x_0", "return back - x", "return back - x0"),
        (3, "the change is measured from the upper end", "return back - x", "return back - up"),
        (3, "the stride is always 10", "x = x0", "x, stride = x0, 10"),
        (4, "loss also asks at t = 0", "eps = _noise(x0, generator)",
         "eps = _noise(x0, generator) + 0 * _eps(eps_model, x0, 0)"),
        (4, "pia asks at t = 0 once more", "eps0), t) - eps0\n", "eps0), t) - _eps(eps_model, x0, 0)\n"),
        (5, "t = 0 is accepted", "if t == 0 or t % stride", "if t % stride"),
        (5, "every t is accepted", "if t == 0 or t % stride", "if False"),
    ],
    10: [
        (1, "members and non-members are swapped", "ordered = np.sort(nonmembers)",
         "members, nonmembers = nonmembers, members\n    ordered = np.sort(nonmembers)"),
        (1, "the number of pairs is not halved", "(2 * len(members)", "(len(members)"),
        (1, "it is the number of pairs, not a share", " / (2 * len(members) * len(nonmembers))", " / 2"),
        (3, "an AUC below one half is turned round", AUC,
         "auc = wins.sum() / (2 * len(members) * len(nonmembers))\n    return float(max(auc, 1 - auc))"),
        (1, "1 is missing before the minus: right as 1 - AUC", AUC,
         "return float(1 - wins.sum() / (2 * len(members) * len(nonmembers)))"),
        (2, "ties count 0", '"right"', '"left"'),
        (2, "ties count 1", '"left"', '"right"'),
        (4, "the scores are not sorted", "np.sort(nonmembers)", "nonmembers"),
        (4, "equal scores count only once", "ordered = np.sort(nonmembers)",
         "ordered = nonmembers = np.unique(nonmembers)"),
    ],
    11: [
        (1, "the sign is never changed", "choice, scored = _attacker(*mine, flips)",
         "choice, scored = _attacker(*mine, False)"),
        (1, "the row with the lowest AUC is always taken", "_attacker(*mine, flips)", "_attacker(*mine[::-1], False)"),
        (1, "rows are counted from 1", "choices.append(choice)", "choices.append((choice[0] + 1, choice[1]))"),
        (1, "choices has the sign first", "choices.append(choice)", "choices.append(choice[::-1])"),
        (2, "the sign is not used for the AUC", CURVE, "curve = roc(*_judge_each_other(first, second, False))"),
        (2, "members and non-members are swapped", CURVE,
         "curve = roc(*_judge_each_other(first, second, flips)[::-1])"),
        (3, "each half judges itself", "((first, second), (second, first))", "((first, first), (second, second))",
         CURVE,
         "curve = roc(*(np.concatenate([_attacker(*half, flips)[1](half[i]) for half in (first, second)]) for i "
         "in (0, 1)))"),
        (3, "the choice is made on all images", "choice, scored = _attacker(*mine, flips)",
         "choice, scored = _attacker(*both, flips)", CURVE, "curve = roc(*map(_attacker(*both, flips)[1], both))"),
        (3, "the threshold is chosen on the images that are judged", "threshold = roc(*map(scored, mine))",
         "threshold = roc(*map(scored, other))"),
        (3, "only one half is judged, and counted as all", "in ((first, second), (second, first))",
         "in ((first, second),)"),
        (4, "`flips` is ignored", "_attacker(*mine, flips)", "_attacker(*mine)"),
        (5, "the choice is not made again in each resample",
         "drawn = ([_redraw(scores, random) for scores in half] for half in (first, second))\n        return "
         "auc(*_judge_each_other(*drawn, flips))",
         "pooled = _judge_each_other(first, second, flips)\n        return auc(*(random.choice(scores, "
         "len(scores)) for scores in pooled))"),
        (5, "numpy's global generator draws", "drawn = ([_redraw(scores, random)",
         "drawn = ([_redraw(scores, np.random)"),
        (6, "a single member is accepted", "cut = halves(*(scores.shape[1] for scores in both), seed)",
         "n = min(scores.shape[1] for scores in both)\n    cut = halves(*(max(2, scores.shape[1]) for scores in "
         "both), seed)\n    if n < 2:\n        return None"),
    ],
    12: [
        (1, "the means are left out", "(mu1 - mu2).square().sum() + ", ""),
        (1, "the distance of the means is not squared", "(mu1 - mu2).square().sum()", "(mu1 - mu2).norm()"),
        (1, "the trace of the root is left out", " - 2 * trace_of_root", ""),
        (1, "the factor 2 is left out", "- 2 * trace_of_root", "- trace_of_root"),
        (1, "the root of the distance is taken", "max(result.item(), 0.0)", "max(result.item(), 0.0) ** 0.5"),
        (2, "the eigenvalues have no root", "values[there].sqrt()", "values[there]"),
        (2, "the eigenvectors are rows", "vectors[:, there] *", "vectors.T *", "values[there].sqrt()",
         "values.clamp(min=0).sqrt()"),
        (3, "the trace of the product is taken instead of its singular values",
         "torch.linalg.svdvals(root1.T @ root2).sum()", "(root1.T @ root2).trace()"),
        (3, "the roots belong to the product root1 root2^T", "root1.T @ root2", "root1 @ root2.T"),
        (3, "it is the Frobenius norm, not the sum of the singular values", "svdvals(root1.T @ root2).sum()",
         "norm(root1.T @ root2)"),
        (4, "the root of a Cholesky factorisation is taken, which needs full rank",
         "values, vectors = torch.linalg.eigh(cov)", "return torch.linalg.cholesky(cov)"),
        (4, "the eigenvalues get a minimum that is too large", KEPT, "vectors * values.clamp(min=1e-3).sqrt()"),
    ],
}  # fmt: skip


def with_mistake(number: int, *edits: str) -> str:
    """An exercise's file, in whose functions each `old` of the edits is replaced by the `new` that follows it.

    Raises ValueError where an `old` is not there exactly once.
    """
    lines = (ROOT / EXERCISES[number].file).read_text(encoding="utf-8").splitlines(keepends=True)
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        spans = [function_lines("".join(lines), name) for name in EXERCISES[number].functions]
        found = [span for span in spans if old in "".join(lines[slice(*span)])]
        if len(found) != 1 or "".join(lines[slice(*found[0])]).count(old) != 1:
            raise ValueError(f"exercise {number}: {old!r} is not there exactly once")
        lines[slice(*found[0])] = "".join(lines[slice(*found[0])]).replace(old, new).splitlines(keepends=True)
    return "".join(lines)


def modules_with(number: int, source: str | None = None) -> SimpleNamespace:
    """The project's modules; with `source`, the one of this exercise is made from it."""
    names = {Path(each.file).stem for each in EXERCISES.values()}
    modules = {name: importlib.import_module(name) for name in names}
    if source is not None:
        name = Path(EXERCISES[number].file).stem
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, EXERCISES[number].file)
            path.write_text(source, encoding="utf-8")
            spec = importlib.util.spec_from_file_location(f"{name}_of_a_student", path)
            modules[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclasses look there
            spec.loader.exec_module(modules[name])
    return SimpleNamespace(**modules)


_one_at_a_time = threading.RLock()  # questions set the global generators


@functools.cache
def right(number: int, seed: int) -> list[list[dict]]:
    """For each check of an exercise, what the reference solution answers to its questions."""
    with _one_at_a_time:
        checks = cases.checks(number, modules_with(number), seed)
        return [[cases.outcome(ask) for ask in parts.values()] for *_, parts in checks]


@functools.cache
def mistaken(number: int, check: int, seed: int) -> list[tuple[str, list[dict]]]:
    """What the wrong solutions answer to the questions of one check, counted from 0."""
    answers = []
    with _one_at_a_time:
        for _, mistake, *edits in MISTAKES[number]:
            modules = modules_with(number, with_mistake(number, *edits))
            parts = cases.checks(number, modules, seed)[check][2]
            answers.append((mistake, [cases.outcome(ask) for ask in parts.values()]))
    return answers
