"""reproduce.py: the list of commands, what runs when, and that an interrupted study ends at the same numbers."""

import argparse
import functools
import multiprocessing.forkserver
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT, same

import data
import fid
import reproduce
import train
from lab import checkpoint
from lab.files import BadInput
from lab.jobs import Job, run_all
from unet import UNet, UNetConfig


def study(tmp_path, with_fid=False, **changes):
    args = {"run": tmp_path, "dataset": "toy", "data_dir": None, "device": torch.device("cpu"), "preset": "tiny"}
    args |= {"members": None, "steps": None, "seeds": 1, "snapshots": 8, "attack": ["pia", "gsa"], "n": None}
    args |= {"inception_weights": None, "size": None, "member_split": None, "average": False}
    return reproduce.study(argparse.Namespace(**args | changes), cores=2, with_fid=with_fid)


def test_the_commands_can_be_run_one_by_one(tmp_path):
    jobs = study(tmp_path, seeds=2, average=True)
    there = set()
    for job in jobs:
        assert set(job.needs) <= there, f"{job} needs what comes later"
        there.add(job)
    lines = [str(job).replace(str(tmp_path), "RUN") for job in jobs]
    tail = "--dataset toy --device cpu"
    into = "--run RUN/seed-1 --snapshots 8"
    size = "--preset tiny --seed 1"
    for split in ("all", "A", "B"):
        assert f"python train.py --split {split} {into} {size} {tail}" in lines
    for targets in ("cross", "average"):
        assert f"python train.py --distill {targets} {into} {tail}" in lines
    assert f"python train.py --split reference --run RUN/seed-1 {size} {tail}" in lines
    assert f"python sample.py --model dual --n 16 --run RUN/seed-0 {tail}" in lines
    all_runs = f"--run RUN/seed-0 RUN/seed-1 --out RUN {tail}"
    assert lines[-2] == f"python evaluate.py --memorization {all_runs}"
    assert lines[-1] == f"python evaluate.py --attack pia gsa {all_runs}"
    # the first result needs no reference model, and has the student: from seed 0
    first = lines.index(f"python evaluate.py --attack pia --print-only --run RUN/seed-0 {tail}")
    assert {job.makes.stem for job in jobs[first].needs} == {"all", "distill-cross"}
    assert first < lines.index(f"python train.py --split reference --run RUN/seed-0 {size[:-1]}0 {tail}")
    # the student, which needs A and B and takes longest, is trained beside the others
    assert [job.makes.stem for job in jobs[:4]] == ["A", "B", "all", "distill-cross"]
    # the runs are attacked side by side; the last one with all cores, for the table
    early = f"python evaluate.py --attack pia gsa --print-only --run RUN/seed-0 {tail}"
    assert [line for line in lines if "pia gsa --print-only" in line] == [early]
    early = jobs[lines.index(early)]
    assert set(early.needs) == {job for job in jobs if job.makes and job.makes.match("seed-0/*.pt")}
    assert early.cores == 1 and jobs[-1].cores == 2
    assert "average" not in " ".join(map(str, study(tmp_path))), "the variant is for those who ask"


def test_fid_is_a_command_and_columns(tmp_path):
    *_, memorization, fids, attacks = study(tmp_path, with_fid=True, n=9, inception_weights="w.pth")
    for job, words in (
        (memorization, "--memorization --n 9"),
        (fids, "--fid --n 9 --inception-weights w.pth"),
        (attacks, "--attack pia gsa --fid --n 9 --inception-weights w.pth"),
    ):
        assert str(job).startswith(f"python evaluate.py {words} --run ")
    assert {fids, memorization} < set(attacks.needs)
    assert fids.needs == [memorization], "two at a time would generate the same images twice"


def test_without_weights_fid_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def load(weights):
        asked.append(weights)
        if weights != "good.pth":
            raise BadInput(f"no {weights}")

    monkeypatch.setattr(fid, "load", load)
    args = argparse.Namespace(dataset="toy", inception_weights=None)
    path = tmp_path / "hub" / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    assert f"there is no {path}; with --inception-weights torchvision" in reproduce.reason_without_fid(args)
    assert not asked, "for a demonstration nothing is downloaded"
    args.dataset = "cifar10"
    assert reproduce.reason_without_fid(args) == "no torchvision"
    args.inception_weights = "good.pth"
    assert reproduce.reason_without_fid(args) is None
    args.inception_weights = "bad.pth"
    with pytest.raises(BadInput, match=r"no bad.pth"):  # what was asked for is not left out
        reproduce.reason_without_fid(args)
    path.parent.mkdir(parents=True)
    path.touch()
    args = argparse.Namespace(dataset="toy", inception_weights=None)
    assert reproduce.reason_without_fid(args) == "no torchvision" and asked[-1] == "torchvision"


