-- Under load: SHARE on workflow_definitions while the index is built; saving a definition waits that
-- long, milliseconds for thousands of definitions. Partitioned: it could not be built CONCURRENTLY.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX idx_workflow_definitions_is_latest
ON elsa_workflows.workflow_definitions (is_latest);
COMMENT ON INDEX elsa_workflows.idx_workflow_definitions_is_latest IS 'Newest versions.';
