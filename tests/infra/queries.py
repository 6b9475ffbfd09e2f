"""The queries of a run: one batch per server, one per database of the primary.

Never a secret: of a verifier only its kind is asked for.
"""

from __future__ import annotations

SERVER_FACTS = {
    "server": """
        SELECT pg_is_in_recovery() AS recovery, version() AS version, now() AS now,
            extract(epoch FROM pg_postmaster_start_time())::float AS started,
            current_setting('data_checksums') AS data_checksums,
            current_setting('ssl') AS ssl,
            current_setting('ssl_min_protocol_version') AS ssl_min_protocol_version,
            current_setting('synchronous_standby_names') AS synchronous_standby_names,
            current_setting('fsync') AS fsync,
            current_setting('full_page_writes') AS full_page_writes,
            (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
            (SELECT system_identifier::text FROM pg_control_system()) AS system,
            (SELECT cc.data_page_checksum_version FROM pg_control_init() AS cc) AS checksums""",
    "pending": "SELECT name FROM pg_settings WHERE pending_restart",
    "file_errors": """
        SELECT sourcefile, sourceline, name, error FROM pg_file_settings
        -- What waits for a restart is told as an error, too; another check looks at that.
        WHERE error IS NOT NULL AND error <> 'setting could not be applied'""",
    "auto_conf": """
        SELECT name, setting FROM pg_file_settings
        WHERE sourcefile LIKE '%/postgresql.auto.conf'""",
    "hba": """
        SELECT rule_number AS number, type, database, user_name, address, auth_method AS method,
            options, error
        FROM pg_hba_file_rules ORDER BY line_number""",
    "ident_errors": "SELECT line_number, error FROM pg_ident_file_mappings WHERE error IS NOT NULL",
    "connections": """
        SELECT a.usename, a.application_name, a.backend_type, s.ssl, s.version
        FROM pg_stat_activity AS a JOIN pg_stat_ssl AS s USING (pid)
        WHERE a.client_addr IS NOT NULL""",
    "senders": """
        SELECT application_name, usename, state, sync_state,
            -- NULL until the standby's first answer, which wal_sender_timeout bounds.
            coalesce(pg_wal_lsn_diff(sent_lsn, replay_lsn), 0)::bigint AS behind,
            coalesce(extract(epoch FROM replay_lag), 0)::float AS lag
        FROM pg_stat_replication""",
    "receiver": """
        SELECT status, slot_name, sender_host, received_tli,
            extract(epoch FROM now() - last_msg_receipt_time)::float AS silent
        FROM pg_stat_wal_receiver""",
    "slots": """
        SELECT slot_name, slot_type, active, temporary, wal_status, invalidation_reason
        FROM pg_replication_slots""",
    "archiver": """
        SELECT archived_count, last_archived_wal, failed_count, last_failed_wal,
            last_failed_time IS NOT NULL
                AND (last_archived_time IS NULL OR last_failed_time > last_archived_time)
                AS failing,
            extract(epoch FROM now() - last_archived_time)::float AS age
        FROM pg_stat_archiver""",
    "waiting": """
        SELECT count(*) AS segments
        FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'""",
    "cron_jobs": "SELECT jobname, schedule, database, username, active FROM cron.job",
    "running_jobs": """
        SELECT datname, application_name FROM pg_stat_activity
        WHERE backend_type LIKE 'pg_cron%' AND datname IS NOT NULL
            AND backend_type <> 'pg_cron launcher'""",
    "roles": """
        SELECT r.rolname AS role, r.rolsuper AS superuser, r.rolcanlogin AS login,
            r.rolcreatedb AS createdb, r.rolcreaterole AS createrole,
            r.rolreplication AS replication, r.rolbypassrls AS bypassrls,
            r.rolinherit AS inherit, r.rolconnlimit AS connections,
            CASE
                WHEN r.rolpassword IS NULL THEN 'none'
                WHEN r.rolpassword ~ '^SCRAM-SHA-256\\$[0-9]+:' THEN 'scram-sha-256'
                WHEN r.rolpassword ~ '^md5' THEN 'md5'
                ELSE 'something else'
            END AS verifier
        FROM pg_authid AS r WHERE r.rolname NOT LIKE 'pg\\_%'""",
    "memberships": """
        SELECT m.rolname AS member, g.rolname AS role, a.admin_option AS admin
        FROM pg_auth_members AS a
        JOIN pg_roles AS m ON a.member = m.oid JOIN pg_roles AS g ON a.roleid = g.oid
        WHERE m.rolname NOT LIKE 'pg\\_%'""",
    "role_settings": """
        SELECT r.rolname AS role, d.datname AS database, unnest(s.setconfig) AS setting
        FROM pg_db_role_setting AS s
        LEFT JOIN pg_roles AS r ON s.setrole = r.oid
        LEFT JOIN pg_database AS d ON s.setdatabase = d.oid""",
    "databases": """
        SELECT d.datname AS database, pg_get_userbyid(d.datdba) AS owner,
            d.datallowconn AS connectable, pg_encoding_to_char(d.encoding) AS encoding,
            d.datlocprovider AS provider, d.datlocale AS locale
        FROM pg_database AS d""",
    "database_rights": """
        SELECT d.datname AS database, a.privilege_type AS privilege,
            CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END AS grantee
        FROM pg_database AS d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a""",
}

