"""Image-quality metrics, figures and report specifications."""
