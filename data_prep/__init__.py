"""Turns images into dataset folders (contract 1)."""
