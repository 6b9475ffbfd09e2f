-- elsapg: database=elsa_workflows
-- elsapg: after=migrations

-- Months of the tables that are partitioned by time, and tenants of their own for the definitions.
--
-- A partition is created as a table of its own and then attached: CREATE … PARTITION OF would lock
-- the parent against every query. Attaching still wants the DEFAULT partition to itself, and the
-- tables that its foreign keys refer to against writers, for some milliseconds. Whoever waits for
-- such a lock makes everybody wait behind him; so each attempt gives up after 100 ms, and there are
-- many. docs/decisions/0014-retention.md has the figures.
--
-- Bounds are UTC and named by UTC months, whatever the session's TimeZone: hence the SET clauses.
-- The functions run as elsa_maintenance, since row-level security would hide the rows of a DEFAULT
-- partition from its owner; what they make belongs to elsa_owner, and elsapg.guard_partitions takes
-- care of the rights.

-- The range partitions of a table, as moments.
CREATE OR REPLACE FUNCTION elsapg.range_partitions(p_parent regclass)
RETURNS TABLE (name regclass, is_default boolean, from_at timestamptz, to_at timestamptz)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
AS $function$
    SELECT
        c.oid::regclass,
        b.bound = 'DEFAULT',
        substring(b.bound FROM 'FROM \(''([^'']*)''\)')::timestamptz,
        substring(b.bound FROM 'TO \(''([^'']*)''\)')::timestamptz
    FROM pg_inherits AS i
    INNER JOIN pg_class AS c ON i.inhrelid = c.oid
    CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) AS b
    WHERE i.inhparent = p_parent AND c.relispartition
    ORDER BY 3, 1
$function$;

-- The tables that are partitioned by one column of type timestamptz: that column, and whether it is
-- one that retention fills.
CREATE OR REPLACE FUNCTION elsapg.monthly_tables()
RETURNS TABLE (name regclass, key name, is_archive boolean)
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT
        c.oid::regclass,
        a.attname,
        c.relname LIKE '%\_archive'
    FROM pg_partitioned_table AS p
    INNER JOIN pg_class AS c ON p.partrelid = c.oid
    INNER JOIN pg_attribute AS a ON c.oid = a.attrelid AND p.partattrs[0] = a.attnum
    WHERE
        c.relnamespace = 'elsa_workflows'::regnamespace
        AND p.partstrat = 'r'
        AND p.partnatts = 1
        AND a.atttypid = 'timestamptz'::regtype
    ORDER BY c.relname
$function$;

-- Locks what attaching partitions to these tables wants, all of it at once or, for now, nothing: to
-- wait for a second lock while holding a first would stop the application for that long.
CREATE OR REPLACE FUNCTION elsapg.lock_for_partitions(p_parents regclass[])
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $function$
DECLARE
    c_attempts CONSTANT integer := 40;
    v_lock record;
BEGIN
    FOR v_attempt IN 1 .. c_attempts LOOP
        BEGIN
            -- The DEFAULT partitions first: any query that looks at all months holds them.
            FOR v_lock IN
                SELECT
                    p.partdefid::regclass AS name,
                    'ACCESS EXCLUSIVE' AS mode
                FROM pg_partitioned_table AS p
                WHERE p.partrelid = ANY(p_parents) AND p.partdefid <> 0
                UNION ALL
                SELECT DISTINCT
                    k.confrelid::regclass,
                    'SHARE ROW EXCLUSIVE'
                FROM pg_constraint AS k
                WHERE k.conrelid = ANY(p_parents) AND k.contype = 'f'
                ORDER BY 2, 1
            LOOP
                EXECUTE format('LOCK TABLE %s IN %s MODE', v_lock.name, v_lock.mode);
            END LOOP;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            -- What it had locked is free again.
            PERFORM pg_sleep(0.1 + 0.2 * random());
        END;
    END LOOP;
    RAISE EXCEPTION 'cannot make partitions of %: their locks were not free in % attempts of 100 ms',
        array_to_string(p_parents, ', '), c_attempts
    USING
        ERRCODE = 'lock_not_available',
        HINT = 'Look in pg_locks for who holds a DEFAULT partition or a referenced table, and try again.';
END
$function$;

