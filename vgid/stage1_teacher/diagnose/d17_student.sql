-- Divergence of the teacher from a student's own answers in view base: at the first position, and at all positions of
-- reference rows.
SELECT * EXCLUDE (against, flips, flips_forced) FROM apart WHERE against = 'student'
