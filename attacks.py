"""Membership scores: an attacker holds images, and wants to know which of them a model was trained on.

A score is a tensor (N,), one number for each image. *Higher means more likely a member.* The attacker
queries an eps model `(x_t (N, 3, H, W), t (N,) int64) -> eps`. x0 is float32 (N, 3, H, W) in [-1, 1],
and t is an int, the timestep of the attack. Scores are computed in x0's precision: some compare two
nearly equal images, and their difference would disappear in bfloat16 or TF32.

Attackers differ in what they must hold (HOLDS): *images* alone, from a service that generates them
(black box); the model's noise *predictions* (grey box); or its *weights* (white box). The functions at
the end are for attackers who also hold a reference model, or who know the defence.
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
    "gsa": "weights",
}


def _full_precision(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run `score` without autograd, autocast and cuDNN's TF32. Raises ValueError for a `t` outside the schedule."""

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
    """Standard normal, one (3, H, W), or n of them, for each image in turn: the same for any batch size."""
    shape = (len(x0), *n, *x0.shape[1:])
    return torch.randn(shape, generator=generator, device=generator.device).to(x0)


# --- grey box: noise predictions ---------------------------------------------------------------


@_full_precision
def loss(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, generator: Generator) -> Tensor:
    """Minus the training loss at t, for one draw of the noise (Matsumoto et al. 2023, arXiv 2302.03262).

    A network predicts the noise on its own training images better than on others. The noise comes
    from `generator`, on its device. One query for each image.
    """
    eps = _noise(x0, generator)
    error = _eps(eps_model, schedule.add_noise(x0, t, eps), t) - eps
    return -error.square().flatten(1).mean(1)


@_full_precision
def sima(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, p: float = 4) -> Tensor:
    """SimA: minus the L_p norm of the noise that the model predicts in the clean image (arXiv 2509.25003).

    The predicted noise points away from likely images. It is small on a training image, because the
    network finds it likely as it is. One query for each image.
    """
    return -torch.linalg.vector_norm(_eps(eps_model, x0, t), ord=p, dim=(1, 2, 3))


@_full_precision
def pia(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, p: float = 4) -> Tensor:
    """PIA: proximal initialisation (Kong et al. 2024, arXiv 2305.18355), minus the p-th power of an L_p norm.

    The model's own prediction at timestep 0, eps0, is used as the noise. On a training image the model
    predicts nearly the same at t. The norm is that of the difference. Two queries for each image.
    """
    return _pia(eps_model, schedule, x0, t, _eps(eps_model, x0, 0), p)


@_full_precision
def pian(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, p: float = 4) -> Tensor:
    """PIA with eps0 normalised (same paper): each image's eps0 gets the mean absolute value of a standard normal."""
    eps0 = _eps(eps_model, x0, 0)
    eps0 = eps0 / eps0.abs().mean((1, 2, 3), keepdim=True) * math.sqrt(2 / math.pi)
    return _pia(eps_model, schedule, x0, t, eps0, p)


def _pia(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, eps0: Tensor, p: float) -> Tensor:
    error = _eps(eps_model, schedule.add_noise(x0, t, eps0), t) - eps0
    return -error.abs().pow(p).flatten(1).sum(1)


def secmi(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, stride: int = 10) -> Tensor:
    """SecMI-stat: minus the t-error (Duan et al. 2023, arXiv 2302.01316, eq. 9).

    The t-error is the squared L2 length of `round_trip`. t / stride + 1 queries for each image.
    """
    return -round_trip(eps_model, schedule, x0, t, stride=stride).square().flatten(1).sum(1)


@_full_precision
def round_trip(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, stride: int = 10) -> Tensor:
    """SecMI's error images (N, 3, H, W): the change by one DDIM step up to t and back.

    Deterministic DDIM inversion takes x0 up to t - stride. From there one step goes up to t, and one
    back. Raises ValueError unless t is a positive multiple of `stride`.
    """
    if t == 0 or t % stride:
        raise ValueError(f"t = {t}: SecMI goes up from 0 in steps of {stride}, so t must be a multiple of {stride}")
    x = x0
    for s in range(0, t - stride, stride):
        x = schedule.ddim_step(x, _eps(eps_model, x, s), s, s + stride)
    up = schedule.ddim_step(x, _eps(eps_model, x, t - stride), t - stride, t)
    back = schedule.ddim_step(up, _eps(eps_model, up, t), t, t - stride)
    return back - x


def secmi_nn(errors: Tensor, is_member: Tensor, others: Tensor, *, steps: int = 300, seed: int = 0) -> Tensor:
    """SecMI-NN (same paper): a small network learns to recognise members by their error images.

    It is trained on `errors` (N, C, H, W) with `is_member` (N,) bool. It returns scores (M,) of the
    `others` (M, C, H, W); a positive score means member. The C channels are `round_trip` images at one
    or more timesteps, of one or more models.
    """
    log = errors.abs().clamp(min=1e-8).log()  # the ratio of two errors carries the signal
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


