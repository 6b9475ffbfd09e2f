-- elsapg: database=elsa_workflows
-- elsapg: after=migrations

-- Retention of elsa_workflows: what ended instances_days ago goes to the archive with its records
-- and bookmarks; what has been in the archive for archive_months is dropped; so are emptied months.
--
-- elsa_workflows.cleanup_old_data() does one bounded step, in the transaction that it is called in;
-- elsa_jobs.run_batches calls it until nothing is left. Two ways lead to the archive:
--
--   * by rows, some thousand instances at a time. What a day brings goes this way.
--   * by months. A month of which nearly all is due, and nothing has been archived, changes hands
--     as it is: detached here, attached there, nothing copied. A backlog goes this way. First the
--     instances; then their month of records; then, in batches, what lies in other months.
--
-- An instance's row in workflow_instance_keys goes together with its children: no child is ever an
-- orphan. elsapg.archive_children removes them by set, with triggers off: a cascade by row would look
-- into each month for each instance, and find nothing. docs/decisions/0014-retention.md has the figures.
-- In quotes, because the linter does not know it.
DO $grant$
BEGIN
    EXECUTE 'GRANT SET ON PARAMETER session_replication_role TO elsa_maintenance';
END
$grant$;

-- Months of instances that are in the archive and have children here, or keys. Empty but while a
-- backlog is worked off.
CREATE TABLE IF NOT EXISTS elsapg.archived_month (
    from_at timestamptz NOT NULL,
    records_seen boolean NOT NULL DEFAULT false,
    last_tenant_id text NOT NULL DEFAULT '',
    last_id text NOT NULL DEFAULT '',
    CONSTRAINT archived_month_pkey PRIMARY KEY (from_at)
);
ALTER TABLE elsapg.archived_month OWNER TO elsa_maintenance;
REVOKE ALL ON TABLE elsapg.archived_month FROM PUBLIC;
GRANT SELECT ON TABLE elsapg.archived_month TO monitoring, elsa_admin;
COMMENT ON TABLE elsapg.archived_month IS
'Months of instances that were archived as a whole and whose children are still being archived.';
COMMENT ON COLUMN elsapg.archived_month.from_at IS 'The month''s begin.';
COMMENT ON COLUMN elsapg.archived_month.records_seen IS
'Whether its month of activity records was archived as a whole, or cannot be.';
COMMENT ON COLUMN elsapg.archived_month.last_tenant_id IS 'Up to this tenant and id, children are archived.';
COMMENT ON COLUMN elsapg.archived_month.last_id IS 'See last_tenant_id.';

-- Moves rows of the given instances from a table to its archive. A row that is in the archive
-- already was restored by hand since: the newer one counts.
CREATE OR REPLACE FUNCTION elsapg.archive_rows(
    p_table regclass, p_archive regclass, p_where text, p_tenants text[], p_ids text[]
)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_columns text;
    v_updates text;
    v_key name;
    v_moved integer;
BEGIN
    SELECT
        string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
        string_agg(format('%1$I = excluded.%1$I', a.attname), ', ' ORDER BY a.attnum)
    INTO v_columns, v_updates
    FROM pg_attribute AS a
    WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    SELECT k.conname INTO v_key
    FROM pg_constraint AS k
    WHERE k.conrelid = p_archive AND k.contype = 'p';
    EXECUTE format(
        'WITH moved AS ('
        ' DELETE FROM %1$s AS a USING unnest($1, $2) AS d (d_tenant, d_id) WHERE %3$s RETURNING a.*'
        ') INSERT INTO %2$s (%4$s) SELECT %4$s FROM moved'
        ' ON CONFLICT ON CONSTRAINT %5$I DO UPDATE SET %6$s, archived_at = excluded.archived_at',
        p_table, p_archive, p_where, v_columns, v_key, v_updates
    ) USING p_tenants, p_ids;
    GET DIAGNOSTICS v_moved = ROW_COUNT;
    RETURN v_moved;
END
$function$;

