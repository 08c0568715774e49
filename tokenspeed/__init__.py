"""TokenSpeed: a Flax LLaMA decoder served by the fused kernels in ``pallas_kernels``."""