_COMMON = {
    "definers": """
        SELECT n.nspname || '.' || p.proname AS function, p.proconfig AS config,
            pg_get_userbyid(p.proowner) AS owner,
            ARRAY(
                SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END
                FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
                WHERE a.grantee <> p.proowner
            ) AS grantees
        FROM pg_proc AS p JOIN pg_namespace AS n ON p.pronamespace = n.oid
        WHERE p.prosecdef AND NOT EXISTS (
            SELECT FROM pg_depend AS d
            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
        )""",
    "public_schemas": """
        SELECT n.nspname AS schema, a.privilege_type AS privilege
        FROM pg_namespace AS n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
        WHERE a.grantee = 0 AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
        """,
    "public_tables": """
        SELECT n.nspname || '.' || c.relname AS relation, a.privilege_type AS privilege
        FROM pg_class AS c JOIN pg_namespace AS n ON c.relnamespace = n.oid,
            aclexplode(c.relacl) AS a
        WHERE a.grantee = 0
            AND n.nspname IN ('elsa_workflows', 'elsa_runtime', 'elsapg', 'elsa_jobs')""",
    "extensions": "SELECT extname AS name, extversion AS version FROM pg_extension",
    "runs": """
        SELECT r.job, r.slot, r.attempts, r.error, r.caught_up,
            r.finished_at IS NOT NULL AS finished,
            extract(epoch FROM now() - r.slot)::float AS age
        FROM elsa_jobs.run AS r WHERE r.slot > now() - interval '1 hour'""",
    "jobs": """
        SELECT database, name, cron_name, schedule, extract(epoch FROM since)::float AS since
        FROM elsa_jobs.job""",
    "job_status": "SELECT job, overdue, last_error FROM elsa_jobs.status",
}

_ELSA = {
    "tables": """
        SELECT n.nspname || '.' || c.relname AS relation, pg_get_userbyid(c.relowner) AS owner,
            c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced,
            c.relispartition AS partition,
            EXISTS (
                SELECT FROM pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attname IN ('tenant_id', 'TenantId')
                    AND NOT a.attisdropped
            ) AS tenants,
            ARRAY(
                SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END
                    || ' ' || a.privilege_type
                FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner
            ) AS grants
        FROM pg_class AS c JOIN pg_namespace AS n ON c.relnamespace = n.oid
        WHERE n.nspname IN ('elsa_workflows', 'elsa_runtime', 'ElsaExtensions')
            AND c.relkind IN ('r', 'p')""",
    "policies": """
        SELECT p.schemaname || '.' || p.tablename AS relation, p.policyname AS policy,
            p.permissive, p.roles, p.cmd, p.qual, p.with_check
        FROM pg_policies AS p
        -- Elsa's own tables are an opt-in, with policies of their own.
        WHERE p.schemaname NOT IN ('Elsa', 'quartz')""",
    "views": """
        SELECT n.nspname || '.' || c.relname AS relation
        FROM pg_class AS c JOIN pg_namespace AS n ON c.relnamespace = n.oid
        JOIN pg_roles AS o ON c.relowner = o.oid
        WHERE c.relkind IN ('v', 'm') AND n.nspname !~ '^(pg_|information_schema$)'
            AND (o.rolsuper OR o.rolbypassrls OR c.relkind = 'm')
            AND NOT coalesce(
                c.reloptions && ARRAY['security_invoker=true', 'security_invoker=on'], false
            )
            AND EXISTS (
                SELECT FROM pg_depend AS d JOIN pg_rewrite AS r ON d.objid = r.oid
                JOIN pg_attribute AS a ON d.refobjid = a.attrelid
                WHERE r.ev_class = c.oid AND d.refclassid = 'pg_class'::regclass
                    AND a.attname IN ('tenant_id', 'TenantId')
            )""",
    "large_objects": """
        SELECT count(*) AS there,
            has_function_privilege('public', 'pg_catalog.lo_create(oid)', 'EXECUTE')
            OR has_function_privilege('public', 'pg_catalog.lo_creat(integer)', 'EXECUTE')
            OR has_function_privilege('public', 'pg_catalog.lo_from_bytea(oid, bytea)', 'EXECUTE')
                AS anybody
        FROM pg_largeobject_metadata""",
    "migrations": "SELECT version, name, sha256 FROM elsapg.schema_migration",
    "default_rights": """
        SELECT coalesce(n.nspname, '') AS schema, pg_get_userbyid(d.defaclrole) AS owner,
            d.defaclobjtype AS kind, a.privilege_type AS privilege,
            CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END AS grantee
        FROM pg_default_acl AS d
        LEFT JOIN pg_namespace AS n ON d.defaclnamespace = n.oid,
            aclexplode(d.defaclacl) AS a""",
    "guards": """
        SELECT evtname AS trigger, evtenabled AS enabled FROM pg_event_trigger""",
}

_POSTGRES = {
    **_COMMON,
    "cron_runs": """
        SELECT j.jobname, d.runid, d.database, d.username, d.status, d.return_message,
            extract(epoch FROM now() - d.start_time)::float AS age
        FROM cron.job_run_details AS d JOIN cron.job AS j USING (jobid)
        WHERE d.start_time > now() - interval '1 hour'""",
}

_WORKFLOWS = {
    "months": """
        SELECT table_name, months_ahead, default_rows, healthy FROM elsapg.partition_health""",
    "elsa_tables": """
        SELECT table_name::text AS relation, is_enabled, is_complete
        FROM elsapg.elsa_row_security""",
}

DATABASE_FACTS = {
    "postgres": _POSTGRES,
    "elsa_workflows": {**_COMMON, **_ELSA, **_WORKFLOWS},
    "elsa_runtime": {**_COMMON, **_ELSA},
}
