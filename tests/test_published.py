"""pytorch-ddpm's format: its network is ours, in and out, and nothing else is taken for it."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import Payload
from test_checkpoint import example
from test_unet import direct_evaluation

import data
from lab import checkpoint, published
from lab.datasets import published_split
from lab.files import BadInput
from unet import UNet, UNetConfig

PUBLISHED = [
    UNetConfig(ch=128, mult=(1, 2, 2, 2), attn=(1,), blocks=2),
    UNetConfig(ch=32, mult=(1, 2), attn=(0, 1), blocks=1),
]


def published_shapes(ch, mult, attn, blocks, T):
    """Names and shapes of all that pytorch-ddpm's U-Net saves, written down from its layers, not from ours."""
    shapes = {"time_embedding.timembedding.0.weight": (T, ch)}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def block(name, ch_in, ch_out, attention):
        layer(f"{name}.block1.0", ch_in)
        layer(f"{name}.block1.2", ch_out, ch_in, 3, 3)
        layer(f"{name}.temb_proj.1", ch_out, 4 * ch)
        layer(f"{name}.block2.0", ch_out)
        layer(f"{name}.block2.3", ch_out, ch_out, 3, 3)
        if ch_in != ch_out:
            layer(f"{name}.shortcut", ch_out, ch_in, 1, 1)
        if attention:
            layer(f"{name}.attn.group_norm", ch_out)
            for proj in ("proj_q", "proj_k", "proj_v", "proj"):
                layer(f"{name}.attn.{proj}", ch_out, ch_out, 1, 1)

    layer("time_embedding.timembedding.1", 4 * ch, ch)
    layer("time_embedding.timembedding.3", 4 * ch, 4 * ch)
    layer("head", ch, 3, 3, 3)
    widths, now, i = [ch], ch, 0
    for level, factor in enumerate(mult):
        for _ in range(blocks):
            block(f"downblocks.{i}", now, ch * factor, level in attn)
            now, i = ch * factor, i + 1
            widths.append(now)
        if level < len(mult) - 1:
            layer(f"downblocks.{i}.main", now, now, 3, 3)
            widths.append(now)
            i += 1
    block("middleblocks.0", now, now, True)
    block("middleblocks.1", now, now, False)
    i = 0
    for level in range(len(mult) - 1, -1, -1):
        for _ in range(blocks + 1):
            block(f"upblocks.{i}", now + widths.pop(), ch * mult[level], level in attn)
            now, i = ch * mult[level], i + 1
        if level:
            layer(f"upblocks.{i}.main", now, now, 3, 3)
            i += 1
    layer("tail.0", now)
    layer("tail.2", 3, now, 3, 3)
    return shapes


def published_weights(config, T=1000, seed=0):
    """A randomly initialised network in pytorch-ddpm's format: no weight is near zero, and outputs are of order 1."""
    torch.manual_seed(seed)
    weights = {}
    for name, shape in published_shapes(config.ch, config.mult, config.attn, config.blocks, T).items():
        fan_in = math.prod(shape[1:])
        weights[name] = torch.randn(shape) / math.sqrt(fan_in) if len(shape) > 1 else torch.randn(shape) / 3
    frequency = torch.exp(-torch.arange(0, config.ch, 2) / config.ch * math.log(10000))
    angle = torch.arange(T).float()[:, None] * frequency[None]
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).view(T, config.ch)
    return weights | {"time_embedding.timembedding.0.weight": table}


def published_file(path, config=PUBLISHED[1], prefix="", T=1000, **changes):
    """All that pytorch-ddpm's main.py saves; `changes` to the averaged weights, where None takes one away."""
    weights = published_weights(config, T)
    weights = {name: value for name, value in (weights | changes).items() if value is not None}
    step = torch.optim.lr_scheduler.LambdaLR(torch.optim.Adam([torch.zeros(1)]), lambda step: min(step, 5000) / 5000)
    content = {
        "net_model": {prefix + name: value for name, value in published_weights(config, T, seed=1).items()},
        "ema_model": {prefix + name: value for name, value in weights.items()},
        "sched": step.state_dict(),
        "optim": step.optimizer.state_dict(),
        "step": 800_000,
        "x_T": torch.randn(4, 3, 32, 32),
    }
    torch.save(content, path)
    return weights


