-- elsapg: database=each

-- Scheduled jobs, each slot exactly once, whatever fails over in between.
--
-- pg_cron alone starts a job when the clock says so on whoever is primary then. A failover across
-- that moment loses the run; one right after it may repeat the run. So:
--   * elsa_jobs.job lists every job of the cluster, the same rows in every database; file
--     090_cron schedules them in pg_cron under their own names, for DBAs to see in cron.job;
--   * what pg_cron runs is elsa_jobs.run_due(job). It claims the slot (02:00 today, not "now") in
--     elsa_jobs.run, in the same transaction as the job's own work. The primary key allows one
--     row per slot, and a failover keeps either both, row and work, or neither;
--   * run_due also runs earlier slots that have no row, as far back as job.catch_up, and marks
--     them caught_up. Jobs that run once a day cannot wait for their next turn: every five
--     minutes the job elsapg-catch-up does the same for all jobs of its database.
-- A job with much to do is batched: its command does some of it and returns how many rows that was,
-- or NULL when nothing is left. pg_cron then runs CALL elsa_jobs.run_batches(job), which commits
-- each batch together with its count in the slot's row, and finishes the row after the last. A run
-- that was interrupted goes on where it stopped, by elsapg-catch-up-batches at the latest.
-- Work that is not transactional (a COPY to a program, a call to another server) is at least once.

CREATE SCHEMA IF NOT EXISTS elsa_jobs;
REVOKE ALL ON SCHEMA elsa_jobs FROM PUBLIC;
GRANT USAGE ON SCHEMA elsa_jobs TO elsa_jobs, monitoring, elsa_admin;

-- "every" and "anchor" follow from the schedule, so they cannot contradict it. Hence the few
-- forms a schedule may have: each minute, every N minutes, hourly, daily.
CREATE TABLE IF NOT EXISTS elsa_jobs.job (
    database text NOT NULL,
    name text NOT NULL,
    schedule text NOT NULL,
    command text NOT NULL,
    catch_up interval NOT NULL DEFAULT '1 hour',
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    every interval NOT NULL GENERATED ALWAYS AS (
        CASE
            WHEN schedule = '* * * * *' THEN pg_catalog.make_interval(mins => 1)
            WHEN schedule LIKE '*/%'
                THEN
                    pg_catalog.make_interval(
                        mins => pg_catalog.ltrim(pg_catalog.split_part(schedule, ' ', 1), '*/')::integer
                    )
            WHEN pg_catalog.split_part(schedule, ' ', 2) = '*' THEN pg_catalog.make_interval(hours => 1)
            ELSE pg_catalog.make_interval(hours => 24)
        END
    ) STORED,
    anchor interval NOT NULL GENERATED ALWAYS AS (
        CASE
            WHEN schedule LIKE '*%' THEN pg_catalog.make_interval()
            WHEN pg_catalog.split_part(schedule, ' ', 2) = '*'
                THEN pg_catalog.make_interval(mins => pg_catalog.split_part(schedule, ' ', 1)::integer)
            ELSE
                pg_catalog.make_interval(
                    hours => pg_catalog.split_part(schedule, ' ', 2)::integer,
                    mins => pg_catalog.split_part(schedule, ' ', 1)::integer
                )
        END
    ) STORED,
    cron_name text NOT NULL GENERATED ALWAYS AS (
        CASE WHEN database = 'elsa_workflows' THEN name ELSE name || '@' || database END
    ) STORED,
    CONSTRAINT job_pkey PRIMARY KEY (database, name),
    CONSTRAINT job_cron_name_key UNIQUE (cron_name),
    CONSTRAINT job_name_check CHECK (name ~ '^[a-z][a-z0-9-]*$'),
    CONSTRAINT job_catch_up_check CHECK (catch_up BETWEEN interval '0' AND interval '1 day'),
    CONSTRAINT job_schedule_check CHECK (
        schedule ~ (
            '^(\* \* \* \* \*'
            || '|\*/(2|3|4|5|6|10|12|15|20|30) \* \* \* \*'
            || '|([0-9]|[1-5][0-9]) \* \* \* \*'
            || '|([0-9]|[1-5][0-9]) ([0-9]|1[0-9]|2[0-3]) \* \* \*)$'
        )
    )
);

