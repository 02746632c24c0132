"""Byzantine nodes and clients, as values that a seed can draw and a test-only program can use.

An adversary on a node decorates that node's honest servers: it has their state and the node's keys,
and nobody else's. An adversary client has its own identity, and whatever the Byzantine nodes tell
it. Each class says which sentence of which paper promises that it is harmless, and which checker
shows it.
"""
