-- Under load: new tables only; nothing waits.
--
-- Where retention moves ended instances, with their records and what bookmarks they left. Column by
-- column like the live tables, so that a report can UNION them; hardly any index, because an archive
-- is written once. Partitioned as the live tables are; retention makes the months as it needs them.
-- Each index is one of the live table's, so that a live month can be attached here without building.
CREATE TABLE elsa_workflows.workflow_instances_archive (
    LIKE elsa_workflows.workflow_instances INCLUDING COMMENTS,
    archived_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CONSTRAINT workflow_instances_archive_pkey PRIMARY KEY (tenant_id, id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE elsa_workflows.workflow_instances_archive_default
PARTITION OF elsa_workflows.workflow_instances_archive DEFAULT;
CREATE INDEX idx_workflow_instances_archive_definition_id
ON elsa_workflows.workflow_instances_archive (definition_id, status);
CREATE INDEX idx_workflow_instances_archive_correlation_id
ON elsa_workflows.workflow_instances_archive (correlation_id)
WHERE correlation_id IS NOT NULL;

CREATE TABLE elsa_workflows.activity_execution_records_archive (
    LIKE elsa_workflows.activity_execution_records INCLUDING COMMENTS,
    archived_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CONSTRAINT activity_execution_records_archive_pkey PRIMARY KEY (tenant_id, id, started_at)
) PARTITION BY RANGE (started_at);
CREATE TABLE elsa_workflows.activity_execution_records_archive_default
PARTITION OF elsa_workflows.activity_execution_records_archive DEFAULT;
CREATE INDEX idx_activity_execution_records_archive_workflow_time
ON elsa_workflows.activity_execution_records_archive (workflow_instance_id, started_at);

CREATE TABLE elsa_workflows.bookmarks_archive (
    LIKE elsa_workflows.bookmarks INCLUDING COMMENTS,
    archived_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CONSTRAINT bookmarks_archive_pkey PRIMARY KEY (tenant_id, id)
);
CREATE INDEX idx_bookmarks_archive_workflow_instance_id
ON elsa_workflows.bookmarks_archive (workflow_instance_id);

SELECT elsapg.isolate_tenants('elsa_workflows.workflow_instances_archive');
SELECT elsapg.isolate_tenants('elsa_workflows.activity_execution_records_archive');
SELECT elsapg.isolate_tenants('elsa_workflows.bookmarks_archive');

-- Retention writes here; the application reads. A worker has no business with the past.
REVOKE ALL ON TABLE
elsa_workflows.workflow_instances_archive,
elsa_workflows.activity_execution_records_archive,
elsa_workflows.bookmarks_archive
FROM elsa_user, elsa_worker;
GRANT SELECT ON TABLE
elsa_workflows.workflow_instances_archive,
elsa_workflows.activity_execution_records_archive,
elsa_workflows.bookmarks_archive
TO elsa_user;

COMMENT ON TABLE elsa_workflows.workflow_instances_archive IS
'Instances that ended more than instances_days ago, by month of creation (UTC).';
COMMENT ON TABLE elsa_workflows.workflow_instances_archive_default IS
'Archived instances of months without a partition; should be empty.';
COMMENT ON TABLE elsa_workflows.activity_execution_records_archive IS
'The records of archived instances, by month of their start (UTC).';
COMMENT ON TABLE elsa_workflows.activity_execution_records_archive_default IS
'Archived records of months without a partition; should be empty.';
COMMENT ON TABLE elsa_workflows.bookmarks_archive IS 'Bookmarks that archived instances had left.';
COMMENT ON COLUMN elsa_workflows.workflow_instances_archive.archived_at IS 'When it was archived.';
COMMENT ON COLUMN elsa_workflows.activity_execution_records_archive.archived_at IS 'When it was archived.';
COMMENT ON COLUMN elsa_workflows.bookmarks_archive.archived_at IS 'When it was archived.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_archive_definition_id IS
'Archived instances of a workflow.';
COMMENT ON INDEX elsa_workflows.idx_workflow_instances_archive_correlation_id IS
'Archived instances of a correlation id.';
COMMENT ON INDEX elsa_workflows.idx_activity_execution_records_archive_workflow_time IS
'The records of an archived instance.';
COMMENT ON INDEX elsa_workflows.idx_bookmarks_archive_workflow_instance_id IS
'The bookmarks of an archived instance.';
