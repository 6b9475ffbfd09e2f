-- Under load: new tables only; nothing waits.
--
-- Who the tenants are, and their users. Rows of other tables name a tenant without a foreign key
-- here: a check per row for something that row-level security has settled already.
CREATE TABLE elsa_workflows.tenants (
    tenant_id varchar(255) NOT NULL,
    name varchar(500) NOT NULL,
    is_enabled boolean NOT NULL DEFAULT true,
    configuration jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id),
    -- '' is what an ended transaction leaves in the context; "*" is Elsa's word for everybody.
    CONSTRAINT tenants_tenant_id_check CHECK (tenant_id NOT IN ('', '*'))
);
SELECT elsapg.isolate_tenants('elsa_workflows.tenants');
-- Tenants are made by people; a tenant's own server may know itself.
REVOKE ALL ON TABLE elsa_workflows.tenants FROM elsa_user;
GRANT SELECT ON TABLE elsa_workflows.tenants TO elsa_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.tenants TO elsa_admin;

CREATE TABLE elsa_workflows.users (
    id varchar(255) NOT NULL,
    user_name varchar(255) NOT NULL,
    display_name varchar(500),
    email varchar(320),
    external_subject varchar(255),
    password_hash text,
    permissions text[] NOT NULL DEFAULT '{}',
    is_enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    last_login_at timestamptz,
    tenant_id varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT users_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT users_tenant_fkey FOREIGN KEY (tenant_id)
    REFERENCES elsa_workflows.tenants (tenant_id) ON DELETE RESTRICT
);
-- Two spellings of one name are one user.
CREATE UNIQUE INDEX uk_users_user_name
ON elsa_workflows.users (tenant_id, (pg_catalog.lower(user_name)));
CREATE INDEX idx_users_email
ON elsa_workflows.users (tenant_id, (pg_catalog.lower(email)))
WHERE email IS NOT NULL;
CREATE UNIQUE INDEX uk_users_external_subject
ON elsa_workflows.users (tenant_id, external_subject)
WHERE external_subject IS NOT NULL;

SELECT elsapg.isolate_tenants('elsa_workflows.users');
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE elsa_workflows.users TO elsa_user;
-- Workers authenticate nobody; reports need no hashes.
REVOKE ALL ON TABLE elsa_workflows.users FROM elsa_worker, elsa_readonly;
GRANT SELECT (
    id, user_name, display_name, email, permissions, is_enabled, created_at, updated_at, last_login_at,
    tenant_id
) ON TABLE elsa_workflows.users TO elsa_readonly;

INSERT INTO elsa_workflows.tenants (tenant_id, name)
SELECT
    'default' AS tenant_id,
    'Default' AS name
-- The owner is bound by row-level security like everybody else.
FROM (SELECT pg_catalog.set_config('app.current_tenant_id', 'default', true)) AS context;
SELECT pg_catalog.set_config('app.current_tenant_id', '', true);

COMMENT ON TABLE elsa_workflows.tenants IS 'The tenants; made and changed by elsa_admin.';
COMMENT ON COLUMN elsa_workflows.tenants.tenant_id IS
'The name by which app.current_tenant_id and every tenant_id call it.';
COMMENT ON COLUMN elsa_workflows.tenants.name IS 'A name for people.';
COMMENT ON COLUMN elsa_workflows.tenants.is_enabled IS
'Whether its users may log in and its workflows start; the application looks at it.';
COMMENT ON COLUMN elsa_workflows.tenants.configuration IS 'The tenant''s settings, for the application.';
COMMENT ON COLUMN elsa_workflows.tenants.created_at IS 'When it was made.';
COMMENT ON COLUMN elsa_workflows.tenants.updated_at IS 'When it was last changed.';
COMMENT ON TABLE elsa_workflows.users IS 'User accounts and their permissions; every write is audited.';
COMMENT ON COLUMN elsa_workflows.users.id IS 'Identifies the user within its tenant.';
COMMENT ON COLUMN elsa_workflows.users.user_name IS
'What the user logs in as; unique within its tenant, whatever the case of its letters.';
COMMENT ON COLUMN elsa_workflows.users.display_name IS 'A name for people.';
COMMENT ON COLUMN elsa_workflows.users.email IS 'The user''s address.';
COMMENT ON COLUMN elsa_workflows.users.external_subject IS
'The user''s subject at an identity provider, for those who log in there.';
COMMENT ON COLUMN elsa_workflows.users.password_hash IS
'The application''s hash with its salt, never a password; NULL for users of an identity provider.';
COMMENT ON COLUMN elsa_workflows.users.permissions IS 'What the user may do, in the application''s words.';
COMMENT ON COLUMN elsa_workflows.users.is_enabled IS 'Whether the user may log in.';
COMMENT ON COLUMN elsa_workflows.users.created_at IS 'When the account was made.';
COMMENT ON COLUMN elsa_workflows.users.updated_at IS 'When it was last changed.';
COMMENT ON COLUMN elsa_workflows.users.last_login_at IS 'When the user last logged in.';
COMMENT ON COLUMN elsa_workflows.users.tenant_id IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX elsa_workflows.uk_users_user_name IS 'One user per name, whatever its case.';
COMMENT ON INDEX elsa_workflows.idx_users_email IS 'Users of an address, whatever its case.';
COMMENT ON INDEX elsa_workflows.uk_users_external_subject IS 'One user per subject.';
