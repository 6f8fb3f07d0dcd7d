"""The commands: drawing, the paper's analysis, costs. Needs the packages of requirements.txt."""
