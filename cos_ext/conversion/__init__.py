"""From a trained ANN to a spiking network: passes over a traced graph, and the rules they ask.
Nothing here needs data.
"""
