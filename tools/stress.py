"""Kill a training 20 times, and other commands, fill a disk, read 2,000 damaged files and some very large images.

    python -m tools.stress > results/stress.json

This takes about 20 minutes. The report is JSON; the exit status is 1 if anything in it is wrong.
tests/test_robustness.py does the same with smaller numbers.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from unittest.mock import patch

import torch
import torch._dynamo  # which Adam imports: once, before the forks
from tqdm import tqdm

import data
import evaluate
import sample
import train
from lab import checkpoint, cli
from lab.datasets import SOURCES
from tests.conftest import ROOT, png, same, tree
from tests.samples import CASES, write_samples
from tools import forked
from unet import UNetConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: %(default)s)")
    parser.add_argument("--mutations", type=int, default=2000, help="number of damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "kills": kill(Path(folder) / "kills", args.kills, seconds=60, seed=args.seed),
            "kills elsewhere": kill_elsewhere(Path(folder) / "elsewhere", args.kills, args.seed),
            "full disk": fill_disk(Path(folder) / "disk"),
            "mutations": damage(Path(folder) / "mutations", args.mutations, args.seed),
            "large images": read_large_images(Path(folder) / "large"),
        }
    print(json.dumps(found, indent=1))
    sys.exit(any(part["wrong"] for part in found.values()))


# --- kills and a full disk ---------------------------------------------------------------------------

TRAINING = ["env", "OMP_NUM_THREADS=1", sys.executable, f"{ROOT}/train.py", "--split=A", "--dataset=toy", "--size=8"]
TRAINING += ["--members=64", "--snapshots=3"]


def differences(error: bytes, run: Path, undisturbed: Path) -> list[str]:
    """How a run differs from the undisturbed one; `error` is what its last command printed."""
    if not (run / "A.pt").exists():
        return [f"it does not continue: {error.decode()[-300:]}"]
    if tree(run) != tree(undisturbed):
        return [f"other files: {set(tree(run)) ^ set(tree(undisturbed))}"]
    pairs = [(path, undisturbed / path.relative_to(run)) for path in run.rglob("*.pt")]
    return [f"other weights: {a}" for a, b in pairs if not same(checkpoint.load(a).weights, checkpoint.load(b).weights)]


def kill(folder: Path, kills: int, seconds: float, seed: int = 0) -> dict:
    """Train for about so many seconds, and again with kills at random moments: are the weights the same?"""
    run, undisturbed, chance = folder / "killed", folder / "undisturbed", random.Random(seed)
    command = [*TRAINING, f"--steps={seconds * 40:.0f}", f"--save-every={min(1, seconds / 20)}", "--run"]
    began = time.monotonic()
    subprocess.run([*command, undisturbed], capture_output=True, check=True)
    found = {"undisturbed_s": round(time.monotonic() - began, 1), "kills": 0, "at_step": [], "within_a_save": 0}

    def is_saving() -> bool:
        return any(name.endswith(".tmp") for name in tree(run))

    for i in tqdm(range(kills), desc="kills"):
        moment = chance.random()
        process = subprocess.Popen([*command, run], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        if i % 4 == 3:  # while it starts
            time.sleep(4 * moment)
        else:  # after it has trained a little
            while (text := os.read(process.stderr.fileno(), 1000)) and b"loss=" not in text:
                pass
            time.sleep(1.2 * seconds / max(kills, 10) * moment)
            while i % 4 == 1 and process.poll() is None and not is_saving():
                pass
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            return found | {"wrong": [f"exit status {process.returncode} before kill {i + 1}"]}
        found["kills"] += 1
        found["within_a_save"] += is_saving()
        kept = run / "A.unfinished"
        found["at_step"].append(torch.load(kept, weights_only=True)["state"]["step"] if kept.exists() else None)
    last = subprocess.run([*command, run], capture_output=True)
    return found | {"wrong": differences(last.stderr, run, undisturbed)}


ELSEWHERE = {  # a file that the command leaves, and the command
    "out/samples.png": "sample.py --model A --n 60 --eta 1 --batch 4 --out out/samples.png",
    "out/table.md": "evaluate.py --attack pia secmi loss --batch 4 --out out",
    "out/memorization.md": "evaluate.py --memorization --n 100 --batch 10 --out out",
}


def kill_elsewhere(folder: Path, kills: int, seed: int = 0) -> dict:
    """Kill what is no training at random moments, by SIGKILL, SIGTERM and SIGINT: does it end at the same result?"""
    chance, wrong = random.Random(seed), []
    subprocess.run([*TRAINING, "--steps=20", "--run", folder / "run"], capture_output=True, check=True)
    for leaves, words in ELSEWHERE.items():
        script, *flags = words.split()
        command = ["env", "OMP_NUM_THREADS=1", sys.executable, f"{ROOT}/{script}", "--dataset=toy", "--run=run", *flags]
        began, how = time.monotonic(), {"cwd": folder, "capture_output": True}
        subprocess.run(command, **how, check=True)
        took, expected = time.monotonic() - began, (folder / leaves).read_bytes()
        for part in ("run/scores", "run/generated", "out"):
            shutil.rmtree(folder / part, ignore_errors=True)
        for i in range(kills // 2):
            number = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT][i % 3]
            with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                time.sleep(2 + chance.random() * took / 4)
                process.send_signal(number)
        done = subprocess.run(command, **how)
        if done.returncode or (folder / leaves).read_bytes() != expected:
            wrong.append(f"{leaves}: {done.stderr.decode()[-300:]}")
    return {"kills": 3 * (kills // 2), "wrong": wrong}


def fill_disk(folder: Path) -> dict:
    """Train on a disk of 12 MiB, which has room for one unfinished training (7 MB) and not for two."""
    command = [*TRAINING, "--steps=12", "--save-every=0", "--run"]
    subprocess.run([*command, folder / "undisturbed"], capture_output=True, check=True)
    script = """
        mkdir disk && mount -t tmpfs -o size=12m none disk || exit
        "$@" disk/run 2> error; echo $? > status; cp -r disk/run full
        mount -o remount,size=200m disk
        "$@" disk/run; cp -r disk/run end
    """
    namespace = ["env", "unshare", "--mount", *["--map-root-user"] * (os.geteuid() != 0)]
    done = subprocess.run([*namespace, "sh", "-c", script, "sh", *command], cwd=folder, capture_output=True)
    if not (folder / "status").exists():
        return {"skipped": f"no disk could be mounted: {done.stderr.decode().strip()}", "wrong": []}
    said, status = lines_of(folder / "error")[-1], int((folder / "status").read_text())
    wrong = differences(done.stderr, folder / "end", folder / "undisturbed")
    expected = "train.py: cannot write disk/run/A.unfinished: No space left on device .*"
    if status != 2 or not re.fullmatch(expected, said):
        wrong.append("not one clear line and exit status 2")
    if tree(folder / "full") != ["A.unfinished"]:
        wrong.append(f"on the full disk: {tree(folder / 'full')}")
    return {"said": said, "status": status, "wrong": wrong}


def lines_of(path: Path) -> list[str]:
    """What a command printed, without its progress bars."""
    text = re.sub(r"[^\n]*\r", "", path.read_bytes().decode(errors="replace"))
    return [line for line in text.splitlines() if line.strip() and "step/s]" not in line]


# --- damaged files and large images ------------------------------------------------------------------

SCRIPTS = {"train.py": train.main, "sample.py": sample.main, "evaluate.py": evaluate.main}
SMALL = UNetConfig(ch=32, mult=(1, 1), attn=(), blocks=1, dropout=0.0, groups=32)  # pytorch-ddpm has 32 groups


def damage(folder: Path, mutations: int, seed: int = 0) -> dict:
    """Damage files at random and read them: each is taken, or refused in one line with exit status 2."""
    sound, damaged, wrong = folder / "sound", folder / "damaged", []
    write_samples(sound)
    unfinished = CASES["unfinished training"][1]
    for command in (unfinished.replace("--split B", "--split A --export model.pt"), CASES["kept scores"][1]):
        assert (said := outcome(command, sound, sound))["status"] == 0, said
    weights = torch.load(sound / "model.pt", weights_only=True)["ema_model"]
    odd = {f"_orig_mod.module.{name}": torch.nn.Parameter(weight.bfloat16()) for name, weight in weights.items()}
    torch.save({"ema_model": odd}, sound / "odd.pt")
    with patch.object(train, "training_loss", lambda *_: sys.exit(0)):  # stops in its only step
        outcome(unfinished, sound, sound)
    found = {name: {"taken": 0, "refused": 0} for name in CASES}
    for i in tqdm(range(-len(CASES), mutations), desc="mutations"):  # first, each file as it is
        name, chance = list(CASES)[i % len(CASES)], random.Random(f"{seed}/{i}")
        pattern, command = CASES[name]
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(sound, damaged, symlinks=True)
        if i >= 0:
            mutate(chance.choice(sorted(damaged.glob(pattern))), chance)
        said = outcome(command, damaged, official=sound)
        if i < 0:
            assert said["status"] == 0, f"{name}, undamaged: {said}"
        else:
            found[name]["taken" if said["status"] == 0 else "refused"] += 1
        if said["wrong"]:
            wrong.append({"mutation": i, "of": name} | said)
    return found | {"wrong": wrong}


def read_large_images(folder: Path) -> dict:
    """Read a folder of images that are as large as Pillow allows."""
    (folder / "images").mkdir(parents=True)
    side = 9400
    black = zlib.compress(bytes(side * (1 + 3 * side)))
    for i in range(6):
        (folder / "images" / f"{i}.png").write_bytes(png(side, side, black))
    # train.py stops after it has read them all, because there are not enough for this many members
    command, limit = CASES["folder of images"][1].replace("--members 4", "--members 64"), 1 + os.cpu_count()
    said = outcome(command, folder, folder, seconds=60, gigabytes=limit)  # each core reads an image, which takes 1 GB
    if not said["said"].startswith("train.py: --members 64: must be even"):
        said["wrong"].append(said["said"])
    return {"seconds": said["seconds"], "memory_gb": round(said["bytes"] / 1e9, 2), "wrong": said["wrong"]}


def mutate(path: Path, chance: random.Random) -> None:
    """Damage a file; half of the zip files below their checksums, so that these are right again."""
    content, deep = path.read_bytes(), chance.random() < 0.5
    if deep and content.startswith(b"PK"):
        with zipfile.ZipFile(path) as file:
            records = {record: file.read(record) for record in file.namelist()}
        pickles = [record for record in records if record.endswith(".pkl")]
        victim = chance.choice(pickles if pickles and chance.random() < 0.5 else list(records))
        records[victim] = damaged(records[victim], chance)
        with zipfile.ZipFile(path, "w") as file:
            for record, its in records.items():
                file.writestr(record, its)
    else:
        path.write_bytes(damaged(content, chance))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Overwrite, cut, double or move some of these bytes, in one place or in several."""
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 1, 8])):
        length = chance.choice([1, 1, 4, 64, len(content)])
        one, two = (slice(at, at + length) for at in chance.choices(range(len(content) + 1), k=2))
        noise = chance.randbytes(len(content[one]))
        content[one] = chance.choice([noise, noise, b"", 2 * content[one], content[two]])
    return bytes(content)


