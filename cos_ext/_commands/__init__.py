"""The commands of `python -m cos_ext`, one file each: its options, and what it prints and writes.

A command's file has ``add(commands)``, which cos_ext/cli.py calls. What several commands share is
in options.py and compare.py. No measurement here: the other rooms measure.
"""
