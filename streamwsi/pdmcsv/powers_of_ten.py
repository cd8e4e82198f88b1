"""What writing and reading decimals share: powers of ten of 128 bits, and their products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["high_product", "power_of_ten"]

_U64 = npt.NDArray[np.uint64]

_LOW = np.uint64(0xFFFFFFFF)


def power_of_ten(j: int) -> tuple[int, int]:
    """``10^j`` as ``(g, b)``: g of 128 bits, rounded up, and ``b = floor(log2(10^j))``."""
    if j < 0:
        b = -(10**-j).bit_length()
        return -(-(1 << (127 - b)) // 10**-j), b
    b = (10**j).bit_length() - 1
    return -(-(10**j << 128) >> (b + 1)), b


def high_product(a: _U64, b: _U64) -> _U64:
    """The upper 64 bits of ``a · b``, for arrays of any one shape."""
    a0, a1, b0, b1 = a & _LOW, a >> 32, b & _LOW, b >> 32
    middle = a0 * b1 + (a0 * b0 >> 32)
    high: _U64 = a1 * b1 + (middle >> 32) + (a1 * b0 + (middle & _LOW) >> 32)
    return high
