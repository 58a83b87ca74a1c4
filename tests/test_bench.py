"""tools/bench.py: the operations that it counts, and what it measures. No test looks at a clock."""

import argparse
import json
import re
import sys
from functools import partial

import pytest
import torch

import train
from tools import bench, growth
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
    assert bench.repeated(lambda n: network(x[:n], t.expand(n)), 3, CPU, seconds=0)[1] == forward
    # neither the image nor the timestep needs a gradient
    first = conv(3, ch) + 2 * ch * 4 * ch
    trained = bench.repeated(lambda n: network(x[:n], t.expand(n)).sum().backward(), 3, CPU, 0)
    assert trained[1] == 3 * forward - first


@pytest.mark.parametrize("who", [bench.OURS, bench.PLAIN])
def test_operations_of_an_image_are_those_of_the_forward_passes(monkeypatch, who):
    """As many as each attack's formula has; a generated image takes 100. The scripts look up the time's embedding."""
    monkeypatch.setitem(train.PRESETS["tiny"], "size", 8)
    monkeypatch.setitem(bench.BATCH, "tiny", 3)
    found = {what: bench.timed(what, who, "float32", "tiny", CPU, 0)[1] for what in ("sampling", "pia", "secmi")}
    ch = train.SMALL.ch
    time = 2 * (ch * 4 * ch + 4 * ch * 4 * ch) if who == bench.OURS else 0
    once = found["pia"] // 2
    assert found == {"sampling": 100 * (once - time), "pia": 2 * once, "secmi": 6 * once}


@pytest.mark.slow
def test_what_is_measured_is_saved_and_what_fails_is_left_out(tmp_path, monkeypatch, capsys):
    """train.py's loop in several processes, generated images, an attack, and a library that is not there."""
    monkeypatch.setattr(bench, "PRECISIONS", ["float32"])
    args = argparse.Namespace(device=CPU, seconds=0, out=tmp_path / "bench.json")
    rows = bench.rows_of("tiny", ["no such library"], args)
    assert len(rows) == 3 * (1 + 2) + 2
    wanted = [("training", bench.OURS), ("sampling", bench.OURS), ("sampling", "no such library"), ("pia", bench.OURS)]
    rows = [row for row in rows if (row["what"], row["who"]) in wanted]
    result = {"flop_per_s": dict.fromkeys(bench.PRECISIONS, 0), "rows": rows}
    bench.measure(result, args, show=True)
    assert [row["what"] for row in result["rows"]] == ["training", "sampling", "pia"]
    assert all(row["images_per_s"][0] > 0 and row["peak_memory"] > 1e8 for row in result["rows"])
    said = capsys.readouterr().out
    assert said.count("no such library is left out of sampling: KeyError") == 1 and said.count("images/s") == 3
    assert json.loads(args.out.read_text()) == result and min(result["flop_per_s"].values()) > 1e9


@pytest.mark.parametrize("faster", [True, False])
def test_bfloat16_is_measured_only_where_it_is_faster(monkeypatch, faster):
    monkeypatch.setattr(bench.hardware, "bfloat16_is_faster", lambda device: faster)
    rows = bench.rows_of("tiny", ["peer"], argparse.Namespace(device=CPU))
    found = {(row["what"], row["who"], row["precision"]) for row in rows}
    assert (("training", "peer", "bfloat16") in found) is faster and ("training", "peer", "float32") in found
    assert ("sampling", bench.OURS, "bfloat16" if faster else "float32") in found
    assert ("training", bench.OURS, "float32") in found, "as its preset says"
    large = {
        (row["what"], row["who"], row["precision"])
        for row in bench.rows_of("cifar10", [], argparse.Namespace(device=CPU))
    }
    assert ("training", bench.OURS, "bfloat16" if faster else "float32") in large
    assert ("pia", bench.OURS, "float32") in found and ("pia", bench.OURS, "bfloat16") not in found


