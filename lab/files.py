"""Files: written whole or not at all, by one process at a time; read without trust; downloaded; kept results."""

import glob
import hashlib
import http.client
import os
import platform
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class BadInput(Exception):
    """Something that the user can mend. Its text is one line: what is wrong, where, what to do."""


def in_a_line(error: Exception) -> str:
    """What an error of somebody else's code says, for the text of a BadInput."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# --- written whole or not at all, by one process at a time ---------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any error it is removed.

    Whoever reads `path` sees the old file or the new one, never a part of it, even after a power cut. What a process
    that was killed has left of its own attempt is removed. Raises BadInput where it cannot be written.
    """
    temporary, mine = path.with_name(f".{path.name}.{os.getpid()}.tmp"), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        with suppress(OSError):
            mine = locked(temporary)  # so that nobody takes it for abandoned
        yield temporary
        with open(temporary, "ab") as file:
            os.fsync(file.fileno())  # or the name could reach the disk before the bytes
        os.replace(temporary, path)
        with suppress(OSError):  # not a thing to do on Windows
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        # a full disk is a RuntimeError to torch.save, raised while it handled the OSError
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__
        reason = cause.strerror if cause and cause.strerror else in_a_line(error)
        raise BadInput(f"cannot write {path}: {reason} (nothing there has changed)") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        if mine:
            mine.close()


def remove_abandoned(path: Path) -> None:
    """Remove the temporary files of those who were killed while they wrote `path`."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if file := locked(temporary):
                temporary.unlink()
                file.close()


def locked(path: Path) -> BinaryIO | None:
    """The file at `path`, made if need be, locked for as long as it is open; None where somebody else has locked it.

    A lock ends with its process, however that ends. Raises OSError where there are no locks: on Windows, and in the
    network file systems that do without.
    """
    if fcntl is None:
        raise OSError("this system has no locks")
    while True:
        file = open(path, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
            file.close()  # whoever had it locked has removed it meanwhile
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            file.close()
        except OSError:
            file.close()
            raise


@contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Keep others who would write `path` out, for as long as the block lasts and this process lives.

    Raises BadInput where somebody else is in, unless it is to `wait` for him. Without locks everybody is let in.
    """
    lock, file, told = path.with_name(f".{path.name}.lock"), None, False
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        while (file := locked(lock)) is None:
            holder = "another process"
            with suppress(FileNotFoundError):  # he may be leaving just now
                holder = lock.read_text(errors="replace").strip() or holder
            if not wait:
                raise BadInput(f"{path} is being made by {holder}: wait for it, stop it, or name another directory")
            if not told:
                print(f"waiting for {holder}, which makes {path}", file=sys.stderr)
            told = True
            time.sleep(0.2)
        file.truncate(0)  # whom it belonged to was killed
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
    try:
        yield
    finally:
        if file:
            with suppress(OSError):
                lock.unlink()
            file.close()


def require_writable(directory: Path) -> None:
    """Make `directory` if need be. Raises BadInput, now and not after hours of work, where nothing can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror}") from error


# --- tensors: read as data, never as code --------------------------------------------------------------


def write_tensors(path: Path, content: dict) -> None:
    """Have torch.save write `path`, whole or not at all."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:  # to a path, it would not say why it can't
        torch.save(content, file)


def read_tensors(path: Path, kind: str) -> dict:
    """What torch.save wrote into `path`, to the CPU: read as data, never as code, and no larger than the file.

    It consists of dicts, lists, text, numbers and plain tensors. Raises BadInput, saying that it is not `kind`, where
    torch cannot read it so, or there is anything else in it.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # as all are since torch 1.6
        if zipped:
            _require_sound_zip(path)
        content = _load(path)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        _require_plain(content, path.stat().st_size)
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not {kind}: {error}") from error
    return content


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # about how a foreign file was pickled
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that it did not write, torch.load raises almost anything
        raise ValueError("torch cannot read it as plain data") from error


def _require_sound_zip(path: Path) -> None:
    """Raise ValueError unless torch.save can have written this zip file, byte by byte.

    torch itself reads compressed data, of any size, and does not look at checksums: a flipped bit would be a weight.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if any(record.compress_type != zipfile.ZIP_STORED for record in file.infolist()):
                raise ValueError("it is compressed, as torch.save's files are not")
            damaged = file.testzip()
    except ValueError:
        raise
    except Exception as error:  # of a damaged directory zipfile makes almost anything
        raise ValueError("it is damaged, or has not been copied to its end") from error
    if damaged:
        raise ValueError("it is damaged: a checksum in it is wrong")


