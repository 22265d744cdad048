-- One cell's part of the Jensen-Shannon divergence (nats), and how far errors in p and q can move it.
CREATE OR REPLACE TEMP MACRO js_cross(p, q) AS ln(2 * greatest(p, 1e-300) / greatest(p + q, 1e-300));
CREATE OR REPLACE TEMP MACRO js_term(p, q) AS 0.5 * (p * js_cross(p, q) + q * js_cross(q, p));
CREATE OR REPLACE TEMP MACRO js_slack(p, q, p_error, q_error) AS
    0.525 * (abs(js_cross(p, q)) * p_error + abs(js_cross(q, p)) * q_error);
