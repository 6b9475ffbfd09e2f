-- Under load: a new table; locks nothing that is in use.
--
-- Point-in-time execution state. Rows live for snapshots_hours (elsapg.setting); the job that
-- deletes them is in cluster/062_runtime_functions.sql.
CREATE TABLE elsa_runtime.execution_state_snapshots (
    id varchar(255) NOT NULL,
    workflow_instance_id varchar(255) NOT NULL,
    snapshot_data jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    tenant_id varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT execution_state_snapshots_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT execution_state_snapshots_tenant_id_check CHECK (tenant_id <> '')
)
WITH (
    -- The whole table is replaced every day. The defaults would let a fifth of it be dead first.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.02
);

-- With the time, it also finds an instance's latest snapshot. Ids of instances are globally unique,
-- so the tenant need not lead.
CREATE INDEX idx_execution_state_snapshots_workflow_instance_id
ON elsa_runtime.execution_state_snapshots (workflow_instance_id, created_at);
CREATE INDEX idx_execution_state_snapshots_created_at
ON elsa_runtime.execution_state_snapshots (created_at);

SELECT elsapg.isolate_tenants('elsa_runtime.execution_state_snapshots');

-- Workers write execution state. elsa_user has all four by default privileges.
GRANT INSERT, UPDATE, DELETE ON TABLE elsa_runtime.execution_state_snapshots TO elsa_worker;

COMMENT ON TABLE elsa_runtime.execution_state_snapshots IS
'Execution state of workflow instances at points in time, kept for a day or as the stack says.';
COMMENT ON COLUMN elsa_runtime.execution_state_snapshots.id IS
'Identifies the snapshot within its tenant.';
COMMENT ON COLUMN elsa_runtime.execution_state_snapshots.workflow_instance_id IS
'The instance, in database elsa_workflows.';
COMMENT ON COLUMN elsa_runtime.execution_state_snapshots.snapshot_data IS
'The state.';
COMMENT ON COLUMN elsa_runtime.execution_state_snapshots.created_at IS
'When it was taken; its age decides when it is deleted.';
COMMENT ON COLUMN elsa_runtime.execution_state_snapshots.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX elsa_runtime.idx_execution_state_snapshots_workflow_instance_id IS
'An instance''s snapshots, in time order.';
COMMENT ON INDEX elsa_runtime.idx_execution_state_snapshots_created_at IS
'Snapshots by age, for their deletion.';
