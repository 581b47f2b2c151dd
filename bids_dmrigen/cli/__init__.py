"""What a person types: the BIDS App, the tools beside it, and their settings."""