-- A table that can become a partition of p_parent. p_condition says in SQL what its bounds will say,
-- as a CHECK: so it can be attached, here and later to the archive, without being read.
CREATE OR REPLACE FUNCTION elsapg.new_partition(
    p_parent regclass, p_name name, p_condition text, p_comment text
)
RETURNS regclass
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_new text := format('elsa_workflows.%I', p_name);
BEGIN
    IF to_regclass(v_new) IS NOT NULL THEN
        RAISE EXCEPTION 'cannot make partition % of %: a relation of that name exists', v_new, p_parent
        USING
            ERRCODE = 'duplicate_table',
            HINT = format('If it holds nothing that is wanted: DROP TABLE %s. Then run this again.', v_new);
    END IF;
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', v_new, p_parent);
    EXECUTE format('ALTER TABLE %s ADD CONSTRAINT partition_check CHECK (%s)', v_new, p_condition);
    EXECUTE format('COMMENT ON TABLE %s IS %L', v_new, p_comment);
    EXECUTE format('ALTER TABLE %s OWNER TO elsa_owner', v_new);
    RETURN v_new::regclass;
END
$function$;

-- Attaches it. Rows of the DEFAULT partition that belong there are moved in the same transaction:
-- from leaf to leaf, where the parent's triggers by statement do not fire, so that the keys of the
-- instances stay.
CREATE OR REPLACE FUNCTION elsapg.attach_partition(
    p_parent regclass, p_new regclass, p_bound text, p_condition text
)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_default regclass := (
        SELECT nullif(p.partdefid, 0)::regclass FROM pg_partitioned_table AS p WHERE p.partrelid = p_parent
    );
    v_columns text := (
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
        FROM pg_attribute AS a
        WHERE a.attrelid = p_parent AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    );
BEGIN
    PERFORM elsapg.lock_for_partitions(ARRAY[p_parent]);
    IF v_default IS NOT NULL THEN
        EXECUTE format(
            'WITH moved AS (DELETE FROM %s WHERE %s RETURNING *) INSERT INTO %s (%s) SELECT %s FROM moved',
            v_default, p_condition, p_new, v_columns, v_columns
        );
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s %s', p_parent, p_new, p_bound);
END
$function$;

-- Makes the partitions that p_table and p_month name, pairwise, where they lack; returns the new ones.
-- Tables first, locks then: these are held while partitions are attached, and for nothing else.
CREATE OR REPLACE FUNCTION elsapg.add_months(p_tables regclass[], p_months timestamptz[])
RETURNS SETOF regclass
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
AS $function$
DECLARE
    v_month record;
    v_there record;
    v_new regclass;
    v_parents regclass[] := '{}';
    v_made regclass[] := '{}';
    v_bounds text[] := '{}';
    v_conditions text[] := '{}';
    v_condition text;
BEGIN
    -- Two at once would both find nothing.
    PERFORM pg_advisory_xact_lock(hashtextextended('elsapg:partitions', 0));
    FOR v_month IN
        SELECT
            w.parent,
            t.key,
            c.relname || to_char(w.from_at, '_YYYY_MM') AS name,
            format('%s of %s, UTC.', c.relname, to_char(w.from_at, 'YYYY-MM')) AS comment,
            w.from_at,
            w.from_at + interval '1 month' AS to_at
        FROM (
            SELECT
                g.parent,
                date_trunc('month', g.month) AS from_at
            FROM unnest(p_tables, p_months) AS g (parent, month)
        ) AS w
        INNER JOIN pg_class AS c ON w.parent = c.oid
        LEFT JOIN elsapg.monthly_tables() AS t ON w.parent = t.name
    LOOP
        IF v_month.key IS NULL OR v_month.name IS NULL OR NOT isfinite(v_month.from_at) THEN
            RAISE EXCEPTION 'table %, month %: not a table by months, or not a month',
                v_month.parent, v_month.from_at
            USING ERRCODE = 'invalid_parameter_value';
        END IF;
        SELECT p.* INTO v_there
        FROM elsapg.range_partitions(v_month.parent) AS p
        INNER JOIN pg_class AS c ON p.name = c.oid
        WHERE c.relname = v_month.name;
        IF FOUND THEN
            IF (v_there.from_at, v_there.to_at) IS DISTINCT FROM (v_month.from_at, v_month.to_at) THEN
                RAISE EXCEPTION 'partition % holds % to %, and should hold % to %',
                    v_there.name, v_there.from_at, v_there.to_at, v_month.from_at, v_month.to_at
                USING
                    ERRCODE = 'invalid_object_definition',
                    HINT = 'Detach it, attach it again with these bounds (+00), and run this again.';
            END IF;
            CONTINUE;
        END IF;
        v_condition := format(
            '%I >= %L AND %I < %L', v_month.key, v_month.from_at, v_month.key, v_month.to_at
        );
        v_new := elsapg.new_partition(v_month.parent, v_month.name, v_condition, v_month.comment);
        v_parents := v_parents || v_month.parent;
        v_made := v_made || v_new;
        v_conditions := v_conditions || v_condition;
        v_bounds := v_bounds || format('FOR VALUES FROM (%L) TO (%L)', v_month.from_at, v_month.to_at);
    END LOOP;
    IF v_made <> '{}' THEN
        PERFORM elsapg.lock_for_partitions(v_parents);
    END IF;
    FOR v_number IN 1 .. cardinality(v_made) LOOP
        PERFORM elsapg.attach_partition(
            v_parents[v_number], v_made[v_number], v_bounds[v_number], v_conditions[v_number]
        );
        RETURN NEXT v_made[v_number];
    END LOOP;
