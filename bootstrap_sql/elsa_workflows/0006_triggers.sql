-- Under load: a new table only; nothing waits.
--
-- What starts workflows. The definition is not enforced by a foreign key: Elsa indexes triggers when
-- it publishes, and a tenant's partition of definitions stays free to be detached.
CREATE TABLE elsa_workflows.triggers (
    id varchar(255) NOT NULL,
    workflow_definition_id varchar(255) NOT NULL,
    workflow_definition_version_id varchar(255) NOT NULL,
    name varchar(500) NOT NULL,
    activity_id varchar(255) NOT NULL,
    hash varchar(255) NOT NULL,
    payload jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    tenant_id varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    -- Its index serves the documents' index on tenant_id too.
    CONSTRAINT triggers_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT triggers_tenant_id_check CHECK (tenant_id <> '')
);

CREATE INDEX idx_triggers_workflow_definition_id ON elsa_workflows.triggers (workflow_definition_id);
CREATE INDEX idx_triggers_hash ON elsa_workflows.triggers (hash);

SELECT elsapg.isolate_tenants('elsa_workflows.triggers');
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.triggers TO elsa_user;

COMMENT ON TABLE elsa_workflows.triggers IS 'Conditions that start workflows, found by their hash.';
COMMENT ON COLUMN elsa_workflows.triggers.id IS 'Identifies the trigger within its tenant.';
COMMENT ON COLUMN elsa_workflows.triggers.workflow_definition_id IS
'The workflow to start: workflow_definitions.definition_id.';
COMMENT ON COLUMN elsa_workflows.triggers.workflow_definition_version_id IS
'The version that has the trigger: workflow_definitions.id.';
COMMENT ON COLUMN elsa_workflows.triggers.name IS 'The trigger''s name.';
COMMENT ON COLUMN elsa_workflows.triggers.activity_id IS 'The activity that is the trigger.';
COMMENT ON COLUMN elsa_workflows.triggers.hash IS 'Hash of what would start the workflow.';
COMMENT ON COLUMN elsa_workflows.triggers.payload IS 'The trigger''s configuration.';
COMMENT ON COLUMN elsa_workflows.triggers.created_at IS 'When it was indexed.';
COMMENT ON COLUMN elsa_workflows.triggers.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX elsa_workflows.idx_triggers_workflow_definition_id IS 'The triggers of a workflow.';
COMMENT ON INDEX elsa_workflows.idx_triggers_hash IS 'Triggers to start by a hash.';
