-- Leases on named resources, for the scheduler and the workers.
--
-- What a client can rely on:
--   * a lock is held from the COMMIT of the transaction that acquired it until it expires or is
--     released, by one (lock_id, locked_by) at a time. Acquire in a short transaction of its own;
--   * every function answers at once instead of waiting for another client's acquisition;
--   * a lease can end under a client that was paused. Whatever the lock protects should refuse a
--     fencing token lower than one it has seen: each new holder's token is higher than all before.
CREATE SEQUENCE elsa_runtime.fencing_token_seq AS bigint;

CREATE TABLE elsa_runtime.distributed_locks (
    resource_name varchar(255) NOT NULL,
    lock_id varchar(255) NOT NULL,
    locked_by varchar(255) NOT NULL,
    locked_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    expires_at timestamptz NOT NULL,
    fencing_token bigint NOT NULL DEFAULT pg_catalog.nextval('elsa_runtime.fencing_token_seq'),
    CONSTRAINT distributed_locks_pkey PRIMARY KEY (resource_name)
);
ALTER SEQUENCE elsa_runtime.fencing_token_seq OWNED BY elsa_runtime.distributed_locks.fencing_token;

CREATE INDEX idx_distributed_locks_expires_at ON elsa_runtime.distributed_locks (expires_at);

