import dataclasses
import pickle

import pytest
import torch
from conftest import Payload, settings

import data
from lab import checkpoint, hardware
from lab.files import BadInput
from unet import UNet, UNetConfig

CONFIG = UNetConfig(ch=32, mult=(1,), attn=(), blocks=1, dropout=0.1)


def example(model="A", members=4, **dataset) -> checkpoint.Checkpoint:
    split = data.index_split(20, members)
    return checkpoint.Checkpoint(
        name=model,
        dataset={"name": "toy", "data_dir": None, "size": 8, "seed": 0, "sha256": "ab"} | dataset,
        split=split,
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
    torch.save({"format": "dualmd checkpoint 1"} | dataclasses.asdict(example()), path)  # its settings had epochs
    with pytest.raises(BadInput, match=r"A.pt was written by another version .*checkpoint 1\): train the model again"):
        checkpoint.load(path)
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
        ("name", "C", "its name is none of all, A, B"),
        ("name", NESTED, "its name is none of all, A, B"),
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
        ("settings", {"steps": 10**12}, "settings: steps cannot be 1000000000000"),
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
        ("unet", {"mult": ()}, ""),
        ("unet", {"mult": (1,) * 1000}, "unet: mult cannot be a tuple"),
        ("unet", {"mult": (10**6,)}, "unet: mult cannot be a tuple"),
        ("unet", {"mult": (1.0,)}, "unet: mult cannot be a tuple"),
        ("unet", {"mult": [1]}, "unet: mult cannot be a list"),
        ("unet", {"attn": (8,)}, "unet: attn cannot be a tuple"),
        ("unet", {"attn": NESTED}, "unet: attn cannot be a list"),
        ("unet", {"blocks": 10**9}, "unet: blocks cannot be 1000000000"),
        ("unet", {"dropout": 1.0}, "unet: dropout cannot be 1.0"),
        ("unet", {"groups": 0}, "unet: groups cannot be 0"),
        ("unet", HUGE, "unet: |is only in|has another shape"),
        ("weights", {"head.weight": None}, ""),
        ("weights", {"head.weight": torch.zeros(32, 3, 3, 3).long()}, "head.weight has another shape"),
        ("weights", {"head.bias": torch.full((32,), float("inf"))}, "head.bias is not finite"),
        ("weights", {"more": torch.zeros(1)}, "more is only in the file"),
        ("weights", {"head.bias": torch.zeros(32).to_sparse()}, ""),
        ("weights", {"head.bias": torch.zeros(32, device="meta")}, ""),
        ("weights", {"head.bias": torch.zeros(1).expand(10**9)}, "head.bias has another shape"),
        ("split", {"a": torch.zeros(1, dtype=torch.int64).expand(10**9)}, "other things than indices"),
        ("split", {(1, 2): 3}, ""),
        ("split", {"a": torch.tensor([0, 0])}, "has an image twice"),
        ("split", {"a": torch.tensor([-1, -2])}, "its split has no members"),
        ("split", {"a": torch.tensor([0.0, 1.0])}, "other things than indices"),
        ("split", {"nonmembers": torch.tensor([[7]])}, "other things than indices"),
        ("split", {"reference": None}, ""),
    ],
)
def test_what_a_checkpoint_may_not_say(tmp_path, part, changes, says):
    """Sizes are looked at before anything of that size is made."""
    content = {"format": checkpoint.FORMAT} | dataclasses.asdict(example())
    content[part] = content[part] | changes if isinstance(changes, dict) else changes
    torch.save(content, tmp_path / "A.pt")
    before = hardware.peak_memory(torch.device("cpu"))
    with pytest.raises(BadInput, match=rf"A.pt is a damaged checkpoint \(.*({says})") as refusal:
        checkpoint.load(tmp_path / "A.pt")
    assert hardware.peak_memory(torch.device("cpu")) - before < 3e8
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_sizes_that_do_not_fit_each_other(tmp_path):
    three = UNetConfig(ch=8, mult=(1, 1, 1), attn=(), blocks=1, groups=2)
    model = dataclasses.replace(example(size=12), unet=three, weights=UNet(three).state_dict())
    checkpoint.save(tmp_path, model)
    assert checkpoint.load(tmp_path / "A.pt").dataset["size"] == 12
    checkpoint.save(tmp_path, dataclasses.replace(model, dataset=model.dataset | {"size": 10}))
    with pytest.raises(BadInput, match="--size 10: must be at most 1024, and a multiple of 4"):
        checkpoint.load(tmp_path / "A.pt")


def test_a_checkpoint_of_before_is_read(tmp_path):
    """From before students said who their teachers were; what may be None may be missing."""
    content = {"format": checkpoint.FORMAT} | dataclasses.asdict(example())
    for part, entry in (("settings", name) for name in ("teachers", "member_split", "weight_decay", "epsilon")):
        del content[part][entry]
    del content["dataset"]["data_dir"]
    torch.save(content, tmp_path / "A.pt")
    loaded = checkpoint.load(tmp_path / "A.pt")
    assert loaded.settings == settings() | {"member_split": None} and loaded.dataset["data_dir"] is None


def test_a_checkpoint_under_another_name(tmp_path):
    checkpoint.save(tmp_path, example("B"))
    (tmp_path / "B.pt").rename(tmp_path / "A.pt")
    with pytest.raises(BadInput, match="A.pt holds the model B: rename it to B.pt"):
        checkpoint.load_run(tmp_path)
    (tmp_path / "A.pt").rename(tmp_path / "stranger.pt")
    assert checkpoint.load(tmp_path / "stranger.pt").name == "B"


def test_a_run_is_one_experiment(tmp_path):
    assert checkpoint.load_run(tmp_path) == {}
    checkpoint.save(tmp_path, example("B"))
    checkpoint.save(tmp_path, example("A", data_dir="elsewhere"))
    assert list(checkpoint.load_run(tmp_path)) == ["A", "B"]
    checkpoint.save(tmp_path, example("all", members=8))
    with pytest.raises(BadInput, match="A and all differ .members = 4, not 8.; give each"):
        checkpoint.load_run(tmp_path)
    for key, value in {"name": "cifar10", "size": 16, "seed": 1, "sha256": "cd"}.items():
        checkpoint.save(tmp_path, example("all", **{key: value}))
        with pytest.raises(BadInput, match=f"A and all differ .{key} = .*, not {value}.; give each"):
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
