-- Under load: a new table; locks nothing that is in use.
--
-- The worker fleet: who is there, what it can do, and whether it is alive. Workers serve all
-- tenants, so there is no tenant here. A worker's life:
--
--     register_worker -> starting -> first heartbeat -> active -> drain_worker -> draining
--     -> deregister_worker (the row goes); or: silent for three intervals -> dead
--
-- A worker that is told false by heartbeat was declared dead, or is unknown: what it had was given
-- away. It stops its work and registers again.
CREATE TABLE elsa_runtime.worker_registration (
    worker_id varchar(255) NOT NULL,
    host_name varchar(255) NOT NULL,
    version varchar(100) NOT NULL,
    queues text[] NOT NULL,
    capabilities text[] NOT NULL,
    capacity integer NOT NULL,
    current_load integer NOT NULL DEFAULT 0,
    state varchar(20) NOT NULL DEFAULT 'starting',
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    last_heartbeat_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    heartbeat_interval_seconds integer NOT NULL,
    CONSTRAINT worker_registration_pkey PRIMARY KEY (worker_id),
    CONSTRAINT worker_registration_worker_id_check CHECK (worker_id <> ''),
    CONSTRAINT worker_registration_host_name_check CHECK (host_name <> ''),
    CONSTRAINT worker_registration_capacity_check CHECK (capacity > 0),
    CONSTRAINT worker_registration_current_load_check CHECK (current_load >= 0),
    CONSTRAINT worker_registration_state_check CHECK (
        state IN ('starting', 'active', 'draining', 'dead')
    ),
    CONSTRAINT worker_registration_heartbeat_interval_check CHECK (
        heartbeat_interval_seconds BETWEEN 1 AND 3600
    )
)
-- A heartbeat updates the row in place (HOT): the page has room, and no index holds its columns.
WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0.1);

-- The living are few and the dead pile up, so finding the stale ones reads the living only. An
-- index on last_heartbeat_at would have to be written by every heartbeat.
CREATE INDEX idx_worker_registration_living
ON elsa_runtime.worker_registration (worker_id) WHERE state IN ('starting', 'active', 'draining');
CREATE INDEX idx_worker_registration_queues
ON elsa_runtime.worker_registration USING gin (queues) WHERE state IN ('starting', 'active', 'draining');

CREATE FUNCTION elsa_runtime.register_worker(
    p_worker_id varchar,
    p_host_name varchar,
    p_version varchar,
    p_queues text[],
    p_capacity integer,
    p_capabilities text[] DEFAULT '{}',
    p_heartbeat_interval_seconds integer DEFAULT 15
)
RETURNS void
LANGUAGE sql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    -- The same id again is the same worker after a restart: it begins anew.
    INSERT INTO elsa_runtime.worker_registration AS w (
        worker_id, host_name, version, queues, capabilities, capacity, heartbeat_interval_seconds
    )
    VALUES (
        p_worker_id,
        p_host_name,
        p_version,
        p_queues,
        p_capabilities,
        p_capacity,
        p_heartbeat_interval_seconds
    )
    ON CONFLICT (worker_id) DO UPDATE
        SET
            host_name = excluded.host_name,
            version = excluded.version,
            queues = excluded.queues,
            capabilities = excluded.capabilities,
            capacity = excluded.capacity,
            current_load = 0,
            state = 'starting',
            started_at = clock_timestamp(),
            last_heartbeat_at = clock_timestamp(),
            heartbeat_interval_seconds = excluded.heartbeat_interval_seconds
$function$;

CREATE FUNCTION elsa_runtime.heartbeat(p_worker_id varchar, p_current_load integer)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    UPDATE elsa_runtime.worker_registration AS w
    SET
        last_heartbeat_at = clock_timestamp(),
        current_load = p_current_load,
        state = CASE w.state WHEN 'starting' THEN 'active' ELSE w.state END
    WHERE w.worker_id = p_worker_id AND w.state <> 'dead';
    RETURN FOUND;
END
$function$;

CREATE FUNCTION elsa_runtime.drain_worker(p_worker_id varchar)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    UPDATE elsa_runtime.worker_registration AS w
    SET state = 'draining'
    WHERE w.worker_id = p_worker_id AND w.state <> 'dead';
    RETURN FOUND;
END
$function$;

CREATE FUNCTION elsa_runtime.deregister_worker(p_worker_id varchar)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    DELETE FROM elsa_runtime.worker_registration AS w WHERE w.worker_id = p_worker_id;
    RETURN FOUND;
END
$function$;

