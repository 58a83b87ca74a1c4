"""tools/bench.py: the operations that it counts, and what it measures. No test looks at a clock."""

import argparse
import sys
from functools import partial

import pytest
import torch

import train
from tools import bench
from unet import UNet, UNetConfig

CPU = torch.device("cpu")


def test_operations_are_those_of_the_layers():
    """2 x channels in x channels out x kernel x pixels of each convolution; the backward pass is twice the forward."""
    ch, side = 8, 4
    network = UNet(UNetConfig(ch=ch, mult=(1,), attn=(), blocks=1, groups=8))
    x, t = torch.zeros(3, 3, side, side), torch.zeros(1, dtype=torch.int64)

    def conv(channels_in, channels_out, kernel=3):
        return 2 * channels_in * channels_out * kernel**2 * side**2

    time = 2 * (ch * 4 * ch + 4 * ch * 4 * ch)
    block = 2 * conv(ch, ch) + 2 * 4 * ch * ch
    wide = conv(2 * ch, ch) + conv(ch, ch) + 2 * 4 * ch * ch + conv(2 * ch, ch, 1)  # on the way up, after a skip
    attention = 4 * conv(ch, ch, 1) + 2 * 2 * side**4 * ch
    forward = time + conv(3, ch) + 3 * block + attention + 2 * wide + conv(ch, 3)
    assert bench.repeated(lambda x: network(x, t.expand(len(x))), x, seconds=0)[1] == forward
    # neither the image nor the timestep needs a gradient
    first = conv(3, ch) + 2 * ch * 4 * ch
    assert bench.repeated(lambda x: network(x, t.expand(len(x))).sum().backward(), x, 0)[1] == 3 * forward - first


def test_operations_of_an_image_are_those_of_the_forward_passes(monkeypatch):
    """As many as each attack's formula has; a generated image takes 100."""
    monkeypatch.setitem(train.PRESETS["tiny"], "size", 8)
    once = bench.asked("sima", "this network", "tiny", CPU, 0)[1]
    expected = {"sampling": 100, "pia": 2, "pian": 2, "secmi": 21, "rediffuse": 30}
    found = {what: bench.asked(what, "this network", "tiny", CPU, 0)[1] for what in expected}
    assert found == {what: n * once for what, n in expected.items()}


@pytest.mark.slow
def test_a_number_of_every_kind(monkeypatch, capsys):
    """train.py's loop in several processes, an attack, and this network trained plainly, each in its own process."""
    monkeypatch.setattr(bench, "ATTACKS", ["pia"])
    monkeypatch.setattr(bench, "NETWORKS", {"this network": ("torch", None), "none such": ("no_such_package", None)})
    monkeypatch.setattr(bench, "PRECISIONS", ["float32"])
    args, limits = argparse.Namespace(device=CPU, peers=True, rounds=1, seconds=1), {"float32": 0}
    rows = bench.measure("tiny", args, limits)
    assert [row["what"] for row in rows] == ["training", "training: this network, plainly", "sampling", "pia"]
    assert limits["float32"] > 1e9
    assert rows[0]["flop_per_image"] == rows[1]["flop_per_image"] > 2.9 * rows[3]["flop_per_image"] / 2
    assert all(row["images_per_s"][0] > 0 and row["peak_memory"] > 1e8 for row in rows)
    bench.print_table([row | {"of_limit": 0.5} for row in rows])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("tiny ") and "training: this network, plainly, float32" in lines[3] and "50%" in lines[3]


def fill(n, x):
    return torch.ones(n)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the memory")
def test_memory_is_that_of_a_process_of_its_own():
    here = torch.ones(250_000_000)  # in this process; torch for a GPU takes 660 MB in each
    *_, small = bench.apart(bench.repeated, partial(fill, 1), torch.ones(1), 0)
    *_, large = bench.apart(bench.repeated, partial(fill, 50_000_000), torch.ones(1), 0)  # 200 MB
    assert 150e6 < large - small < 450e6 and small < 4 * here.numel()


def numbers(images_per_s, operations, memory):
    return images_per_s, operations, memory


def test_images_of_several_processes_add_up():
    assert bench.apart(numbers, 3, 2, 10, processes=3) == (9, 2, 10)
