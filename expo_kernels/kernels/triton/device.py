"""What the kernels share on the device: the formulas of docs/math.md, part 2, each in one place.

    a = scale (h w^T + bias)     z = cap tanh(a / cap), or a     t = dz / da     E = exp(z - m)
    nll = log1p(rest / E_y), or log S + (m - z_y) for an improbable label

Every index is int64 before any product.
"""

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
# the interpreter multiplies the bit patterns of bf16 (triton-lang/triton#11584), and its fp32 products, which are
# numpy's, give a row other bits at another place of the tile
DOT_IN_FP64 = tl.constexpr(INTERPRETED)


@triton.jit
def tile_at(tile, row_blocks, columns, GROUP: tl.constexpr):
    """The tile's row block and column: row blocks fastest within a group, whose rows of h then stay in cache while w
    streams past once."""
    group = tile // (GROUP * columns)
    first = group * GROUP
    size = tl.minimum(row_blocks - first, GROUP)
    inside = tile % (GROUP * columns)
    return first + inside % size, inside // size


@triton.jit
def dot(a, b, acc):
    """a [M, K] b [K, N] + acc [M, N], in the accumulator's precision; fp32 operands without tf32."""
    if DOT_IN_FP64:
        return acc + tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(acc.dtype)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def slices_of(x, SLICES: tl.constexpr):
    """x [M, N] -> SLICES times [M, N / SLICES], left to right."""
    if SLICES == 1:
        return (x,)
    elif SLICES == 2:
        return _halves(x)
    else:
        tl.static_assert(SLICES == 4)
        left, right = _halves(x)
        return _halves(left) + _halves(right)


@triton.jit
def _halves(x):
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: the quotient undoes what rounding 1 + x has lost."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def capped(a, SOFTCAP: tl.constexpr):
    """a -> z. NaN where the cap would hide an infinity."""
    if SOFTCAP is not None:
        u = tl.abs(a) / SOFTCAP
        e = tl.exp(-2.0 * u)
        ratio = (1.0 - e) / (1.0 + e)
        if a.dtype == tl.float32:
            # 1 - e cancels for small u; the series is right to 1e-8 up to 0.35
            x = u * u
            inner = -0.33333333 + x * (0.13333333 + x * (-0.053968254 + x * (0.021869488 - x * 0.008863236)))
            ratio = tl.where(u < 0.35, u * (1.0 + x * inner), ratio)
        return tl.where(a < 0, -ratio, ratio) * SOFTCAP + a * 0.0
    return a


@triton.jit
def slope(z, SOFTCAP: tl.constexpr):
    """t = dz / da = 1 - (z / cap)^2; not below 0, where a division rounds z / cap above 1."""
    if SOFTCAP is not None:
        t = (1.0 - z / SOFTCAP) * (1.0 + z / SOFTCAP)
        return tl.where(t < 0, 0.0, t)
    return tl.full(z.shape, 1.0, z.dtype)


@triton.jit
def log_prob(rest, label_exp, drop, label):
    """rest, E_y, m - z_y, z_y -> logp, or NaN where any of it is not finite. Neither form cancels."""
    total = rest + label_exp
    likely = log1p(rest / label_exp)
    unlikely = tl.log(total) + drop
    nll = tl.where(label_exp > 0.5, likely, unlikely)
    fine = is_finite(nll) & is_finite(total) & is_finite(label)
    return tl.where(fine, -nll, float("nan"))
