"""The parts of no_relu.py: its two networks, and how they are trained.

Nothing is converted here, and no table is drawn.
"""
