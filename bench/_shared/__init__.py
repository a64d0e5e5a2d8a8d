"""What several scripts of bench/ need: time, machine, peers, records, tables, checkpoints.

No question is answered here. What only one script needs stays with that script.
"""
