-- elsapg: database=elsa_workflows,elsa_runtime

-- The toolkit's own schema: which migrations were applied, and a guard for partitions.
CREATE SCHEMA IF NOT EXISTS elsapg;
REVOKE ALL ON SCHEMA elsapg FROM PUBLIC;
-- The owner, for migrations; the maintenance functions, which read the settings.
GRANT USAGE ON SCHEMA elsapg TO monitoring, elsa_admin, elsa_jobs, elsa_owner;

CREATE TABLE IF NOT EXISTS elsapg.schema_migration (
    version integer NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    applied_by text NOT NULL,
    duration_ms integer NOT NULL,
    CONSTRAINT schema_migration_pkey PRIMARY KEY (version),
    CONSTRAINT schema_migration_name_key UNIQUE (name),
    CONSTRAINT schema_migration_sha256_check CHECK (sha256 ~ '^[0-9a-f]{64}$')
);
REVOKE ALL ON TABLE elsapg.schema_migration FROM PUBLIC;
GRANT SELECT ON TABLE elsapg.schema_migration TO monitoring, elsa_admin;
-- Migrations record themselves as the owner that runs them. No UPDATE, no DELETE: what was applied
-- stays on record.
GRANT SELECT, INSERT ON TABLE elsapg.schema_migration TO elsa_owner;

COMMENT ON SCHEMA elsapg IS
'The toolkit''s own bookkeeping.';
COMMENT ON TABLE elsapg.schema_migration IS
'One row per applied migration of this database. An edited file no longer fits its sha256 and is refused.';
COMMENT ON COLUMN elsapg.schema_migration.version IS 'The number the file''s name begins with.';
COMMENT ON COLUMN elsapg.schema_migration.name IS 'The file''s name.';
COMMENT ON COLUMN elsapg.schema_migration.sha256 IS 'SHA-256 of the file as applied, with LF line ends.';
COMMENT ON COLUMN elsapg.schema_migration.applied_at IS 'When it was applied.';
COMMENT ON COLUMN elsapg.schema_migration.applied_by IS 'The database role that applied it.';
COMMENT ON COLUMN elsapg.schema_migration.duration_ms IS 'How long it ran, in milliseconds.';

-- What a stack's file says about the data, written by the bootstrap, read by the jobs.
CREATE TABLE IF NOT EXISTS elsapg.setting (
    name text NOT NULL,
    value integer NOT NULL,
    CONSTRAINT setting_pkey PRIMARY KEY (name),
    CONSTRAINT setting_value_check CHECK (value >= 0)
);
REVOKE ALL ON TABLE elsapg.setting FROM PUBLIC;
GRANT SELECT ON TABLE elsapg.setting TO monitoring, elsa_admin, elsa_jobs, elsa_owner;
INSERT INTO elsapg.setting (name, value)
VALUES
('instances_days', 90),
('archive_months', 0),
('snapshots_hours', 24),
('months_ahead', 2)
ON CONFLICT (name) DO NOTHING;

COMMENT ON TABLE elsapg.setting IS
'The stack''s settings that SQL needs. Change them in the stack''s file: the bootstrap writes them here.';
COMMENT ON COLUMN elsapg.setting.name IS
'instances_days, archive_months (0: for ever), snapshots_hours, months_ahead.';
COMMENT ON COLUMN elsapg.setting.value IS 'Its value, in the unit that the name says.';

CREATE OR REPLACE FUNCTION elsapg.setting(p_name text)
RETURNS integer
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_value integer;
BEGIN
    SELECT s.value INTO v_value FROM elsapg.setting AS s WHERE s.name = p_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'elsapg.setting has no row "%"', p_name
        USING ERRCODE = 'undefined_object', HINT = 'Run the bootstrap again: it puts the row back.';
    END IF;
    RETURN v_value;