-- Removes the keys of the given instances and archives all their children. A child that is on its way
-- makes the first statement wait, for half a second at most; after it none can come, and those that
-- follow see all there are. So nothing is left for the triggers that are off to find: foreign keys
-- and their cascades.
CREATE OR REPLACE FUNCTION elsapg.archive_children(p_tenants text[], p_ids text[])
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET session_replication_role = 'replica'
AS $function$
BEGIN
    DELETE FROM elsa_workflows.workflow_instance_keys AS k
    USING unnest(p_tenants, p_ids) AS d (tenant_id, id)
    WHERE k.tenant_id = d.tenant_id AND k.id = d.id;
    PERFORM elsapg.archive_rows(
        'elsa_workflows.activity_execution_records',
        'elsa_workflows.activity_execution_records_archive',
        'a.tenant_id = d_tenant AND a.workflow_instance_id = d_id',
        p_tenants, p_ids
    );
    PERFORM elsapg.archive_rows(
        'elsa_workflows.bookmarks',
        'elsa_workflows.bookmarks_archive',
        'a.tenant_id = d_tenant AND a.workflow_instance_id = d_id',
        p_tenants, p_ids
    );
END
$function$;

-- The archive's months, for all that the live tables have until now.
CREATE OR REPLACE FUNCTION elsapg.add_archive_months()
RETURNS bigint
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT count(m.*)
    FROM (
        SELECT
            array_agg((t.name || '_archive')::regclass) AS tables,
            array_agg(p.from_at) AS months
        FROM elsapg.monthly_tables() AS t
        CROSS JOIN LATERAL elsapg.range_partitions(t.name) AS p
        WHERE NOT t.is_archive AND p.from_at < clock_timestamp()
    ) AS wanted
    CROSS JOIN LATERAL elsapg.add_months(wanted.tables, wanted.months) AS m
$function$;

-- The live partition of a month that the archive has nothing of; NULL if there is no such thing.
CREATE OR REPLACE FUNCTION elsapg.untouched_month(p_table regclass, p_from timestamptz)
RETURNS regclass
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_key name;
    v_leaf regclass;
    v_to timestamptz;
    v_archived boolean;
BEGIN
    SELECT t.key INTO v_key FROM elsapg.monthly_tables() AS t WHERE t.name = p_table;
    SELECT p.name, p.to_at INTO v_leaf, v_to
    FROM elsapg.range_partitions(p_table) AS p
    WHERE p.from_at = p_from;
    EXECUTE format(
        'SELECT EXISTS (SELECT FROM %s_archive WHERE %I >= %L AND %I < %L)',
        p_table, v_key, p_from, v_key, v_to
    ) INTO v_archived;
    RETURN CASE WHEN NOT v_archived THEN v_leaf END;
END
$function$;

-- Hands a live month over to the archive, but for the rows a that fit p_keep: they stay, in a new
-- partition for that month. All that takes time was looked at before: locks are held for some ten
-- milliseconds. What p_new finds stays, too; it is looked for while that one month can be read but
-- not written, and nothing else is locked.
CREATE OR REPLACE FUNCTION elsapg.hand_over_month(
    p_table regclass, p_from timestamptz, p_keep text, p_new text DEFAULT NULL
)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET jit = off
-- Whatever the caller has: event triggers plan their queries under it, while locks are held.
SET enable_seqscan = on
SET lock_timeout = '100ms'
AS $function$
DECLARE
    c_attempts CONSTANT integer := 40;
    v_archive regclass := (p_table || '_archive')::regclass;
    v_leaf regclass;
    v_to timestamptz;
    v_name name;
    v_old regclass;
    v_lock record;
    v_item record;
    v_keep boolean;
    v_tenants text[];
    v_ids text[];
    v_columns text := (
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
        FROM pg_attribute AS a
        WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    );
