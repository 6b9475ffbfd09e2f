-- elsapg: database=elsa_workflows,elsa_runtime

-- Bringing what is encrypted (cluster/065_encryption.sql) to a new key. docs/encryption.md says in
-- which order an application, the ring and the data move.

-- Whether a document holds, at any depth, a value encrypted with another key than this one.
CREATE OR REPLACE FUNCTION elsa_crypto.outdated(p_document jsonb, p_key_id text)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN jsonb_path_exists(
        p_document,
        'strict $.** ? (@.type() == "object" && @."$enc".type() == "string" && @.ctx.type() == "string"
            && @.kid.type() == "string" && @.kid != $key)',
        jsonb_build_object('key', p_key_id)
    );
END
$function$;

-- The document, its encrypted values under the ring's current key. What does not open (someone's
-- data may look like an encrypted value) stays as it is: nothing is lost.
CREATE OR REPLACE FUNCTION elsa_crypto.reencrypt(p_document jsonb, p_tenant text DEFAULT NULL)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_ring jsonb := elsa_crypto.ring();
    v_tenant text := coalesce(p_tenant, elsa_crypto.tenant());
    v_key_id text := v_ring ->> 'current';
    v_document jsonb := p_document;
    v_clear jsonb;
    v_found record;
BEGIN
    IF elsa_crypto.outdated(p_document, v_key_id) IS NOT TRUE THEN
        RETURN p_document;
    END IF;
    -- No recursive function: a document may be nested deeper than those can call themselves.
    FOR v_found IN
        WITH RECURSIVE node (path, value) AS (
            SELECT
                ARRAY[]::text [],
                p_document
            UNION ALL
            SELECT
                n.path || child.name,
                child.value
            FROM node AS n
            CROSS JOIN LATERAL (
                SELECT
                    e.key AS name,
                    e.value
                FROM jsonb_each(CASE jsonb_typeof(n.value) WHEN 'object' THEN n.value END) AS e
                UNION ALL
                SELECT
                    (e.number - 1)::text,
                    e.value
                FROM jsonb_array_elements(CASE jsonb_typeof(n.value) WHEN 'array' THEN n.value END)
                    WITH ORDINALITY AS e (value, number)
            ) AS child
            WHERE NOT elsa_crypto.is_encrypted(n.value) AND elsa_crypto.outdated(child.value, v_key_id)
        )

        SELECT
            n.path,
            n.value
        FROM node AS n
        WHERE elsa_crypto.is_encrypted(n.value)
    LOOP
        v_clear := elsa_crypto.unseal(v_found.value, v_tenant, v_ring);
        IF v_clear IS NOT NULL THEN
            v_clear := elsa_crypto.seal(v_clear, v_found.value ->> 'ctx', v_tenant, v_ring);
            IF v_found.path = '{}' THEN
                v_document := v_clear;
            ELSE
                v_document := jsonb_set(v_document, v_found.path, v_clear, false);
            END IF;
        END IF;
    END LOOP;
    RETURN v_document;
END
$function$;

-- One step of a rotation: the rows of these pages, of every partition and tenant. As
-- elsa_maintenance, which sees all rows and may write the archive. It changes no value, only the key
-- of what the caller's own ring opens.
CREATE OR REPLACE FUNCTION elsa_crypto.rotate_pages(
    p_table regclass,
    p_column name,
    p_from bigint,
    p_to bigint,
    OUT rewritten bigint,
    OUT unreadable bigint
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_key_id text := elsa_crypto.ring() ->> 'current';
BEGIN
    -- A table of the caller's own could have a trigger, which would run as elsa_maintenance.
    IF NOT EXISTS (
        SELECT FROM pg_class AS c WHERE c.oid = p_table AND c.relowner = 'elsa_owner'::regrole
    ) THEN
        RAISE EXCEPTION 'table % is not elsa_owner''s', p_table
        USING ERRCODE = 'insufficient_privilege', HINT = 'Tables that migrations made can be rotated.';
    END IF;
    EXECUTE format(
        'WITH done AS ('
        ' UPDATE %1$s AS t SET %2$I = elsa_crypto.reencrypt(t.%2$I, t.tenant_id)'
        ' WHERE t.ctid >= $1 AND t.ctid < $2 AND elsa_crypto.outdated(t.%2$I, $3)'
        ' RETURNING elsa_crypto.outdated(t.%2$I, $3) AS remains)'
        ' SELECT count(*) FILTER (WHERE NOT d.remains), count(*) FILTER (WHERE d.remains) FROM done AS d',
        p_table, p_column
    )
    INTO rewritten, unreadable
    USING format('(%s,0)', p_from)::tid, format('(%s,0)', p_to)::tid, v_key_id;
END
$function$;
ALTER FUNCTION elsa_crypto.rotate_pages(regclass, name, bigint, bigint) OWNER TO elsa_maintenance;

-- Brings a column to the ring's current key. Goes through the table p_pages pages (of every
-- partition) at a time, and commits after each; can be stopped anywhere and called again. A row
-- that the application moves meanwhile is found by a further pass; the last one finds none.
-- It commits, so it can have no SET clause: every name below is qualified.
CREATE OR REPLACE PROCEDURE elsa_crypto.rotate(
    p_table regclass,
    p_column name,
    p_ring text,
    p_pages integer DEFAULT 64,
    INOUT p_rewritten bigint DEFAULT 0,
    INOUT p_unreadable bigint DEFAULT 0
)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    v_types text;
    v_page bigint;
    v_pages bigint;
    v_done bigint;
    v_left bigint;
    v_progress bigint;
