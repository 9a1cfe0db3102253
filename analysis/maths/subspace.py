"""The mathematics of the paper's Figure 1 and Table 3: pure functions on stacks of matrices.

Every function takes tensors of any floating type, computes in float64 (phi of float32 bases in float32) and works
on all leading dimensions (runs, draws, layers) in one call. Equation numbers are those of Kim et al., arXiv
2403.14946; W is the torch weight (out, in) of a frozen projection, A is (r, in), B is (out, r).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from analysis.maths.layers import as_columns, from_columns, parts

NEARLY_DEPENDENT = 1e-5  # distance of a column of norm one from the span of those before it


class NotInvertible(ValueError):
    """W0 has no usable inverse, so its conversion matrices (equations 3 and 4) are not defined."""


def left_basis(X: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors of X.

    X (..., d, m), any float type; returns float64 (..., d, k) with orthonormal columns. A matrix
    whose rank is below k has no such subspace: its entries are NaN, never an arbitrary basis.
    Raises ValueError if k is not in 1 ... min(d, m).
    """
    _check_count(k, X.shape[-2:])
    # QR first: the SVD that follows is then of an m x m matrix, whatever d is.
    Q, R = torch.linalg.qr(X.double())
    U, S, _ = torch.linalg.svd(R, full_matrices=False)
    return _undefined_below_rank(Q @ U[..., :k], S, k, max(X.shape[-2:]))


def span_basis(X: Tensor) -> Tensor:
    """An orthonormal basis of the column span of X (..., d, m), float64; NaN where the columns are dependent.

    For phi with i = j = m, which depends on the span alone. By Cholesky's QR, repeated once so that the columns are
    orthonormal to working precision: many times faster than `left_basis` on stacks of tall matrices. Where the
    columns are nearly dependent its rounding is large or it fails, and `left_basis` decides.
    """
    Q = X.double()
    failed = torch.zeros(X.shape[:-2], dtype=torch.bool)
    for _ in range(2):
        gram = Q.mT @ Q
        scale = gram.diagonal(dim1=-2, dim2=-1).rsqrt()  # columns may differ in size by far
        R, info = torch.linalg.cholesky_ex(scale[..., None] * gram * scale[..., None, :])
        failed |= (info != 0) | (R.diagonal(dim1=-2, dim2=-1).amin(dim=-1) < NEARLY_DEPENDENT)
        # Of m x m: one product is faster than d solutions.
        Q = Q @ (scale[..., None] * torch.linalg.inv_ex(R).inverse.mT)
    if failed.any():
        Q[failed] = left_basis(X[failed], X.shape[-1])
    return Q


def compared_basis(X: Tensor, i: int, j: int) -> Tensor:
    """Of X (..., d, m) the orthonormal columns that phi takes with i and j; float64 (..., d, max(i, j)).

    Its leading left singular vectors; where i = j = m, any basis of the span, which is faster.
    """
    if i == j == X.shape[-1]:
        return span_basis(X)
    return left_basis(X, max(i, j))


def right_basis(X: Tensor, k: int) -> Tensor:
    """The k leading right singular vectors of X (..., d, m), float64 (..., m, k); see above."""
    return left_basis(X.mT, k)


