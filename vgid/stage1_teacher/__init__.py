"""Stage one: the frozen base model under intervention writes top-k distributions into the cache."""
