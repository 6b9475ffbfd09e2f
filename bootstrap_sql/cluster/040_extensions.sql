-- elsapg: database=each

-- Preloaded by shared_preload_libraries; here they get their SQL objects. Schema public is where
-- tools look for pg_stat_statements, and nobody but the owner may create anything in it.
CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public;
CREATE EXTENSION IF NOT EXISTS pgaudit SCHEMA public;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
