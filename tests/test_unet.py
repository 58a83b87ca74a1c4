import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unet import Dropout, UNet, UNetConfig

TINY = UNetConfig(ch=32, mult=(1, 2, 2), attn=(1,), blocks=1, dropout=0.0, groups=8)


def randomised(config: UNetConfig) -> UNet:
    """A float64 network in eval mode whose every weight matters: nothing is left near zero."""
    torch.manual_seed(0)
    model = UNet(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_default_is_ddpm_s_cifar10_network():
    assert count(UNet(UNetConfig())) == 35_746_307  # as published: 35.7 M
    its = UNetConfig(ch=128, mult=(1, 2, 2, 2), attn=(1,), blocks=2, dropout=0.1, groups=32)  # main.py of pytorch-ddpm
    assert UNetConfig() == its
    assert not [name for name in UNet(TINY).state_dict() if "frequency" in name], "it is no weight, nor in their files"


def test_tiny():
    model = UNet(TINY)
    assert count(model) == 1_113_955
    assert model(torch.randn(2, 3, 16, 16), torch.tensor([0, 999])).shape == (2, 3, 16, 16)


def direct_evaluation(weights: dict, config: UNetConfig, x, t, table=None):
    """The same network written out with functions and the weights' names, from the formulas of DDPM's appendix B.

    `table` (T, ch) is of timesteps; by default it is computed, more exactly than the published code does.
    """

    def conv(name, h, **kwargs):
        return F.conv2d(h, weights[name + ".weight"], weights[name + ".bias"], **kwargs)

    def norm(name, h):
        groups = h.view(h.shape[0], config.groups, -1)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        h = ((groups - mean) / (var + 1e-5).sqrt()).view(h.shape)
        return h * weights[name + ".weight"][:, None, None] + weights[name + ".bias"][:, None, None]

    def linear(name, h):
        return h @ weights[name + ".weight"].T + weights[name + ".bias"]

    def silu(h):
        return h / (1 + torch.exp(-h))

    def attention(name, h):
        g = norm(name + ".group_norm", h)
        q, k, v = (conv(f"{name}.proj_{letter}", g).flatten(2) for letter in "qkv")
        w = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(h.shape[1]), dim=2)
        return h + conv(name + ".proj", torch.einsum("nqk,nck->ncq", w, v).view(h.shape))

    def residual(name, h, attn):
        out = conv(name + ".block1.2", silu(norm(name + ".block1.0", h)), padding=1)
        out = out + linear(name + ".temb_proj.1", silu(temb))[:, :, None, None]
        out = conv(name + ".block2.3", silu(norm(name + ".block2.0", out)), padding=1)
        out = out + (conv(name + ".shortcut", h) if name + ".shortcut.weight" in weights else h)
        return attention(name + ".attn", out) if attn else out

    temb = torch.empty(len(t), config.ch, dtype=x.dtype)
    for i in range(config.ch // 2):
        frequency = math.exp(-2 * i / config.ch * math.log(10000))
        temb[:, 2 * i], temb[:, 2 * i + 1] = (t * frequency).sin(), (t * frequency).cos()
    temb = temb if table is None else table[t]
    temb = linear("time_embedding.3", silu(linear("time_embedding.1", temb)))

    h = conv("head", x, padding=1)
    skips, layer, last = [h], 0, len(config.mult) - 1
    for level in range(last + 1):
        for _ in range(config.blocks):
            h = residual(f"downblocks.{layer}", h, level in config.attn)
            skips.append(h)
            layer += 1
        if level < last:
            h = conv(f"downblocks.{layer}.main", h, stride=2, padding=1)
            skips.append(h)
            layer += 1
    h = residual("middleblocks.1", residual("middleblocks.0", h, True), False)
    layer = 0
    for level in range(last, -1, -1):
        for _ in range(config.blocks + 1):
            h = residual(f"upblocks.{layer}", torch.cat([h, skips.pop()], 1), level in config.attn)
            layer += 1
        if level > 0:
            h = conv(f"upblocks.{layer}.main", h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
            layer += 1
    return conv("tail.2", silu(norm("tail.0", h)), padding=1)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        UNetConfig(ch=64, mult=(1, 2, 2, 2), attn=(1,), blocks=2, dropout=0.1),
        UNetConfig(ch=32, mult=(1, 2), attn=(0, 1), blocks=1, dropout=0.0),
    ],
)
def test_forward_is_the_published_network(config):
    model = randomised(config)
    x, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([3, 870])
    expected = direct_evaluation(model.state_dict(), config, x, t)
    # the table of frequencies is float32, as in the published code
    torch.testing.assert_close(model(x, t), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_every_image_is_answered_by_itself():
    model = randomised(TINY)
    x, t = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 500, 998])
    together = model(x, t)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_starts_near_zero():
    torch.manual_seed(0)
    model = UNet(TINY)
    assert model(torch.randn(2, 3, 16, 16), torch.tensor([0, 500])).abs().max() < 1e-3
    x, temb = torch.randn(2, 64, 4, 4), torch.randn(2, 128)
    small = [model.tail[-1].weight, *(block.block2[-1].weight for block in model.middleblocks)]
    for weight in [*small, model.middleblocks[0].attn.proj.weight]:
        fan_out, fan_in, *kernel = weight.shape
        largest = 1e-5 * math.sqrt(
            6 / ((fan_in + fan_out) * math.prod(kernel))
        )  # Glorot and Bengio's bound, times 1e-5
        assert 0.9 * largest < weight.abs().max() <= largest
    for block in model.middleblocks:  # one with attention, one without
        torch.testing.assert_close(block(x, temb), x, atol=1e-3, rtol=0)


