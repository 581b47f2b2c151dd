"""Denoising: a run's volumes without their noise."""
