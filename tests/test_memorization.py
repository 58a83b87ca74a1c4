"""The nearest images, against all distances computed directly; and the definition of a copy."""

import numpy as np
import pytest
import torch

from metrics import is_copy, nearest, wilson


def images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 4, 4), generator=generator, dtype=torch.int32).to(torch.uint8)


@pytest.mark.parametrize("block", [1, 3, 7, 1024])
def test_nearest_is_exact_in_blocks_of_any_size(block):
    generated, known = images(7, 0), images(20, 1)
    known[4] = known[11] = generated[2]  # two equal images, and a copy of them
    known[19] = generated[5]
    known[0] = generated[6].clamp(min=1) - 1
    distances, indices = nearest(generated, known, block)
    x, y = (several.flatten(1).numpy().astype(np.int64) for several in (generated, known))
    squared = ((x[:, None] - y[None]) ** 2).sum(2)
    expected = np.sort(squared, axis=1)[:, :2]
    assert np.array_equal((distances**2).round().long().numpy(), expected)
    assert distances[5, 0] == 0 and distances[2].tolist() == [0, 0], "exactly"
    assert np.array_equal(np.take_along_axis(squared, indices.numpy(), 1), expected)
    assert indices[5, 0] == 19 and indices[6, 0] == 0 and set(indices[2].tolist()) == {4, 11}


def test_a_copy_is_three_times_nearer_than_the_next():
    distances = torch.tensor([[1.0, 3.1], [1, 3], [1, 2.9], [0, 5], [0, 0], [9, 9]], dtype=torch.float64)
    assert is_copy(distances).tolist() == [True, False, False, True, False, False]


def test_two_images_are_enough_and_one_has_no_second_nearest():
    _, indices = nearest(images(3, 0), images(2, 1))
    assert [sorted(both) for both in indices.tolist()] == [[0, 1]] * 3
    with pytest.raises(ValueError, match="two images"):
        nearest(images(3, 0), images(1, 1))


def test_interval_of_a_share():
    """Wilson's, as published: 3 of 8 (0.137 to 0.694), and none of 256 (0 to 0.0148)."""
    assert wilson(3 / 8, 8) == pytest.approx((0.1368, 0.6943), abs=1e-4)
    assert wilson(0, 256) == pytest.approx((0, 0.01478), abs=1e-5)
