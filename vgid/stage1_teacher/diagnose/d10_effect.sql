-- Divergence from the same question in view base: at the first position (any row), and at all positions of reference
-- rows.
SELECT * EXCLUDE (against, flips, flips_forced) FROM apart WHERE against = 'base'
