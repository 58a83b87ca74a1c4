"""Membership scores: what an attacker computes, who holds images and wants to know which were trained on.

Every score is a tensor (N,), one number an image: *higher means more likely a member*. The attacker
asks an eps model `(x_t (N, 3, H, W), t (N,) int64) -> eps`; x0 is float32 (N, 3, H, W) in [-1, 1] and
t an int, the timestep at which the attack looks. Scores are computed in x0's precision: some compare
two nearly equal images, whose difference bfloat16 or TF32 would drown.

Attackers differ in what they must hold (HOLDS): *images* alone and a service that generates them (black
box), the model's noise *predictions* (grey box), or its *weights* (white box). At the end of the file are
those who hold something more: a reference model, or knowledge of the defence.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vmap

from dualmd import EpsModel, NoiseSchedule, denoise, training_loss

HOLDS = {  # what each attack's attacker must hold
    "rediffuse": "images",
    **dict.fromkeys(["loss", "sima", "pia", "pian", "secmi", "secmi_nn"], "predictions"),
    "gradient": "weights",
}


def _full_precision(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """No gradients, no autocast and no TF32 convolutions inside `score`, and a `t` that the schedule has."""

    @functools.wraps(score)
    @torch.no_grad()
    def wrapper(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, **kwargs) -> Tensor:
        if not 0 <= t < schedule.T:
            raise ValueError(f"t = {t} is not a timestep of this schedule: 0 to {schedule.T - 1}")
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.autocast(x0.device.type, enabled=False), exact:
            return score(eps_model, schedule, x0, t, **kwargs)

    return wrapper


def _eps(eps_model: EpsModel, x: Tensor, t: int) -> Tensor:
    return eps_model(x, torch.full((len(x),), t, device=x.device))


def _noise(x0: Tensor, generator: Generator, *n: int) -> Tensor:
    """Standard normal, one (3, H, W), or n of them, for each image in turn: however the images are batched."""
    shape = (len(x0), *n, *x0.shape[1:])
    return torch.randn(shape, generator=generator, device=generator.device).to(x0)


# --- grey box: noise predictions ---------------------------------------------------------------


@_full_precision
def loss(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, generator: Generator) -> Tensor:
    """Minus the training loss at t, for one draw of the noise (Matsumoto et al. 2023, arXiv 2302.03262).

    A trained network predicts the noise on its own training images better. The noise comes from
    `generator`, on its device.
    """
    eps = _noise(x0, generator)
    error = _eps(eps_model, schedule.add_noise(x0, t, eps), t) - eps
    return -error.square().flatten(1).mean(1)


@_full_precision
def sima(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, p: float = 4) -> Tensor:
    """SimA: minus the L_p norm of the noise that the model sees in the image itself (arXiv 2509.25003).

    eps is the direction away from what the network holds for likely, and a training image is where it
    need not move. One query an image.
    """
    return -torch.linalg.vector_norm(_eps(eps_model, x0, t), ord=p, dim=(1, 2, 3))


@_full_precision
def pia(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, p: float = 4) -> Tensor:
    """PIA: proximal initialisation (Kong et al. 2024, arXiv 2305.18355), minus the p-th power of its L_p norm.

    The model's own answer at timestep 0, eps0, serves as the noise: on a training image the model
    finds it again at t. Two queries an image.
    """
    return _pia(eps_model, schedule, x0, t, _eps(eps_model, x0, 0), p)


@_full_precision
def pian(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, p: float = 4) -> Tensor:
    """PIA with eps0 normalised (same paper): scaled, each image's, to the mean absolute value of a standard normal."""
    eps0 = _eps(eps_model, x0, 0)
    eps0 = eps0 / eps0.abs().mean((1, 2, 3), keepdim=True) * math.sqrt(2 / math.pi)
    return _pia(eps_model, schedule, x0, t, eps0, p)


def _pia(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, eps0: Tensor, p: float) -> Tensor:
    error = _eps(eps_model, schedule.add_noise(x0, t, eps0), t) - eps0
    return -error.abs().pow(p).flatten(1).sum(1)


def secmi(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, stride: int = 10) -> Tensor:
    """SecMI-stat: minus the t-error (Duan et al. 2023, arXiv 2302.01316, eq. 9).

    The squared L2 length of `round_trip`. Costs t / stride + 1 queries an image.
    """
    return -round_trip(eps_model, schedule, x0, t, stride=stride).square().flatten(1).sum(1)


@_full_precision
def round_trip(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, stride: int = 10) -> Tensor:
    """SecMI's error images (N, 3, H, W): what one DDIM step up to t and back changes.

    x0 is walked up to t - stride by deterministic DDIM inversion; from there one step on to t and
    back. Raises ValueError unless t is a multiple of `stride`, as the walk has to end at t.
    """
    if t == 0 or t % stride:
        raise ValueError(f"t = {t}: SecMI walks up from 0 in steps of {stride}, so t must be a multiple of that")
    x = x0
    for s in range(0, t - stride, stride):
        x = schedule.ddim_step(x, _eps(eps_model, x, s), s, s + stride)
    up = schedule.ddim_step(x, _eps(eps_model, x, t - stride), t - stride, t)
    back = schedule.ddim_step(up, _eps(eps_model, up, t), t, t - stride)
    return back - x