def test_sizes_and_devices(tmp_path):
    assert {name: its["train"]["steps"] for name, its in train.PRESETS.items()} == reproduce.PRESETS
    real = {"dataset": "cifar10", "data_dir": "d"}
    for changes, expected in (
        (real, "--preset tiny --seed 0 --dataset cifar10 --data-dir d --device cpu"),
        (real | {"members": 8, "steps": 3}, "--preset tiny --members 8 --steps 3 --seed 0 --dataset cifar10"),
        (real | {"size": 8, "member_split": Path("split.npz")}, "--preset tiny --size 8 --member-split split.npz --s"),
        ({"device": torch.device("cuda")}, "--preset tiny --seed 0 --dataset toy --device cuda"),
    ):
        assert expected in str(study(tmp_path, **changes)[0])
    # at the paper's scale all images are members or non-members, and none is left for a reference model
    for members, there in ((None, False), (12_500, True)):
        lines = map(str, study(tmp_path, **real, preset="cifar10", members=members))
        assert any("--split reference" in line for line in lines) is there


def frontier(tmp_path, **changes):
    args = {"run": tmp_path, "dataset": "toy", "data_dir": None, "device": torch.device("cpu"), "preset": "tiny"}
    args |= {"members": None, "steps": 80, "seeds": 1, "attack": ["pia"], "n": None, "full": False, "references": None}
    args |= {"inception_weights": None, "size": None, "member_split": None}
    with_fid = changes.pop("with_fid", False)
    return reproduce.frontier(argparse.Namespace(**args | changes), cores=2, with_fid=with_fid)


def test_the_frontier_of_half_an_hour(tmp_path):
    jobs = frontier(tmp_path)
    lines = [str(job).replace(str(tmp_path), "RUN") for job in jobs]
    new, tail = "--preset tiny --seed 0", "--dataset toy --device cpu"
    for steps in (160, 80, 40, 20, 10):
        run = f"RUN/seed-0/undefended-{steps}"
        assert f"python train.py --split all {new} --steps {steps} --run {run} {tail}" in lines
    for of in (80, 20):
        for half in "AB":
            run = f"RUN/seed-0/halves-{of}"
            assert f"python train.py --split {half} {new} --steps {of} --run {run} {tail}" in lines
        files, run = f"RUN/seed-0/halves-{of}/A.pt RUN/seed-0/halves-{of}/B.pt", f"RUN/seed-0/cross-80-of-{of}"
        student = f"python train.py --distill cross --teachers {files} --steps 80 --run {run} {tail}"
        assert [job.makes for job in jobs[lines.index(student)].needs] == [
            tmp_path / f"seed-0/halves-{of}/{half}.pt" for half in "AB"
        ]
    reference = f"python train.py --split reference --block 1 {new} --steps 80 --run RUN/seed-0/reference-80-1 {tail}"
    assert reference in lines and len(lines) == 5 + 4 + 2 + 1 + 1
    assert lines[-1] == f"python evaluate.py --frontier --attack pia --run RUN/seed-0 --out RUN {tail}"
    assert set(jobs[-1].needs) == set(jobs[:-1]) and jobs[-1].cores == 2
    for job in jobs:
        job.check()


def test_the_whole_frontier(tmp_path):
    jobs = frontier(tmp_path, full=True, seeds=2, with_fid=True, member_split=None)
    there = set()
    for job in jobs:
        assert set(job.needs) <= there, f"{job} needs what comes later"
        there.add(job)
    assert len({job.makes for job in jobs if job.makes}) == len([job for job in jobs if job.makes])
    lines = [str(job).replace(str(tmp_path), "RUN") for job in jobs]
    by = {job.makes.parent.relative_to(tmp_path): line for job, line in zip(jobs, lines) if job.makes}
    blocks = [re.search(r"--block (\d)", line) for line in by.values() if "run RUN/seed-1/reference-80-" in line]
    assert sorted(int(block[1]) for block in blocks if block) == [1, 2, 3, 4]
    assert "--split reference --block 5 " in by[Path("seed-1/other-20")], "no attacker holds the control's teacher"
    assert "--distill single --teachers RUN/seed-1/other-20/reference.pt" in by[Path("seed-1/unseen-80-of-20")]
    assert "--distill single --teachers RUN/seed-1/undefended-80/all.pt" in by[Path("seed-1/ordinary-80-of-80")]
    assert "--distill average --teachers RUN/seed-1/halves-20/A.pt" in by[Path("seed-1/average-80-of-20")]
    assert "--steps 40 " in by[Path("seed-1/cross-40-of-20")] and "halves-20" in by[Path("seed-1/cross-40-of-20")]
    for steps in (160, 80, 40, 20, 10):
        name = "reference-80-1" if steps == 80 else f"reference-{steps}"
        assert f"--steps {steps} " in by[Path("seed-0", name)], "a reference of each attacked length"
    distilled = "--distill reference --teachers RUN/seed-0/reference-20/reference.pt --steps 80 "
    assert distilled in by[Path("seed-0/reference-80-of-20")], "and one that is a student, as the attacked ones are"
    how = "python evaluate.py --frontier --n 1000 --attack all --fid"
    early = [line for line in lines if "--print-only" in line]
    assert early == [f"{how} --print-only --run RUN/seed-0 --dataset toy --device cpu"]
    assert lines[-1] == f"{how} --run RUN/seed-0 RUN/seed-1 --out RUN --dataset toy --device cpu"
    for few in (7, 1):
        with pytest.raises(BadInput, match=f"--steps {few}: .* take 8 or more"):
            frontier(tmp_path, steps=few)


