"""Brains with known truth: anatomy, signal, scanner."""
