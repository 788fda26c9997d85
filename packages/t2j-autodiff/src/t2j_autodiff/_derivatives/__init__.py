"""Derivatives of flat torch functions in both modes, computed by torch."""
