-- Under load: a new table only; nothing waits.
--
-- Where suspended instances wait to be resumed. Not partitioned: rows live as long as the wait does.
CREATE TABLE elsa_workflows.bookmarks (
    id varchar(255) NOT NULL,
    bookmark_id varchar(255) NOT NULL,
    bookmark_hash varchar(255) NOT NULL,
    workflow_instance_id varchar(255) NOT NULL,
    activity_node_id varchar(255) NOT NULL,
    activity_type_name varchar(500) NOT NULL,
    correlation_id varchar(255),
    payload jsonb,
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    tenant_id varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT bookmarks_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT bookmarks_tenant_id_check CHECK (tenant_id <> ''),
    CONSTRAINT bookmarks_workflow_instance_fkey
    FOREIGN KEY (tenant_id, workflow_instance_id)
    REFERENCES elsa_workflows.workflow_instance_keys (tenant_id, id) ON DELETE CASCADE
);

-- Serves the documents' index on bookmark_hash too, whose column comes first.
CREATE INDEX idx_bookmarks_hash_tenant ON elsa_workflows.bookmarks (bookmark_hash, tenant_id);
CREATE INDEX idx_bookmarks_workflow_instance_id ON elsa_workflows.bookmarks (workflow_instance_id);
CREATE INDEX idx_bookmarks_correlation_id ON elsa_workflows.bookmarks (correlation_id)
WHERE correlation_id IS NOT NULL;
CREATE INDEX idx_bookmarks_activity_type_name ON elsa_workflows.bookmarks (activity_type_name);

SELECT elsapg.isolate_tenants('elsa_workflows.bookmarks');
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.bookmarks TO elsa_user;
-- Suspending an instance writes bookmarks; resuming one burns them.
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.bookmarks TO elsa_worker;

COMMENT ON TABLE elsa_workflows.bookmarks IS
'Points at which suspended instances wait, found by a hash of what they wait for.';
COMMENT ON COLUMN elsa_workflows.bookmarks.id IS 'Identifies the row within its tenant.';
COMMENT ON COLUMN elsa_workflows.bookmarks.bookmark_id IS 'The bookmark''s id in the instance''s state.';
COMMENT ON COLUMN elsa_workflows.bookmarks.bookmark_hash IS 'Hash of what would resume it.';
COMMENT ON COLUMN elsa_workflows.bookmarks.workflow_instance_id IS
'The instance that waits; the bookmark is deleted with it.';
COMMENT ON COLUMN elsa_workflows.bookmarks.activity_node_id IS 'The node of the activity that waits.';
COMMENT ON COLUMN elsa_workflows.bookmarks.activity_type_name IS 'The type of the activity that waits.';
COMMENT ON COLUMN elsa_workflows.bookmarks.correlation_id IS 'The instance''s correlation id.';
COMMENT ON COLUMN elsa_workflows.bookmarks.payload IS 'What it waits for.';
COMMENT ON COLUMN elsa_workflows.bookmarks.metadata IS 'Further facts, for the application.';
COMMENT ON COLUMN elsa_workflows.bookmarks.created_at IS 'When the wait began.';
COMMENT ON COLUMN elsa_workflows.bookmarks.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX elsa_workflows.idx_bookmarks_hash_tenant IS 'Bookmarks to resume by a hash.';
COMMENT ON INDEX elsa_workflows.idx_bookmarks_workflow_instance_id IS 'The bookmarks of an instance.';
COMMENT ON INDEX elsa_workflows.idx_bookmarks_correlation_id IS
'Bookmarks of a correlation id; "correlation_id = …" implies the condition.';
COMMENT ON INDEX elsa_workflows.idx_bookmarks_activity_type_name IS 'Bookmarks of an activity type.';
