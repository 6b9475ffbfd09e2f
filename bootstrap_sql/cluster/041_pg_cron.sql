-- elsapg: database=postgres

-- pg_cron exists in one database of a cluster, the one of cron.database_name; its jobs run in
-- the others through cron.schedule_in_database.
CREATE EXTENSION IF NOT EXISTS pg_cron;

-- Anybody who can use the schema could schedule jobs for himself. Nobody needs to.
REVOKE ALL ON SCHEMA cron FROM PUBLIC;
