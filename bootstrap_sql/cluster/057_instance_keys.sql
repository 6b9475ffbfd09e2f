-- elsapg: database=elsa_workflows

-- Keeps elsa_workflows.workflow_instance_keys in step with elsa_workflows.workflow_instances.
--
-- A partitioned table can promise uniqueness, and be referenced, only with its partition key. One
-- narrow table beside it, with a row per instance, gives the rest back: an id is unique among a
-- tenant's instances, children reference (tenant_id, id) by ordinary foreign keys, and a month of
-- instances is dropped without asking anybody. docs/decisions/0013-integrity.md has the figures.
--
-- The migration that makes the tables makes the triggers. The functions run as elsa_maintenance,
-- because the rows were judged when they went into workflow_instances, and nobody else may write
-- the keys.
CREATE OR REPLACE FUNCTION elsa_workflows.add_instance_keys()
RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    INSERT INTO elsa_workflows.workflow_instance_keys (tenant_id, id)
    SELECT
        n.tenant_id,
        n.id
    FROM new_rows AS n;
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_workflows.remove_instance_keys()
RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- A session keeps the first plan. One made for a great many rows would read all keys for each one.
SET jit = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $function$
BEGIN
    DELETE FROM elsa_workflows.workflow_instance_keys AS k
    USING old_rows AS o
    WHERE k.tenant_id = o.tenant_id AND k.id = o.id;
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_workflows.keep_instance_identity()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RAISE EXCEPTION 'tenant_id, id and created_at of workflow instance "%" cannot change', old.id
    USING
        ERRCODE = 'integrity_constraint_violation',
        HINT = 'Insert a new instance, and delete this one.';
END
$function$;

CREATE OR REPLACE FUNCTION elsa_workflows.refuse_truncate()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RAISE EXCEPTION 'TRUNCATE of workflow_instances would leave their keys and children behind'
    USING
        ERRCODE = 'integrity_constraint_violation',
        HINT = 'DELETE FROM elsa_workflows.workflow_instances.';
END
$function$;

ALTER FUNCTION elsa_workflows.add_instance_keys() OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_workflows.remove_instance_keys() OWNER TO elsa_maintenance;
ALTER FUNCTION elsa_workflows.keep_instance_identity() OWNER TO elsa_owner;
ALTER FUNCTION elsa_workflows.refuse_truncate() OWNER TO elsa_owner;
REVOKE ALL ON FUNCTION elsa_workflows.refuse_truncate() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.add_instance_keys() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.remove_instance_keys() FROM PUBLIC;
REVOKE ALL ON FUNCTION elsa_workflows.keep_instance_identity() FROM PUBLIC;
-- To make the triggers; whoever fires them needs no right on the functions.
GRANT EXECUTE ON FUNCTION elsa_workflows.add_instance_keys() TO elsa_owner;
GRANT EXECUTE ON FUNCTION elsa_workflows.remove_instance_keys() TO elsa_owner;

COMMENT ON FUNCTION elsa_workflows.add_instance_keys() IS
'Trigger of workflow_instances: writes the keys of inserted instances.';
COMMENT ON FUNCTION elsa_workflows.remove_instance_keys() IS
'Trigger of workflow_instances: removes the keys of deleted instances, and by cascade their children.';
COMMENT ON FUNCTION elsa_workflows.keep_instance_identity() IS
'Trigger of workflow_instances: refuses to change what identifies an instance.';
COMMENT ON FUNCTION elsa_workflows.refuse_truncate() IS
'Trigger of workflow_instances: TRUNCATE would leave keys and children behind.';