def left_basis_of_product(B: Tensor, A: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors of B A, without forming the product.

    B (..., d, r) and A (..., r, m); returns float64 (..., d, k), NaN where the rank of the product
    is below k. Its right singular vectors are the left ones of (B A)' = A' B'. Raises ValueError
    if k is not in 1 ... min(d, r, m).
    """
    _check_count(k, (B.shape[-2], *A.shape[-2:]))
    Q, R_B = torch.linalg.qr(B.double())
    R_A = torch.linalg.qr(A.double().mT, mode="r").R
    U, S, _ = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    return _undefined_below_rank(Q @ U[..., :k], S, k, max(B.shape[-2], A.shape[-1]))


def phi(U_X: Tensor, U_Y: Tensor, i: int, j: int) -> Tensor:
    """Similarity of subspaces, equation 2: ||U_X[:, :i]' U_Y[:, :j]||_F^2 / min(i, j).

    U_X (..., d, >=i) and U_Y (..., d, >=j) with orthonormal columns, leading dimensions broadcast;
    returns (...), between 0 (orthogonal) and 1 (one contains the other).
    Raises ValueError if a basis has fewer columns than asked for.
    """
    _check_columns(U_X, U_Y, i, j)
    return (U_X[..., :i].mT @ U_Y[..., :j]).square().sum(dim=(-2, -1)) / min(i, j)


def phi_map(U_X: Tensor, U_Y: Tensor, i: int, j: int) -> Tensor:
    """phi between every layer of one stack and every layer of another, in one matrix product.

    U_X (..., L, d, >=i) and U_Y (..., M, d, >=j); returns (..., L, M), whose entry [l, m] compares
    layer l of X (i vectors) with layer m of Y (j vectors). Errors as in phi.
    """
    _check_columns(U_X, U_Y, i, j)
    rows = U_X[..., :i].mT.flatten(-3, -2)  # (..., L i, d)
    columns = U_Y[..., :j].mT.flatten(-3, -2)  # (..., M j, d)
    squares = (rows @ columns.mT).double().square()
    squares = squares.unflatten(-2, (-1, i)).unflatten(-1, (-1, j))  # (..., L, i, M, j)
    return squares.sum(dim=(-3, -1)) / min(i, j)


def conversion_matrices(
    W: Tensor, A: Tensor, B: Tensor, layers: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Conversion matrices W0->A = W^-1 A' and W0->B = W^-1 B, equations 3 and 4.

    W (L, out, in); A (..., L, r, in) and B (..., L, out, r), where leading dimensions are runs or
    draws on the same weights; returns two float64 stacks: for square W both (..., L, in, r). Each W
    is factorised once, in float64, for all right-hand sides together; no inverse is formed.

    A rectangular W has no inverse, and the least-squares solution of smallest norm takes its place
    (the Moore-Penrose inverse). Equation 4 keeps its sides: W X = B, so X is (..., L, in, r). In
    equation 3 they no longer fit, as A' has `in` rows and W has `out`; what has a meaning for any
    shape is the map that makes A from W itself, A = theta W (the form `consistent`), so W' X = A'
    and X = theta' is (..., L, out, r). For one of the two, the system has more equations than
    unknowns and the solution reproduces only the part of A' or B in the span of W' or W: that of B
    where out > in (a feed-forward layer that widens), that of A where out < in. phi of A's matrices
    then compares directions of the other space than for square W, so the two are not comparable.

    `layers` (L numbers, by default from 1) names the layers in errors. Raises NotInvertible for a W
    that is not finite or, to working precision, singular (square) or not of full rank.
    """
    layers = layers or range(1, len(W) + 1)
    if W.shape[-2] != W.shape[-1]:
        return _least_squares(W.mT, A.mT, layers), _least_squares(W, B, layers)
    solve = solver(W, layers)
    return solve(A.mT), solve(B)


def solver(W: Tensor, layers: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """What makes W^-1 X (..., L, d, r), float64, of X; the square W (L, d, d) is factorised once. Raises NotInvertible."""
    # Layer by layer: with several threads, MKL's own within torch's over a batch fail on 12 x 768 x 768.
    factorised = zip(*map(torch.linalg.lu_factor_ex, W.double()), strict=True)
    LU, pivots, info = map(torch.stack, factorised)
    _check_invertible(LU, info, layers)

    def solve(X: Tensor) -> Tensor:
        columns = as_columns(X.double())
        solved = torch.stack(list(map(torch.linalg.lu_solve, LU, pivots, columns)))
        return from_columns(solved, X.shape[:-3], X.shape[-1])

    return solve


def _least_squares(W: Tensor, X: Tensor, layers: Sequence[int]) -> Tensor:
    """The solution of smallest norm of W Y = X; W (L, n, m), X (..., L, n, r), Y (..., L, m, r)."""
    columns = as_columns(X.double())
    _raise_not_invertible(~W.isfinite().all(dim=-1).all(dim=-1), layers)
    # Pivoted QR: it finds the rank at the cost of a factorisation.
    found = torch.linalg.lstsq(W.double(), columns, driver="gelsy")
    _raise_not_invertible(found.rank < min(W.shape[-2:]), layers)
    return from_columns(found.solution, X.shape[:-3], X.shape[-1])


def conversion_maps(
    conversion_A: Tensor, conversion_B: Tensor, A: Tensor, i: int, j: int
) -> dict[str, Tensor]:
    """The heat maps of Figure 1 for A and B, and the one for B A: phi over all pairs of layers.

    conversion_A (..., L, n, r), conversion_B (..., L, d, r), A (..., L, r, d); left singular
    vectors; returns float64 (..., L, L) under "A", "B" and "BA". W^-1 B A is never formed: it is
    conversion_B A.
    """
    k = max(i, j)
    bases = {
        "A": left_basis(conversion_A, k),
        "B": left_basis(conversion_B, k),
        "BA": left_basis_of_product(conversion_B, A, k),
    }
    return {name: phi_map(U, U, i, j) for name, U in bases.items()}


def means_of_pairs(phi: Tensor) -> Tensor:
    """Means of heat maps over pairs of two different layers: all, both deep, both shallow.

    phi (..., L, L); returns float64 (..., 3). A half is L // 2 layers; NaN where it has no pair.
    """
    L = phi.shape[-1]
    half = L // 2
    off_diagonal = ~torch.eye(L, dtype=torch.bool)
    means = []
    for first, last in ((0, L), (L - half, L), (0, half)):
        inside = torch.zeros(L, L, dtype=torch.bool)
        inside[first:last, first:last] = True
        means.append(phi[..., inside & off_diagonal].double().mean(dim=-1))
    return torch.stack(means, dim=-1)


def adapter_phi(
    A_X: Tensor, B_X: Tensor, A_Y: Tensor, B_Y: Tensor, i: int, j: int
) -> dict[str, Tensor]:
    """Table 3: phi between two adapters' matrices, layer by layer.

    A (..., r, in) and B (..., out, r) of both; returns float64 (...) under "A" (right singular
    vectors), "B" (left) and "delta_W" (left singular vectors of B A; scaling has no effect).
    """
    k = max(i, j)
    return {
        "A": phi(right_basis(A_X, k), right_basis(A_Y, k), i, j),
        "B": phi(left_basis(B_X, k), left_basis(B_Y, k), i, j),
        "delta_W": phi(
            left_basis_of_product(B_X, A_X, k), left_basis_of_product(B_Y, A_Y, k), i, j
        ),
    }


def gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal entries, float64, from the generator given and from nothing else."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def initial_A(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """LoRA's A before training (..., r, in), float64: Kaiming-uniform with a = sqrt 5.

    Which is uniform between -1 / sqrt(in) and 1 / sqrt(in).
    """
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) / shape[-1] ** 0.5


def rotated(X: Tensor, generator: torch.Generator) -> Tensor:
    """R X for an orthogonal R drawn uniformly for each matrix X (..., d, r); float64.

    R Q for X = Q T is a uniformly random orthonormal frame, drawn as such: R is never formed. To
    rotate what W^-1 = V S^-1 U' is applied to is to draw a new U; to rotate the result, to draw a new V.
    """
    T = torch.linalg.qr(X.double(), mode="r").R
    frame, factor = torch.linalg.qr(gaussian(X.shape, generator))
    # With the factor's diagonal positive the frame is uniform, whatever signs LAPACK chose.
    return frame * factor.diagonal(dim1=-2, dim2=-1).sign()[..., None, :] @ T


def random_phi(
    shape: Sequence[int], i: int, j: int, *, draws: int, generator: torch.Generator
) -> Tensor:
    """The paper's random baseline: phi of independent Gaussian matrices, by the same phi.

    shape (..., d, m) of the matrices compared; returns float64 (draws, ...).
    """
    X, Y = (parts(gaussian((draws, *shape), generator)) for _ in range(2))
    return torch.cat(
        [
            phi(compared_basis(x, i, j), compared_basis(y, i, j), i, j)
            for x, y in zip(X, Y, strict=True)
        ]
    )


def expected_random_phi(i: int, j: int, d: int) -> float:
    """Expectation of phi for independent, uniformly random subspaces of R^d: max(i, j) / d.

    Each of the i j squared inner products of two random directions is 1 / d on average, and
    i j / min(i, j) = max(i, j).
    """
    return max(i, j) / d


def _check_count(k: int, sizes: Sequence[int]) -> None:
    if not 1 <= k <= min(sizes):
        raise ValueError(f"cannot take {k} singular vectors of a matrix of sizes {tuple(sizes)}")


def _check_columns(U_X: Tensor, U_Y: Tensor, i: int, j: int) -> None:
    if not (1 <= i <= U_X.shape[-1] and 1 <= j <= U_Y.shape[-1]):
        raise ValueError(
            f"phi was asked for i = {i} and j = {j} vectors of bases that have "
            f"{U_X.shape[-1]} and {U_Y.shape[-1]}"
        )


def _undefined_below_rank(U: Tensor, S: Tensor, k: int, size: int) -> Tensor:
    smallest, largest = S[..., k - 1], S[..., 0]
    is_defined = smallest > largest * size * torch.finfo(S.dtype).eps
    return torch.where(is_defined[..., None, None], U, torch.nan)


def _check_invertible(LU: Tensor, info: Tensor, layers: Sequence[int]) -> None:
    pivot = LU.diagonal(dim1=-2, dim2=-1).abs()
    smallest, largest = pivot.amin(dim=-1), pivot.amax(dim=-1)
    # A rank-deficient weight leaves a last pivot of rounding size, seldom an exact zero.
    limit = largest * LU.shape[-1] * torch.finfo(LU.dtype).eps
    _raise_not_invertible((info != 0) | ~(smallest > limit), layers)  # negated: catches NaN too


def _raise_not_invertible(is_bad: Tensor, layers: Sequence[int]) -> None:
    if is_bad.any():
        named = ", ".join(str(layers[n]) for n in is_bad.nonzero().flatten().tolist())
        raise NotInvertible(
            f"W0 of layer {named} is singular to working precision or not "
            "finite; its conversion matrices are not defined"
        )
