-- elsapg: database=elsa_workflows
-- elsapg: after=migrations

-- Who may do what, and who they are: every write is logged, whoever makes it. pgaudit logs what
-- pgaudit.role (elsa_auditor) holds a right to; the role uses none of them. DDL (policies too) and
-- role changes are logged by pgaudit.log. How to read it: docs/encryption.md, "Audit".
GRANT INSERT, UPDATE, DELETE ON TABLE elsa_workflows.users, elsa_workflows.tenants TO elsa_auditor;

-- Elsa's own, once its migrations have made them.
DO $elsa$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['"Users"', '"Roles"', '"Applications"', '"Tenants"'] LOOP
        IF pg_catalog.to_regclass('"Elsa".' || v_table) IS NOT NULL THEN
            EXECUTE 'GRANT INSERT, UPDATE, DELETE ON TABLE "Elsa".' || v_table || ' TO elsa_auditor';
        END IF;
    END LOOP;
END
$elsa$;

-- pgaudit judges INSERT, UPDATE and DELETE by those rights, but not TRUNCATE, which the owner may:
-- it would empty these tables without a line.
CREATE OR REPLACE FUNCTION elsapg.refuse_truncate()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RAISE EXCEPTION 'TRUNCATE of % would not be audited', tg_relid::regclass
    USING ERRCODE = 'feature_not_supported', HINT = 'DELETE the rows instead.';
END
$function$;
REVOKE ALL ON FUNCTION elsapg.refuse_truncate() FROM PUBLIC;
CREATE OR REPLACE TRIGGER audited_only BEFORE TRUNCATE ON elsa_workflows.users
FOR EACH STATEMENT EXECUTE FUNCTION elsapg.refuse_truncate();
CREATE OR REPLACE TRIGGER audited_only BEFORE TRUNCATE ON elsa_workflows.tenants
FOR EACH STATEMENT EXECUTE FUNCTION elsapg.refuse_truncate();

COMMENT ON FUNCTION elsapg.refuse_truncate() IS
'Refuses to empty a table whose every write is audited, for TRUNCATE is not.';
COMMENT ON TRIGGER audited_only ON elsa_workflows.users IS 'Refuses TRUNCATE, which pgaudit would not log.';
COMMENT ON TRIGGER audited_only ON elsa_workflows.tenants IS 'Refuses TRUNCATE, which pgaudit would not log.';
