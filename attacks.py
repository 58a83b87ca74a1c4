"""Membership scores: what an attacker computes, who holds images and wants to know which were trained on.

Every score is a tensor (N,), one number an image: *higher means more likely a member*. The attacker
asks an eps model `(x_t (N, 3, H, W), t (N,) int64) -> eps`; x0 is float32 (N, 3, H, W) in [-1, 1] and
t an int, the timestep at which the attack looks. Scores are computed in x0's precision: some compare
two nearly equal images, whose difference bfloat16 or TF32 would drown.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dualmd import EpsModel, NoiseSchedule


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


@_full_precision
def loss(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, generator: torch.Generator) -> Tensor:
    """Minus the training loss at t, for one draw of the noise (Matsumoto et al. 2023, arXiv 2302.03262).

    A trained network predicts the noise on its own training images better. The noise comes from
    `generator`, on its device.
    """
    eps = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0)
    error = _eps(eps_model, schedule.add_noise(x0, t, eps), t) - eps
    return -error.square().flatten(1).mean(1)


@_full_precision
def secmi(eps_model: EpsModel, schedule: NoiseSchedule, x0: Tensor, t: int, *, stride: int = 10) -> Tensor:
    """SecMI-stat: minus the t-error (Duan et al. 2023, arXiv 2302.01316, eq. 9).

    x0 is walked up to t - stride by deterministic DDIM inversion; from there one step on to t and
    back: minus the squared L2 distance of that round trip. Raises ValueError unless t is a multiple
    of `stride`, as the walk has to end at t. Costs t / stride + 1 queries an image.
    """
    if t == 0 or t % stride:
        raise ValueError(f"t = {t}: SecMI walks up from 0 in steps of {stride}, so t must be a multiple of that")
    x = x0
    for s in range(0, t - stride, stride):
        x = schedule.ddim_step(x, _eps(eps_model, x, s), s, s + stride)
    up = schedule.ddim_step(x, _eps(eps_model, x, t - stride), t - stride, t)
    back = schedule.ddim_step(up, _eps(eps_model, up, t), t, t - stride)
    return -(back - x).square().flatten(1).sum(1)


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