BEGIN
    SELECT p.name, p.to_at, c.relname INTO v_leaf, v_to, v_name
    FROM elsapg.range_partitions(p_table) AS p
    INNER JOIN pg_class AS c ON p.name = c.oid
    WHERE p.from_at = p_from;
    SELECT p.name INTO v_old FROM elsapg.range_partitions(v_archive) AS p WHERE p.from_at = p_from;

    -- As in elsapg.add_months, and before any lock that the application feels.
    PERFORM pg_advisory_xact_lock(hashtextextended('elsapg:partitions', 0));
    FOR v_attempt IN 1 .. c_attempts LOOP
        BEGIN
            IF p_new IS NOT NULL THEN
                EXECUTE format('LOCK TABLE ONLY %s IN SHARE MODE', v_leaf);
                EXECUTE format(
                    'SELECT array_agg(a.tenant_id), array_agg(a.id) FROM %s AS a WHERE %s', v_leaf, p_new
                ) INTO v_tenants, v_ids;
            END IF;
            FOR v_lock IN
                SELECT l.name
                FROM (
                    SELECT 1 AS place, p_table AS name
                    UNION ALL
                    SELECT 2, p.name FROM elsapg.range_partitions(p_table) AS p
                    WHERE p.is_default OR p.from_at = p_from
                    UNION ALL
                    SELECT 3, k.confrelid
                    FROM pg_constraint AS k
                    WHERE k.conrelid = p_table AND k.contype = 'f'
                    UNION ALL
                    SELECT 4, v_archive
                    UNION ALL
                    SELECT 5, p.name FROM elsapg.range_partitions(v_archive) AS p WHERE p.is_default
                ) AS l
                ORDER BY l.place
            LOOP
                EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', v_lock.name);
            END LOOP;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF v_attempt = c_attempts THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.1 + 0.2 * random());
        END;
    END LOOP;

    IF v_ids IS NOT NULL THEN
        p_keep := format(
            '(%s OR (a.tenant_id, a.id) IN (SELECT * FROM unnest(%L::text[], %L::text[])))',
            p_keep, v_tenants, v_ids
        );
    END IF;
    PERFORM set_config('enable_seqscan', 'off', true);
    EXECUTE format('SELECT EXISTS (SELECT FROM %s AS a WHERE %s)', v_leaf, p_keep) INTO v_keep;
    PERFORM set_config('enable_seqscan', 'on', true);
    IF v_old IS NOT NULL THEN
        -- Empty: untouched_month said so, and only retention writes there.
        EXECUTE format('DROP TABLE %s', v_old);
    END IF;
    EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', p_table, v_leaf);
    EXECUTE format(
        'ALTER TABLE %s RENAME TO %I', v_leaf, replace(v_archive::text, 'elsa_workflows.', '')
        || to_char(p_from, '_YYYY_MM')
    );
    IF v_keep THEN
        EXECUTE format(
            'WITH kept AS (DELETE FROM %s AS a WHERE %s RETURNING a.*) INSERT INTO %s (%s) SELECT %s FROM kept',
            v_leaf, p_keep,
            (SELECT m.* FROM elsapg.add_months(ARRAY[p_table], ARRAY[p_from]) AS m),
            v_columns, v_columns
        );
    END IF;
    FOR v_item IN
        SELECT k.conname FROM pg_constraint AS k WHERE k.conrelid = v_leaf AND k.contype = 'f'
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', v_leaf, v_item.conname);
    END LOOP;
    EXECUTE format(
        'ALTER TABLE %s ADD COLUMN archived_at timestamptz NOT NULL DEFAULT now()', v_leaf
    );
    EXECUTE format(
        'ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', v_archive, v_leaf, p_from, v_to
    );
    -- The archive's own indexes are attached; the others have served.
    FOR v_item IN
        SELECT i.indexrelid::regclass AS name
        FROM pg_index AS i
        INNER JOIN pg_class AS c ON i.indexrelid = c.oid
        WHERE i.indrelid = v_leaf AND NOT c.relispartition
    LOOP
        EXECUTE format('DROP INDEX %s', v_item.name);
    END LOOP;
    EXECUTE format('COMMENT ON TABLE %s IS %L', v_leaf, format(
        '%s of %s, UTC.', replace(v_archive::text, 'elsa_workflows.', ''), to_char(p_from, 'YYYY-MM')
    ));
