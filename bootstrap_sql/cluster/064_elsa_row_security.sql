-- elsapg: database=elsa_workflows

-- Row-level security on Elsa's own tables, as an opt-in: Elsa filters by tenant in its own code and
-- never names a tenant to the database, so with this on, whoever sets no context sees shared rows
-- only. Whoever runs Elsa's migrations runs this after them, and again after each upgrade:
--     SELECT elsapg.enable_elsa_row_security();
-- How Elsa writes tenants ("TenantId", which may be NULL), and how the context names them:
--     '*'         shared: every tenant reads it, none writes it
--     '' or NULL  Elsa's default tenant: context 'default', for '' is what an ended transaction
--                 leaves behind and must name nobody
--     else        that tenant
-- A tenant whose id is the word "default" would be a third way to write it: refused, not merged.

-- The policies' source, in one place: the function below makes them, the view compares with them.
CREATE OR REPLACE FUNCTION elsapg.elsa_row_policies()
RETURNS TABLE (name text, command text, role text, visible text, writable text, meaning text)
LANGUAGE plpgsql
IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    -- Not a function: that would need EXECUTE for everybody.
    v_key text := $$CASE pg_catalog.current_setting('app.current_tenant_id', true)$$
        || $$ WHEN 'default' THEN '' WHEN '' THEN NULL WHEN '*' THEN NULL$$
        || $$ ELSE pg_catalog.current_setting('app.current_tenant_id', true) END$$;
    -- Reading: sub-selects, so that the context is read once per query and not once per row; and
    -- plain equality, which is leakproof and so can use Elsa's indexes on "TenantId".
    v_seen text := format(
        '"TenantId" = %1$L OR "TenantId" = (SELECT %2$s) OR ("TenantId" IS NULL AND (SELECT %2$s) = %3$L)',
        '*', v_key, ''
    );
    -- Writing: mostly one row, for which setting sub-selects up would cost more than they save. The
    -- rows to change have been found by reading.
    v_own text := format('coalesce("TenantId", %L) = %s', '', v_key);
BEGIN
    RETURN QUERY VALUES
    ('elsapg_read', 'SELECT', 'public', v_seen, NULL, 'Reads the tenant''s rows and shared ones.'),
    ('elsapg_insert', 'INSERT', 'public', NULL, v_own, 'Adds the tenant''s rows only.'),
    ('elsapg_update', 'UPDATE', 'public', v_own, v_own, 'Changes the tenant''s rows only.'),
    ('elsapg_delete', 'DELETE', 'public', v_own, NULL, 'Removes the tenant''s rows only.'),
    (
        'elsapg_host', 'ALL', 'elsa_host', 'true', 'true',
        'elsa_host, and elsa_admin with it, works across tenants.'
    );
END
$function$;
REVOKE ALL ON FUNCTION elsapg.elsa_row_policies() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsapg.elsa_row_policies() TO elsa_owner, elsa_admin, monitoring;
COMMENT ON FUNCTION elsapg.elsa_row_policies() IS
'The policies that elsapg.enable_elsa_row_security gives each of Elsa''s tables, as SQL text.';

-- A policy's comment carries a checksum of what was asked for and of what the server made of it:
-- one changed by hand, or made by an older release of this file, no longer fits.
CREATE OR REPLACE FUNCTION elsapg.elsa_row_policy_comment(p_table regclass, p_policy name)
RETURNS text
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT concat(wanted.meaning, ' ', md5(wanted::text || made::text))
    FROM elsapg.elsa_row_policies() AS wanted
    INNER JOIN pg_catalog.pg_policies AS made ON wanted.name = made.policyname
    INNER JOIN pg_catalog.pg_class AS c ON made.tablename = c.relname
    INNER JOIN pg_catalog.pg_namespace AS n
        ON c.relnamespace = n.oid AND made.schemaname = n.nspname
    WHERE c.oid = p_table AND wanted.name = p_policy
