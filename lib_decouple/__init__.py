"""Attention Decoupling: steer the latents so that no entity of a prompt is lost."""

__version__ = "0.1.0"
