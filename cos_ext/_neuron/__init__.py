"""The inside of :mod:`cos_ext.neuron`: its settings, its tensors, and which operator serves it.

IFNode itself is in cos_ext/neuron.py.
"""
