"""What persistent kernels ask of the host: whether a matrix has a tensor descriptor, and how many programs fit."""

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes, of every row and of the base


def aligned(x: Tensor) -> bool:
    """x [rows, columns] with contiguous rows."""
    return x.data_ptr() % ALIGNMENT == 0 and x.stride(0) * x.element_size() % ALIGNMENT == 0


def multiprocessors(device: torch.device) -> int:
    return 4 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count
