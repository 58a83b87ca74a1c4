"""Several processes are one training: the same weights, one voice, and none lives on when another has died."""

import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from lab import checkpoint, cli, distributed
from lab.files import BadInput
from unet import Dropout, UNet, UNetConfig

# what torchrun starts: train.py in float32, whose rounding is small, or with a disk that only rank 1 cannot read
SCRIPT = f"""
import sys

sys.path.insert(0, {str(Path(train.__file__).parent)!r})
import data, train
from lab import cli, distributed
from lab.files import BadInput

def unreadable(*args):
    raise BadInput("the disk of this one is broken")

train.bfloat16_is_faster = lambda device: False
if "--broken" in sys.argv:
    sys.argv.remove("--broken")
    if distributed.RANK == 1:
        data.load = unreadable
cli.run(train.main, under_torchrun=True)
"""


def torchrun(processes, script, *flags):
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--", script, *flags]
    environment, pipe = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.PIPE
    words = map(str, command)
    return subprocess.Popen([sys.executable, *words], env=environment, text=True, stdout=pipe, stderr=pipe)


def forks(processes, run, *flags):
    """The same in forks of this process, which start in no time. Returns the output, the errors and the statuses."""

    def work(rank):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
        distributed.RANK, distributed.WORLD, train.bfloat16_is_faster = rank, processes, lambda device: False
        for i in (1, 2):
            os.dup2(os.open(run.with_suffix(f".{rank}.{i}"), os.O_WRONLY | os.O_CREAT), i)
        sys.stdout, sys.stderr, sys.argv = open(1, "w"), open(2, "w", 1), ["train.py", *flags, "--run", str(run)]
        cli.run(train.main, under_torchrun=True)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=work, args=(rank,)) for rank in range(processes)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    said, errors = ("".join(run.with_suffix(f".{r}.{i}").read_text() for r in range(processes)) for i in (1, 2))
    return said, errors, max(abs(rank.exitcode) for rank in ranks)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A student with dropout and flips, trained by 1, 2 and 3 processes; and by 2 of which one cannot.

    torchrun starts those of which one cannot, and one of the other pairs.
    """
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        preset = train.PRESETS["tiny"]
        patch.setitem(preset, "unet", UNetConfig(ch=32, mult=(1, 1), attn=(), blocks=1, dropout=0.3, groups=8))
        # a low rate: Adam makes a step of it from a gradient that is nothing but rounding
        patch.setitem(preset, "train", preset["train"] | {"flip": True, "warmup": 1, "lr": 5e-4})
        # 34 images, so that an epoch's second batch has two, fewer than three processes
        flags = "--dataset toy --size 8 --members 34 --steps 6 --run".split()
        for half in "AB":
            patch.setattr(sys, "argv", ["train.py", "--split", half, *flags, str(folder / "1")])
            train.main()
    for other in ("2", "3", "broken"):
        shutil.copytree(folder / "1", folder / other)
    student, script = ("--distill", "cross", "--dataset", "toy"), folder / "script.py"
    by_torchrun = {"2": torchrun(2, script, *student, "--run", folder / "2")}
    by_torchrun["broken"] = torchrun(2, script, "--broken", *student, "--run", folder / "broken")
    outcomes = {str(n): forks(n, folder / str(n), *student) for n in (1, 3)}
    outcomes |= {f"all-{n}": forks(n, folder / f"all-{n}", "--split", "all", *flags[:-1]) for n in (1, 2)}
    for name, process in by_torchrun.items():
        outcomes[name] = *process.communicate(timeout=300), process.returncode
    return folder, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["2", "3"])
def test_however_many_processes_train_the_same_model(ended, processes):
    folder, outcomes = ended
    assert [outcomes[name][2] for name in ("1", processes)] == [0, 0], outcomes
    alone, together = (checkpoint.load(folder / name / "distill-cross.pt").weights for name in ("1", processes))
    initial = checkpoint.load(folder / "1" / "A.pt").weights
    assert max((alone[key] - initial[key]).abs().max() for key in alone) > 1e-3, "something was learnt"
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], atol=2e-5, rtol=0)
    losses = [re.findall(r"loss=([\d.]+)", outcomes[name][1])[-1] for name in ("1", processes)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=2e-4), "one loss, that of the whole batch"


@pytest.mark.slow
def test_each_learns_the_noise_of_its_own_images(ended):
    losses = [re.findall(r"loss=([\d.]+)", ended[1][name][1])[-1] for name in ("all-1", "all-2")]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=2e-4)


@pytest.mark.slow
def test_rank_0_alone_prints_and_saves(ended):
    folder, outcomes = ended
    assert outcomes["2"][0].count("distill-cross.pt: 34 images, 6 steps") == 1
    assert sorted(path.name for path in (folder / "2").iterdir()) == ["A.pt", "B.pt", "distill-cross.pt"]
    assert [outcomes[name][1].count("distill-cross:   0%") for name in "12"] == [1, 1], "one progress bar"


@pytest.mark.slow
def test_one_that_dies_ends_all_with_its_message(ended):
    folder, outcomes = ended
    output, errors, status = outcomes["broken"]
    assert status != 0
    assert "\nscript.py: rank 1: the disk of this one is broken\n" in "\n" + errors
    assert not (folder / "broken" / "distill-cross.pt").exists()


def test_shares_are_the_batch(monkeypatch):
    network = UNet(UNetConfig(ch=8, mult=(1,), attn=(), blocks=1, groups=4))
    for world in (1, 2, 3, 5):
        monkeypatch.setattr(distributed, "WORLD", world)
        for n in (1, 2, 7, 128):
            losses, taken, mean = torch.arange(n) ** 2.0, [], 0
            for rank in range(world):
                monkeypatch.setattr(distributed, "RANK", rank)
                mine, weight = distributed.share(n, network)
                assert len(losses[mine]) > 0, "each has to take part"
                mean += weight * losses[mine].mean().item() / world
                assert [module.rows for module in network.modules() if isinstance(module, Dropout)] == 5 * [(n, mine)]
                taken += range(n)[mine] if weight else []
            assert taken == list(range(n)) and mean == pytest.approx(losses.mean().item())


def test_processes_must_see_the_same_files(monkeypatch):
    distributed.require_same(3, "a")
    monkeypatch.setattr(distributed, "WORLD", 2)

    def gather(found, mine):
        found[:] = [mine, theirs]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    theirs = (3, "a")
    distributed.require_same(3, "a")
    theirs = (0, "a")
    with pytest.raises(BadInput, match="the processes see different files .*3.*0.* must name directories that they"):
        distributed.require_same(3, "a")


def test_a_lost_connection_is_one_line(monkeypatch):
    monkeypatch.setattr(distributed, "WORLD", 2)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with pytest.raises(BadInput, match="another process of this training has ended"):
        with distributed.together(torch.device("cpu")):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.1.1]:4711")
    with pytest.raises(RuntimeError, match="shapes"):
        with distributed.together(torch.device("cpu")):
            raise RuntimeError("shapes do not fit")


def test_only_trainings_are_shared(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "WORLD", 2)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit):
        cli.run(lambda: None)
    assert "evaluate.py: torchrun is for train.py;" in capsys.readouterr().err
    cli.run(lambda: None, under_torchrun=True)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert cli.device("cuda") == torch.device("cuda")
    monkeypatch.setattr(distributed, "WORLD", 4)
    monkeypatch.setattr(distributed, "LOCAL_RANK", 3)
    assert cli.device("cuda") == torch.device("cuda", 3) and cli.device("cpu") == torch.device("cpu")
