"""Planted faults: small changes of the source that the tests have to notice.

    make faults                             # all of them
    PYTHONPATH=tools python -m faults --list
    PYTHONPATH=tools python -m faults --only 3 17

`faults.toml` lists them. A fault that no test notices is a gap in the tests; close it with a test, not by taking the fault out.
"""
