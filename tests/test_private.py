"""DP-SGD: each image's gradient is clipped, the noise is as large as the budget says, and a coin draws each image."""

import math
import sys

import pytest
import torch
from conftest import same, settings
from test_evaluate import CONFIG

import data
from dualmd import training_loss
from lab import checkpoint, private
from lab.files import BadInput
from unet import UNet

MEMBERS = 8


@pytest.fixture
def like(tmp_path, monkeypatch):
    """An untrained model as the one to be like, and 40 toy images."""
    images = data.toy(8, 0, n=40)
    monkeypatch.setattr(data, "load", lambda name, data_dir, size, seed: images)
    torch.manual_seed(0)
    dataset = {"name": "toy", "data_dir": None, "size": 8, "seed": 0, "sha256": data.fingerprint(images)}
    its = settings(steps=6, members=MEMBERS, batch=4)
    split = data.index_split(len(images), MEMBERS)
    checkpoint.save(tmp_path, checkpoint.Checkpoint("all", dataset, split, its, CONFIG, UNet(CONFIG).state_dict()))
    return tmp_path / "all.pt"


def call(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["private", "--dataset", "toy", "--device", "cpu", *map(str, flags)])
    private.main()


def test_each_image_is_clipped_by_itself():
    torch.manual_seed(0)
    model = UNet(CONFIG).double()
    torch.nn.init.normal_(model.tail[-1].weight, std=0.3)
    x_t, t, eps = (
        torch.randn(5, 3, 8, 8).double(),
        torch.tensor([0, 100, 400, 900, 999]),
        torch.randn(5, 3, 8, 8).double(),
    )
    with torch.no_grad():
        eps[0] = model(x_t[:1], t[:1])[0] + 0.01 * eps[0]  # a gradient shorter than the clip stays as it is
    expected, lengths = [torch.zeros_like(weight) for weight in model.parameters()], []
    for i in range(5):
        model.zero_grad()
        training_loss(model, x_t[i : i + 1], t[i : i + 1], eps[i : i + 1]).backward()
        lengths.append(math.sqrt(sum(weight.grad.square().sum().item() for weight in model.parameters())))
        for total, weight in zip(expected, model.parameters(), strict=True):
            total += weight.grad * min(1, private.CLIP / lengths[-1])
    assert min(lengths) < private.CLIP < max(lengths)
    found = private.clipped_sum(model, x_t, t, eps)
    for total, (name, _) in zip(expected, model.named_parameters(), strict=True):
        torch.testing.assert_close(found[name], total)
    nothing = private.clipped_sum(model, x_t[:0], t[:0], eps[:0])
    assert all((each == 0).all() for each in nothing.values()), "by chance no image comes"


def test_the_noise_is_sigma_times_the_clip_over_the_batch(like, monkeypatch):
    asked, grads = [], []
    monkeypatch.setattr(private, "noise_multiplier", lambda *args: asked.append(args) or 3.0)
    zeros = lambda model, x_t, t, eps: {k: torch.zeros_like(w) for k, w in model.named_parameters()}  # noqa: E731
    monkeypatch.setattr(private, "clipped_sum", zeros)
    step = torch.optim.Adam.step

    def spy(optimizer, *args):
        grads.append(torch.cat([weight.grad.flatten() for weight in optimizer.param_groups[0]["params"]]))
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    call(monkeypatch, "--like", like, "--epsilon", 7, "--run", like.parent / "private")
    assert asked[-1] == (7, 4 / MEMBERS, 6, 1 / (10 * MEMBERS))
    assert len(grads) == 6 and not torch.equal(grads[0], grads[1])
    assert torch.cat(grads).std() == pytest.approx(3 * private.CLIP / 4, rel=0.02)


def test_images_come_by_a_coin_each_and_the_model_says_its_budget(like, monkeypatch):
    monkeypatch.setattr(private, "noise_multiplier", lambda *args: 1.0)
    batches, clipped_sum = [], private.clipped_sum
    monkeypatch.setattr(
        private, "clipped_sum", lambda model, x, *rest: batches.append(len(x)) or clipped_sum(model, x, *rest)
    )
    call(monkeypatch, "--like", like, "--run", like.parent / "one")
    call(monkeypatch, "--like", like, "--run", like.parent / "again")
    assert batches[:6] == batches[6:] and len({*batches}) > 1, "their number varies"
    one, again = (checkpoint.load(like.parent / name / "all.pt") for name in ("one", "again"))
    assert same(one.weights, again.weights) and one.settings["epsilon"] == 10
    assert one.trained_on.tolist() == checkpoint.load(like).trained_on.tolist()
    with pytest.raises(BadInput, match=r"was trained with epsilon = 10.0, not 20.0: --restart"):
        call(monkeypatch, "--like", like, "--run", like.parent / "one", "--epsilon", 20)


def test_what_is_refused_at_the_start(like, monkeypatch):
    for epsilon in (0, -1, 1e5, "nan"):
        with pytest.raises(BadInput, match="--epsilon .*: must be from 0.1 to 10,000"):
            call(monkeypatch, "--like", like, "--epsilon", epsilon)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(BadInput, match="DP-SGD needs an accountant: pip install -r lab/requirements.txt"):
        call(monkeypatch, "--like", like)


@pytest.mark.parametrize("epsilon", [1, 10, 100])
def test_the_noise_keeps_the_budget(epsilon):
    """Where each step sees all images, the Renyi divergence of order a is steps a / (2 sigma^2) (Mironov 2017)."""
    pytest.importorskip("dp_accounting", reason="pip install -r lab/requirements.txt")
    steps, delta = 50, 1e-3
    sigma = private.noise_multiplier(epsilon, 1.0, steps, delta)

    def spent(a):  # Canonne et al. 2020, proposition 12
        return steps * a / (2 * sigma**2) + math.log(1 - 1 / a) - math.log(delta * a) / (a - 1)

    assert min(map(spent, [*range(2, 65), 128, 256])) == pytest.approx(epsilon, rel=1e-3)
    assert private.noise_multiplier(epsilon, 0.1, steps, delta) < sigma, "who is seldom drawn needs less noise"