-- Refuses what the functions below cannot mean. A day is the longest lease: one that is to last
-- longer is renewed, so that a dead holder does not block its resource for weeks.
CREATE FUNCTION elsa_runtime.check_lock_arguments(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS void
LANGUAGE plpgsql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_name text;
    v_value text;
BEGIN
    FOR v_name, v_value IN
        VALUES
        ('resource_name', p_resource_name), ('lock_id', p_lock_id), ('locked_by', p_locked_by)
    LOOP
        IF v_value IS NULL THEN
            RAISE EXCEPTION '% must not be NULL', v_name USING ERRCODE = 'null_value_not_allowed';
        ELSIF v_value = '' OR length(v_value) > 255 THEN
            RAISE EXCEPTION '% must have 1 to 255 characters, not %', v_name, length(v_value)
            USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    IF p_duration_seconds IS NULL THEN
        RAISE EXCEPTION 'duration_seconds must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF p_duration_seconds NOT BETWEEN 1 AND 86400 THEN
        RAISE EXCEPTION 'duration_seconds must be 1 to 86400, not %', p_duration_seconds
        USING
            ERRCODE = 'invalid_parameter_value',
            HINT = 'Renew the lock with renew_lock to hold it longer.';
    END IF;
END
$function$;

-- The functions run with the owner's rights: the table itself stays closed, so that a lock cannot
-- be taken, kept or dropped around them.
CREATE FUNCTION elsa_runtime.acquire_fenced_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS bigint
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_token bigint;
BEGIN
    PERFORM elsa_runtime.check_lock_arguments(
        p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
    );

    -- The usual "no" first, without locking the row: the holder's renewal must not wait for us.
    IF EXISTS (
        SELECT
        FROM elsa_runtime.distributed_locks AS l
        WHERE
            l.resource_name = p_resource_name
            AND l.expires_at > clock_timestamp()
            AND (l.lock_id, l.locked_by) <> (p_lock_id, p_locked_by)
    ) THEN
        RETURN NULL;
    END IF;

    -- Somebody else is acquiring it in a transaction that has not ended: "no" rather than wait.
    IF NOT pg_try_advisory_xact_lock(
        hashtextextended('elsa_runtime.distributed_locks:' || p_resource_name, 0)
    ) THEN
        RETURN NULL;
    END IF;

    -- One statement decides, on the row as it is once it is locked, at the clock's time and not
    -- the transaction's. nextval runs after the row is locked, so tokens grow with each holder. The
    -- same holder asking again (a retry whose answer was lost) extends its lease, same token.
    INSERT INTO elsa_runtime.distributed_locks AS l (
        resource_name, lock_id, locked_by, locked_at, expires_at
    )
    VALUES (
        p_resource_name,
        p_lock_id,
        p_locked_by,
        clock_timestamp(),
        clock_timestamp() + make_interval(secs => p_duration_seconds)
    )
    ON CONFLICT (resource_name) DO UPDATE
        SET
            lock_id = p_lock_id,
            locked_by = p_locked_by,
            locked_at = CASE
                WHEN l.expires_at > clock_timestamp() THEN l.locked_at ELSE clock_timestamp()
            END,
            fencing_token = CASE
                WHEN l.expires_at > clock_timestamp() THEN l.fencing_token
                ELSE nextval('elsa_runtime.fencing_token_seq')
            END,
            expires_at = greatest(
                l.expires_at, clock_timestamp() + make_interval(secs => p_duration_seconds)
            )
        WHERE
            l.expires_at <= clock_timestamp()
            OR (l.lock_id, l.locked_by) = (p_lock_id, p_locked_by)
    RETURNING l.fencing_token INTO v_token;
    RETURN v_token;
EXCEPTION
    -- REPEATABLE READ and SERIALIZABLE: the row changed since our snapshot was taken.
    WHEN serialization_failure THEN
        RETURN NULL;
END
$function$;

CREATE FUNCTION elsa_runtime.acquire_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS boolean
LANGUAGE sql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT elsa_runtime.acquire_fenced_lock(
        p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
    ) IS NOT NULL
$function$;

-- False: the lock is not held by this holder any more; it must stop its work.
CREATE FUNCTION elsa_runtime.renew_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM elsa_runtime.check_lock_arguments(
        p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
    );
    UPDATE elsa_runtime.distributed_locks AS l
    SET expires_at = clock_timestamp() + make_interval(secs => p_duration_seconds)
    WHERE
        l.resource_name = p_resource_name
        AND l.lock_id = p_lock_id
        AND l.locked_by = p_locked_by
        AND l.expires_at > clock_timestamp();
    RETURN FOUND;
EXCEPTION
    WHEN serialization_failure THEN
        RETURN false;
END
$function$;

-- False: there was nothing of this holder's to release. The row stays, expired: a token issued
-- before its deletion could otherwise be followed by a lower one.
CREATE FUNCTION elsa_runtime.release_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM elsa_runtime.check_lock_arguments(p_resource_name, p_lock_id, p_locked_by, 1);
    UPDATE elsa_runtime.distributed_locks AS l
    SET expires_at = clock_timestamp()
    WHERE
        l.resource_name = p_resource_name
        AND l.lock_id = p_lock_id
        AND l.locked_by = p_locked_by
        AND l.expires_at > clock_timestamp();
    RETURN FOUND;
EXCEPTION
    WHEN serialization_failure THEN
        RETURN false;
END
$function$;

REVOKE ALL ON TABLE elsa_runtime.distributed_locks FROM elsa_user;
REVOKE ALL ON SEQUENCE elsa_runtime.fencing_token_seq FROM elsa_user;
GRANT SELECT ON TABLE elsa_runtime.distributed_locks
TO elsa_user, elsa_worker, elsa_readonly, backup;
GRANT EXECUTE ON FUNCTION elsa_runtime.acquire_lock(varchar, varchar, varchar, integer)
TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.acquire_fenced_lock(varchar, varchar, varchar, integer)
TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.renew_lock(varchar, varchar, varchar, integer)
TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.release_lock(varchar, varchar, varchar)
TO elsa_user, elsa_worker;

COMMENT ON TABLE elsa_runtime.distributed_locks IS
'One row per resource that was ever locked; the lock is held while expires_at lies ahead.';
COMMENT ON COLUMN elsa_runtime.distributed_locks.resource_name IS 'What is locked.';
COMMENT ON COLUMN elsa_runtime.distributed_locks.lock_id IS 'Identifies one acquisition; chosen by the client.';
COMMENT ON COLUMN elsa_runtime.distributed_locks.locked_by IS 'Who holds it, such as a worker''s name.';
COMMENT ON COLUMN elsa_runtime.distributed_locks.locked_at IS 'When this holder got it.';
COMMENT ON COLUMN elsa_runtime.distributed_locks.expires_at IS 'When it ends unless it is renewed.';
COMMENT ON COLUMN elsa_runtime.distributed_locks.fencing_token IS
'Grows with every new holder; what the lock protects should refuse a lower one than it has seen.';
COMMENT ON SEQUENCE elsa_runtime.fencing_token_seq IS 'Source of the fencing tokens.';
COMMENT ON INDEX elsa_runtime.idx_distributed_locks_expires_at IS 'Locks by their end.';
COMMENT ON FUNCTION elsa_runtime.check_lock_arguments(varchar, varchar, varchar, integer) IS
'Refuses NULL, empty and over-long names, and durations outside 1 to 86400 seconds.';
COMMENT ON FUNCTION elsa_runtime.acquire_lock(varchar, varchar, varchar, integer) IS
'Takes or extends a lock for so many seconds; true if the caller holds it once it commits.';
COMMENT ON FUNCTION elsa_runtime.acquire_fenced_lock(varchar, varchar, varchar, integer) IS
'As acquire_lock, but returns the fencing token, or NULL if another holds the lock.';
COMMENT ON FUNCTION elsa_runtime.renew_lock(varchar, varchar, varchar, integer) IS
'Sets a held lock''s end to so many seconds from now; false if the caller does not hold it.';
COMMENT ON FUNCTION elsa_runtime.release_lock(varchar, varchar, varchar) IS
'Ends a held lock; false if the caller does not hold it.';
