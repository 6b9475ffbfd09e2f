-- The seeds' monitoring queries ("PostgreSQL Database Schema", Monitoring Queries), as written.
-- query: active_workflows
SELECT 
    status,
    COUNT(*) as count,
    AVG(EXTRACT(EPOCH FROM (NOW() - created_at))) as avg_duration_seconds
FROM workflow_instances
WHERE finished_at IS NULL
GROUP BY status;
-- query: workflow_performance
SELECT 
    definition_id,
    COUNT(*) as total_executions,
    AVG(EXTRACT(EPOCH FROM (finished_at - created_at))) as avg_duration_seconds,
    PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY EXTRACT(EPOCH FROM (finished_at - created_at))) as p95_duration
FROM workflow_instances
WHERE finished_at IS NOT NULL
  AND created_at > NOW() - INTERVAL '24 hours'
GROUP BY definition_id
ORDER BY total_executions DESC
LIMIT 10;
-- query: slow_activities
SELECT 
    activity_type,
    COUNT(*) as count,
    AVG(EXTRACT(EPOCH FROM (completed_at - started_at))) as avg_duration_seconds,
    MAX(EXTRACT(EPOCH FROM (completed_at - started_at))) as max_duration_seconds
FROM activity_execution_records
WHERE completed_at IS NOT NULL
  AND started_at > NOW() - INTERVAL '1 hour'
GROUP BY activity_type
HAVING AVG(EXTRACT(EPOCH FROM (completed_at - started_at))) > 5
ORDER BY avg_duration_seconds DESC;
-- query: database_size
SELECT 
    schemaname,
    tablename,
    pg_size_pretty(pg_total_relation_size(schemaname||'.'||tablename)) as size
FROM pg_tables
WHERE schemaname = 'public'
ORDER BY pg_total_relation_size(schemaname||'.'||tablename) DESC
LIMIT 10;
