"""The generative core: noising processes, samplers, training, weights."""