END
$function$;

-- One month of instances that is due but for a few. False if there is none.
CREATE OR REPLACE FUNCTION elsapg.archive_month_of_instances(p_before timestamptz)
RETURNS boolean
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET jit = off
SET enable_seqscan = off
AS $function$
DECLARE
    -- Below the one, rows are as fast; above the other, too much would be copied under the locks.
    c_least CONSTANT integer := 10000;
    c_most_kept CONSTANT integer := 1000;
    -- All three by an index; the words are those of archive_batch.
    v_keep text := format(
        '(a.status < ''Cancelled'' OR a.status > ''Cancelled'' AND a.status < ''Completed'''
        ' OR a.status > ''Completed'' AND a.status < ''Faulted'' OR a.status > ''Faulted'''
        ' OR a.finished_at >= %1$L'
        ' OR a.finished_at IS NULL AND (a.faulted_at IS NULL OR a.faulted_at >= %1$L))',
        p_before
    );
    v_month record;
    v_leaf regclass;
    v_count integer;
BEGIN
    FOR v_month IN
        SELECT p.from_at
        FROM elsapg.range_partitions('elsa_workflows.workflow_instances') AS p
        WHERE p.to_at <= p_before
    LOOP
        v_leaf := elsapg.untouched_month('elsa_workflows.workflow_instances', v_month.from_at);
        CONTINUE WHEN v_leaf IS NULL;
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %s LIMIT %s) AS x', v_leaf, c_least)
        INTO v_count;
        CONTINUE WHEN v_count < c_least;
        EXECUTE format(
            'SELECT count(*) FROM (SELECT FROM %s AS a WHERE %s LIMIT %s) AS x',
            v_leaf, v_keep, c_most_kept + 1
        ) INTO v_count;
        CONTINUE WHEN v_count > c_most_kept;
        PERFORM elsapg.hand_over_month('elsa_workflows.workflow_instances', v_month.from_at, v_keep);
        INSERT INTO elsapg.archived_month (from_at) VALUES (v_month.from_at);
        RETURN true;
    END LOOP;
    RETURN false;
END
$function$;

-- The month of activity records of an archived month of instances, if but a few of them belong to
-- instances that are still here. False if all months have been looked at.
CREATE OR REPLACE FUNCTION elsapg.archive_month_of_records()
RETURNS boolean
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET jit = off
SET work_mem = '64MB'
AS $function$
DECLARE
    c_least CONSTANT integer := 10000;
    c_most_kept CONSTANT integer := 1000;
    c_alive CONSTANT text := 'EXISTS (SELECT FROM elsa_workflows.workflow_instances AS i'
        ' WHERE i.tenant_id = a.tenant_id AND i.id = a.workflow_instance_id)';
    v_from timestamptz;
    v_leaf regclass;
    v_count integer;
    v_horizon text;
    v_tenants text[];
    v_ids text[];
