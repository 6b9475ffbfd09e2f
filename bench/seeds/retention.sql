-- The documents' tables and their archive, with the least that makes them run on PostgreSQL: indexes
-- by statements of their own, and no partition (the documents' own did not work).
CREATE TABLE workflow_instances (
    id VARCHAR(255) PRIMARY KEY,
    definition_id VARCHAR(255) NOT NULL,
    definition_version INT NOT NULL,
    workflow_state JSONB NOT NULL,
    status VARCHAR(50) NOT NULL,
    sub_status VARCHAR(50),
    correlation_id VARCHAR(255),
    name VARCHAR(500),
    incident_count INT NOT NULL DEFAULT 0,
    is_system BOOLEAN NOT NULL DEFAULT FALSE,
    created_at TIMESTAMP NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMP NOT NULL DEFAULT NOW(),
    finished_at TIMESTAMP,
    faulted_at TIMESTAMP,
    tenant_id VARCHAR(255)
);
CREATE INDEX idx_instances_definition_id ON workflow_instances (definition_id);
CREATE INDEX idx_instances_correlation_id ON workflow_instances (correlation_id);
CREATE INDEX idx_instances_status ON workflow_instances (status);
CREATE INDEX idx_instances_tenant_id ON workflow_instances (tenant_id);
CREATE INDEX idx_instances_created_at ON workflow_instances (created_at);
CREATE INDEX idx_instances_finished_at ON workflow_instances (finished_at);
CREATE INDEX idx_workflow_instances_tenant_status ON workflow_instances (tenant_id, status);
CREATE INDEX idx_workflow_instances_definition_status ON workflow_instances (definition_id, status);
CREATE INDEX idx_workflow_state_variables ON workflow_instances USING gin ((workflow_state -> 'variables'));

CREATE TABLE activity_execution_records (
    id VARCHAR(255) PRIMARY KEY,
    workflow_instance_id VARCHAR(255) NOT NULL,
    activity_id VARCHAR(255) NOT NULL,
    activity_node_id VARCHAR(255) NOT NULL,
    activity_type VARCHAR(500) NOT NULL,
    activity_type_version INT NOT NULL,
    activity_name VARCHAR(500),
    started_at TIMESTAMP NOT NULL,
    completed_at TIMESTAMP,
    has_bookmarks BOOLEAN NOT NULL DEFAULT FALSE,
    status VARCHAR(50) NOT NULL,
    payload JSONB,
    exception TEXT,
    tenant_id VARCHAR(255),
    FOREIGN KEY (workflow_instance_id) REFERENCES workflow_instances (id) ON DELETE CASCADE
);
CREATE INDEX idx_records_workflow_instance_id ON activity_execution_records (workflow_instance_id);
CREATE INDEX idx_records_activity_type ON activity_execution_records (activity_type);
CREATE INDEX idx_records_status ON activity_execution_records (status);
CREATE INDEX idx_records_started_at ON activity_execution_records (started_at);
CREATE INDEX idx_activity_records_workflow_time ON activity_execution_records (workflow_instance_id, started_at);
CREATE INDEX idx_activity_payload_order_id ON activity_execution_records ((payload ->> 'orderId'));

CREATE TABLE bookmarks (
    id VARCHAR(255) PRIMARY KEY,
    bookmark_id VARCHAR(255) NOT NULL,
    bookmark_hash VARCHAR(255) NOT NULL,
    workflow_instance_id VARCHAR(255) NOT NULL,
    activity_node_id VARCHAR(255) NOT NULL,
    activity_type_name VARCHAR(500) NOT NULL,
    correlation_id VARCHAR(255),
    payload JSONB,
    metadata JSONB,
    created_at TIMESTAMP NOT NULL DEFAULT NOW(),
    tenant_id VARCHAR(255),
    FOREIGN KEY (workflow_instance_id) REFERENCES workflow_instances (id) ON DELETE CASCADE
);
CREATE INDEX idx_bookmarks_hash ON bookmarks (bookmark_hash);
CREATE INDEX idx_bookmarks_workflow_instance_id ON bookmarks (workflow_instance_id);

CREATE TABLE workflow_instances_archive (LIKE workflow_instances INCLUDING ALL);

-- The documents' "Archive Strategy". Their cleanup_old_data() says the same in one statement, whose
-- DELETE runs on the snapshot of before; in one transaction, as a function's body is.
CREATE FUNCTION cleanup_old_data() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO workflow_instances_archive
    SELECT * FROM workflow_instances
    WHERE status IN ('Completed', 'Cancelled', 'Faulted')
      AND finished_at < NOW() - INTERVAL '90 days';

    DELETE FROM workflow_instances
    WHERE id IN (SELECT id FROM workflow_instances_archive);
END;
$$;
