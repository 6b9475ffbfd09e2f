-- elsapg: database=elsa_runtime
-- elsapg: after=migrations

-- Retention of elsa_runtime: one bounded step of it, as in 067_retention.sql.
CREATE OR REPLACE FUNCTION elsa_runtime.cleanup_old_data(p_limit integer DEFAULT 5000)
RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF p_limit IS NULL OR p_limit NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'limit %: must be 1 to 100000', p_limit
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN nullif(
        elsa_runtime.snapshot_batch(p_limit)
        + elsa_runtime.lock_batch(p_limit)
        + elsa_runtime.task_batch(p_limit),
        0
    );
END
$function$;
ALTER FUNCTION elsa_runtime.cleanup_old_data(integer) OWNER TO elsa_maintenance;
REVOKE ALL ON FUNCTION elsa_runtime.cleanup_old_data(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsa_runtime.cleanup_old_data(integer) TO elsa_jobs, elsa_admin;
COMMENT ON FUNCTION elsa_runtime.cleanup_old_data(integer) IS
'One step of retention: rows deleted, or NULL when nothing is left. Call it until then.';
