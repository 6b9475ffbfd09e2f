-- elsapg: database=postgres

-- Who may connect where. PUBLIC may connect to, and make temporary tables in, every new
-- database; until that is revoked a GRANT CONNECT decides nothing.
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
REVOKE ALL ON DATABASE template1 FROM PUBLIC;
REVOKE ALL ON DATABASE elsa_workflows FROM PUBLIC;
REVOKE ALL ON DATABASE elsa_runtime FROM PUBLIC;

ALTER DATABASE elsa_workflows OWNER TO elsa_owner;
ALTER DATABASE elsa_runtime OWNER TO elsa_owner;

-- elsa_user carries elsa_app, elsa_host and elsa_admin.
GRANT CONNECT ON DATABASE elsa_workflows, elsa_runtime
TO elsa_user, elsa_migrator, elsa_worker, elsa_readonly;
-- rewind: pg_rewind connects to postgres. pgbouncer_auth: the auth function lives there.
GRANT CONNECT ON DATABASE postgres TO rewind, pgbouncer_auth;
GRANT CONNECT ON DATABASE postgres, elsa_workflows, elsa_runtime
TO monitoring, backup, elsa_jobs;
-- Elsa's migrations and reports over joins may need scratch tables.
GRANT TEMPORARY ON DATABASE elsa_workflows, elsa_runtime TO elsa_user, elsa_migrator;

-- An unqualified name finds the database's own schema first. Only elsa_owner can create there,
-- so nobody can put a table or a function in the way. pg_temp last: unnamed, it would be searched
-- first, and a temporary table could stand in for a real one.
SET LOCAL search_path = elsa_workflows, public, pg_temp;
ALTER DATABASE elsa_workflows SET search_path FROM CURRENT;
SET LOCAL search_path = elsa_runtime, public, pg_temp;
ALTER DATABASE elsa_runtime SET search_path FROM CURRENT;
ALTER DATABASE elsa_workflows SET timezone = 'UTC';
ALTER DATABASE elsa_runtime SET timezone = 'UTC';

-- What a migrator makes belongs to elsa_owner, whoever ran the migration.
ALTER ROLE elsa_migrator IN DATABASE elsa_workflows SET role = 'elsa_owner';
ALTER ROLE elsa_migrator IN DATABASE elsa_runtime SET role = 'elsa_owner';

COMMENT ON DATABASE elsa_workflows IS
'Workflow definitions and execution history: Elsa''s own tables and the toolkit''s.';
COMMENT ON DATABASE elsa_runtime IS
'Transient runtime data and coordination: locks, snapshots, workers, queues.';

-- A database that someone else created first keeps its encoding for ever: say so now.
DO $check$
DECLARE
    v_database record;
BEGIN
    FOR v_database IN
        SELECT
            d.datname,
            pg_catalog.pg_encoding_to_char(d.encoding) AS encoding,
            d.datlocprovider AS provider,
            d.datlocale AS locale
        FROM pg_catalog.pg_database AS d
        WHERE d.datname IN ('elsa_workflows', 'elsa_runtime')
    LOOP
        IF (v_database.encoding, v_database.provider, v_database.locale)
            IS DISTINCT FROM ('UTF8', 'b', 'C.UTF-8')
        THEN
            RAISE EXCEPTION 'database % was created with encoding %, locale provider "%", locale %',
                v_database.datname, v_database.encoding, v_database.provider, v_database.locale
            USING HINT = 'Dump it, drop it, run the bootstrap, and restore the dump.';
        END IF;
    END LOOP;
END
$check$;