END
$function$;

-- Drops a partition, if nobody is in the way. Never one with rows in it, unless p_with_rows.
CREATE OR REPLACE FUNCTION elsapg.drop_partition(p_partition regclass, p_with_rows boolean)
RETURNS boolean
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
-- By the index, of which the first look has marked what is dead. A sequential scan would read all
-- pages of what was just emptied each time.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $function$
DECLARE
    c_attempts CONSTANT integer := 10;
    c_too_slow CONSTANT interval := interval '50 ms';
    v_parent regclass := (SELECT i.inhparent FROM pg_inherits AS i WHERE i.inhrelid = p_partition);
    v_key name := (SELECT t.key FROM elsapg.monthly_tables() AS t WHERE t.name = v_parent);
    v_look text := format('SELECT true FROM %s ORDER BY %I LIMIT 1', p_partition, v_key);
    v_has_rows boolean;
    v_began timestamptz;
BEGIN
    IF v_key IS NULL THEN
        RAISE EXCEPTION '% is no partition of a table by months', p_partition
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT p_with_rows THEN
        -- The second look costs what a look under the lock will cost. Too much, while some old
        -- snapshot keeps dead rows from being marked: then another time.
        FOR v_look_number IN 1 .. 2 LOOP
            v_began := clock_timestamp();
            EXECUTE v_look INTO v_has_rows;
            IF v_has_rows THEN
                RETURN false;
            END IF;
        END LOOP;
        IF clock_timestamp() - v_began > c_too_slow THEN
            RETURN false;
        END IF;
    END IF;
    FOR v_attempt IN 1 .. c_attempts LOOP
        BEGIN
            EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', v_parent);
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', p_partition);
            IF NOT p_with_rows THEN
                EXECUTE v_look INTO v_has_rows;
                IF v_has_rows THEN
                    RETURN false;
                END IF;
            END IF;
            EXECUTE format('DROP TABLE %s', p_partition);
            RETURN true;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.1 + 0.2 * random());
        END;
    END LOOP;
    RAISE NOTICE '% stays for now: its locks were not free', p_partition;
    RETURN false;
END
$function$;

-- p_now is there for importing history, and for tests: the first month to make.
CREATE OR REPLACE FUNCTION elsa_workflows.create_monthly_partitions(
    p_ahead integer DEFAULT NULL, p_now timestamptz DEFAULT pg_catalog.clock_timestamp()
)
RETURNS SETOF regclass
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $function$
DECLARE
    v_ahead integer := coalesce(p_ahead, elsapg.setting('months_ahead'));
    v_tables regclass[];
    v_months timestamptz[];
BEGIN
    IF v_ahead NOT BETWEEN 0 AND 120 OR p_now IS NULL OR NOT isfinite(p_now) THEN
        RAISE EXCEPTION '% months ahead of %: must be 0 to 120, and a moment', v_ahead, p_now
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT array_agg(t.name), array_agg(date_trunc('month', p_now) + make_interval(months => m.ahead))
    INTO v_tables, v_months
    FROM elsapg.monthly_tables() AS t
    CROSS JOIN generate_series(0, v_ahead) AS m (ahead)
    WHERE NOT t.is_archive;
    RETURN QUERY SELECT a.* FROM elsapg.add_months(v_tables, v_months) AS a;
END
$function$;

-- The months of the rows that lie outside all months: they get their partitions, and move there.
-- At most 120 at once, the oldest first; an infinite moment has no month, and stays.
CREATE OR REPLACE FUNCTION elsa_workflows.create_stray_months()
RETURNS SETOF regclass
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $function$
DECLARE
    v_table record;
    v_months timestamptz[];
