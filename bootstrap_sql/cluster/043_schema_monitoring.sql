-- elsapg: database=elsa_workflows,elsa_runtime

-- Where people and programs look when something is wrong: 070_monitoring.sql fills it.
CREATE SCHEMA IF NOT EXISTS monitoring;
REVOKE ALL ON SCHEMA monitoring FROM PUBLIC;
GRANT USAGE ON SCHEMA monitoring TO monitoring, elsa_readonly, elsa_host;

COMMENT ON SCHEMA monitoring IS
'What goes on in this database, as views; docs/monitoring.md says how to read them.';

-- The ten largest tables of this database, of every schema. By oid, so that a quoted name is no
-- obstacle; a partitioned table is as large as its partitions, which are not listed beside it.
CREATE OR REPLACE VIEW monitoring.database_size WITH (security_invoker = true) AS
WITH total AS (
    SELECT
        coalesce(pg_catalog.pg_partition_root(c.oid)::oid, c.oid) AS oid,
        pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid))::bigint AS total_bytes,
        pg_catalog.count(*) FILTER (WHERE c.relispartition AND c.relkind = 'r') AS partitions
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON c.relnamespace = n.oid
    WHERE
        c.relkind IN ('r', 'm', 'p')
        AND c.relpersistence <> 't'
        AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    GROUP BY coalesce(pg_catalog.pg_partition_root(c.oid)::oid, c.oid)
)

SELECT
    n.nspname AS schemaname,
    r.relname AS tablename,
    pg_catalog.pg_size_pretty(t.total_bytes) AS size,
    t.total_bytes,
    t.partitions
FROM total AS t
INNER JOIN pg_catalog.pg_class AS r ON t.oid = r.oid
INNER JOIN pg_catalog.pg_namespace AS n ON r.relnamespace = n.oid
ORDER BY t.total_bytes DESC, n.nspname ASC, r.relname ASC
LIMIT 10;
REVOKE ALL ON TABLE monitoring.database_size FROM PUBLIC;
GRANT SELECT ON TABLE monitoring.database_size TO monitoring, elsa_readonly, elsa_host;

COMMENT ON VIEW monitoring.database_size IS
'The ten largest tables of this database, of all schemas, each with its partitions and indexes.';
COMMENT ON COLUMN monitoring.database_size.schemaname IS 'The table''s schema.';
COMMENT ON COLUMN monitoring.database_size.tablename IS 'The table.';
COMMENT ON COLUMN monitoring.database_size.size IS 'All of it, for people.';
COMMENT ON COLUMN monitoring.database_size.total_bytes IS
'All of it: rows, what is stored out of line, indexes, of all its partitions.';
COMMENT ON COLUMN monitoring.database_size.partitions IS 'How many partitions it has.';
