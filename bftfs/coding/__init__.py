"""Erasure coding of data-items into fragments, and their cross-checksum. [PASIS §3.4]"""
