-- elsapg: database=postgres
-- elsapg: after=migrations

-- Schedules the rows of elsa_jobs.job in pg_cron, as elsa_jobs, and drops jobs that left the
-- list. Jobs of other owners are not touched, and a job that a DBA switched off stays off.
-- Last of all: a minute may begin at any time, and what a job calls must be there then.
DO $schedule$
DECLARE
    v_job record;
BEGIN
    FOR v_job IN
        SELECT c.jobid
        FROM cron.job AS c
        WHERE
            c.username = 'elsa_jobs'
            AND NOT EXISTS (SELECT FROM elsa_jobs.job AS j WHERE j.cron_name = c.jobname)
    LOOP
        PERFORM cron.unschedule(v_job.jobid);
    END LOOP;

    FOR v_job IN
        SELECT
            j.cron_name,
            j.schedule,
            j.database,
            j.command,
            pg_catalog.bool_or(coalesce(c.active, true)) AS active
        FROM (
            SELECT
                i.cron_name,
                i.schedule,
                i.database,
                pg_catalog.format(
                    CASE
                        WHEN i.batched THEN 'CALL elsa_jobs.run_batches(%L)'
                        ELSE 'SELECT elsa_jobs.run_due(%L)'
                    END,
                    i.name
                ) AS command
            FROM elsa_jobs.job AS i
        ) AS j
        LEFT JOIN cron.job AS c ON j.cron_name = c.jobname AND c.username = 'elsa_jobs'
        GROUP BY j.cron_name, j.schedule, j.database, j.command
        HAVING
            pg_catalog.bool_and(
                (c.schedule, c.database, c.command) IS DISTINCT FROM (j.schedule, j.database, j.command)
            )
    LOOP
        PERFORM cron.schedule_in_database(
            v_job.cron_name, v_job.schedule, v_job.command, v_job.database, 'elsa_jobs', v_job.active
        );
    END LOOP;
END
$schedule$;

-- pg_cron keeps every run for ever. Only its owner sees all rows, hence SECURITY DEFINER.
CREATE OR REPLACE FUNCTION elsa_jobs.prune_cron_details()
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    DELETE FROM cron.job_run_details AS d WHERE coalesce(d.end_time, d.start_time) < now() - interval '7 days'
$function$;
REVOKE ALL ON FUNCTION elsa_jobs.prune_cron_details() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsa_jobs.prune_cron_details() TO elsa_jobs;

-- cron.job_run_details shows a role its own jobs only; this view is how monitoring sees failures.
CREATE OR REPLACE VIEW elsa_jobs.cron_run AS
SELECT
    d.runid,
    j.jobname,
    d.database,
    d.username,
    d.status,
    d.return_message,
    d.start_time,
    d.end_time
FROM cron.job_run_details AS d
LEFT JOIN cron.job AS j ON d.jobid = j.jobid;
REVOKE ALL ON TABLE elsa_jobs.cron_run FROM PUBLIC;
GRANT SELECT ON TABLE elsa_jobs.cron_run TO monitoring, elsa_admin;

COMMENT ON FUNCTION elsa_jobs.prune_cron_details() IS 'Deletes pg_cron''s run details older than 7 days.';
COMMENT ON VIEW elsa_jobs.cron_run IS 'pg_cron''s run details with the job''s name, for monitoring.';
