"""Files under whatever happens to them: full disks, kills, rivals, servers that misbehave, content that lies."""

import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Payload

from lab import files
from lab.files import BadInput


def md5(content):
    return hashlib.md5(content).hexdigest()


def in_a_process(code, *arguments, **rest):
    """Python that has imported pathlib.Path, sys, time, torch and files."""
    head = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; import torch; from lab import files\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **rest)


# --- written whole or not at all ---


@contextmanager
def largest_file(size):
    """A disk that is full: no file can become larger than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_what_a_killed_writer_leaves_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    path = tmp_path / "[file]"  # a name that is a pattern, too
    write = (
        "with files.atomic_write(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text(sys.argv[2]); print(temporary, flush=True); time.sleep(60)"
    )
    killed, living = (in_a_process(write, path, word) for word in ("killed", "living"))
    names = [Path(process.stdout.readline().strip()) for process in (killed, living)]
    assert all(name.exists() for name in names) and len(set(names)) == 2
    killed.kill()
    killed.communicate()
    with files.atomic_write(path) as temporary:
        temporary.write_text("mine")
    assert sorted(tmp_path.iterdir()) == sorted([path, names[1]])
    assert path.read_text() == "mine" and names[1].read_text() == "living"
    living.terminate()
    living.communicate()


# --- by one process at a time ---

STAY = "with files.exclusive(Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"


def test_a_second_one_is_kept_out_until_the_first_has_left_or_died(tmp_path):
    path = tmp_path / "new" / "model.pt"
    first = in_a_process(STAY, path)
    assert first.stdout.readline() == "in\n"
    with pytest.raises(BadInput, match=f"model.pt is being made by process {first.pid} on .+: wait for it"):
        with files.exclusive(path):
            raise AssertionError("two are in")
    with files.exclusive(path.with_name("other.pt")):
        pass
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert [file.name for file in path.parent.iterdir()] == [".model.pt.lock"]
    for _ in range(2):
        with files.exclusive(path):
            with pytest.raises(BadInput, match=f"process {os.getpid()} on"), files.exclusive(path):
                pass
    assert list(path.parent.iterdir()) == []


def test_whoever_waits_comes_in_when_the_other_has_left(tmp_path, capsys):
    path, order = tmp_path / "file", []

    def second():
        with files.exclusive(path, wait=True):
            order.append("second")

    with files.exclusive(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert (
        capsys.readouterr().err == f"waiting for process {os.getpid()} on {os.uname().nodename}, which makes {path}\n"
    )


def test_many_who_wait_are_in_one_by_one(tmp_path):
    """A lock file is removed by whoever leaves: those who had opened it before must not think that they have it."""
    code = (
        "counter = Path(sys.argv[1]) / 'counter'\n"
        "for _ in range(200):\n"
        "    with files.exclusive(counter, wait=True):\n"
        "        count = int(counter.read_text()); time.sleep(0.001); counter.write_text(str(count + 1))"
    )
    (tmp_path / "counter").write_text("0")
    processes = [in_a_process("files.time.sleep = lambda seconds: None\n" + code, tmp_path) for _ in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert (tmp_path / "counter").read_text() == "600" and len(list(tmp_path.iterdir())) == 1


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    path = tmp_path / "file"
    (tmp_path / ".file.1.tmp").touch()
    with files.exclusive(path), files.exclusive(path), files.atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert (tmp_path / ".file.1.tmp").exists(), "whether anybody still writes it cannot be known"


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
    """Files that torch would read, by what is wrong with them; the first would be a code that runs."""

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

    nested = []
    nested.append(nested)
    return {
        "torch cannot read it as plain data": lambda: saved({"w": Payload(tmp_path / "it-ran")}),
        "it is damaged: a checksum in it is wrong": flipped,
        "it is compressed, as torch.save's files are not": compressed,
        "torch cannot read it": longer,
        "its tensors have 4,000,000,000 bytes, which a file of": lambda: saved({"w": torch.zeros(1).expand(10**9)}),
        "it holds a tensor of an unusual kind": lambda: saved({"w": torch.zeros(2, 2).to_sparse()}),
        "it holds a tensor of an unusual kind.": lambda: saved({"w": torch.zeros(2, device="meta")}),
        "it holds a list": lambda: saved([1]),
        "it holds a dict with unusual keys": lambda: saved({"w": {(1, 2): 3}}),
        "it holds a dtype": lambda: saved({"w": [torch.float32, nested]}),
    }


def test_tensors_that_lie(tmp_path):
    for message, write in lies(tmp_path).items():
        write()
        with pytest.raises(BadInput, match=f"x.pt is not a model: {message.rstrip('.')}") as refusal:
            files.read_tensors(tmp_path / "x.pt", "a model")
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "it-ran").exists()
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Payload(tmp_path / "it-ran")))
    with pytest.raises(BadInput, match="torch cannot read it"):
        files.read_tensors(tmp_path / "x.pt", "a model")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        files.read_tensors(tmp_path, "a model")
    assert not (tmp_path / "it-ran").exists()


# --- downloads ---


def test_download_goes_on_where_it_was_cut_off(server, tmp_path, capsys):
    server.content, path = np.random.RandomState(0).bytes(300_000), tmp_path / "new" / "file"
    server.answers = [{"cut": 100_000}, {"cut": 70_000}]
    files.download(server.url, path, md5(server.content), "md5")
    assert path.read_bytes() == server.content and list(path.parent.iterdir()) == [path]
    assert server.ranges == [None, "bytes=100000-", "bytes=170000-"]
    assert "file: the connection closed after 100,000 of 300,000 bytes; on again in 0 s" in capsys.readouterr().err


def test_a_download_that_was_given_up_goes_on_at_the_next_start(server, tmp_path):
    server.content, path = np.random.RandomState(0).bytes(3000), tmp_path / "file"
    server.answers = [{"cut": 1000}] + 4 * [{"status": 503}] + [{"cut": 1000}]
    with pytest.raises(
        BadInput, match="cannot download .*Service Unavailable.*: try again, or fetch it by other means"
    ):
        files.download(server.url, path, md5(server.content), "md5")
    assert [file.name for file in tmp_path.iterdir()] == ["file.part"]
    files.download(server.url, path, md5(server.content), "md5")
    assert path.read_bytes() == server.content and list(tmp_path.iterdir()) == [path]
    assert server.ranges[5:] == ["bytes=1000-", "bytes=2000-"]


def test_pauses_become_longer_as_long_as_nothing_comes(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(files, "PAUSE", 1.0)
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    server.content = np.random.RandomState(0).bytes(500_000)
    server.answers = 3 * [{"status": 503}] + [{"cut": 100_000}] + 4 * [{"status": 429}]
    files.download(server.url, tmp_path / "file", md5(server.content), "md5")
    assert pauses == [1, 2, 4, 1, 1, 2, 4, 8]
    server.answers = 6 * [{"status": 503}]
    with pytest.raises(BadInput, match="Service Unavailable"):
        files.download(server.url, tmp_path / "other", md5(server.content), "md5")
    assert pauses[8:] == [1, 2, 4, 8] and len(server.answers) == 1


@pytest.mark.parametrize("status", [400, 403, 404])
def test_what_will_not_pass_is_not_tried_again(server, tmp_path, status):
    server.answers = [{"status": status, "body": b"an error page"}]
    with pytest.raises(BadInput, match=f"cannot download .*{status}"):
        files.download(server.url, tmp_path / "file", "", "md5")
    assert len(server.ranges) == 1 and list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_resume_sends_it_all_again(server, tmp_path):
    server.content, server.resumes = b"all of it", False
    (tmp_path / "file.part").write_bytes(server.content[:4])
    files.download(server.url, tmp_path / "file", md5(server.content), "md5")
    assert (tmp_path / "file").read_bytes() == server.content


def test_download_whose_last_byte_was_there_already(server, tmp_path):
    server.content = b"all of it"
    (tmp_path / "file.part").write_bytes(server.content)
    files.download(server.url, tmp_path / "file", md5(server.content), "md5")
    assert (tmp_path / "file").read_bytes() == server.content


@pytest.mark.parametrize("claims", [100, None, "many", 2**40])
def test_a_length_that_is_a_lie(server, tmp_path, claims):
    """Where all has come, the digest says so; where it can't, nothing is left under the final name."""
    server.content, path = b"all of it", tmp_path / "file"
    server.answers = [{"claims": claims}]
    if claims in (100, None):
        files.download(server.url, path, md5(server.content), "md5")
        assert path.read_bytes() == server.content and list(tmp_path.iterdir()) == [path]
    else:
        with pytest.raises(BadInput, match="cannot download"):
            files.download(server.url, path, md5(server.content), "md5")
        assert list(tmp_path.iterdir()) == []
    server.answers = [{"claims": 3}]
    with pytest.raises(BadInput, match="other bytes than expected"):
        files.download(server.url, tmp_path / "short", md5(server.content), "md5")
    assert not (tmp_path / "short").exists() and not (tmp_path / "short.part").exists()