BEGIN
    UPDATE elsapg.archived_month AS m SET records_seen = true
    WHERE m.from_at = (SELECT min(n.from_at) FROM elsapg.archived_month AS n WHERE NOT n.records_seen)
    RETURNING m.from_at INTO v_from;
    IF v_from IS NULL THEN
        RETURN false;
    END IF;
    v_leaf := elsapg.untouched_month('elsa_workflows.activity_execution_records', v_from);
    IF v_leaf IS NULL THEN
        RETURN true;
    END IF;
    EXECUTE format('SELECT count(*) FROM (SELECT FROM %s LIMIT %s) AS x', v_leaf, c_least) INTO v_count;
    IF v_count < c_least THEN
        RETURN true;
    END IF;
    -- The long look, under no lock. Later only what came after it is looked at again: row versions
    -- of transactions that may not have ended yet.
    v_horizon := pg_snapshot_xmin(pg_current_snapshot())::xid::text;
    -- The live instances, hashed once: not looked up in each month for each record.
    PERFORM set_config('enable_nestloop', 'off', true);
    EXECUTE format(
        'SELECT array_agg(x.tenant_id), array_agg(x.id)'
        ' FROM (SELECT a.tenant_id, a.id FROM %s AS a WHERE %s LIMIT %s) AS x',
        v_leaf, c_alive, c_most_kept + 1
    ) INTO v_tenants, v_ids;
    PERFORM set_config('enable_nestloop', 'on', true);
    IF cardinality(v_ids) > c_most_kept THEN
        RETURN true;
    END IF;
    PERFORM elsapg.hand_over_month(
        'elsa_workflows.activity_execution_records',
        v_from,
        format(
            '(a.tenant_id, a.id) IN (SELECT * FROM unnest(%L::text[], %L::text[]))',
            coalesce(v_tenants, '{}'), coalesce(v_ids, '{}')
        ),
        format('age(a.xmin) <= age(%L::xid) AND %s', v_horizon, c_alive)
    );
    RETURN true;
END
$function$;

-- The rest of the children of months that were handed over, some thousand instances at a time.
-- Returns how many instances that was; NULL if none is left.
CREATE OR REPLACE FUNCTION elsapg.archive_rest_of_month(p_limit integer)
RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '500ms'
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $function$
DECLARE
    v_month elsapg.archived_month;
    v_tenants text[];
    v_ids text[];
    v_count integer;
BEGIN
    SELECT m.* INTO v_month FROM elsapg.archived_month AS m ORDER BY m.from_at LIMIT 1 FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(x.tenant_id), array_agg(x.id) INTO v_tenants, v_ids
    FROM (
        SELECT
            i.tenant_id,
            i.id
        FROM elsa_workflows.workflow_instances_archive AS i
        WHERE
            i.created_at >= v_month.from_at
            AND i.created_at < v_month.from_at + interval '1 month'
            AND (i.tenant_id, i.id) > (v_month.last_tenant_id, v_month.last_id)
        ORDER BY i.tenant_id, i.id
        LIMIT p_limit
    ) AS x;
    v_count := coalesce(cardinality(v_ids), 0);
    IF v_count = 0 THEN
        DELETE FROM elsapg.archived_month AS m WHERE m.from_at = v_month.from_at;
        RETURN 0;
    END IF;
    PERFORM elsapg.archive_children(v_tenants, v_ids);
    UPDATE elsapg.archived_month AS m
    SET
        last_tenant_id = v_tenants[v_count],
        last_id = v_ids[v_count]
    WHERE m.from_at = v_month.from_at;
    RETURN v_count;
END
$function$;

-- Some thousand due instances, by rows. Returns how many; 0 if none is due that nobody works on.
CREATE OR REPLACE FUNCTION elsa_workflows.archive_batch(
    p_limit integer DEFAULT 5000, p_now timestamptz DEFAULT pg_catalog.clock_timestamp()
)
RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '500ms'
-- Always by the indexes, in their order: a table that was filled a minute ago has no statistics.
SET enable_seqscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = 'force_custom_plan'
SET jit = off
AS $function$
DECLARE
    v_before timestamptz := p_now - make_interval(hours => 24 * elsapg.setting('instances_days'));
    v_tenants text[];
    v_ids text[];
    v_from timestamptz;
    v_to timestamptz;
