-- elsapg: database=each

-- Preloaded by shared_preload_libraries; here they get their SQL objects. Schema public is where
-- tools look for pg_stat_statements, and nobody but the owner may create anything in it.
CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public;
CREATE EXTENSION IF NOT EXISTS pgaudit SCHEMA public;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- It shows the statements of everybody who has the same role: of other tenants, too.
REVOKE ALL ON TABLE public.pg_stat_statements FROM PUBLIC;
REVOKE ALL ON TABLE public.pg_stat_statements_info FROM PUBLIC;
GRANT SELECT ON TABLE public.pg_stat_statements TO monitoring;
GRANT SELECT ON TABLE public.pg_stat_statements_info TO monitoring;

-- A large object knows no tenant, and a single one that "backup" may not read fails every pg_dump.
REVOKE EXECUTE ON FUNCTION pg_catalog.lo_creat(integer) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pg_catalog.lo_create(oid) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pg_catalog.lo_from_bytea(oid, bytea) FROM PUBLIC;