def test_a_server_that_never_ends(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 100_000)
    server.answers = [{"claims": None, "body": bytes(1_000_000)}]
    with pytest.raises(BadInput, match="more than 100,000 bytes came"):
        files.download(server.url, tmp_path / "file", "ab", "md5")
    assert (tmp_path / "file.part").stat().st_size < 200_000 and not (tmp_path / "file").exists()


def test_wrong_bytes_are_deleted(server, tmp_path):
    server.content = b"an error page, perhaps"
    with pytest.raises(BadInput, match="other bytes than expected"):
        files.download(server.url, tmp_path / "file", md5(b"the file"), "md5")
    assert list(tmp_path.iterdir()) == [] and len(server.ranges) == 1


def test_a_part_of_something_else_costs_no_more_than_a_second_start(server, tmp_path):
    server.content = b"all of it"
    for start in (b"<html>", b"<html> a whole page"):
        (tmp_path / "file.part").write_bytes(start)
        files.download(server.url, tmp_path / "file", md5(server.content), "md5")
        assert (tmp_path / "file").read_bytes() == server.content
        (tmp_path / "file").unlink()
    (tmp_path / "file.part").write_bytes(b"<html>")
    with pytest.raises(BadInput, match="other bytes than expected"):
        files.download(server.url, tmp_path / "file", md5(b"the file"), "md5")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_a_download_at_once(server, tmp_path):
    server.content = bytes(300_000)
    with largest_file(100_000), pytest.raises(BadInput, match="cannot write .*file.part: File too large; make room"):
        files.download(server.url, tmp_path / "file", md5(server.content), "md5")
    assert len(server.ranges) == 1
    files.download(server.url, tmp_path / "file", md5(server.content), "md5")
    assert server.ranges[1:] == ["bytes=100000-"]


def test_no_server_writes_nothing(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    for url in (server.url.replace("http", "nothing"), server.url):
        with pytest.raises(BadInput, match="cannot download"):
            files.download(url, tmp_path / "new" / "file", "", "md5")
    assert list(tmp_path.iterdir()) == []


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
    files.keep(path / "below a file", keys[0], array=array)  # where nothing can be written, nothing is kept
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("more.npy", b"no array")
    assert files.read_kept(path, keys[0]) == {}, "numpy gives such as bytes"
    for content in (b"", b"text", path.read_bytes()[:-9], path.read_bytes().replace(b"<f4", b"|O4")):
        path.write_bytes(content)
        assert files.read_kept(path, keys[0]) == {}, "what is damaged is made anew"
