"""What the kernels share: the weight-streaming loop, launches, tiles, devices, checks."""
