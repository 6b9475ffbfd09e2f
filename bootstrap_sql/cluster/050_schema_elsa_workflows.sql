-- elsapg: database=elsa_workflows

CREATE SCHEMA IF NOT EXISTS elsa_workflows AUTHORIZATION elsa_owner;
ALTER SCHEMA elsa_workflows OWNER TO elsa_owner;
REVOKE ALL ON SCHEMA elsa_workflows FROM PUBLIC;
GRANT USAGE ON SCHEMA elsa_workflows TO elsa_user, elsa_worker, elsa_readonly, elsa_jobs;

-- Rights on what does not exist yet; "ON ALL TABLES" would cover today's only. The worker gets
-- SELECT here, and what it may write table by table. Partitions lose these rights again: see
-- elsapg.guard_partitions.
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA elsa_workflows
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO elsa_user;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA elsa_workflows
GRANT SELECT ON TABLES TO elsa_worker, elsa_readonly, backup;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA elsa_workflows
GRANT USAGE, SELECT ON SEQUENCES TO elsa_user;
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner IN SCHEMA elsa_workflows
GRANT SELECT ON SEQUENCES TO backup;
-- PUBLIC's EXECUTE is a default of the whole database, which a schema's default cannot take away.
ALTER DEFAULT PRIVILEGES FOR ROLE elsa_owner
REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

COMMENT ON SCHEMA elsa_workflows IS
'Workflow definitions and execution history.';
