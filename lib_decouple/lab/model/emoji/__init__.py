"""The making of a model that draws things which people recognise: sprites, scenes, training, judge."""
