-- Workflow definitions, partitioned by tenant. A tenant without a partition of its own lives in
-- the DEFAULT partition, so a new tenant needs no DDL.
CREATE TABLE elsa_workflows.workflow_definitions (
    id varchar(255) NOT NULL,
    definition_id varchar(255) NOT NULL,
    version integer NOT NULL,
    name varchar(500) NOT NULL,
    description text,
    is_published boolean NOT NULL DEFAULT false,
    is_latest boolean NOT NULL DEFAULT false,
    materialized_workflow jsonb NOT NULL,
    string_data text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    tenant_id varchar(255) NOT NULL DEFAULT 'default',
    -- Keys of a partitioned table must contain the partition key.
    CONSTRAINT workflow_definitions_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT uk_workflow_definition_version UNIQUE (tenant_id, definition_id, version),
    -- '' is what an ended transaction leaves in app.current_tenant_id: never a tenant.
    CONSTRAINT workflow_definitions_tenant_id_check CHECK (tenant_id <> '')
) PARTITION BY LIST (tenant_id);

CREATE TABLE elsa_workflows.workflow_definitions_default
PARTITION OF elsa_workflows.workflow_definitions DEFAULT;

CREATE INDEX idx_workflow_definitions_definition_id
ON elsa_workflows.workflow_definitions (definition_id);
CREATE INDEX idx_workflow_definitions_tenant_id
ON elsa_workflows.workflow_definitions (tenant_id);
CREATE INDEX idx_workflow_definitions_is_published
ON elsa_workflows.workflow_definitions (is_published);
CREATE INDEX idx_workflow_definitions_created_at
ON elsa_workflows.workflow_definitions (created_at);

-- FORCE: without it the owner, and every view of the owner's, would see all tenants.
ALTER TABLE elsa_workflows.workflow_definitions ENABLE ROW LEVEL SECURITY;
ALTER TABLE elsa_workflows.workflow_definitions FORCE ROW LEVEL SECURITY;

-- The application says, inside each transaction:
--     SELECT set_config('app.current_tenant_id', 'tenant-001', true)
-- Unset reads as NULL; after COMMIT it reads as ''. Both must match no row.
CREATE POLICY tenant_isolation ON elsa_workflows.workflow_definitions
FOR ALL
TO PUBLIC
USING (tenant_id = nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''))
WITH CHECK (tenant_id = nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''));

-- Host administration works across tenants, without a role that bypasses every policy.
CREATE POLICY host_access ON elsa_workflows.workflow_definitions
FOR ALL
TO elsa_admin
USING (true)
WITH CHECK (true);

-- elsa_user carries elsa_app and elsa_admin. Default privileges say the same; said here too, so
-- that this file alone shows who may do what.
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.workflow_definitions TO elsa_user;
GRANT SELECT ON TABLE elsa_workflows.workflow_definitions TO elsa_worker, elsa_readonly, backup;
REVOKE ALL ON TABLE elsa_workflows.workflow_definitions_default
FROM elsa_user, elsa_worker, elsa_readonly, backup;

COMMENT ON TABLE elsa_workflows.workflow_definitions IS
'Workflow templates and their versions, one row per version, partitioned by tenant.';
COMMENT ON TABLE elsa_workflows.workflow_definitions_default IS
'Definitions of tenants that have no partition of their own.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.id IS
'Identifies this version. Unique within a tenant; make it globally unique (UUIDv7 or ULID).';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.definition_id IS
'Identifies the workflow across its versions.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.version IS
'The version''s number.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.name IS
'The workflow''s name.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.description IS
'What the workflow does, for people.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.is_published IS
'Whether this version may be started.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.is_latest IS
'Whether this is the newest version.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.materialized_workflow IS
'The workflow''s activities and connections.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.string_data IS
'The workflow''s serialized form, as its author''s tool wrote it.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.created_at IS
'When this version was created.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.updated_at IS
'When this version was last changed.';
COMMENT ON COLUMN elsa_workflows.workflow_definitions.tenant_id IS
'The tenant that owns the row; "default" where there is only one.';
COMMENT ON POLICY tenant_isolation ON elsa_workflows.workflow_definitions IS
'A transaction sees and writes the rows of the tenant in app.current_tenant_id, and no others.';
COMMENT ON POLICY host_access ON elsa_workflows.workflow_definitions IS
'elsa_admin works across tenants.';
COMMENT ON INDEX elsa_workflows.idx_workflow_definitions_definition_id IS 'All versions of a workflow.';
COMMENT ON INDEX elsa_workflows.idx_workflow_definitions_tenant_id IS 'All definitions of a tenant.';
COMMENT ON INDEX elsa_workflows.idx_workflow_definitions_is_published IS 'Published definitions.';
COMMENT ON INDEX elsa_workflows.idx_workflow_definitions_created_at IS 'Definitions by age.';
