"""What holds for all tests: Ctrl-C works.

A script that runs in the background starts its commands with SIGINT ignored, and what they start
inherits that, so that tests of interrupts would wait in vain.
"""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
