"""``bench``: what guidance costs, and what each cheaper way loses, side by side."""