@pytest.mark.parametrize("config, prefix, T", [(PUBLISHED[0], "module.", 1000), (PUBLISHED[1], "", 400)])
def test_a_published_checkpoint_is_the_published_network(tmp_path, config, prefix, T):
    weights = published_file(tmp_path / "ckpt.pt", config, prefix, T)
    unet, ours, its_T = published.load_published(tmp_path / "ckpt.pt")
    assert unet == config and its_T == T
    model = dataclasses.replace(example("all"), unet=unet, weights=ours)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, T - 1])
    exact = {name.replace(".timembedding.", "."): value.double() for name, value in weights.items()}
    expected = direct_evaluation(exact, config, x.double(), t, table=exact["time_embedding.0.weight"])
    assert expected.std() > 0.1, "outputs are of order 1"
    torch.testing.assert_close(model.eps_model()(x, t).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", PUBLISHED)
def test_what_is_published_is_what_is_loaded(tmp_path, config):
    ours = example("B")
    ours.unet, ours.weights = config, UNet(config).state_dict()
    split = published.publish(ours, tmp_path / "ours.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours-split.npz", "ours.pt"]
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    shapes = published_shapes(config.ch, config.mult, config.attn, config.blocks, T=1000)
    for key in ("net_model", "ema_model"):
        assert {name: tuple(value.shape) for name, value in content[key].items()} == shapes
    table = published_weights(config)["time_embedding.timembedding.0.weight"]
    torch.testing.assert_close(content["ema_model"]["time_embedding.timembedding.0.weight"], table, atol=1e-6, rtol=0)
    unet, weights, T = published.load_published(tmp_path / "ours.pt")
    assert unet == config and T == 1000
    assert weights.keys() == ours.weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in ours.weights.items())
    # whom it was trained on: half B, and as many others
    assert np.load(split)["mia_train_idxs"].tolist() == ours.split.b.tolist()
    assert np.load(split)["mia_eval_idxs"].tolist() == ours.split.nonmembers[:2].tolist()
    assert sorted(data.index_split(20, pools=published_split(split, 20)).members.tolist()) == sorted(
        ours.split.b.tolist()
    )


def test_what_is_loaded_is_what_is_published(tmp_path):
    weights = published_file(tmp_path / "theirs.pt", T=400)
    unet, ours, T = published.load_published(tmp_path / "theirs.pt")
    loaded = dataclasses.replace(example("all"), unet=unet, weights=ours)
    loaded.schedule["T"] = T
    published.publish(loaded, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["ema_model"]
    assert again.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, atol=1e-6 if name.endswith("0.weight") else 0, rtol=0)


def test_no_network_is_published_that_pytorch_ddpm_would_misread():
    published.require_publishable(PUBLISHED[0])
    with pytest.raises(BadInput, match=r"--export: this preset has GroupNorm\(8\)"):
        published.require_publishable(UNetConfig(groups=8))


@pytest.mark.parametrize(
    "changes",
    [
        {"head.weight": None},
        {"head.bias": None},
        {"head.weight": torch.zeros(0, 3, 3, 3)},
        {"head.weight": "three by three"},
        {"time_embedding.timembedding.0.weight": None},
        {"downblocks.0.block1.2.weight": None},
        {"downblocks.3.main.weight": torch.zeros(64, 64, 3, 3)},
        {"label_embedding.weight": torch.zeros(10, 128)},
        {"tail.2.weight": torch.zeros(6, 32, 3, 3)},
        {"time_embedding.timembedding.0.weight": torch.zeros(1000, 32)},
        {"time_embedding.timembedding.0.weight": torch.zeros(200_000, 32)},
        {"time_embedding.timembedding.0.weight": 1000},
        {"tail.2.bias": torch.full((3,), float("nan"))},
        {"tail.2.bias": torch.zeros(3).long()},
    ],
)
def test_another_network_is_refused(tmp_path, changes):
    published_file(tmp_path / "ckpt.pt", **changes)
    with pytest.raises(BadInput, match="ckpt.pt holds another network than pytorch-ddpm's.*") as refusal:
        published.load_published(tmp_path / "ckpt.pt")
    assert "\n" not in str(refusal.value)


def test_more_timesteps_than_anybody_has(tmp_path):
    published_file(tmp_path / "ckpt.pt", T=100_000)
    with pytest.raises(BadInput, match="ckpt.pt holds another network than pytorch-ddpm's .*100000 timesteps"):
        published.load_published(tmp_path / "ckpt.pt")


def test_what_is_no_published_checkpoint_is_refused_and_never_run(tmp_path):
    path, trace = tmp_path / "ckpt.pt", tmp_path / "it-ran"
    contents = [
        lambda: torch.save({"ema_model": Payload(trace), "net_model": {}}, path),
        lambda: torch.save({"ema_model": published_weights(PUBLISHED[1]), "step": Payload(trace)}, path),
        lambda: path.write_bytes(pickle.dumps(Payload(trace))),
        lambda: torch.save({"state_dict": {}}, path),
        lambda: torch.save({"ema_model": [1, 2]}, path),
        lambda: torch.save({"net_model": published_weights(PUBLISHED[1])}, path),
        lambda: path.write_text("epoch,loss\n1,0.5\n"),
    ]
    for write in contents:
        write()
        with pytest.raises(BadInput, match="ckpt.pt is not a checkpoint in pytorch-ddpm's format"):
            published.load_published(path)
    assert not trace.exists()
    checkpoint.save(tmp_path, example())
    with pytest.raises(BadInput, match="A.pt is a checkpoint of this project: name its directory with --run"):
        published.load_published(tmp_path / "A.pt")
    published_file(tmp_path / "B.pt")
    with pytest.raises(BadInput, match="B.pt is not a checkpoint of this project: .*evaluate.py --checkpoint"):
        checkpoint.load(tmp_path / "B.pt")
