"""Runs as one page that people look at, and its tables as CSV and LaTeX."""
