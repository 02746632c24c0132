"""Checkers: one invariant each, judged from outside on recorded histories.

A checker gives its findings as sentences; no finding means that the invariant held. Every checker
has a test in which it finds a violation: one that has never failed proves nothing.
"""
