-- Under load: a new table; locks nothing that is in use.
--
-- Queues of tasks, one row per task. What a worker can rely on:
--   * claim_tasks gives a task to one worker at a time. It does not wait for other workers;
--   * a claim is a lease. If it ends before complete_task, fail_task or extend_task_lease, the next
--     claim takes the task back and gives it away again: a task is run at least once;
--   * each claim has a number, the attempt. Whoever comes with an old one is told false, whatever
--     it did meanwhile. Pass it on as a fencing token to what must not be done twice;
--   * a task that failed, or killed its worker, max_attempts times is dead and is left alone.
--
--     pending -> claim_tasks -> leased -> complete_task -> done
--     leased -> fail_task or the lease ends -> failed (waits, then as pending), or dead
--
-- The functions run with the caller's rights: row-level security decides what they see. A tenant's
-- role works on its tenant's tasks. elsa_host claims across tenants; to complete, fail or extend a
-- task it says in app.current_tenant_id whose task that is, as for any other write.
CREATE TABLE elsa_runtime.task_queue_state (
    queue_name varchar(255) NOT NULL,
    task_id varchar(255) NOT NULL,
    state varchar(20) NOT NULL DEFAULT 'pending',
    priority integer NOT NULL DEFAULT 0,
    available_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 5,
    leased_by varchar(255),
    lease_expires_at timestamptz,
    last_error text,
    workflow_instance_id varchar(255),
    payload jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    tenant_id varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT task_queue_state_pkey PRIMARY KEY (tenant_id, queue_name, task_id),
    CONSTRAINT task_queue_state_tenant_id_check CHECK (tenant_id <> ''),
    CONSTRAINT task_queue_state_queue_name_check CHECK (queue_name <> ''),
    CONSTRAINT task_queue_state_task_id_check CHECK (task_id <> ''),
    CONSTRAINT task_queue_state_state_check CHECK (
        state IN ('pending', 'leased', 'done', 'failed', 'dead')
    ),
    CONSTRAINT task_queue_state_attempts_check CHECK (
        max_attempts > 0 AND attempts BETWEEN 0 AND max_attempts
    ),
    -- A lease has a holder and an end, and nothing else has.
    CONSTRAINT task_queue_state_lease_check CHECK (
        (state = 'leased') = (leased_by IS NOT NULL) AND (state = 'leased') = (lease_expires_at IS NOT NULL)
    ),
    CONSTRAINT task_queue_state_leased_by_check CHECK (leased_by <> '')
)
WITH (
    -- Each task changes its state three times or more.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05
);

-- A claim reads one of these in order and stops. One for a tenant's role, whose tenant row-level
-- security makes a condition; one for elsa_host, who claims across tenants.
CREATE INDEX idx_task_queue_state_tenant_claim
ON elsa_runtime.task_queue_state (tenant_id, queue_name, priority DESC, available_at)
WHERE state IN ('pending', 'failed');
CREATE INDEX idx_task_queue_state_claim
ON elsa_runtime.task_queue_state (queue_name, priority DESC, available_at)
WHERE state IN ('pending', 'failed');
CREATE INDEX idx_task_queue_state_lease_expires_at
ON elsa_runtime.task_queue_state (queue_name, lease_expires_at) WHERE state = 'leased';
CREATE INDEX idx_task_queue_state_done
ON elsa_runtime.task_queue_state (updated_at) WHERE state = 'done';

SELECT elsapg.isolate_tenants('elsa_runtime.task_queue_state');

-- The functions write with these rights. Finished tasks are deleted by the retention job.
GRANT INSERT, UPDATE ON TABLE elsa_runtime.task_queue_state TO elsa_worker;

