"""What leaves the project: exported nets, model cards, registry entries, submissions, sheets of mistakes."""
