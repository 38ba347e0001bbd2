"""Which tiles a card's kernels run fastest with, measured on that card, and the table that the library reads them from.

    python -m tools.tuning --write                    every kernel, then the route; expo_kernels/.../tuning/cards.py
    python -m tools.tuning --kernels walk head        what it would write, for some of them

A candidate is compiled and held against the gates of tools/machine_code, then checked on the device (float64, its
bits), and only then timed, all of a kernel's in turn. What is in the table stays unless beaten by more than noise.

candidates.py  what is tried        gates.py    what compiles as it must, many at once
subjects.py    what is run          checks.py   whether it is right           table.py   the file
search.py      a kernel's winner    route.py    the library's product, or ours
"""
