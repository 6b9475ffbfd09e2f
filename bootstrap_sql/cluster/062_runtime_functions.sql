-- elsapg: database=elsa_runtime
-- elsapg: after=migrations

-- Deletes what has had its time in elsa_runtime, for all tenants. Each call is one bounded batch;
-- cleanup_old_data (068_retention_runtime.sql) loops over them and commits in between, so that no run holds
-- locks, or keeps vacuum from its work, for long. They run as elsa_maintenance, whom row-level
-- security does not bind. Rows that somebody is using are passed over until the next run.

CREATE OR REPLACE FUNCTION elsa_runtime.snapshot_batch(p_limit integer)
RETURNS integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_before timestamptz := now() - make_interval(hours => elsapg.setting('snapshots_hours'));
    v_deleted integer;
BEGIN
    IF (p_limit >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'limit must be 1 or more, not %', coalesce(p_limit::text, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM elsa_runtime.execution_state_snapshots AS s
    WHERE
        s.ctid = ANY(
            ARRAY(
                SELECT o.ctid
                FROM elsa_runtime.execution_state_snapshots AS o
                WHERE o.created_at < v_before
                ORDER BY o.created_at
                LIMIT p_limit
                FOR UPDATE SKIP LOCKED
            )
        );
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN v_deleted;
END
$function$;

-- A lock is forgotten a day after it ended. A later holder's token is higher all the same: tokens
-- come from a sequence, which knows nothing of rows, never goes back, and survives a crash or a
-- failover ahead of what was committed.
CREATE OR REPLACE FUNCTION elsa_runtime.lock_batch(p_limit integer)
RETURNS integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_deleted integer;
BEGIN
    IF (p_limit >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'limit must be 1 or more, not %', coalesce(p_limit::text, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM elsa_runtime.distributed_locks AS l
    WHERE
        l.ctid = ANY(
            ARRAY(
                SELECT o.ctid
                FROM elsa_runtime.distributed_locks AS o
                WHERE o.expires_at < now() - interval '1 day'
                LIMIT p_limit
                FOR UPDATE SKIP LOCKED
            )
        );
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN v_deleted;
END
$function$;

-- Done tasks, as old as snapshots may get. Dead ones stay for a person to look at.
CREATE OR REPLACE FUNCTION elsa_runtime.task_batch(p_limit integer)
RETURNS integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_before timestamptz := now() - make_interval(hours => elsapg.setting('snapshots_hours'));
    v_deleted integer;
BEGIN
    IF (p_limit >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'limit must be 1 or more, not %', coalesce(p_limit::text, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM elsa_runtime.task_queue_state AS t
    WHERE
        t.ctid = ANY(
            ARRAY(
                SELECT o.ctid
                FROM elsa_runtime.task_queue_state AS o
                WHERE o.state = 'done' AND o.updated_at < v_before
                ORDER BY o.updated_at
                LIMIT p_limit
                FOR UPDATE SKIP LOCKED
            )
        );
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN v_deleted;
END
$function$;

-- By hand, and under the name that the design gives it: one batch of at most 10 000 rows. The job
-- goes on until there are no more.
CREATE OR REPLACE FUNCTION elsa_runtime.cleanup_old_snapshots()
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM elsa_runtime.snapshot_batch(10000);
END
$function$;

CREATE OR REPLACE FUNCTION elsa_runtime.purge_expired_locks()
RETURNS integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN elsa_runtime.lock_batch(10000);
END
$function$;

ALTER FUNCTION elsa_runtime.snapshot_batch(integer) OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_runtime.lock_batch(integer) OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_runtime.task_batch(integer) OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_runtime.cleanup_old_snapshots() OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_runtime.purge_expired_locks() OWNER TO elsa_maintenance;
REVOKE ALL ON FUNCTION
elsa_runtime.snapshot_batch(integer),
elsa_runtime.lock_batch(integer),
elsa_runtime.task_batch(integer),
elsa_runtime.cleanup_old_snapshots(),
elsa_runtime.purge_expired_locks()
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
elsa_runtime.snapshot_batch(integer),
elsa_runtime.lock_batch(integer),
elsa_runtime.task_batch(integer),
elsa_runtime.cleanup_old_snapshots(),
elsa_runtime.purge_expired_locks()
TO elsa_jobs, elsa_admin;

COMMENT ON FUNCTION elsa_runtime.snapshot_batch(integer) IS
'Deletes up to so many snapshots older than snapshots_hours, of all tenants; returns how many.';
COMMENT ON FUNCTION elsa_runtime.lock_batch(integer) IS
'Deletes up to so many locks that ended more than a day ago; returns how many.';
COMMENT ON FUNCTION elsa_runtime.task_batch(integer) IS
'Deletes up to so many done tasks older than snapshots_hours, of all tenants; returns how many.';
COMMENT ON FUNCTION elsa_runtime.cleanup_old_snapshots() IS
'Deletes old snapshots, at most 10000 per call.';
COMMENT ON FUNCTION elsa_runtime.purge_expired_locks() IS
'Deletes locks that ended more than a day ago, at most 10000 per call; returns how many.';
