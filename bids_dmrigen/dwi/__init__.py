"""Diffusion-MRI data and physics: gradients, tensors, noise, artefacts of Fourier imaging."""
