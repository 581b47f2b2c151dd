"""What the user types: the BIDS App, the tools beside it, and their settings."""
