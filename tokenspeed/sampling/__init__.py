"""From logits to tokens: parameters, their state on the device, the draw."""