def test_dropout_only_in_training():
    model = UNet(UNetConfig(ch=32, mult=(1,), attn=(), blocks=1, dropout=0.5))
    torch.nn.init.normal_(model.tail[-1].weight)
    for block in (*model.downblocks, *model.middleblocks):
        torch.nn.init.normal_(block.block2[-1].weight)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    assert not torch.equal(model(x, t), model(x, t))
    model.eval()
    assert torch.equal(model(x, t), model(x, t))


def test_dropout_zeroes_a_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(40, 25, 3, 67)  # 201,000 numbers
    seen = Dropout(0.3)(x)
    assert seen[seen != 0].unique().tolist() == pytest.approx([1 / 0.7])
    assert (seen == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    # each number on its own: not whole rows, columns or channels, nor in the same places twice
    for dims in ((0, 1, 2), (1, 2, 3), (0, 2, 3), (0, 1, 3)):
        assert ((seen == 0).float().mean(dims) - 0.3).abs().max() < 0.05
    both = (seen == 0) & (Dropout(0.3)(x) == 0)
    assert both.float().mean().item() == pytest.approx(0.09, abs=0.005)


def test_dropout_s_masks_are_16_bits_of_the_generator_a_number():
    x = torch.rand(3, 5, 2, 3)  # 90 numbers: not a whole number of 64 bits
    torch.manual_seed(7)
    bits = torch.empty(23, dtype=torch.int64).random_(-(2**63), None).numpy().view(np.int16)[:90]
    uniform = (bits.astype(np.float64) + 2**15) / 2**16  # 0 to 1
    p = np.sort(uniform)[20].item()  # one is as large as p, and stays
    torch.manual_seed(7)
    torch.testing.assert_close(Dropout(p)(x), x * torch.from_numpy(uniform >= p).view(x.shape) / (1 - p))
    state = torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(x), x) and torch.equal(torch.get_rng_state(), state), "without it nothing is drawn"


def test_shares_of_a_batch_have_the_masks_of_the_whole():
    x, found = torch.randn(7, 5, 3, 3), []
    dropout = Dropout(0.5)
    for rows in (slice(7), slice(0, 2), slice(2, 7)):
        torch.manual_seed(1)
        dropout.rows = 7, rows
        found.append(dropout(x[rows]))
    whole, *parts = found
    assert torch.equal(torch.cat(parts), whole) and (whole == 0).any() and (whole != 0).any()


def test_answers_in_the_precision_that_it_was_asked_in():
    with torch.autocast("cpu", torch.bfloat16):
        assert UNet(TINY)(torch.randn(1, 3, 16, 16), torch.tensor([5])).dtype == torch.float32
