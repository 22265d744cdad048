-- What the cache holds of each variant; a row without noise or instruction belongs to every variant that lacks it.
SELECT
    perturbation, strength, noise_seed, icu_id, engine_id, count(*) FILTER (split = 'forget') AS forget_rows,
    count(*) AS rows
FROM targets
GROUP BY ALL
