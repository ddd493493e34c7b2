"""A harness that treats bluedit badly: fuzzed files, signals, full disks, two processes at once, bad inputs.

Every trial follows from a seed, runs in a process of its own, and ends with one verdict; see :mod:`torture.trial`. What is
promised, and what the long run counted, is in docs/reliability.md.
"""
