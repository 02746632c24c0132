"""Erasure coding of items into fragments, and the cross-checksum that binds them. [PASIS §3.4]"""
