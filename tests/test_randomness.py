"""Normal numbers: the generator's published words, the transform's formula, and the distribution."""

import numpy as np
import pytest
from scipy import stats

from mechinterp.randomness import Stream, box_muller, draw_normal, draw_uniform, philox, stream_key


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_words_that_its_authors_publish(counter, key, expected):
    low, high, *rest = (int(word, 16) for word in counter.split())
    keys = np.array([*(int(word, 16) for word in key.split()), *rest], np.uint64)
    words = np.empty((4, 1), np.uint32)
    philox(keys, np.uint64((high << 32) + low), words)
    assert [f"{word:08x}" for word in words[:, 0]] == expected.split()


def test_the_transform_is_that_of_box_and_muller():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (2, 10_000), dtype=np.uint32)
    words[:, :4] = [[0, 2**32 - 1, 2**31, 0], [0, 2**32 - 1, 2**31, 2**30]]
    u = (words.astype(np.float64) + 0.5) / 2**32
    expected = np.sqrt(-2 * np.log(u[0])) * np.exp(1j * (2 * np.pi * u[1] - np.pi))
    x, y = np.empty(10_000), np.empty(10_000)
    box_muller(words[0], words[1], x, y)
    assert x == pytest.approx(expected.real, abs=2e-9)
    assert y == pytest.approx(expected.imag, abs=2e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawn_numbers_are_normal_and_independent(dtype):
    drawn = np.empty((777, 1001), dtype)
    draw_normal(stream_key(1, Stream.TRAIN, 7), 1 << 32, 0.25, drawn)
    values = drawn.ravel().astype(np.float64) / 0.25
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert stats.kstest((values.reshape(-1, 777) ** 2).sum(axis=1), stats.chi2(777).cdf).pvalue > 0.01
    for lag in (1, 2, 256, 512, 1024):
        assert abs(np.mean(values[lag:] * values[:-lag])) < 4 / np.sqrt(len(values))
        assert abs(np.mean(values[lag:] ** 2 * values[:-lag] ** 2) - 1) < 4 * np.sqrt(8 / len(values))


def test_uniform_numbers_are_uniform():
    drawn = np.empty((777, 1001))
    draw_uniform(stream_key(1, Stream.TRAIN, 7), 0, drawn)
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 0.01
    assert 0 <= drawn.min() < drawn.max() < 1
    low_bits = (drawn.ravel() * 2**53).astype(np.uint64) % 1024
    assert stats.chisquare(np.bincount(low_bits.astype(int), minlength=1024)).pvalue > 0.01


def test_numbers_are_a_function_of_key_and_place_alone():
    def drawn(*key: int, size: int = 3000, first: int = 0) -> np.ndarray:
        result = np.empty(size)
        draw_normal(stream_key(*key), first, 1.0, result)
        return result

    assert (drawn(0, 2, 5) == drawn(0, 2, 5)).all()
    assert (drawn(0, 2, 5)[:100] == drawn(0, 2, 5, size=100)).all()
    for other in ((1, 2, 5), (0, 3, 5), (0, 2, 6), (2**40, 2, 5), (0, 2, 2**40 + 5)):
        assert not np.isin(drawn(0, 2, 5), drawn(*other)).any()
    assert not np.isin(drawn(0, 2, 5), drawn(0, 2, 5, first=1 << 32)).any()
