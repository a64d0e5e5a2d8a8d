"""Parts of coverage.py: the lists of networks, the twin that says what exact is, one measurement.

No question is answered here.
"""