def test_only_a_model_that_is_there_is_done(tmp_path):
    (tmp_path / "seed-0").mkdir()
    for name in ("table.md", "memorization.md", "fid.md", "seed-0/samples-all.png", "seed-0/A.pt"):
        (tmp_path / name).touch()
    (done,) = [str(job) for job in study(tmp_path, with_fid=True) if job.done]
    assert "train.py --split A " in done
    for name in ("all", "B", "distill-cross"):
        (tmp_path / "seed-0" / f"{name}.pt").touch()
    assert "--print-only" not in " ".join(map(str, study(tmp_path))), "a first result is of no use after the last"


def main(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--device", "cpu", *map(str, flags)])
    reproduce.main()


@pytest.mark.parametrize("differs", [{"steps": 5}, {"members": 6}, {"preset": "small"}, {"size": 32}, {"seed": 1}])
def test_models_of_another_study_are_not_taken_for_this_one(tmp_path, monkeypatch, differs):
    """And results of other models are no more there when the trainings begin."""
    started = []
    monkeypatch.setattr(reproduce, "run_all", lambda jobs, *rest: started.append(jobs) or [])
    monkeypatch.setattr(data, "TOY_IMAGES", 40)
    asked = {"preset": "tiny", "members": 4, "steps": 3, "size": 16, "seed": 0}
    theirs = asked | differs
    words = [word for key, value in theirs.items() for word in (f"--{key}", str(value))]
    wanted = train.new_model(train.parse_args(["--split", "A", "--dataset", "toy", "--run", str(tmp_path), *words]))
    wanted.unet = UNetConfig(ch=8, mult=(1,), attn=(), blocks=1, groups=4)
    wanted.dataset["sha256"], wanted.weights = "pixels", UNet(wanted.unet).state_dict()
    checkpoint.save(tmp_path / "seed-0", wanted)
    (tmp_path / "table.md").write_text("<!-- dualmd result 0123456789abcdef 0123456789abcdef -->")
    (tmp_path / "notes.md").write_text("not ours")
    rest = ["--run", tmp_path, *(["--seeds", 2] if "seed" in differs else [])]
    same = [word for key, value in asked.items() if key != "seed" for word in (f"--{key}", value)]
    if "seed" not in differs:
        its = [word for key, value in theirs.items() if key != "seed" for word in (f"--{key}", value)]
        with pytest.raises(BadInput, match="A.pt was trained with unet"):  # all else is the same
            main(monkeypatch, *its, *rest)
    ((key, value),) = differs.items()
    with pytest.raises(BadInput, match=f"seed-0.*\\b{key} = {value}, not {asked[key]}.*--run"):
        main(monkeypatch, *same, *rest)
    assert not started and (tmp_path / "table.md").exists()


def test_a_study_that_trains_begins_without_the_results_of_other_models(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run_all", lambda *rest: [])
    for name in ("table.md", "roc.png", "notes.md"):
        (tmp_path / name).write_text("" if "notes" in name else "dualmd result 0123456789abcdef 0123456789abcdef")
    main(monkeypatch, "--run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def script(folder, text):
    path = folder / "job.py"
    path.write_text("import os, sys, time, torch\nfrom pathlib import Path\n" + text)
    return lambda *words, **rest: Job(["python", str(path), *map(str, words)], **rest)


def test_a_job_waits_for_what_it_needs(tmp_path, capfd):
    job = script(
        tmp_path,
        "out, *needed = sys.argv[1:]\n"
        "text = ''.join(Path(path).read_text() for path in needed)\n"
        "print('made', Path(out).name)\n"
        "Path(out).write_text(text + Path(out).name + str(torch.get_num_threads()))\n",
    )
    a, b, c = (tmp_path / name for name in "abc")
    first = job(a, makes=a)
    second = job(b, a, needs=[first], makes=b)
    times = run_all([job(c, a, b, needs=[first, second], makes=c, cores=2), second, first], cores=2, on_cpu=True)
    moments = {job.makes.name: (began, ended) for job, began, ended in times}
    assert 0 <= moments["a"][0] < moments["a"][1] <= moments["b"][0] < moments["b"][1] <= moments["c"][0]
    assert c.read_text() == "a1" + "a1b1" + "c2"
    out = capfd.readouterr().out
    assert out.index("made a") < out.index("made b")


def test_a_failure_stops_the_others(tmp_path):
    job = script(
        tmp_path,
        "if sys.argv[1] == 'fail':\n"
        "    while not Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
        "    sys.exit(int(sys.argv[3]))\n"
        "Path(sys.argv[2] + '.tmp').write_text(str(os.getpid()))\n"
        "os.replace(sys.argv[2] + '.tmp', sys.argv[2])\n"
        "time.sleep(600)\n",
    )
    pid = tmp_path / "pid"
    for status, error in ((1, BadInput), (2, SystemExit)):  # of status 2 the job itself has said why
        pid.unlink(missing_ok=True)
        with pytest.raises(error, match="2|status 1.*, and the rest was stopped: python .*job.py fail"):
            run_all([job("sleep", pid), job("fail", pid, status), job("never", pid)], cores=2, on_cpu=True)
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    lazy = script(tmp_path, "")
    with pytest.raises(BadInput, match="this failed"):
        run_all([lazy(makes=tmp_path / "nothing")], cores=1, on_cpu=True)


def test_ctrl_c_while_a_command_starts_is_not_lost(monkeypatch):
    did = []

    class Process:
        sentinel, terminate, join = 0, lambda self: did.append("terminate"), lambda self: did.append("join")

        def start(self):
            signal.raise_signal(signal.SIGINT)
            did.append("start")

    context = types.SimpleNamespace(Process=lambda **what: Process(), set_forkserver_preload=lambda modules: None)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        run_all([Job(["python", "train.py"])], cores=1, on_cpu=True)
    assert did == ["start", "terminate", "join"]


@pytest.mark.slow
def test_an_interrupted_study_ends_at_the_weights_of_its_commands(tmp_path, monkeypatch, capsys):
    """The whole study on the toy data, at a size that says nothing, Ctrl-C half-way; then its trainings by hand."""
    run, size = tmp_path / "study", "--members 8 --steps 4 --snapshots 2".split()
    command = [sys.executable, ROOT / "reproduce.py", *size, "--n", "8", "--attack", "pia", "--run", run]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "TORCH_HOME": str(tmp_path)}

    def start(**rest):
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **rest)

    process = start(stderr=subprocess.PIPE, start_new_session=True)  # as in a terminal, Ctrl-C reaches the whole group
    while not (run / "seed-0" / "B.pt").exists():
        time.sleep(0.1)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and not (run / "table.md").exists() and "Traceback" not in errors
    before = {path: path.stat().st_mtime_ns for path in (run / "seed-0").glob("*.pt")}
    assert 1 <= len(before) < 5
    out, _ = start().communicate(timeout=600)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "what is there is left alone"
    assert out.count("# done already") == len(before)
    # a first result, without or with the reference model; copies, and the table
    assert out.count("| undefended  ") in (1 + 1 + 2, 2 + 1 + 2)
    drawn = {"roc.png", "steps.png", "t.png", "samples.png", "memorization.png"}
    assert {path.name for path in run.glob("*.png")} == drawn
    for table in ("memorization.md", "table.md"):
        assert (run / table).read_text().partition("\n<!--")[0] in out
    assert f"FID is left out: there is no {tmp_path}/hub/checkpoints/inception_v3_google-0cc3c7bd.pth" in out
    assert re.search(r"\n +\d+:\d\d to +\d+:\d\d  evaluate.py --attack pia --run .*/study/seed-0\n$", out)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "toy", functools.cache(data.toy))
    hand = ["--dataset", "toy", "--device", "cpu", "--run", "hand"]
    for which in ("--split A", "--split B", "--split all", "--distill cross"):
        rest = [] if "distill" in which else size[:4]
        monkeypatch.setattr(sys, "argv", ["train.py", *which.split(), *rest, *hand])
        train.main()
        name = f"{which.split()[1]}.pt" if "split" in which else "distill-cross.pt"
        assert same(checkpoint.load(tmp_path / "hand" / name).weights, checkpoint.load(run / "seed-0" / name).weights)
    longer = subprocess.run([*command, "--steps", "5"], capture_output=True, text=True)
    assert longer.returncode == 2 and "seed-0/A.pt was trained with steps = 4, not 5" in longer.stderr
