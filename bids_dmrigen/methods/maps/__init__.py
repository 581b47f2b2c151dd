"""Maps: FA, MD and colour FA from few directions."""