CREATE TABLE IF NOT EXISTS elsa_jobs.run (
    job text NOT NULL,
    slot timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    caught_up boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 1,
    error text,
    CONSTRAINT run_pkey PRIMARY KEY (job, slot)
);
ALTER TABLE elsa_jobs.job ADD COLUMN IF NOT EXISTS batched boolean NOT NULL DEFAULT false;
ALTER TABLE elsa_jobs.run ADD COLUMN IF NOT EXISTS done bigint NOT NULL DEFAULT 0;

REVOKE ALL ON TABLE elsa_jobs.job FROM PUBLIC;
REVOKE ALL ON TABLE elsa_jobs.run FROM PUBLIC;
GRANT SELECT ON TABLE elsa_jobs.job TO elsa_jobs, monitoring, elsa_admin;
GRANT SELECT ON TABLE elsa_jobs.run TO monitoring, elsa_admin;
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_jobs.run TO elsa_jobs;

-- The slots of a job that are due and have no finished run, oldest first. Slots lie on a grid
-- counted from 1970-01-01 00:00 UTC, so the session's TimeZone and summer time do not matter.
CREATE OR REPLACE FUNCTION elsa_jobs.due_slots(p_job text, p_older_than interval DEFAULT '0')
RETURNS SETOF timestamptz
LANGUAGE sql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT s.slot
    FROM elsa_jobs.job AS j
    CROSS JOIN LATERAL (SELECT clock_timestamp() AS at) AS now
    CROSS JOIN LATERAL generate_series(
        date_bin(j.every, now.at, timestamptz '1970-01-01 00:00:00+00' + j.anchor),
        greatest(j.since, now.at - greatest(j.catch_up, interval '1 minute')),
        - j.every,
        'UTC'
    ) AS s (slot)
    WHERE
        j.database = current_database()
        AND j.name = p_job
        AND s.slot <= now.at - p_older_than
        AND NOT EXISTS (
            SELECT
            FROM elsa_jobs.run AS r
            WHERE r.job = j.name AND r.slot = s.slot AND r.finished_at IS NOT NULL
        )
    ORDER BY s.slot
$function$;

-- The job, if this slot of it is to be run now and here; NULL if it has run, or runs elsewhere. Its
-- row in the ledger is written, and both are the caller's until his transaction ends.
CREATE OR REPLACE FUNCTION elsa_jobs.claim(p_job text, p_slot timestamptz)
RETURNS elsa_jobs.job
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_job elsa_jobs.job;
    v_started_at timestamptz := clock_timestamp();
BEGIN
    SELECT j.* INTO v_job
    FROM elsa_jobs.job AS j
    WHERE j.database = current_database() AND j.name = p_job;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'database % has no job "%"', current_database(), p_job
        USING ERRCODE = 'undefined_object', HINT = 'Jobs are the rows of elsa_jobs.job.';
    END IF;
    IF p_slot IS NULL
        OR p_slot > v_started_at
        OR p_slot <> date_bin(v_job.every, p_slot, timestamptz '1970-01-01 00:00:00+00' + v_job.anchor)
    THEN
        RAISE EXCEPTION '% is not a past slot of job "%" (%)', p_slot, p_job, v_job.schedule
        USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- One run of a job at a time: a catch-up must not queue behind a run that is under way.
    IF NOT pg_try_advisory_xact_lock(hashtextextended('elsa_jobs:' || p_job, 0)) THEN
        RETURN NULL;
    END IF;

    -- A row that has not finished is still to be run: it failed, or its batches go on.
    INSERT INTO elsa_jobs.run AS r (job, slot, started_at, caught_up)
    VALUES (p_job, p_slot, v_started_at, v_started_at - p_slot >= interval '1 minute')
    ON CONFLICT (job, slot) DO UPDATE
        SET
            started_at = CASE WHEN r.error IS NULL THEN r.started_at ELSE excluded.started_at END,
            caught_up = CASE WHEN r.error IS NULL THEN r.caught_up ELSE excluded.caught_up END,
            attempts = CASE WHEN r.error IS NULL THEN r.attempts ELSE r.attempts + 1 END,
            error = NULL
        WHERE r.finished_at IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN v_job;
