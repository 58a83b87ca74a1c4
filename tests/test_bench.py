"""bench.py: what it counts and what it divides by. No test looks at a clock."""

import argparse
import sys

import pytest
import torch
from conftest import Spy

import attacks
from dualmd import NoiseSchedule, denoise
from tools import bench
from unet import UNet, UNetConfig


def test_operations_are_those_of_the_layers():
    """2 x channels in x channels out x kernel x pixels of each convolution; the backward pass is twice the forward."""
    ch, side = 8, 4
    network = UNet(UNetConfig(ch=ch, mult=(1,), attn=(), blocks=1, groups=8))

    def conv(channels_in, channels_out, kernel=3):
        return 2 * channels_in * channels_out * kernel**2 * side**2

    time = 2 * (ch * 4 * ch + 4 * ch * 4 * ch)
    block = 2 * conv(ch, ch) + 2 * 4 * ch * ch
    wide = conv(2 * ch, ch) + conv(ch, ch) + 2 * 4 * ch * ch + conv(2 * ch, ch, 1)  # on the way up, after a skip
    attention = 4 * conv(ch, ch, 1) + 2 * 2 * side**4 * ch
    forward = time + conv(3, ch) + 3 * block + attention + 2 * wide + conv(ch, 3)
    assert bench.operations(network, side, training=False) == forward
    # nothing behind the image or the timestep wants a gradient
    first = conv(3, ch) + 2 * ch * 4 * ch
    assert bench.operations(network, side, training=True) == 3 * forward - first


@pytest.mark.parametrize("what", ["loss", "sima", "pia", "pian", "secmi", "rediffuse"])
def test_attacks_ask_as_often_as_is_said(what):
    spy, x = Spy(), torch.zeros(2, 3, 4, 4)
    more = {"generator": torch.Generator()} if what in ("loss", "rediffuse") else {}
    getattr(attacks, what)(spy, NoiseSchedule(), x, bench.T, **more)
    assert len(spy.asked) == bench.PASSES[what]


def test_sampling_takes_as_many_steps_as_is_said():
    spy = Spy()
    denoise(spy, NoiseSchedule(), torch.zeros(2, 3, 4, 4), 990)
    assert len(spy.asked) == bench.PASSES["sampling"]


@pytest.mark.slow
def test_a_number_of_every_kind(monkeypatch, capsys):
    """train.py itself in its processes, an attack and this network trained plainly, each apart."""
    monkeypatch.setattr(bench, "PASSES", {"pia": 2})
    monkeypatch.setattr(bench, "PEERS", {"this network": "torch", "none such": "no_such_package"})
    monkeypatch.setattr(bench, "PRECISIONS", {"float32": torch.float32})
    args = argparse.Namespace(device=torch.device("cpu"), peers=True, rounds=1, seconds=1)
    rows = bench.measure("tiny", args)
    assert [row["what"] for row in rows] == ["matrix product", "training", "training: this network, plainly", "pia"]
    assert rows.pop(0)["images_per_s"][0] > 1e9
    assert rows[0]["flop_per_image"] == rows[1]["flop_per_image"] > 2.9 * rows[2]["flop_per_image"] / 2
    assert all(row["images_per_s"][0] > 0 and row["peak_memory"] > 1e8 for row in rows)
    bench.print_table([row | {"of_limit": 0.5} for row in rows])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("tiny ") and "training: this network, plainly, float32" in lines[3] and "50%" in lines[3]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_memory_is_that_of_a_process_of_its_own():
    here = torch.ones(150_000_000)  # which is this one's
    _, small = bench.apart(torch.ones, 1)
    _, large = bench.apart(torch.ones, 50_000_000)  # 200 MB
    assert 150e6 < large - small < 450e6 and small < 4 * here.numel()


def test_several_at_once_add_up():
    (rate, operations), memory = bench.apart(divmod, 17, 5, processes=3)
    assert (rate, operations) == (9, 2) and memory > 1e7
