-- elsapg: database=elsa_workflows

-- Row-level security must not cost an index. Under it, a condition of the user's may be tried before
-- the policy's, and so be looked up in an index, only if every function in it is LEAKPROOF: tells
-- nothing about its arguments but by its result, so not by an error either. PostgreSQL says that of
-- =, < and their like, but not of any function of jsonb; so without these lines
--     payload ->> 'orderId' = …                      idx_activity_execution_records_payload_order_id
--     workflow_state -> 'variables' @> … (and ?)     idx_workflow_instances_state_variables
--     lower(user_name) = …                           uk_users_user_name
-- read all rows of the tenant. docs/decisions/0015-row-security-and-indexes.md goes through the
-- source of each and says what remains.
--
-- A function's flag belongs to the database and is not dumped; pg_upgrade and a restore lose it, and
-- the bootstrap, which runs after both, brings it back.
DO $leakproof$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid
        FROM pg_catalog.pg_proc AS p
        WHERE
            NOT p.proleakproof
            AND p.oid IN (
                'pg_catalog.jsonb_object_field(jsonb, text)'::pg_catalog.regprocedure,
                'pg_catalog.jsonb_object_field_text(jsonb, text)'::pg_catalog.regprocedure,
                'pg_catalog.jsonb_contains(jsonb, jsonb)'::pg_catalog.regprocedure,
                'pg_catalog.jsonb_exists(jsonb, text)'::pg_catalog.regprocedure,
                'pg_catalog.lower(text)'::pg_catalog.regprocedure
            )
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s LEAKPROOF', v_function);
    END LOOP;
END
$leakproof$;
