-- elsapg: database=elsa_workflows,elsa_runtime

-- AES and HMAC for cluster/065_encryption.sql. Nothing to preload.
CREATE EXTENSION IF NOT EXISTS pgcrypto SCHEMA public;