def test_ratios_are_of_medians_to_the_better_library(capsys):
    def row(who, precision, *rates):
        its = {"preset": "tiny", "what": "training", "who": who, "precision": precision, "peak_memory": 2e9}
        return its | {"images_per_s": rates, "flop_per_image": 1e9}

    rows = [row(bench.OURS, "bfloat16", 9, 6, 1), row(bench.PLAIN, "float32", 2), row(bench.PLAIN, "bfloat16", 4)]
    rows += [
        row("slow", "float32", 2),
        row("fast", "float32", 3),
        row("slow", "bfloat16", 8),
        row("fast", "bfloat16", 5),
    ]
    bench.print_table(rows, {"float32": 10e9, "bfloat16": 24e9})
    said = capsys.readouterr().out
    assert re.search(r"training, this project, bfloat16 +6 +1 +9 +1.00 +25%   2.00 GB", said)
    assert f"{bench.OURS} in bfloat16 is 2.00 times as fast as fast in float32" in said
    assert f"{bench.PLAIN} in float32 is 0.67 times as fast as fast in float32" in said
    assert f"{bench.OURS} in bfloat16 is 0.75 times as fast as slow in bfloat16" in said


def test_no_round_begins_that_would_end_too_late(monkeypatch, capsys):
    """Rounds of 250 s in ten minutes: after two of them, a third one would end at 750 s."""
    clock, rounds = [0.0], []

    def measure(result, args, show):
        rounds.append(show)
        clock[0] += 250

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "print_table", lambda rows, limits: None)
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", "cpu"])
    bench.main()
    assert rounds == [True, False] and "medians of 2 rounds" in capsys.readouterr().out


def fill(size, n):
    return torch.ones(size)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the memory")
def test_memory_is_that_of_a_process_of_its_own():
    here = torch.ones(250_000_000)  # in this process; torch for a GPU takes 660 MB in each
    *_, small = bench.apart(bench.repeated, partial(fill, 1), 1, CPU, 0)
    *_, large = bench.apart(bench.repeated, partial(fill, 50_000_000), 1, CPU, 0)  # 200 MB
    assert 150e6 < large - small < 450e6 and small < 4 * here.numel()


def numbers(images_per_s, operations, memory):
    return images_per_s, operations, memory


def test_images_of_several_processes_add_up():
    assert bench.apart(numbers, 3, 2, 10, processes=3) == (9, 2, 10)


def test_growth_is_extrapolated_in_proportion_and_says_so(monkeypatch, tmp_path):
    """A run of the measurement is 1/64 of a search for a copy; an epoch is as many images. Images take 3 KiB each."""
    monkeypatch.setattr(growth, "apart", lambda cost, axis, x, processes: (4 * processes, 1000, 10**9))
    found = {axis: growth.points(axis) for axis in growth.AXES}
    *_, measured, epoch = found["images"]
    assert measured == {"x": 256, "seconds": 64, "flop": 256_000, "bytes": 10**9, "measured": True}
    assert epoch["seconds"] == 12_500 and epoch["flop"] == 50_000_000 and not epoch["measured"]
    assert epoch["bytes"] == 10**9 + (50_000 - 256) * 3 * 32 * 32
    assert [p["seconds"] for p in found["timesteps"]] == [0.25, 0.25, 1.25, 12.5]
    assert [p["bytes"] for p in found["timesteps"]] == 4 * [10**9]
    assert [p["seconds"] for p in found["copies"]][:3] == 3 * [1 / 256] and not found["copies"][3]["measured"]
    assert [p["seconds"] for p in found["processes"]] == [1 / 4, 1 / 8]
    assert [p["x"] for p in found["queries"]] == [1, 2, 11, 30]
    assert [p["x"] for p in found["parameters"]][-1] == 35_746_307, "DDPM's network for CIFAR-10"
    growth.draw(tmp_path / "growth.png", found)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("attack, queries", growth.QUERIES.items())
def test_growth_counts_the_queries_of_an_attack(monkeypatch, attack, queries):
    monkeypatch.setattr(growth, "CH", 4)
    monkeypatch.setattr(growth, "SIDE", 8)
    step = {}
    monkeypatch.setattr(growth, "repeated", lambda run, n, device, seconds: step.setdefault("run", run))
    growth.cost("queries", attack)
    asked, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, t: asked.append(len(x)) or forward(self, x, t))
    step["run"](1)
    assert sum(asked) == queries
