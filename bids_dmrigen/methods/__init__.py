"""The generative methods, one file each, and their registry."""
