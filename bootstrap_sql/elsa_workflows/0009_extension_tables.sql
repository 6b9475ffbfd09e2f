-- Under load: makes new tables only; waits for nobody and nobody waits for it.
--
-- Categories, tags and custom activities beside Elsa's own tables. Names are quoted, for unquoted
-- ones would fold to lower case, which EF Core does not ask for. A definition is named by Elsa's
-- DefinitionId, which all its versions share: no foreign key can point at that, and none at a table
-- that Elsa's migrations own.

CREATE TABLE "ElsaExtensions"."WorkflowCategories" (
    "Id" uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    "Name" varchar(100) NOT NULL,
    "Description" text,
    "Color" varchar(7),
    "CreatedAt" timestamptz NOT NULL DEFAULT pg_catalog.now(),
    "UpdatedAt" timestamptz NOT NULL DEFAULT pg_catalog.now(),
    "TenantId" varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    -- The tenant comes first in every key: a collision of keys must not tell one tenant what
    -- another has.
    CONSTRAINT workflowcategories_pkey PRIMARY KEY ("TenantId", "Id"),
    CONSTRAINT uk_workflowcategories_name UNIQUE ("TenantId", "Name"),
    CONSTRAINT workflowcategories_name_check CHECK ("Name" <> ''),
    CONSTRAINT workflowcategories_color_check CHECK ("Color" ~ '^#[0-9A-Fa-f]{6}$'),
    CONSTRAINT workflowcategories_tenantid_check CHECK ("TenantId" <> '')
);
SELECT elsapg.isolate_tenants('"ElsaExtensions"."WorkflowCategories"', 'TenantId');

-- A category has many definitions, a definition at most one category: the key says so.
CREATE TABLE "ElsaExtensions"."WorkflowDefinitionCategories" (
    "WorkflowDefinitionId" varchar(255) NOT NULL,
    "CategoryId" uuid NOT NULL,
    "CreatedAt" timestamptz NOT NULL DEFAULT pg_catalog.now(),
    "TenantId" varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT workflowdefinitioncategories_pkey PRIMARY KEY ("TenantId", "WorkflowDefinitionId"),
    CONSTRAINT workflowdefinitioncategories_category_fkey FOREIGN KEY ("TenantId", "CategoryId")
    REFERENCES "ElsaExtensions"."WorkflowCategories" ("TenantId", "Id") ON DELETE CASCADE,
    CONSTRAINT workflowdefinitioncategories_tenantid_check CHECK ("TenantId" <> '')
);
CREATE INDEX idx_workflowdefinitioncategories_categoryid
ON "ElsaExtensions"."WorkflowDefinitionCategories" ("TenantId", "CategoryId");
SELECT elsapg.isolate_tenants('"ElsaExtensions"."WorkflowDefinitionCategories"', 'TenantId');

CREATE TABLE "ElsaExtensions"."WorkflowTags" (
    "Id" uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    "WorkflowDefinitionId" varchar(255) NOT NULL,
    "Tag" varchar(50) NOT NULL,
    "CreatedAt" timestamptz NOT NULL DEFAULT pg_catalog.now(),
    "TenantId" varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT workflowtags_pkey PRIMARY KEY ("TenantId", "Id"),
    CONSTRAINT workflowtags_tag_check CHECK ("Tag" <> ''),
    CONSTRAINT workflowtags_tenantid_check CHECK ("TenantId" <> '')
);
-- Also what keeps a tag from being put on a definition twice.
CREATE UNIQUE INDEX idx_workflowtags_workflowdefinitionid
ON "ElsaExtensions"."WorkflowTags" ("TenantId", "WorkflowDefinitionId", "Tag");
CREATE INDEX idx_workflowtags_tag
ON "ElsaExtensions"."WorkflowTags" ("TenantId", "Tag");
SELECT elsapg.isolate_tenants('"ElsaExtensions"."WorkflowTags"', 'TenantId');

