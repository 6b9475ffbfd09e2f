-- Elsa's tables as its EF Core migrations leave them: elsa-core 3.8, MIT licence,
-- github.com/elsa-workflows/elsa-core, src/modules/Elsa.Persistence.EFCore.PostgreSql/Migrations.
-- Written after the migrations' own description of tables, columns and indexes; applied to the tables
-- of 3.6.sql. Some fail, or miss rows, if row-level security binds the tables' owner.

-- Runtime: a column, and a type that makes PostgreSQL look at every row
ALTER TABLE "Elsa"."ActivityExecutionRecords" ADD "CallStackDepth" integer;
ALTER TABLE "Elsa"."ActivityExecutionRecords" ADD "SchedulingActivityExecutionId" text;
ALTER TABLE "Elsa"."ActivityExecutionRecords" ADD "SchedulingActivityId" text;
ALTER TABLE "Elsa"."ActivityExecutionRecords" ADD "SchedulingWorkflowInstanceId" text;
ALTER TABLE "Elsa"."WorkflowExecutionLogRecords"
ALTER COLUMN "ActivityNodeId" TYPE character varying(1024);
ALTER TABLE "Elsa"."ActivityExecutionRecords"
ALTER COLUMN "ActivityNodeId" TYPE character varying(1024);

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20260302123852_V3_7', '9.0.17');

-- Runtime: columns, and a new table
ALTER TABLE "Elsa"."BookmarkQueueItems" ADD "DeliveryAttempts" integer NOT NULL DEFAULT 0;
ALTER TABLE "Elsa"."BookmarkQueueItems" ADD "LastAttemptedAt" timestamp with time zone;
ALTER TABLE "Elsa"."BookmarkQueueItems" ADD "LastErrorMessage" text;
ALTER TABLE "Elsa"."BookmarkQueueItems" ADD "LastErrorType" text;
CREATE TABLE "Elsa"."BookmarkQueueDeadLetterItems" (
    "Id" text NOT NULL,
    "OriginalQueueItemId" text NOT NULL,
    "WorkflowInstanceId" text,
    "CorrelationId" text,
    "BookmarkId" text,
    "StimulusHash" text,
    "ActivityInstanceId" text,
    "ActivityTypeName" text,
    "OriginalCreatedAt" timestamp with time zone NOT NULL,
    "DeadLetteredAt" timestamp with time zone NOT NULL,
    "Reason" text NOT NULL,
    "DeliveryAttempts" integer NOT NULL,
    "LastAttemptedAt" timestamp with time zone,
    "LastErrorType" text,
    "LastErrorMessage" text,
    "CanReplay" boolean NOT NULL,
    "ReplayedAt" timestamp with time zone,
    "ReplayedQueueItemId" text,
    "SerializedOptions" text,
    "TenantId" text,
    CONSTRAINT "PK_BookmarkQueueDeadLetterItems" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_BookmarkQueueDeadLetterItem_ActivityInstanceId"
ON "Elsa"."BookmarkQueueDeadLetterItems" ("ActivityInstanceId");
CREATE INDEX "IX_BookmarkQueueDeadLetterItem_ActivityTypeName"
ON "Elsa"."BookmarkQueueDeadLetterItems" ("ActivityTypeName");
CREATE INDEX "IX_BookmarkQueueDeadLetterItem_BookmarkId"
ON "Elsa"."BookmarkQueueDeadLetterItems" ("BookmarkId");
CREATE INDEX "IX_BookmarkQueueDeadLetterItem_CorrelationId"
ON "Elsa"."BookmarkQueueDeadLetterItems" ("CorrelationId");
CREATE INDEX "IX_BookmarkQueueDeadLetterItem_DeadLetteredAt"
ON "Elsa"."BookmarkQueueDeadLetterItems" ("DeadLetteredAt");
CREATE UNIQUE INDEX "IX_BookmarkQueueDeadLetterItem_OriginalQueueItemId"
ON "Elsa"."BookmarkQueueDeadLetterItems" ("OriginalQueueItemId");
CREATE INDEX "IX_BookmarkQueueDeadLetterItem_TenantId" ON "Elsa"."BookmarkQueueDeadLetterItems" ("TenantId");
CREATE INDEX "IX_BookmarkQueueDeadLetterItem_WorkflowInstanceId"
ON "Elsa"."BookmarkQueueDeadLetterItems" ("WorkflowInstanceId");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20260520121653_V3_8', '9.0.17');

-- Identity: names are unique per tenant from here on
DROP INDEX "Elsa"."IX_User_Name";
DROP INDEX "Elsa"."IX_Role_Name";
DROP INDEX "Elsa"."IX_Application_ClientId";
DROP INDEX "Elsa"."IX_Application_Name";
CREATE UNIQUE INDEX "IX_User_TenantId_Name" ON "Elsa"."Users" ("TenantId", "Name");
CREATE UNIQUE INDEX "IX_Role_TenantId_Name" ON "Elsa"."Roles" ("TenantId", "Name");
CREATE UNIQUE INDEX "IX_Application_TenantId_ClientId" ON "Elsa"."Applications" ("TenantId", "ClientId");
CREATE UNIQUE INDEX "IX_Application_TenantId_Name" ON "Elsa"."Applications" ("TenantId", "Name");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20260823231437_PerTenantIdentityUniqueness', '9.0.17');

-- Labels: an UPDATE across all tenants
UPDATE "Elsa"."Labels" SET "TenantId" = '' WHERE "TenantId" IS NULL;
CREATE UNIQUE INDEX "IX_Label_TenantId_NormalizedName" ON "Elsa"."Labels" ("TenantId", "NormalizedName");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20260913133325_PerTenantLabelUniqueness', '9.0.17');

-- Management: a table whose key is the tenant
CREATE TABLE "Elsa"."WorkflowDefinitionRegistryGenerations" (
    "TenantId" character varying(450) NOT NULL,
    "Generation" bigint NOT NULL,
    CONSTRAINT "PK_WorkflowDefinitionRegistryGenerations" PRIMARY KEY ("TenantId")
);

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20260924222104_WorkflowDefinitionRegistryGeneration', '10.0.9');
