"""The small checkpoint that ships with the project, and how a WebUI gets it."""
