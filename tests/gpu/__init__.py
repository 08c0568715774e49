"""Compiled kernels on an NVIDIA GPU: `pytest tests/gpu`, in one process.

With TOKENSPEED_GPU_TESTS_INTERPRET=1 the same tests run anywhere, on fewer draws, with the kernels interpreted.
"""
