-- Under load: new tables only; nothing waits.
--
-- What each activity of an instance did, by month of its start, in UTC.
CREATE TABLE elsa_workflows.activity_execution_records (
    id varchar(255) NOT NULL,
    workflow_instance_id varchar(255) NOT NULL,
    activity_id varchar(255) NOT NULL,
    activity_node_id varchar(255) NOT NULL,
    activity_type varchar(500) NOT NULL,
    activity_type_version integer NOT NULL,
    activity_name varchar(500),
    started_at timestamptz NOT NULL,
    completed_at timestamptz,
    has_bookmarks boolean NOT NULL DEFAULT false,
    status varchar(50) NOT NULL,
    payload jsonb,
    exception text,
    tenant_id varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT activity_execution_records_pkey PRIMARY KEY (tenant_id, id, started_at),
    CONSTRAINT activity_execution_records_tenant_id_check CHECK (tenant_id <> ''),
    -- With the tenant: another tenant's instance is an instance that does not exist.
    CONSTRAINT activity_execution_records_workflow_instance_fkey
    FOREIGN KEY (tenant_id, workflow_instance_id)
    REFERENCES elsa_workflows.workflow_instance_keys (tenant_id, id) ON DELETE CASCADE
) PARTITION BY RANGE (started_at);

CREATE TABLE elsa_workflows.activity_execution_records_default
PARTITION OF elsa_workflows.activity_execution_records DEFAULT;

-- Serves the documents' index on workflow_instance_id too, whose column comes first.
CREATE INDEX idx_activity_execution_records_workflow_time
ON elsa_workflows.activity_execution_records (workflow_instance_id, started_at);
CREATE INDEX idx_activity_execution_records_activity_type
ON elsa_workflows.activity_execution_records (activity_type);
CREATE INDEX idx_activity_execution_records_status
ON elsa_workflows.activity_execution_records (status);
CREATE INDEX idx_activity_execution_records_started_at
ON elsa_workflows.activity_execution_records (started_at);
-- What is slow is found when it has completed, however long ago it started. Partial: a record that is
-- written when its activity starts is not in it.
CREATE INDEX idx_activity_execution_records_completed_at
ON elsa_workflows.activity_execution_records (completed_at)
WHERE completed_at IS NOT NULL;
-- Only where there is an order: "payload ->> 'orderId' = …" implies the condition.
CREATE INDEX idx_activity_execution_records_payload_order_id
ON elsa_workflows.activity_execution_records ((payload ->> 'orderId'))
WHERE (payload ->> 'orderId') IS NOT NULL;

SELECT elsapg.isolate_tenants('elsa_workflows.activity_execution_records');
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.activity_execution_records TO elsa_user;
-- A worker ends what it began; it does not rewrite what ran where.
GRANT SELECT, INSERT ON TABLE elsa_workflows.activity_execution_records TO elsa_worker;
GRANT UPDATE (completed_at, has_bookmarks, status, payload, exception)
ON TABLE elsa_workflows.activity_execution_records TO elsa_worker;

COMMENT ON TABLE elsa_workflows.activity_execution_records IS
'One row per execution of an activity, by month of its start (UTC).';
COMMENT ON TABLE elsa_workflows.activity_execution_records_default IS
'Records that started outside the months that have a partition; should be empty.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.id IS
'Identifies the record; unique within its tenant and start. Make it globally unique (UUIDv7 or ULID).';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.workflow_instance_id IS
'The instance that ran it; deleted with it.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.activity_id IS
'The activity in the workflow''s definition.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.activity_node_id IS
'The activity''s node in the workflow''s graph.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.activity_type IS 'The activity''s type.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.activity_type_version IS
'The version of the activity''s type.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.activity_name IS 'A name for people.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.started_at IS
'When it started; decides its month.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.completed_at IS
'When it ended; NULL while it runs or waits.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.has_bookmarks IS
'Whether it left bookmarks to be resumed by.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.status IS 'How it stands or ended.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.payload IS
'Its input and output; the member "orderId" is indexed.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.exception IS 'What it failed with.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX elsa_workflows.idx_activity_execution_records_workflow_time IS
'The records of an instance, in order of time.';
COMMENT ON INDEX elsa_workflows.idx_activity_execution_records_activity_type IS 'Records of an activity type.';
COMMENT ON INDEX elsa_workflows.idx_activity_execution_records_status IS 'Records in a status.';
COMMENT ON INDEX elsa_workflows.idx_activity_execution_records_started_at IS
'Records that started in a period.';
COMMENT ON INDEX elsa_workflows.idx_activity_execution_records_completed_at IS
'Records that completed in a period, for monitoring.slow_activities.';
COMMENT ON INDEX elsa_workflows.idx_activity_execution_records_payload_order_id IS
'Records of an order: payload ->> ''orderId'' = ….';
