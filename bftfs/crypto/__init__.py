"""Digests, keys, authenticators and ciphers; every primitive has one named use."""
