"""How the shape of one product decides its speed: python -m benchmarks.bench_products

The plain backend multiplies a fixed number of rows by a fixed tile of the vocabulary, so that a row's bits depend on
nothing else; this is the measurement behind both numbers (docs/decisions/0002-product-shape.md).
"""

from __future__ import annotations

import argparse

import torch

from benchmarks import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=512)
    parser.add_argument("--D", type=int, default=1024)
    parser.add_argument("--V", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
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
    steps = {f"{rows} {tile}": product(rows, tile) for rows in (32, 64, 128, 256) for tile in tiles}
    whole = {"whole": lambda: torch.mm(h, w.T, out=z)}
    times = measure.interleaved({**whole, **steps}, rounds=args.rounds, warmup=0.2)
    print(f"N {N} D {D} V {V} fp32, speed as a share of one product of the whole; {measure.environment()}")
    print("rows \\ tile" + "".join(f"{tile:>8}" for tile in tiles))
    for rows in (32, 64, 128, 256):
        shares = (times["whole"].median / times[f"{rows} {tile}"].median for tile in tiles)
        print(f"{rows:>11}" + "".join(f"{share:>8.2f}" for share in shares))


if __name__ == "__main__":
    main()
