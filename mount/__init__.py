"""The FUSE front end: kernel requests in, conversations of `bftfs.filesystem` out, and back.

A protocol adapter: it translates numbers to object ids, attributes to `struct stat` and errors to
errno, and knows nothing of what a file or directory means. Only `operations` and `main` import
pyfuse3.
"""
