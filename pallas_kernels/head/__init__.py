"""Final RMSNorm, vocabulary projection, and the argmax or the logits."""
