"""Simulated brains, whose true values are known: anatomy, signal, scanner."""
