"""Flat data divided among clients: partitioners, statistics, files and a picture."""
