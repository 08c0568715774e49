"""The decode step, and generation on the device from step to step."""