BEGIN
    SELECT pg_catalog.string_agg(a.atttypid::pg_catalog.regtype::text, ' ' ORDER BY a.attname = p_column DESC)
    INTO v_types
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = p_table AND a.attname IN (p_column, 'tenant_id') AND NOT a.attisdropped;
    IF v_types IS NULL OR v_types NOT IN ('jsonb character varying', 'jsonb text') THEN
        RAISE EXCEPTION 'table % has no column % of type jsonb beside its tenant_id', p_table, p_column
        USING ERRCODE = 'undefined_column', HINT = 'Encrypted values stand in jsonb columns of tenants'' tables.';
    END IF;
    IF p_pages IS NULL OR p_pages NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'p_pages is %', p_pages
        USING ERRCODE = 'invalid_parameter_value', HINT = 'Give 1 to 100000 pages of 8 KiB a step.';
    END IF;
    PERFORM elsa_crypto.use_keys(p_ring);
    p_rewritten := 0;
    LOOP
        SELECT pg_catalog.max(pg_catalog.pg_relation_size(r.relid))
            / pg_catalog.current_setting('block_size')::bigint
        INTO v_pages
        FROM (
            SELECT p_table AS relid
            UNION ALL
            SELECT t.relid FROM pg_catalog.pg_partition_tree(p_table) AS t
        ) AS r;
        v_page := 0;
        v_progress := 0;
        p_unreadable := 0;
        WHILE v_page < v_pages LOOP
            SELECT r.rewritten, r.unreadable
            INTO v_done, v_left
            FROM elsa_crypto.rotate_pages(p_table, p_column, v_page, v_page + p_pages) AS r;
            v_progress := v_progress + v_done;
            p_unreadable := p_unreadable + v_left;
            v_page := v_page + p_pages;
            COMMIT;
            -- The keys ended with the transaction.
            PERFORM elsa_crypto.use_keys(p_ring);
        END LOOP;
        p_rewritten := p_rewritten + v_progress;
        EXIT WHEN v_progress = 0;
    END LOOP;
END
$procedure$;

REVOKE ALL ON ALL ROUTINES IN SCHEMA elsa_crypto FROM PUBLIC;
GRANT EXECUTE ON FUNCTION elsa_crypto.outdated(jsonb, text), elsa_crypto.reencrypt(jsonb, text)
TO elsa_user, elsa_worker, elsa_maintenance;
-- For all tenants at once: those who may see them all. elsa_admin is a member.
GRANT EXECUTE ON FUNCTION elsa_crypto.rotate_pages(regclass, name, bigint, bigint) TO elsa_host;
GRANT EXECUTE ON PROCEDURE elsa_crypto.rotate(regclass, name, text, integer, bigint, bigint) TO elsa_host;

COMMENT ON FUNCTION elsa_crypto.outdated(jsonb, text) IS
'Whether a document holds a value encrypted with another key than the one of this id. Needs no key.';
COMMENT ON FUNCTION elsa_crypto.reencrypt(jsonb, text) IS
'A document with its encrypted values, at any depth, under the current key; the tenant is the transaction''s unless given.';
COMMENT ON FUNCTION elsa_crypto.rotate_pages(regclass, name, bigint, bigint) IS
'Brings the rows of some pages of a table, of all tenants, to the current key: a step of elsa_crypto.rotate.';
COMMENT ON PROCEDURE elsa_crypto.rotate (regclass, name, text, integer, bigint, bigint) IS
'Brings a column of all tenants to the current key, committing as it goes; says how many rows it rewrote and could not read.';