END
$function$;

-- Runs one slot unless it has run. True if it ran now.
CREATE OR REPLACE FUNCTION elsa_jobs.run_slot(p_job text, p_slot timestamptz)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_job elsa_jobs.job := elsa_jobs.claim(p_job, p_slot);
BEGIN
    IF v_job.name IS NULL THEN
        RETURN false;
    END IF;
    IF v_job.batched THEN
        RAISE EXCEPTION 'job "%" runs in batches', p_job
        USING ERRCODE = 'wrong_object_type', HINT = format('CALL elsa_jobs.run_batches(%L)', p_job);
    END IF;
    EXECUTE v_job.command;
    UPDATE elsa_jobs.run AS r
    SET finished_at = clock_timestamp()
    WHERE r.job = p_job AND r.slot = p_slot;
    RETURN true;
END
$function$;

-- Runs one batch of a slot. True if there may be more; false if it was the last, or if the slot has
-- run or runs elsewhere.
CREATE OR REPLACE FUNCTION elsa_jobs.run_batch(p_job text, p_slot timestamptz)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_job elsa_jobs.job := elsa_jobs.claim(p_job, p_slot);
    v_done bigint;
BEGIN
    IF v_job.name IS NULL THEN
        RETURN false;
    END IF;
    IF NOT v_job.batched THEN
        RAISE EXCEPTION 'job "%" does not run in batches', p_job
        USING ERRCODE = 'wrong_object_type', HINT = format('SELECT elsa_jobs.run_due(%L)', p_job);
    END IF;
    EXECUTE v_job.command INTO v_done;
    UPDATE elsa_jobs.run AS r
    SET
        done = r.done + coalesce(v_done, 0),
        finished_at = CASE WHEN v_done IS NULL THEN clock_timestamp() END
    WHERE r.job = p_job AND r.slot = p_slot;
    RETURN v_done IS NOT NULL;
END
$function$;

-- What pg_cron calls for a batched job. No SET clause: with one, a procedure cannot COMMIT.
CREATE OR REPLACE PROCEDURE elsa_jobs.run_batches(p_job text)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    v_slots timestamptz[] := ARRAY(SELECT d.slot FROM elsa_jobs.due_slots(p_job) AS d (slot));
    v_slot timestamptz;
    v_more boolean;
BEGIN
    FOREACH v_slot IN ARRAY v_slots LOOP
        LOOP
            v_more := elsa_jobs.run_batch(p_job, v_slot);
            COMMIT;
            EXIT WHEN NOT v_more;
        END LOOP;
    END LOOP;
END
$procedure$;

-- What pg_cron calls for a job: its slot of now, and those before it that were missed. An error
-- takes the whole transaction back and shows in cron.job_run_details; the slot stays due.
CREATE OR REPLACE FUNCTION elsa_jobs.run_due(p_job text)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_slot timestamptz;
    v_ran integer := 0;
BEGIN
    FOR v_slot IN SELECT d.slot FROM elsa_jobs.due_slots(p_job) AS d (slot) LOOP
        IF elsa_jobs.run_slot(p_job, v_slot) THEN
            v_ran := v_ran + 1;
        END IF;
    END LOOP;
    RETURN v_ran;
END
$function$;

