"""The inside of :mod:`cos_ext.functional`: checks, results, and the operators that emit nothing.

Import their names from cos_ext.functional. No arithmetic here: it is in csrc/core.
"""
