"""One question per module: `run` measures through a session, `PHASES` names what it measures."""
