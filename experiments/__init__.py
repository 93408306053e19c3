"""Studies: each folder holds a question, its command and committed results."""
