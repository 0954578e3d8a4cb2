"""The partitioners, one a file."""
