"""Attention Decoupling: steer the latents so that no entity of a prompt is lost."""

__version__ = "0.2.0"
"""The one place of it; pyproject.toml reads it here, infotexts and the doctor show it, CHANGELOG.md begins with it."""