# --- black box: a service that makes variations of images --------------------------------------


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

    The service adds the noise of t to the image and denoises it with its own sampler, in steps of
    `stride`. A memorised image comes back. The attacker sees only images. n (t / stride + 1) queries.
    """
    eps = _noise(x0, generator, n)
    variations = [
        denoise(eps_model, schedule, schedule.add_noise(x0, t, eps[:, i]), t, stride=stride) for i in range(n)
    ]
    return -(torch.stack(variations).mean(0) - x0).square().flatten(1).sum(1)


# --- white box: the weights --------------------------------------------------------------------


@_full_precision
def gradient_norms(
    model: nn.Module, schedule: NoiseSchedule, x0: Tensor, t: int, *, generator: Generator, chunk: int = 16
) -> Tensor:
    """GSA's features (N, P): the logarithms of the L2 norms of each image's gradients of the training loss.

    There is one norm for each of the model's P weight tensors. Training makes these gradients small on the training
    images, and more so in some layers. One draw of the noise, from `generator`. The gradients of `chunk` images are in
    memory at a time: chunk x parameters x 4 bytes (28 MB for the tiny preset, 2.3 GB for the cifar10 preset), besides
    the network's activations.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss_of(weights: dict[str, Tensor], x_t: Tensor, eps: Tensor) -> Tensor:
        return training_loss(lambda x, t: functional_call(model, weights, (x, t)), x_t[None], ts, eps[None])

    def log_norms(x_t: Tensor, eps: Tensor) -> Tensor:
        squares = torch.stack([g.square().sum() for g in grad(loss_of)(weights, x_t, eps).values()])
        return squares.clamp(min=1e-16).log() / 2  # below it is rounding: the bias of the keys has no gradient

    ts = torch.full((1,), t, device=x0.device)
    eps = _noise(x0, generator)
    return vmap(log_norms, chunk_size=chunk)(schedule.add_noise(x0, t, eps), eps)


def gsa(norms: Tensor, is_member: Tensor, others: Tensor) -> Tensor:
    """GSA (Pang et al. 2023, arXiv 2308.06405): a logistic regression learns to recognise members by their gradients.

    It is trained on `norms` (N, P) with `is_member` (N,) bool, and returns scores (M,) of the `others` (M, P); a
    positive score means member. The P columns are `gradient_norms` at one or more timesteps, of one or more models.
    Each column is standardised, and the penalty is |w|^2 / 2.
    """
    centre, spread = norms.mean(0), norms.std(0).clamp(min=1e-6)
    x, others = (((each - centre) / spread).cpu().double() for each in (norms, others))
    w = torch.zeros(x.shape[1] + 1, dtype=x.dtype, requires_grad=True)  # the last one is the bias
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def penalised_loss() -> Tensor:
        optimizer.zero_grad()
        wrong = F.binary_cross_entropy_with_logits(x @ w[:-1] + w[-1], is_member.to(x), reduction="sum")
        loss = wrong + w[:-1].square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(penalised_loss)
    return (others @ w[:-1] + w[-1]).detach().float()


# --- attackers who hold, or know, something more -----------------------------------------------


def calibrated(scores: Tensor, reference: Tensor) -> Tensor:
    """Scores relative to a reference model's: log(-reference) - log(-scores) (Watson et al. 2022).

    `reference` (N,) are the scores of the same images under a model that was trained on other images. An
    image that is easy for any model gets a low score. Both scores are minus some error.
    """
    tiny = torch.finfo(scores.dtype).tiny
    return (-reference).clamp(min=tiny).log() - (-scores).clamp(min=tiny).log()


def isolate_half(pipeline: EpsModel, half: str, stride: int = 10) -> EpsModel:
    """An eps model that is DualMD's A alone, or B alone: it queries the pipeline only where `half` answers.

    The rule by which A and B take turns is public. So the attacker tells the pipeline a near timestep of
    `half`: t rounded down to a multiple of 2 * stride, where A answers, and stride more for B. The noise in
    x_t stays that of t; the mismatch is small.
    """

    def query(x_t: Tensor, t: Tensor) -> Tensor:
        return pipeline(x_t, t - t % (2 * stride) + (stride if half == "B" else 0))

    return query


def combine_scores(scores: Sequence[Tensor], rule: str) -> Tensor:
    """Combine scores (N,) under A and under B into one score (N,): by `rule`, their "max" or their "sum".

    Only one of the two models was trained on a member, and its score carries the signal. Each score is
    first centred by its median and divided by its interquartile range, because a few outliers would
    dominate a standard deviation.
    """
    scores = torch.stack(list(scores))
    low, centre, high = scores.quantile(torch.tensor([0.25, 0.5, 0.75]).to(scores), dim=-1, keepdim=True)
    scaled = (scores - centre) / (high - low).where(high > low, 1)
    return scaled.amax(0) if rule == "max" else scaled.sum(0)


# attacks that learn from images known to the attacker, and the function that turns an image into what they learn from
FEATURES = {"secmi_nn": round_trip, "gsa": gradient_norms}
