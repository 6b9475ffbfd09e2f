-- The seeds' tables of instances and activity records ("PostgreSQL Database Schema"), as written, to
-- be measured against. Changed only so that they run at all: the inline INDEX, which PostgreSQL does
-- not have, is a statement of its own with a name of its own; the partition of a table that is not
-- partitioned is left out. bench/queries.py and bench/integrity.py make them in a database "seeds".
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

    FOREIGN KEY (workflow_instance_id) REFERENCES workflow_instances(id) ON DELETE CASCADE
);

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

    FOREIGN KEY (workflow_instance_id) REFERENCES workflow_instances(id) ON DELETE CASCADE
);
