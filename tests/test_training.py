"""Unfinished trainings: what was saved is what is loaded, and a damaged file is refused."""

import pytest
import torch
from test_checkpoint import CONFIG, NESTED, example

from lab import training
from lab.files import BadInput
from unet import UNet


def parts():
    """A model, its average and its optimiser, all new."""
    model, ema = UNet(CONFIG), UNet(CONFIG)
    return model, ema, torch.optim.Adam(model.parameters(), lr=0.1)


def unfinished(tmp_path, **changes):
    """A training that was saved after 3 steps, with `changes` to the file; and what was saved."""
    torch.manual_seed(0)
    wanted, saved = example(), parts()
    model, _, optimizer = saved
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(1, 3, 8, 8), torch.tensor([5])).square().sum().backward()
        optimizer.step()
    training.save_unfinished(tmp_path, wanted, *saved, 3)
    path = tmp_path / "A.unfinished"
    content = torch.load(path, weights_only=True)
    for change, value in changes.items():
        place = content
        *way, last = change.split("__")
        for key in way:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    torch.save(content, path)
    return wanted, saved


def test_an_unfinished_training_is_what_was_saved(tmp_path):
    wanted, saved = unfinished(tmp_path)
    anew = parts()
    assert training.resume(tmp_path, wanted, *anew) == 3
    for one, other in zip(saved[:2], anew[:2], strict=True):
        for name in one.state_dict():
            assert torch.equal(one.state_dict()[name], other.state_dict()[name])
    one, other = (part[2].state_dict()["state"] for part in (saved, anew))
    assert one.keys() == other.keys() and len(one) > 10
    for i in one:
        assert one[i].keys() == other[i].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[i][key], other[i][key]) for key in one[i])
    assert training.resume(tmp_path / "nowhere", wanted, *anew) is None


def test_a_training_that_was_saved_before_its_first_step(tmp_path):
    wanted, saved, anew = example(), parts(), parts()
    training.save_unfinished(tmp_path, wanted, *saved, 0)
    assert training.resume(tmp_path, wanted, *anew) == 0 and not anew[2].state
    assert torch.equal(saved[0].head.weight, anew[0].head.weight)


@pytest.mark.parametrize(
    "change, value, says",
    [
        ("format", "another", "is no unfinished training of this version: --restart"),
        ("state__step", -1, "is damaged .*: --restart begins anew"),
        ("state__step", "3", "is damaged"),
        ("state__step", None, "is damaged"),
        ("state", NESTED, "is damaged"),
        ("settings__lr", NESTED, "is damaged"),
        ("settings__lr", 7.0, "was trained with lr = 7.0, not 0.002: --restart begins anew, --run names another"),
        ("split__a", example().split.a.flip(0), "was trained with split = .*, not "),
        ("unet", None, "is damaged"),
        ("weights__head.bias", torch.full((32,), float("nan")), "is damaged .*head.bias is not finite"),
        ("state__weights__head.bias", None, "is damaged"),
        ("state__weights__head.bias", torch.zeros(33), "is damaged .*another shape"),
        ("state__exp_avg__head.bias", torch.zeros(3), "is damaged .*another shape"),
        ("state__exp_avg", None, "is damaged"),
        ("state__exp_avg__more", torch.zeros(()), "is damaged"),
        ("state__exp_avg_sq__head.bias", torch.full((32,), float("inf")), "is damaged .*is not finite"),
    ],
)
def test_what_an_unfinished_training_may_not_say(tmp_path, change, value, says):
    wanted, _ = unfinished(tmp_path, **{change: value})
    with pytest.raises(BadInput, match=f"A.unfinished {says}") as refusal:
        training.resume(tmp_path, wanted, *parts())
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
