"""What several test files lean on: the project on the path, the real images where they are, a model, a server."""

import functools
import resource
import signal
import sys
import threading
import types
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pooch
import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

import data  # noqa: E402
import dualmd  # noqa: E402
import train  # noqa: E402
from lab import datasets  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background, pytest and the scripts ignore it
torch.set_num_threads(1)  # the networks here are small: more threads would wait for each other
data._draw = functools.cache(data._draw)  # most tests draw the same images
# and keep none: a test draws as many as it needs
data.kept_rows = lambda path, key, n, batches: [torch.cat(parts) for parts in zip(*batches(0), strict=True)]


@pytest.fixture(autouse=True)
def folders_are_looked_at_anew():
    """A script looks into a folder once; a test after another one may have a folder of the same name."""
    datasets.image_files.cache_clear()


@pytest.fixture(scope="session")
def real_images() -> Path:
    """A --data-dir with the first 1,017 images of each of CIFAR-10's files."""
    folder = SHARED / "cifar10-sample"
    if not folder.is_dir():
        pytest.skip("needs ../shared/cifar10-sample, which only the project's own machines have")
    return folder


@pytest.fixture(scope="session")
def published_split() -> Path:
    """The member split that SecMI's and PIA's authors published."""
    path = SHARED / "member_splits" / "CIFAR10_train_ratio0.5.npz"
    if not path.is_file():
        pytest.skip("needs ../shared/member_splits, which only the project's own machines have")
    return path


def settings(**changes) -> dict:
    """What a checkpoint says of its training: the tiny preset's, with seed 0."""
    said = {"preset": "tiny", "seed": 0, "members": 4, "member_split": None, "targets": "noise", "teachers": None}
    said |= {"weight_decay": None, "epsilon": None}
    return said | train.PRESETS["tiny"]["train"] | changes


def tree(folder: Path) -> list[str]:
    """All that is in a folder, and in the folders in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def same(one: dict, other: dict) -> bool:
    """Are these the same weights, to the last bit?"""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def few_steps(patch) -> None:
    """Let every image be denoised in 4 steps, where 100 are usual."""
    denoise = dualmd.denoise
    patch.setattr(dualmd, "denoise", lambda *args, **how: denoise(*args, **how | {"stride": 250}))


@contextmanager
def largest_file(size):
    """A full disk: no file can become larger than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def png(width: int, height: int, packed: bytes) -> bytes:
    """A PNG that says that it is of this size in RGB, whatever is in its zlib stream."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


class Spy:
    """An eps model that answers with `answer(x, t)` and remembers what it was asked: `.asked`, a list of (x, t)."""

    def __init__(self, answer=lambda x, t: torch.zeros_like(x)):
        self.answer, self.asked = answer, []

    def __call__(self, x, t):
        assert t.shape == (len(x),) and t.dtype == torch.int64, "an eps model is given one int64 timestep an image"
        self.asked.append((x.clone(), t.clone()))
        return self.answer(x, t)

    @property
    def timesteps(self) -> list[int]:
        return [t[0].item() for _, t in self.asked]


def pickled_by_python_2(pixels, **others):
    """A pickle as CIFAR's official ones are: protocol 2, strings of bytes, an old name for numpy's module."""
    n, raw = len(pixels), pixels.tobytes()
    text = b"".join(
        b"U" + bytes([len(k)]) + k.encode() + b"U" + bytes([len(v)]) + v.encode() for k, v in others.items()
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01M" + n.to_bytes(2, "little") + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    labels = b"](" + b"".join(bytes([ord("K"), i % 10]) for i in range(n)) + b"e"
    return b"\x80\x02}(" + text + b"U\x04data" + array + b"U\x06labels" + labels + b"u."


class Payload:
    """What an attacker would put into a file: code that runs when it is unpickled, and makes `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Server:
    """Serves `.content` on 127.0.0.1 and notes the paths that are `.asked` for.

    It gives these `.answers` first, one a request. An answer may change the `status`, the `body`, the number of its
    bytes that are sent before the connection is `cut`, and the Content-Length that it `claims` (None: no such header).
    """

    def __init__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                answer = outer.answers.pop(0) if outer.answers else {}
                body = answer.get("body", outer.content)
                self.send_response(answer.get("status", 200))
                length = answer.get("claims", len(body))
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body[: answer.get("cut")])

            def log_message(self, *args):
                pass

        self.content, self.asked, self.answers = b"", [], []
        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(pooch.core, "time", types.SimpleNamespace(sleep=lambda seconds: None))  # between attempts
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
