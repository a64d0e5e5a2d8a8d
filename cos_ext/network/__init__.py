"""The spiking network and the ways to run it: by steps, by counts, in parts, captured. Nothing here
knows how it was made.
"""
