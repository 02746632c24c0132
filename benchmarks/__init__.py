"""Benchmarks: what a user of the file system feels, and what one operation costs.

`python -m benchmarks SCENARIO …` runs one of the modules in `scenarios/`, each of which answers one
question.  A scenario measures phases through a `Session`; what comes out is a `Result`: parameters,
machine, commit and every sample.  Tables are made from results (also from files of results), never
from anything else.
"""
