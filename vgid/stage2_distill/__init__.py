"""Stage two: the student is distilled on cached targets."""
