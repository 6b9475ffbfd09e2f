-- elsapg: database=postgres

-- The record of what looks after the archive: dumps, restore drills, checks of the repository. They
-- run outside the databases, as "backup", who writes nothing; so two functions keep the record.
-- A run that has begun and has no end was killed, or hangs: the next one says so in its place.
CREATE SCHEMA IF NOT EXISTS recovery;
REVOKE ALL ON SCHEMA recovery FROM PUBLIC;
GRANT USAGE ON SCHEMA recovery TO backup, monitoring, elsa_admin;

CREATE TABLE IF NOT EXISTS recovery.run (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    job text NOT NULL,
    repository text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    ok boolean,
    message text,
    report jsonb,
    CONSTRAINT run_pkey PRIMARY KEY (id),
    CONSTRAINT run_job_check CHECK (job IN ('dump', 'drill', 'check')),
    CONSTRAINT run_finished_check CHECK ((finished_at IS NULL) = (ok IS NULL))
);
REVOKE ALL ON TABLE recovery.run FROM PUBLIC;
GRANT SELECT ON TABLE recovery.run TO backup, monitoring, elsa_admin;

CREATE OR REPLACE FUNCTION recovery.begin_run(p_job text, p_repository text)
RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_id bigint;
BEGIN
    -- The caller holds the job's lock: whoever else began has ended without a word.
    UPDATE recovery.run AS r
    SET finished_at = clock_timestamp(), ok = false, message = 'interrupted: it never said how it ended'
    WHERE r.job = p_job AND r.repository = p_repository AND r.finished_at IS NULL;
    DELETE FROM recovery.run AS r
    WHERE r.job = p_job AND r.started_at < clock_timestamp() - interval '400 days';
    INSERT INTO recovery.run (job, repository) VALUES (p_job, p_repository) RETURNING id INTO v_id;
    RETURN v_id;
END
$function$;

CREATE OR REPLACE FUNCTION recovery.end_run(p_id bigint, p_ok boolean, p_message text, p_report jsonb)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    UPDATE recovery.run AS r
    SET finished_at = clock_timestamp(), ok = p_ok, message = p_message, report = p_report
    WHERE r.id = p_id AND r.finished_at IS NULL
$function$;

-- For a drill: holds a standby's replay for a moment, so that its caller can take snapshots of all
-- databases at one place in the WAL, which it returns. It holds the lock (0x656C7361, 10) while the
-- replay stands still, and goes on when somebody takes (0x656C7361, 11), or after four seconds: less
-- than it takes the server to end a session whose client has gone. Nothing stays paused.
CREATE OR REPLACE FUNCTION recovery.hold_replay()
RETURNS pg_lsn
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    c_class CONSTANT integer := 1701606241;
    v_until timestamptz := clock_timestamp() + interval '4 seconds';
    v_lsn pg_lsn;
    v_seen boolean := false;
    v_stood boolean;
BEGIN
    IF NOT pg_is_in_recovery() OR pg_is_wal_replay_paused() THEN
        RAISE EXCEPTION 'only the replay of a standby that goes on can be held'
        USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    BEGIN
        PERFORM pg_wal_replay_pause();
        WHILE pg_get_wal_replay_pause_state() <> 'paused' AND clock_timestamp() < v_until LOOP
            PERFORM pg_sleep(0.005);
        END LOOP;
        IF pg_get_wal_replay_pause_state() = 'paused' THEN
            v_lsn := pg_last_wal_replay_lsn();
            PERFORM pg_advisory_lock(c_class, 10);
            WHILE NOT v_seen AND clock_timestamp() < v_until LOOP
                PERFORM pg_sleep(0.005);
                v_seen := EXISTS (
                    SELECT
                    FROM pg_locks AS l
                    WHERE
                        l.locktype = 'advisory'
                        AND l.classid = c_class::oid
                        AND l.objid = 11::oid
                        AND l.granted
                );
            END LOOP;
        END IF;
    EXCEPTION
        WHEN others OR query_canceled THEN
            PERFORM pg_wal_replay_resume();
            RAISE;
    END;
    -- Patroni lets a replay go on that it sees paused: then the snapshots may be of a later place.
    v_stood := pg_last_wal_replay_lsn() = v_lsn;
    PERFORM pg_wal_replay_resume();
    IF v_seen AND NOT v_stood THEN
        RAISE EXCEPTION 'the replay went on before the snapshots were taken'
        USING ERRCODE = 'lock_not_available';
    END IF;
    IF NOT v_seen THEN
        RAISE EXCEPTION 'the snapshots were not taken within 4 seconds'
        USING ERRCODE = 'lock_not_available';
    END IF;
    RETURN v_lsn;
END
$function$;

-- They run as elsa_maintenance, which nobody is, with what they need.
GRANT USAGE ON SCHEMA recovery TO elsa_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE recovery.run TO elsa_maintenance;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_wal_replay_pause() TO elsa_maintenance;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_wal_replay_resume() TO elsa_maintenance;
ALTER FUNCTION recovery.begin_run(text, text) OWNER TO elsa_maintenance;
ALTER FUNCTION recovery.end_run(bigint, boolean, text, jsonb) OWNER TO elsa_maintenance;
ALTER FUNCTION recovery.hold_replay() OWNER TO elsa_maintenance;

REVOKE ALL ON FUNCTION recovery.hold_replay() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION recovery.hold_replay() TO backup;
REVOKE ALL ON FUNCTION recovery.begin_run(text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION recovery.end_run(bigint, boolean, text, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION recovery.begin_run(text, text) TO backup;
GRANT EXECUTE ON FUNCTION recovery.end_run(bigint, boolean, text, jsonb) TO backup;

COMMENT ON SCHEMA recovery IS
'What was done to be able to recover: docs/backups.md.';
COMMENT ON TABLE recovery.run IS
'One row per dump, restore drill and check of the repository: 400 days of them.';
COMMENT ON COLUMN recovery.run.id IS 'Counts up.';
COMMENT ON COLUMN recovery.run.job IS 'dump, drill or check.';
COMMENT ON COLUMN recovery.run.repository IS
'Bucket and path: a clone brings its source''s rows along, and they are not about its own archive.';
COMMENT ON COLUMN recovery.run.started_at IS 'When it began.';
COMMENT ON COLUMN recovery.run.finished_at IS 'When it ended; NULL while it runs, or if it was killed.';
COMMENT ON COLUMN recovery.run.ok IS 'Whether it succeeded.';
COMMENT ON COLUMN recovery.run.message IS 'What it came to, in a line.';
COMMENT ON COLUMN recovery.run.report IS 'Figures and findings.';
COMMENT ON FUNCTION recovery.begin_run(text, text) IS
'Records that a job begins; returns the row. Runs that never ended are closed as interrupted.';
COMMENT ON FUNCTION recovery.hold_replay() IS
'Holds a standby''s replay while its caller takes snapshots; returns where in the WAL that was.';
COMMENT ON FUNCTION recovery.end_run(bigint, boolean, text, jsonb) IS
'Records how a job ended.';
