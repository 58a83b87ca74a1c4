"""Files: downloaded, written whole or not at all, read without trust, and results that are kept."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm


class BadInput(Exception):
    """Something that the user can mend. Its text is one line: what is wrong, where, what to do."""


def in_a_line(error: Exception) -> str:
    """What an error of somebody else's code says, for the text of a BadInput."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any error it is removed.

    Whoever reads `path` sees the old file or the new one, never a part of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save's is a RuntimeError
        raise BadInput(f"cannot write {path}: {str(error).splitlines()[0]}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def require_writable(directory: Path) -> None:
    """Make `directory` if need be. Raises BadInput, now and not after hours of work, where nothing can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror}") from error


def read_tensors(path: Path, kind: str) -> dict:
    """What torch.save wrote into `path`, to the CPU: read as data, never as code.

    Raises BadInput, saying that it is not `kind`, where torch cannot read it so, or it holds no dict.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about how a foreign file was pickled
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist") from error
    except Exception as error:  # on bytes that it did not write, torch.load raises almost anything
        raise BadInput(f"{path} is not {kind}: torch cannot read it as plain data") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not {kind}: it holds a {type(content).__name__}")
    return content


def digest_of(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(url: str, path: Path, digest: str, algorithm: str) -> None:
    """Fetch `url` to `path`, with a progress bar; a download that was cut off goes on where it stopped.

    The bytes gather in `path` + ".part", which takes its final name only once its `digest` is right: the hexadecimal
    digits of its MD5 or SHA-256, or the first of them. Raises BadInput where the server can't be reached, breaks off,
    or sends other bytes than those.
    """
    part = path.with_name(path.name + ".part")
    by_hand = f"try again, or fetch it by other means and put it at {path}"
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            resumed = response.status == 206  # a server may ignore the range, and send it all again
            total = (have if resumed else 0) + int(response.headers.get("Content-Length", 0))
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                open(part, "ab" if resumed else "wb") as file,
                tqdm(desc=path.name, total=total or None, initial=file.tell(), unit="B", unit_scale=True) as bar,
            ):
                while block := response.read(1 << 16):
                    bar.update(file.write(block))
        # http.client takes a connection that closes early for the end of the file
        if part.stat().st_size < total:
            raise OSError(f"the connection closed after {part.stat().st_size:,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part file has every byte already
            raise BadInput(f"cannot download {url} ({error}): {by_hand}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise BadInput(f"cannot download {url} ({reason}): {by_hand}") from error
    if not digest_of(part, algorithm).startswith(digest):
        part.unlink()
        raise BadInput(
            f"{url} sent other bytes than expected ({algorithm} is not {digest}); they were deleted: try again"
        )
    os.replace(part, path)


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
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["key"] == key:
                return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return {}
