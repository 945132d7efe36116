"""The operator on CUDA devices: Triton kernels, and when they are used."""

MAX_ROWS = 32  # that the kernel for few rows takes
