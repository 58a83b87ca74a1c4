import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import Payload, settings
from test_unet import direct_evaluation

import data
from lab import checkpoint, cli
from lab.files import BadInput
from unet import UNet, UNetConfig

CONFIG = UNetConfig(ch=32, mult=(1,), attn=(), blocks=1, dropout=0.1)


def example(model="A", members=4, **dataset) -> checkpoint.Checkpoint:
    split = data.index_split(20, members)
    return checkpoint.Checkpoint(
        name=model,
        dataset={"name": "toy", "data_dir": None, "size": 8, "seed": 0, "sha256": "ab"} | dataset,
        split=split,
        trained_on=checkpoint.images_of(model, split),
        settings=settings(),
        unet=CONFIG,
        weights=UNet(CONFIG).state_dict(),
    )


def test_what_is_saved_is_what_is_loaded(tmp_path):
    saved = example()
    checkpoint.save(tmp_path, saved)
    loaded = checkpoint.load(tmp_path / "A.pt")
    assert list(tmp_path.iterdir()) == [tmp_path / "A.pt"]
    for key in ("name", "dataset", "settings", "unet", "schedule"):
        assert getattr(loaded, key) == getattr(saved, key)
    assert torch.equal(loaded.trained_on, saved.trained_on)
    for part in ("a", "b", "nonmembers"):
        assert torch.equal(getattr(loaded.split, part), getattr(saved.split, part))
    model = loaded.eps_model()
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    for key, value in saved.weights.items():
        assert torch.equal(model.state_dict()[key], value)
    assert loaded.noise_schedule().T == 1000


def test_foreign_files_are_refused_and_never_run(tmp_path):
    path, trace = tmp_path / "A.pt", tmp_path / "it-ran"
    contents = [
        lambda: torch.save({"net_model": {}, "ema_model": {}}, path),
        lambda: torch.save([1, 2], path),
        lambda: torch.save({"format": checkpoint.FORMAT, "weights": Payload(trace)}, path),
        lambda: path.write_bytes(pickle.dumps(Payload(trace))),
        lambda: path.write_bytes(b""),
        lambda: path.write_text("epoch,loss\n1,0.5\n"),
        lambda: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200)),
    ]
    for write in contents:
        write()
        with pytest.raises(BadInput, match="A.pt is not a checkpoint of this project"):
            checkpoint.load(path)
    assert not trace.exists()
    with pytest.raises(BadInput, match="B.pt does not exist"):
        checkpoint.load(tmp_path / "B.pt")