BEGIN
    -- An instance that is being changed, or is being given a child, waits for the next run.
    SELECT array_agg(d.tenant_id), array_agg(d.id), min(d.created_at), max(d.created_at)
    INTO v_tenants, v_ids, v_from, v_to
    FROM (
        SELECT
            i.tenant_id,
            i.id,
            i.created_at
        FROM elsa_workflows.workflow_instances AS i
        INNER JOIN elsa_workflows.workflow_instance_keys AS k ON i.tenant_id = k.tenant_id AND i.id = k.id
        WHERE i.status IN ('Completed', 'Cancelled', 'Faulted') AND i.finished_at < v_before
        ORDER BY i.finished_at
        LIMIT p_limit
        FOR UPDATE OF i, k SKIP LOCKED
    ) AS d;
    IF v_ids IS NULL THEN
        SELECT array_agg(d.tenant_id), array_agg(d.id), min(d.created_at), max(d.created_at)
        INTO v_tenants, v_ids, v_from, v_to
        FROM (
            SELECT
                i.tenant_id,
                i.id,
                i.created_at
            FROM elsa_workflows.workflow_instances AS i
            INNER JOIN elsa_workflows.workflow_instance_keys AS k
                ON i.tenant_id = k.tenant_id AND i.id = k.id
            WHERE
                i.status IN ('Completed', 'Cancelled', 'Faulted')
                AND i.finished_at IS NULL
                AND i.faulted_at < v_before
            ORDER BY i.faulted_at
            LIMIT p_limit
            FOR UPDATE OF i, k SKIP LOCKED
        ) AS d;
    END IF;
    IF v_ids IS NULL THEN
        RETURN 0;
    END IF;

    PERFORM elsapg.add_archive_months();
    PERFORM elsapg.archive_children(v_tenants, v_ids);
    RETURN elsapg.archive_rows(
        'elsa_workflows.workflow_instances',
        'elsa_workflows.workflow_instances_archive',
        -- The dates spare a look into the other months.
        format(
            'a.tenant_id = d_tenant AND a.id = d_id AND a.created_at >= %L AND a.created_at <= %L',
            v_from, v_to
        ),
        v_tenants, v_ids
    );
END
$function$;

-- One empty month of the live tables, one old month of the archive, or some old bookmarks.
-- False if there was nothing to drop.
CREATE OR REPLACE FUNCTION elsapg.drop_old_month(p_now timestamptz, p_limit integer)
RETURNS boolean
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $function$
DECLARE
    v_before timestamptz := p_now - make_interval(hours => 24 * elsapg.setting('instances_days'));
    v_months integer := elsapg.setting('archive_months');
    v_archived_before timestamptz := p_now - make_interval(months => v_months);
    v_partition record;
    v_recent boolean;
BEGIN
    FOR v_partition IN
        SELECT
            p.name,
            t.is_archive
        FROM elsapg.monthly_tables() AS t
        CROSS JOIN LATERAL elsapg.range_partitions(t.name) AS p
        WHERE
            CASE
                WHEN t.is_archive THEN v_months > 0 AND p.to_at <= v_archived_before
                ELSE p.to_at <= v_before
            END
    LOOP
        IF v_partition.is_archive THEN
            -- An instance that ran for a year was archived long after its month.
            EXECUTE format(
                'SELECT EXISTS (SELECT FROM %s WHERE archived_at >= %L)',
                v_partition.name, v_archived_before
            ) INTO v_recent;
            CONTINUE WHEN v_recent;
        END IF;
        IF elsapg.drop_partition(v_partition.name, v_partition.is_archive) THEN
            RETURN true;
        END IF;
    END LOOP;
    IF v_months > 0 THEN
        DELETE FROM elsa_workflows.bookmarks_archive AS b
        WHERE b.ctid = ANY(ARRAY(
            SELECT o.ctid
            FROM elsa_workflows.bookmarks_archive AS o
            WHERE o.archived_at < v_archived_before
            LIMIT p_limit
        ));
        RETURN FOUND;
    END IF;
    RETURN false;
END
$function$;