def outcome(command: str, folder: Path, official: Path, seconds: int = 10, gigabytes: int = 2) -> dict:
    """Run a command inside `folder`, in a fork of this process; what it said, took and left behind.

    The archives in `official` count as the published ones: their MD5 is the expected one.
    """

    def run_here() -> None:
        tqdm._instances.clear()  # the bars of the parent process, which would move this one's
        data.TOY_IMAGES, train.PRESETS["tiny"]["unet"] = 20, SMALL
        for sources in SOURCES.values():
            for i, source in enumerate(sources):
                for path in official.glob(f"*/{source.archive}"):
                    md5, n = hashlib.md5(path.read_bytes()).hexdigest(), 8 if "tiny" in path.name else 20
                    sources[i] = dataclasses.replace(source, md5=md5, count=n)
        sys.argv = command.split()
        cli.run(SCRIPTS[sys.argv[0]], under_torchrun=True)

    def contents() -> dict[Path, bytes]:
        return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}

    output, before, began = folder.with_suffix(".said"), contents(), time.monotonic()
    status, memory = forked(run_here, folder, seconds + 1, output)
    took, lines = time.monotonic() - began, lines_of(output)
    clear = len(lines) == 1 and lines[0].startswith(f"{command.split()[0]}: ") and len(lines[0]) <= 600
    wrong = {
        f"exit status {status}": status not in (0, 2),
        "not one clear line": status == 2 and not clear,
        "changed files": status == 2 and contents() != before,
        "too slow, or too large": took > seconds or memory > gigabytes * 2**30,
    }
    said = "\n".join(lines)[-1500:] if status else ""
    found = {"status": status, "seconds": round(took, 2), "bytes": memory, "said": said}
    return found | {"wrong": [what for what, it_is in wrong.items() if it_is]}


if __name__ == "__main__":
    main()
