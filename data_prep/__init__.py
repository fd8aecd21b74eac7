"""Images to dataset folders (contract 1)."""
