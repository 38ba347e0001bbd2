"""How the shape of one product decides its speed: python -m benchmarks.bench_products

The plain backend multiplies a fixed number of rows by a fixed tile of the vocabulary, so that a row's bits depend on
nothing else; this is the measurement behind both numbers (docs/decisions/0002-product-shape.md).
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import measure, options
from benchmarks.measure import Timing
from benchmarks.records import Record, append, command_of

ROWS = (32, 64, 128, 256)


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser_of("bench_products", __doc__)
    parser.add_argument("--N", type=int, default=512)
    parser.add_argument("--D", type=int, default=1024)
    parser.add_argument("--V", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", type=Path, help="append the records, as JSON lines, to this file")
    args = parser.parse_args(arguments)
    N, D, V = args.N, args.D, args.V
    h, w, z = torch.randn(N, D), torch.randn(V, D), torch.empty(N, V)

    def product(rows: int, tile: int):
        def run() -> None:
            for v in range(0, V, tile):
                w_tile = w[v : v + tile].T
                for i in range(0, N, rows):
                    torch.mm(h[i : i + rows], w_tile, out=z[i : i + rows, v : v + tile])

        return run

    tiles = (128, 512, 2048, V)
    steps = {f"{rows} {tile}": product(rows, tile) for rows in ROWS for tile in tiles}
    whole = {"whole": lambda: torch.mm(h, w.T, out=z)}
    times = measure.interleaved({**whole, **steps}, rounds=args.rounds, warmup=0.2)
    print(f"N {N} D {D} V {V} fp32, speed as a share of one product of the whole; {measure.environment()}")
    print("rows \\ tile" + "".join(f"{tile:>8}" for tile in tiles))
    for rows in ROWS:
        shares = (times["whole"].median / times[f"{rows} {tile}"].median for tile in tiles)
        print(f"{rows:>11}" + "".join(f"{share:>8.2f}" for share in shares))
    if args.save:
        command = command_of("bench_products", arguments)
        for rows in ROWS:
            for tile in tiles:
                time, base = times[f"{rows} {tile}"], times["whole"]
                append(args.save, record((N, D, V), f"rows {rows}, tile {tile}", time, base, args.rounds, command))


def record(
    shape: tuple[int, int, int], provider: str, time: Timing, whole: Timing, rounds: int, command: str
) -> Record:
    N, D, V = shape
    return Record(
        **measure.environment(), command=command, bench="products", provider=provider, state="timed", D=D, V=V,
        tokens=N, scored=N, dtype="fp32", ms=1e3 * time.median, low_ms=1e3 * time.low, high_ms=1e3 * time.high,
        products_ms=1e3 * whole.median, ratio=time.median / whole.median, tflops=2.0 * N * D * V / time.median / 1e12,
        rounds=rounds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
