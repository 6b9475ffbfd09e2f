-- elsapg: database=elsa_workflows
-- elsapg: after=migrations

-- The documents' queries as views, under their names and with their columns.
--
-- security_invoker: a view shows what row-level security shows to whoever asks. Role monitoring sees
-- all tenants, but only the columns below, so no state and no payload; elsa_readonly sees the tenant
-- that its transaction names; elsa_host and elsa_admin see all.
--
-- Each view reads by one index, and only the rows that it is about, so that it answers at once beside
-- ten million others (docs/monitoring.md has figures).

-- Cluster files run on every bootstrap; CREATE POLICY would lock the table each time, if only briefly.
DO $policies$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['workflow_instances', 'activity_execution_records'] LOOP
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_policies AS p
            WHERE
                p.schemaname = 'elsa_workflows'
                AND p.tablename = v_table
                AND p.policyname = 'monitoring_access'
                AND p.cmd = 'SELECT'
                AND p.roles = '{monitoring}'
                AND p.qual = 'true'
        ) THEN
            EXECUTE pg_catalog.format(
                'DROP POLICY IF EXISTS monitoring_access ON elsa_workflows.%I', v_table
            );
            EXECUTE pg_catalog.format(
                'CREATE POLICY monitoring_access ON elsa_workflows.%I FOR SELECT TO monitoring USING (true)',
                v_table
            );
            EXECUTE pg_catalog.format(
                'COMMENT ON POLICY monitoring_access ON elsa_workflows.%I IS %L',
                v_table,
                'Role monitoring counts the rows of all tenants; its grants name the columns it may read.'
            );
        END IF;
    END LOOP;
END
$policies$;

GRANT USAGE ON SCHEMA elsa_workflows TO monitoring;
GRANT SELECT (definition_id, status, created_at, finished_at, faulted_at, tenant_id)
ON TABLE elsa_workflows.workflow_instances TO monitoring;
GRANT SELECT (activity_type, started_at, completed_at, has_bookmarks, tenant_id)
ON TABLE elsa_workflows.activity_execution_records TO monitoring;

-- Active is what has neither finished nor faulted: the documents' condition counts faulted instances,
-- which never finish, for as long as they are kept.
CREATE OR REPLACE VIEW monitoring.active_workflows WITH (security_invoker = true) AS
SELECT
    i.status,
    pg_catalog.count(*) AS count,
    pg_catalog.round(
        pg_catalog.avg(
            pg_catalog.date_part('epoch', pg_catalog.now())
            - pg_catalog.date_part('epoch', i.created_at)
        )::numeric,
        3
    ) AS avg_duration_seconds,
    pg_catalog.min(i.created_at) AS oldest_created_at
FROM elsa_workflows.workflow_instances AS i
WHERE i.finished_at IS NULL AND i.faulted_at IS NULL
GROUP BY i.status;

-- What finished in the last 24 hours: the documents look for what was created then, and never see an
-- instance that ran for longer. A workflow is a tenant's: two tenants' definitions of one name are two.
-- Percentiles are dear: only the ten that are shown get theirs. (As text, whose width the planner knows
-- here; for varchar(255) it expects the worst, and spills to disk.)
CREATE OR REPLACE VIEW monitoring.workflow_performance WITH (security_invoker = true) AS
WITH finished AS MATERIALIZED (
    SELECT
        i.tenant_id::text AS tenant_id,
        i.definition_id::text AS definition_id,
        pg_catalog.date_part('epoch', i.finished_at - i.created_at) AS seconds
    FROM elsa_workflows.workflow_instances AS i
    WHERE i.finished_at > pg_catalog.now() - interval '24 hours'
),

busiest AS (
    SELECT
        f.tenant_id,
        f.definition_id,
        pg_catalog.count(*) AS total_executions
    FROM finished AS f
    GROUP BY f.tenant_id, f.definition_id
    ORDER BY total_executions DESC, f.definition_id ASC, f.tenant_id ASC
    LIMIT 10
)

SELECT
    b.definition_id,
    b.total_executions,
    pg_catalog.round(pg_catalog.avg(f.seconds)::numeric, 3) AS avg_duration_seconds,
    pg_catalog.round(
        (pg_catalog.percentile_cont(0.95) WITHIN GROUP (ORDER BY f.seconds))::numeric, 3
    ) AS p95_duration,
    pg_catalog.round(pg_catalog.max(f.seconds)::numeric, 3) AS max_duration_seconds,
    b.tenant_id
