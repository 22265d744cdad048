-- Every pair of draws of one question: whether the likeliest token differs, and the bounds of the divergence; at the
-- first position (any row), and at all positions (reference rows, where the words are the same).
SELECT * EXCLUDE (against) FROM apart WHERE against = 'draw'