def test_damaged_checkpoints_are_named(tmp_path):
    for change in ({"weights": {}}, {"split": {}}, {"surprise": 1}):
        content = {"format": checkpoint.FORMAT} | checkpoint.dataclasses.asdict(example()) | change
        torch.save(content, tmp_path / "A.pt")
        with pytest.raises(BadInput, match="A.pt is a damaged checkpoint"):
            checkpoint.load(tmp_path / "A.pt")
    checkpoint.save(tmp_path, example())
    whole = (tmp_path / "A.pt").read_bytes()
    (tmp_path / "A.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="A.pt"):
        checkpoint.load(tmp_path / "A.pt")


HUGE = {"ch": 4096, "mult": (64,) * 8, "attn": (), "blocks": 16, "dropout": 0.1, "groups": 32}
NESTED = []
for _ in range(200):
    NESTED = [NESTED, NESTED]  # a few bytes in a pickle, and 2^200 brackets in a message


@pytest.mark.parametrize(
    "part, changes, says",
    [
        ("name", "C", "it is none of all, A, B"),
        ("name", "B", "B is not what was trained on those images"),
        ("name", NESTED, "it is none of all, A, B"),
        ("dataset", {"name": "imagenet"}, "dataset: name cannot be imagenet"),
        ("dataset", {"name": ["toy"]}, "dataset: name cannot be a list"),
        ("dataset", {"size": 10**6}, "dataset: size cannot be 1000000"),
        ("dataset", {"size": 0}, "dataset: size cannot be 0"),
        ("dataset", {"size": True}, "dataset: size cannot be True"),
        ("dataset", {"data_dir": 3}, "dataset: data_dir cannot be 3"),
        ("dataset", {"sha256": None}, "dataset: sha256 cannot be a NoneType"),
        ("dataset", {"seed": -1}, "dataset: seed cannot be -1"),
        ("dataset", {"surprise": 1}, "dataset has other entries than name, data_dir, size, seed, sha256"),
        ("dataset", NESTED, ""),
        ("settings", {"batch": 0}, "settings: batch cannot be 0"),
        ("settings", {"epochs": 10**12}, "settings: epochs cannot be 1000000000000"),
        ("settings", {"lr": float("nan")}, "settings: lr cannot be nan"),
        ("settings", {"lr": "1"}, "settings: lr cannot be 1"),
        ("settings", {"ema": 1.5}, "settings: ema cannot be 1.5"),
        ("settings", {"flip": 1}, "settings: flip cannot be 1"),
        ("settings", {"targets": "truth"}, "settings: targets cannot be truth"),
        ("settings", {"preset": NESTED}, "settings: preset cannot be a list"),
        ("settings", {"member_split": NESTED}, "settings: member_split cannot be a list"),
        ("settings", {"warmup": None}, "settings: warmup cannot be a NoneType"),
        ("schedule", {"T": 10**9}, "schedule: T cannot be 1000000000"),
        ("schedule", {"beta_T": 1.0}, "schedule: beta_T cannot be 1.0"),
        ("schedule", {"beta_1": 0.0}, "schedule: beta_1 cannot be 0.0"),
        ("unet", {"ch": 10**6}, "unet: ch cannot be 1000000"),
        ("unet", {"ch": 31}, "unet: ch cannot be 31"),
        ("unet", {"ch": 64}, "is only in|has another shape"),
        ("unet", {"mult": ()}, "unet: mult is out of range"),
        ("unet", {"mult": (1,) * 1000}, "unet: mult is out of range"),
        ("unet", {"mult": (10**6,)}, "unet: mult is out of range"),
        ("unet", {"mult": (1.0,)}, "unet: mult is out of range"),
        ("unet", {"mult": [1]}, "unet: mult cannot be a list"),
        ("unet", {"attn": (3,)}, "unet: attn is out of range"),
        ("unet", {"attn": NESTED}, "unet: attn cannot be a list"),
        ("unet", {"blocks": 10**9}, "unet: blocks cannot be 1000000000"),
        ("unet", {"dropout": 1.0}, "unet: dropout cannot be 1.0"),
        ("unet", {"groups": 0}, "unet: groups cannot be 0"),
        ("unet", HUGE, "unet: |is only in|has another shape"),
        ("weights", {"head.weight": None}, ""),
        ("weights", {"head.weight": torch.zeros(32, 3, 3, 3).long()}, "head.weight has another shape"),
        ("weights", {"head.bias": torch.full((32,), float("inf"))}, "head.bias is not finite"),
        ("weights", {"more": torch.zeros(1)}, "more is only in the file"),
        ("split", {"a": torch.tensor([0, 0])}, "an image is in it twice"),
        ("split", {"a": torch.tensor([-1, -2])}, "its split is none"),
        ("split", {"a": torch.tensor([0.0, 1.0])}, "other things than indices"),
        ("split", {"nonmembers": torch.tensor([[7]])}, "other things than indices"),
        ("split", {"reference": None}, ""),
        ("trained_on", torch.tensor([0, 1]), "A is not what was trained on those images"),
    ],
)
def test_what_a_checkpoint_may_not_say(tmp_path, part, changes, says):
    """Sizes are looked at before anything of that size is made."""
    content = {"format": checkpoint.FORMAT} | dataclasses.asdict(example())
    content[part] = content[part] | changes if isinstance(changes, dict) else changes
    torch.save(content, tmp_path / "A.pt")
    before = cli.peak_memory(torch.device("cpu"))
    with pytest.raises(BadInput, match=rf"A.pt is a damaged checkpoint \(.*({says})") as refusal:
        checkpoint.load(tmp_path / "A.pt")
    assert cli.peak_memory(torch.device("cpu")) - before < 3e8
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_sizes_that_do_not_fit_each_other(tmp_path):
    three = UNetConfig(ch=8, mult=(1, 1, 1), attn=(), blocks=1, groups=2)
    model = dataclasses.replace(example(size=12), unet=three, weights=UNet(three).state_dict())
    checkpoint.save(tmp_path, model)
    assert checkpoint.load(tmp_path / "A.pt").dataset["size"] == 12
    checkpoint.save(tmp_path, dataclasses.replace(model, dataset=model.dataset | {"size": 10}))
    with pytest.raises(BadInput, match="its network cannot halve its images so often"):
        checkpoint.load(tmp_path / "A.pt")


def test_a_checkpoint_of_before_is_read(tmp_path):
    """From before students said who their teachers were."""
    content = {"format": checkpoint.FORMAT} | dataclasses.asdict(example())
    del content["settings"]["teachers"]
    torch.save(content, tmp_path / "A.pt")
    assert checkpoint.load(tmp_path / "A.pt").settings["epochs"] == settings()["epochs"]


def test_a_checkpoint_under_another_name(tmp_path):
    checkpoint.save(tmp_path, example("B"))
    (tmp_path / "B.pt").rename(tmp_path / "A.pt")
    with pytest.raises(BadInput, match="A.pt holds the model B: give it its own name back"):
        checkpoint.load_run(tmp_path)
    (tmp_path / "A.pt").rename(tmp_path / "stranger.pt")
    assert checkpoint.load(tmp_path / "stranger.pt").name == "B"


def unfinished(tmp_path, **changes):
    """A training that was saved after 3 steps, and the same parts anew."""
    wanted = example()
    torch.manual_seed(0)
    parts = []
    for _ in range(2):
        model = UNet(CONFIG)
        parts.append({"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.1)})
    model, optimizer = parts[0].values()
    model(torch.randn(1, 3, 8, 8), torch.tensor([5])).square().sum().backward()
    optimizer.step()
    checkpoint.save_unfinished(tmp_path, wanted, parts[0], 3)
    path = tmp_path / "A.unfinished"
    content = torch.load(path, weights_only=True)
    for change, value in changes.items():
        place = content
        *way, last = change.split("__")
        for key in way:
            place = place[int(key) if key.isdecimal() else key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    torch.save(content, path)
    return wanted, parts


def test_an_unfinished_training_is_what_was_saved(tmp_path):
    wanted, (saved, anew) = unfinished(tmp_path)
    assert checkpoint.resume(tmp_path, wanted, anew) == 3
    for name in saved["model"].state_dict():
        assert torch.equal(saved["model"].state_dict()[name], anew["model"].state_dict()[name])
    one, other = (part["optimizer"].state_dict()["state"] for part in (saved, anew))
    assert one.keys() == other.keys() and len(one) > 10
    for i in one:
        assert all(torch.equal(one[i][key], other[i][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert checkpoint.resume(tmp_path / "nowhere", wanted, anew) is None


@pytest.mark.parametrize(
    "change, value, says",
    [
        ("format", "another", "is no unfinished training of this project: --restart"),
        ("step", -1, "is damaged .*: --restart begins anew"),
        ("step", "3", "is damaged"),
        ("step", None, "is damaged"),
        ("training", NESTED, "is damaged"),
        ("training__lr", NESTED, "is damaged"),
        ("training__lr", 7.0, "was trained with lr = 7.0, not 0.001: --restart begins anew, --run names another"),
        ("training__split", "another", "was trained with split = another, not "),
        ("training__unet", None, "was trained with unet = None, not UNet"),
        ("model__head.bias", None, "is damaged"),
        ("model__head.bias", torch.zeros(33), "is damaged"),
        ("model__head.bias", torch.full((32,), float("nan")), "is damaged .*its model is not finite"),
        ("optimizer__state__0__exp_avg", torch.zeros(3), "is damaged .*another shape"),
        ("optimizer__state__0__exp_avg", None, "is damaged"),
        ("optimizer__state__0__more", torch.zeros(()), "is damaged"),
        ("optimizer__state__0__exp_avg_sq", torch.tensor(float("inf")), "is damaged .*its optimizer is not finite"),
        ("optimizer", None, "is damaged"),
    ],
)
def test_what_an_unfinished_training_may_not_say(tmp_path, change, value, says):
    wanted, (_, anew) = unfinished(tmp_path, **{change: value})
    with pytest.raises(BadInput, match=f"A.unfinished {says}") as refusal:
        checkpoint.resume(tmp_path, wanted, anew)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_how_adam_is_set_up_is_not_for_a_file_to_say(tmp_path):
    evil = [{"lr": 9.0, "betas": (0, 0), "eps": 1.0, "weight_decay": 5.0, "amsgrad": True, "params": list(range(60))}]
    wanted, (_, anew) = unfinished(tmp_path, optimizer__param_groups=evil)
    checkpoint.resume(tmp_path, wanted, anew)
    (group,) = anew["optimizer"].param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], group["amsgrad"]) == (0.1, (0.9, 0.999), 0, False)


def test_a_run_is_one_experiment(tmp_path):
    with pytest.raises(BadInput, match="no trained model"):
        checkpoint.load_run(tmp_path)
    checkpoint.save(tmp_path, example("B"))
    checkpoint.save(tmp_path, example("A", data_dir="elsewhere"))
    assert list(checkpoint.load_run(tmp_path)) == ["A", "B"]
    checkpoint.save(tmp_path, example("all", members=8))
    with pytest.raises(BadInput, match="all and A have different splits"):
        checkpoint.load_run(tmp_path)
    for key, value in {"name": "cifar10", "size": 16, "seed": 1, "sha256": "cd"}.items():
        checkpoint.save(tmp_path, example("all", **{key: value}))
        with pytest.raises(BadInput, match=f"all and A differ in their dataset's {key}"):
            checkpoint.load_run(tmp_path)


def test_a_model_is_judged_on_the_images_it_was_trained_with():
    images = torch.arange(60, dtype=torch.uint8).view(20, 3, 1, 1)
    trained = example(sha256=data.fingerprint(images))
    checkpoint.require_images(trained, images.clone())
    with pytest.raises(BadInput, match="--data-dir"):
        checkpoint.require_images(trained, images + 1)
    few = dataclasses.replace(trained, dataset=trained.dataset | {"sha256": data.fingerprint(images[:19])})
    with pytest.raises(BadInput, match="--data-dir"):
        checkpoint.require_images(few, images[:19])  # where there is no image 19


# --- the field's format ---

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


DATASET = {"name": "toy", "data_dir": None, "size": 16, "seed": 0, "sha256": "ab"}


@pytest.mark.parametrize("config, prefix, T", [(PUBLISHED[0], "module.", 1000), (PUBLISHED[1], "", 400)])
def test_a_published_checkpoint_is_the_published_network(tmp_path, config, prefix, T):
    weights = published_file(tmp_path / "ckpt.pt", config, prefix, T)
    split = data.index_split(20)
    loaded = checkpoint.load_published(tmp_path / "ckpt.pt", DATASET, split)
    assert loaded.unet == config and loaded.noise_schedule().T == T
    assert loaded.name == "all" and torch.equal(loaded.trained_on, split.members) and loaded.split is split
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, T - 1])
    exact = {name.replace(".timembedding.", "."): value.double() for name, value in weights.items()}
    expected = direct_evaluation(exact, config, x.double(), t, table=exact["time_embedding.0.weight"])
    assert expected.std() > 0.1, "outputs are of order 1"
    torch.testing.assert_close(loaded.eps_model()(x, t).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", PUBLISHED)
def test_what_is_published_is_what_is_loaded(tmp_path, config):
    ours = example("B")
    ours.trained_on, ours.unet, ours.weights = ours.split.b, config, UNet(config).state_dict()
    split = checkpoint.publish(ours, tmp_path / "ours.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours-split.npz", "ours.pt"]
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    shapes = published_shapes(config.ch, config.mult, config.attn, config.blocks, T=1000)
    for key in ("net_model", "ema_model"):
        assert {name: tuple(value.shape) for name, value in content[key].items()} == shapes
    table = published_weights(config)["time_embedding.timembedding.0.weight"]
    torch.testing.assert_close(content["ema_model"]["time_embedding.timembedding.0.weight"], table, atol=1e-6, rtol=0)
    loaded = checkpoint.load_published(tmp_path / "ours.pt", ours.dataset, ours.split)
    assert loaded.unet == config and loaded.schedule == ours.schedule
    assert loaded.weights.keys() == ours.weights.keys()
    assert all(torch.equal(loaded.weights[name], value) for name, value in ours.weights.items())
    # whom it was trained on: half B, and as many others
    assert np.load(split)["mia_train_idxs"].tolist() == ours.split.b.tolist()
    assert np.load(split)["mia_eval_idxs"].tolist() == ours.split.nonmembers[:2].tolist()
    assert sorted(data.index_split(20, published=split).members.tolist()) == sorted(ours.split.b.tolist())


def test_what_is_loaded_is_what_is_published(tmp_path):
    weights = published_file(tmp_path / "theirs.pt", T=400)
    loaded = checkpoint.load_published(tmp_path / "theirs.pt", DATASET, data.index_split(20))
    checkpoint.publish(loaded, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["ema_model"]
    assert again.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, atol=1e-6 if name.endswith("0.weight") else 0, rtol=0)


def test_no_network_is_published_that_pytorch_ddpm_would_misread():
    checkpoint.require_publishable(PUBLISHED[0])
    with pytest.raises(BadInput, match=r"--export: this preset has GroupNorm\(8\)"):
        checkpoint.require_publishable(UNetConfig(groups=8))


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
        checkpoint.load_published(tmp_path / "ckpt.pt", DATASET, data.index_split(20))
    assert "\n" not in str(refusal.value)


def test_more_timesteps_than_anybody_has(tmp_path):
    published_file(tmp_path / "ckpt.pt", T=100_000)
    with pytest.raises(BadInput, match="ckpt.pt holds another network than pytorch-ddpm's .*100000 timesteps"):
        checkpoint.load_published(tmp_path / "ckpt.pt", DATASET, data.index_split(20))


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
            checkpoint.load_published(path, DATASET, data.index_split(20))
    assert not trace.exists()
    checkpoint.save(tmp_path, example())
    with pytest.raises(BadInput, match="A.pt is a checkpoint of this project: name its directory with --run"):
        checkpoint.load_published(tmp_path / "A.pt", DATASET, data.index_split(20))
    published_file(tmp_path / "B.pt")
    with pytest.raises(BadInput, match="B.pt is not a checkpoint of this project: .*evaluate.py --checkpoint"):
        checkpoint.load(tmp_path / "B.pt")
