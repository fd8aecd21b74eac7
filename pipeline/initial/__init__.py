"""The weights that a run starts from, where `init` names some."""
