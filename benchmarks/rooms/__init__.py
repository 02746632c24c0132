"""How far an operation travels through the code, and how much code there is.

`python -m benchmarks.rooms` traces single operations in the simulated deployment and counts the
files and functions that they pass. A reader who follows an operation has to open all of these
files, so the counts judge a change of structure. `--tree DIR` counts another checkout, by running
this package on the code there.

`tracing` records calls and counts them; `cluster` performs the operations; `lies` follows one false
reply through a client; `memories` finds the objects that remember it; `text` counts the source;
`instructions` counts what an operation executes; `inside` is what runs in the other tree.
"""
