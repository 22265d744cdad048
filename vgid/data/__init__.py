"""Examples, the readers that produce them, and the fictitious benchmark."""
