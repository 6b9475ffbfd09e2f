-- elsapg: database=elsa_workflows

-- Where Elsa's own EF Core migrations put their tables, and Quartz's if it is used. Made here, and
-- left empty: the tables are Elsa's to create and to alter, by elsa_migrator, who acts as
-- elsa_owner. Everybody else gets rights on them without owning any.
CREATE SCHEMA IF NOT EXISTS "Elsa" AUTHORIZATION elsa_owner;
CREATE SCHEMA IF NOT EXISTS quartz AUTHORIZATION elsa_owner;
ALTER SCHEMA "Elsa" OWNER TO elsa_owner;
ALTER SCHEMA quartz OWNER TO elsa_owner;
REVOKE ALL ON SCHEMA "Elsa", quartz FROM PUBLIC;
-- elsa_user carries elsa_app, elsa_host and elsa_admin; backup reads every schema.
GRANT USAGE ON SCHEMA "Elsa", quartz TO elsa_user, elsa_worker, elsa_readonly;

-- Rights on what the migrations will make. A worker runs workflows with Elsa's own stores, so it
-- writes where the server writes.
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "Elsa", quartz
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO elsa_user, elsa_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "Elsa", quartz
GRANT SELECT ON TABLES TO elsa_readonly, backup;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "Elsa", quartz
GRANT USAGE, SELECT ON SEQUENCES TO elsa_user, elsa_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA "Elsa", quartz
GRANT SELECT ON SEQUENCES TO backup;

-- And on what is there: restored from a dump, say, or made by a superuser.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "Elsa", quartz TO elsa_user, elsa_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA "Elsa", quartz TO elsa_readonly, backup;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA "Elsa", quartz TO elsa_user, elsa_worker;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA "Elsa", quartz TO backup;

COMMENT ON SCHEMA "Elsa" IS
'Elsa''s own tables, made and changed by Elsa''s migrations alone.';
COMMENT ON SCHEMA quartz IS
'Quartz''s own tables, where Elsa schedules with Quartz.';
