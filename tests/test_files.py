"""Files on full disks, after kills, between two processes, and with damaged or malicious content."""

import os
import pickle
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, Payload, largest_file

from lab import files
from lab.files import BadInput


def in_a_process(code, *arguments):
    """Start Python code that uses pathlib.Path, sys, time and files."""
    head = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from lab import files\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- writing ---


def test_atomic_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(BadInput, match="cannot write .*file: .*No space left"), files.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyError), files.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with files.atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says which file a number is")
def test_bytes_reach_the_disk_before_their_name_and_the_name_before_more_is_done(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or sync(file))
    monkeypatch.setattr(os, "replace", lambda one, other: done.append("rename") or rename(one, other))
    with files.atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert done == []
    assert done == [str(temporary), "rename", str(tmp_path)]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "model"
    files.write_tensors(path, {"weights": torch.ones(10)})
    for size in (100, 4096, 1_000_000):
        with (
            largest_file(size),
            pytest.raises(BadInput, match="^cannot write .*model: File too large [(]nothing") as full,
        ):
            files.write_tensors(path, {"weights": torch.ones(1_000_000)})
        assert "\n" not in str(full.value)
        assert list(tmp_path.iterdir()) == [path]
        assert torch.equal(files.read_tensors(path, "it")["weights"], torch.ones(10))


# --- locks ---

STAY = "with files.exclusive(Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"


def test_a_second_process_is_refused_until_the_first_has_left_or_died(tmp_path):
    path = tmp_path / "new" / "model.pt"
    first = in_a_process(STAY, path)
    assert first.stdout.readline() == "in\n"
    refusal = "model.pt is being made by another process: wait for it, stop it, or name another directory"
    with pytest.raises(BadInput, match=refusal), files.exclusive(path):
        raise AssertionError("both are in")
    with files.exclusive(path.with_name("other.pt")):
        pass
    first.send_signal(signal.SIGKILL)
    first.communicate()
    for _ in range(2):
        with files.exclusive(path):
            with pytest.raises(BadInput, match="another process"), files.exclusive(path):
                pass
    assert list(path.parent.iterdir()) == [], "the lock files are gone"


def test_a_process_that_waits_says_so_in_one_line(tmp_path):
    path = tmp_path / "file"
    with files.exclusive(path):
        second = in_a_process("with files.exclusive(Path(sys.argv[1]), wait=True):\n    print('in')", path)
        assert second.stderr.readline() == f"{path} is being made by another process: waiting for it\n"
        assert second.poll() is None
    out, error = second.communicate(timeout=30)
    assert (second.returncode, out, error) == (0, "in\n", "")


@pytest.mark.slow
def test_many_processes_that_wait_enter_one_by_one(tmp_path):
    """Each removes the lock file when it leaves: a process that has opened the old one must not think it has a lock."""
    code = (
        "import functools\n"
        "files.FileLock = functools.partial(files.FileLock, poll_interval=0)\n"
        "counter = Path(sys.argv[1]) / 'counter'\n"
        "for _ in range(200):\n"
        "    with files.exclusive(counter, wait=True):\n"
        "        count = int(counter.read_text()); time.sleep(0.001); counter.write_text(str(count + 1))"
    )
    (tmp_path / "counter").write_text("0")
    processes = [in_a_process(code, tmp_path) for _ in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert (tmp_path / "counter").read_text() == "600" and len(list(tmp_path.iterdir())) == 1


def test_without_locks_nobody_is_refused(tmp_path, monkeypatch):
    def no_locks(self, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", no_locks)
    path = tmp_path / "file"
    with files.exclusive(path), files.exclusive(path), files.atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


# --- tensors ---


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The same zip file with its records changed, and right checksums."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in records.items():
            file.writestr(name, change(content) if name.endswith("data.pkl") else content)


def test_tensors_are_read_as_they_were_written(tmp_path):
    content = {"weights": {"w": torch.randn(3, 4), "half": torch.randn(2).half()}, "list": [1, 2.5, "x", None, (True,)]}
    content["again"] = content["weights"]
    files.write_tensors(tmp_path / "x.pt", content)
    read = files.read_tensors(tmp_path / "x.pt", "it")
    assert torch.equal(read["again"]["w"], content["weights"]["w"]) and read["list"] == content["list"]
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)  # as before torch 1.6
    assert torch.equal(files.read_tensors(tmp_path / "old.pt", "it")["weights"]["w"], content["weights"]["w"])


def lies(tmp_path):
    """Functions that write x.pt, by what is wrong with it. torch itself would read most; the first runs code."""

    def saved(content, **rest):
        torch.save(content, tmp_path / "x.pt", **rest)

    def flipped():
        saved({"w": torch.full((1000,), 1.5)})
        content = bytearray((tmp_path / "x.pt").read_bytes())
        content[content.index(b"\x00\x00\xc0\x3f") + 2] ^= 1
        (tmp_path / "x.pt").write_bytes(content)

    def compressed():
        saved({"w": torch.zeros(1_000_000)})
        rewritten(tmp_path / "x.pt", lambda pickled: pickled, zipfile.ZIP_DEFLATED)

    def longer():
        saved({"w": torch.zeros(8)})
        rewritten(tmp_path / "x.pt", lambda pickled: pickled.replace(b"K\x08", b"J\x00\x00\x00\x10"))

    damaged = "it is damaged, or torch.save did not write it"
    return [
        (
            "it holds a getattr, which torch loads only from a file that you trust; .*",
            lambda: saved({"w": Payload(tmp_path / "it-ran")}),
        ),
        (damaged, flipped),
        (damaged, compressed),
        ("torch cannot read it", longer),
        ("it holds a list", lambda: saved([1])),
    ]


def test_tensors_that_lie(tmp_path):
    for message, write in lies(tmp_path):
        write()
        with pytest.raises(BadInput, match=f"x.pt is not a model: {message}") as refusal:
            files.read_tensors(tmp_path / "x.pt", "a model")
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "it-ran").exists()
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Payload(tmp_path / "it-ran")))
    with pytest.raises(BadInput, match="torch cannot read it"):
        files.read_tensors(tmp_path / "x.pt", "a model")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        files.read_tensors(tmp_path, "a model")
    assert not (tmp_path / "it-ran").exists()


# --- what is kept ---


def test_what_is_kept_is_kept_under_a_key(tmp_path):
    path, code = tmp_path / "new" / "kept.npz", tmp_path / "code.py"
    code.write_text("one")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    keys = [files.key_of(code, array, "text"), files.key_of(code, array + 1, "text"), files.key_of(code, array, "word")]
    code.write_text("two")
    keys.append(files.key_of(code, array, "text"))
    assert len(set(keys)) == 4, "the file's content, the numbers and the text all count"
    assert keys[3] == files.key_of(code, array.copy(), "text")
    files.keep(path, keys[0], array=array)
    assert np.array_equal(files.read_kept(path, keys[0])["array"], array)
    assert files.read_kept(path, keys[1]) == {} == files.read_kept(tmp_path / "none.npz", keys[0])
    files.keep(path / "below a file", keys[0], array=array)  # below a file nothing can be written
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("more.npy", b"no array")
    assert files.read_kept(path, keys[0]) == {}, "numpy gives it as bytes"
    for content in (b"", b"text", path.read_bytes()[:-9], path.read_bytes().replace(b"<f4", b"|O4")):
        path.write_bytes(content)
        assert files.read_kept(path, keys[0]) == {}, "a damaged file counts as none"
