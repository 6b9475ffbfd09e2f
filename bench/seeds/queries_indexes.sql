-- The seeds' indexes of the tables in queries.sql: the inline ones, the composite ones, the JSONB
-- ones. On their own, so that a bulk load can make them afterwards.
CREATE INDEX idx_instances_definition_id ON workflow_instances (definition_id);
CREATE INDEX idx_instances_correlation_id ON workflow_instances (correlation_id);
CREATE INDEX idx_instances_status ON workflow_instances (status);
CREATE INDEX idx_instances_tenant_id ON workflow_instances (tenant_id);
CREATE INDEX idx_instances_created_at ON workflow_instances (created_at);
CREATE INDEX idx_instances_finished_at ON workflow_instances (finished_at);
CREATE INDEX idx_workflow_instances_tenant_status ON workflow_instances (tenant_id, status);
CREATE INDEX idx_workflow_instances_definition_status ON workflow_instances (definition_id, status);
CREATE INDEX idx_workflow_state_variables
    ON workflow_instances USING GIN ((workflow_state->'variables'));

CREATE INDEX idx_records_workflow_instance_id ON activity_execution_records (workflow_instance_id);
CREATE INDEX idx_records_activity_type ON activity_execution_records (activity_type);
CREATE INDEX idx_records_status ON activity_execution_records (status);
CREATE INDEX idx_records_started_at ON activity_execution_records (started_at);
CREATE INDEX idx_activity_records_workflow_time
    ON activity_execution_records (workflow_instance_id, started_at);
CREATE INDEX idx_activity_payload_order_id ON activity_execution_records ((payload->>'orderId'));

CREATE INDEX idx_bookmarks_hash ON bookmarks (bookmark_hash);
CREATE INDEX idx_bookmarks_workflow_instance_id ON bookmarks (workflow_instance_id);
CREATE INDEX idx_bookmarks_correlation_id ON bookmarks (correlation_id);
CREATE INDEX idx_bookmarks_activity_type ON bookmarks (activity_type_name);
CREATE INDEX idx_bookmarks_hash_tenant ON bookmarks (bookmark_hash, tenant_id);
