"""Enhancement: a series as a better scanner would show it."""