CREATE TABLE "ElsaExtensions"."CustomActivityDefinitions" (
    "Id" uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    "Name" varchar(100) NOT NULL,
    "DisplayName" varchar(100),
    "Description" text,
    "Category" varchar(50),
    "InputProperties" jsonb NOT NULL DEFAULT '[]',
    "OutputProperties" jsonb NOT NULL DEFAULT '[]',
    "AssemblyName" varchar(255),
    "TypeName" varchar(255) NOT NULL,
    "Version" varchar(20) NOT NULL DEFAULT '1.0.0',
    "IsEnabled" boolean NOT NULL DEFAULT true,
    "CreatedAt" timestamptz NOT NULL DEFAULT pg_catalog.now(),
    "UpdatedAt" timestamptz NOT NULL DEFAULT pg_catalog.now(),
    "TenantId" varchar(255) NOT NULL DEFAULT coalesce(
        nullif(pg_catalog.current_setting('app.current_tenant_id', true), ''), 'default'
    ),
    CONSTRAINT customactivitydefinitions_pkey PRIMARY KEY ("TenantId", "Id"),
    CONSTRAINT customactivitydefinitions_name_check CHECK ("Name" <> ''),
    CONSTRAINT customactivitydefinitions_properties_check CHECK (
        pg_catalog.jsonb_typeof("InputProperties") IN ('array', 'object')
        AND pg_catalog.jsonb_typeof("OutputProperties") IN ('array', 'object')
    ),
    CONSTRAINT customactivitydefinitions_tenantid_check CHECK ("TenantId" <> '')
);
-- Also what keeps a name from having a version twice.
CREATE UNIQUE INDEX idx_customactivitydefinitions_name
ON "ElsaExtensions"."CustomActivityDefinitions" ("TenantId", "Name", "Version");
CREATE INDEX idx_customactivitydefinitions_category
ON "ElsaExtensions"."CustomActivityDefinitions" ("TenantId", "Category");
SELECT elsapg.isolate_tenants('"ElsaExtensions"."CustomActivityDefinitions"', 'TenantId');

COMMENT ON TABLE "ElsaExtensions"."WorkflowCategories" IS
'Categories that a tenant sorts its workflows into.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowCategories"."Id" IS
'Identifies the category within its tenant.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowCategories"."Name" IS
'The category''s name, once per tenant.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowCategories"."Description" IS
'What belongs into it, for people.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowCategories"."Color" IS
'How it is shown: # and six hexadecimal digits.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowCategories"."CreatedAt" IS
'When it was made.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowCategories"."UpdatedAt" IS
'When it was last changed; the application sets it.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowCategories"."TenantId" IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';

COMMENT ON TABLE "ElsaExtensions"."WorkflowDefinitionCategories" IS
'Which category a workflow is in: at most one per workflow.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowDefinitionCategories"."WorkflowDefinitionId" IS
'The workflow''s DefinitionId, the same for all its versions.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowDefinitionCategories"."CategoryId" IS
'The category, of the same tenant; deleting it takes its workflows out of it.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowDefinitionCategories"."CreatedAt" IS
'When the workflow was put into the category.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowDefinitionCategories"."TenantId" IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX "ElsaExtensions".idx_workflowdefinitioncategories_categoryid IS
'The workflows of a category; what deleting a category looks up.';

COMMENT ON TABLE "ElsaExtensions"."WorkflowTags" IS
'Tags on workflows, one row per workflow and tag.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowTags"."Id" IS
'Identifies the row within its tenant.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowTags"."WorkflowDefinitionId" IS
'The workflow''s DefinitionId, the same for all its versions.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowTags"."Tag" IS
'The tag, once per workflow.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowTags"."CreatedAt" IS
'When the tag was put on.';
COMMENT ON COLUMN "ElsaExtensions"."WorkflowTags"."TenantId" IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX "ElsaExtensions".idx_workflowtags_workflowdefinitionid IS
'The tags of a workflow, each once.';
COMMENT ON INDEX "ElsaExtensions".idx_workflowtags_tag IS
'The workflows that have a tag.';

COMMENT ON TABLE "ElsaExtensions"."CustomActivityDefinitions" IS
'Activities that the team wrote, one row per version.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."Id" IS
'Identifies the row within its tenant.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."Name" IS
'The activity''s name; once per tenant and version.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."DisplayName" IS
'The name that designers see.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."Description" IS
'What the activity does, for people.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."Category" IS
'Under which heading designers find it.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."InputProperties" IS
'Definitions of its inputs.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."OutputProperties" IS
'Definitions of its outputs.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."AssemblyName" IS
'The .NET assembly that holds it.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."TypeName" IS
'The .NET type''s full name.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."Version" IS
'The activity''s version.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."IsEnabled" IS
'Whether designers may use it.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."CreatedAt" IS
'When the row was made.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."UpdatedAt" IS
'When the row was last changed; the application sets it.';
COMMENT ON COLUMN "ElsaExtensions"."CustomActivityDefinitions"."TenantId" IS
'The tenant that owns the row: by default that of the transaction''s context, else "default".';
COMMENT ON INDEX "ElsaExtensions".idx_customactivitydefinitions_name IS
'An activity by name, each version once.';
COMMENT ON INDEX "ElsaExtensions".idx_customactivitydefinitions_category IS
'The activities of a category.';
