"""Right solutions of the exercises that look different from the project's own code, as students write them.

Of each exercise and each variant these are the new bodies of its functions; one that is not listed keeps its body.
"""

SOLUTIONS: dict[int, dict[str, dict[str, str]]] = {
    1: {
        "a loop in plain Python": {
            "NoiseSchedule.__init__": """
betas, products, product = [], [], 1.0
for t in range(T):
    beta = beta_1 + (beta_T - beta_1) * t / max(T - 1, 1)
    product *= 1 - beta
    betas.append(beta)
    products.append(product)
self.T = T
self.beta = torch.tensor(betas, dtype=torch.float64)
self.alpha_bar = torch.tensor(products, dtype=torch.float64)
""",
        },
        "numpy": {
            "NoiseSchedule.__init__": """
import numpy as np

beta = np.linspace(beta_1, beta_T, num=T)
self.T, self.beta, self.alpha_bar = T, torch.from_numpy(beta), torch.from_numpy(np.cumprod(1.0 - beta))
""",
        },
        "the exponential of a sum of logarithms": {
            "NoiseSchedule.__init__": """
self.T = T
share = torch.arange(T, dtype=torch.float64) / max(T - 1, 1)
self.beta = (1 - share) * beta_1 + share * beta_T
self.alpha_bar = torch.exp(torch.cumsum(torch.log1p(-self.beta), dim=0))
""",
        },
        "a product of its own for each timestep": {
            "NoiseSchedule.__init__": """
step = (beta_T - beta_1) / max(T - 1, 1)
self.T = T
self.beta = beta_1 + step * torch.arange(T).double()
self.alpha_bar = torch.stack([torch.prod(1 - self.beta[: t + 1]) for t in range(T)])
""",
        },
    },
    2: {
        "float64 inside and a cast back": {
            "NoiseSchedule.add_noise": """
t = torch.as_tensor(t, device=x0.device)
alpha_bar = torch.where(t < 0, 1.0, self.alpha_bar.to(x0.device)[t]).reshape(-1, 1, 1, 1)
x_t = alpha_bar.sqrt() * x0.double() + (1 - alpha_bar).sqrt() * eps.double()
return x_t.to(x0.dtype)
""",
            "NoiseSchedule.predict_x0": """
t = torch.as_tensor(t, device=x_t.device)
alpha_bar = torch.where(t < 0, 1.0, self.alpha_bar.to(x_t.device)[t]).reshape(-1, 1, 1, 1)
x0 = (x_t.double() - (1 - alpha_bar).sqrt() * eps.double()) / alpha_bar.sqrt()
return x0.to(x_t.dtype)
""",
        },
        "a loop over the images": {
            "NoiseSchedule.add_noise": """
times = torch.as_tensor(t).expand(len(x0)).tolist()
noised = []
for i in range(len(x0)):
    signal, noise = self._signal_and_noise(times[i], x0)
    noised.append(signal * x0[i] + noise * eps[i])
return torch.stack(noised)
""",
            "NoiseSchedule.predict_x0": """
times = torch.as_tensor(t).expand(len(x_t)).tolist()
clean = torch.empty_like(x_t)
for i, time in enumerate(times):
    signal, noise = self._signal_and_noise(time, x_t)
    clean[i] = (x_t[i] - noise * eps[i]) / signal
return clean
""",
        },
        "einsum": {
            "NoiseSchedule.add_noise": """
signal, noise = (weight.flatten().expand(len(x0)) for weight in self._signal_and_noise(t, x0))
image_part = torch.einsum("n,nchw->nchw", signal, x0)
noise_part = torch.einsum("n,nchw->nchw", noise, eps.to(x0.dtype))
return image_part + noise_part
""",
            "NoiseSchedule.predict_x0": """
signal, noise = (weight.flatten().expand(len(x_t)) for weight in self._signal_and_noise(t, x_t))
without_noise = x_t - torch.einsum("n,nchw->nchw", noise, eps.to(x_t.dtype))
return torch.einsum("n,nchw->nchw", 1 / signal, without_noise)
""",
        },
        "numpy for the weights": {
            "NoiseSchedule.add_noise": """
import numpy as np

alpha_bar = np.append(self.alpha_bar.numpy(), 1.0)[torch.as_tensor(t).cpu().numpy()]
signal = torch.as_tensor(np.sqrt(alpha_bar)).reshape(-1, 1, 1, 1).to(x0)
noise = torch.as_tensor(np.sqrt(1 - alpha_bar)).reshape(-1, 1, 1, 1).to(x0)
return x0 * signal + eps * noise
""",
            "NoiseSchedule.predict_x0": """
import numpy as np

alpha_bar = np.append(self.alpha_bar.numpy(), 1.0)[torch.as_tensor(t).cpu().numpy()]
of_x = torch.as_tensor(np.sqrt(1 / alpha_bar)).reshape(-1, 1, 1, 1).to(x_t)
of_eps = torch.as_tensor(np.sqrt(1 / alpha_bar - 1)).reshape(-1, 1, 1, 1).to(x_t)
return of_x * x_t - of_eps * eps
""",
        },
        "the signal as a common factor": {
            "NoiseSchedule.add_noise": """
signal, noise = self._signal_and_noise(t, x0)
return signal * (x0 + noise / signal * eps)
""",
            "NoiseSchedule.predict_x0": """
signal, noise = self._signal_and_noise(t, x_t)
return x_t / signal - noise / signal * eps
""",
        },
    },
    3: {
        "squares and their mean": {
            "training_loss": """
error = eps_model(x_t, t) - target
return (error**2).mean()
""",
        },
        "a sum over all pixels, divided by their number": {
            "training_loss": """
predicted = eps_model(x_t, t)
squares = torch.pow(target - predicted, 2)
return squares.sum() / squares.numel()
""",
        },
        "a loop over the images": {
            "training_loss": """
losses = []
for predicted, wanted in zip(eps_model(x_t, t), target, strict=True):
    losses.append(F.mse_loss(predicted, wanted))
return torch.stack(losses).mean()
""",
        },
        "the mean of each image first": {
            "training_loss": """
error = target - eps_model(x_t, t)
of_each_image = error.square().mean(dim=(1, 2, 3))
return of_each_image.mean()
""",
        },
    },
    4: {
        "the three parts of equation 12": {
            "NoiseSchedule.ddim_step": """
signal, noise = self._signal_and_noise(t, x)
signal_next, noise_next = self._signal_and_noise(t_next, x)
pred_original = (x - noise * eps) / signal
if clip:
    pred_original = torch.clamp(pred_original, min=-1.0, max=1.0)
variance = (noise_next**2 / noise**2) * (1 - signal**2 / signal_next**2)
sigma = eta * variance.clamp(min=0).sqrt()
direction = torch.sqrt((noise_next**2 - sigma**2).clamp(min=0)) * eps
x_next = signal_next * pred_original + direction
if eta > 0:
    x_next = x_next + sigma * z
return x_next
""",
        },
        "float64 inside and a cast back": {
            "NoiseSchedule.ddim_step": """
table = torch.cat([self.alpha_bar, torch.ones(1, dtype=torch.float64)]).to(x.device)
now, after = table[t].reshape(-1, 1, 1, 1), table[t_next].reshape(-1, 1, 1, 1)
x0 = (x.double() - (1 - now).sqrt() * eps) / now.sqrt()
if clip:
    x0 = x0.clamp(-1, 1)
variance = eta**2 * (1 - after) / (1 - now) * (1 - now / after)
x_next = after.sqrt() * x0 + (1 - after - variance).clamp(min=0).sqrt() * eps
if eta:
    x_next = x_next + variance.sqrt() * z
return x_next.to(x.dtype)
""",
        },
        "add_noise with a mixture of old and new noise": {
            "NoiseSchedule.ddim_step": """
x0 = self.predict_x0(x, t, eps)
x0 = x0.clip(-1, 1) if clip else x0
if eta != 0:
    signal, noise = self._signal_and_noise(t, x)
    signal_next, _ = self._signal_and_noise(t_next, x)
    share = eta**2 * (1 - (signal / signal_next) ** 2) / noise**2  # sigma^2 / (1 - alpha_bar_next)
    eps = (1 - share).clamp(min=0).sqrt() * eps + share.sqrt() * z
return self.add_noise(x0, t_next, eps)
""",
        },
        "a loop over the images with math.sqrt": {
            "NoiseSchedule.ddim_step": """
import math

table = [*self.alpha_bar.tolist(), 1.0]
times, times_next = (torch.as_tensor(s).expand(len(x)).tolist() for s in (t, t_next))
steps = []
for i in range(len(x)):
    now, after = table[times[i]], table[times_next[i]]
    x0 = (x[i] - math.sqrt(1 - now) * eps[i]) / math.sqrt(now)
    if clip:
        x0 = torch.clip(x0, -1, 1)
    sigma = eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(max(1 - now / after, 0))
    step = math.sqrt(after) * x0 + math.sqrt(max(1 - after - sigma**2, 0)) * eps[i]
    steps.append(step + sigma * z[i] if eta else step)
return torch.stack(steps)
""",
        },
        "numpy for the weights": {
            "NoiseSchedule.ddim_step": """
import numpy as np

table = np.append(self.alpha_bar.numpy(), 1.0)
now, after = (table[torch.as_tensor(s).cpu().numpy()].reshape(-1, 1, 1, 1) for s in (t, t_next))
sigma = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(np.maximum(1 - now / after, 0))
old = np.sqrt(np.maximum(1 - after - sigma**2, 0))
weights = (np.sqrt(now), np.sqrt(1 - now), np.sqrt(after), old, sigma)
signal, noise, signal_next, old, sigma = (torch.from_numpy(weight).to(x) for weight in weights)
x0 = x / signal - noise / signal * eps
x0 = x0.clamp(-1, 1) if clip else x0
x_next = signal_next * x0 + old * eps
return x_next if eta == 0 else x_next + sigma * z
""",
        },
    },
    5: {
        "math.sqrt and helper variables": {
            "NoiseSchedule.ddpm_step": """
import math

beta, alpha_bar = self.beta[t].item(), self.alpha_bar[t].item()
signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
if clip:
    x0 = torch.clip((x - noise * eps) / signal, -1, 1)
    eps = (x - signal * x0) / noise
mean = (x - beta / noise * eps) / math.sqrt(1 - beta)
if t == 0:
    return mean
return mean + math.sqrt(beta) * z
""",
        },
        "equation 7, from the predicted image": {
            "NoiseSchedule.ddpm_step": """
x0 = self.predict_x0(x, t, eps)
if clip:
    x0 = x0.clamp(-1, 1)
beta, alpha_bar = self.beta[t].item(), self.alpha_bar[t].item()
before = self.alpha_bar[t - 1].item() if t > 0 else 1.0
of_image = before**0.5 * beta / (1 - alpha_bar)
of_x = (1 - beta) ** 0.5 * (1 - before) / (1 - alpha_bar)
mean = of_image * x0 + of_x * x
return mean if t == 0 else mean + beta**0.5 * z
""",
        },
        "float64 inside and a cast back": {
            "NoiseSchedule.ddpm_step": """
beta, alpha_bar = self.beta[t].to(x.device), self.alpha_bar[t].to(x.device)
x64, eps64 = x.double(), eps.double()
if clip:
    image = ((x64 - (1 - alpha_bar).sqrt() * eps64) / alpha_bar.sqrt()).clamp(-1, 1)
    eps64 = (x64 - alpha_bar.sqrt() * image) / (1 - alpha_bar).sqrt()
x_before = (1 - beta).rsqrt() * (x64 - beta * (1 - alpha_bar).rsqrt() * eps64)
if t > 0:
    x_before = x_before + beta.sqrt() * z.double()
return x_before.to(x.dtype)
""",
        },
        "beta from two alpha_bars": {
            "NoiseSchedule.ddpm_step": """
alpha_bars = [1.0, *self.alpha_bar.tolist()]
alpha = alpha_bars[t + 1] / alpha_bars[t]
if clip:
    x0 = self.predict_x0(x, t, eps).clamp(min=-1.0, max=1.0)
    eps = self.predict_eps(x, t, x0)
x_before = x / alpha**0.5 - (1 - alpha) / (alpha * (1 - alpha_bars[t + 1])) ** 0.5 * eps
if t > 0:
    x_before += (1 - alpha) ** 0.5 * z
return x_before
""",
        },
    },
    6: {
        "refusals one after the other": {
            "index_split": """
random = np.random.RandomState(seed)
if pools is not None:
    pool_m, pool_n = random.permutation(pools[0]), random.permutation(pools[1])
else:
    order = random.permutation(n)
    pool_m, pool_n = order[: n // 2], order[n // 2 :]
available = min(len(pool_m), len(pool_n))
if members is None:
    members = available if available % 2 == 0 else available - 1
if members <= 0 or members % 2 == 1 or members > available:
    raise BadInput(f"{members} members cannot be taken from pools of {len(pool_m)} and {len(pool_n)} images")
pool_m, pool_n = torch.tensor(pool_m, dtype=torch.int64), torch.tensor(pool_n, dtype=torch.int64)
start = block * members
half = members // 2
return Split(pool_m[:half], pool_m[half:members], pool_n[:members], pool_n[start : start + members])
""",
        },
        "a shuffled copy, cut by numpy": {
            "index_split": """
random = np.random.RandomState(seed)
if pools is None:
    order = np.arange(n)
    random.shuffle(order)
    first, second = np.split(order, [n // 2])
else:
    first, second = (np.array(pool) for pool in pools)
    random.shuffle(first)
    random.shuffle(second)
most = min(len(first), len(second)) & ~1
count = most if members is None else members
if count not in range(2, most + 1, 2):
    raise BadInput(f"--members {count}: not an even number from 2 to {most}")
a, b = np.split(first[:count], 2)
parts = np.split(second, [count, block * count, (block + 1) * count])
return Split(*(torch.as_tensor(part.astype("int64")) for part in (a, b, parts[0], parts[2])))
""",
        },
        "lists": {
            "index_split": """
random = np.random.RandomState(seed)
if pools is None:
    everything = random.permutation(n).tolist()
    inside, outside = everything[: n // 2], everything[n // 2 :]
else:
    inside = random.permutation(pools[0]).tolist()
    outside = random.permutation(pools[1]).tolist()
most = 2 * (min(len(inside), len(outside)) // 2)
count = most if members is None else members
if count < 2 or count > most or count % 2 != 0:
    raise BadInput(f"--members {count}: must be even, and from 2 to {most}")
blocks = [outside[i : i + count] for i in range(0, len(outside), count)]
reference = blocks[block] if block < len(blocks) else []
parts = [inside[: count // 2], inside[count // 2 : count], blocks[0], reference]
return Split(*[torch.tensor(part, dtype=torch.long) for part in parts])
""",
        },
        "an iterator that gives the next indices": {
            "index_split": """
from itertools import islice

random = np.random.RandomState(seed)
given = pools if pools is not None else np.split(random.permutation(n), [n // 2])
if pools is not None:
    given = [random.permutation(given[0]), random.permutation(given[1])]
most = min(map(len, given)) // 2 * 2
count = most if members is None else members
if count % 2 or not 2 <= count <= most:
    raise BadInput(f"--members {count}: must be even, and at most {most}")
ours, others = (iter(pool.tolist()) for pool in given)
a, b, nonmembers = (list(islice(*it)) for it in ((ours, count // 2), (ours, count // 2), (others, count)))
list(islice(others, (block - 1) * count))
return Split(*(torch.tensor(part, dtype=torch.int64) for part in (a, b, nonmembers, list(islice(others, count)))))
""",
        },
    },
    7: {
        "masks": {
            "DualMD.__call__": """
turn_of_a = (t // self.stride) % 2 == 0
eps = torch.zeros_like(x_t)
if turn_of_a.any():
    eps[turn_of_a] = self.model_a(x_t[turn_of_a], t[turn_of_a])
if not turn_of_a.all():
    eps[~turn_of_a] = self.model_b(x_t[~turn_of_a], t[~turn_of_a])
return eps
""",
        },
        "image by image": {
            "DualMD.__call__": """
answers = []
for i in range(len(t)):
    even = (int(t[i]) // self.stride) % 2 == 0
    model = self.model_a if even else self.model_b
    answers.append(model(x_t[i : i + 1], t[i : i + 1]))
return torch.cat(answers)
""",
        },
        "both answers, put back into order": {
            "DualMD.__call__": """
turn = torch.div(t, self.stride, rounding_mode="floor").remainder(2)
rows = [(turn == k).nonzero().flatten() for k in (0, 1)]
models = (self.model_a, self.model_b)
answers = [model(x_t[which], t[which]) for model, which in zip(models, rows, strict=True) if len(which) > 0]
return torch.cat(answers)[torch.cat(rows).argsort()]
""",
        },
        "route, by the place in a period of two turns": {
            "DualMD.__call__": """
second_turn = t.remainder(2 * self.stride) >= self.stride
return route(self.model_b, self.model_a, second_turn, x_t, t)
""",
        },
    },
    8: {
        "masks": {
            "distill_targets": """
if targets == "average":
    return 0.5 * teacher_a(x_t, t) + 0.5 * teacher_b(x_t, t)
if targets != "cross":
    raise ValueError(f"unknown targets: {targets}")
result = torch.empty_like(x_t)
in_b = torch.logical_not(in_a)
if in_a.any():
    result[in_a] = teacher_b(x_t[in_a], t[in_a])
if in_b.any():
    result[in_b] = teacher_a(x_t[in_b], t[in_b])
return result
""",
        },
        "image by image": {
            "distill_targets": """
if targets not in ("cross", "average"):
    raise ValueError("targets: cross or average")
if targets == "average":
    return torch.stack([teacher_a(x_t, t), teacher_b(x_t, t)]).mean(dim=0)
answers = []
for i, known_to_a in enumerate(in_a.tolist()):
    teacher = teacher_b if known_to_a else teacher_a
    answers.append(teacher(x_t[i : i + 1], t[i : i + 1])[0])
return torch.stack(answers)
""",
        },
        "route the other way round": {
            "distill_targets": """
match targets:
    case "cross":
        return route(teacher_a, teacher_b, ~in_a, x_t, t)
    case "average":
        from_a, from_b = (teacher(x_t, t) for teacher in (teacher_a, teacher_b))
        return torch.lerp(from_a, from_b, 0.5)
    case _:
        raise ValueError(targets)
""",
        },
        "both answers, put back into order": {
            "distill_targets": """
if targets == "average":
    return torch.add(teacher_a(x_t, t), teacher_b(x_t, t)).div(2)
if targets == "cross":
    of_b, of_a = (torch.where(half)[0].to(x_t.device) for half in (~in_a, in_a))
    asked = [(teacher, rows) for teacher, rows in ((teacher_a, of_b), (teacher_b, of_a)) if len(rows)]
    answers = torch.cat([teacher(x_t[rows], t[rows]) for teacher, rows in asked])
    return answers[torch.argsort(torch.cat([of_b, of_a]))]
raise ValueError(f"no such targets: {targets!r}")
""",
        },
    },
    9: {
        "a loop over the errors": {
            "loss": """
eps = _noise(x0, generator)
predicted = _eps(eps_model, schedule.add_noise(x0, t, eps), t)
scores = []
for i in range(len(x0)):
    scores.append(-((predicted[i] - eps[i]) ** 2).mean())
return torch.stack(scores)
""",
            "_pia": """
predicted = _eps(eps_model, schedule.add_noise(x0, t, eps0), t)
return torch.stack([-((ours - its).abs() ** p).sum() for ours, its in zip(predicted, eps0, strict=True)])
""",
            "round_trip": """
if t <= 0 or t % stride != 0:
    raise ValueError(f"t = {t} is not a positive multiple of {stride}")
states = [x0]
for s in range(0, t, stride):
    states.append(schedule.ddim_step(states[-1], _eps(eps_model, states[-1], s), s, s + stride))
back = schedule.ddim_step(states[-1], _eps(eps_model, states[-1], t), t, t - stride)
return back - states[-2]
""",
        },
        "image by image, each with its own queries": {
            "loss": """
eps, ts, scores = _noise(x0, generator), torch.full((1,), t, device=x0.device), []
for i in range(len(x0)):
    x_t = schedule.add_noise(x0[i : i + 1], t, eps[i : i + 1])
    scores.append(-training_loss(eps_model, x_t, ts, eps[i : i + 1]))
return torch.stack(scores)
""",
            "_pia": """
scores = []
for image, noise in zip(x0.split(1), eps0.split(1), strict=True):
    error = noise - _eps(eps_model, schedule.add_noise(image, t, noise), t)
    scores.append(-torch.sum(torch.abs(error) ** p))
return torch.stack(scores)
""",
            "round_trip": """
if t == 0 or t % stride:
    raise ValueError(f"t = {t} must be a positive multiple of stride = {stride}")
errors = []
for x in x0.split(1):
    for s in range(stride, t, stride):
        x = schedule.ddim_step(x, _eps(eps_model, x, s - stride), s - stride, s)
    there = schedule.ddim_step(x, _eps(eps_model, x, t - stride), t - stride, t)
    errors.append(schedule.ddim_step(there, _eps(eps_model, there, t), t, t - stride) - x)
return torch.cat(errors)
""",
        },
        "norms and their powers": {
            "loss": """
eps = _noise(x0, generator)
error = _eps(eps_model, schedule.add_noise(x0, t, eps), t) - eps
return -(torch.linalg.vector_norm(error, dim=(1, 2, 3)) ** 2) / error[0].numel()
""",
            "_pia": """
x_t = schedule.add_noise(x0, t, eps0)
difference = eps0 - _eps(eps_model, x_t, t)
return -torch.linalg.vector_norm(difference, ord=p, dim=(1, 2, 3)) ** p
""",
            "round_trip": """
def step(x, now, then):
    eps = _eps(eps_model, x, now)
    return schedule.add_noise(schedule.predict_x0(x, now, eps), then, eps)

if t < stride or t % stride:
    raise ValueError("t must be a positive multiple of the stride")
x, s = x0, 0
while s + stride < t:
    x, s = step(x, s, s + stride), s + stride
return step(step(x, s, t), t, s) - x
""",
        },
        "numpy for the sums": {
            "loss": """
import numpy as np

eps = _noise(x0, generator)
error = (_eps(eps_model, schedule.add_noise(x0, t, eps), t) - eps).double().cpu().numpy()
return torch.from_numpy(-np.mean(error**2, axis=(1, 2, 3))).to(x0)
""",
            "_pia": """
import numpy as np

error = (_eps(eps_model, schedule.add_noise(x0, t, eps0), t) - eps0).double().cpu().numpy()
return torch.from_numpy(-np.sum(np.abs(error) ** p, axis=(1, 2, 3))).to(x0)
""",
            "round_trip": """
from itertools import pairwise

if t == 0 or t // stride * stride != t:
    raise ValueError(f"t = {t}, but steps of {stride} go up from 0")
x, up = None, x0
for now, then in pairwise(range(0, t + 1, stride)):
    x, up = up, schedule.ddim_step(up, _eps(eps_model, up, now), now, then)
back = schedule.ddim_step(up, _eps(eps_model, up, t), t, t - stride)
return torch.sub(back, x)
""",
        },
    },
    10: {
        "all pairs in one matrix": {
            "auc": """
greater = members[:, None] > nonmembers[None, :]
equal = members[:, None] == nonmembers[None, :]
return float(greater.mean() + equal.mean() / 2)
""",
        },
        "average ranks": {
            "auc": """
n, m = len(members), len(nonmembers)
_, place, counts = np.unique(np.concatenate([members, nonmembers]), return_inverse=True, return_counts=True)
average_rank = np.cumsum(counts) - (counts - 1) / 2
u = average_rank[place[:n]].sum() - n * (n + 1) / 2
return float(u / (n * m))
""",
        },
        "a loop over the members": {
            "auc": """
wins = 0.0
for score in members:
    wins += np.count_nonzero(nonmembers < score)
    wins += 0.5 * np.count_nonzero(nonmembers == score)
return float(wins / len(members) / len(nonmembers))
""",
        },
        "bisect": {
            "auc": """
from bisect import bisect_left, bisect_right

others = sorted(np.asarray(nonmembers).tolist())
shares = [(bisect_left(others, x) + bisect_right(others, x)) / (2 * len(others)) for x in np.asarray(members).tolist()]
return sum(shares) / len(shares)
""",
        },
        "the area under the curve": {
            "auc": """
thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
tpr = np.concatenate([[0.0], [(members >= c).mean() for c in thresholds]])
fpr = np.concatenate([[0.0], [(nonmembers >= c).mean() for c in thresholds]])
return float(((fpr[1:] - fpr[:-1]) * (tpr[1:] + tpr[:-1]) / 2).sum())
""",
        },
    },
    11: {
        "the helpers, one half at a time": {
            "adaptive": """
members, nonmembers = _as_arrays(members, nonmembers)
(m1, n1), (m2, n2) = halves(members.shape[1], nonmembers.shape[1], seed)
first, second = (members[:, m1], nonmembers[:, n1]), (members[:, m2], nonmembers[:, n2])
(choice1, score1), (choice2, score2) = _attacker(*first, flips), _attacker(*second, flips)
cut1, cut2 = roc(*map(score1, first)).threshold, roc(*map(score2, second)).threshold
ours = [score2(first[0]), score1(second[0])]
theirs = [score2(first[1]), score1(second[1])]
right = sum(np.sum(x >= c) for x, c in zip(ours, (cut2, cut1), strict=True))
right += sum(np.sum(x < c) for x, c in zip(theirs, (cut2, cut1), strict=True))
random, aucs = np.random.RandomState(seed), []
for _ in range(RESAMPLES):
    drawn = [[_redraw(scores, random) for scores in half] for half in (first, second)]
    aucs.append(auc(*_judge_each_other(*drawn, flips)))
interval = tuple(np.percentile(aucs, [2.5, 97.5]).tolist())
accuracy = float(right) / (members.shape[1] + nonmembers.shape[1])
return Result(roc(np.concatenate(ours), np.concatenate(theirs)), interval, accuracy, [choice1, choice2])
""",
        },
        "in standard deviations of the non-members": {
            "adaptive": """
members, nonmembers = _as_arrays(members, nonmembers)
cut = halves(members.shape[1], nonmembers.shape[1], seed)
first, second = ((members[:, ours], nonmembers[:, theirs]) for ours, theirs in cut)

def learn(m, n):
    choices = [(row, sign) for row in range(len(m)) for sign in ((1, -1) if flips else (1,))]
    row, sign = max(choices, key=lambda it: auc(it[1] * m[it[0]], it[1] * n[it[0]]))
    return (row, sign), lambda scores: sign * (scores[row] - n[row].mean()) / (n[row].std() or 1)

def pooled(one, two):
    by_one, by_two = learn(*one)[1], learn(*two)[1]
    return [np.append(by_two(scores), by_one(others)) for scores, others in zip(one, two, strict=True)]

random, aucs, right, choices = np.random.RandomState(seed), [], 0, []
for _ in range(RESAMPLES):
    aucs.append(auc(*pooled(*([_redraw(scores, random) for scores in half] for half in (first, second)))))
for mine, (m, n) in ((first, second), (second, first)):
    choice, score = learn(*mine)
    threshold = roc(score(mine[0]), score(mine[1])).threshold
    right += (score(m) >= threshold).sum() + (score(n) < threshold).sum()
    choices.append(choice)
low, high = np.quantile(aucs, [0.025, 0.975])
accuracy = right / (members.shape[1] + nonmembers.shape[1])
return Result(roc(*pooled(first, second)), (float(low), float(high)), float(accuracy), choices)
""",
        },
        "shares of the non-members that are lower": {
            "adaptive": """
both = _as_arrays(members, nonmembers)
cut = halves(both[0].shape[1], both[1].shape[1], seed)
parts = [[scores[:, rows] for scores, rows in zip(both, half, strict=True)] for half in cut]

def attack(mine, other):
    aucs = np.array([auc(m, n) for m, n in zip(*mine, strict=True)])
    row = int(np.argmax(np.maximum(aucs, 1 - aucs) if flips else aucs))
    sign = -1 if flips and aucs[row] < 0.5 else 1
    known = np.sort(sign * mine[1][row])
    lower = [np.searchsorted(known, sign * s[row], side) for s in other for side in ("left", "right")]
    threshold = roc(sign * mine[0][row], sign * mine[1][row]).threshold
    right = (sign * other[0][row] >= threshold).sum() + (sign * other[1][row] < threshold).sum()
    return (row, sign), [(lower[0] + lower[1]) / len(known), (lower[2] + lower[3]) / len(known)], right

def both_ways(one, two):
    found = attack(one, two), attack(two, one)
    pooled = [np.concatenate(scores) for scores in zip(found[0][1], found[1][1], strict=True)]
    return pooled, [found[0][0], found[1][0]], found[0][2] + found[1][2]

def resample(random):
    drawn = [[s[:, random.choice(s.shape[1], s.shape[1])] for s in half] for half in parts]
    return auc(*both_ways(*drawn)[0])

pooled, choices, right = both_ways(*parts)
return Result(roc(*pooled), _interval(resample, seed), float(right / sum(map(len, pooled))), choices)
""",
        },
        "ranks within the half that is judged": {
            "adaptive": """
members, nonmembers = _as_arrays(members, nonmembers)
(m1, n1), (m2, n2) = halves(members.shape[1], nonmembers.shape[1], seed)

def choose(m, n):
    aucs = [auc(members[row, m], nonmembers[row, n]) for row in range(len(members))]
    best = max(range(len(aucs)), key=lambda row: abs(aucs[row] - 0.5) if flips else aucs[row])
    return best, -1 if flips and aucs[best] < 0.5 else 1

def ranks(choice, m, n):
    scores = choice[1] * np.append(members[choice[0], m], nonmembers[choice[0], n])
    ordered = np.sort(scores)
    ranked = (np.searchsorted(ordered, scores) + np.searchsorted(ordered, scores, "right")) / len(scores)
    return ranked[: len(m)], ranked[len(m) :]

def pooled(m1, n1, m2, n2):
    scored = ranks(choose(m2, n2), m1, n1), ranks(choose(m1, n1), m2, n2)
    return [np.concatenate(kind) for kind in zip(*scored, strict=True)]

random, choices, right = np.random.RandomState(seed), [choose(m1, n1), choose(m2, n2)], 0
aucs = [auc(*pooled(*(random.choice(rows, len(rows)) for rows in (m1, n1, m2, n2)))) for _ in range(RESAMPLES)]
for (row, sign), (m, n), (m_other, n_other) in zip(choices, ((m1, n1), (m2, n2)), ((m2, n2), (m1, n1)), strict=True):
    threshold = roc(sign * members[row, m], sign * nonmembers[row, n]).threshold
    right += sum(sign * members[row, m_other] >= threshold) + sum(sign * nonmembers[row, n_other] < threshold)
low, high = sorted(aucs)[int(0.025 * RESAMPLES)], sorted(aucs)[int(0.975 * RESAMPLES)]
accuracy = float(right / (members.shape[1] + nonmembers.shape[1]))
return Result(roc(*pooled(m1, n1, m2, n2)), (low, high), accuracy, choices)
""",
        },
        "distances to the threshold": {
            "adaptive": """
members, nonmembers = _as_arrays(members, nonmembers)
cut = halves(members.shape[1], nonmembers.shape[1], seed)
first, second = ([members[:, m], nonmembers[:, n]] for m, n in cut)

def learn(m, n):
    equal, greater = m[:, :, None] == n[:, None, :], m[:, :, None] > n[:, None, :]
    aucs = greater.mean(axis=(1, 2)) + equal.mean(axis=(1, 2)) / 2
    row = int(np.argmax(abs(aucs - 0.5))) if flips else int(np.argmax(aucs))
    sign = 1 if aucs[row] >= 0.5 or not flips else -1
    ours, theirs = sign * m[row], sign * n[row]
    candidates = np.unique(np.concatenate([ours, theirs, [max(ours.max(), theirs.max()) + 1]]))[:, None]
    threshold = candidates[np.argmax((ours >= candidates).sum(1) + (theirs < candidates).sum(1)), 0]
    spread = np.abs(theirs - np.median(theirs)).mean() or 1
    return (row, sign), lambda scores: (sign * scores[row] - threshold) / spread

def cross(one, two):
    (choice1, by_one), (choice2, by_two) = learn(*one), learn(*two)
    return [np.append(by_two(a), by_one(b)) for a, b in zip(one, two, strict=True)], [choice1, choice2]

(ours, theirs), choices = cross(first, second)
random, aucs = np.random.RandomState(seed), np.empty(RESAMPLES)
for i in range(RESAMPLES):
    aucs[i] = auc(*cross(*([_redraw(scores, random) for scores in half] for half in (first, second)))[0])
low, high = np.quantile(aucs, 0.025), np.quantile(aucs, 0.975)
accuracy = ((ours >= 0).sum() + (theirs < 0).sum()) / (len(ours) + len(theirs))
return Result(roc(ours, theirs), (float(low), float(high)), float(accuracy), choices)
""",
        },
    },
    12: {
        "a singular value decomposition and the nuclear norm": {
            "symmetric_root": """
u, s, _ = torch.linalg.svd(cov)
rank = int((s > s[0] * len(cov) * torch.finfo(cov.dtype).eps).sum())
return u[:, :rank] * s[:rank].sqrt()
""",
            "distance": """
_, s, _ = torch.linalg.svd(root2.T @ root1, full_matrices=False)
traces = torch.sum(root1**2) + torch.sum(root2**2) - 2 * torch.sum(s)
squared = torch.dot(mu1 - mu2, mu1 - mu2) + traces
return float(squared.clamp(min=0))
""",
        },
        "eigenvalues of R1^T cov2 R1": {
            "symmetric_root": """
values, vectors = torch.linalg.eigh(cov)
tolerance = values.abs().max() * len(cov) * torch.finfo(cov.dtype).eps
columns = [vectors[:, i] * values[i].sqrt() for i in range(len(values)) if values[i] > tolerance]
return torch.stack(columns, dim=1) if columns else cov[:, :0]
""",
            "distance": """
if root1.shape[1] > root2.shape[1]:
    root1, root2 = root2, root1
cov2 = root2 @ root2.T
squares = torch.linalg.eigvalsh(root1.T @ cov2 @ root1)
squares = squares[squares > squares.sum() * 1e-15]
trace = torch.trace(root1 @ root1.T) + torch.trace(cov2) - 2 * squares.sqrt().sum()
return max(0.0, ((mu1 - mu2) ** 2).sum().item() + trace.item())
""",
        },
        "numpy": {
            "symmetric_root": """
values, vectors = np.linalg.eigh(cov.cpu().numpy())
order = np.argsort(values)[::-1]
values, vectors = values[order], vectors[:, order]
kept = values > values[0] * len(values) * np.finfo(values.dtype).eps
return torch.from_numpy(vectors[:, kept] * np.sqrt(values[kept]))
""",
            "distance": """
mu1, root1, mu2, root2 = (each.cpu().numpy() for each in (mu1, root1, mu2, root2))
trace_of_root = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
result = np.sum((mu1 - mu2) ** 2) + np.sum(root1**2) + np.sum(root2**2) - 2 * trace_of_root
return float(np.maximum(result, 0))
""",
        },
        "the closest rotation of the roots": {
            "symmetric_root": """
rank = torch.linalg.matrix_rank(cov, hermitian=True).item()
values, vectors = torch.linalg.eigh(cov)
return torch.einsum("dr,r->dr", vectors[:, len(cov) - rank :], values[len(cov) - rank :] ** 0.5)
""",
            "distance": """
u, s, vh = torch.linalg.svd(root1.T @ root2)
turned1, turned2, k = root1 @ u, root2 @ vh.T, len(s)
# |A - B|^2 = |A|^2 + |B|^2 - 2 Tr(A^T B), and the trace of the turned roots is the sum of the singular values
both = (turned1[:, :k] - turned2[:, :k]).square().sum()
alone = turned1[:, k:].square().sum() + turned2[:, k:].square().sum()
return ((mu1 - mu2).square().sum() + both + alone).item()
""",
        },
    },
}
