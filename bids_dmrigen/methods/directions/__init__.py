"""Directions: a shell with more directions than were acquired."""