BEGIN
    FOR v_table IN
        SELECT
            t.name,
            t.key,
            p.partdefid::regclass AS strays
        FROM elsapg.monthly_tables() AS t
        INNER JOIN pg_partitioned_table AS p ON t.name = p.partrelid
        WHERE p.partdefid <> 0
    LOOP
        EXECUTE format(
            'SELECT coalesce(array_agg(d.month), ''{}'') FROM ('
            'SELECT DISTINCT date_trunc(''month'', %1$I) AS month FROM %2$s'
            ' WHERE isfinite(%1$I) ORDER BY 1 LIMIT 120) AS d',
            v_table.key, v_table.strays
        ) INTO v_months;
        RETURN QUERY SELECT a.*
        FROM elsapg.add_months(array_fill(v_table.name, ARRAY[cardinality(v_months)]), v_months) AS a;
    END LOOP;
END
$function$;

-- A partition for one tenant's definitions: worth it for a tenant with very many, which can then be
-- vacuumed, moved or detached alone. The name is the tenant's as far as a name allows.
CREATE OR REPLACE FUNCTION elsa_workflows.add_tenant_partition(p_tenant_id text)
RETURNS regclass
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
AS $function$
DECLARE
    v_parent CONSTANT regclass := 'elsa_workflows.workflow_definitions';
    v_bound text := format('FOR VALUES IN (%L)', p_tenant_id);
    -- As pg_get_expr writes it, to compare with: %L writes E'…' where there is a backslash.
    v_shown text := format('FOR VALUES IN (''%s'')', replace(p_tenant_id, '''', ''''''));
    v_condition text := format('tenant_id = %L', p_tenant_id);
    v_there regclass;
    v_name text;
    v_new regclass;
BEGIN
    IF p_tenant_id IS NULL OR p_tenant_id = '' OR length(p_tenant_id) > 255 THEN
        RAISE EXCEPTION 'tenant "%": must have 1 to 255 characters', coalesce(p_tenant_id, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('elsapg:partitions', 0));
    SELECT c.oid::regclass INTO v_there
    FROM pg_inherits AS i
    INNER JOIN pg_class AS c ON i.inhrelid = c.oid
    WHERE i.inhparent = v_parent AND pg_get_expr(c.relpartbound, c.oid) = v_shown;
    IF FOUND THEN
        RETURN v_there;
    END IF;

    v_name := 'workflow_definitions_' || regexp_replace(lower(p_tenant_id), '[^a-z0-9]+', '_', 'g');
    IF octet_length(v_name) > 63 OR to_regclass('elsa_workflows.' || quote_ident(v_name)) IS NOT NULL THEN
        -- "a-b" and "a_b" are two tenants, and "default" has the DEFAULT partition's name.
        v_name := left(v_name, 63 - 9) || '_' || left(md5(p_tenant_id), 8);
    END IF;
    v_new := elsapg.new_partition(
        v_parent, v_name, v_condition, format('Definitions of tenant %s.', p_tenant_id)
    );
    PERFORM elsapg.attach_partition(v_parent, v_new, v_bound, v_condition);
    RETURN v_new;
END
$function$;

-- What the view below shows, counted past row-level security: numbers, of nobody in particular.
CREATE OR REPLACE FUNCTION elsapg.partition_health()
RETURNS TABLE (
    table_name text,
    partitions integer,
    covered_until timestamptz,
    months_ahead integer,
    default_rows integer,
    healthy boolean
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $function$
DECLARE
    v_this_month CONSTANT timestamptz := date_trunc('month', clock_timestamp());
    v_table record;
    v_partition record;
BEGIN
    FOR v_table IN SELECT t.* FROM elsapg.monthly_tables() AS t LOOP
        table_name := v_table.name;
        partitions := 0;
        covered_until := v_this_month;
        default_rows := 0;
        FOR v_partition IN SELECT p.* FROM elsapg.range_partitions(v_table.name) AS p LOOP
            IF v_partition.is_default THEN
                EXECUTE format(
                    'SELECT count(*) FROM (SELECT FROM %s LIMIT 1000) AS d', v_partition.name
                ) INTO default_rows;
            ELSE
                partitions := partitions + 1;
                -- Without a gap from this month on; they come in order.
                IF v_partition.from_at <= covered_until AND v_partition.to_at > covered_until THEN
                    covered_until := v_partition.to_at;
                END IF;
            END IF;
        END LOOP;
        -- Years and months: this month not covered is -1, nothing beyond it 0.
        months_ahead := (
            extract(YEAR FROM covered_until) * 12 + extract(MONTH FROM covered_until)
            - extract(YEAR FROM v_this_month) * 12 - extract(MONTH FROM v_this_month) - 1
        );
        -- One month less than wanted is what the first of a month begins with.
        healthy := default_rows = 0
            AND (v_table.is_archive OR months_ahead >= greatest(elsapg.setting('months_ahead') - 1, 0));
        IF v_table.is_archive THEN
            covered_until := NULL;
            months_ahead := NULL;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$function$;

ALTER FUNCTION elsapg.range_partitions(regclass) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.monthly_tables() OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.lock_for_partitions(regclass[]) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.new_partition(regclass, name, text, text) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.attach_partition(regclass, regclass, text, text) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.add_months(regclass[], timestamptz[]) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.drop_partition(regclass, boolean) OWNER TO elsa_maintenance;
ALTER FUNCTION elsapg.partition_health() OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_workflows.create_monthly_partitions(integer, timestamptz) OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_workflows.create_stray_months() OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_workflows.add_tenant_partition(text) OWNER TO elsa_maintenance;

REVOKE ALL ON FUNCTION elsapg.range_partitions(regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.monthly_tables() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.lock_for_partitions(regclass[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.new_partition(regclass, name, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.attach_partition(regclass, regclass, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.add_months(regclass[], timestamptz[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.drop_partition(regclass, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsapg.partition_health() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.create_monthly_partitions(integer, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.create_stray_months() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.add_tenant_partition(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsapg.partition_health() TO monitoring, elsa_admin;
GRANT EXECUTE ON FUNCTION elsa_workflows.create_monthly_partitions(integer, timestamptz)
TO elsa_jobs, elsa_admin;
GRANT EXECUTE ON FUNCTION elsa_workflows.create_stray_months() TO elsa_admin;
GRANT EXECUTE ON FUNCTION elsa_workflows.add_tenant_partition(text) TO elsa_admin;

CREATE OR REPLACE VIEW elsapg.partition_health AS
SELECT
    h.table_name,
    h.partitions,
    h.covered_until,
    h.months_ahead,
    h.default_rows,
    h.healthy
FROM elsapg.partition_health() AS h;
ALTER VIEW elsapg.partition_health OWNER TO elsa_owner;
REVOKE ALL ON TABLE elsapg.partition_health FROM PUBLIC;
GRANT SELECT ON TABLE elsapg.partition_health TO monitoring, elsa_admin;

COMMENT ON FUNCTION elsapg.range_partitions(regclass) IS 'The range partitions of a table and their bounds.';
COMMENT ON FUNCTION elsapg.monthly_tables() IS 'The tables of elsa_workflows that are partitioned by time.';
COMMENT ON FUNCTION elsapg.lock_for_partitions(regclass[]) IS
'Locks what attaching partitions to these tables wants, in short attempts.';
COMMENT ON FUNCTION elsapg.new_partition(regclass, name, text, text) IS
'Makes a table that can be attached as a partition.';
COMMENT ON FUNCTION elsapg.attach_partition(regclass, regclass, text, text) IS
'Attaches it, and moves the DEFAULT partition''s rows that belong there.';
COMMENT ON FUNCTION elsapg.add_months(regclass[], timestamptz[]) IS
'Makes the partitions of UTC months where they lack; returns the new ones.';
COMMENT ON FUNCTION elsapg.drop_partition(regclass, boolean) IS
'Drops a month''s partition, an empty one unless told otherwise; false if it could not.';
COMMENT ON FUNCTION elsapg.partition_health() IS 'The rows of the view of the same name.';
COMMENT ON FUNCTION elsa_workflows.create_monthly_partitions(integer, timestamptz) IS
'Makes the partitions of this month and the next p_ahead (months_ahead of the stack); returns the new ones.';
COMMENT ON FUNCTION elsa_workflows.create_stray_months() IS
'Makes the months of the rows that lie outside all months, and moves them there; returns the new ones.';
COMMENT ON FUNCTION elsa_workflows.add_tenant_partition(text) IS
'Gives a tenant''s workflow definitions a partition of their own; returns it, also if it was there.';
COMMENT ON VIEW elsapg.partition_health IS
'Whether each table by months has the months it needs, and how many rows (at most 1000) lie outside.';
COMMENT ON COLUMN elsapg.partition_health.table_name IS 'The partitioned table.';
COMMENT ON COLUMN elsapg.partition_health.partitions IS 'How many months it has.';
COMMENT ON COLUMN elsapg.partition_health.covered_until IS
'From now until then every month has its partition; NULL for an archive, whose months come as needed.';
COMMENT ON COLUMN elsapg.partition_health.months_ahead IS
'How many months after this one that is; -1 if this one lacks. NULL for an archive.';
COMMENT ON COLUMN elsapg.partition_health.default_rows IS
'Rows in the DEFAULT partition, which belong to no month; counted to 1000.';
COMMENT ON COLUMN elsapg.partition_health.healthy IS
'No such rows, and at most one month less ahead than the stack wants.';

-- Each bootstrap, so that a new database has its months; later ones come from the job.
SELECT elsa_workflows.create_monthly_partitions();
