-- Elsa's tables as its EF Core migrations leave them: elsa-core 3.6, MIT licence,
-- github.com/elsa-workflows/elsa-core, src/modules/Elsa.Persistence.EFCore.PostgreSql/Migrations.
-- Written after the migrations' own description of tables, columns and indexes, each
-- module's in one step; the history names the last migration of each.

-- EF Core makes the schema only if it is not there.
DO $EF$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'Elsa') THEN
        CREATE SCHEMA "Elsa";
    END IF;
END $EF$;
CREATE TABLE IF NOT EXISTS "Elsa"."__EFMigrationsHistory" (
    "MigrationId" character varying(150) NOT NULL,
    "ProductVersion" character varying(32) NOT NULL,
    CONSTRAINT "PK___EFMigrationsHistory" PRIMARY KEY ("MigrationId")
);

-- Management
CREATE TABLE "Elsa"."WorkflowDefinitions" (
    "Id" text NOT NULL,
    "DefinitionId" text NOT NULL,
    "Name" text,
    "Description" text,
    "ToolVersion" text,
    "ProviderName" text,
    "MaterializerName" text NOT NULL,
    "MaterializerContext" text,
    "StringData" jsonb,
    "OriginalSource" text,
    "BinaryData" bytea,
    "IsReadonly" boolean NOT NULL,
    "IsSystem" boolean NOT NULL,
    "Data" text,
    "UsableAsActivity" boolean,
    "CreatedAt" timestamp with time zone NOT NULL,
    "Version" integer NOT NULL,
    "IsLatest" boolean NOT NULL,
    "IsPublished" boolean NOT NULL,
    "TenantId" text,
    CONSTRAINT "PK_WorkflowDefinitions" PRIMARY KEY ("Id")
);
CREATE UNIQUE INDEX "IX_WorkflowDefinition_DefinitionId_Version"
ON "Elsa"."WorkflowDefinitions" ("DefinitionId", "Version");
CREATE INDEX "IX_WorkflowDefinition_IsLatest" ON "Elsa"."WorkflowDefinitions" ("IsLatest");
CREATE INDEX "IX_WorkflowDefinition_IsPublished" ON "Elsa"."WorkflowDefinitions" ("IsPublished");
CREATE INDEX "IX_WorkflowDefinition_IsSystem" ON "Elsa"."WorkflowDefinitions" ("IsSystem");
CREATE INDEX "IX_WorkflowDefinition_Name" ON "Elsa"."WorkflowDefinitions" ("Name");
CREATE INDEX "IX_WorkflowDefinition_TenantId" ON "Elsa"."WorkflowDefinitions" ("TenantId");
CREATE INDEX "IX_WorkflowDefinition_UsableAsActivity" ON "Elsa"."WorkflowDefinitions" ("UsableAsActivity");
CREATE INDEX "IX_WorkflowDefinition_Version" ON "Elsa"."WorkflowDefinitions" ("Version");

