"""What only those need who train the embedded model, measure or evaluate; the WebUI loads nothing of it."""
