"""Synthesis: images of any b-value and direction from the b0."""
