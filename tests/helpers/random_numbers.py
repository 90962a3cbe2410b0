"""The random numbers of a training graph in NumPy, written from what the guide says of them."""

import numpy as np

PRIME = 2147483693


def mix(x, y):
    """(x + y)**3 modulo a prime, with Python's integers where NumPy's might overflow."""
    base = (np.asarray(x, np.uint64) + np.asarray(y, np.uint64)) % np.uint64(PRIME)
    square = base * base % np.uint64(PRIME)
    return square * base % np.uint64(PRIME)


def constants(kind, *shape):
    numbers = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape)
    for number in (kind * 2**28, 314159265, 358979323, 846264338):
        numbers = mix(numbers, number)
    return numbers


COLUMNS = constants(1, 8, 1024).astype(np.int64) % 2048 - 1024
for number in range(1024):
    COLUMNS[number % 8, number] |= 1


def keys(count, seed, step):
    """Nine integers for each of the keys of a step."""
    return mix(mix(mix(constants(2, count, 9), seed), step), 314159265)


def grid(key, size, loops=()):
    """Integers from 0 to 2047, [rows, 1024], and what stands behind them, [rows, 1]."""
    for iteration in loops:
        key = mix(key, iteration)
    rows = np.arange(-(-size // 1024), dtype=np.uint64)[:, None]
    bits = (mix(mix(rows, key), 271828182) % np.uint64(2048)).astype(np.int64)
    return bits[:, :8] @ COLUMNS % 2048, bits[:, 8:]


def kept(key, ratio, shape, loops=()):
    """Which elements Dropout keeps."""
    size = int(np.prod(shape))
    coarse, fine = grid(key, size, loops)
    numbers = (coarse * 2048 + fine) / 2.0**22
    return (numbers >= np.float64(np.float32(ratio))).ravel()[:size].reshape(shape)


def uniform(high, low, shape):
    """Numbers from 0 to 1 for each element."""
    size = int(np.prod(shape))
    numbers = grid(high, size)[0] * 2048 + grid(low, size)[0]
    return (numbers / 2.0**22).ravel()[:size].reshape(shape)
