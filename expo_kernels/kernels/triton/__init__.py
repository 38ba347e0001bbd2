"""The Triton backend: kernels for NVIDIA and AMD cards, and for a CPU through Triton's interpreter.

In the order the data flows:

    head/        hidden states -> log-probs and E', by one of two routes (scoring.py)
      library      product/ -> rows.py (a row of logits -> its sums and its E')
      fused        labels.py (the offset) -> fused.py or fused_persistent.py (product with the exponential epilogue)
                   -> merge.py (sums over tiles; which rows to redo)
    sequences/   segments.py (log-probs -> sums); pairs.py (sums, EXPO's loss and coefficients in one launch)
    gradient/    scale.py (row scales) around product/ or sparse.py (kept entries only); head/labels.py (the label's
                 entries); columns.py (db)

    product/     the library's, or ours              tuning/    tile shapes an architecture
    device.py    the formulas they share             descriptors.py  what tensor descriptors ask for
    budget.py    what fits the workspace             ops.py     the operations as torch.library custom ops

docs/kernels.md has what each reads and writes, and what it compiles to.
"""

from __future__ import annotations

from expo_kernels.kernels.custom_ops import CustomOps
from expo_kernels.kernels.triton import ops
from expo_kernels.kernels.triton.budget import chunk_rows, padded
from expo_kernels.kernels.triton.sequences.pairs import NAMES

# rows of the workspace begin at whole vectors, which tensor descriptors and fast products ask for
BACKEND = CustomOps("triton", ops, chunk_rows, row_stride=padded, pair_forms=frozenset(NAMES))
