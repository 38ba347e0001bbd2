"""The portable floor: plain torch on every device, exact, in a bounded workspace.

budget.py  what fits the workspace       products.py  h, w -> logits; exponentials -> dh, dw
rows.py    logits -> exponentials, sums and the label's entry
ops.py     the operations a compiler sees, as torch.library custom ops

docs/math.md, part 2, has the algorithm. Products take fp32 operands (float64 for float64), so bf16 and fp16 inputs
are multiplied exactly and summed in fp32, one tile of the vocabulary at a time.
"""

from __future__ import annotations

from expo_kernels.kernels.custom_ops import CustomOps
from expo_kernels.kernels.plain import ops
from expo_kernels.kernels.plain.budget import chunk_rows

BACKEND = CustomOps("plain", ops, chunk_rows, row_stride=lambda V: V)
