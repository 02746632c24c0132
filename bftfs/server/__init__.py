"""What only nodes run: the server step, background work, and room on the disk."""