END
$function$;
REVOKE ALL ON FUNCTION elsapg.setting(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsapg.setting(text) TO elsa_jobs, elsa_owner, elsa_admin, monitoring;
COMMENT ON FUNCTION elsapg.setting(text) IS
'One of the stack''s settings; an error if there is none of that name.';

-- One way to keep tenants apart, for every table with a tenant. The migration that makes a table
-- calls it in the same transaction, so the table is never there without it:
--     SELECT elsapg.isolate_tenants('elsa_workflows.bookmarks');
-- The application says, inside each transaction:
--     SELECT set_config('app.current_tenant_id', 'tenant-001', true)
-- Unset reads as NULL; after COMMIT it reads as ''. Both match no row. FORCE: without it the owner,
-- and every view of the owner's, would see all tenants.
CREATE OR REPLACE FUNCTION elsapg.isolate_tenants(p_table regclass, p_column name DEFAULT 'tenant_id')
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_own text := format(
        '%I = nullif(pg_catalog.current_setting(%L, true), %L)',
        p_column, 'app.current_tenant_id', ''
    );
BEGIN
    EXECUTE format(
        'ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', p_table
    );
    EXECUTE format('DROP POLICY IF EXISTS tenant_isolation ON %s', p_table);
    EXECUTE format(
        'CREATE POLICY tenant_isolation ON %s FOR ALL TO PUBLIC USING (%s) WITH CHECK (%s)',
        p_table, v_own, v_own
    );
    EXECUTE format(
        'COMMENT ON POLICY tenant_isolation ON %s IS %L',
        p_table,
        'A transaction sees and writes the rows of the tenant in app.current_tenant_id, and no others.'
    );
    EXECUTE format('DROP POLICY IF EXISTS host_access ON %s', p_table);
    EXECUTE format(
        'CREATE POLICY host_access ON %s FOR ALL TO elsa_host USING (true) WITH CHECK (true)', p_table
    );
    EXECUTE format(
        'COMMENT ON POLICY host_access ON %s IS %L',
        p_table,
        'elsa_host, and elsa_admin with it, works across tenants.'
    );
END
$function$;
REVOKE ALL ON FUNCTION elsapg.isolate_tenants(regclass, name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsapg.isolate_tenants(regclass, name) TO elsa_owner;
COMMENT ON FUNCTION elsapg.isolate_tenants(regclass, name) IS
'Enables and forces row-level security on a table, with the policies tenant_isolation and host_access.';

-- A partition is a table too: with rights of its own, and without its parent's policies, it is a
-- way around row-level security. Default privileges would give it those rights. So whatever way
-- a table becomes a partition, it loses every grant and gets row-level security of its own,
-- under which nobody sees a row; queries through the parent are judged by the parent alone.
CREATE OR REPLACE FUNCTION elsapg.guard_partitions()
RETURNS event_trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- It runs while DDL holds its locks: compiling its query would take longer than the query.
SET jit = off
AS $function$
DECLARE
    v_partition record;
BEGIN
    FOR v_partition IN
        SELECT
            c.oid::pg_catalog.regclass AS name,
            c.relrowsecurity AND c.relforcerowsecurity AS guarded,
            acl.grantee
        FROM pg_catalog.pg_class AS c
        LEFT JOIN LATERAL (
            SELECT DISTINCT
                CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::text END
                    AS grantee
            FROM pg_catalog.aclexplode(c.relacl) AS a
            WHERE a.grantee <> c.relowner
        ) AS acl ON true
        WHERE
            c.relispartition
            AND c.relkind IN ('r', 'p')
            AND (acl.grantee IS NOT NULL OR NOT (c.relrowsecurity AND c.relforcerowsecurity))
    LOOP
        IF v_partition.grantee IS NOT NULL THEN
            EXECUTE format('REVOKE ALL ON TABLE %s FROM %s', v_partition.name, v_partition.grantee);
        END IF;
        IF NOT v_partition.guarded THEN
            -- One statement: it fires this trigger again, which must then find nothing to do.
            EXECUTE format(
                'ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
                v_partition.name
            );
        END IF;
    END LOOP;
END
$function$;
REVOKE ALL ON FUNCTION elsapg.guard_partitions() FROM PUBLIC;
COMMENT ON FUNCTION elsapg.guard_partitions() IS
'Takes every grant from partitions and gives them row-level security of their own.';

-- There is no CREATE OR REPLACE EVENT TRIGGER.
DO $create$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_event_trigger AS e WHERE e.evtname = 'elsapg_guard_partitions'
    ) THEN
        CREATE EVENT TRIGGER elsapg_guard_partitions
            ON ddl_command_end
            WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'GRANT')
            EXECUTE FUNCTION elsapg.guard_partitions();
    END IF;
END
$create$;
COMMENT ON EVENT TRIGGER elsapg_guard_partitions IS
'Runs elsapg.guard_partitions after DDL that can make a partition or grant rights on one.';