-- One step, in the caller's transaction. A function, for the documents call it by SELECT; what loops
-- over it and commits is elsa_jobs.run_batches.
CREATE OR REPLACE FUNCTION elsa_workflows.cleanup_old_data(
    p_limit integer DEFAULT 5000, p_now timestamptz DEFAULT pg_catalog.clock_timestamp()
)
RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_done integer;
BEGIN
    IF p_limit IS NULL OR p_limit NOT BETWEEN 1 AND 100000 OR p_now IS NULL THEN
        RAISE EXCEPTION 'limit %, moment %: must be 1 to 100000, and a moment', p_limit, p_now
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'retention in a % transaction would not see what came after its first statement',
            current_setting('transaction_isolation')
        USING ERRCODE = 'invalid_transaction_state', HINT = 'Use READ COMMITTED.';
    END IF;
    IF elsapg.archive_month_of_instances(
        p_now - make_interval(hours => 24 * elsapg.setting('instances_days'))
    )
        OR elsapg.archive_month_of_records()
    THEN
        RETURN 0;
    END IF;
    v_done := elsapg.archive_rest_of_month(p_limit);
    IF v_done IS NOT NULL THEN
        RETURN v_done;
    END IF;
    v_done := elsa_workflows.archive_batch(p_limit, p_now);
    IF v_done > 0 THEN
        RETURN v_done;
    END IF;
    RETURN CASE WHEN elsapg.drop_old_month(p_now, p_limit) THEN 0 END;
END
$function$;

ALTER FUNCTION elsapg.archive_rows(regclass, regclass, text, text[], text[]) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.archive_children(text[], text[]) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.add_archive_months() OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.untouched_month(regclass, timestamptz) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.hand_over_month(regclass, timestamptz, text, text) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.archive_month_of_instances(timestamptz) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.archive_month_of_records() OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.archive_rest_of_month(integer) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.drop_old_month(timestamptz, integer) OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_workflows.archive_batch(integer, timestamptz) OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_workflows.cleanup_old_data(integer, timestamptz) OWNER TO elsa_maintenance;

REVOKE ALL ON FUNCTION elsapg.archive_rows(regclass, regclass, text, text[], text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.archive_children(text[], text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.add_archive_months() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.untouched_month(regclass, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.hand_over_month(regclass, timestamptz, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.archive_month_of_instances(timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.archive_month_of_records() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.archive_rest_of_month(integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.drop_old_month(timestamptz, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.archive_batch(integer, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.cleanup_old_data(integer, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsa_workflows.cleanup_old_data(integer, timestamptz) TO elsa_jobs, elsa_admin;

COMMENT ON FUNCTION elsapg.archive_rows(regclass, regclass, text, text[], text[]) IS
'Moves rows from a table to its archive; returns how many.';
COMMENT ON FUNCTION elsapg.archive_children(text[], text[]) IS
'Removes the keys of instances, and archives their children.';
COMMENT ON FUNCTION elsapg.add_archive_months() IS 'Makes the archive''s months, as the live tables have them.';
COMMENT ON FUNCTION elsapg.untouched_month(regclass, timestamptz) IS
'The live partition of a month of which nothing is archived yet, or NULL.';
COMMENT ON FUNCTION elsapg.hand_over_month(regclass, timestamptz, text, text) IS
'Detaches a month from a live table and attaches it to the archive, without the rows to keep.';
COMMENT ON FUNCTION elsapg.archive_month_of_instances(timestamptz) IS
'Hands over one month of instances that ended before then, but for a few; false if there is none.';
COMMENT ON FUNCTION elsapg.archive_month_of_records() IS
'Hands over the month of activity records of such a month, if it can; false if all were looked at.';
COMMENT ON FUNCTION elsapg.archive_rest_of_month(integer) IS
'Archives what children are left of such a month, p_limit instances at a time; NULL if none are.';
COMMENT ON FUNCTION elsapg.drop_old_month(timestamptz, integer) IS
'Drops one emptied month, or one month of the archive that is past archive_months.';
COMMENT ON FUNCTION elsa_workflows.archive_batch(integer, timestamptz) IS
'Archives up to p_limit instances that ended instances_days ago, with their children; returns how many.';
COMMENT ON FUNCTION elsa_workflows.cleanup_old_data(integer, timestamptz) IS
'One step of retention: instances archived, or NULL when nothing is left. Call it until then.';