-- False: the queue has that task already, in whatever state.
CREATE FUNCTION elsa_runtime.enqueue_task(
    p_queue_name varchar,
    p_task_id varchar,
    p_payload jsonb DEFAULT NULL,
    p_priority integer DEFAULT 0,
    p_available_at timestamptz DEFAULT NULL,
    p_max_attempts integer DEFAULT 5,
    p_workflow_instance_id varchar DEFAULT NULL
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    INSERT INTO elsa_runtime.task_queue_state (
        queue_name, task_id, payload, priority, available_at, max_attempts, workflow_instance_id
    )
    VALUES (
        p_queue_name,
        p_task_id,
        p_payload,
        p_priority,
        coalesce(p_available_at, clock_timestamp()),
        p_max_attempts,
        p_workflow_instance_id
    )
    ON CONFLICT (tenant_id, queue_name, task_id) DO NOTHING;
    RETURN FOUND;
END
$function$;

CREATE FUNCTION elsa_runtime.claim_tasks(
    p_queue_name varchar, p_worker_id varchar, p_limit integer, p_lease_seconds integer
)
RETURNS TABLE (
    tenant_id varchar,
    task_id varchar,
    attempt integer,
    workflow_instance_id varchar,
    payload jsonb,
    lease_expires_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $function$
#variable_conflict use_column
BEGIN
    IF p_queue_name IS NULL OR p_worker_id IS NULL THEN
        RAISE EXCEPTION 'queue_name and worker_id must not be NULL'
        USING ERRCODE = 'null_value_not_allowed';
    ELSIF (p_limit BETWEEN 1 AND 1000) IS NOT TRUE THEN
        RAISE EXCEPTION 'limit must be 1 to 1000, not %', coalesce(p_limit::text, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    ELSIF (p_lease_seconds BETWEEN 1 AND 86400) IS NOT TRUE THEN
        RAISE EXCEPTION 'lease_seconds must be 1 to 86400, not %', coalesce(p_lease_seconds::text, 'NULL')
        USING
            ERRCODE = 'invalid_parameter_value',
            HINT = 'Extend the lease with extend_task_lease to hold a task longer.';
    END IF;

    -- Leases that ended: their workers died or were too slow. Some per call, so that a call stays
    -- short after many died at once.
    WITH ended AS MATERIALIZED (
        SELECT t.tenant_id, t.queue_name, t.task_id
        FROM elsa_runtime.task_queue_state AS t
        WHERE
            t.queue_name = p_queue_name
            AND t.state = 'leased'
            AND t.lease_expires_at <= clock_timestamp()
        ORDER BY t.lease_expires_at
        LIMIT 1000
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE elsa_runtime.task_queue_state AS t
    SET
        state = CASE WHEN t.attempts < t.max_attempts THEN 'failed' ELSE 'dead' END,
        last_error = format('the lease of %s ended at %s', t.leased_by, t.lease_expires_at),
        leased_by = NULL,
        lease_expires_at = NULL,
        updated_at = clock_timestamp()
    FROM ended AS e
    WHERE
        t.tenant_id = e.tenant_id
        AND t.queue_name = e.queue_name
        AND t.task_id = e.task_id;

    RETURN QUERY
    WITH next AS MATERIALIZED (
        SELECT t.tenant_id, t.queue_name, t.task_id
        FROM elsa_runtime.task_queue_state AS t
        WHERE
            t.queue_name = p_queue_name
            AND t.state IN ('pending', 'failed')
            AND t.available_at <= clock_timestamp()
        ORDER BY t.priority DESC, t.available_at
        LIMIT p_limit
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE elsa_runtime.task_queue_state AS t
    SET
        state = 'leased',
        attempts = t.attempts + 1,
        leased_by = p_worker_id,
        lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds),
        updated_at = clock_timestamp()
    FROM next AS n
    WHERE
        t.tenant_id = n.tenant_id
        AND t.queue_name = n.queue_name
        AND t.task_id = n.task_id
    RETURNING t.tenant_id, t.task_id, t.attempts, t.workflow_instance_id, t.payload, t.lease_expires_at;
END
$function$;

-- The three below answer false if the task is not this worker's by this attempt any more. A lease
-- that ended but that nobody else took since still counts.
CREATE FUNCTION elsa_runtime.complete_task(
    p_queue_name varchar, p_task_id varchar, p_worker_id varchar, p_attempt integer
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    UPDATE elsa_runtime.task_queue_state AS t
    SET
        state = 'done',
        last_error = NULL,
        leased_by = NULL,
        lease_expires_at = NULL,
        updated_at = clock_timestamp()
    WHERE
        t.tenant_id = coalesce(nullif(current_setting('app.current_tenant_id', true), ''), 'default')
        AND t.queue_name = p_queue_name
        AND t.task_id = p_task_id
        AND t.state = 'leased'
        AND t.leased_by = p_worker_id
        AND t.attempts = p_attempt;
    RETURN FOUND;
END
$function$;

-- Tried again after 2, 4, 8 … seconds, an hour at most, or after p_retry_seconds.
CREATE FUNCTION elsa_runtime.fail_task(
    p_queue_name varchar,
    p_task_id varchar,
    p_worker_id varchar,
    p_attempt integer,
    p_error text,
    p_retry_seconds integer DEFAULT NULL
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF p_retry_seconds < 0 THEN
        RAISE EXCEPTION 'retry_seconds must not be negative: %', p_retry_seconds
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE elsa_runtime.task_queue_state AS t
    SET
        state = CASE WHEN t.attempts < t.max_attempts THEN 'failed' ELSE 'dead' END,
        available_at = clock_timestamp()
        + make_interval(secs => coalesce(p_retry_seconds, least(2 ^ least(t.attempts, 12), 3600))),
        last_error = p_error,
        leased_by = NULL,
        lease_expires_at = NULL,
        updated_at = clock_timestamp()
    WHERE
        t.tenant_id = coalesce(nullif(current_setting('app.current_tenant_id', true), ''), 'default')
        AND t.queue_name = p_queue_name
        AND t.task_id = p_task_id
        AND t.state = 'leased'
        AND t.leased_by = p_worker_id
        AND t.attempts = p_attempt;
    RETURN FOUND;
END
$function$;

CREATE FUNCTION elsa_runtime.extend_task_lease(
    p_queue_name varchar,
    p_task_id varchar,
    p_worker_id varchar,
    p_attempt integer,
    p_lease_seconds integer
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF (p_lease_seconds BETWEEN 1 AND 86400) IS NOT TRUE THEN
        RAISE EXCEPTION 'lease_seconds must be 1 to 86400, not %', coalesce(p_lease_seconds::text, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE elsa_runtime.task_queue_state AS t
    SET
        lease_expires_at = clock_timestamp() + make_interval(secs => p_lease_seconds),
        updated_at = clock_timestamp()
    WHERE
        t.tenant_id = coalesce(nullif(current_setting('app.current_tenant_id', true), ''), 'default')
        AND t.queue_name = p_queue_name
        AND t.task_id = p_task_id
        AND t.state = 'leased'
        AND t.leased_by = p_worker_id
        AND t.attempts = p_attempt;
    RETURN FOUND;
END
$function$;

-- What a dashboard asks of a queue. Done tasks are not counted: they are history.
CREATE VIEW elsa_runtime.task_queue_status
WITH (security_invoker = true)
AS
SELECT
    t.tenant_id,
    t.queue_name,
    pg_catalog.count(*) FILTER (WHERE t.state = 'pending') AS pending,
    pg_catalog.count(*) FILTER (WHERE t.state = 'leased') AS leased,
    pg_catalog.count(*) FILTER (WHERE t.state = 'failed') AS failed,
    pg_catalog.count(*) FILTER (WHERE t.state = 'dead') AS dead,
    pg_catalog.count(*) FILTER (
        WHERE t.state = 'leased' AND t.lease_expires_at <= pg_catalog.clock_timestamp()
    ) AS overdue,
    -- How long the longest-waiting task could have been claimed for; NULL if none could.
    pg_catalog.clock_timestamp() - pg_catalog.min(t.available_at) FILTER (
        WHERE t.state IN ('pending', 'failed') AND t.available_at <= pg_catalog.clock_timestamp()
    ) AS oldest_age
FROM elsa_runtime.task_queue_state AS t
WHERE t.state <> 'done'
GROUP BY t.tenant_id, t.queue_name;

REVOKE INSERT, UPDATE, DELETE ON TABLE elsa_runtime.task_queue_status FROM elsa_user;
GRANT EXECUTE ON FUNCTION elsa_runtime.enqueue_task(
    varchar, varchar, jsonb, integer, timestamptz, integer, varchar
) TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.claim_tasks(varchar, varchar, integer, integer)
TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.complete_task(varchar, varchar, varchar, integer)
TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.fail_task(varchar, varchar, varchar, integer, text, integer)
TO elsa_user, elsa_worker;
GRANT EXECUTE ON FUNCTION elsa_runtime.extend_task_lease(varchar, varchar, varchar, integer, integer)
TO elsa_user, elsa_worker;

COMMENT ON TABLE elsa_runtime.task_queue_state IS
'Queues of tasks, one row per task; written by the functions enqueue_task, claim_tasks and so on.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.queue_name IS 'The queue.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.task_id IS
'Identifies the task in its queue; chosen by who enqueues it, so that trying again adds nothing.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.state IS
'pending, leased, done, failed (to be tried again at available_at) or dead (tried max_attempts times).';
COMMENT ON COLUMN elsa_runtime.task_queue_state.priority IS 'Higher ones are claimed first.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.available_at IS 'Not claimed before this.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.attempts IS
'How often it was claimed; the number of the current claim.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.max_attempts IS 'After so many it is dead.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.leased_by IS 'The worker that has it, while leased.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.lease_expires_at IS
'When the next claim may take it back, while leased.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.last_error IS 'Why the last attempt failed.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.workflow_instance_id IS
'The instance it is about, in database elsa_workflows, if it is about one.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.payload IS
'What the worker needs to know; small: a reference rather than the data.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.created_at IS 'When it was enqueued.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.updated_at IS 'When it last changed.';
COMMENT ON COLUMN elsa_runtime.task_queue_state.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX elsa_runtime.idx_task_queue_state_tenant_claim IS
'Claimable tasks of a tenant''s queue, in the order of claiming.';
COMMENT ON INDEX elsa_runtime.idx_task_queue_state_claim IS
'Claimable tasks of a queue across tenants, in the order of claiming.';
COMMENT ON INDEX elsa_runtime.idx_task_queue_state_lease_expires_at IS 'Leases by their end.';
COMMENT ON INDEX elsa_runtime.idx_task_queue_state_done IS 'Finished tasks by age, for their deletion.';
COMMENT ON VIEW elsa_runtime.task_queue_status IS
'How many tasks of each queue wait, are leased, failed or dead, and how long the oldest has waited.';
COMMENT ON FUNCTION elsa_runtime.enqueue_task(
    varchar, varchar, jsonb, integer, timestamptz, integer, varchar
) IS 'Adds a task to a queue; false if the queue has one of that id.';
COMMENT ON FUNCTION elsa_runtime.claim_tasks(varchar, varchar, integer, integer) IS
'Leases up to so many tasks to a worker for so many seconds, by priority and age.';
COMMENT ON FUNCTION elsa_runtime.complete_task(varchar, varchar, varchar, integer) IS
'Ends a task; false if it is not this worker''s by this attempt any more.';
COMMENT ON FUNCTION elsa_runtime.fail_task(varchar, varchar, varchar, integer, text, integer) IS
'Gives a task back after an error, to be tried later, or dead; false as with complete_task.';
COMMENT ON FUNCTION elsa_runtime.extend_task_lease(varchar, varchar, varchar, integer, integer) IS
'Moves a lease''s end to so many seconds from now; false as with complete_task.';
