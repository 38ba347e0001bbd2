"""The Triton backend: kernels for NVIDIA and AMD cards, and for a CPU through Triton's interpreter.

In the order the data flows:

    scoring.py   hidden states -> log-probs and E': the two routes of the head
      library      product.py (the library's, or ours) -> rows.py (a row of logits -> its sums and its E')
      fused        labels.py (the offset) -> head.py or head_persistent.py (product with the exponential epilogue)
                   -> merge.py (sums over tiles; which rows to redo)
    segments.py  log-probs -> sequence sums          pairs.py   sums, EXPO's loss and coefficients in one launch
    backprop     scale.py (row scales) around product.py; labels.py (the label's entries); columns.py (db)

    device.py    the formulas they share             tuning.py  tile shapes an architecture
    budget.py    what fits the workspace             ops.py     the operations as torch.library custom ops

docs/kernels.md has what each reads and writes, and what it compiles to.
"""

from __future__ import annotations

from expo_kernels.kernels.custom_ops import CustomOps
from expo_kernels.kernels.triton import ops
from expo_kernels.kernels.triton.budget import chunk_rows, padded
from expo_kernels.kernels.triton.pairs import NAMES

# rows of the workspace begin at whole vectors, which tensor descriptors and fast products ask for
BACKEND = CustomOps("triton", ops, chunk_rows, row_stride=padded, pair_forms=frozenset(NAMES))
