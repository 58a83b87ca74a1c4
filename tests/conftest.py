"""What several test files lean on: the project on the path, and the real images where they are."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

torch.set_num_threads(1)  # the networks here are small: more threads would wait for each other


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
