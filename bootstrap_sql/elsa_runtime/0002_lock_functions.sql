-- Under load: ACCESS EXCLUSIVE on distributed_locks while an index is dropped and one is built over
-- a table of a few pages (milliseconds), given up after lock_timeout. Each function is replaced
-- between two calls of it.
--
-- The lock functions, made cheaper: why so, in docs/decisions/0010-locks.md. What a
-- client can rely on is what 0001 says, and more exactly:
--   * acquiring does not wait for another client's acquisition, renewal or release, however long it
--     takes to commit: while one is under way the answer is "no". (For the purge of a lock that
--     ended a day ago it waits, milliseconds.)
--   * a "no" writes nothing. It locks nothing either, except when the row changed between the look
--     at it and the try for it (microseconds): then the row stays locked until the transaction
--     ends. One more reason to acquire in a short transaction of its own;
--   * at REPEATABLE READ and SERIALIZABLE a lock that changed hands since the transaction's
--     snapshot is a "no", never a wrong "yes".

-- Acquiring and releasing update the row in place (HOT): no B-tree may hold what they change, and
-- the page needs room for a few versions.
ALTER TABLE elsa_runtime.distributed_locks SET (
    fillfactor = 50,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_scale_factor = 0.1
);

-- The purge asks for "expires_at < ...". A BRIN index answers that from ranges of pages and, unlike
-- the B-tree it replaces, lets an update of expires_at stay in place.
-- squawk-ignore require-concurrent-index-deletion
DROP INDEX elsa_runtime.idx_distributed_locks_expires_at;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX idx_distributed_locks_expires_at
ON elsa_runtime.distributed_locks USING brin (expires_at) WITH (pages_per_range = 16);

-- Decides. For acquire_lock and acquire_fenced_lock, whose rights and search_path it runs with.
CREATE FUNCTION elsa_runtime.try_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS bigint
LANGUAGE plpgsql
VOLATILE
AS $function$
DECLARE
    -- Never now(), which is when the transaction began. Read once: a clock that is set back meanwhile
    -- cannot make two parts of the statement disagree, and should it wait, an old time is the
    -- careful one: it ends no lease early.
    v_now timestamptz := clock_timestamp();
    v_token bigint;
BEGIN
    -- One expression; which argument is wrong, if one is, costs only then.
    IF (
        length(p_resource_name) BETWEEN 1 AND 255
        AND length(p_lock_id) BETWEEN 1 AND 255
        AND length(p_locked_by) BETWEEN 1 AND 255
        AND p_duration_seconds BETWEEN 1 AND 86400
    ) IS NOT TRUE THEN
        PERFORM elsa_runtime.check_lock_arguments(
            p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
        );
    END IF;

    -- This statement decides, by its condition "free, or the caller's own", which PostgreSQL judges
    -- on the row as it is once it is locked. A new holder's token is drawn from the version of the
    -- row that it replaces, so tokens grow with each holder. The same holder asking again (a retry
    -- whose answer was lost) extends its lease and keeps its token.
    --
    -- The advisory lock decides nothing. Everybody who changes the row holds it until the end of
    -- the transaction, so whoever does not get it would have to wait for one of them: "no".
    UPDATE elsa_runtime.distributed_locks AS l
    SET
        lock_id = p_lock_id,
        locked_by = p_locked_by,
        locked_at = CASE WHEN l.expires_at > v_now THEN l.locked_at ELSE v_now END,
        fencing_token = CASE
            WHEN l.expires_at > v_now THEN l.fencing_token
            ELSE nextval('elsa_runtime.fencing_token_seq')
        END,
        expires_at = greatest(l.expires_at, v_now + make_interval(secs => p_duration_seconds))
    WHERE
        l.resource_name = p_resource_name
        AND CASE
            WHEN l.expires_at <= v_now OR (l.lock_id = p_lock_id AND l.locked_by = p_locked_by)
                THEN pg_try_advisory_xact_lock(hashtextextended(p_resource_name, 6379226))
            ELSE false
        END
    RETURNING l.fencing_token INTO v_token;
    IF FOUND THEN
        RETURN v_token;
    END IF;

    IF EXISTS (
        SELECT FROM elsa_runtime.distributed_locks AS l WHERE l.resource_name = p_resource_name
    ) THEN
        RETURN NULL;
    END IF;

    -- A name that has no row yet. A second INSERT of it would wait for the first one's transaction.
    IF NOT pg_try_advisory_xact_lock(hashtextextended(p_resource_name, 6379226)) THEN
        RETURN NULL;
    END IF;
    INSERT INTO elsa_runtime.distributed_locks AS l (
        resource_name, lock_id, locked_by, locked_at, expires_at
    )
    VALUES (
        p_resource_name,
        p_lock_id,
        p_locked_by,
        v_now,
        v_now + make_interval(secs => p_duration_seconds)
    )
    ON CONFLICT (resource_name) DO NOTHING
    RETURNING l.fencing_token INTO v_token;
    RETURN v_token;
