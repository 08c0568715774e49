"""What quantised weights cost in accuracy, against the same model in float32."""
