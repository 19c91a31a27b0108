"""What trained models do: their scores and states at every step, curves, pictures, a page."""
