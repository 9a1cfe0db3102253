"""Products in every layer of a stack, for many runs or draws (n, L, d, r) at once."""

from collections.abc import Sequence

from torch import Tensor

PART = 16  # runs or draws at a time: 9 MB of 12 x 768 x 8 numbers


def in_each_layer(M: Tensor, X: Tensor) -> Tensor:
    """M X with each layer's M (L, n, d) on that layer's X (..., L, d, r); float64 (..., L, n, r).

    One product per layer for all runs: broadcasting would copy M for each of them.
    """
    return from_columns(M.double() @ as_columns(X.double()), X.shape[:-3], X.shape[-1])


def parts(X: Tensor) -> tuple[Tensor, ...]:
    """X (n, ...) in parts of PART, for n runs or draws that are independent of each other.

    With all draws in one array, the operating system takes as much time to provide its memory as the arithmetic takes.
    """
    return X.split(PART)


def turned(frames: Tensor, Q: Tensor) -> Tensor:
    """frames Q in each layer, as `in_each_layer`, for frames (L, n, d) and Q (..., L, d, r) of orthonormal columns.

    In float32, float32 (..., L, n, r): no singular value magnifies its rounding here, and phi of the results is
    right to 1e-6 at a third of the time.
    """
    return from_columns(frames.float() @ as_columns(Q.float()), Q.shape[:-3], Q.shape[-1])


def as_columns(X: Tensor) -> Tensor:
    """(..., L, n, r) as (L, n, columns): the right-hand sides of all runs side by side."""
    L, n, r = X.shape[-3:]
    return X.reshape(-1, L, n, r).permute(1, 2, 0, 3).reshape(L, n, -1)


def from_columns(columns: Tensor, lead: Sequence[int], r: int) -> Tensor:
    """Undoes `as_columns`: (L, n, columns) as (*lead, L, n, r)."""
    L, n = columns.shape[:2]
    return columns.reshape(L, n, -1, r).permute(2, 0, 1, 3).reshape(*lead, L, n, r)
