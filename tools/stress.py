"""The long tests, which pytest does not collect: a training that is killed 20 times, 2,000 damaged files, a full disk.

    python tests/stress.py > stress.json

About 6 minutes. It says what it saw, and exits with 1 where anything was not as it should be.
tests/test_robustness.py does the same with fewer of each.
"""

import argparse
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import data
import evaluate
import sample
import train
from lab import checkpoint, cli
from tests.conftest import ROOT, pickled_by_python_2, png, same, tree
from unet import UNetConfig

SCRIPTS = {"train.py": train.main, "sample.py": sample.main, "evaluate.py": evaluate.main}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--mutations", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "kills": kill(Path(folder) / "kills", args.kills, seconds=60, seed=args.seed),
            "full disk": fill_disk(Path(folder) / "disk"),
            "mutations": damage(Path(folder) / "mutations", args.mutations, args.seed),
            "large images": crowd(Path(folder) / "large"),
        }
    print(json.dumps(found, indent=1))
    sys.exit(any(part["wrong"] for part in found.values()))


# --- killed ---------------------------------------------------------------------------------------

TRAINING = "--split A --dataset toy --size 8 --members 64 --snapshots 3".split()


def start(run: Path, *flags: object) -> subprocess.Popen:
    """train.py on the toy data, in a process of its own."""
    command = [sys.executable, ROOT / "train.py", *TRAINING, "--run", run, *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def kill(folder: Path, kills: int, seconds: float, seed: int = 0) -> dict:
    """Train undisturbed, for about so many seconds, and again, killed at random moments: are the weights the same?"""
    epochs = round(seconds * 20)
    flags = "--epochs", epochs, "--save-every", min(1, seconds / 20)
    began = time.monotonic()
    undisturbed = start(folder / "undisturbed", *flags)
    _, error = undisturbed.communicate()
    assert undisturbed.returncode == 0, error.decode()
    found = {
        "undisturbed_s": round(time.monotonic() - began, 1),
        "kills": 0,
        "at_step": [],
        "within_a_save": 0,
        "wrong": [],
    }
    moments, run = random.Random(seed), folder / "killed"
    for i in tqdm(range(kills), desc="kills"):
        process, moment = start(run, *flags), moments.random()
        if i % 4 == 3:  # while it starts
            time.sleep(4 * moment)
        else:
            while (text := os.read(process.stderr.fileno(), 1000)) and b"loss=" not in text:  # it has trained a little
                pass
            time.sleep(1.2 * seconds / max(kills, 10) * moment)
            while i % 4 == 1 and process.poll() is None and not any(name.endswith(".tmp") for name in tree(run)):
                pass  # while it saves
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            found["wrong"].append(f"it was over before kill {found['kills'] + 1}: exit status {process.returncode}")
            break
        found["kills"] += 1
        found["within_a_save"] += any(name.endswith(".tmp") for name in tree(run))
        kept = run / "A.unfinished"
        found["at_step"].append(torch.load(kept, weights_only=True)["step"] if kept.exists() else None)
    last = start(run, *flags)
    _, error = last.communicate()
    if last.returncode != 0:
        found["wrong"].append(f"the last start: {error.decode()[-300:]}")
        return found
    if tree(run) != tree(folder / "undisturbed"):
        found["wrong"].append(f"left over: {set(tree(run)) ^ set(tree(folder / 'undisturbed'))}")
    for path in (folder / "undisturbed").rglob("*.pt"):
        one, other = (checkpoint.load(each) for each in (path, run / path.relative_to(folder / "undisturbed")))
        if not same(one.weights, other.weights):
            found["wrong"].append(f"{path.name} of {path.parent.name} has other weights")
    return found


# --- a full disk ----------------------------------------------------------------------------------


def fill_disk(folder: Path) -> dict:
    """Train onto a disk of 20 MiB, on which there is room for one unfinished training (12 MB) and not for two."""
    flags = "--epochs 6 --save-every 0".split()
    straight = start(folder / "straight", *flags)
    straight.communicate()
    disk = folder / "disk"
    disk.mkdir()
    train_it = f'"$PYTHON" "{ROOT}/train.py" {" ".join([*TRAINING, *flags])} --run "{disk}/run"'
    script = f"""
        mount -t tmpfs -o size=20m none "{disk}" || exit 77
        {train_it} 2> "{folder}/error"; echo $? > "{folder}/status"; cp -r "{disk}/run" "{folder}/full"
        mount -o remount,size=200m "{disk}"
        {train_it} && cp -r "{disk}/run" "{folder}/end"
    """
    namespace = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    try:
        done = subprocess.run([*namespace, "sh", "-c", script], env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        return {"skipped": "there is no unshare on this machine", "wrong": []}
    if not (folder / "status").exists():
        return {"skipped": f"no disk could be mounted: {done.stderr.strip()}", "wrong": []}
    said = re.sub(r"[^\n]*\r", "", (folder / "error").read_bytes().decode()).strip().splitlines()[-1]
    found = {"said": said.replace(str(folder), "..."), "status": int((folder / "status").read_text()), "wrong": []}
    if found["status"] != 2 or not re.fullmatch(
        "train.py: cannot write .*/A.unfinished: No space left on device .*", said
    ):
        found["wrong"].append("that is not one clear line and exit status 2")
    if tree(folder / "full") != ["A.unfinished"]:
        found["wrong"].append(f"on the full disk there are {tree(folder / 'full')}")
    if done.returncode != 0 or tree(folder / "end") != tree(folder / "straight"):
        found["wrong"].append(f"it did not go on once there was room: {done.stderr[-300:]}")
        return found
    one, other = (checkpoint.load(folder / which / "A.pt").weights for which in ("straight", "end"))
    if not same(one, other):
        found["wrong"].append("it went on to other weights")
    return found


# --- damaged files --------------------------------------------------------------------------------

SMALL = UNetConfig(ch=8, mult=(1, 1), attn=(), blocks=1, dropout=0.0, groups=4)
FIELDS = UNetConfig(ch=32, mult=(1, 1), attn=(), blocks=1, dropout=0.0, groups=32)  # pytorch-ddpm's GroupNorm
TOY = "--dataset toy --size 8 --device cpu"
TRAIN = "train.py --split A --members 4 --epochs 1 --size 8 --device cpu --run out"
# what is read: the files that are damaged, and the command that reads them
CASES = {
    "checkpoint": (
        "run/A.pt",
        "sample.py --dataset toy --device cpu --run run --model A --n 1 --stride 500 --out out.png",
    ),
    "unfinished training": ("run/B.unfinished", f"train.py {TOY} --split B --members 4 --epochs 1 --run run"),
    "checkpoint of pytorch-ddpm": (
        "model.pt",
        f"evaluate.py {TOY} --checkpoint model.pt --members 4 --attack loss --t 200 --grid 200 --out out --print-only",
    ),
    "CIFAR batch": ("binary/cifar-10-batches-bin/data_batch_3.bin", f"{TRAIN} --data-dir binary"),
    "CIFAR batch for Python": ("python/cifar-10-batches-py/data_batch_3", f"{TRAIN} --data-dir python"),
    "archive": ("tar/cifar-10-binary.tar.gz", f"{TRAIN} --data-dir tar"),
    "zip archive": ("zip/tiny-imagenet-200.zip", f"{TRAIN} --dataset tiny-imagenet --data-dir zip"),
    "split": ("split.npz", f"{TRAIN} --dataset toy --member-split split.npz"),
    "folder of images": ("images/*", f"{TRAIN} --dataset folder --data-dir images"),
    "kept scores": (
        "run/scores/A-loss.npz",
        f"evaluate.py {TOY.replace('--size 8', '')} --run run --attack loss --t 200 --grid 200 --print-only",
    ),
}


def damage(folder: Path, mutations: int, seed: int = 0) -> dict:
    """Damage files at random, and have them read: each is taken, or refused in one line with exit status 2."""
    draw, unet = data.toy, train.PRESETS["tiny"]["unet"]
    train.PRESETS["tiny"]["unet"] = SMALL
    data.toy = lambda size, seed: draw(size, seed, n=20)
    try:
        sound = prepare(folder / "sound")
        for name, (_, command) in CASES.items():
            said = outcome(command, sound, folder / name)
            assert said["status"] == 0, f"{name}, undamaged: {said}"
        found = {name: {"taken": 0, "refused": 0} for name in CASES}
        wrong, slowest, largest = [], 0.0, 0
        for i in tqdm(range(mutations), desc="mutations"):
            name = list(CASES)[i % len(CASES)]
            chance = random.Random(f"{seed}/{i}")
            said = outcome(CASES[name][1], sound, folder / "damaged", change=lambda where: mutate(where, name, chance))
            found[name]["taken" if said["status"] == 0 else "refused"] += 1
            slowest, largest = max(slowest, said["seconds"]), max(largest, said["bytes"])
            if said["wrong"]:
                wrong.append({"mutation": i, "of": name} | said)
    finally:
        data.toy = draw
        train.PRESETS["tiny"]["unet"] = unet
    found |= {"slowest_s": round(slowest, 2), "most_memory_gb": round(largest / 1e9, 2), "wrong": wrong}
    return found


def crowd(folder: Path) -> dict:
    """Have a folder read whose images are as large as Pillow lets them be."""
    (folder / "sound" / "images").mkdir(parents=True)
    side = 9400
    packer = zlib.compressobj(9)
    black = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    for i in range(6):
        (folder / "sound" / "images" / f"{i}.png").write_bytes(png(side, side, black))
    # more members than there are images is what ends it, once all have been read
    command = CASES["folder of images"][1].replace("--members 4", "--members 64")
    said = outcome(command, folder / "sound", folder / "read", limit=60)
    found = {"seconds": said["seconds"], "memory_gb": round(said["bytes"] / 1e9, 2), "wrong": said["wrong"]}
    if not said["said"].startswith("train.py: --members 64: must be even"):
        found["wrong"].append(said["said"])
    return found


def mutate(folder: Path, name: str, chance: random.Random) -> Path:
    """Damage one file of a case; in half of all cases below the checksums that it carries, which are made right."""
    path = chance.choice(sorted(folder.glob(CASES[name][0])))
    content, deep = path.read_bytes(), chance.random() < 0.5
    if deep and content.startswith(b"PK"):
        with zipfile.ZipFile(path) as file:
            records = {record: file.read(record) for record in file.namelist()}
        likely = [record for record in records if record.endswith(".pkl")] or list(records)
        victim = chance.choice(likely if chance.random() < 0.5 else list(records))
        records[victim] = damaged(records[victim], chance)
        with zipfile.ZipFile(path, "w") as file:
            for record, its in records.items():
                file.writestr(record, its)
    elif deep and path.suffix == ".gz":
        path.write_bytes(gzip.compress(damaged(gzip.decompress(content), chance)))
    else:
        path.write_bytes(damaged(content, chance))
    if deep:
        official(folder)
    return path


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Flip, cut, double or swap some of these bytes."""
    content = bytearray(content)
    if not content:
        return b"\x00"
    one, two = sorted(chance.randrange(len(content)) for _ in range(2))
    most = chance.choice([1, 4, 64, len(content)])
    length = chance.randint(1, min(most, len(content)))
    how = chance.choice(["flip", "flip", "cut", "cut off", "double", "swap"])
    if how == "flip":
        for _ in range(chance.choice([1, 1, 2, 8, 64])):
            content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    elif how == "cut":
        del content[one : one + length]
    elif how == "cut off":
        del content[one:]
    elif how == "double":
        content[two:two] = content[one : one + length]
    else:
        length = min(length, max(two - one, 1), len(content) - two)
        content[one : one + length], content[two : two + length] = (
            content[two : two + length],
            content[one : one + length],
        )
    return bytes(content)


def official(folder: Path) -> None:
    """Have the MD5 of archives that there are taken for the published one."""
    for sources in data.SOURCES.values():
        for i, source in enumerate(sources):
            for path in folder.glob(f"*/{source.archive}"):
                sources[i] = dataclasses.replace(source, md5=hashlib.md5(path.read_bytes()).hexdigest())


def outcome(command: str, sound: Path, folder: Path, limit: float = 10, change=lambda folder: official(folder)) -> dict:
    """Run a command in a fork of this process, in a changed copy of `sound`; what it said, took and left behind."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    sources = {name: list(of) for name, of in data.SOURCES.items()}
    changed = change(folder)
    before, bytes_before = tree(folder), changed and changed.read_bytes()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        run_here(command, folder)
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    for name, of in sources.items():
        data.SOURCES[name][:] = of
    seconds, status = time.monotonic() - began, os.waitstatus_to_exitcode(status)
    text = (folder / ".said").read_bytes().decode(errors="replace")
    lines = [line for line in re.sub(r"[^\n]*\r", "", text).splitlines() if line.strip() and "img/s]" not in line]
    (folder / ".said").unlink()
    wrong = []
    if status not in (0, 2):
        wrong.append(f"exit status {status}")
    if status == 2 and (len(lines) != 1 or not lines[0].startswith(f"{command.split()[0]}: ") or len(lines[0]) > 600):
        wrong.append("not one clear line")
    if status == 2 and (tree(folder) != before or (changed and changed.read_bytes() != bytes_before)):
        wrong.append(f"written: {sorted(set(tree(folder)) ^ set(before))}")
    if seconds > limit or used.ru_maxrss * 1024 > 2 * 2**30:
        wrong.append("too slow, or too large")
    return {
        "status": status,
        "seconds": round(seconds, 2),
        "bytes": used.ru_maxrss * 1024,
        "said": "" if status == 0 else "\n".join(lines)[-1500:],
        "wrong": wrong,
    }


def run_here(command: str, folder: Path) -> None:
    """In a process that is there for nothing else: become that script, and end as it ends."""
    status = 1
    try:
        said = os.open(folder / ".said", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(said, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = io.TextIOWrapper(open(1, "wb", 0), write_through=True), open(2, "w", 1)
        os.chdir(folder)
        tqdm._instances.clear()  # or its bars would be below that of this process
        torch.set_num_threads(1)  # makes a new pool of threads, for that of this process has not come along
        sys.argv = command.split()
        cli.run(SCRIPTS[sys.argv[0]], several=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def prepare(folder: Path) -> Path:
    """A file of each kind that is read."""
    random_pixels = np.random.RandomState(0)
    folder.mkdir(parents=True)
    # a finished, an unfinished and a published model
    for command in (
        f"train.py {TOY} --split A --members 4 --epochs 1 --run run",
        CASES["kept scores"][1],
        f"train.py {TOY} --split B --members 4 --epochs 1 --run run",
    ):
        child = os.fork()
        if child == 0:
            if "--split B" in command:  # cut off before its only step
                train.training_loss = lambda *_: sys.exit(0)
            run_here(command, folder)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (folder / ".said").read_text()
    (folder / ".said").unlink()
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["A.pt", "B.unfinished", "scores"]
    a = checkpoint.load(folder / "run" / "A.pt")
    weights = dataclasses.replace(a, unet=FIELDS, weights=train.UNet(FIELDS).state_dict())
    checkpoint.publish(weights, folder / "model.pt").unlink()
    # CIFAR, in its three forms
    binary, python = folder / "binary" / "cifar-10-batches-bin", folder / "python" / "cifar-10-batches-py"
    binary.mkdir(parents=True)
    python.mkdir(parents=True)
    for i in range(1, 6):
        pixels = random_pixels.randint(0, 256, (4, 3072), dtype=np.uint8)
        records = np.concatenate([np.full((4, 1), i, np.uint8), pixels], axis=1)
        (binary / f"data_batch_{i}.bin").write_bytes(records.tobytes())
        (python / f"data_batch_{i}").write_bytes(pickled_by_python_2(pixels, batch_label="training batch 1 of 5"))
    (folder / "tar").mkdir()
    with tarfile.open(folder / "tar" / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(binary, binary.name)
    # folders of images, packed and not, with and without checksums of their own
    (folder / "zip").mkdir()
    with zipfile.ZipFile(folder / "zip" / "tiny-imagenet-200.zip", "w") as file:
        for i in range(8):
            file.writestr(f"tiny-imagenet-200/train/n{i}/images/n{i}_0.JPEG", picture(random_pixels, "JPEG"))
    (folder / "images").mkdir()
    for i, kind in enumerate(["PNG"] * 7 + ["BMP", "PPM", "TIFF", "WEBP", "JPEG"]):
        (folder / "images" / f"{i}.{kind.lower()}").write_bytes(picture(random_pixels, kind))
    np.savez(folder / "split.npz", mia_train_idxs=np.arange(8), mia_eval_idxs=np.arange(8, 16), ratio=0.5)
    return folder


def picture(pixels: np.random.RandomState, kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(content, format=kind)
    return content.getvalue()


if __name__ == "__main__":
    main()