-- A job, once a minute. A row that is being written has a heartbeat on its way: passed over.
CREATE FUNCTION elsa_runtime.mark_dead_workers()
RETURNS integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_marked integer;
BEGIN
    WITH silent AS MATERIALIZED (
        SELECT w.worker_id
        FROM elsa_runtime.worker_registration AS w
        WHERE
            w.state IN ('starting', 'active', 'draining')
            AND w.last_heartbeat_at
            < clock_timestamp() - make_interval(secs => 3 * w.heartbeat_interval_seconds)
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE elsa_runtime.worker_registration AS w
    SET state = 'dead'
    FROM silent
    WHERE w.worker_id = silent.worker_id;
    GET DIAGNOSTICS v_marked = ROW_COUNT;

    -- Where each start of a worker has a name of its own, the dead would pile up.
    DELETE FROM elsa_runtime.worker_registration AS w
    WHERE w.state = 'dead' AND w.last_heartbeat_at < clock_timestamp() - interval '7 days';
    RETURN v_marked;
END
$function$;

-- Who can be given work now, without waiting for the job to notice a death.
CREATE VIEW elsa_runtime.live_workers
WITH (security_invoker = true)
AS
SELECT
    w.worker_id,
    w.host_name,
    w.version,
    w.queues,
    w.capabilities,
    w.capacity,
    w.current_load,
    w.state,
    w.started_at,
    w.last_heartbeat_at
FROM elsa_runtime.worker_registration AS w
WHERE
    w.state IN ('starting', 'active', 'draining')
    AND w.last_heartbeat_at
    >= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => 3 * w.heartbeat_interval_seconds);

-- The functions are the only way to write.
REVOKE INSERT, UPDATE, DELETE ON TABLE elsa_runtime.worker_registration, elsa_runtime.live_workers
FROM elsa_user;
GRANT SELECT ON TABLE elsa_runtime.worker_registration, elsa_runtime.live_workers TO monitoring;
GRANT EXECUTE ON FUNCTION elsa_runtime.register_worker(
    varchar, varchar, varchar, text[], integer, text[], integer
) TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.heartbeat(varchar, integer) TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.drain_worker(varchar) TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.deregister_worker(varchar) TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.mark_dead_workers() TO elsa_jobs, elsa_admin;

COMMENT ON TABLE elsa_runtime.worker_registration IS
'The worker fleet, one row per worker; written by the functions register_worker, heartbeat and so on.';
COMMENT ON COLUMN elsa_runtime.worker_registration.worker_id IS
'Identifies the worker; what locked_by and leased_by say.';
COMMENT ON COLUMN elsa_runtime.worker_registration.host_name IS 'The machine or pod it runs on.';
COMMENT ON COLUMN elsa_runtime.worker_registration.version IS 'Its software''s version.';
COMMENT ON COLUMN elsa_runtime.worker_registration.queues IS 'The queues it takes tasks from.';
COMMENT ON COLUMN elsa_runtime.worker_registration.capabilities IS
'What it can run, such as kinds of activities.';
COMMENT ON COLUMN elsa_runtime.worker_registration.capacity IS 'How many tasks it runs at once.';
COMMENT ON COLUMN elsa_runtime.worker_registration.current_load IS
'How many it runs, by its last heartbeat.';
COMMENT ON COLUMN elsa_runtime.worker_registration.state IS
'starting, active, draining (takes no new tasks) or dead (three heartbeats missed).';
COMMENT ON COLUMN elsa_runtime.worker_registration.started_at IS 'When it registered.';
COMMENT ON COLUMN elsa_runtime.worker_registration.last_heartbeat_at IS
'When it was last heard of.';
COMMENT ON COLUMN elsa_runtime.worker_registration.heartbeat_interval_seconds IS
'How often it means to be heard of, in seconds.';
COMMENT ON INDEX elsa_runtime.idx_worker_registration_living IS
'The workers that are not dead, among which the stale ones are.';
COMMENT ON INDEX elsa_runtime.idx_worker_registration_queues IS 'Living workers of a queue.';
COMMENT ON VIEW elsa_runtime.live_workers IS
'Workers that were heard of within three of their heartbeat intervals.';
COMMENT ON FUNCTION elsa_runtime.register_worker(
    varchar, varchar, varchar, text[], integer, text[], integer
) IS 'Adds a worker, or starts it anew under the same id.';
COMMENT ON FUNCTION elsa_runtime.heartbeat(varchar, integer) IS
'Says that a worker lives and how many tasks it runs; false if it must register again.';
COMMENT ON FUNCTION elsa_runtime.drain_worker(varchar) IS
'Tells that a worker takes no new tasks; false if it is dead or unknown.';
COMMENT ON FUNCTION elsa_runtime.deregister_worker(varchar) IS
'Removes a worker that has stopped; false if it is unknown.';
COMMENT ON FUNCTION elsa_runtime.mark_dead_workers() IS
'Marks workers dead that missed three heartbeats, returns how many; forgets the dead after 7 days.';
