"""The least-squares curve that first falls and then rises."""

from __future__ import annotations

import numpy as np

__all__ = ["unimodal_regression"]


def unimodal_regression(values: np.ndarray) -> np.ndarray:
    """Return the best fit that falls and then rises.

    Of all sequences that never rise up to some index and never fall from there on, it is the one
    with the least sum of squared differences to ``values``. No bandwidth is chosen, noise is
    averaged away where there is no trend, and an explosion is not smeared over what came before.

    Parameters
    ----------
    values
        Shape ``[n]``, finite.

    Returns
    -------
    numpy.ndarray
        Shape ``[n]``, in O(n).

    References
    ----------
    Q. F. Stout, *Unimodal regression via prefix isotonic regression*, Computational Statistics &
    Data Analysis 53 (2008): with the error of the monotone fit to every prefix, and of the one to
    every suffix, the best turn is the least of n + 1 sums.

    Examples
    --------
    >>> unimodal_regression(np.array([3.0, 1.0, 2.0, 0.0, 4.0])).tolist()
    [3.0, 1.5, 1.5, 0.0, 4.0]
    """
    falling, rising = -np.asarray(values, dtype=np.float64), np.asarray(values, dtype=np.float64)
    # A rise read backwards is a fall.
    errors = _isotonic(falling)[1] + _isotonic(-rising[::-1])[1][::-1]
    turn = int(np.argmin(errors))
    left, right = _isotonic(falling[:turn])[0], _isotonic(-rising[turn:][::-1])[0]
    return np.concatenate([-left, -right[::-1]])


def _isotonic(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the non-decreasing least-squares fit, and the squared error of that to each prefix.

    Shapes ``[n]`` and ``[n + 1]``, by pooling adjacent violators (Ayer et al. 1955): a value that
    is lower than the block before it joins it, and the joint block takes its mean.
    """
    means: list[float] = []
    sizes: list[int] = []
    errors: list[float] = []
    total, of_prefix = 0.0, [0.0]
    for value in values.tolist():
        mean, size, error = value, 1, 0.0
        while means and means[-1] > mean:
            before, count, its_error = means.pop(), sizes.pop(), errors.pop()
            total -= its_error
            error += its_error + (before - mean) ** 2 * count * size / (count + size)
            mean = (before * count + mean * size) / (count + size)
            size += count
        means.append(mean)
        sizes.append(size)
        errors.append(error)
        total += error
        of_prefix.append(total)
    return np.repeat(np.array(means), np.array(sizes, dtype=int)), np.array(of_prefix)
