"""The FUSE front end: kernel requests in, conversations of `bftfs.filesystem` out, and back.

A protocol adapter: it translates numbers to object ids, attributes to `struct stat` and errors to
errno. The meaning of files and directories is in `bftfs.filesystem`.
"""
