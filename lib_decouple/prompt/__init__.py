"""What a prompt says: its syntax, the things it names, and where their tokens stand. Text only, no torch."""