$function$;
REVOKE ALL ON FUNCTION elsapg.elsa_row_policy_comment(regclass, name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsapg.elsa_row_policy_comment(regclass, name)
TO elsa_owner, elsa_admin, monitoring;
COMMENT ON FUNCTION elsapg.elsa_row_policy_comment(regclass, name) IS
'The comment that a policy of elsapg''s has on a table of Elsa''s as long as nobody changes it.';

CREATE OR REPLACE VIEW elsapg.elsa_row_security
WITH (security_invoker = true) AS
SELECT
    c.oid::pg_catalog.regclass AS table_name,
    c.relrowsecurity AS is_enabled,
    -- Not forced: Elsa's migrations run as the owner, across tenants.
    c.relrowsecurity AND NOT c.relforcerowsecurity AND found.all_of_them AS is_complete
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON c.relnamespace = n.oid
INNER JOIN pg_catalog.pg_attribute AS a
    ON c.oid = a.attrelid AND a.attname = 'TenantId' AND NOT a.attisdropped
INNER JOIN LATERAL (
    SELECT
        pg_catalog.count(*) = (SELECT pg_catalog.count(*) FROM elsapg.elsa_row_policies())
        AND pg_catalog.bool_and(
            coalesce(
                pg_catalog.obj_description(p.oid, 'pg_policy')
                = elsapg.elsa_row_policy_comment(c.oid, p.polname), false
            )
        ) AS all_of_them
    FROM pg_catalog.pg_policy AS p
    WHERE p.polrelid = c.oid
) AS found ON true
WHERE n.nspname = 'Elsa' AND c.relkind IN ('r', 'p');
REVOKE ALL ON TABLE elsapg.elsa_row_security FROM PUBLIC;
GRANT SELECT ON TABLE elsapg.elsa_row_security TO elsa_owner, elsa_admin, monitoring;
COMMENT ON VIEW elsapg.elsa_row_security IS
'Each of Elsa''s tables with a tenant, and whether row-level security is on as elsapg makes it.';
COMMENT ON COLUMN elsapg.elsa_row_security.table_name IS 'The table.';
COMMENT ON COLUMN elsapg.elsa_row_security.is_enabled IS 'Whether any policy holds at all.';
COMMENT ON COLUMN elsapg.elsa_row_security.is_complete IS
'Whether elsapg''s policies hold, unchanged, and no others. If some tables are and some are not, an upgrade added tables: run elsapg.enable_elsa_row_security again.';

-- Needs the tables' owner: run as elsa_migrator, who is elsa_owner in this database. All or
-- nothing, in milliseconds; gives up after 3 seconds behind a long transaction.
CREATE OR REPLACE FUNCTION elsapg.enable_elsa_row_security()
RETURNS SETOF regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '3s'
AS $function$
DECLARE
    v_table regclass;
    v_policy record;
    v_taken boolean;
BEGIN
    FOR v_table IN
        SELECT s.table_name FROM elsapg.elsa_row_security AS s
        WHERE NOT s.is_complete ORDER BY s.table_name::text
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE "TenantId" = %L)', v_table, 'default')
        INTO v_taken;
        IF v_taken THEN
            RAISE EXCEPTION '% has rows of a tenant whose id is "default"', v_table
            USING ERRCODE = 'reserved_name',
                HINT = 'The context "default" names Elsa''s default tenant, whose id is empty. Give that tenant another id, or the empty one, and enable again.';
        END IF;
        FOR v_policy IN
            SELECT p.polname AS name FROM pg_policy AS p WHERE p.polrelid = v_table
        LOOP
            -- Permissive policies add up: one that is left would open what the others close.
            EXECUTE format('DROP POLICY %I ON %s', v_policy.name, v_table);
        END LOOP;
        EXECUTE format(
            'ALTER TABLE %s ENABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', v_table
        );
        FOR v_policy IN SELECT * FROM elsapg.elsa_row_policies() LOOP
            EXECUTE format('CREATE POLICY %I ON %s FOR %s TO %s', v_policy.name, v_table,
                v_policy.command, v_policy.role)
            || coalesce(' USING (' || v_policy.visible || ')', '')
            || coalesce(' WITH CHECK (' || v_policy.writable || ')', '');
            EXECUTE format('COMMENT ON POLICY %I ON %s IS %L', v_policy.name, v_table,
                elsapg.elsa_row_policy_comment(v_table, v_policy.name));
        END LOOP;
        RETURN NEXT v_table;
    END LOOP;
END
$function$;
REVOKE ALL ON FUNCTION elsapg.enable_elsa_row_security() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsapg.enable_elsa_row_security() TO elsa_owner;
COMMENT ON FUNCTION elsapg.enable_elsa_row_security() IS
'Puts row-level security on every table of Elsa''s with a tenant, and returns those it changed. Run it as elsa_migrator after Elsa''s migrations and after each upgrade.';

CREATE OR REPLACE FUNCTION elsapg.disable_elsa_row_security()
RETURNS SETOF regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '3s'
AS $function$
DECLARE
    v_table regclass;
    v_name text;
BEGIN
    FOR v_table IN
        SELECT s.table_name FROM elsapg.elsa_row_security AS s
        WHERE s.is_enabled ORDER BY s.table_name::text
    LOOP
        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', v_table);
        FOR v_name IN SELECT p.name FROM elsapg.elsa_row_policies() AS p LOOP
            EXECUTE format('DROP POLICY IF EXISTS %I ON %s', v_name, v_table);
        END LOOP;
        RETURN NEXT v_table;
    END LOOP;
END
$function$;
REVOKE ALL ON FUNCTION elsapg.disable_elsa_row_security() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsapg.disable_elsa_row_security() TO elsa_owner;
COMMENT ON FUNCTION elsapg.disable_elsa_row_security() IS
'Takes elsapg''s row-level security off Elsa''s tables again, and returns those it changed.';
