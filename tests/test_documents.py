"""README.md and its neighbours: every command in them runs, what they quote stands in the code, every link leads on."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import data
import fid
import metrics
import reproduce
import train
from tools import bench
from unet import UNetConfig

DOCUMENTS = ["README.md", "MANUAL.md", "EXERCISES.md", "CONTRIBUTING.md", "results/README.md"]
TEXT = {name: (ROOT / name).read_text() for name in DOCUMENTS}


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT[name], re.MULTILINE | re.DOTALL)


def commands(name):
    """The commands in a document, one by one, as words."""
    for block in blocks(name, "sh"):
        for line in re.sub(r"\s+#.*", "", block).splitlines():
            for command in re.split(r" && |; | & ", line):
                yield shlex.split(command)


# --- commands, at toy size, on models that are there ---

BY_CI = [
    "git clone",
    "cd",
    "python -m venv",
    ".",
    "pip install",
    "python -m pytest",
    "ruff check",
    "ruff format",
    "wait",
]
ELSEWHERE = {"stress": "test_robustness.py", "mutate": "test_mutate.py"}


class Begun(Exception):
    """A study, or a benchmark, has understood its flags; that it then does what it should is tested elsewhere."""


def drawn_cifar(folder):
    """CIFAR-10's five files, with 20 drawn images each."""
    folder.mkdir(parents=True)
    records = np.zeros((100, 3073), dtype=np.uint8)
    records[:, 1:] = data.toy(32, 0, n=100).flatten(1)
    for i, part in enumerate(np.split(records, 5), 1):
        (folder / f"data_batch_{i}.bin").write_bytes(part.tobytes())


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A directory in which all that the documents speak of is there, and small."""
    folder = tmp_path_factory.mktemp("scene") / "here"
    drawn_cifar(folder / "data" / "cifar-10-batches-bin")
    drawn_cifar(folder.parent / "shared" / "cifar10-sample" / "cifar-10-batches-bin")
    for name in ("photographs", "samples"):
        (folder / name).mkdir()
        for i, image in enumerate(data.toy(16, 1, n=40)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / f"{i}.png")
    np.savez(folder / "CIFAR10_train_ratio0.5.npz", mia_train_idxs=np.arange(50), mia_eval_idxs=np.arange(50, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(metrics, "RESAMPLES", 5)
        draw = data.toy
        patch.setattr(data, "toy", lambda size, seed, n=60: draw(size, seed, n))
        for preset, ch, groups in (("tiny", 8, 4), ("cifar10", 32, 32)):
            small = UNetConfig(ch=ch, mult=(1, 1), attn=(), blocks=1, dropout=0.0, groups=groups)
            patch.setitem(train.PRESETS, preset, train.PRESETS[preset] | {"unet": small})
        inception = types.SimpleNamespace(weights="eyes 01234567", sha256="01234567")
        patch.setattr(fid, "load", lambda *args: inception)
        patch.setattr(fid, "features", lambda network, images: images[:, :, ::4, ::4].flatten(1).float())
        for module, name in ((reproduce, "run_all"), (bench, "measure")):

            def begun(*args):
                raise Begun

            patch.setattr(module, name, begun)
        for run, dataset in (("runs/cifar10", "cifar10"), ("runs/toy/seed-0", "toy")):
            for which in ("--split A", "--split B", "--split all", "--split reference", "--distill cross"):
                call(patch, ["train.py", *which.split(), "--dataset", dataset, "--run", run])
        os.makedirs("runs/other")
        shutil.copy("runs/cifar10/reference.pt", "runs/other")
        call(
            patch, ["train.py", "--split", "all", "--preset", "cifar10", "--run", "x", "--export", "ckpt-step800000.pt"]
        )
        yield patch


def call(patch, words):
    """Run a script as `python` would, in this process, and as small as its flags allow."""
    script, *flags = words
    module = importlib.import_module(script.removesuffix(".py"))
    smaller = {
        "train.py": ["--epochs", "2", *([] if "--distill" in flags else ["--members", "8"])],
        "evaluate.py": ["--members", "8"] if "--checkpoint" in flags else ["--n", "4"],
        "sample.py": ["--n", "2"],
        "reproduce.py": ["--members", "8", "--epochs", "2"],
    }
    device = [] if script == "exercises.py" else ["--device", "cpu"]
    patch.setattr(sys, "argv", [script, *flags, *smaller.get(script, []), *device])
    module.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS[:-1])
def test_commands(name, scene, capsys):
    for words in commands(name):
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "torchrun":
            words = ["python", *words[words.index("--") + 1 :]]
        if any(words[: len(known.split())] == known.split() for known in BY_CI):
            continue
        assert words[0] == "python" and words[1].endswith(".py"), f"who runs {shlex.join(words)}?"
        if words[1].startswith("tests/"):
            assert "import " + words[1][6:-3] in (ROOT / "tests" / ELSEWHERE[words[1][6:-3]]).read_text()
            continue
        if ">" in words:
            words = words[: words.index(">")]
        print(shlex.join(words))
        try:
            call(scene, words[1:])
        except Begun:
            assert words[1] in ("reproduce.py", "bench.py")
        except SystemExit as end:
            assert words[1:3] == ["exercises.py", "grade"] and end.code == 1, "an exercise that nobody has solved yet"


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py", "reproduce.py", "exercises.py"])
def test_help_teaches(script, monkeypatch, capsys):
    """What it is for, an example, flags in groups, and the default of each that has a value to default to."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    module = importlib.import_module(script.removesuffix(".py"))
    with pytest.raises(SystemExit) as end:
        module.main()
    said = capsys.readouterr().out
    assert end.value.code == 0 and module.__doc__.strip() in said and f"    python {script}" in said
    if script == "exercises.py":
        return
    assert len(re.findall(r"^\w.*:$", said, re.MULTILINE)) >= 4, "groups"
    for flag, text in re.findall(r"^  (--[\w-]+) (.+?)(?=^  -|^\S|\Z)", said, re.MULTILINE | re.DOTALL):
        named_by_user = flag in ("--export", "--checkpoint", "--split", "--distill")
        turned_on = re.match(r" +\w", text)  # without a value
        assert "default" in text or named_by_user or turned_on, flag


