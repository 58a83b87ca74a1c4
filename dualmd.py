"""The method: two diffusion models are trained on disjoint halves of the data, and neither is released by itself.

DualMD and DistillMD come from "Dual-Model Defense: Safeguarding Diffusion Models from Membership
Inference Attacks through Disjoint Data Splitting" (Tran et al., arXiv 2410.16657). They stand on DDPM
(Ho et al. 2020) and DDIM (Song et al. 2021). This file uses the symbols and equation numbers of both.

An *eps model* is any callable `(x_t (N, 3, H, W), t (N,) int64) -> eps (N, 3, H, W)`: a network, or
two networks that take turns. Images are float in [-1, 1]. Timesteps run from 0 (hardly any noise)
to T - 1 (nothing but noise). Timestep -1 is the clean image: a step can end there, but not start.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EpsModel = Callable[[Tensor, Tensor], Tensor]
Time = int | Tensor  # one timestep for all images, or int64 (N,) with one for each image


# --- diffusion ---------------------------------------------------------------------------------


class NoiseSchedule:
    """DDPM's linear schedule: `beta` and `alpha_bar`, float64 tensors (T,) on the CPU."""

    def __init__(self, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02):
        self.T = T
        self.beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
        self.alpha_bar = torch.cumprod(1 - self.beta, dim=0)  # DDPM section 2

    def add_noise(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps  (DDPM eq. 4)."""
        signal, noise = self._signal_and_noise(t, x0)
        return signal * x0 + noise * eps

    def predict_x0(self, x_t: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)  (DDIM eq. 9)."""
        signal, noise = self._signal_and_noise(t, x_t)
        return (x_t - noise * eps) / signal

    def predict_eps(self, x_t: Tensor, t: Time, x0: Tensor) -> Tensor:
        """eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t): `predict_x0` solved for eps."""
        signal, noise = self._signal_and_noise(t, x_t)
        return (x_t - signal * x0) / noise

    def ddim_step(
        self,
        x: Tensor,
        eps: Tensor,
        t: Time,
        t_next: Time,
        eta: float = 0.0,
        z: Tensor | None = None,
        clip: bool = False,
    ) -> Tensor:
        """One DDIM step from x at `t` to `t_next` (DDIM eq. 12), given eps, the noise predicted at x.

        With eta = 0 the step is deterministic. It can go towards the image (t_next < t, down to -1)
        or, as DDIM inversion, towards the noise. With eta > 0, fresh noise z is mixed in on the way
        down. eta = 1 at stride 1 is DDPM with the smaller of its two variances. With `clip`, the image
        that eps implies is clipped to [-1, 1]: near T an error in eps becomes 150 times as large in
        the image, and later steps would not correct it.
        """
        signal, noise = self._signal_and_noise(t, x)
        signal_next, noise_next = self._signal_and_noise(t_next, x)
        x0 = self.predict_x0(x, t, eps)
        if clip:
            x0 = x0.clamp(-1, 1)
        if eta == 0:
            return signal_next * x0 + noise_next * eps
        # sigma_t = eta sqrt((1 - alpha_bar_next) / (1 - alpha_bar_t)) sqrt(1 - alpha_bar_t / alpha_bar_next), eq. 16
        sigma = eta * noise_next / noise * (1 - (signal / signal_next) ** 2).sqrt()
        return signal_next * x0 + (noise_next**2 - sigma**2).clamp(min=0).sqrt() * eps + sigma * z

    def ddpm_step(self, x: Tensor, eps: Tensor, t: int, z: Tensor, clip: bool = False) -> Tensor:
        """One ancestral step from x at `t` to t - 1 (DDPM eq. 11, algorithm 2), with sigma_t^2 = beta_t.

        z is standard normal noise, shaped like x; the last step, t = 0, does not use it. With `clip`,
        eps is replaced by the one that implies the same image, clipped to [-1, 1].
        """
        if clip:
            eps = self.predict_eps(x, t, self.predict_x0(x, t, eps).clamp(-1, 1))
        _, noise = self._signal_and_noise(t, x)
        beta = self.beta[t].item()
        mean = (x - beta / noise * eps) / (1 - beta) ** 0.5
        return mean + beta**0.5 * z if t > 0 else mean

    def _signal_and_noise(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), on the device of x and shaped to multiply x."""
        tables = vars(self).setdefault("_tables", {})  # kept by dtype and device, so that a step moves no data
        if (x.dtype, x.device) not in tables:
            # index -1 finds the 1 at the end: alpha_bar of the clean image
            alpha_bar = torch.cat([self.alpha_bar, torch.ones(1, dtype=torch.float64)])
            roots = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            tables[x.dtype, x.device] = [root.to(x.dtype).to(x.device) for root in roots]
        signal, noise = tables[x.dtype, x.device]
        shape = (-1, 1, 1, 1) if isinstance(t, Tensor) and t.ndim else ()
        return signal[t].view(shape), noise[t].view(shape)


def training_loss(eps_model: EpsModel, x_t: Tensor, t: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, a scalar (DDPM eq. 14).

    `target` is the noise in x_t; for a student it is its teachers' prediction of that noise.
    """
    return F.mse_loss(eps_model(x_t, t), target)


# --- the defence -------------------------------------------------------------------------------


class DualMD:
    """Two models that take turns; together they are one eps model. A answers where t // stride is even, else B.

    `stride` is that of the pipeline's sampler. It visits ..., 2 * stride, stride, 0, so consecutive
    denoising steps alternate between A and B. `denoise`'s method "ddpm" has a stride of 1.
    """

    def __init__(self, model_a: EpsModel, model_b: EpsModel, stride: int = 10):
        self.model_a, self.model_b, self.stride = model_a, model_b, stride

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return route(self.model_a, self.model_b, (t // self.stride) % 2 == 0, x_t, t)


@torch.no_grad()
def distill_targets(
    teacher_a: EpsModel, teacher_b: EpsModel, x_t: Tensor, t: Tensor, in_a: Tensor, targets: str
) -> Tensor:
    """A student's targets, shaped like x_t: it learns to predict these instead of the true noise.

    `in_a` (N,) bool, best on the CPU, is True where teacher A was trained on the image, else B was.
    "cross" is DistillMD: the prediction of the teacher that was *not* trained on the image. It is B's for
    an image of half A, and A's for one of half B. Each teacher is evaluated only on the images for which
    it is needed. "average" is a variant, the mean of both teachers, one of which has memorised the image.
    Raises ValueError for any other `targets`.
    """
    if targets == "cross":
        return route(teacher_b, teacher_a, in_a, x_t, t)
    if targets == "average":
        return (teacher_a(x_t, t) + teacher_b(x_t, t)) / 2
    raise ValueError(f'targets must be "cross" or "average", not {targets!r}')


def route(model_where: EpsModel, model_elsewhere: EpsModel, where: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One of two models answers for each image: the first where `where` (N,) bool is True, else the second.

    With `where` on the CPU, the rows are known without waiting for a GPU.
    """
    eps = torch.empty_like(x_t)
    for model, rows in ((model_where, where), (model_elsewhere, ~where)):
        rows = rows.nonzero()[:, 0].to(x_t.device, non_blocking=True)
        if len(rows):
            eps[rows] = model(x_t[rows], t[rows])
    return eps


# --- sampling ----------------------------------------------------------------------------------


@torch.no_grad()
def denoise(
    eps_model: EpsModel,
    schedule: NoiseSchedule,
    x: Tensor,
    t: int | None = None,
    *,
    generator: torch.Generator | None = None,
    method: str = "ddim",
    stride: int = 10,
    eta: float = 0.0,
) -> Tensor:
    """Denoise x (N, 3, H, W), which has the noise of timestep t (default: the first), to images in [-1, 1].

    method "ddim" visits t, t - stride, ..., with DDIM's eta, and ends at the clean image. Its first timestep is
    the largest multiple of `stride`. "ddpm" is the ancestral sampler, which visits every timestep from T - 1. All
    noise comes from `generator`, on its device; DDIM with eta = 0 needs none. Raises ValueError for other methods.
    """
    if method not in ("ddim", "ddpm"):
        raise ValueError(f'method must be "ddim" or "ddpm", not {method!r}')
    stride = 1 if method == "ddpm" else stride
    t = (schedule.T - 1) // stride * stride if t is None else t

    def normal() -> Tensor:
        return torch.randn(x.shape, generator=generator, device=generator.device).to(x)

    for now in range(t, -1, -stride):
        eps = eps_model(x, torch.full((len(x),), now, device=x.device))
        if method == "ddpm":
            x = schedule.ddpm_step(x, eps, now, normal(), clip=True)
        else:
            x = schedule.ddim_step(x, eps, now, max(now - stride, -1), eta, normal() if eta else None, clip=True)
    return x
