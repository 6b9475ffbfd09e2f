-- Under load: new tables only; nothing waits.
--
-- Workflow instances by month of their creation, in UTC. elsa_workflows.create_monthly_partitions
-- makes the months; what lies outside them goes to the DEFAULT partition and is reported.
CREATE TABLE elsa_workflows.workflow_instances (
    id varchar(255) NOT NULL,
    definition_id varchar(255) NOT NULL,
    definition_version integer NOT NULL,
    workflow_state jsonb NOT NULL,
    status varchar(50) NOT NULL,
    sub_status varchar(50),
    correlation_id varchar(255),
    name varchar(500),
    incident_count integer NOT NULL DEFAULT 0,
    is_system boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    finished_at timestamptz,
    faulted_at timestamptz,
    tenant_id varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT workflow_instances_pkey PRIMARY KEY (tenant_id, id, created_at),
    CONSTRAINT workflow_instances_tenant_id_check CHECK (tenant_id <> '')
) PARTITION BY RANGE (created_at);

CREATE TABLE elsa_workflows.workflow_instances_default
PARTITION OF elsa_workflows.workflow_instances DEFAULT;

-- The documents' single-column indexes on definition_id, status and tenant_id are the first columns
-- of these three: the same queries use them, and an insert writes three indexes fewer.
CREATE INDEX idx_workflow_instances_definition_status
ON elsa_workflows.workflow_instances (definition_id, status);
CREATE INDEX idx_workflow_instances_status
ON elsa_workflows.workflow_instances (status, created_at);
CREATE INDEX idx_workflow_instances_tenant_status
ON elsa_workflows.workflow_instances (tenant_id, status);
CREATE INDEX idx_workflow_instances_correlation_id
ON elsa_workflows.workflow_instances (correlation_id)
WHERE correlation_id IS NOT NULL;
CREATE INDEX idx_workflow_instances_created_at
ON elsa_workflows.workflow_instances (created_at);
-- With what monitoring.workflow_performance asks for, so that it need not look at the rows where vacuum
-- has been, nor a tenant's reader at other tenants' rows. Partial: an instance enters it when it
-- finishes, so that inserting one does not write it.
CREATE INDEX idx_workflow_instances_finished_at
ON elsa_workflows.workflow_instances (finished_at) INCLUDE (tenant_id, definition_id, created_at)
WHERE finished_at IS NOT NULL;
-- With the tenant first: one index for all tenants together, which is small and read whole, and for
-- one tenant, who reads only its part of it.
CREATE INDEX idx_workflow_instances_active
ON elsa_workflows.workflow_instances (tenant_id, status, created_at)
WHERE finished_at IS NULL AND faulted_at IS NULL;
CREATE INDEX idx_workflow_instances_faulted_at
ON elsa_workflows.workflow_instances (faulted_at)
WHERE finished_at IS NULL AND faulted_at IS NOT NULL;
CREATE INDEX idx_workflow_instances_state_variables
ON elsa_workflows.workflow_instances USING gin ((workflow_state -> 'variables'));

SELECT elsapg.isolate_tenants('elsa_workflows.workflow_instances');
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.workflow_instances TO elsa_user;
GRANT SELECT, INSERT, UPDATE ON TABLE elsa_workflows.workflow_instances TO elsa_worker;

-- See cluster/057_instance_keys.sql.
CREATE TABLE elsa_workflows.workflow_instance_keys (
    tenant_id varchar(255) NOT NULL,
    id varchar(255) NOT NULL,
    CONSTRAINT workflow_instance_keys_pkey PRIMARY KEY (tenant_id, id)
);
SELECT elsapg.isolate_tenants('elsa_workflows.workflow_instance_keys');
REVOKE ALL ON TABLE elsa_workflows.workflow_instance_keys FROM elsa_user, elsa_worker, elsa_readonly;

-- By statement, not by row: one insert of a thousand instances writes their keys at once.
CREATE TRIGGER workflow_instances_add_keys
AFTER INSERT ON elsa_workflows.workflow_instances
REFERENCING NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION elsa_workflows.add_instance_keys();
CREATE TRIGGER workflow_instances_remove_keys
AFTER DELETE ON elsa_workflows.workflow_instances
REFERENCING OLD TABLE AS old_rows
FOR EACH STATEMENT EXECUTE FUNCTION elsa_workflows.remove_instance_keys();
CREATE TRIGGER workflow_instances_keep_identity
BEFORE UPDATE ON elsa_workflows.workflow_instances
FOR EACH ROW
WHEN ((old.tenant_id, old.id, old.created_at) IS DISTINCT FROM (new.tenant_id, new.id, new.created_at))
EXECUTE FUNCTION elsa_workflows.keep_instance_identity();
CREATE TRIGGER workflow_instances_refuse_truncate
BEFORE TRUNCATE ON elsa_workflows.workflow_instances
FOR EACH STATEMENT EXECUTE FUNCTION elsa_workflows.refuse_truncate();

COMMENT ON TABLE elsa_workflows.workflow_instances IS
'Workflow executions, running and ended, by month of creation (UTC).';
COMMENT ON TABLE elsa_workflows.workflow_instances_default IS
'Instances created outside the months that have a partition; should be empty.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.id IS
'Identifies the instance; unique among a tenant''s live instances. UUIDv7 or ULID keep inserts local.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.definition_id IS
'The workflow: workflow_definitions.definition_id. Not enforced: history outlives definitions.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.definition_version IS
'The version that it runs: workflow_definitions.version.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.workflow_state IS
'The execution''s state; its member "variables" is indexed.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.status IS
'The application''s word. Completed, Cancelled and Faulted end an instance: retention looks for them.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.sub_status IS 'Details of the status.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.correlation_id IS
'Ties the instance to something of the application''s, such as an order.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.name IS 'A name for people.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.incident_count IS 'How many incidents it has had.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.is_system IS 'Whether it is the system''s own.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.created_at IS
'When it was created; decides its month, and cannot change.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.updated_at IS
'When it was last changed; written by the application.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.finished_at IS 'When it completed or was cancelled.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.faulted_at IS 'When it faulted.';
COMMENT ON COLUMN elsa_workflows.workflow_instances.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON TABLE elsa_workflows.workflow_instance_keys IS
'One row per row of workflow_instances, written by its triggers: what children reference.';
COMMENT ON COLUMN elsa_workflows.workflow_instance_keys.tenant_id IS 'The instance''s tenant.';
COMMENT ON COLUMN elsa_workflows.workflow_instance_keys.id IS 'The instance''s id.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_definition_status IS
'Instances of a workflow, in any or a given status.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_status IS
'Instances in a status, by age.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_tenant_status IS
'Instances of a tenant, in any or a given status.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_correlation_id IS
'Instances of a correlation id; "correlation_id = …" implies the condition.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_created_at IS 'Instances by age.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_finished_at IS
'Instances that finished in a period, for retention and for monitoring.workflow_performance.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_active IS
'Instances that have not ended, for monitoring.active_workflows.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_faulted_at IS
'Instances that faulted and never finished, for retention.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_state_variables IS
'Instances by their variables: workflow_state -> ''variables'' @> ''{"name": "value"}''.';