CREATE TABLE "Elsa"."WorkflowInstances" (
    "Id" text NOT NULL,
    "DefinitionId" text NOT NULL,
    "DefinitionVersionId" text NOT NULL,
    "Version" integer NOT NULL,
    "ParentWorkflowInstanceId" text,
    "Status" text NOT NULL,
    "SubStatus" text NOT NULL,
    "IsExecuting" boolean NOT NULL,
    "CorrelationId" text,
    "Name" text,
    "IncidentCount" integer NOT NULL,
    "IsSystem" boolean NOT NULL,
    "CreatedAt" timestamp with time zone NOT NULL,
    "UpdatedAt" timestamp with time zone NOT NULL,
    "FinishedAt" timestamp with time zone,
    "Data" text,
    "DataCompressionAlgorithm" text,
    "TenantId" text,
    CONSTRAINT "PK_WorkflowInstances" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_WorkflowInstance_CorrelationId" ON "Elsa"."WorkflowInstances" ("CorrelationId");
CREATE INDEX "IX_WorkflowInstance_CreatedAt" ON "Elsa"."WorkflowInstances" ("CreatedAt");
CREATE INDEX "IX_WorkflowInstance_DefinitionId" ON "Elsa"."WorkflowInstances" ("DefinitionId");
CREATE INDEX "IX_WorkflowInstance_FinishedAt" ON "Elsa"."WorkflowInstances" ("FinishedAt");
CREATE INDEX "IX_WorkflowInstance_IsExecuting" ON "Elsa"."WorkflowInstances" ("IsExecuting");
CREATE INDEX "IX_WorkflowInstance_IsSystem" ON "Elsa"."WorkflowInstances" ("IsSystem");
CREATE INDEX "IX_WorkflowInstance_Name" ON "Elsa"."WorkflowInstances" ("Name");
CREATE INDEX "IX_WorkflowInstance_Status" ON "Elsa"."WorkflowInstances" ("Status");
CREATE INDEX "IX_WorkflowInstance_Status_DefinitionId"
ON "Elsa"."WorkflowInstances" ("Status", "DefinitionId");
CREATE INDEX "IX_WorkflowInstance_Status_SubStatus" ON "Elsa"."WorkflowInstances" ("Status", "SubStatus");
CREATE INDEX "IX_WorkflowInstance_Status_SubStatus_DefinitionId_Version"
ON "Elsa"."WorkflowInstances" ("Status", "SubStatus", "DefinitionId", "Version");
CREATE INDEX "IX_WorkflowInstance_SubStatus" ON "Elsa"."WorkflowInstances" ("SubStatus");
CREATE INDEX "IX_WorkflowInstance_SubStatus_DefinitionId"
ON "Elsa"."WorkflowInstances" ("SubStatus", "DefinitionId");
CREATE INDEX "IX_WorkflowInstance_TenantId" ON "Elsa"."WorkflowInstances" ("TenantId");
CREATE INDEX "IX_WorkflowInstance_UpdatedAt" ON "Elsa"."WorkflowInstances" ("UpdatedAt");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20251116182753_V3_6', '9.0.11');

-- Runtime
CREATE TABLE "Elsa"."KeyValuePairs" (
    "Id" text NOT NULL,
    "SerializedValue" text NOT NULL,
    "TenantId" text,
    CONSTRAINT "PK_KeyValuePairs" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_SerializedKeyValuePair_TenantId" ON "Elsa"."KeyValuePairs" ("TenantId");

CREATE TABLE "Elsa"."ActivityExecutionRecords" (
    "Id" text NOT NULL,
    "WorkflowInstanceId" text NOT NULL,
    "ActivityId" text NOT NULL,
    "ActivityNodeId" text NOT NULL,
    "ActivityType" text NOT NULL,
    "ActivityTypeVersion" integer NOT NULL,
    "ActivityName" text,
    "StartedAt" timestamp with time zone NOT NULL,
    "HasBookmarks" boolean NOT NULL,
    "Status" text NOT NULL,
    "AggregateFaultCount" integer NOT NULL,
    "CompletedAt" timestamp with time zone,
    "SerializedActivityState" text,
    "SerializedActivityStateCompressionAlgorithm" text,
    "SerializedException" text,
    "SerializedMetadata" text,
    "SerializedOutputs" text,
    "SerializedPayload" text,
    "SerializedProperties" text,
    "TenantId" text,
    CONSTRAINT "PK_ActivityExecutionRecords" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_ActivityExecutionRecord_ActivityId" ON "Elsa"."ActivityExecutionRecords" ("ActivityId");
CREATE INDEX "IX_ActivityExecutionRecord_ActivityName" ON "Elsa"."ActivityExecutionRecords" ("ActivityName");
CREATE INDEX "IX_ActivityExecutionRecord_ActivityNodeId"
ON "Elsa"."ActivityExecutionRecords" ("ActivityNodeId");
CREATE INDEX "IX_ActivityExecutionRecord_ActivityType" ON "Elsa"."ActivityExecutionRecords" ("ActivityType");
CREATE INDEX "IX_ActivityExecutionRecord_ActivityType_ActivityTypeVersion"
ON "Elsa"."ActivityExecutionRecords" ("ActivityType", "ActivityTypeVersion");
CREATE INDEX "IX_ActivityExecutionRecord_ActivityTypeVersion"
ON "Elsa"."ActivityExecutionRecords" ("ActivityTypeVersion");
CREATE INDEX "IX_ActivityExecutionRecord_CompletedAt" ON "Elsa"."ActivityExecutionRecords" ("CompletedAt");
CREATE INDEX "IX_ActivityExecutionRecord_HasBookmarks" ON "Elsa"."ActivityExecutionRecords" ("HasBookmarks");
CREATE INDEX "IX_ActivityExecutionRecord_StartedAt" ON "Elsa"."ActivityExecutionRecords" ("StartedAt");
CREATE INDEX "IX_ActivityExecutionRecord_Status" ON "Elsa"."ActivityExecutionRecords" ("Status");
CREATE INDEX "IX_ActivityExecutionRecord_TenantId" ON "Elsa"."ActivityExecutionRecords" ("TenantId");
CREATE INDEX "IX_ActivityExecutionRecord_WorkflowInstanceId"
ON "Elsa"."ActivityExecutionRecords" ("WorkflowInstanceId");

CREATE TABLE "Elsa"."BookmarkQueueItems" (
    "Id" text NOT NULL,
    "WorkflowInstanceId" text,
    "CorrelationId" text,
    "BookmarkId" text,
    "StimulusHash" text,
    "ActivityInstanceId" text,
    "ActivityTypeName" text,
    "CreatedAt" timestamp with time zone NOT NULL,
    "SerializedOptions" text,
    "TenantId" text,
    CONSTRAINT "PK_BookmarkQueueItems" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_BookmarkQueueItem_ActivityInstanceId" ON "Elsa"."BookmarkQueueItems" ("ActivityInstanceId");
CREATE INDEX "IX_BookmarkQueueItem_ActivityTypeName" ON "Elsa"."BookmarkQueueItems" ("ActivityTypeName");
CREATE INDEX "IX_BookmarkQueueItem_BookmarkId" ON "Elsa"."BookmarkQueueItems" ("BookmarkId");
CREATE INDEX "IX_BookmarkQueueItem_CorrelationId" ON "Elsa"."BookmarkQueueItems" ("CorrelationId");
CREATE INDEX "IX_BookmarkQueueItem_CreatedAt" ON "Elsa"."BookmarkQueueItems" ("CreatedAt");
CREATE INDEX "IX_BookmarkQueueItem_StimulusHash" ON "Elsa"."BookmarkQueueItems" ("StimulusHash");
CREATE INDEX "IX_BookmarkQueueItem_TenantId" ON "Elsa"."BookmarkQueueItems" ("TenantId");
CREATE INDEX "IX_BookmarkQueueItem_WorkflowInstanceId" ON "Elsa"."BookmarkQueueItems" ("WorkflowInstanceId");

CREATE TABLE "Elsa"."Bookmarks" (
    "Id" text NOT NULL,
    "ActivityTypeName" text NOT NULL,
    "Name" text,
    "Hash" text NOT NULL,
    "WorkflowInstanceId" text NOT NULL,
    "ActivityInstanceId" text,
    "CorrelationId" text,
    "CreatedAt" timestamp with time zone NOT NULL,
    "SerializedMetadata" text,
    "SerializedPayload" text,
    "TenantId" text,
    CONSTRAINT "PK_Bookmarks" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_StoredBookmark_ActivityInstanceId" ON "Elsa"."Bookmarks" ("ActivityInstanceId");
CREATE INDEX "IX_StoredBookmark_ActivityTypeName" ON "Elsa"."Bookmarks" ("ActivityTypeName");
CREATE INDEX "IX_StoredBookmark_ActivityTypeName_Hash" ON "Elsa"."Bookmarks" ("ActivityTypeName", "Hash");
CREATE INDEX "IX_StoredBookmark_ActivityTypeName_Hash_WorkflowInstanceId"
ON "Elsa"."Bookmarks" ("ActivityTypeName", "Hash", "WorkflowInstanceId");
CREATE INDEX "IX_StoredBookmark_CreatedAt" ON "Elsa"."Bookmarks" ("CreatedAt");
CREATE INDEX "IX_StoredBookmark_Hash" ON "Elsa"."Bookmarks" ("Hash");
CREATE INDEX "IX_StoredBookmark_Name" ON "Elsa"."Bookmarks" ("Name");
CREATE INDEX "IX_StoredBookmark_Name_Hash" ON "Elsa"."Bookmarks" ("Name", "Hash");
CREATE INDEX "IX_StoredBookmark_Name_Hash_WorkflowInstanceId"
ON "Elsa"."Bookmarks" ("Name", "Hash", "WorkflowInstanceId");
CREATE INDEX "IX_StoredBookmark_TenantId" ON "Elsa"."Bookmarks" ("TenantId");
CREATE INDEX "IX_StoredBookmark_WorkflowInstanceId" ON "Elsa"."Bookmarks" ("WorkflowInstanceId");

CREATE TABLE "Elsa"."Triggers" (
    "Id" text NOT NULL,
    "WorkflowDefinitionId" text NOT NULL,
    "WorkflowDefinitionVersionId" text NOT NULL,
    "Name" text,
    "ActivityId" text NOT NULL,
    "Hash" text,
    "SerializedPayload" text,
    "TenantId" text,
    CONSTRAINT "PK_Triggers" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_StoredTrigger_Hash" ON "Elsa"."Triggers" ("Hash");
CREATE INDEX "IX_StoredTrigger_Name" ON "Elsa"."Triggers" ("Name");
CREATE INDEX "IX_StoredTrigger_TenantId" ON "Elsa"."Triggers" ("TenantId");
CREATE INDEX "IX_StoredTrigger_WorkflowDefinitionId" ON "Elsa"."Triggers" ("WorkflowDefinitionId");
CREATE UNIQUE INDEX "IX_StoredTrigger_Unique_WorkflowDefinitionId_Hash_ActivityId"
ON "Elsa"."Triggers" ("WorkflowDefinitionId", "Hash", "ActivityId");
CREATE INDEX "IX_StoredTrigger_WorkflowDefinitionVersionId"
ON "Elsa"."Triggers" ("WorkflowDefinitionVersionId");

CREATE TABLE "Elsa"."WorkflowExecutionLogRecords" (
    "Id" text NOT NULL,
    "WorkflowDefinitionId" text NOT NULL,
    "WorkflowDefinitionVersionId" text NOT NULL,
    "WorkflowInstanceId" text NOT NULL,
    "WorkflowVersion" integer NOT NULL,
    "ActivityInstanceId" text NOT NULL,
    "ParentActivityInstanceId" text,
    "ActivityId" text NOT NULL,
    "ActivityType" text NOT NULL,
    "ActivityTypeVersion" integer NOT NULL,
    "ActivityName" text,
    "ActivityNodeId" text NOT NULL,
    "Timestamp" timestamp with time zone NOT NULL,
    "Sequence" bigint NOT NULL,
    "EventName" text,
    "Message" text,
    "Source" text,
    "SerializedActivityState" text,
    "SerializedPayload" text,
    "TenantId" text,
    CONSTRAINT "PK_WorkflowExecutionLogRecords" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_WorkflowExecutionLogRecord_ActivityId"
ON "Elsa"."WorkflowExecutionLogRecords" ("ActivityId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_ActivityInstanceId"
ON "Elsa"."WorkflowExecutionLogRecords" ("ActivityInstanceId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_ActivityName"
ON "Elsa"."WorkflowExecutionLogRecords" ("ActivityName");
CREATE INDEX "IX_WorkflowExecutionLogRecord_ActivityNodeId"
ON "Elsa"."WorkflowExecutionLogRecords" ("ActivityNodeId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_ActivityType"
ON "Elsa"."WorkflowExecutionLogRecords" ("ActivityType");
CREATE INDEX "IX_WorkflowExecutionLogRecord_ActivityType_ActivityTypeVersion"
ON "Elsa"."WorkflowExecutionLogRecords" ("ActivityType", "ActivityTypeVersion");
CREATE INDEX "IX_WorkflowExecutionLogRecord_ActivityTypeVersion"
ON "Elsa"."WorkflowExecutionLogRecords" ("ActivityTypeVersion");
CREATE INDEX "IX_WorkflowExecutionLogRecord_EventName" ON "Elsa"."WorkflowExecutionLogRecords" ("EventName");
CREATE INDEX "IX_WorkflowExecutionLogRecord_ParentActivityInstanceId"
ON "Elsa"."WorkflowExecutionLogRecords" ("ParentActivityInstanceId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_Sequence" ON "Elsa"."WorkflowExecutionLogRecords" ("Sequence");
CREATE INDEX "IX_WorkflowExecutionLogRecord_TenantId" ON "Elsa"."WorkflowExecutionLogRecords" ("TenantId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_Timestamp" ON "Elsa"."WorkflowExecutionLogRecords" ("Timestamp");
CREATE INDEX "IX_WorkflowExecutionLogRecord_Timestamp_Sequence"
ON "Elsa"."WorkflowExecutionLogRecords" ("Timestamp", "Sequence");
CREATE INDEX "IX_WorkflowExecutionLogRecord_WorkflowDefinitionId"
ON "Elsa"."WorkflowExecutionLogRecords" ("WorkflowDefinitionId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_WorkflowDefinitionVersionId"
ON "Elsa"."WorkflowExecutionLogRecords" ("WorkflowDefinitionVersionId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_WorkflowInstanceId"
ON "Elsa"."WorkflowExecutionLogRecords" ("WorkflowInstanceId");
CREATE INDEX "IX_WorkflowExecutionLogRecord_WorkflowVersion"
ON "Elsa"."WorkflowExecutionLogRecords" ("WorkflowVersion");

CREATE TABLE "Elsa"."WorkflowInboxMessages" (
    "Id" text NOT NULL,
    "ActivityTypeName" text NOT NULL,
    "Hash" text NOT NULL,
    "WorkflowInstanceId" text,
    "CorrelationId" text,
    "ActivityInstanceId" text,
    "CreatedAt" timestamp with time zone NOT NULL,
    "ExpiresAt" timestamp with time zone NOT NULL,
    "SerializedBookmarkPayload" text,
    "SerializedInput" text,
    "TenantId" text,
    CONSTRAINT "PK_WorkflowInboxMessages" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_WorkflowInboxMessage_ActivityInstanceId"
ON "Elsa"."WorkflowInboxMessages" ("ActivityInstanceId");
CREATE INDEX "IX_WorkflowInboxMessage_ActivityTypeName"
ON "Elsa"."WorkflowInboxMessages" ("ActivityTypeName");
CREATE INDEX "IX_WorkflowInboxMessage_CorrelationId" ON "Elsa"."WorkflowInboxMessages" ("CorrelationId");
CREATE INDEX "IX_WorkflowInboxMessage_CreatedAt" ON "Elsa"."WorkflowInboxMessages" ("CreatedAt");
CREATE INDEX "IX_WorkflowInboxMessage_ExpiresAt" ON "Elsa"."WorkflowInboxMessages" ("ExpiresAt");
CREATE INDEX "IX_WorkflowInboxMessage_Hash" ON "Elsa"."WorkflowInboxMessages" ("Hash");
CREATE INDEX "IX_WorkflowInboxMessage_WorkflowInstanceId"
ON "Elsa"."WorkflowInboxMessages" ("WorkflowInstanceId");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20251204150341_V3_6', '9.0.11');

-- Identity
CREATE TABLE "Elsa"."Applications" (
    "Id" text NOT NULL,
    "ClientId" text NOT NULL,
    "HashedClientSecret" text NOT NULL,
    "HashedClientSecretSalt" text NOT NULL,
    "Name" text NOT NULL,
    "HashedApiKey" text NOT NULL,
    "HashedApiKeySalt" text NOT NULL,
    "Roles" text NOT NULL,
    "TenantId" text,
    CONSTRAINT "PK_Applications" PRIMARY KEY ("Id")
);
CREATE UNIQUE INDEX "IX_Application_ClientId" ON "Elsa"."Applications" ("ClientId");
CREATE UNIQUE INDEX "IX_Application_Name" ON "Elsa"."Applications" ("Name");
CREATE INDEX "IX_Application_TenantId" ON "Elsa"."Applications" ("TenantId");

CREATE TABLE "Elsa"."Roles" (
    "Id" text NOT NULL,
    "Name" text NOT NULL,
    "Permissions" text NOT NULL,
    "TenantId" text,
    CONSTRAINT "PK_Roles" PRIMARY KEY ("Id")
);
CREATE UNIQUE INDEX "IX_Role_Name" ON "Elsa"."Roles" ("Name");
CREATE INDEX "IX_Role_TenantId" ON "Elsa"."Roles" ("TenantId");

CREATE TABLE "Elsa"."Users" (
    "Id" text NOT NULL,
    "Name" text NOT NULL,
    "HashedPassword" text,
    "HashedPasswordSalt" text,
    "Roles" text NOT NULL,
    "TenantId" text,
    CONSTRAINT "PK_Users" PRIMARY KEY ("Id")
);
CREATE UNIQUE INDEX "IX_User_Name" ON "Elsa"."Users" ("Name");
CREATE INDEX "IX_User_TenantId" ON "Elsa"."Users" ("TenantId");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20250222190930_V3_4', '9.0.11');

-- Labels
CREATE TABLE "Elsa"."Labels" (
    "Id" text NOT NULL,
    "Name" text NOT NULL,
    "NormalizedName" text NOT NULL,
    "Description" text,
    "Color" text,
    "TenantId" text,
    CONSTRAINT "PK_Labels" PRIMARY KEY ("Id")
);

CREATE TABLE "Elsa"."WorkflowDefinitionLabels" (
    "Id" text NOT NULL,
    "WorkflowDefinitionId" text NOT NULL,
    "WorkflowDefinitionVersionId" text NOT NULL,
    "LabelId" text NOT NULL,
    "TenantId" text,
    CONSTRAINT "PK_WorkflowDefinitionLabels" PRIMARY KEY ("Id")
);
CREATE INDEX "WorkflowDefinitionLabel_LabelId" ON "Elsa"."WorkflowDefinitionLabels" ("LabelId");
CREATE INDEX "WorkflowDefinitionLabel_TenantId" ON "Elsa"."WorkflowDefinitionLabels" ("TenantId");
CREATE INDEX "WorkflowDefinitionLabel_WorkflowDefinitionId"
ON "Elsa"."WorkflowDefinitionLabels" ("WorkflowDefinitionId");
CREATE INDEX "WorkflowDefinitionLabel_WorkflowDefinitionVersionId"
ON "Elsa"."WorkflowDefinitionLabels" ("WorkflowDefinitionVersionId");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20241212212046_V3_3', '9.0.11');

-- Alterations
CREATE TABLE "Elsa"."AlterationPlans" (
    "Id" text NOT NULL,
    "Status" text NOT NULL,
    "CreatedAt" timestamp with time zone NOT NULL,
    "StartedAt" timestamp with time zone,
    "CompletedAt" timestamp with time zone,
    "SerializedAlterations" text,
    "SerializedWorkflowInstanceFilter" text,
    "TenantId" text,
    CONSTRAINT "PK_AlterationPlans" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_AlterationPlan_CompletedAt" ON "Elsa"."AlterationPlans" ("CompletedAt");
CREATE INDEX "IX_AlterationPlan_CreatedAt" ON "Elsa"."AlterationPlans" ("CreatedAt");
CREATE INDEX "IX_AlterationPlan_StartedAt" ON "Elsa"."AlterationPlans" ("StartedAt");
CREATE INDEX "IX_AlterationPlan_Status" ON "Elsa"."AlterationPlans" ("Status");
CREATE INDEX "IX_AlterationPlan_TenantId" ON "Elsa"."AlterationPlans" ("TenantId");

CREATE TABLE "Elsa"."AlterationJobs" (
    "Id" text NOT NULL,
    "PlanId" text NOT NULL,
    "WorkflowInstanceId" text NOT NULL,
    "Status" text NOT NULL,
    "CreatedAt" timestamp with time zone NOT NULL,
    "StartedAt" timestamp with time zone,
    "CompletedAt" timestamp with time zone,
    "SerializedLog" text,
    "TenantId" text,
    CONSTRAINT "PK_AlterationJobs" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_AlterationJob_CompletedAt" ON "Elsa"."AlterationJobs" ("CompletedAt");
CREATE INDEX "IX_AlterationJob_CreatedAt" ON "Elsa"."AlterationJobs" ("CreatedAt");
CREATE INDEX "IX_AlterationJob_PlanId" ON "Elsa"."AlterationJobs" ("PlanId");
CREATE INDEX "IX_AlterationJob_StartedAt" ON "Elsa"."AlterationJobs" ("StartedAt");
CREATE INDEX "IX_AlterationJob_Status" ON "Elsa"."AlterationJobs" ("Status");
CREATE INDEX "IX_AlterationJob_TenantId" ON "Elsa"."AlterationJobs" ("TenantId");
CREATE INDEX "IX_AlterationJob_WorkflowInstanceId" ON "Elsa"."AlterationJobs" ("WorkflowInstanceId");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20241212211604_V3_3', '9.0.11');

-- Tenants
CREATE TABLE "Elsa"."Tenants" (
    "Id" text NOT NULL,
    "Name" text NOT NULL,
    "Configuration" text NOT NULL,
    "TenantId" text,
    CONSTRAINT "PK_Tenants" PRIMARY KEY ("Id")
);
CREATE INDEX "IX_Tenant_Name" ON "Elsa"."Tenants" ("Name");
CREATE INDEX "IX_Tenant_TenantId" ON "Elsa"."Tenants" ("TenantId");

INSERT INTO "Elsa"."__EFMigrationsHistory" ("MigrationId", "ProductVersion")
VALUES ('20250222191022_V3_4', '9.0.11');
