-- elsapg: database=postgres

-- Every role of the cluster. Roles are created bare if missing and then given their attributes,
-- because Patroni may have created "replicator" and "rewind" before the first bootstrap.
-- No password appears here: the runner sets SCRAM verifiers afterwards, and roles without one
-- (replicator, rewind, pgbouncer_auth, backup) log in by client certificate only.
DO $roles$
DECLARE
    v_role text;
BEGIN
    FOREACH v_role IN ARRAY ARRAY[
        'elsa_owner', 'elsa_user', 'elsa_maintenance', 'elsa_auditor', 'elsa_migrator', 'elsa_app',
        'elsa_worker', 'elsa_readonly', 'elsa_host', 'elsa_admin', 'elsa_jobs', 'backup',
        'monitoring', 'replicator', 'rewind', 'pgbouncer_auth'
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = v_role) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', v_role);
        END IF;
    END LOOP;
END
$roles$;

-- CONNECTION LIMIT only where no PgBouncer pool stands in front: a limit below the pool's size
-- would turn a full pool into failed logins. Pools are bounded by max_db_connections instead. And
-- for monitoring: dashboards must not take the pools' connections from the application.

-- Owners and groups: nobody logs in as these.
ALTER ROLE elsa_owner
NOSUPERUSER NOLOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;
ALTER ROLE elsa_user
NOSUPERUSER NOLOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;

-- BYPASSRLS: partitions and retention concern all tenants. Nobody is a member; the functions that
-- run as it are in the files of this folder, and each does one thing.
ALTER ROLE elsa_maintenance
NOSUPERUSER NOLOGIN NOCREATEDB NOCREATEROLE NOREPLICATION BYPASSRLS INHERIT;
-- pgaudit.role: what this role is granted, and does not use, is what gets written to the log.
ALTER ROLE elsa_auditor
NOSUPERUSER NOLOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;

-- People and programs that log in with a password.
ALTER ROLE elsa_migrator
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;
-- An earlier version gave it one. As text, for sqlfluff knows no negative limit.
DO $limit$
BEGIN
    EXECUTE 'ALTER ROLE elsa_migrator CONNECTION LIMIT -1';
END
$limit$;
ALTER ROLE elsa_app
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;
ALTER ROLE elsa_worker
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;
ALTER ROLE elsa_readonly
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;
ALTER ROLE elsa_host
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;
ALTER ROLE elsa_admin
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT;
ALTER ROLE monitoring
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT CONNECTION LIMIT 10;

-- Services that log in with a client certificate.
ALTER ROLE replicator
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE REPLICATION NOBYPASSRLS INHERIT;
ALTER ROLE rewind
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT CONNECTION LIMIT 10;
ALTER ROLE pgbouncer_auth
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT CONNECTION LIMIT 64;
-- BYPASSRLS: pg_dump by a role that row-level security binds fails, or silently misses rows.
ALTER ROLE backup
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION BYPASSRLS INHERIT CONNECTION LIMIT 16;

-- pg_cron starts a job in a background worker, which still wants LOGIN. The role has neither a
-- password nor a line in pg_hba.conf, so nothing else can log in as it.
ALTER ROLE elsa_jobs
NOSUPERUSER LOGIN NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT
PASSWORD NULL;

GRANT elsa_owner TO elsa_migrator;
GRANT elsa_owner TO elsa_maintenance;
GRANT elsa_user TO elsa_app;
GRANT elsa_user TO elsa_host;
GRANT elsa_user TO elsa_admin;
GRANT elsa_host TO elsa_admin;
GRANT pg_monitor TO monitoring;
GRANT pg_read_all_data TO backup;
GRANT pg_read_all_settings TO backup;
GRANT pg_checkpoint TO backup;

-- A stuck client must not hold rows, locks or a pooled connection for ever.
ALTER ROLE elsa_app SET statement_timeout = '60s';
ALTER ROLE elsa_app SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE elsa_app SET lock_timeout = '10s';
ALTER ROLE elsa_worker SET statement_timeout = '60s';
ALTER ROLE elsa_worker SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE elsa_worker SET lock_timeout = '10s';
ALTER ROLE elsa_host SET statement_timeout = '60s';
ALTER ROLE elsa_host SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE elsa_host SET lock_timeout = '10s';
ALTER ROLE elsa_readonly SET statement_timeout = '5min';
ALTER ROLE elsa_readonly SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE elsa_readonly SET lock_timeout = '5s';
ALTER ROLE elsa_readonly SET default_transaction_read_only = 'on';
ALTER ROLE elsa_admin SET statement_timeout = '15min';
ALTER ROLE elsa_admin SET idle_in_transaction_session_timeout = '5min';
ALTER ROLE elsa_admin SET lock_timeout = '10s';
-- A migration that waits for a lock blocks everyone who comes after it: give up, try again.
ALTER ROLE elsa_migrator SET lock_timeout = '10s';
ALTER ROLE elsa_migrator SET idle_in_transaction_session_timeout = '5min';
ALTER ROLE monitoring SET statement_timeout = '15s';
ALTER ROLE monitoring SET lock_timeout = '2s';
ALTER ROLE monitoring SET default_transaction_read_only = 'on';
ALTER ROLE pgbouncer_auth SET statement_timeout = '5s';
ALTER ROLE elsa_jobs SET statement_timeout = '1h';
ALTER ROLE elsa_jobs SET lock_timeout = '10s';

COMMENT ON ROLE elsa_owner IS
'Owns the databases, schemas and tables of Elsa. Nobody logs in as it.';
COMMENT ON ROLE elsa_user IS
'Group that holds the application''s rights on data; grant it to a further application login.';
COMMENT ON ROLE elsa_migrator IS
'Runs Elsa''s own schema migrations; acts as elsa_owner, so that new tables are the owner''s.';
COMMENT ON ROLE elsa_app IS
'Elsa server: reads and writes the rows of the tenant its transaction names.';
COMMENT ON ROLE elsa_worker IS
'Elsa worker: reads definitions, takes locks, writes execution state.';
COMMENT ON ROLE elsa_readonly IS
'Reports: reads the rows of the tenant its transaction names.';
COMMENT ON ROLE elsa_host IS
'Elsa''s background work across tenants (timers, resuming): the application''s rights for all of them.';
COMMENT ON ROLE elsa_admin IS
'Host administration by people: elsa_host''s rights, and the tenants and users themselves.';
COMMENT ON ROLE elsa_maintenance IS
'Owns the functions that look after partitions and retention for all tenants. Nobody is it.';
COMMENT ON ROLE elsa_auditor IS
'What this role is granted is what pgaudit logs. Nobody is it.';
COMMENT ON ROLE elsa_jobs IS
'Owner of the pg_cron jobs; started by pg_cron only, has no password.';
COMMENT ON ROLE backup IS
'pgBackRest and pg_dump: reads everything, row-level security included, and writes nothing.';
COMMENT ON ROLE monitoring IS
'Metrics and checks: pg_monitor, read-only.';
COMMENT ON ROLE replicator IS
'Streaming replication between the members, used by Patroni.';
COMMENT ON ROLE rewind IS
'pg_rewind after a failover, used by Patroni.';
COMMENT ON ROLE pgbouncer_auth IS
'PgBouncer asks pgbouncer.get_auth for a client''s verifier as this role, and can do nothing else.';