def _require_plain(content: dict, most: int) -> None:
    """Raise ValueError for what is no plain data, and for tensors that pretend to be larger than `most` bytes."""
    left, seen, size = [content], set(), 0
    while left:
        value = left.pop()
        if isinstance(value, dict | list | tuple | set):
            if id(value) not in seen:  # it may be shared, or within itself
                seen.add(id(value))
                if isinstance(value, dict) and not all(isinstance(key, str | int) for key in value):
                    raise ValueError("it holds a dict with unusual keys")
                left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, Tensor):
            if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or not value.is_cpu:
                raise ValueError("it holds a tensor of an unusual kind")
            size += value.numel() * value.element_size()
        elif value is not None and not isinstance(value, str | bytes | int | float):
            raise ValueError(f"it holds a {type(value).__name__}")
    if size > most:
        raise ValueError(f"its tensors have {size:,} bytes, which a file of {most:,} cannot hold")


# --- downloads -----------------------------------------------------------------------------------------

ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds after the first of them; each time twice as many
LARGEST = 2**32  # bytes; the largest archive, STL-10's, has 2.6e9


def digest_of(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(url: str, path: Path, digest: str, algorithm: str) -> None:
    """Fetch `url` to `path`, with a progress bar; a download that was cut off goes on where it stopped.

    The bytes gather in `path` + ".part", which takes its final name only once its `digest` is right: the hexadecimal
    digits of its MD5 or SHA-256, or the first of them. What may pass is tried again, after longer and longer pauses.
    Raises BadInput where the server can't be reached, keeps breaking off, or sends other bytes than those.
    """
    part = path.with_name(path.name + ".part")
    by_hand = f"try again, or fetch it by other means and put it at {path}"
    in_vain, anew = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            problem = _fetch(url, part, before)
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = getattr(error, "reason", None) or error
            code = getattr(error, "code", 500)
            if (400 <= code < 500 and code not in (408, 429)) or isinstance(problem, socket.gaierror | ValueError):
                raise BadInput(f"cannot download {url} ({error}): {by_hand}") from error
        after = part.stat().st_size if part.exists() else 0
        if after and digest_of(part, algorithm).startswith(digest):
            os.replace(part, path)
            return
        if problem is None:  # it has come to an end, and it is the wrong one
            part.unlink(missing_ok=True)
            if before and not anew:  # perhaps only what was there already was wrong
                anew = True
                continue
            raise BadInput(
                f"{url} sent other bytes than expected ({algorithm} is not {digest}); they were deleted: {by_hand}"
            )
        in_vain = 0 if after >= before + (1 << 16) else in_vain + 1
        if in_vain == ATTEMPTS:
            raise BadInput(f"cannot download {url} ({problem}): {by_hand}")
        pause = PAUSE * 2 ** max(in_vain - 1, 0)
        print(f"{path.name}: {problem}; on again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)


def _fetch(url: str, part: Path, have: int) -> str | None:
    """Append what `part` lacks of `url`; say why that is not all, if it is not."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing behind what `part` has
            return None
        raise
    with response:
        resumed = have > 0 and response.status == 206  # a server may ignore the range, and send it all again
        start = have if resumed else 0
        total = start + int(response.headers.get("Content-Length", 0))
        if total > LARGEST:
            raise ValueError(f"it is said to have {total:,} bytes, which is too much")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            file = open(part, "ab" if resumed else "wb", buffering=0)
        except OSError as error:
            raise BadInput(f"cannot write {part}: {error.strerror}") from error
        with file, tqdm(desc=part.stem, total=total or None, initial=start, unit="B", unit_scale=True) as bar:
            while block := response.read(1 << 16):
                if file.tell() > LARGEST:
                    raise ValueError(f"more than {LARGEST:,} bytes came, which is too much")
                try:
                    while block:
                        written = file.write(block)
                        bar.update(written)
                        block = block[written:]
                except OSError as error:
                    raise BadInput(f"cannot write {part}: {error.strerror}; make room, and start again") from error
    # http.client takes a connection that closes early for the end of the file
    if part.stat().st_size < total:
        return f"the connection closed after {part.stat().st_size:,} of {total:,} bytes"
    return None


# --- results that are kept until what they depend on changes -------------------------------------------


def key_of(*depends: bytes | str | np.ndarray | Path) -> str:
    """A key that changes with any of what a result depends on; a Path stands for the file's content."""
    parts = [part.read_bytes() if isinstance(part, Path) else part for part in depends]
    parts = [part.encode() if isinstance(part, str) else np.ascontiguousarray(part) for part in parts]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def keep(path: Path, key: str, **arrays: np.ndarray) -> None:
    """Write arrays into an .npz file for `read_kept`. Where nothing can be written, nothing is kept."""
    with suppress(BadInput), atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=key, **arrays)


def read_kept(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays that `keep` wrote under this key; none where there is no such file, or it has another key."""
    with suppress(
        Exception
    ):  # a file that is damaged is one that is not there, and of such numpy raises almost anything
        with np.load(path, allow_pickle=False) as file:
            if file["key"] == key:
                arrays = dict(file)
                return arrays if all(isinstance(array, np.ndarray) for array in arrays.values()) else {}
    return {}