-- What a catch-up does with a job that failed.
CREATE OR REPLACE FUNCTION elsa_jobs.write_down(p_job text, p_slot timestamptz, p_error text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RAISE WARNING 'job "%", slot %: %', p_job, p_slot, p_error;
    INSERT INTO elsa_jobs.run AS r (job, slot, started_at, caught_up, error)
    VALUES (p_job, p_slot, clock_timestamp(), true, p_error)
    ON CONFLICT (job, slot) DO UPDATE
        SET
            started_at = excluded.started_at,
            caught_up = true,
            attempts = r.attempts + 1,
            error = excluded.error
        WHERE r.finished_at IS NULL;
END
$function$;

-- Runs what all jobs of this database missed. Two minutes' grace leaves a slot to its own job;
-- one that fails here is written down, and does not hold up the others.
CREATE OR REPLACE FUNCTION elsa_jobs.catch_up()
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_due record;
    v_ran integer := 0;
BEGIN
    FOR v_due IN
        SELECT
            j.name AS job,
            d.slot
        FROM elsa_jobs.job AS j
        CROSS JOIN LATERAL elsa_jobs.due_slots(j.name, interval '2 minutes') AS d (slot)
        WHERE j.database = current_database() AND j.catch_up > interval '0' AND NOT j.batched
        ORDER BY d.slot, j.name
    LOOP
        BEGIN
            IF elsa_jobs.run_slot(v_due.job, v_due.slot) THEN
                v_ran := v_ran + 1;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            PERFORM elsa_jobs.write_down(v_due.job, v_due.slot, SQLSTATE || ' ' || SQLERRM);
        END;
    END LOOP;
    RETURN v_ran;
END
$function$;

-- Runs one batch of what the batched jobs of this database missed; the command of a batched job
-- itself. One that failed less than four minutes ago is left to the next catch-up.
CREATE OR REPLACE FUNCTION elsa_jobs.catch_up_batch()
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_due record;
BEGIN
    FOR v_due IN
        SELECT
            j.name AS job,
            d.slot
        FROM elsa_jobs.job AS j
        CROSS JOIN LATERAL elsa_jobs.due_slots(j.name, interval '2 minutes') AS d (slot)
        WHERE
            j.database = current_database()
            AND j.catch_up > interval '0'
            AND j.batched
            AND NOT EXISTS (
                SELECT
                FROM elsa_jobs.run AS r
                WHERE
                    r.job = j.name
                    AND r.slot = d.slot
                    AND r.error IS NOT NULL
                    AND r.started_at > clock_timestamp() - interval '4 minutes'
            )
        ORDER BY d.slot, j.name
    LOOP
        BEGIN
            IF elsa_jobs.run_batch(v_due.job, v_due.slot) THEN
                RETURN 1;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            PERFORM elsa_jobs.write_down(v_due.job, v_due.slot, SQLSTATE || ' ' || SQLERRM);
        END;
    END LOOP;
    RETURN NULL;
END
$function$;

-- Seven days are kept: longer than any catch_up, so a slot is never run twice for want of its row.
CREATE OR REPLACE FUNCTION elsa_jobs.prune()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    DELETE FROM elsa_jobs.run AS r WHERE r.slot < now() - interval '7 days';
    IF to_regprocedure('elsa_jobs.prune_cron_details()') IS NOT NULL THEN
        PERFORM elsa_jobs.prune_cron_details();
    END IF;
END
$function$;

-- "overdue" is what to alert on: a slot of the last day (or of the job's window) is missing, ten
-- minutes after its time.
CREATE OR REPLACE VIEW elsa_jobs.status AS
SELECT
    j.name AS job,
    j.schedule,
    last_run.slot AS last_slot,
    last_run.started_at AS last_started_at,
    last_run.finished_at AS last_succeeded_at,
    last_run.finished_at - last_run.started_at AS last_duration,
    last_run.caught_up AS last_caught_up,
    failure.started_at AS last_failed_at,
    failure.error AS last_error,
    overdue.slot IS NOT NULL AS overdue,
    last_run.done AS last_done,
    unfinished.started_at AS unfinished_since
FROM elsa_jobs.job AS j
LEFT JOIN LATERAL (
    SELECT r.*
    FROM elsa_jobs.run AS r
    WHERE r.job = j.name AND r.finished_at IS NOT NULL
    ORDER BY r.slot DESC
    LIMIT 1
) AS last_run ON true
LEFT JOIN LATERAL (
    SELECT r.*
    FROM elsa_jobs.run AS r
    WHERE r.job = j.name AND r.error IS NOT NULL
    ORDER BY r.slot DESC
    LIMIT 1
) AS failure ON true
LEFT JOIN LATERAL (
    SELECT newest.slot
    FROM (
        SELECT
            pg_catalog.date_bin(
                j.every,
                pg_catalog.now() - interval '10 minutes',
                timestamptz '1970-01-01 00:00:00+00' + j.anchor
            ) AS slot
    ) AS newest
    WHERE
        newest.slot >= j.since
        AND NOT EXISTS (
            SELECT
            FROM elsa_jobs.run AS r
            WHERE r.job = j.name AND r.slot >= newest.slot AND r.finished_at IS NOT NULL
        )
) AS overdue ON true
LEFT JOIN LATERAL (
    SELECT pg_catalog.min(r.started_at) AS started_at
    FROM elsa_jobs.run AS r
    WHERE r.job = j.name AND r.finished_at IS NULL AND r.error IS NULL
) AS unfinished ON true
WHERE j.database = pg_catalog.current_database();

REVOKE ALL ON TABLE elsa_jobs.status FROM PUBLIC;
GRANT SELECT ON TABLE elsa_jobs.status TO elsa_jobs, monitoring, elsa_admin;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA elsa_jobs FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA elsa_jobs TO elsa_jobs;
REVOKE ALL ON PROCEDURE elsa_jobs.run_batches(text) FROM PUBLIC;
GRANT EXECUTE ON PROCEDURE elsa_jobs.run_batches(text) TO elsa_jobs;

-- The jobs. A job's command is one SQL statement, run by elsa_jobs in that database. A changed
-- schedule starts anew: its past slots were never promised.
MERGE INTO elsa_jobs.job AS j
USING (
    VALUES
    (
        'elsa_workflows', 'create-monthly-partitions', '15 0 * * *',
        'SELECT elsa_workflows.create_monthly_partitions()', false, interval '12 hours'
    ),
    (
        'elsa_workflows', 'cleanup-old-data', '0 2 * * *',
        'SELECT elsa_workflows.cleanup_old_data()', true, interval '12 hours'
    ),
    (
        'elsa_runtime', 'cleanup-old-data', '0 2 * * *',
        'SELECT elsa_runtime.cleanup_old_data()', true, interval '12 hours'
    ),
    (
        'elsa_runtime', 'mark-dead-workers', '* * * * *',
        'SELECT elsa_runtime.mark_dead_workers()', false, interval '0'
    ),
    ('elsa_workflows', 'elsapg-heartbeat', '* * * * *', 'SELECT true', false, interval '1 hour'),
    ('elsa_runtime', 'elsapg-heartbeat', '* * * * *', 'SELECT true', false, interval '1 hour'),
    ('elsa_workflows', 'elsapg-catch-up', '*/5 * * * *', 'SELECT elsa_jobs.catch_up()', false, interval '0'),
    ('elsa_runtime', 'elsapg-catch-up', '*/5 * * * *', 'SELECT elsa_jobs.catch_up()', false, interval '0'),
    ('postgres', 'elsapg-catch-up', '*/5 * * * *', 'SELECT elsa_jobs.catch_up()', false, interval '0'),
    (
        'elsa_workflows', 'elsapg-catch-up-batches', '*/5 * * * *',
        'SELECT elsa_jobs.catch_up_batch()', true, interval '0'
    ),
    (
        'elsa_runtime', 'elsapg-catch-up-batches', '*/5 * * * *',
        'SELECT elsa_jobs.catch_up_batch()', true, interval '0'
    ),
    ('elsa_workflows', 'elsapg-prune', '30 3 * * *', 'SELECT elsa_jobs.prune()', false, interval '12 hours'),
    ('elsa_runtime', 'elsapg-prune', '30 3 * * *', 'SELECT elsa_jobs.prune()', false, interval '12 hours'),
    ('postgres', 'elsapg-prune', '30 3 * * *', 'SELECT elsa_jobs.prune()', false, interval '12 hours')
) AS wanted (database, name, schedule, command, batched, catch_up)
    ON j.database = wanted.database AND j.name = wanted.name
WHEN MATCHED AND j.schedule <> wanted.schedule THEN
    UPDATE SET
        schedule = wanted.schedule,
        command = wanted.command,
        batched = wanted.batched,
        catch_up = wanted.catch_up,
        since = pg_catalog.clock_timestamp()
WHEN MATCHED AND (j.command, j.batched, j.catch_up) IS DISTINCT FROM (
    wanted.command, wanted.batched, wanted.catch_up
) THEN
    UPDATE SET
        command = wanted.command,
        batched = wanted.batched,
        catch_up = wanted.catch_up
WHEN NOT MATCHED THEN
    INSERT (database, name, schedule, command, batched, catch_up)
    VALUES (
        wanted.database, wanted.name, wanted.schedule, wanted.command, wanted.batched, wanted.catch_up
    )
WHEN NOT MATCHED BY SOURCE THEN
    DELETE;

COMMENT ON SCHEMA elsa_jobs IS
'Scheduled jobs and the ledger that runs each slot exactly once.';
COMMENT ON TABLE elsa_jobs.job IS
'Every scheduled job of the cluster, the same rows in each database; cluster/090_cron.sql schedules them.';
COMMENT ON COLUMN elsa_jobs.job.database IS 'The database the job runs in.';
COMMENT ON COLUMN elsa_jobs.job.name IS 'The job''s name, unique in its database.';
COMMENT ON COLUMN elsa_jobs.job.schedule IS 'When it runs, in cron''s notation, UTC.';
COMMENT ON COLUMN elsa_jobs.job.command IS 'The one SQL statement that is the job''s work, or one batch of it.';
COMMENT ON COLUMN elsa_jobs.job.batched IS
'Whether the command is repeated, in a transaction each, until it returns NULL.';
COMMENT ON COLUMN elsa_jobs.job.catch_up IS 'How far back a missed slot is still run.';
COMMENT ON COLUMN elsa_jobs.job.since IS 'Slots before this were never promised.';
COMMENT ON COLUMN elsa_jobs.job.every IS 'The distance between two slots; follows from the schedule.';
COMMENT ON COLUMN elsa_jobs.job.anchor IS 'The first slot after midnight UTC; follows from the schedule.';
COMMENT ON COLUMN elsa_jobs.job.cron_name IS
'The name in cron.job, where names must differ across databases: the bare name in elsa_workflows.';
COMMENT ON TABLE elsa_jobs.run IS
'The ledger: one row per job and slot, written in the transaction that does the job''s work, or each batch.';
COMMENT ON COLUMN elsa_jobs.run.job IS 'The job''s name.';
COMMENT ON COLUMN elsa_jobs.run.slot IS 'The moment the run was due.';
COMMENT ON COLUMN elsa_jobs.run.started_at IS 'When the last attempt began.';
COMMENT ON COLUMN elsa_jobs.run.finished_at IS 'When it succeeded; NULL after a failed attempt.';
COMMENT ON COLUMN elsa_jobs.run.caught_up IS 'Whether it ran a minute or more after its time.';
COMMENT ON COLUMN elsa_jobs.run.attempts IS 'How many attempts were written down, the last included.';
COMMENT ON COLUMN elsa_jobs.run.done IS 'Rows that the batches of a batched job reported.';
COMMENT ON COLUMN elsa_jobs.run.error IS 'What the last attempt failed with, if it failed in a catch-up.';
COMMENT ON VIEW elsa_jobs.status IS
'When each job of this database last succeeded, and whether a slot is overdue.';
COMMENT ON FUNCTION elsa_jobs.due_slots(text, interval) IS 'Slots that are due and have not run.';
COMMENT ON FUNCTION elsa_jobs.claim(text, timestamptz) IS
'Takes a slot for the current transaction; NULL if it has run or runs elsewhere.';
COMMENT ON FUNCTION elsa_jobs.run_batch(text, timestamptz) IS
'Runs one batch of a slot of a batched job; true if there may be more.';
COMMENT ON PROCEDURE elsa_jobs.run_batches(text) IS -- noqa: LT01
'Runs a batched job''s due slots, a transaction per batch; what pg_cron calls.';
COMMENT ON FUNCTION elsa_jobs.catch_up_batch() IS
'Runs one batch of what this database''s batched jobs missed; NULL if there is nothing.';
COMMENT ON FUNCTION elsa_jobs.write_down(text, timestamptz, text) IS 'Writes a failed attempt down.';
COMMENT ON FUNCTION elsa_jobs.run_slot(text, timestamptz) IS 'Runs one slot unless it has run.';
COMMENT ON FUNCTION elsa_jobs.run_due(text) IS 'Runs a job''s due slots; what pg_cron calls.';
COMMENT ON FUNCTION elsa_jobs.catch_up() IS 'Runs the slots that this database''s jobs missed.';
COMMENT ON FUNCTION elsa_jobs.prune() IS 'Deletes ledger rows and cron run details older than 7 days.';