END
$function$;

-- Moves the end of a live lease to so many seconds from now; 0 ends it. For renew_lock and
-- release_lock.
CREATE FUNCTION elsa_runtime.move_lock_end(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
AS $function$
BEGIN
    UPDATE elsa_runtime.distributed_locks AS l
    SET expires_at = clock_timestamp() + make_interval(secs => p_duration_seconds)
    WHERE
        l.resource_name = p_resource_name
        AND l.lock_id = p_lock_id
        AND l.locked_by = p_locked_by
        -- Not waited for: a holder may change its own row whoever has this.
        AND CASE
            WHEN l.expires_at > clock_timestamp()
                THEN pg_try_advisory_xact_lock(hashtextextended(p_resource_name, 6379226)) IS NOT NULL
            ELSE false
        END;
    RETURN FOUND;
END
$function$;

-- An EXCEPTION block is a subtransaction with a transaction id of its own. So it is entered only
-- where there is something to catch: a row that changed since the snapshot of a REPEATABLE READ or
-- SERIALIZABLE transaction.
CREATE OR REPLACE FUNCTION elsa_runtime.acquire_fenced_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS bigint
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN elsa_runtime.try_lock(p_resource_name, p_lock_id, p_locked_by, p_duration_seconds);
    END IF;
    BEGIN
        RETURN elsa_runtime.try_lock(p_resource_name, p_lock_id, p_locked_by, p_duration_seconds);
    EXCEPTION
        WHEN serialization_failure THEN
            RETURN NULL;
    END;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_runtime.acquire_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar, p_duration_seconds integer
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN elsa_runtime.try_lock(
            p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
        ) IS NOT NULL;
    END IF;
    RETURN elsa_runtime.acquire_fenced_lock(
        p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
    ) IS NOT NULL;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_runtime.renew_lock(
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
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN elsa_runtime.move_lock_end(
            p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
        );
    END IF;
    BEGIN
        RETURN elsa_runtime.move_lock_end(
            p_resource_name, p_lock_id, p_locked_by, p_duration_seconds
        );
    EXCEPTION
        WHEN serialization_failure THEN
            RETURN false;
    END;
END
$function$;

-- The row stays, expired, for the next holder to update in place; the purge deletes old ones.
CREATE OR REPLACE FUNCTION elsa_runtime.release_lock(
    p_resource_name varchar, p_lock_id varchar, p_locked_by varchar
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        IF elsa_runtime.move_lock_end(p_resource_name, p_lock_id, p_locked_by, 0) THEN
            RETURN true;
        END IF;
        PERFORM elsa_runtime.check_lock_arguments(p_resource_name, p_lock_id, p_locked_by, 1);
        RETURN false;
    END IF;
    PERFORM elsa_runtime.check_lock_arguments(p_resource_name, p_lock_id, p_locked_by, 1);
    BEGIN
        RETURN elsa_runtime.move_lock_end(p_resource_name, p_lock_id, p_locked_by, 0);
    EXCEPTION
        WHEN serialization_failure THEN
            RETURN false;
    END;
END
$function$;

-- A row holds all that release_lock asks for: only those who may see every tenant's may see them.
REVOKE ALL ON TABLE elsa_runtime.distributed_locks FROM elsa_user, elsa_worker, elsa_readonly;
GRANT SELECT ON TABLE elsa_runtime.distributed_locks TO elsa_host, monitoring;

COMMENT ON INDEX elsa_runtime.idx_distributed_locks_expires_at IS
'Locks by their end, for the purge: by ranges of pages, so that updates stay in place.';
COMMENT ON FUNCTION elsa_runtime.try_lock(varchar, varchar, varchar, integer) IS
'What acquire_lock and acquire_fenced_lock do; returns the fencing token, or NULL.';
COMMENT ON FUNCTION elsa_runtime.move_lock_end(varchar, varchar, varchar, integer) IS
'What renew_lock and release_lock do: moves the end of a live lease of this holder.';
