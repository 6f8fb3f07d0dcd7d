"""Judge a checkpoint with and without guidance: runs, judges, people, report."""
