"""Nipype interfaces: files in, one function called, files out."""
