"""The laboratory of weighting rules: evidence computed once, then any setting in a moment."""
