"""The documents: every command in them runs, the code that they quote is in the code, every link leads somewhere."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types

import numpy as np
import pytest
from conftest import ROOT, few_steps
from PIL import Image

import data
import fid
import metrics
import reproduce
import train
from tools import bench, growth
from unet import UNetConfig

DOCUMENTS = ["README.md", "docs/manual.md", "docs/cost.md", "docs/contributing.md", "course/EXERCISES.md"]
DOCUMENTS += ["course/TEACHING.md", "results/README.md"]
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

NOT_RUN_HERE = [  # .ci/run runs most of them
    "git clone",
    "cd",
    "python -m venv",
    ".",
    "pip install",
    "python -m pytest",
    "ruff check",
    "ruff format",
    "wait",
    "jupyter execute",
]
RUN_BY = {"tools.stress": "test_robustness.py", "tools.mutate": "test_mutate.py"}


class Begun(Exception):
    """A study or a benchmark has parsed its flags. Other tests check what it does then."""


def drawn_cifar(folder):
    """CIFAR-10's five files, with 20 drawn images each."""
    folder.mkdir(parents=True)
    records = np.zeros((100, 3073), dtype=np.uint8)
    records[:, 1:] = data.toy(32, 0, n=100).flatten(1)
    for i, part in enumerate(np.split(records, 5), 1):
        (folder / f"data_batch_{i}.bin").write_bytes(part.tobytes())


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A directory with everything that the documents mention, but small."""
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
        few_steps(patch)
        patch.setattr(data, "TOY_IMAGES", 60)
        for preset, ch, groups in (("tiny", 8, 4), ("cifar10", 32, 32)):
            small = UNetConfig(ch=ch, mult=(1, 1), attn=(), blocks=1, dropout=0.0, groups=groups)
            patch.setitem(train.PRESETS, preset, train.PRESETS[preset] | {"unet": small})
        inception = types.SimpleNamespace(weights="eyes 01234567", sha256="01234567", classifies=False)
        inception.classify = lambda features: features
        patch.setattr(fid, "load", lambda *args: inception)
        patch.setattr(fid, "features", lambda network, images: images[:, :, ::4, ::4].flatten(1).float())
        for module, name in ((reproduce, "run_all"), (bench, "measure"), (growth, "points")):

            def begun(*args, **rest):
                raise Begun

            patch.setattr(module, name, begun)
        for run, dataset in (("runs/cifar10", "cifar10"), ("runs/toy/seed-0", "toy"), ("course/models", "toy")):
            for which in ("--split A", "--split B", "--split all", "--split reference", "--distill cross"):
                call(patch, ["train.py", *which.split(), "--dataset", dataset, "--run", run])
        os.makedirs("runs/other"), os.makedirs("submissions")
        shutil.copy(ROOT / "dualmd.py", "submissions/smith_dualmd.py")
        shutil.copy("runs/cifar10/reference.pt", "runs/other")
        call(
            patch, ["train.py", "--split", "all", "--preset", "cifar10", "--run", "x", "--export", "ckpt-step800000.pt"]
        )
        yield patch


def module_of(words):
    """What `python WORDS` runs, imported; and the words after it."""
    if words[0] == "-m":
        name = words[1] + (".__main__" if words[1] == "course" else "")
        return importlib.import_module(name), words[2:]
    assert words[0].endswith(".py")
    return importlib.import_module(words[0].removesuffix(".py")), words[1:]


def call(patch, words):
    """Run a script as `python WORDS` would, in this process, and as small as its flags allow."""
    module, flags = module_of(words)
    smaller = {
        "train": ["--steps", "2", *([] if "--distill" in flags else ["--members", "8"])],
        "evaluate": ["--members", "8", "--grid", "200"] if "--checkpoint" in flags else ["--n", "4", "--grid", "200"],
        "sample": ["--n", "2"],
        "reproduce": ["--members", "8", "--steps", "8" if "frontier" in flags else "2"],
    }
    device = [] if module.__name__.startswith("course") else ["--device", "cpu"]
    patch.setattr(sys, "argv", [module.__file__, *flags, *smaller.get(module.__name__, []), *device])
    module.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS[:-1])
def test_commands(name, scene, capsys):
    for words in commands(name):
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "torchrun":
            words = ["python", *words[words.index("--") + 1 :]]
        if any(words[: len(known.split())] == known.split() for known in NOT_RUN_HERE):
            continue
        python, *words = words
        assert python == "python", f"who runs {shlex.join([python, *words])}?"
        script = words[1] if words[0] == "-m" else words[0]
        if script in RUN_BY:
            assert re.search(rf"\b{script[6:]}\.\w+\(", (ROOT / "tests" / RUN_BY[script]).read_text())
            continue
        print(shlex.join(words))
        try:
            call(scene, words)
        except Begun:
            assert script in ("reproduce.py", "tools.bench", "tools.growth")
        except SystemExit as end:
            assert script == "course" and words[2] == "grade" and end.code == 1, "an exercise that nobody has solved"


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py", "reproduce.py", "-m course"])
def test_help_teaches(script, monkeypatch, capsys):
    """Its purpose, an example, flags in groups, and the default of each flag that has a default value."""
    module, _ = module_of(script.split())
    monkeypatch.setattr(sys, "argv", [module.__file__, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    said = capsys.readouterr().out
    assert end.value.code == 0 and module.__doc__.strip() in said and f"    python {script}" in said
    if script == "-m course":
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


# --- a new attack, and a new dataset, as docs/contributing.md has them ---


@pytest.mark.slow
def test_a_new_attack_and_a_new_dataset_are_a_few_lines(tmp_path):
    attack, holds, dataset = blocks("docs/contributing.md", "python")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "lab", tmp_path / "lab")
    source = (tmp_path / "attacks.py").read_text()
    (tmp_path / "attacks.py").write_text(f"{source}\n\n{attack}\n\n{holds}")
    source, before, after = (tmp_path / "lab" / "datasets.py").read_text().partition("\nDATASETS = ")
    (tmp_path / "lab" / "datasets.py").write_text(f"{source}\n\n{dataset}{before}{after}")
    (tmp_path / "data" / "stl10_binary").mkdir(parents=True)
    drawn = data.toy(96, 0, n=40)
    (tmp_path / "data" / "stl10_binary" / "train_X.bin").write_bytes(
        drawn.transpose(2, 3).contiguous().numpy().tobytes()
    )
    for command in (
        "train.py --split all --preset tiny --members 8 --steps 2",
        "train.py --split reference --preset tiny --members 8 --steps 2",
        "evaluate.py --attack recon --print-only",
    ):
        words = [sys.executable, *command.split(), "--dataset", "stl10-labelled", "--device", "cpu"]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert re.search(r"^\| undefended +\| [\d.]+ +\| recon-ref +\| predictions ", result.stdout, re.MULTILINE)


# --- what they say ---


def test_code_is_quoted_as_it_stands():
    files = [*ROOT.glob("*.py"), *ROOT.glob("lab/*.py")]
    lines = {line.strip() for path in files for line in path.read_text().splitlines()}
    quoted = [line.strip() for block in blocks("README.md", "python") for line in block.splitlines()]
    assert len(quoted) > 20 and not [line for line in quoted if line and line not in lines]


def test_numbers_are_those_of_the_results():
    """Each row with numbers in README's tables is in a table in results/, which may have more columns."""

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
    (layout,) = (block for block in blocks("README.md", "text") if "dualmd.py" in block)
    named = re.findall(r"^  (\w+(?:\.py|/))", layout, re.MULTILINE)
    ignored = (ROOT / ".gitignore").read_text().replace("/", "").split()
    folders = [path for path in ROOT.glob("[!.]*/") if path.is_dir() and path.name not in ignored]
    assert sorted(named) == sorted([path.name for path in ROOT.glob("*.py")] + [f"{path.name}/" for path in folders])


def test_who_is_cited():
    """The code's version, the paper's authors, title and number are the same in all files that give them."""
    cff, bibtex = (ROOT / "CITATION.cff").read_text(), TEXT["README.md"].partition("```bibtex")[2]
    assert f"version: {tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}\n" in cff
    authors = re.findall(r"given-names: (.+)\n +family-names: (.+)", cff)
    assert len(authors) == 4 and " and ".join(f"{family}, {given}" for given, family in authors) in bibtex
    title, number = re.search(r"title += {(.+?)}", bibtex, re.DOTALL)[1], re.search(r"eprint += {(.+)}", bibtex)[1]
    assert " ".join(title.split()) in " ".join(cff.split()) and f"arxiv.org/abs/{number}" in cff