def test_what_ci_runs():
    its = (ROOT / ".ci" / "run").read_text()
    for command in (
        "-m venv",
        "pip install -q -r requirements.txt",
        "python -m pytest",
        "ruff check",
        "ruff format --check",
    ):
        assert command in its


# --- a new attack, and a new dataset, as CONTRIBUTING.md has them ---


@pytest.mark.slow
def test_a_new_attack_and_a_new_dataset_are_a_few_lines(tmp_path):
    attack, holds, dataset = blocks("CONTRIBUTING.md", "python")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    source = (tmp_path / "attacks.py").read_text()
    (tmp_path / "attacks.py").write_text(f"{source}\n\n{attack}\n\n{holds}")
    source, before, after = (tmp_path / "data.py").read_text().partition("\nDATASETS = ")
    (tmp_path / "data.py").write_text(f"{source}\n\n{dataset}{before}{after}")
    (tmp_path / "data" / "stl10_binary").mkdir(parents=True)
    drawn = data.toy(96, 0, n=40)
    (tmp_path / "data" / "stl10_binary" / "train_X.bin").write_bytes(
        drawn.transpose(2, 3).contiguous().numpy().tobytes()
    )
    for command in (
        "train.py --split all --preset tiny --members 8 --epochs 2",
        "train.py --split reference --preset tiny --members 8 --epochs 2",
        "evaluate.py --attack recon --print-only",
    ):
        words = [sys.executable, *command.split(), "--dataset", "stl10-labelled", "--device", "cpu"]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert re.search(r"^\| undefended +\| [\d.]+ +\| recon-ref +\| predictions ", result.stdout, re.MULTILINE)


# --- what they say ---


def test_code_is_quoted_as_it_stands():
    lines = {line.strip() for path in ROOT.glob("*.py") for line in path.read_text().splitlines()}
    quoted = [line.strip() for block in blocks("README.md", "python") for line in block.splitlines()]
    assert len(quoted) > 20 and not [line for line in quoted if line and line not in lines]


def test_numbers_are_those_of_the_results():
    """Every row of README's tables of numbers is in a table in results/, which may have columns in between."""

    def rows(text):
        return [line.strip("| ").split("|") for line in text.splitlines() if re.match(r"\| [^`]*\d\.\d", line)]

    found = [[cell.strip() for cell in row] for path in ROOT.glob("results/*/*.md") for row in rows(path.read_text())]
    ours = [[cell.strip() for cell in row] for row in rows(TEXT["README.md"])]
    assert len(ours) > 25
    for row in ours:
        assert any(all(cell in rest for cell in row) for rest in map(iter, found)), row


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_on(name):
    def anchors(text):
        titles = re.findall(
            r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
        )
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def test_files_are_where_readme_says():
    named = set(re.findall(r"`(\w+\.py)`", TEXT["README.md"].partition("## Where things are")[2]))
    assert named == {path.name for path in ROOT.glob("*.py")}
