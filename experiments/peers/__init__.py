"""Other engines, measured beside ours on the same card."""
