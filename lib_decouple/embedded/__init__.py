"""The tiny checkpoint that ships with the project: its scenes, its detector, its training."""
