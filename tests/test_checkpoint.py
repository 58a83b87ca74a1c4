import pickle
from pathlib import Path

import pytest
import torch

import checkpoint
import data
from files import BadInput
from unet import UNet, UNetConfig

CONFIG = UNetConfig(ch=32, mult=(1,), attn=(), blocks=1, dropout=0.1)


def example(model="A", members=4, **dataset) -> checkpoint.Checkpoint:
    split = data.index_split(20, members)
    return checkpoint.Checkpoint(
        name=model,
        dataset={"name": "toy", "data_dir": None, "size": 8, "seed": 0, "sha256": "ab"} | dataset,
        split=split,
        trained_on=split.a,
        settings={"epochs": 3, "lr": 0.1, "seed": 0},
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


class Payload:
    """What an attacker would put into a checkpoint: code that runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


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
    for change in ({"weights": {}}, {"unet": {"ch": 64}}, {"split": {}}, {"surprise": 1}):
        content = {"format": checkpoint.FORMAT} | checkpoint.dataclasses.asdict(example()) | change
        torch.save(content, tmp_path / "A.pt")
        with pytest.raises(BadInput, match="A.pt is a damaged checkpoint"):
            checkpoint.load(tmp_path / "A.pt")
    checkpoint.save(tmp_path, example())
    whole = (tmp_path / "A.pt").read_bytes()
    (tmp_path / "A.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="A.pt"):
        checkpoint.load(tmp_path / "A.pt")


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
    images = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    trained = example(sha256=data.fingerprint(images))
    checkpoint.require_images(trained, images.clone())
    with pytest.raises(BadInput, match="--data-dir"):
        checkpoint.require_images(trained, images + 1)
