-- Divergence from the retain-only model (its rows of view base), of the teacher and of the base: at the first position,
-- and at all positions of reference rows.
SELECT * EXCLUDE (against, flips, flips_forced) FROM apart WHERE against = 'retain_only'