FROM busiest AS b
INNER JOIN finished AS f ON b.tenant_id = f.tenant_id AND b.definition_id = f.definition_id
GROUP BY b.tenant_id, b.definition_id, b.total_executions
ORDER BY b.total_executions DESC, b.definition_id ASC, b.tenant_id ASC;

-- What completed in the last hour: the documents look for what started then, and never see an activity
-- that took longer.
CREATE OR REPLACE VIEW monitoring.slow_activities WITH (security_invoker = true) AS
SELECT
    c.activity_type,
    pg_catalog.count(*) AS count,
    pg_catalog.round(pg_catalog.avg(c.seconds)::numeric, 3) AS avg_duration_seconds,
    pg_catalog.round(pg_catalog.max(c.seconds)::numeric, 3) AS max_duration_seconds,
    pg_catalog.count(*) FILTER (WHERE c.has_bookmarks) AS waited
FROM (
    SELECT
        r.activity_type,
        r.has_bookmarks,
        pg_catalog.date_part('epoch', r.completed_at - r.started_at) AS seconds
    FROM elsa_workflows.activity_execution_records AS r
    WHERE r.completed_at > pg_catalog.now() - interval '1 hour'
) AS c
GROUP BY c.activity_type
HAVING pg_catalog.avg(c.seconds) > 5
ORDER BY avg_duration_seconds DESC;

REVOKE ALL ON TABLE
monitoring.active_workflows, monitoring.workflow_performance, monitoring.slow_activities
FROM PUBLIC;
GRANT SELECT ON TABLE
monitoring.active_workflows, monitoring.workflow_performance, monitoring.slow_activities
TO monitoring, elsa_readonly, elsa_host;

COMMENT ON POLICY monitoring_access ON elsa_workflows.workflow_instances IS
'Role monitoring counts the rows of all tenants; its grants name the columns it may read.';
COMMENT ON POLICY monitoring_access ON elsa_workflows.activity_execution_records IS
'Role monitoring counts the rows of all tenants; its grants name the columns it may read.';
COMMENT ON VIEW monitoring.active_workflows IS
'Instances that have neither finished nor faulted, by status.';
COMMENT ON COLUMN monitoring.active_workflows.status IS 'The application''s word.';
COMMENT ON COLUMN monitoring.active_workflows.count IS 'How many there are.';
COMMENT ON COLUMN monitoring.active_workflows.avg_duration_seconds IS 'Their average age.';
COMMENT ON COLUMN monitoring.active_workflows.oldest_created_at IS 'When the oldest was created.';
COMMENT ON VIEW monitoring.workflow_performance IS
'The ten workflows of which most instances finished in the last 24 hours.';
COMMENT ON COLUMN monitoring.workflow_performance.definition_id IS 'The workflow.';
COMMENT ON COLUMN monitoring.workflow_performance.total_executions IS 'How many finished.';
COMMENT ON COLUMN monitoring.workflow_performance.avg_duration_seconds IS
'Their average time from creation to end.';
COMMENT ON COLUMN monitoring.workflow_performance.p95_duration IS
'The time, in seconds, within which 95 of 100 finished.';
COMMENT ON COLUMN monitoring.workflow_performance.max_duration_seconds IS 'The longest time.';
COMMENT ON COLUMN monitoring.workflow_performance.tenant_id IS 'Whose workflow it is.';
COMMENT ON VIEW monitoring.slow_activities IS
'Types of activity that took more than five seconds on average, of what completed in the last hour.';
COMMENT ON COLUMN monitoring.slow_activities.activity_type IS 'The type.';
COMMENT ON COLUMN monitoring.slow_activities.count IS 'How many completed.';
COMMENT ON COLUMN monitoring.slow_activities.avg_duration_seconds IS 'Their average duration.';
COMMENT ON COLUMN monitoring.slow_activities.max_duration_seconds IS 'The longest duration.';
COMMENT ON COLUMN monitoring.slow_activities.waited IS
'How many of them left a bookmark: they waited for something, rather than worked.';
