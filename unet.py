"""The U-Net of DDPM (Ho et al. 2020, appendix B), in the form of pytorch-ddpm.

SecMI, PIA and most of the field attack this network. `UNetConfig()` is their CIFAR-10 model, with
35.7 million parameters. A smaller one differs only in its configuration.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a `UNet`. Its images are square, and 2 ** (len(mult) - 1) divides their side."""

    ch: int = 128  # channels at full resolution, a multiple of `groups`
    mult: tuple[int, ...] = (1, 2, 2, 2)  # channels at level i are ch * mult[i]; each level halves the resolution
    attn: tuple[int, ...] = (1,)  # levels whose blocks have attention, as the middle has; level 1 of 32x32 is 16x16
    blocks: int = 2  # residual blocks of each level on the way down; one more on the way up
    dropout: float = 0.1
    groups: int = 32  # groups of every GroupNorm


class UNet(nn.Module):
    """An *eps model*: it predicts the noise in an image.

    `forward(x_t, t)`: x_t is (N, 3, H, W), an image in [-1, 1] with noise added; t is (N,) int64.
    Returns eps, with the shape and dtype of x_t.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        ch, temb_ch = config.ch, 4 * config.ch
        levels = range(len(config.mult))

        self.time_embedding = nn.Sequential(
            SinusoidalEmbedding(ch), nn.Linear(ch, temb_ch), nn.SiLU(), nn.Linear(temb_ch, temb_ch)
        )
        self.head = nn.Conv2d(3, ch, 3, padding=1)

        block = partial(ResBlock, temb_ch=temb_ch, config=config)
        self.downblocks = nn.ModuleList()
        skips = [ch]  # channels of the activations that the way up concatenates
        for level in levels:
            for _ in range(config.blocks):
                ch_out = config.ch * config.mult[level]
                self.downblocks.append(block(ch, ch_out, attn=level in config.attn))
                ch = ch_out
                skips.append(ch)
            if level != levels[-1]:
                self.downblocks.append(DownSample(ch))
                skips.append(ch)

        self.middleblocks = nn.ModuleList([block(ch, ch, attn=True), block(ch, ch, attn=False)])

        self.upblocks = nn.ModuleList()
        for level in reversed(levels):
            for _ in range(config.blocks + 1):
                ch_out = config.ch * config.mult[level]
                self.upblocks.append(block(skips.pop() + ch, ch_out, attn=level in config.attn))
                ch = ch_out
            if level != 0:
                self.upblocks.append(UpSample(ch))

        self.tail = nn.Sequential(nn.GroupNorm(config.groups, ch), nn.SiLU(), nn.Conv2d(ch, 3, 3, padding=1))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Every residual branch starts near zero, so each block is near its shortcut, and gradients
        # reach all blocks. The last convolution starts near zero, too, so the output does.
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.xavier_uniform_(module.block2[-1].weight, gain=1e-5)
            if isinstance(module, Attention):
                nn.init.xavier_uniform_(module.proj.weight, gain=1e-5)
        nn.init.xavier_uniform_(self.tail[-1].weight, gain=1e-5)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        temb = self.time_embedding(t)
        h = self.head(x_t)
        skips = [h]
        for layer in self.downblocks:
            h = layer(h, temb)
            skips.append(h)
        for layer in self.middleblocks:
            h = layer(h, temb)
        for layer in self.upblocks:
            if isinstance(layer, ResBlock):
                h = torch.cat([h, skips.pop()], dim=1)
            h = layer(h, temb)
        return self.tail(h).to(x_t.dtype)  # under autocast h is bfloat16; the loss is not


class SinusoidalEmbedding(nn.Module):
    """Timesteps (N,) -> (N, ch): sines and cosines, interleaved, of geometrically spaced frequencies."""

    def __init__(self, ch: int):
        super().__init__()
        frequency = torch.exp(-torch.arange(0, ch, 2) / ch * math.log(10000))
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None].to(self.frequency.dtype) * self.frequency
        return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class ResBlock(nn.Module):
    """Two convolutions with a shortcut around them. The time is added between them; attention may follow."""

    def __init__(self, ch_in: int, ch_out: int, temb_ch: int, config: UNetConfig, attn: bool):
        super().__init__()
        self.block1 = nn.Sequential(
            nn.GroupNorm(config.groups, ch_in), nn.SiLU(), nn.Conv2d(ch_in, ch_out, 3, padding=1)
        )
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(temb_ch, ch_out))
        self.block2 = nn.Sequential(
            nn.GroupNorm(config.groups, ch_out),
            nn.SiLU(),
            Dropout(config.dropout),
            nn.Conv2d(ch_out, ch_out, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(ch_in, ch_out, 1) if ch_in != ch_out else nn.Identity()
        self.attn = Attention(ch_out, config.groups) if attn else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.block1(x) + self.temb_proj(temb)[:, :, None, None]
        return self.attn(self.shortcut(x) + self.block2(h))


class Attention(nn.Module):
    """Single-head self-attention over the pixels, as a residual branch."""

    def __init__(self, ch: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, ch)
        self.proj_q = nn.Conv2d(ch, ch, 1)
        self.proj_k = nn.Conv2d(ch, ch, 1)
        self.proj_v = nn.Conv2d(ch, ch, 1)
        self.proj = nn.Conv2d(ch, ch, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x)
        q, k, v = (proj(h).flatten(2) for proj in (self.proj_q, self.proj_k, self.proj_v))  # (N, C, H*W)
        # F.scaled_dot_product_attention takes three times as long on a CPU in bfloat16
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=2)  # (N, H*W queries, H*W keys)
        return x + self.proj((v @ weights.transpose(1, 2)).view(x.shape))


class Dropout(nn.Module):
    """In training, set each number to zero with probability p, and divide the others by 1 - p.

    Several processes may share a batch. Then `rows` is (number of images in the batch, this process's slice of it).
    Each process draws the masks of the whole batch, so that they do not depend on the number of processes.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p, self.rows = p, None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        n, mine = self.rows or (len(x), slice(None))
        shape = (n, *x.shape[1:])
        if x.is_cpu:  # 16 random bits for each number: nn.Dropout takes seven times as long, a sixth of a training step
            bits = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64).random_(-(2**63), None)
            keep = bits.view(torch.int16)[: math.prod(shape)].view(shape) >= round(self.p * 2**16) - 2**15
        else:
            keep = torch.rand(shape, device=x.device) >= self.p
        return x * keep[mine].to(x.dtype) * (1 / (1 - self.p))


class DownSample(nn.Module):
    """Halve the resolution with a strided convolution."""

    def __init__(self, ch: int):
        super().__init__()
        self.main = nn.Conv2d(ch, ch, 3, stride=2, padding=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.main(x)


class UpSample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, ch: int):
        super().__init__()
        self.main = nn.Conv2d(ch, ch, 3, padding=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.main(F.interpolate(x, scale_factor=2, mode="nearest"))
