-- Under load: catalog changes only; ACCESS EXCLUSIVE on one table for milliseconds, given up after
-- lock_timeout.
--
-- A row belongs to the tenant of its transaction unless it says otherwise; without one, to
-- 'default', where row-level security then lets only elsa_host and elsa_admin write.
ALTER TABLE elsa_workflows.workflow_definitions
ALTER COLUMN tenant_id SET DEFAULT coalesce(
    nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
);

-- Replaces the two policies of 0001 by the ones that every table has: host_access is elsa_host's
-- now, whose member elsa_admin is.
SELECT elsapg.isolate_tenants('elsa_workflows.workflow_definitions');

COMMENT ON COLUMN elsa_workflows.workflow_definitions.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
