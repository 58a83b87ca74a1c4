"""A sound file of each kind that is read, and the command that reads it. tools/stress.py damages the files.

`write_samples` makes those of datasets and splits. The models and scores in CASES come from trainings.
"""

import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import pickled_by_python_2

TRAIN = "train.py --device cpu --members 4 --steps 1"
READ = f"{TRAIN} --split A --size 8 --run out --data-dir"
EVALUATE = "evaluate.py --device cpu --attack loss --t 200 --grid 200 --print-only"
CASES = {  # the files to damage, and the command that reads them
    "checkpoint": ("run/A.pt", "sample.py --device cpu --run run --model A --n 1 --stride 500 --out out.png"),
    "unfinished training": ("run/B.unfinished", f"{TRAIN} --split B --dataset toy --size 8 --run run"),
    "checkpoint of pytorch-ddpm": ("model.pt", f"{EVALUATE} --dataset toy --size 8 --members 4 --checkpoint model.pt"),
    "checkpoint in another form": ("odd.pt", f"{EVALUATE} --dataset toy --size 8 --members 4 --checkpoint odd.pt"),
    "CIFAR batch": ("binary/cifar-10-batches-bin/data_batch_3.bin", f"{READ} binary"),
    "CIFAR batch for Python": ("python/cifar-10-batches-py/data_batch_[34]", f"{READ} python"),
    "archive": ("tar/cifar-10-binary.tar.gz", f"{READ} tar"),
    "zip archive": ("zip/tiny-imagenet-200.zip", f"{READ} zip --dataset tiny-imagenet"),
    "split": ("split.npz", f"{READ} none --dataset toy --member-split split.npz"),
    "folder of images": ("images/[0-9]*.*", f"{READ} images --dataset folder"),
    "kept scores": ("run/scores/*.npz", f"{EVALUATE} --dataset toy --run run"),
}


def write_samples(folder: Path) -> None:
    """Write into `folder`: CIFAR-10 in its three forms, images packed and not, a split of 20 images."""
    binary, python = folder / "binary" / "cifar-10-batches-bin", folder / "python" / "cifar-10-batches-py"
    for path in (binary, python, folder / "tar", folder / "zip", folder / "images"):
        path.mkdir(parents=True)
    random = np.random.RandomState(0)
    for i in range(1, 6):
        records = random.randint(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = i  # the labels
        (binary / f"data_batch_{i}.bin").write_bytes(records.tobytes())
        pickled = pickled_by_python_2(records[:, 1:], batch_label="training batch 1 of 5")
        again = pickle.dumps({b"data": records[:, 1:], b"labels": [i] * 4}, protocol=i)  # by another numpy
        (python / f"data_batch_{i}").write_bytes(pickled if i % 2 else again)
    with tarfile.open(folder / "tar" / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(binary, binary.name)
    for i, kind in enumerate(["png"] * 7 + ["bmp", "ppm", "tiff", "webp", "jpeg"]):  # some have checksums
        pixels = random.randint(0, 256, (16, 16, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[274] = i % 8 + 1  # turned, as a camera turns them
        Image.fromarray(pixels).save(folder / "images" / f"{i}.{kind}", exif=exif.tobytes(), tiffinfo={274: i % 8 + 1})
    (folder / "images" / ".hidden").mkdir()
    (folder / "images" / ".hidden" / "0.png").write_bytes(b"no image")
    (folder / "images" / "again").symlink_to(".")
    with zipfile.ZipFile(folder / "zip" / "tiny-imagenet-200.zip", "w") as file:
        for i in range(8):
            file.write(folder / "images" / "11.jpeg", f"tiny-imagenet-200/train/n{i}/images/n{i}_0.JPEG")
    np.savez(folder / "split.npz", mia_train_idxs=np.arange(8), mia_eval_idxs=np.arange(8, 16), ratio=0.5)
