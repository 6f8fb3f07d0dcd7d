"""The making of the embedded model: scenes, training, export, and the judge of its pictures."""
