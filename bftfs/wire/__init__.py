"""Messages as bytes: the canonical codec, bounded frames, and the authenticated channel."""
