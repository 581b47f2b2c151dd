"""The dataset: queries, the table of output names, sidecars and provenance."""
