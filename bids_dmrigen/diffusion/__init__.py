"""The generative core: processes, samplers, training, weights."""
