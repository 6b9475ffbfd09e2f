-- elsapg: database=postgres

-- PgBouncer's auth_query, with auth_dbname = postgres:
--     SELECT usename, passwd FROM pgbouncer.get_auth($1)
-- It reveals verifiers, so it runs with its owner's rights, for one role, and never answers for
-- a role whose theft would be worth more than the application's data.
CREATE SCHEMA IF NOT EXISTS pgbouncer;
REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer_auth;

-- pg_temp last: unnamed, it would be searched first, and a temporary table could stand in.
CREATE OR REPLACE FUNCTION pgbouncer.get_auth(p_usename text)
RETURNS TABLE (usename text, passwd text)
LANGUAGE sql
STABLE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT
        a.rolname::text,
        a.rolpassword
    FROM pg_catalog.pg_authid AS a
    WHERE
        a.rolname = p_usename
        AND a.rolcanlogin
        AND NOT a.rolsuper
        AND NOT a.rolreplication
        AND NOT a.rolbypassrls
        AND a.rolpassword IS NOT NULL
        AND (a.rolvaliduntil IS NULL OR a.rolvaliduntil > pg_catalog.now())
$function$;

REVOKE ALL ON FUNCTION pgbouncer.get_auth(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgbouncer.get_auth(text) TO pgbouncer_auth;

COMMENT ON SCHEMA pgbouncer IS
'What PgBouncer needs in order to authenticate clients.';
COMMENT ON FUNCTION pgbouncer.get_auth(text) IS
'A role''s SCRAM verifier for PgBouncer; nothing for superusers, replication, BYPASSRLS, NOLOGIN or expired roles.';
