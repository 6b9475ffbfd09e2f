-- elsapg: database=elsa_workflows

-- What a team adds to Elsa's tables, beside them and never in them: Elsa's migrations know nothing
-- of this schema, and an upgrade of Elsa cannot touch it.
CREATE SCHEMA IF NOT EXISTS "ElsaExtensions" AUTHORIZATION elsa_owner;
ALTER SCHEMA "ElsaExtensions" OWNER TO elsa_owner;
REVOKE ALL ON SCHEMA "ElsaExtensions" FROM PUBLIC;
GRANT USAGE ON SCHEMA "ElsaExtensions" TO elsa_user, elsa_worker, elsa_readonly;

-- The worker looks activities up and writes nothing here.
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "ElsaExtensions"
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO elsa_user;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "ElsaExtensions"
GRANT SELECT ON TABLES TO elsa_worker, elsa_readonly, backup;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "ElsaExtensions"
GRANT USAGE, SELECT ON SEQUENCES TO elsa_user;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "ElsaExtensions"
GRANT SELECT ON SEQUENCES TO backup;

COMMENT ON SCHEMA "ElsaExtensions" IS
'The team''s own tables beside Elsa''s: categories, tags and custom activities.';