def secmi_nn(errors: Tensor, is_member: Tensor, others: Tensor, *, steps: int = 300, seed: int = 0) -> Tensor:
    """SecMI-NN (same paper): a small network learns to tell members by their error images.

    It is trained on `errors` (N, C, H, W) with `is_member` (N,) bool, and gives scores (M,) of the
    `others` (M, C, H, W), above 0 for whom it takes for a member. The C channels are the `round_trip`
    at one or more timesteps, under one or more models.
    """
    log = errors.abs().clamp(min=1e-8).log()  # what tells is how many times larger an error is
    centre, spread = log.mean((0, 2, 3), keepdim=True), log.std((0, 2, 3), keepdim=True)
    x, others = (log - centre) / spread, (others.abs().clamp(min=1e-8).log() - centre) / spread
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(x.shape[1], 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1),
        ).to(x.device)  # fmt: skip
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
        for _ in range(steps):
            rows = torch.randint(len(x), (64,)).to(x.device)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(x[rows])[:, 0], is_member[rows].to(x)).backward()
            optimizer.step()
    with torch.no_grad():
        return network(others)[:, 0]


# --- black box: a service that varies images ---------------------------------------------------


@_full_precision
def rediffuse(
    eps_model: EpsModel,
    schedule: NoiseSchedule,
    x0: Tensor,
    t: int,
    *,
    generator: Generator,
    n: int = 6,
    stride: int = 50,
) -> Tensor:
    """ReDiffuse: minus the squared L2 distance of an image to the mean of n variations (Li et al., arXiv 2405.20771).

    The service noises the image to t and denoises it by its own sampler, in steps of `stride`; what it
    has memorised comes back. The attacker sees images alone. Costs the service n (t / stride + 1) queries.
    """
    eps = _noise(x0, generator, n)
    variations = [
        denoise(eps_model, schedule, schedule.add_noise(x0, t, eps[:, i]), t, stride=stride) for i in range(n)
    ]
    return -(torch.stack(variations).mean(0) - x0).square().flatten(1).sum(1)


# --- white box: the weights --------------------------------------------------------------------


@_full_precision
def gradient(
    model: nn.Module, schedule: NoiseSchedule, x0: Tensor, t: int, *, generator: Generator, chunk: int = 16
) -> Tensor:
    """Minus the logarithm of the L2 norm of each image's gradient of the training loss, GSA's signal (Pang et al.).

    Training has made it small on the images that it saw. One draw of the noise, from `generator`. The
    gradients of `chunk` images are held at a time, that is chunk x parameters x 4 bytes (50 MB for the
    tiny preset, 2.3 GB for the cifar10 one) besides the network's activations.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss_of(weights: dict[str, Tensor], x_t: Tensor, eps: Tensor) -> Tensor:
        return training_loss(lambda x, t: functional_call(model, weights, (x, t)), x_t[None], ts, eps[None])

    def log_norm(x_t: Tensor, eps: Tensor) -> Tensor:
        gradients = grad(loss_of)(weights, x_t, eps)
        return sum(g.square().sum() for g in gradients.values()).log() / 2

    ts = torch.full((1,), t, device=x0.device)
    eps = _noise(x0, generator)
    return -vmap(log_norm, chunk_size=chunk)(schedule.add_noise(x0, t, eps), eps)


# --- attackers who hold, or know, something more -----------------------------------------------


def calibrated(scores: Tensor, reference: Tensor, *, logarithms: bool = False) -> Tensor:
    """Scores less what makes an image easy for any model: log(-reference) - log(-scores) (Watson et al. 2022).

    `reference` are the same images' scores under a model that was trained on others of the same kind.
    Both are minus some error; of scores that are `logarithms` already, gradient's, it is the difference.
    """
    if logarithms:
        return scores - reference
    tiny = torch.finfo(scores.dtype).tiny
    return (-reference).clamp(min=tiny).log() - (-scores).clamp(min=tiny).log()


def isolate_half(pipeline: EpsModel, half: str, stride: int = 10) -> EpsModel:
    """DualMD's model A, or B, alone: a pipeline that is asked only at timesteps which `half` answers.

    The rule by which they take turns is no secret, and a timestep that is `half`'s is never far from t:
    the attacker rounds down to a multiple of 2 * stride, where A answers, and adds stride for B.
    """

    def ask(x_t: Tensor, t: Tensor) -> Tensor:
        return pipeline(x_t, t - t % (2 * stride) + (stride if half == "B" else 0))

    return ask


def combine_scores(scores: Sequence[Tensor], rule: str) -> Tensor:
    """One score (N,) of an image's under A and under B, each in units of its own spread: their "max", or "sum".

    Every member was trained on by one of the two, which betrays it; the other one says nothing. Spread
    and centre are the quartiles' and the median: a few images far off would decide over a standard deviation.
    """
    scores = torch.stack(list(scores))
    low, centre, high = scores.quantile(torch.tensor([0.25, 0.5, 0.75]).to(scores), dim=-1, keepdim=True)
    scaled = (scores - centre) / (high - low)
    return scaled.amax(0) if rule == "max" else scaled.sum(0)
