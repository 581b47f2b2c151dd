"""The numerics of image space: reading and writing, motion, resampling, distortion, brain mask, templates."""
