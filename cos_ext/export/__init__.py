"""Spiking networks for other software: as ONNX, and as NIR, there and back. The packages that are
needed are imported when they are; nothing runs here.
"""
