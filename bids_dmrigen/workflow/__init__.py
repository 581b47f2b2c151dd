"""Nipype graphs: which node feeds which."""
