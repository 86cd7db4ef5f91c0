"""What is decided layer by layer from a reading of the weights, before the result is laid out."""
